"""A model that says one class to everything is told apart from a robust one."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jax_advtrain.config import base
from jax_advtrain.data import Dataset
from jax_advtrain.devices import make_mesh
from jax_advtrain.evaluation import results
from jax_advtrain.evaluation.evaluate import evaluate
from jax_advtrain.evaluation.one_class import one_class_warnings, only_class
from jax_advtrain.evaluation.results import ClassCount
from jax_advtrain.studies import opening, runs
from jax_advtrain.training import experiment as experiments
from jax_advtrain.training.display import Display


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([(1, 0), (9, 9)], 1),
        ([(9, 9), (0, 0), (4, 0)], 0),
        ([(1, 1), (9, 9)], None),
        ([(1, 0), (9, 8)], None),  # some of class 1 are called otherwise
        ([(1, 0), (9, 0)], None),
        ([(0, 0), (9, 9)], None),  # nothing to tell it apart from
        ([], None),
    ],
)
def test_only_class(counts, expected):
    assert only_class([ClassCount(*count) for count in counts]) == expected


def test_an_evaluation_says_so(tmp_path):
    """Two logits that no pixel changes: 3 of 4 samples are class 1, right under every attack."""
    data = Dataset(
        images=np.full((4, 2, 2, 1), 100, np.uint8),
        labels=np.array([1, 0, 1, 1], np.int32),
        ids=np.arange(4, dtype=np.int64),
        name="gray",
        class_names=("ill", "well"),
        split="test",
    )

    def scores(bias, images):
        return jnp.mean(images, axis=(1, 2, 3))[:, None] * 0.0 + bias

    found = evaluate(jax.tree_util.Partial(scores, jnp.array([0.0, 1.0])), data, ["pgd"], {"linf": [0.5]})
    assert [record.correct for record in found.records] == [3, 3, 3]
    results.write_results(tmp_path, model={}, data=data.fingerprint(), records=found.records)
    (line,) = results.read_results(tmp_path)["warnings"]
    assert "always said class 1" in line and "75.0%" in line and "\n" not in line
    other = evaluate(jax.tree_util.Partial(scores, jnp.array([0.0, -1.0])), data, ["pgd"], {"linf": [0.5]})
    (line,) = one_class_warnings(other.records)
    assert "always said class 0" in line and "25.0%" in line


def bright(path, *class_names):
    """A config of a file of dim and bright images, nine in ten bright."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [40, 360])
    images = np.clip(np.where(labels, 200, 60)[:, None, None] + rng.integers(-20, 20, (400, 4, 4)), 0, 255)
    arrays = {f"{part}_images": images.astype(np.uint8) for part in ("train", "val", "test")}
    arrays |= {f"{part}_labels": labels for part in ("train", "val", "test")}
    np.savez(path, **arrays, class_names=class_names)
    config = base("pgd_at", "mlp")
    config.data.name, config.data.path = "bright", str(path)
    config.model.hidden, config.batch_size, config.epochs = (8,), 40, 3
    return config


@pytest.mark.slow
def test_a_training_that_ends_there_says_so_in_its_lines_and_at_its_end(tmp_path):
    """An attack may make any image any other: the constant is the optimum."""
    config = bright(tmp_path / "bright.npz", "dim", "bright")
    config.defense.epsilon, config.defense.num_steps = 1.0, 3
    config.eval.attacks, config.eval.epsilons_linf, config.eval.epsilons_l2 = "fgsm", (0.5,), ()
    config.eval.after_training, config.report.images = "last", False
    display = Display(Console(file=io.StringIO(), soft_wrap=True))
    runs.train_and_evaluate(config, tmp_path / "run", display)
    told = display.console.file.getvalue().splitlines()
    assert "clean 0.900  robust 0.900  (class 1 alone is right)" in next(
        line for line in told if line.startswith("epoch 3")
    )
    assert any("always said class 1" in line and "90.0%" in line for line in told)
    assert any("0.0% (dim)" in line for line in told)


def test_a_split_without_a_class_is_told(tmp_path):
    experiment = experiments.build(bright(tmp_path / "bright.npz", "dim", "bright", "never"), make_mesh())
    lines = [f"{split} has no sample of 1 of the 3 classes: never" for split in ("train", "validation", "test")]
    assert opening.notices(experiment) == lines
    assert opening.notices(experiments.build(bright(tmp_path / "bright.npz", "dim", "bright"), make_mesh())) == []
    without = bright(tmp_path / "bright.npz", "dim", "bright", "never")
    without.data.exclude_classes, without.data.exclude_how = "never", "keep"  # on purpose
    assert opening.notices(experiments.build(without, make_mesh())) == []
