"""Segmentation by the command line: trains, resumes, evaluates case by case, draws; what is refused."""

import json
from pathlib import Path

import pytest
from medical_files import write_task

from jax_advtrain.evaluation import results

CONFIG = """
from jax_advtrain.config import base

def get_config():
    config = base({method!r}, "unet")
    config.data.name, config.data.source, config.data.data_dir = "boxes", "decathlon", {data_dir!r}
    config.data.slices, config.data.test_size, config.data.validation_size = 1, 2, 1
    config.data.augment = ("flip", "rotate:10", "gamma:0.2")
    config.model.width, config.model.levels = 4, 2
    config.dice_threshold = 0.6
    config.defense.update({fields!r})
    config.batch_size, config.num_shards, config.epochs = 8, 8, 2
    config.optimizer.learning_rate = 1e-2
    config.monitor.num_samples, config.monitor.attacks = 1, "pgd:num_steps=2"
    config.monitor.norm, config.monitor.epsilon = "l2", 0.5
    config.eval.after_training = "best"
    config.eval.attacks = "fgsm, pgd:num_steps=3"
    config.eval.epsilons_linf, config.eval.epsilons_l2 = (), (0.5, 2.0)
    config.eval.figures = 2
    config.margins.norm, config.margins.radii, config.margins.num_steps = "l2", (0.5, 2.0), 3
    return config
"""
ATTACKED = {"norm": "l2", "num_steps": 2}
FIELDS = {
    "standard": {},
    "pgd_at": {**ATTACKED, "epsilon": 0.5, "attack_loss": "task"},
    "trades": {**ATTACKED, "epsilon": 0.5},
    "ima": {**ATTACKED, "eps_max": 1.0, "delta": 0.1, "refine_steps": 2, "attack_loss": "task", "compact": False,
            "inside_is_clean": False, "outside_is_final": False, "only_hit": False},
    "ame": {**ATTACKED, "delta": 0.1, "refine_steps": 2, "attack_loss": "task", "compact": False},
    "fast_at": {"norm": "l2", "epsilon": 0.5},
    "n_fgsm": {"norm": "linf", "epsilon": 0.05},
}  # fmt: skip


@pytest.fixture(scope="module")
def boxes(tmp_path_factory) -> Path:
    return write_task(tmp_path_factory.mktemp("boxes") / "Task98_Boxes")


@pytest.fixture
def config_of(tmp_path, boxes):
    """config_of(method) -> a config file."""

    def write(method: str = "ima", data_dir: Path = boxes) -> Path:
        file = tmp_path / f"{method}.py"
        file.write_text(CONFIG.format(method=method, data_dir=str(data_dir), fields=FIELDS[method]))
        return file

    return write


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_whole_run(command, config_of, tmp_path):
    folder = tmp_path / "run"
    answer = command(f"--config={config_of()}", f"--workdir={folder}")
    assert answer.code == 0, answer.err
    line = log(folder)[-1]
    assert set(line["validation"]["dice_per_class"]) == {"clean", "robust"}
    assert 0 <= line["validation"]["robust_dice"] <= line["validation"]["clean_dice"] + 1e-6
    found = results.read_results(folder / "eval" / "best")
    assert [record["attack"] for record in found["records"]].count("worst-of") == 2
    print(answer.out)
