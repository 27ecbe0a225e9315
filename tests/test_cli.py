"""The command line: what a user may type, and the one line that answers what cannot be used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jax_advtrain import command_line
from jax_advtrain.config_check import validate


def program(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A real process."""
    return subprocess.run(
        [sys.executable, "-m", "jax_advtrain.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
        check=False,
    )


# --- Reading ---


def test_help_shows_flags_modes_configs_and_an_example(command):
    answer = command("--help")
    assert answer.code == 0 and not answer.err
    for text in (
        "python -m jax_advtrain.main --config=configs/digits_ima.py",
        *("--workdir=DIR", "--mode=MODE", "train:", "evaluate:", "margins:", "digits_ima.py", "mnist_ima.py"),
    ):
        assert text in answer.out


def test_help_with_a_config_lists_its_fields(command, tiny_config):
    out = command(f"--config={tiny_config}", "--help").out
    assert "--config.defense.eps_max=0.2" in out and "--config.margins.radii=(0.05, 0.1, 0.2)" in out


def test_defaults(tiny_config):
    asked = command_line.read(["main.py", f"--config={tiny_config}"])
    assert asked is not None
    assert (asked.mode, asked.workdir, asked.multihost) == ("train", Path("runs/tiny"), False)


@pytest.mark.parametrize("given", ["digits_ima", "digits_ima.py", "configs/digits_ima.py"])
def test_shipped_configs_are_found_by_name(given):
    asked = command_line.read(["main.py", f"--config={given}"])
    assert asked is not None and asked.config.data.name == "digits" and asked.workdir == Path("runs/digits_ima")


def test_overrides(tiny_config):
    asked = command_line.read(
        [
            *("main.py", "--config.epochs=7", "--config", str(tiny_config), "--workdir", "here", "--mode=margins"),
            *("--config.eval.epsilons_linf=(0.3,)", "--config.ema_decay=0.9", "--config.data.data_dir=there"),
            *("--config.one_logit", "--config.model.hidden=(8, 8)", "--config.monitor.norm=l2", "--multihost"),
        ]
    )
    assert asked is not None
    config = asked.config
    assert (asked.mode, asked.workdir, asked.multihost) == ("margins", Path("here"), True)
    assert (config.epochs, config.ema_decay, config.one_logit, config.data.data_dir) == (7, 0.9, True, "there")
    assert (config.eval.epsilons_linf, config.model.hidden, config.monitor.norm) == ((0.3,), (8, 8), "l2")


NO_LIMIT = "--config.eval.num_samples=None"
BARE = "from jax_advtrain.config import base\n\ndef get_config():\n    return base()\n"


def test_any_field_of_the_network_and_no_limit(tiny_config):
    """The config file sets model.hidden alone; num_samples has a number by default."""
    asked = command_line.read(
        [
            *("main.py", f"--config={tiny_config}", "--config.model.mean=(0.5,)", "--config.analysis.num_samples=None"),
            *("--config.eval.num_samples=None", "--config.equilibrium.num_samples=7"),
        ]
    )
    assert asked is not None and asked.config.model.mean == (0.5,)
    assert "std" not in asked.config.model
    assert asked.config.analysis.num_samples is None and asked.config.eval.num_samples is None
    assert asked.config.equilibrium.num_samples == 7
    kept = command_line.read(["main.py", f"--config={tiny_config}", "--config.eval.num_samples=5", NO_LIMIT])
    assert kept is not None and kept.config.eval.num_samples is None  # the last one counts


def test_another_network_with_fields_of_its_own(tmp_path):
    (tmp_path / "bare.py").write_text(BARE)
    asked = ["main.py", f"--config={tmp_path}/bare.py", "--config.model.name=mlp", "--config.model.hidden=(7,)"]
    found = command_line.read(asked)
    assert found is not None
    validate(found.config, num_devices=1)
    assert found.config.model.to_dict() == {"name": "mlp", "hidden": (7,)}


def test_one_command_line_leaves_nothing_for_the_next(tiny_config):
    command_line.read(["main.py", f"--config={tiny_config}", "--workdir=a", "--config.epochs=9", "--mode=margins"])
    asked = command_line.read(["main.py", f"--config={tiny_config}"])
    assert asked is not None and (asked.config.epochs, asked.mode, asked.workdir.name) == (2, "train", "tiny")


# --- Bad input, before any data are read ---

TINY = "--config={tiny}"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["--config is missing: give --config=configs/digits_ima.py"]),
        (["--mode=evaluate"], ["--workdir is missing: --mode=evaluate takes the --workdir=DIR of a run"]),
        (["--mode=evaluate", "--workdir={folder}/none"], ["none holds no run"]),
        (["--config=digits_imma.py"], ["--config=digits_imma.py: no such file; did you mean 'digits_ima.py'?"]),
        (["--config={folder}"], ["a folder, not a config file"]),
        (["--config={folder}/nope.py"], ["nope.py: no such file"]),
        (["--config={folder}/raises.py"], ["raises.py cannot be read as a config: RuntimeError: two lines"]),
        (["--config={folder}/syntax.py"], ["syntax.py cannot be read as a config: SyntaxError"]),
        (["--config={folder}/empty.py"], ["AttributeError", "get_config"]),
        (["--config={folder}/dict.py"], ["get_config() gives dict, not a ConfigDict"]),
        (["--config={folder}/typed.py"], ["typed.py cannot be read as a config: TypeError", "epochs"]),
        (["--config={folder}/made_up.py"], ["config field 'eval.atacks' is not known (did you mean 'eval.attacks'?)"]),
        ([TINY, "--mode=trian"], ["--mode=trian", "train|evaluate|margins"]),
        ([TINY, "--wrokdir=x"], ["Unknown command line flag 'wrokdir'. Did you mean: workdir"]),
        ([TINY, "now"], ["'now' is no flag; write --config.FIELD=VALUE"]),
        ([TINY, "config.epochs=3"], ["'config.epochs=3' is no flag"]),
        (["--config={folder}/grid.py"], ["grid.py holds a grid of runs: python -m jax_advtrain.compare"]),
        ([TINY, "--config.epoch=3"], ["--config.epoch: no such field; did you mean 'epochs'?"]),
        ([TINY, "--config.defense.dleta=3"], ["--config.defense.dleta: no such field; did you mean 'defense.delta'?"]),
        ([TINY, "--config.zzz=3"], ["--config.zzz: no such field; fields: accumulate, analysis, batch_size"]),
        ([TINY, "--config.defense=3"], ["--config.defense is a section; set one of its fields: defense.alpha"]),
        ([TINY, "--config.epochs=ten"], ["--config.epochs=ten", "give a whole number"]),
        ([TINY, "--config.epochs=2.5"], ["--config.epochs=2.5", "give a whole number"]),
        ([TINY, "--config.epochs=None"], ["--config.epochs=None", "give a whole number"]),
        ([TINY, "--config.defense.eps_max=8/255"], ["--config.defense.eps_max=8/255", "give a number: 0.03137"]),
        ([TINY, "--config.model.hiden=3"], ["--config.model.hiden: no such field; did you mean 'model.hidden'?"]),
        ([TINY, "--config.defense.eps_max=8"], ["eps_max holds 8; pixels lie in [0, 1]", "grey levels is 0.03137"]),
        ([TINY, "--config.eval.epsilons_linf=(2,4)"], ["eval.epsilons_linf holds 2; pixels", "is 0.007843"]),
        ([TINY, "--config.monitor.epsilon=8"], ["monitor.epsilon holds 8; pixels lie in [0, 1]"]),
        ([TINY, "--config.epochs"], ["config.epochs"]),
        ([TINY, "--config.epochs=0"], ["epochs is 0; give a whole number from 1"]),
        ([TINY, "--config.one_logit=maybe"], ["--config.one_logit=maybe"]),
        ([TINY, "--config.eval.epsilons_linf=-0.1"], ["eval.epsilons_linf holds -0.1"]),
        ([TINY, "--config.eval.epsilons_l2=(0.1, 'x')"], ["eval.epsilons_l2 holds 'x'"]),
        ([TINY, "--config.monitor.epsilon=nan"], ["monitor.epsilon holds 'nan'"]),
        ([TINY, "--config.defense.delta=nan"], ["defense.delta is nan"]),
        ([TINY, "--config.defense.alpha=-1"], ["defense.alpha is -1.0; give a finite number from 0"]),
        ([TINY, "--config.defense.delta=0.3"], ["delta is 0.3 and eps_max 0.2; delta must not exceed eps_max"]),
        ([TINY, "--config.optimizer.learning_rate=-1"], ["optimizer.learning_rate is -1.0"]),
        ([TINY, "--config.optimizer.learning_rate=nan"], ["optimizer.learning_rate is nan"]),
        ([TINY, "--config.batch_size=30"], ["batch_size is 30; give a multiple of num_shards = 8"]),
        ([TINY, "--config.model.name=resnett"], ["model.name 'resnett' is not known (did you mean 'resnet'?)"]),
        (
            [TINY, "--config.defense.name=trade"],
            ["defense 'trade' is not known (did you mean 'trades'?)", "standard, pgd_at, trades"],
        ),
        ([TINY, "--config.defense.norm=l3"], ["norm is 'l3'; the norms are linf, l2, l1"]),
        ([TINY, "--config.defense.attack_loss=hinge"], ["'hinge' is not known"]),
        ([TINY, "--config.optimizer.name=lion"], ["optimizer.name 'lion' is not known; valid: adam, sgd"]),
        ([TINY, "--config.eval.attacks=autoattak"], ["eval.attacks: 'autoattak': attack 'autoattak' is not known"]),
        ([TINY, "--config.eval.attacks=pgd:nm_steps=3"], ["field 'nm_steps' is not known (did you mean 'num_steps'?)"]),
        ([TINY, "--config.eval.attacks=pgd:alpha=-1"], ["alpha is -1; give finite numbers from 0"]),
        ([TINY, "--config.eval.attacks=pgd:loss=hinge"], ["'hinge' is not known; the losses are ce, lm"]),
        ([TINY, "--config.eval.attacks=pgd:epsilon=0.1"], ["sets epsilon"]),
        ([TINY, "--config.eval.name=a/b"], ["eval.name is 'a/b'; give one folder name"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_bad_command_lines(refused, unchanged, tiny_config, tmp_path, monkeypatch, arguments, expected):
    start = "from jax_advtrain.config import base\ndef get_config():\n    config = base()\n"
    for name, text in {
        "raises": "raise RuntimeError('two\\nlines')",
        "syntax": "def get_config(:",
        "empty": "",
        "dict": "def get_config(): return {}",
        "typed": start + "    config.epochs = 'x'\n    return config",
        "grid": "from jax_advtrain.config import base\nfrom jax_advtrain.studies.grid import grid\n"
        "def get_config():\n    return grid(base(), {'ima': {}})",
        "made_up": start + "    config.eval.atacks = ''\n    return config",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    places = (tmp_path, tiny_config.parent)
    before = [unchanged(place) for place in places]
    refused([argument.format(tiny=tiny_config, folder=tmp_path) for argument in arguments], *expected)
    after = [unchanged(place) for place in places]
    assert [{name for name in one if "__pycache__" not in name} for one in after] == [set(one) for one in before]


# --- Bad data ---


def digits_file(path: Path, change=lambda arrays: None) -> Path:
    """An .npz file of a few digits, changed by a function before it is written."""
    random = np.random.default_rng(0)
    arrays = {
        f"{split}_{name}": values
        for split, count in (("train", 64), ("validation", 16), ("test", 16))
        for name, values in (
            ("images", random.integers(0, 256, (count, 8, 8), np.uint8)),
            ("labels", np.arange(count) % 10),
        )
    }
    arrays["class_names"] = np.array([str(number) for number in range(10)])
    change(arrays)
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("change", "arguments", "expected"),
    [
        (lambda arrays: arrays["train_labels"].put(3, 10), [], "1 labels are outside the 10 classes 0..9"),
        (lambda arrays: arrays["test_labels"].put(3, -1), [], "1 labels are outside the 10 classes 0..9"),
        (lambda arrays: arrays.pop("train_labels"), [], "has 'train_images' but no 'train_labels'"),
        (lambda arrays: arrays.update(test_images=arrays["test_images"] / 100.0), [], "float images must lie in [0,1]"),
        (
            lambda arrays: None,
            ["--config.one_logit=True", "--config.defense.attack_loss=lmb"],
            "one_logit needs a set of 2 classes; 'mine' has 10",
        ),
        (lambda arrays: None, ["--config.data.validation_size=17"], "data.validation_size=17 cannot be taken from 16"),
        (lambda arrays: None, ["--config.data.num_train=65"], "data.num_train=65, but there are only 64 samples"),
        (
            lambda arrays: None,
            ["--config.eval.split=validation", "--config.data.validation_size=0"],
            "eval.split is 'validation', which is empty; set data.validation_size, or give another split",
        ),
        (lambda arrays: None, ["--config.data.name="], "data.name must be set"),
        (lambda arrays: None, ["--config.data.path={folder}/none.npz"], "none.npz' is no file"),
        (lambda arrays: None, ["--config.model.hidden=(0,)"], "model.hidden = (0,): expected"),
        (lambda arrays: None, ["--config=digits_ima", "--config.beside.x=3"], "no such field"),
    ],
)
def test_bad_data(refused, unchanged, tiny_config, tmp_path, change, arguments, expected):
    file = digits_file(tmp_path / "mine.npz", change)
    before = unchanged(tmp_path)
    given = [argument.format(folder=tmp_path) for argument in arguments]
    data = ["--config.data.name=mine", f"--config.data.path={file}", "--config.data.data_dir="]
    refused([f"--config={tiny_config}", f"--workdir={tmp_path}/run", *data, *given], expected)
    assert unchanged(tmp_path) == before


def test_bad_tfds_folders(refused, unchanged, tiny_config, tmp_path):
    arguments = [f"--config={tiny_config}", f"--workdir={tmp_path}/run"]
    refused([*arguments, "--config.data.name=mnist", f"--config.data.data_dir={tmp_path}/no"], "does not exist")
    refused([*arguments, "--config.data.name=mnist", f"--config.data.data_dir={tmp_path}"], "no 'mnist' in")
    shutil.copytree(tiny_config.parent / "tfds", tmp_path / "tfds")
    shard = next((tmp_path / "tfds").rglob("*test*array_record*"))
    shard.write_bytes(shard.read_bytes()[:1000])
    before = unchanged(tmp_path)
    refused([*arguments, f"--config.data.data_dir={tmp_path}/tfds"], "split 'test'", "missing or half-written")
    (shard.parent / "dataset_info.json").unlink()
    refused([*arguments, f"--config.data.data_dir={tmp_path}/tfds"], "is half-written (dataset_info.json is missing)")
    assert set(before) - set(unchanged(tmp_path)) == {str((shard.parent / "dataset_info.json").relative_to(tmp_path))}


# --- The process itself ---


def test_a_process_answers_with_one_line_and_code_2(tiny_config, tmp_path):
    arguments = [f"--config={tiny_config}", f"--workdir={tmp_path}/run"]
    answer = program(*arguments, "--config.defense.delta=0.3")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == "error: defense: delta is 0.3 and eps_max 0.2; delta must not exceed eps_max\n"
    assert not (tmp_path / "run").exists()


def test_devices_that_do_not_divide_the_shards(tiny_config, tmp_path):
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_PLATFORMS": "cpu"}
    answer = program(f"--config={tiny_config}", f"--workdir={tmp_path}/run", **devices)
    assert answer.returncode == 2
    assert answer.stderr == "error: num_shards is 8; give a multiple of the 3 devices here\n"
    assert not (tmp_path / "run").exists()


def test_no_devices(tiny_config, tmp_path):
    answer = program(f"--config={tiny_config}", f"--workdir={tmp_path}/run", JAX_PLATFORMS="no_such_platform")
    assert answer.returncode == 2 and answer.stderr.startswith("error: JAX finds no devices: "), answer
    assert answer.stderr.count("\n") == 1


def test_errors_of_the_program_itself_keep_their_traceback(tiny_config, tmp_path, monkeypatch):
    from jax_advtrain.main import main
    from jax_advtrain.training import loop

    def broken(*arguments, **fields):
        raise ValueError("a bug in the middle of training")

    monkeypatch.setattr(loop, "train", broken)
    with pytest.raises(ValueError, match="a bug in the middle of training"):
        main(["main.py", f"--config={tiny_config}", f"--workdir={tmp_path}/run"])
