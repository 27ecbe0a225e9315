"""The same training on 1 device, on 8, and on 2 processes of 4.

The last two tests start other processes: this file again with 8 forced CPU devices, where all the other tests run; and
two processes that find each other by `jax.distributed`.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tiny_run import tiny_config, train
from tiny_training import assert_near, host_batch, tiny

from jax_advtrain import devices, margins
from jax_advtrain.defenses import IMA
from jax_advtrain.training import experiment as experiments
from jax_advtrain.training import feed, loop, workdir
from jax_advtrain.training.state import shardings
from jax_advtrain.training.step import PADDING, make_step

EIGHT = jax.device_count() == 8
in_the_parent = pytest.mark.skipif(EIGHT, reason="this is the process with 8 devices")
on_eight = pytest.mark.skipif(not EIGHT, reason="runs in the process with 8 devices")
FOLDER, DIGITS = "ADVTRAIN_TEST_FOLDER", "ADVTRAIN_TEST_DIGITS"
# Sums over the batch come in another order: float32 rounding, and a sample on the boundary may fall to the other side.
ATOL, MAY_DIFFER = 1e-5, 0.01


@pytest.fixture(scope="module")
def start(digits_dir, cached_compilation):
    """start(folder, number of devices, *command): a process with so many CPU devices; killed at the end."""
    started = []

    def run(folder: Path, num_devices: int, *command: str) -> subprocess.Popen:
        flags = f"{cached_compilation['XLA_FLAGS']} --xla_force_host_platform_device_count={num_devices}"
        process = subprocess.Popen(
            [sys.executable, *command],
            env=cached_compilation | {"XLA_FLAGS": flags, FOLDER: str(folder), DIGITS: str(digits_dir)},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


THIS_FILE = ("-m", "pytest", __file__, "-q", "-rPs", "-p", "no:cacheprovider")


@pytest.fixture(scope="module")
def processes(start, digits_dir, tmp_path_factory):
    """All processes, started at once: this file on 8 devices, two that train together; and the folder they share."""
    folder = tmp_path_factory.mktemp("spmd")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    script = str(Path(__file__).with_name("tiny_run.py"))
    shared = (script, str(folder / "processes"), str(digits_dir), address, "2")
    return start(folder, 8, *THIS_FILE), [start(folder, 4, *shared, str(number)) for number in range(2)], folder


@pytest.fixture(scope="module")
def folder():
    return Path(os.environ[FOLDER])


@pytest.fixture(scope="module")
def digits_of_parent():
    return Path(os.environ[DIGITS])


def near(ours, theirs) -> float:
    """Asserts float equality of all but few; returns the largest difference of the equal ones."""
    difference = np.abs(np.asarray(ours) - np.asarray(theirs))
    assert np.mean(difference > ATOL) <= MAY_DIFFER, difference.max()
    return float(difference[difference <= ATOL].max(initial=0))


def flat(params) -> np.ndarray:
    return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(params)])


def assert_same_training(one, other, one_lines, other_lines) -> None:
    """Weights, BatchNorm averages, margins and the log of two runs."""
    largest = {name: near(flat(getattr(one, name)), flat(getattr(other, name))) for name in ("params", "sample_state")}
    if one.batch_stats:
        largest["batch_stats"] = near(flat(one.batch_stats), flat(other.batch_stats))
    assert len(one_lines) == len(other_lines)
    for ours, theirs in zip(one_lines, other_lines, strict=True):
        assert (ours["epoch"], ours["step"]) == (theirs["epoch"], theirs["step"])
        largest["loss"] = abs(ours["train"]["loss"] - theirs["train"]["loss"])
        assert largest["loss"] <= ATOL
        assert ours["margins"]["mean"] == pytest.approx(theirs["margins"]["mean"], abs=ATOL)
        assert ours["train"]["clean_accuracy"] == pytest.approx(theirs["train"]["clean_accuracy"], abs=MAY_DIFFER)
        robust = [line["validation"]["robust_accuracy"] for line in (ours, theirs)]
        assert robust[0] == pytest.approx(robust[1], abs=2 / 64)
    print(", ".join(f"{name} {value:.2g}" for name, value in largest.items()))


def run(folder, digits_dir, num_devices, **changes):
    _, state = train(tiny_config(digits_dir, **changes), folder, num_devices)
    return state, workdir.read_metrics(folder)


@pytest.fixture(scope="module")
def two_epochs(folder, digits_of_parent):
    """{devices: (folder, state, lines)} of 2 epochs."""
    found = {}
    for num_devices in (1, 8):
        place = folder / f"devices{num_devices}"
        found[num_devices] = (place, *run(place, digits_of_parent, num_devices))
    _, state, lines = found[1]
    np.savez(folder / "one.npz", params=flat(state.params), margin=np.asarray(state.sample_state["margin"]))
    assert lines[-1]["train"]["clean_accuracy"] > 0.3  # it learns, and margins move both ways
    assert min(lines[-1]["margins"][what] for what in ("expanding", "shrinking", "unchanged")) > 0.02
    return found


@on_eight
def test_eight_devices_train_as_one(two_epochs):
    assert_same_training(two_epochs[1][1], two_epochs[8][1], two_epochs[1][2], two_epochs[8][2])


@on_eight
def test_a_run_goes_on_on_another_number_of_devices(two_epochs, digits_of_parent, folder):
    ended = {}
    for before, after in ((1, 1), (1, 8), (8, 1)):
        place = shutil.copytree(two_epochs[before][0], folder / f"from{before}to{after}")
        ended[before, after] = run(place, digits_of_parent, after, epochs=4)
    state, lines = ended.pop((1, 1))
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    for other_state, other_lines in ended.values():
        assert_same_training(state, other_state, lines, other_lines)


@on_eight
def test_batch_norm_on_eight_devices_is_that_of_one():
    """Also where some shards have samples that enter the attacked forward, and some have none."""
    batch = host_batch(3, 4, num_shards=8)
    made = tiny(IMA(eps_max=0.5, delta=0.1, num_steps=2, compact=False), "batch_norm", num_shards=8, num_slots=8 * 12)
    states = {}
    for num_devices in (1, 8):
        state, step = made.start(batch, num_devices)
        before = np.array(state.sample_state["margin"])
        for _ in range(3):
            state, _ = step(state, batch, jnp.int32(0))
        states[num_devices] = jax.tree.map(np.asarray, state)
    assert_near(states[1], states[8])
    moved = (states[1].sample_state["margin"] - before).reshape(8, 12)
    hit = np.any((moved != 0) & (np.abs(moved - 0.3) > 1e-6), axis=1)
    assert hit.any() and not hit.all()


@on_eight
@pytest.mark.slow
def test_a_training_with_batch_norm_on_eight_devices_is_that_of_one(digits_of_parent, folder):
    (one, one_lines), (eight, eight_lines) = (
        run(folder / f"batch_norm{n}", digits_of_parent, n, model="small_cnn") for n in (1, 8)
    )
    assert jax.tree.leaves(one.batch_stats)
    assert_same_training(one, eight, one_lines, eight_lines)


@pytest.fixture(scope="module")
def experiment(digits_of_parent):
    return experiments.build(tiny_config(digits_of_parent), devices.make_mesh())


def batches(experiment, epoch=0):
    first, per_epoch = epoch * experiment.steps_per_epoch, experiment.steps_per_epoch
    return feed.batches(experiment.mesh, experiment.splits.train, experiment.visits, first, first + per_epoch)


@on_eight
@pytest.mark.parametrize("model", ["mlp", pytest.param("small_cnn", marks=pytest.mark.slow)])
def test_no_collective_touches_the_margins(digits_of_parent, model):
    experiment = experiments.build(tiny_config(digits_of_parent, model=model), devices.make_mesh())
    state = experiment.template
    step = make_step(experiment.recipe, experiment.mesh, state, experiment.example)
    text = step.lower(state, experiment.example, jnp.int32(0)).compile().as_text()
    assert not re.findall(r"all-gather|collective-permute|all-to-all|reduce-scatter|collective-broadcast", text)
    text = re.sub(r"/\*.*?\*/", "", text)  # of long tuples XLA numbers the parts: "/*index=5*/"
    reductions = re.findall(r"= ((?:\([^=]*?\)|\S+)) all-reduce(?:-start)?\(", text)
    dimensions = {
        int(d) for shapes in reductions for dims in re.findall(r"\[([\d,]+)\]", shapes) for d in dims.split(",")
    }
    num_slots = experiment.layout.size
    assert reductions and re.search(rf"f32\[{num_slots // 8}\]", text)  # the margins are in this text, by their shape
    assert not dimensions & {num_slots, num_slots // 8}
    # Whatever is summed over devices has the shape of weights, of BatchNorm's averages, or is one number.
    known = {d for leaf in jax.tree.leaves((state.params, state.batch_stats)) for d in leaf.shape}
    assert dimensions <= known
    print(f"{model}: {len(reductions)} all-reduce")


@on_eight
def test_every_sample_is_visited_exactly_once_an_epoch(experiment):
    per_shard = experiment.layout.shape[1]
    for epoch in (0, 1):
        visited, ids = [], []
        for batch in batches(experiment, epoch):
            shard = np.repeat(np.arange(8), experiment.example.slots.shape[0] // 8)
            valid = np.asarray(batch.slots) != PADDING
            visited.append((shard * per_shard + np.asarray(batch.slots))[valid])
            ids.append(np.asarray(batch.ids)[valid])
            assert batch.images.sharding.num_devices == 8
        real = np.flatnonzero(experiment.layout.reshape(-1) >= 0)
        np.testing.assert_array_equal(np.sort(np.concatenate(visited)), real)
        np.testing.assert_array_equal(np.sort(np.concatenate(ids)), np.sort(experiment.splits.train.ids))
        # A row's image is that of the slot its margin lives in.
        owner = experiment.splits.train.ids[experiment.layout.reshape(-1)[np.concatenate(visited)]]
        np.testing.assert_array_equal(owner, np.concatenate(ids))


@on_eight
def test_every_margin_is_written_by_its_own_sample_alone(experiment):
    """After one epoch of the real step every valid margin has been visited, and padding slots are as at the start."""
    placed = shardings(experiment.mesh, experiment.template)
    state = jax.device_put(experiment.template, placed, may_alias=False)
    step = make_step(experiment.recipe, experiment.mesh, state, experiment.example)
    delta, _ = experiment.recipe.defense.margin_settings
    for batch in batches(experiment):
        before = np.asarray(state.sample_state["margin"])
        state, _ = step(state, batch, jnp.int32(0))
        changed = np.flatnonzero(np.asarray(state.sample_state["margin"]) != before)
        valid = np.asarray(batch.slots) != PADDING
        shard = np.repeat(np.arange(8), experiment.example.slots.shape[0] // 8)
        own = (shard * experiment.layout.shape[1] + np.asarray(batch.slots))[valid]
        assert set(changed) <= set(own.tolist())
    assert float(state.sums["count"]) == len(experiment.splits.train)
    padding = experiment.layout.reshape(-1) < 0
    assert padding.any()
    np.testing.assert_array_equal(np.asarray(state.sample_state["margin"])[padding], np.float32(delta))


@on_eight
def test_margins_are_counted_where_they_lie(experiment):
    ceiling = 0.2
    values = np.random.default_rng(0).uniform(0, ceiling, experiment.layout.size).astype(np.float32)
    valid = (experiment.layout >= 0).reshape(-1)
    alone = margins.count(jnp.asarray(values), jnp.asarray(valid), ceiling)
    sharded = devices.spread(experiment.mesh, values)
    counted = loop._margin_counter(experiment)(sharded, ceiling)
    np.testing.assert_array_equal(counted.histogram, alone.histogram)
    assert counted.count == alone.count == valid.sum()
    assert counted.total == pytest.approx(float(alone.total), rel=1e-6)
    shifted = jax.jit(margins.count)(sharded, devices.spread(experiment.mesh, valid), ceiling)
    np.testing.assert_array_equal(shifted.histogram, alone.histogram)


@on_eight
def test_rows_lie_where_their_shard_lives(experiment):
    rows = np.arange(32, dtype=np.int32)
    spread = devices.spread(experiment.mesh, rows)
    assert spread.sharding.spec == P(devices.AXIS)
    for shard in spread.addressable_shards:
        np.testing.assert_array_equal(shard.data, rows[shard.index])
        assert shard.data.shape == (4,)
    picked = devices.spread(experiment.mesh, 10 * rows, rows[::-1].copy())
    np.testing.assert_array_equal(devices.gathered(picked), 10 * rows[::-1])


@on_eight
def test_devices_that_do_not_divide_the_shards_are_refused(experiment):
    with pytest.raises(ValueError, match=r"data\.num_shards is 12; 8 devices must divide it"):
        make_step(experiment.recipe._replace(num_shards=12), experiment.mesh, experiment.template, experiment.example)


@in_the_parent
def test_eight_devices_in_their_own_process(processes):
    process, _, _ = processes
    output, _ = process.communicate(timeout=500)
    print(output)
    assert process.returncode == 0, output
    assert "9 passed" in output


@in_the_parent
@pytest.mark.slow
def test_batch_norm_in_a_process_of_its_own(start, tmp_path):
    process = start(tmp_path, 8, *THIS_FILE, "-m", "slow")
    output, _ = process.communicate(timeout=500)
    print(output)
    assert process.returncode == 0, output
    assert "2 passed" in output


@in_the_parent
def test_two_processes_of_four_devices_train_as_one(processes):
    eight, two, folder = processes
    for process in two:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    eight.wait(timeout=500)
    one = np.load(folder / "one.npz")
    both = [np.load(folder / "processes" / f"process{number}.npz") for number in range(2)]
    for name in ("margin", "params"):
        np.testing.assert_array_equal(both[0][name], both[1][name])
        print(f"{name} {near(both[0][name], one[name]):.2g}")
    np.testing.assert_array_equal(both[0]["devices"], [8, 4])
    lines, alone = (workdir.read_metrics(folder / name) for name in ("processes", "devices1"))
    assert [line["epoch"] for line in lines] == [line["epoch"] for line in alone] == [1, 2]
    for ours, theirs in zip(lines, alone, strict=True):
        assert ours["train"]["loss"] == pytest.approx(theirs["train"]["loss"], abs=ATOL)
        assert ours["margins"]["mean"] == pytest.approx(theirs["margins"]["mean"], abs=ATOL)
        assert ours["validation"] == theirs["validation"]
