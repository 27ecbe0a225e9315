"""Streamed training images: what a batch holds, whatever the workers; bad records; workers that end."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_advtrain import data, devices
from jax_advtrain.data import slots, streaming
from jax_advtrain.data.decode import BadRecord
from jax_advtrain.data.slots import Visits
from jax_advtrain.errors import ConfigError
from jax_advtrain.training import feed

NUM_IMAGES = 10


@pytest.fixture
def folder(tmp_path, photographs) -> Path:
    """An image folder of two classes; sizes differ."""
    for number in range(NUM_IMAGES):
        cut = photographs[number % 2][10 * number : 10 * number + 60 + number, 20 * number : 20 * number + 90]
        path = tmp_path / "images" / ("ant" if number % 2 else "bee") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(cut).save(path, quality=95)
    return tmp_path / "images"


def load(folder: Path, **fields) -> data.Splits:
    fixed = {"name": "mine", "source": "image_folder", "data_dir": str(folder), "image_size": 32, "channels": 3}
    size = {} if "test_ids" in fields else {"test_size": 2}
    return data.load({**fixed, **size, "validation_size": 0, **fields})


def batches(train: data.Dataset, rows=slice(None), first_step=0, num_steps=6, batch_size=4, workers=0):
    """Images of the steps, and which of them there are."""
    visits = Visits(slots.make_slots(len(train), 2, 0), batch_size, 0)
    images = train.images if workers is None else _with_workers(train.images, workers)
    read = streaming.read_batches(images, visits, np.arange(batch_size)[rows], first_step, num_steps)
    found = list(read)
    assert len(found) == num_steps - first_step
    return np.stack([one.images for one in found])


def _with_workers(images: streaming.EncodedImages, workers: int) -> streaming.EncodedImages:
    return dataclasses.replace(images, num_workers=workers)


def test_without_a_crop_they_are_the_images_that_memory_would_hold(folder):
    held, streamed = load(folder, streaming=False).train, load(folder, streaming=True).train
    assert streamed.is_streamed and not held.is_streamed
    assert streamed.fingerprint() == held.fingerprint() and streamed.image_shape == held.image_shape
    np.testing.assert_array_equal(streamed.labels, held.labels)
    visits = Visits(slots.make_slots(len(held), 2, 0), 4, 0)
    for step, images in enumerate(batches(streamed)):
        positions = visits(step).positions
        np.testing.assert_array_equal(images[positions >= 0], held.images[positions[positions >= 0]])
        assert not images[positions < 0].any()


def test_an_epoch_visits_every_sample_once(folder):
    visits = Visits(slots.make_slots(8, 2, 0), 4, 0)
    for epoch in range(3):
        seen = [visits(epoch * visits.steps_per_epoch + step) for step in range(visits.steps_per_epoch)]
        assert {one.epoch for one in seen} == {epoch}
        positions = np.concatenate([one.positions for one in seen])
        assert sorted(positions[positions >= 0]) == list(range(8))
    one, again = visits(5), visits(1)
    assert visits(5).positions.tolist() == one.positions.tolist() != again.positions.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_neither_workers_nor_where_it_begins_nor_which_rows_change_a_pixel(folder, workers):
    train = load(folder, augment=("random_resized_crop",)).train
    assert train.is_streamed
    wanted = batches(train)
    np.testing.assert_array_equal(batches(train, workers=workers), wanted)
    np.testing.assert_array_equal(batches(train, workers=workers, first_step=3), wanted[3:])
    np.testing.assert_array_equal(batches(train, rows=slice(1, 3)), wanted[:, 1:3])
    assert (wanted[0] != wanted[2]).any()  # another crop in another epoch


def test_it_streams_where_the_images_do_not_fit(folder):
    assert not load(folder).train.is_streamed
    small = load(folder, max_ram_gb=1e-5)  # 10 kB: two test images of 3 kB fit, eight more do not
    assert small.train.is_streamed and not small.test.is_streamed
    with pytest.raises(ValueError, match=r"validation and test images take 6.14e-06 GB, more than .*data.num_test"):
        load(folder, max_ram_gb=1e-6)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"augment": ("random_resized_crop",), "streaming": False}, "data.streaming cannot be False"),
        ({"augment": ("random_resized_crop",), "image_size": None}, "needs data.image_size"),
        ({"num_workers": -1}, "data.num_workers must be a whole number from 0"),
        ({"streaming": "yes"}, "data.streaming must be True, False"),
        ({"resize": 16}, "at least data.image_size"),
        ({"resize": 40, "image_size": None}, "data.resize must be a whole number"),
        ({"resize": 40.5}, "data.resize must be a whole number"),
    ],
)
def test_bad_fields(folder, fields, expected):
    for path in folder.rglob("*.jpg"):  # of one size, so that image_size may be left out
        Image.new("RGB", (40, 40)).save(path)
    with pytest.raises(ValueError) as caught:
        load(folder, **fields)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("fields", [{"augment": ("random_resized_crop",), "image_size": 8}, {"streaming": True}])
def test_sets_that_are_not_stored_image_by_image_cannot_be_streamed(fields, tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 8, 8, 1), np.uint8), labels=np.arange(4) % 2)
    kept = {name: value for name, value in fields.items() if name != "image_size"}
    with pytest.raises(ValueError, match=r"image_size|stored one by one"):
        data.load({"name": "mine", "path": str(tmp_path / "a.npz"), "test_size": 2, "validation_size": 0, **kept})


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_bad_record_is_named_and_fatal_or_left_out(folder, workers):
    bad = folder / "ant" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    train = load(folder, streaming=True, test_ids=[0, 9]).train
    with pytest.raises(BadRecord, match=r"ant/3.jpg \(id 1\) cannot be decoded"):
        batches(train, workers=workers)
    skipping = load(folder, streaming=True, on_bad_record="skip", test_ids=[0, 9]).train
    visits = Visits(slots.make_slots(len(skipping), 2, 0), 4, 0)
    images = _with_workers(skipping.images, workers)
    problems = {}
    for step, one in enumerate(streaming.read_batches(images, visits, np.arange(4), 0, visits.steps_per_epoch)):
        problems |= {int(skipping.ids[visits(step).positions[row]]): text for row, text in one.problems.items()}
        assert all(not one.images[row].any() for row in one.problems)
    assert list(problems) == [1] and "ant/3.jpg" in problems[1]


PROGRAM = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import numpy as np
import test_streaming as own
from jax_advtrain.data import slots, streaming

if __name__ == "__main__":
    train = own.load(Path({folder!r}), augment=("random_resized_crop",), num_workers=2).train
    visits = slots.Visits(slots.make_slots(len(train), 2, 0), 4, 0)
    read = streaming.read_batches(train.images, visits, np.arange(4), 0, 100_000)
    for _ in range(3):
        next(read)
    print("reading", flush=True)
    if sys.argv[1] == "wait":
        time.sleep(600)
"""


def _processes(marker: str) -> list[int]:
    """Numbers of the living processes whose environment has the marker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            alive = "\nState:\tZ" not in (path.parent / "status").read_text()
            if alive and marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to see other processes")
@pytest.mark.parametrize(
    "how", [*(pytest.param(one, marks=pytest.mark.slow) for one in ("its end", signal.SIGTERM)), signal.SIGKILL]
)
def test_workers_end_with_the_program(folder, tmp_path, how):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(tests=str(Path(__file__).parent), folder=str(folder)))
    marker = f"ADVTRAIN_WORKERS={tmp_path}"
    environment = {**os.environ, "ADVTRAIN_WORKERS": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(program), "end" if how == "its end" else "wait"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None and running.stdout.readline() == "reading\n"
        if how != "its end":
            assert len(_processes(marker)) >= 3  # it, and two workers
            running.send_signal(how)
        running.wait(60)
    deadline = time.monotonic() + 30
    while _processes(marker) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _processes(marker)


def test_too_little_shared_memory_is_said_before_anything_starts(folder, monkeypatch):
    train = load(folder, streaming=True, num_workers=2).train
    monkeypatch.setattr(streaming, "_BATCHES_HELD", 10**9)
    with pytest.raises(ConfigError, match=r"2 workers hold up to .* in /dev/shm.*data.num_workers.*--shm-size"):
        batches(train, workers=2)
    assert len(batches(train, workers=0)) == 6


@pytest.mark.slow
def test_workers_that_are_gone_are_said_in_one_line(folder):
    train = load(folder, streaming=True).train
    train = dataclasses.replace(train, images=_with_workers(train.images, 1))
    visits = Visits(slots.make_slots(len(train), 2, 0), 4, 0)
    made = feed.batches(devices.make_mesh(), train, visits, 0, 100_000)
    next(made)
    for worker in multiprocessing.active_children():
        if "grain" in worker.name:
            worker.kill()
    with pytest.raises(feed.WorkersGone, match="a process that reads images is gone"):
        for _ in made:
            pass
