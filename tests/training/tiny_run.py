"""A whole training on scikit-learn's digits that takes seconds; as a script, one process of several.

python tiny_run.py WORKDIR DATA_DIR ADDRESS NUM_PROCESSES PROCESS
"""

import io
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jax_advtrain import devices
from jax_advtrain.config import base
from jax_advtrain.training import experiment as experiments
from jax_advtrain.training import loop, workdir
from jax_advtrain.training.checkpoints import Saved
from jax_advtrain.training.display import Display

CNN_WITH_BATCH_NORM = {"channels": (4, 8), "hidden": (8,), "batch_norm": True}


def tiny_config(data_dir: Path | str, *, model: str = "mlp", epochs: int = 2) -> Any:
    """IMA on digits: 1,257 images in 8 shards of 157 or 158, so that the last batch is ragged."""
    config = base("ima", model)
    config.data.name = "digits"
    config.data.data_dir = str(data_dir)
    config.model.update({"hidden": (16,)} if model == "mlp" else CNN_WITH_BATCH_NORM)
    config.defense.update(eps_max=0.2, delta=0.02, num_steps=5, refine_steps=6, compact=False)
    config.batch_size, config.epochs, config.optimizer.learning_rate = 128, epochs, 1e-2
    config.monitor.num_samples, config.monitor.attacks = 64, "pgd:num_steps=3"
    config.eval.after_training = ""
    return config


def quiet() -> Display:
    """Says nothing to anyone; what was said is in `display.console.file`."""
    return Display(Console(file=io.StringIO(), soft_wrap=True))


def train(config: Any, folder: Path, num_devices: int, display: Display | None = None):
    """The real loop on so many devices: (experiment, final state)."""
    experiment = experiments.build(config, devices.make_mesh(jax.devices()[:num_devices]))
    saved = Saved({}, experiment.splits.train.fingerprint(), 0)
    folder.mkdir(parents=True, exist_ok=True)
    return experiment, loop.train(experiment, config, folder, saved, display or quiet())


def main(folder: Path, data_dir: Path, address: str, num_processes: int, process: int) -> None:
    jax.distributed.initialize(address, num_processes, process)
    assert jax.process_count() == num_processes
    _, state = train(tiny_config(data_dir), folder, len(jax.devices()))
    found = {
        "margin": devices.gathered(state.sample_state["margin"]),
        "params": np.concatenate([devices.gathered(leaf).reshape(-1) for leaf in jax.tree.leaves(state.params)]),
        "devices": np.array([len(jax.devices()), len(jax.local_devices())]),
    }
    np.savez(folder / f"process{process}.npz", **found)
    assert workdir.read_metrics(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
