"""Checkpoints: what is restored, what is refused, and what every kind of damage does."""

import gc
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import tiny_config, train
from tiny_training import assert_same

from jax_advtrain.training import loop
from jax_advtrain.training.checkpoints import BEST, LAST, Checkpoints, Saved

# Orbax leaves reads of broken arrays unawaited.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def collected():
    """What is left of such reads goes now, not in the midst of another test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def trained(digits_dir, tmp_path_factory):
    """(folder, experiment, final state) of 3 epochs on one device."""
    folder = tmp_path_factory.mktemp("trained")
    experiment, state = train(tiny_config(digits_dir, epochs=3), folder, 1)
    return folder, experiment, jax.tree.map(np.asarray, state)


def restore(folder, experiment, which=LAST, fingerprint=None):
    """(state, step, what was said)."""
    said: list[str] = []
    saved = Saved({}, fingerprint or experiment.splits.train.fingerprint(), 0)
    opened = Checkpoints(folder, keep=2)
    try:
        state, step = loop.restore_or_start(experiment, saved, opened, which, _Saying(said))
        return jax.tree.map(np.asarray, state), step, said
    finally:
        opened.close()


class _Saying:
    """A display that keeps what it is told."""

    def __init__(self, said):
        self.say = said.append


def test_what_is_restored_is_what_was_saved(trained):
    folder, experiment, state = trained
    found, step, _ = restore(folder, experiment)
    assert step == experiment.total_steps == 30
    assert_same(found, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32), np.dtype(np.int32)}


def test_the_last_two_and_one_best_are_kept(trained):
    folder, _, _ = trained
    kept = {which: [p.name for p in sorted((folder / "checkpoints" / which).iterdir())] for which in (LAST, BEST)}
    assert kept[LAST] == ["20", "30"] and len(kept[BEST]) == 1


def test_training_leaves_the_template_as_it_was(trained):
    """The steps donate the state they are given; a second run with the same experiment starts from the template."""
    _, experiment, state = trained
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(experiment.template))
    assert int(experiment.template.step) == 0
    assert not np.array_equal(experiment.template.params["dense0"]["kernel"], state.params["dense0"]["kernel"])


def test_a_checkpoint_of_other_data_is_refused_and_left_where_it_is(trained):
    folder, experiment, _ = trained
    other = experiment.splits.train.fingerprint() | {"labels_sha256": "0" * 64}
    with pytest.raises(ValueError, match=r"trained on other data \(labels_sha256") as caught:
        restore(folder, experiment, fingerprint=other)
    assert "\n" not in str(caught.value)
    assert not (folder / "checkpoints" / "broken").exists()


def files_of(folder: Path) -> list[str]:
    newest = folder / "checkpoints" / LAST / "30"
    return sorted(str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file())


@pytest.mark.parametrize("left", [0.0, 0.5])
def test_whichever_file_is_truncated_what_comes_back_is_whole(trained, tmp_path, left):
    """Either the damage does not matter and the state is that of step 30, or the checkpoint before is taken, and the
    broken one is kept aside and named; never wrong numbers, never an end of the run."""
    folder, experiment, state = trained
    earlier, fell_back = None, 0
    files = files_of(folder)
    for number, name in enumerate(files):
        copy = Path(shutil.copytree(folder, tmp_path / str(number)))
        broken = copy / "checkpoints" / LAST / "30" / name
        os.truncate(broken, int(left * broken.stat().st_size))
        found, step, said = restore(copy, experiment)
        if step == 30:
            assert_same(found, state)
            assert not (copy / "checkpoints" / "broken").exists()
        else:
            assert step == 20, (name, said)
            assert (copy / "checkpoints" / "broken" / "last-30" / name).exists()
            assert said[0].startswith(f"checkpoint {broken.parents[len(Path(name).parts) - 1]} cannot be read")
            earlier = found if earlier is None else earlier
            assert_same(found, earlier)
            fell_back += 1
    print(f"{fell_back} of {len(files)} files matter when cut to {left:.0%}")
    assert fell_back >= 2


def test_foreign_checkpoints_are_kept_aside(trained, tmp_path):
    folder, experiment, _ = trained
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    last = copy / "checkpoints" / LAST
    (last / "40").mkdir()  # an empty folder
    shutil.copytree(last / "30", last / "50")
    arrays = max((last / "50").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    shutil.copyfile(Path(__file__), arrays)  # a file of something else
    _, step, said = restore(copy, experiment)
    assert step == 30
    assert {path.name for path in (copy / "checkpoints" / "broken").iterdir()} == {"last-40", "last-50"}
    assert len([line for line in said if "cannot be read" in line]) == 2
