"""Fixtures shared by all tests: where real data and reference vectors lie, if they are at hand; the command line, and a
small run made with it.

`ADVTRAIN_SHARED` names a folder with `tfds/`, `reference/` and `data/`; by default the folder `shared` beside the
repository. A clone without it skips the tests that need it, and says why.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SHARED = Path(os.environ.get("ADVTRAIN_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def _existing(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is not here (set ADVTRAIN_SHARED to the folder that holds it)")
    return path


@pytest.fixture(scope="session")
def tfds_dir() -> Path:
    """Folder of prepared TFDS sets: mnist/3.0.1 and cifar10/3.0.2."""
    return _existing(SHARED / "tfds")


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder of the reference implementation's numbers (*.npz)."""
    return _existing(SHARED / "reference")


@pytest.fixture(scope="session")
def medmnist_file() -> Path:
    """A real MedMNIST file (binary chest X-rays)."""
    return _existing(SHARED / "data" / "medmnist" / "pneumoniamnist.npz")


@pytest.fixture(scope="session")
def hippocampus_dir() -> Path:
    """Task04 of the Medical Segmentation Decathlon: 260 real volumes with labels."""
    return _existing(SHARED / "data" / "hippocampus" / "Task04_Hippocampus")


TINY_CONFIG = """
from jax_advtrain.config import base

def get_config():
    config = base("ima", "mlp")
    config.data.name = "digits"
    config.data.data_dir = {data_dir!r}
    config.model.hidden = (32,)
    config.defense.eps_max = 0.2
    config.defense.delta = 0.02
    config.defense.num_steps = 5
    config.defense.compact = False
    config.epochs = 2
    config.batch_size = 32
    config.optimizer.learning_rate = 1e-2
    config.monitor.num_samples = 50
    config.monitor.attacks = "pgd:num_steps=3"
    config.eval.attacks = "pgd:num_steps=5, noise"
    config.eval.epsilons_linf = (0.05, 0.1)
    config.eval.epsilons_l2 = (0.5,)
    config.eval.figures = 2
    config.margins.radii = (0.05, 0.1, 0.2)
    return config
"""


@contextlib.contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Within this, programs that the session compiled before are read from a folder and not compiled again."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def compiled_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `compiled_once` keeps the session's programs."""
    return tmp_path_factory.mktemp("compiled")


class Answer(NamedTuple):
    """What a command line gave back."""

    code: int
    out: str
    err: str


def _commands(main: Callable[[list[str]], int], capfd: pytest.CaptureFixture, programs: Path) -> Callable[..., Answer]:
    def run(*arguments: object) -> Answer:
        capfd.readouterr()
        with compiled_once(programs):
            code = main(["main.py", *map(str, arguments)])
        return Answer(code, *capfd.readouterr())

    return run


@pytest.fixture
def command(capfd: pytest.CaptureFixture, compiled_programs: Path) -> Callable[..., Answer]:
    """Runs a command line in this process: command("--config=...", ...) -> Answer."""
    from jax_advtrain.main import main

    return _commands(main, capfd, compiled_programs)


@pytest.fixture
def compare_command(capfd: pytest.CaptureFixture, compiled_programs: Path) -> Callable[..., Answer]:
    """The same of jax_advtrain.compare."""
    from jax_advtrain.compare import compare

    return _commands(compare, capfd, compiled_programs)


@pytest.fixture
def refused(command: Callable[..., Answer]) -> Callable[..., str]:
    """refused(arguments, *expected): one line with all of the expected texts, exit code 2. Returns the line."""

    def run(arguments: list, *expected: str) -> str:
        answer = command(*arguments)
        assert answer.code == 2, answer
        assert answer.err.startswith("error: ") and answer.err.count("\n") == 1, answer.err
        assert "Traceback" not in answer.err + answer.out
        for text in expected:
            assert text in answer.err
        return answer.err

    return run


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder below, with a hash: two that are equal mean that nothing was written and nothing lost."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def unchanged() -> Callable[[Path], dict[str, str]]:
    """The function `contents`, to be called before and after."""
    return contents


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file: IMA on digits, a small MLP, 2 epochs; its data folder holds the prepared digits."""
    from jax_advtrain.data import digits

    folder = tmp_path_factory.mktemp("tiny")
    digits.prepare(folder / "tfds")
    (folder / "tiny.py").write_text(TINY_CONFIG.format(data_dir=str(folder / "tfds")))
    return folder / "tiny.py"


@pytest.fixture(scope="session")
def run_main(compiled_programs: Path) -> Callable[..., int]:
    """Runs a command line and gives its exit code; for fixtures of a wider scope than `command`."""
    from jax_advtrain.main import main

    def run(*arguments: object) -> int:
        with compiled_once(compiled_programs):
            return main(["main.py", *map(str, arguments)])

    return run


@pytest.fixture(scope="session")
def finished_run(tiny_config: Path, compiled_programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of `tiny_config`, trained and evaluated; not to be written into (copy it)."""
    from jax_advtrain.main import main

    workdir = tmp_path_factory.mktemp("finished") / "run"
    with compiled_once(compiled_programs):
        assert main(["main.py", f"--config={tiny_config}", f"--workdir={workdir}"]) == 0
    return workdir
