"""Several defenses side by side on points in the plane; the two moons show what IMA is for."""

import json
from pathlib import Path

import numpy as np
import pytest

from jax_advtrain import data
from jax_advtrain.evaluation import results

HALF_GAP = 0.0625  # of the noiseless moons, L2, in the unit square

CONFIG = """
from jax_advtrain.config import base

def get_config():
    config = base("pgd_at", "mlp")
    config.data.name = {name!r}
    config.data.num_train = 64
    config.data.num_test = 32
    config.model.hidden = (8,)
    config.defense.norm = "l2"
    config.defense.epsilon = 0.02
    config.defense.num_steps = 2
    config.defense.attack_loss = {loss!r}
    config.epochs = 1
    config.batch_size = 16
    config.monitor.attacks = ""
    config.eval.after_training = "last"
    config.eval.attacks = ""
    config.one_logit = True
    config.beside = {{"standard": {{"name": "standard"}}}}
    return config
"""


@pytest.mark.slow
def test_trained_beside_each_other_and_not_twice(command, unchanged, tmp_path):
    (tmp_path / "moons.py").write_text(CONFIG.format(name="moons", loss="bce"))
    run = tmp_path / "run"
    asked = [f"--config={tmp_path}/moons.py", f"--workdir={run}"]
    answer = command(*asked)
    assert answer.code == 0, answer
    assert "beside it: standard" in answer.out and f"boundaries: {run}/plots/boundary.png" in answer.out
    assert (run / "plots/boundary.png").stat().st_size > 10_000
    before = unchanged(run)
    again = command(*asked)
    assert again.code == 0 and again.out.count("this run is complete") == 2 and "compiling" not in again.out
    assert {name: one for name, one in unchanged(run).items() if ".lock" not in name} == {
        name: one for name, one in before.items() if ".lock" not in name
    }
    # One of them lacks: it alone is trained again.
    (run / "beside/standard").rename(tmp_path / "elsewhere")
    again = command(*asked)
    assert again.code == 0 and again.out.count("this run is complete") == 1 and again.out.count("compiled in") == 1


def test_only_points_in_the_plane(refused, unchanged, tmp_path, tiny_config):
    text = CONFIG.format(name="digits", loss="ce").replace("config.one_logit = True", "config.one_logit = False")
    (tmp_path / "images.py").write_text(text)
    before = unchanged(tmp_path)
    refused(
        [
            *(f"--config={tmp_path}/images.py", f"--workdir={tmp_path}/run"),
            f"--config.data.data_dir={tiny_config.parent}/tfds",
        ],
        "beside needs points in the plane; 'digits' has samples of shape (8, 8, 1)",
    )
    assert unchanged(tmp_path) == before


@pytest.mark.slow
def test_the_point_of_ima(command, tmp_path):
    """About a minute. IMA keeps all samples and margins of about half the gap; PGD with a radius of the whole gap gives
    samples up, and the same number as IMA's ceiling costs next to nothing."""
    run = tmp_path / "run"
    answer = command("--config=moons_ima", f"--workdir={run}")
    assert answer.code == 0, answer
    assert (run / "plots/boundary.png").stat().st_size > 20_000

    def clean(folder: Path) -> float:
        record = results.read_results(folder / "eval/last")["records"][0]
        return record["correct"] / record["n"]

    ima, too_high, pgd, standard = (
        clean(run / place) for place in (".", "beside/ima_too_high", "beside/pgd_at", "beside/standard")
    )
    assert ima >= 0.99 and standard >= 0.99
    assert too_high >= 0.98 and pgd <= 0.97
    assert command("--mode=margins", f"--workdir={run}", "--config.eval.checkpoint=last").code == 0
    found = dict(np.load(run / "eval/margins-last-test-l2/margins.npz"))
    # The points that face the other moon cannot have more than half the distance to it on both sides; the boundary
    # leaves either side about half of it. (The others, at the outer ends, may have more.)
    points = data.load({"name": "moons", "noise": 0.03, "num_train": 500, "num_test": 500}).test
    apart = np.linalg.norm(points.images[:, None] - points.images[None], axis=-1)
    apart[points.labels[:, None] == points.labels[None]] = np.inf
    half = apart.min(axis=1) / 2
    share = (found["margin"] / half)[half < 1.2 * HALF_GAP]
    assert 0.8 <= np.median(share) <= 1.4 and np.quantile(share, 0.05) >= 0.6
    # What training believed its margins to be: between 0.9 and 1.3 times half the gap.
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert 0.9 <= lines[-1]["margins"]["quantiles"]["0.5"] / HALF_GAP <= 1.3
    worst = {
        record["epsilon"]: record["correct"] / record["n"]
        for record in results.read_results(run / "eval/last")["records"]
        if record["attack"] == "worst-of"
    }
    assert worst[0.04] >= 0.98 and worst[0.06] >= 0.93
