"""--mode=equilibrium: the margins of a real small run beside the distances that FMN finds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jax_advtrain.evaluation.equilibrium import rank_correlation


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_margins_beside_distances(copied_run, command, refused, unchanged):
    asked = ["--mode=equilibrium", f"--workdir={copied_run}", "--config.equilibrium.num_samples=64"]
    before = unchanged(copied_run)
    refused([*asked, "--config.equilibrium.attack=pgd"], "equilibrium.attack", "'pgd'", "fmn, fab")
    refused([*asked, "--config.equilibrium.attack=deepfol"], "did you mean 'deepfool'?")
    refused([*asked, "--config.equilibrium.num_samples=0"], "equilibrium.num_samples is 0")
    assert unchanged(copied_run) == before
    answer = command(*asked)
    assert answer.code == 0, answer
    target = copied_run / "eval/equilibrium-best-fmn"
    assert (target / "equilibrium.png").stat().st_size > 5_000
    found, facts = dict(np.load(target / "equilibrium.npz")), json.loads((target / "equilibrium.json").read_text())
    assert len(found["id"]) == facts["n"] == 64
    used = found["clean_right"] & found["found"]
    assert facts["compared"] == used.sum() and facts["wrong"] == (~found["clean_right"]).sum()
    assert (found["distance"][used] > 0).all() and (found["distance"] <= 1).all()
    assert (found["distance"][~found["clean_right"]] == 0).all()
    assert ((found["margin"] >= 0) & (found["margin"] <= 0.2 + 1e-6)).all() and np.ptp(found["margin"]) > 0
    assert facts["spearman"] == rank_correlation(found["margin"][used], found["distance"][used])
    assert f"rank correlation {facts['spearman']:.3f}" in answer.out

    before = unchanged(copied_run)
    again = command(*asked)
    assert again.code == 0 and "holds this comparison already" in again.out
    assert again.out.splitlines()[-2:] == answer.out.splitlines()[-2:]
    refused([*asked[:2], "--config.equilibrium.num_samples=65"], "holds another comparison: num_samples (64 there")
    assert unchanged(copied_run) == before
