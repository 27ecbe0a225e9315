"""A full disk, and a place that cannot be written: one line, exit code 2, and what was there stays whole."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from jax_advtrain.evaluation import results
from jax_advtrain.training import checkpoints, disk


@pytest.fixture
def mount(tmp_path):
    """Mounts a small file system of its own in memory: mount(options) -> folder."""
    mounted = []

    def run(options: str) -> Path:
        folder = tmp_path / f"mounted{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"cannot mount a small file system here: {error}")
        mounted.append(folder)
        return folder

    yield run
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Fills a disk up to so many bytes."""
    free = shutil.disk_usage(folder).free
    (folder / "filling").write_bytes(b"\0" * max(0, free - leave))
    return folder / "filling"


def test_a_full_disk_before_the_first_byte(refused, unchanged, tiny_config, mount):
    folder = mount("size=1m")
    fill(folder, leave=0)
    before = unchanged(folder)
    refused([f"--config={tiny_config}", f"--workdir={folder}/run"], "No space left on device", str(folder))
    assert unchanged(folder) == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax' threads, cut off in writing
def test_a_disk_that_fills_up_while_training(
    command, refused, unchanged, tiny_config, finished_run, mount, monkeypatch
):
    folder = mount("size=4m")
    run = Path(shutil.copytree(finished_run, folder / "run"))
    before = unchanged(run)
    asked = [f"--config={tiny_config}", f"--workdir={run}", "--config.epochs=3"]

    # Found before the checkpoint is begun: nothing half-written is there.
    filling = fill(folder, leave=100_000)
    line = refused(asked, "No space left on device (a checkpoint needs", str(run), "what was whole there is intact")
    assert "Make room" in line
    assert not list((run / "checkpoints").glob("*/*tmp*"))
    _only_added_to(before, unchanged(run), run)

    # Not found before, as when another program takes the room meanwhile: Orbax' own threads fail.
    filling.unlink()
    fill(folder, leave=30_000)
    monkeypatch.setattr(disk, "check_room", lambda folder, state: None)
    answer = command(*asked)
    assert answer.code == 2, answer
    assert answer.err.splitlines()[-1].startswith("error: No space left on device"), answer.err
    _only_added_to(before, unchanged(run), run)
    assert {path.name for path in (run / "checkpoints/last").iterdir() if path.name.isdigit()} == {"40", "80"}
    monkeypatch.undo()

    # With room again the same command goes on to the end, as if nothing had been.
    filling.unlink()
    answer = command(*asked)
    assert answer.code == 0, answer
    assert [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert results.read_results(run / "eval/last")["model"]["step"] == 120


def _only_added_to(before: dict[str, str], after: dict[str, str], run: Path) -> None:
    """Nothing of before is lost or changed but the logs, which grow, and config.json, which holds the new epochs."""
    changed = {name for name in before if after.get(name) != before[name]}
    assert {name for name in changed if not name.startswith("events/")} <= {"config.json", "metrics.jsonl", ".lock"}
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[1])["epoch"] == 2


def test_evaluating_onto_a_full_disk(refused, unchanged, finished_run, mount):
    folder = mount("size=2m")
    run = Path(shutil.copytree(finished_run, folder / "run"))
    fill(folder, leave=4096)
    before = unchanged(run)
    asked = ["--mode=evaluate", f"--workdir={run}", "--config.eval.name=new", "--config.eval.attacks="]
    refused([*asked, "--config.eval.num_samples=9"], "No space left on device")
    after = unchanged(run)
    assert {name: after[name] for name in before} == before
    assert not (run / "eval/new/results.json").exists()


def test_a_place_that_cannot_be_written(refused, unchanged, tiny_config, tmp_path, mount):
    (tmp_path / "file").write_text("not a folder")
    refused([f"--config={tiny_config}", f"--workdir={tmp_path}/file/run"], "Not a directory", f"{tmp_path}/file/run")
    refused([f"--config={tiny_config}", f"--workdir={tmp_path}/file"], f"{tmp_path}/file")
    assert (tmp_path / "file").read_text() == "not a folder"
    refused([f"--config={tiny_config}", "--workdir=/proc/run"], "/proc/run")
    folder = mount("size=1m,ro")
    refused([f"--config={tiny_config}", f"--workdir={folder}/run"], "Read-only file system", f"{folder}/run")
    refused(
        [f"--config={tiny_config}", f"--workdir={tmp_path}/run", f"--config.data.data_dir={folder}"],
        f"cannot prepare digits in {folder}/digits",
        "Read-only file system",
    )
    assert not (tmp_path / "run").exists()


def test_a_finished_run_on_a_read_only_disk_can_be_evaluated_no_more_but_says_so(
    refused, unchanged, tiny_config, finished_run, mount
):
    folder = mount("size=2m")
    run = Path(shutil.copytree(finished_run, folder / "run"))
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    before = unchanged(run)
    refused(
        ["--mode=evaluate", f"--workdir={run}", "--config.eval.name=x", "--config.eval.attacks="],
        "Read-only file system",
    )
    refused([f"--config={tiny_config}", f"--workdir={run}", "--config.epochs=3"], "Read-only file system")
    assert unchanged(run) == before


def test_what_the_system_refused_is_found_however_it_is_wrapped(tmp_path):
    def raised(error: Exception) -> Exception:
        with pytest.raises(Exception) as caught, disk.plain_errors(tmp_path):
            raise error
        return caught.value

    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = OSError(28, "No space left on device")
    for error in (wrapped, ValueError("RESOURCE_EXHAUSTED: Error writing ... [os_error_code='28']")):
        found = raised(error)
        assert isinstance(found, OSError) and found.errno == 28
    denied = raised(ValueError("PERMISSION_DENIED [os_error_code='13']"))
    assert isinstance(denied, OSError) and denied.errno == 13
    bug = ValueError("a bug")
    assert raised(bug) is bug
    assert checkpoints.disk is disk
