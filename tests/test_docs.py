"""The documentation does what it says: its code runs, its commands parse, what it names is there."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jax_advtrain
from jax_advtrain import command_line, compare, config
from jax_advtrain.training import workdir

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
# Their code runs top to bottom, in a process of its own. Others show fragments, or what takes long (slow, below).
RUN = ["howto/own_attack.md"]
RUN_SLOWLY = [
    "howto/own_model.md",
    "howto/own_defense.md",
    "howto/own_data.md",
    "howto/train.md",
    "howto/segmentation.md",
]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """Code of the fenced blocks of a language; indented ones, as in tabs, too."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def commands(page: Path) -> Iterator[list[str]]:
    """[module, *arguments] of every `python -m jax_advtrain...` of a page."""
    for code in blocks(page, "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            if match := re.search(r"python -m (jax_advtrain\.\S+)(.*)", line):
                arguments = re.split(r"\s+#|\s*&|;", match[2])[0]
                if arguments.count('"') % 2:  # the command is itself a text of another one
                    arguments = arguments.rstrip().removesuffix('"')
                yield [match[1], *shlex.split(arguments)]


# --- Commands ---


def test_the_reader_of_commands_sees_what_it_should():
    found = [command for page in PAGES for command in commands(page)]
    assert ["jax_advtrain.main", "--config=configs/digits_ima.py"] in found
    assert sum(command[0] == "jax_advtrain.main" for command in found) > 20
    assert any(command[0] == "jax_advtrain.compare" for command in found)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_parse(page, tmp_path):
    """Configs that are named exist, every flag and field is one; nothing is run."""
    workdir.write_config(tmp_path, config.plain(command_line.read_config("digits_ima")))  # all that is read of a run
    for module, *words in commands(page):
        own = any(word in ("--config=tiny.py", "--config=FILE", "--help") for word in words)
        if own or module not in ("jax_advtrain.main", "jax_advtrain.compare"):
            importlib.import_module(module)
            continue
        if module == "jax_advtrain.compare":
            assert command_line.read_grid(["compare", *words], compare.MODES, "") is not None
            continue
        if not any(word.startswith("--config=") for word in words):
            words = [re.sub(r"^--workdirs?=.*", f"--workdir={tmp_path}", word) for word in words]
        assert command_line.read(["main", *words]) is not None


# --- Code ---


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_is_python(page):
    for code in blocks(page, "python"):
        ast.parse(code)


@pytest.mark.parametrize("page", [*RUN, *(pytest.param(page, marks=pytest.mark.slow) for page in RUN_SLOWLY)])
def test_code_runs(page, tmp_path, compiled_programs):
    """All blocks of the page in one program, as a reader who copies them has it."""
    code = "\n\n".join(block for block in blocks(ROOT / "docs" / page, "python") if "Task04_Hippocampus" not in block)
    assert code
    (tmp_path / "page.py").write_text(code)
    run = subprocess.run(
        [sys.executable, "page.py"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "JAX_COMPILATION_CACHE_DIR": str(compiled_programs),
            "TFDS_DATA_DIR": str(tmp_path / "tfds"),
        },
        capture_output=True,
        text=True,
        timeout=1500,  # a guard; on a quiet machine none takes more than a minute or two
    )
    assert run.returncode == 0, run.stderr


# --- What is named ---


def test_the_api_pages_name_what_is_there():
    named = [
        path
        for page in (ROOT / "docs" / "api").glob("*.md")
        for path in re.findall(r"^::: (\S+)", page.read_text(), re.M)
    ]
    assert len(named) > 80 and len(set(named)) == len(named)
    for path in named:
        module, _, attribute = path.rpartition(".")
        found = getattr(importlib.import_module(module), attribute)
        assert found.__doc__ and callable(found), path


def test_every_attack_and_defense_that_a_config_can_name_is_described():
    from jax_advtrain.attacks.registry import ATTACKS
    from jax_advtrain.defenses import DEFENSES, REMEDIES
    from jax_advtrain.models import NETWORKS

    docs = ROOT / "docs"
    for text, names in (
        (docs / "attacks.md", ATTACKS),
        (docs / "defenses.md", DEFENSES),
        (docs / "remedies.md", REMEDIES),
        (docs / "howto" / "train.md", [*DEFENSES, *NETWORKS]),
    ):
        assert {name for name in names if f"`{name}" not in text.read_text()} == set()


def test_the_version_stands_in_one_place():
    newest = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None and newest[1] == jax_advtrain.__version__
    assert jax_advtrain.__version__ not in (ROOT / "pyproject.toml").read_text()
    assert jax_advtrain.__version__ not in re.sub("cff-version.*", "", (ROOT / "CITATION.cff").read_text())


def test_links_between_pages_lead_somewhere():
    """Those of the repository itself; those of the site are checked when it is built (warnings are errors)."""
    for page in (ROOT / "README.md", *sorted((ROOT / "benchmarks").rglob("*.md"))):
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), (page, link)
