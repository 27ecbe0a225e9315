"""The notebooks run from top to bottom on their small setting, each in a kernel of its own; they lie here without
outputs."""

import os
import time
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra [test]")
nbclient = pytest.importorskip("nbclient", reason="needs the extra [test]")

ROOT = Path(__file__).parents[2]
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_SECONDS = 600  # of a cell, on a busy machine; the small setting is meant to take less than 60 in all


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def test_there_are_four():
    assert [book.stem for book in BOOKS] == ["classwise", "ima_training", "ima_two_moons", "quickstart"]


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_it_is_clean(book):
    """No outputs, valid, a badge, and a first cell of code that installs."""
    found = nbformat.read(book, as_version=4)
    nbformat.validate(found)
    code = [cell for cell in found.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert "colab-badge.svg" in found.cells[0].source
    assert tags(code[0]) == ["install"] and "REPOSITORY" in code[0].source
    assert str(ROOT) not in book.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_it_runs(book, tmp_path, monkeypatch, compiled_programs, request):
    monkeypatch.setenv("ADVTRAIN_NOTEBOOK_FAST", "1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compiled_programs))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures are drawn as a reader sees them
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    if book.stem == "ima_training":
        try:  # without MNIST the notebook takes the digits
            monkeypatch.setenv("ADVTRAIN_TFDS_DIR", str(request.getfixturevalue("tfds_dir")))
        except pytest.skip.Exception:
            monkeypatch.setenv("ADVTRAIN_TFDS_DIR", str(tmp_path / "none"))
    found = nbformat.read(book, as_version=4)
    found.cells = [cell for cell in found.cells if "install" not in tags(cell)]
    started = time.perf_counter()
    place = {"metadata": {"path": tmp_path}}
    nbclient.NotebookClient(found, timeout=MOST_SECONDS, kernel_name="python3", resources=place).execute()
    print(f"{book.stem}: {time.perf_counter() - started:.0f} s")
