"""The examples in docstrings run, those of evaluation too, on a small set and a linear model.

Those of the attacks and of the networks: tests/attacks/test_attack_docstrings.py and tests/models/test_networks.py.
"""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_advtrain
from jax_advtrain import data

# Rooms whose examples these or the two other files run; slow: it compiles eight attacks.
ELSEWHERE = ("jax_advtrain.attacks.", "jax_advtrain.models.")
SLOW = {"jax_advtrain.evaluation.check_model"}


def apply(weights, images):
    return images @ weights


@pytest.fixture
def names() -> dict:
    """What the examples speak of: points of two classes in the plane, and a linear model."""
    points = data.load({"name": "moons", "num_train": 8, "num_test": 32, "validation_size": 2}).test
    weights = jnp.array([[0.0, 0.0], [-4.0, 4.0]])
    return {
        "apply": apply,
        "params": weights,
        "weights": weights,
        "logits_fn": jax.tree_util.Partial(apply, weights),
        "data": points,
        "images": np.asarray(points.images, np.float32),
        "labels": points.labels,
        "jax": jax,
        "jnp": jnp,
        "np": np,
        "attacks": importlib.import_module("jax_advtrain.attacks"),
        "results": importlib.import_module("jax_advtrain.evaluation.results"),
    }


class Shown(doctest.OutputChecker):
    """An example that says no output may give any."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def with_examples() -> dict[str, list[doctest.DocTest]]:
    """{module: its docstrings with examples}, of the rooms that are not tested elsewhere."""
    found = {}
    for module in pkgutil.walk_packages(jax_advtrain.__path__, "jax_advtrain."):
        if not module.name.startswith((*ELSEWHERE, "jax_advtrain.configs")):
            tests = doctest.DocTestFinder().find(importlib.import_module(module.name))
            if tests := [test for test in tests if test.examples]:
                found[module.name] = tests
    return found


EXAMPLES = with_examples()


def test_the_public_functions_of_evaluation_have_examples():
    rooms = {name.rsplit(".", 1)[1] for name in EXAMPLES}
    assert {"evaluate", "attack_dataset", "check_model", "margin_survey", "diagnosis"} <= rooms


@pytest.mark.parametrize(
    "module", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in sorted(EXAMPLES)]
)
def test_examples_run(module, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for test in EXAMPLES[module]:
        test.globs.update({name: value for name, value in names.items() if name not in test.globs})
        assert doctest.DocTestRunner(Shown()).run(test).failed == 0
