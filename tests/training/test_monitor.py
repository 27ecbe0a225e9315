"""What the monitor counts, and what follows from it: the end of an epoch, and of training."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from tiny_run import tiny_config, train
from tiny_training import host_batch, tiny

from jax_advtrain import defenses, devices
from jax_advtrain.data import Dataset
from jax_advtrain.defenses import HeldOut, Standard
from jax_advtrain.evaluation import suite
from jax_advtrain.training import experiment as experiments
from jax_advtrain.training import loop, workdir
from jax_advtrain.training.checkpoints import LAST
from jax_advtrain.training.display import Display
from jax_advtrain.training.monitor import is_best, merit, monitor, stops_early, summary
from jax_advtrain.training.state import epoch_ended


def test_counts_of_each_class():
    """One pixel decides: below 1/2 class 0, above it class 1; an attack of radius 0.2 moves it by 0.2."""
    pixels = np.array([0.1, 0.4, 0.45, 0.6, 0.9, 0.9, 0.2, 0.8])
    labels = np.array([0, 0, 0, 1, 1, 0, 1, 1])
    data = Dataset(
        images=np.round(255 * pixels).astype(np.uint8).reshape(-1, 1, 1, 1),
        labels=labels.astype(np.int32),
        ids=np.arange(8, dtype=np.int64),
        name="one pixel",
        class_names=("low", "high", "none"),
        split="validation",
    )
    logits_fn = jax.tree_util.Partial(
        lambda images: jnp.stack([0.5 - images[:, 0, 0, 0], images[:, 0, 0, 0] - 0.5, jnp.full(len(images), -9.0)], -1)
    )
    found = monitor(
        logits_fn,
        data,
        6,
        suite.parse_all(["pgd:num_steps=4"]),
        devices.make_mesh(jax.devices()[:1]),
        norm="linf",
        epsilon=0.2,
        seed=0,
        batch_size=4,
        epoch=3,
    )
    assert found.epoch == 3
    np.testing.assert_array_equal(found.clean_count, [4, 4, 0])
    np.testing.assert_array_equal(found.clean_right, [3, 3, 0])
    np.testing.assert_array_equal(found.robust_count, [4, 2, 0])
    np.testing.assert_array_equal(found.robust_right, [1, 1, 0])
    np.testing.assert_array_equal(found.robust_accuracy, [0.25, 0.5, np.nan])
    line = summary(found)
    assert line["clean_accuracy"] == 0.75 and line["robust_accuracy"] == pytest.approx(1 / 3)
    assert json.loads(json.dumps(line)) == line
    assert line["per_class"]["robust"] == {"n": [4, 2, 0], "correct": [1, 1, 0]}


def lines(*robust):
    """An epoch each; None where the monitor did not run."""
    found = []
    for number, value in enumerate(robust):
        line = {"epoch": number + 1}
        if value is not None:
            line["validation"] = {"robust_accuracy": value, "clean_accuracy": 0.5}
        found.append(line)
    return found


@pytest.mark.parametrize(
    ("robust", "patience", "stops"),
    [
        ((0.1, 0.2, 0.3), 1, False),
        ((0.1, 0.3, 0.2), 1, True),
        ((0.1, 0.3, 0.2), 2, False),
        ((0.1, 0.3, 0.2, 0.3), 2, True),  # as good is not better
        ((0.3, 0.1, 0.1, 0.1), None, False),
        ((None, 0.3, None, 0.2, None, 0.2), 4, True),
        ((None, 0.3, None, 0.2, None, 0.2), 5, False),
        ((None, None), 1, False),
        ((), 1, False),
    ],
)
def test_training_stops_where_no_epoch_was_the_best_for_so_long(robust, patience, stops):
    assert stops_early(lines(*robust), patience) == stops


def test_the_best_by_the_mean_by_the_worst_class_and_by_their_sum():
    """Mean 0.6 and worst 0.2; mean 0.5 and worst 0.4. A class without a sample is no worst class."""
    found = []
    for right in ([90, 10, 0], [60, 20, 0]):
        counts = {"n": [100, 50, 0], "correct": right}
        found.append({"robust_accuracy": sum(right) / 150, "clean_accuracy": 0.9, "per_class": {"robust": counts}})
    one, other = ({"epoch": number, "validation": line} for number, line in enumerate(found))
    assert merit(one) == merit(one, "mean") == (pytest.approx(2 / 3), 0.9)
    assert merit(one, "worst") == (0.2, 0.9) and merit(other, "worst") == (0.4, 0.9)
    assert merit(one, "sum") == (pytest.approx(2 / 3 + 0.2), 0.9)
    assert merit(one) > merit(other) and merit(one, "worst") < merit(other, "worst")
    assert merit({"epoch": 3}, "worst") == (-1, -1)
    assert stops_early([one, other], 1, "mean") and not stops_early([one, other], 1, "worst")


def test_epochs_that_were_monitored_otherwise_do_not_compare():
    """A run went on with a larger radius: its first epoch there is the best one, however much lower."""
    found = lines(0.8, 0.9, 0.1, 0.2, 0.15)
    for number, line in enumerate(found):
        line["validation"] |= {"norm": "linf", "epsilon": 0.01 if number < 2 else 0.3}
    assert [is_best(line, found[:number]) for number, line in enumerate(found)] == [True, True, True, True, False]
    assert stops_early(found, 1) and not stops_early(found, 2)
    # What older logs do not tell is taken to be the same.
    found[3]["validation"] |= {"attacks": ["pgd"]}
    assert not is_best(found[4], found[:4])
    found[4]["validation"] |= {"attacks": ["fgsm"]}
    assert is_best(found[4], found[3:4])


@dataclasses.dataclass(frozen=True)
class Counting(Standard):
    """Standard training whose method state remembers what it was told, and enters the loss."""

    def init_method_state(self, num_classes):
        return {"seen": jnp.zeros((num_classes,)), "epochs": jnp.zeros((), jnp.int32)}

    def loss(self, model, batch_stats, batch, crafted, rows, method_state):
        found = super().loss(model, batch_stats, batch, crafted, rows, method_state)
        return found._replace(weights=1 + method_state["seen"][batch.labels])

    def epoch_end(self, method_state, held_out: HeldOut):
        assert isinstance(method_state["seen"], np.ndarray)
        assert held_out.epoch == method_state["epochs"] + 1
        error = 1 - np.nan_to_num(held_out.robust_accuracy)
        return {"seen": 0.5 * method_state["seen"] + 0.5 * error, "epochs": method_state["epochs"] + 1}


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setitem(defenses.DEFENSES, "counting", Counting)


def config(digits_dir, name="standard", **fields):
    made = tiny_config(digits_dir)
    with made.unlocked():
        made.defense = {"name": name}
    made.monitor.epsilon = 0.1
    made.update(fields)
    return made


@pytest.mark.slow
def test_the_end_of_an_epoch_changes_the_method_state_and_resume_is_bit_exact(counting, digits_dir, tmp_path):
    _, state = train(config(digits_dir, "counting", epochs=2), tmp_path / "whole", 1)
    assert int(state.method_state["epochs"]) == 2 and state.method_state["seen"].dtype == jnp.float32
    logged = workdir.read_metrics(tmp_path / "whole")
    seen = np.zeros(10)
    for line in logged:
        counts = line["validation"]["per_class"]["robust"]
        seen = 0.5 * seen + 0.5 * (1 - np.array(counts["correct"]) / np.maximum(counts["n"], 1))
    np.testing.assert_allclose(state.method_state["seen"], seen, rtol=1e-5)
    assert 0 < seen.min() < seen.max()

    train(config(digits_dir, "counting", epochs=1), tmp_path / "parts", 1)
    _, resumed = train(config(digits_dir, "counting", epochs=2), tmp_path / "parts", 1)
    jax.tree.map(np.testing.assert_array_equal, state, resumed)


def test_a_hook_gives_what_it_got_or_says_so(monkeypatch):
    state, _ = tiny(Counting()).start(host_batch(8, 8))
    mesh, counts = devices.make_mesh(jax.devices()[:1]), np.array([4, 4, 0])
    held_out = HeldOut(1, counts, counts, counts, np.array([1, 2, 0]))
    after = epoch_ended(Counting(), mesh, state, held_out)
    np.testing.assert_allclose(after.method_state["seen"], [0.375, 0.25, 0.5])
    assert after.method_state["seen"].dtype == jnp.float32 and after.method_state["epochs"].dtype == jnp.int32
    assert epoch_ended(Standard(), mesh, state, held_out) is state
    monkeypatch.setattr(Counting, "epoch_end", lambda self, state, held_out: {"seen": np.zeros(2), "epochs": 1})
    with pytest.raises(ValueError, match="epoch_end gave a method_state of shapes"):
        epoch_ended(Counting(), mesh, state, held_out)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [("counting", {}, "'counting' needs validation data"), ("standard", {"patience": 2}, "patience needs validation")],
)
def test_what_needs_validation_data_says_so(counting, digits_dir, name, fields, said):
    made = config(digits_dir, name, **fields)
    made.data.validation_size = 0
    with pytest.raises(ValueError, match=said):
        experiments.build(made, devices.make_mesh(jax.devices()[:1]))


@pytest.mark.slow
def test_a_run_that_patience_ended_is_complete(digits_dir, tmp_path, monkeypatch):
    """The second epoch is no better; five more were asked for. Asked again, nothing is trained."""
    monitored, told = loop._monitored, []

    def falling(experiment, config, state):
        line, held_out = monitored(experiment, config, state)
        told.append(held_out.epoch)
        return {**line, "robust_accuracy": 1 / held_out.epoch}, held_out

    monkeypatch.setattr(loop, "_monitored", falling)
    made = config(digits_dir, epochs=7, patience=1)
    said = Display(Console(file=io.StringIO(), soft_wrap=True))
    experiment, state = train(made, tmp_path, 1, said)
    assert told == [1, 2] and int(state.step) == 2 * experiment.steps_per_epoch
    assert "training ends here (patience)" in said.console.file.getvalue()
    assert workdir.newest_step(tmp_path, LAST) == int(state.step)
    _, again = train(made, tmp_path, 1)
    assert told == [1, 2]
    jax.tree.map(np.testing.assert_array_equal, state, again)
    # More patience, and it goes on.
    _, more = train(config(digits_dir, epochs=4, patience=2), tmp_path, 1)
    assert told == [1, 2, 3] and int(more.step) == 3 * experiment.steps_per_epoch
