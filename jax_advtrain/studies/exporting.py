"""A checkpoint's weights as a folder for others: safetensors and a plain config, which `jax_advtrain.load` reads."""

from pathlib import Path
from typing import Any

from jax_advtrain import config as configs
from jax_advtrain import models
from jax_advtrain.studies import opening
from jax_advtrain.training import workdir
from jax_advtrain.training.display import Display
from jax_advtrain.training.state import evaluated_params


def export_run(config: Any, folder: Path | str, display: Display | None = None) -> Path:
    """Writes the weights that evaluation uses (the averaged ones, where there are any) of a workdir's checkpoint.

    Into export/<eval.name>, by default export/<checkpoint>-<step>: a later checkpoint gets a folder of its own.

    Returns:
      The folder.

    Raises:
      ConfigError: no such run or checkpoint; the folder is there already.
    """
    folder, display = Path(folder), display or Display()
    which = config.eval.checkpoint
    experiment, state = opening.load_run(config, folder, which, display)
    train = experiment.splits.train
    target = folder / "export" / (config.eval.name or f"{which}-{int(state.step)}")
    if workdir.is_writer():
        with opening.config_errors():
            models.export(
                target,
                configs.plain(config.model),
                evaluated_params(state),
                state.batch_stats,
                num_classes=1 if experiment.is_binary else train.num_classes,
                image_shape=train.image_shape,
                class_names=train.class_names,
            )
    display.say(f'weights: {target}; logits_fn = jax_advtrain.load("{target}")')
    return target
