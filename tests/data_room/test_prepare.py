"""python -m jax_advtrain.data.prepare: what it says, what it makes, what it leaves alone."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import original_files
import pytest
from PIL import Image

from jax_advtrain import data
from jax_advtrain.data import placing, prepare


@pytest.fixture
def run(capfd: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """run("--name=...", ...) -> (exit code, stdout, stderr)."""

    def run_it(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = prepare.main(list(arguments))
        return code, *capfd.readouterr()

    return run_it


@pytest.fixture
def refused(run) -> Callable[..., str]:
    """One line on stderr with all of the texts, exit code 2; returns what was said on stdout before."""

    def run_it(arguments: list[str], *expected: str) -> str:
        code, out, err = run(*arguments)
        assert code == 2, out + err
        assert err.startswith("error: ") and err.count("\n") == 1
        for text in expected:
            assert text in err
        return out

    return run_it


@pytest.fixture
def without_tensorflow(monkeypatch):
    monkeypatch.setattr(prepare, "_has_tensorflow", lambda: False)


@pytest.fixture(scope="session")
def registered():
    """The name of a set in TFDS's registry whose builder needs no TensorFlow."""
    import tensorflow_datasets as tfds

    class AdvtrainToy(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("2.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="small"), tfds.core.BuilderConfig(name="large")]  # noqa: RUF012

        def _info(self):
            features = {"image": tfds.features.Image(shape=(4, 4, 1)), "label": tfds.features.ClassLabel(num_classes=2)}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
            )

        def _split_generators(self, dl_manager):
            if (Path(dl_manager.manual_dir) / "fail").exists():
                raise ConnectionError("no network\nat all")
            return {"train": self._generate_examples(9), "test": self._generate_examples(3)}

        def _generate_examples(self, count):
            for k in range(count):
                yield k, {"image": Image.new("L", (4, 4), k), "label": k % 2}

        MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the\n   files there."

    return "advtrain_toy"


def test_as_a_program_without_tensorflow(tmp_path):
    """digits, and a set that needs TensorFlow, in a process of their own."""
    command = [sys.executable, "-m", "jax_advtrain.data.prepare", f"--data_dir={tmp_path}"]
    done = subprocess.run([*command, "--name=digits"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == f"digits is prepared: {tmp_path}/digits/1.0.0\n", done.stderr
    assert done.stderr == ""
    assert len(data.load({"name": "digits", "data_dir": str(tmp_path)}).train) == 1259
    if importlib.util.find_spec("tensorflow") is None:
        done = subprocess.run([*command, "--name=fashion_mnist"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and "pip install 'jax_advtrain[prepare]'" in done.stderr
        assert "fashion_mnist: up to 0.0309 GB of downloads" in done.stdout
        assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_already_prepared(run, refused, digits_dir, tmp_path, unchanged):
    before = unchanged(digits_dir)
    code, out, err = run("--name=digits", f"--data_dir={digits_dir}")
    assert (code, err) == (0, "") and out == f"digits is already prepared: {digits_dir}/digits/1.0.0\n"
    assert unchanged(digits_dir) == before
    shutil.copytree(digits_dir / "digits" / "1.0.0", tmp_path / "mnist" / "3.0.1")
    info = tmp_path / "mnist" / "3.0.1" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    refused(["--name=mnist", f"--data_dir={tmp_path}"], "3.0.1 is stored as tfrecord, not as array_record")
    info.write_text("{")
    refused(["--name=mnist", f"--data_dir={tmp_path}"], "3.0.1 is damaged; move it away")
    info.unlink()
    before = unchanged(tmp_path)
    cifar = tmp_path / "cifar100" / "3.0.2"
    cifar.mkdir(parents=True)
    (cifar / "mine.txt").write_text("keep")
    refused(["--name=cifar100", f"--data_dir={tmp_path}", f"--manual_dir={tmp_path}"], "cifar100/3.0.2 is in the way")
    assert (cifar / "mine.txt").read_text() == "keep"


def test_digits_in_the_way(refused, tmp_path):
    (tmp_path / "digits" / "1.0.0").mkdir(parents=True)
    (tmp_path / "digits" / "1.0.0" / "mine.txt").write_text("keep")
    refused(["--name=digits", f"--data_dir={tmp_path}"], "digits/1.0.0 is in the way", "half-written", "move it away")


def test_from_original_files(run, refused, tmp_path, photographs, without_tensorflow):
    out = refused(
        ["--name=cifar100", f"--data_dir={tmp_path / 'tfds'}"], "needs --manual_dir", "cifar-100-binary.tar.gz"
    )
    assert "0.169 GB, to be had at https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz" in out
    assert not (tmp_path / "tfds").exists()
    original_files.cifar100(tmp_path / "down" / "cifar-100-binary", photographs)
    asked = ["--name=cifar100", f"--data_dir={tmp_path / 'tfds'}", f"--manual_dir={tmp_path / 'down'}"]
    code, out, err = run(*asked)
    assert code == 0, err
    assert out.splitlines()[-1] == f"cifar100 is prepared: {tmp_path}/tfds/cifar100/3.0.2"
    assert len(data.load({"name": "cifar100", "data_dir": str(tmp_path / "tfds"), "validation_size": 1}).train) == 11
    assert run(*asked)[1] == f"cifar100 is already prepared: {tmp_path}/tfds/cifar100/3.0.2\n"
    refused([asked[0] + ":1.0.0", *asked[1:]], "as cifar100:3.0.2 only, not as 'cifar100:1.0.0'")


def test_with_tfds_own_builder(run, refused, tmp_path, registered, monkeypatch):
    name, tfds_dir, manual = f"{registered}/large", tmp_path / "tfds", tmp_path / "manual"
    asked = [f"--name={name}", f"--data_dir={tfds_dir}"]
    monkeypatch.setattr(prepare, "_has_tensorflow", lambda: True)
    out = refused(asked, "needs files that you download by hand; give their folder as --manual_dir")
    assert "by hand: Put the files there." in out
    manual.mkdir()
    (manual / "fail").touch()
    refused([*asked, f"--manual_dir={manual}"], "TFDS could not prepare", "ConnectionError: no network")
    assert not list((tfds_dir / registered / "large").iterdir())
    (manual / "fail").rename(manual / "files")
    code, out, err = run(*asked, f"--manual_dir={manual}")
    assert code == 0, err
    assert out.splitlines()[-1] == f"{name} is prepared: {tfds_dir}/{registered}/large/2.0.0"
    splits = data.load({"name": name, "data_dir": str(tfds_dir), "validation_size": 2})
    assert sorted(np.concatenate([part.images[:, 0, 0, 0] for part in splits[:2]])) == list(range(9))
    assert [path.name for path in (tfds_dir / registered / "large").iterdir()] == ["2.0.0"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "the following arguments are required: --name"),
        (["--name=mnist", "--dir=x"], "unrecognized arguments: --dir=x"),
        (["--name=no name"], "data.name='no name' is no TFDS name"),
        (["--name=fashon_mnist"], "TFDS has no set 'fashon_mnist': did you mean 'fashion_mnist'?"),
        (["--name=mnist:9.9.9"], "TFDS cannot open 'mnist:9.9.9'"),
        (["--name=imagenet_resized/9x9"], "BuilderConfig 9x9 not found"),
        (["--name=mnist"], "TFDS prepares mnist with TensorFlow: pip install 'jax_advtrain[prepare]'"),
        (["--name=svhn_cropped", "--manual_dir=/no/such"], "--manual_dir='/no/such' is no folder"),
    ],
)
def test_bad_input(refused, tmp_path, without_tensorflow, arguments, expected):
    refused([*arguments, f"--data_dir={tmp_path / 'tfds'}"], expected)


def test_imagenet_says_what_to_do_before_anything(refused, tmp_path, monkeypatch, without_tensorflow):
    asked = ["--name=imagenet2012", f"--data_dir={tmp_path / 'tfds'}", f"--manual_dir={tmp_path}"]
    (tmp_path / "ILSVRC2012_img_val.tar").touch()
    out = refused(asked, f"{tmp_path} lacks ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar")
    assert "144 GB" in out and "ILSVRC2012_img_train.tar" in out and "image-net.org" in out
    monkeypatch.setattr(prepare, "_has_tensorflow", lambda: True)
    refused(asked[:2], "needs files that you download by hand")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        (
            "mnist",
            "install 'jax_advtrain[prepare]' && python -m jax_advtrain.data.prepare --name=mnist --data_dir=",
        ),
        ("cifar100", "with: python -m jax_advtrain.data.prepare --name=cifar100 --data_dir="),
        ("cifar100", " --manual_dir=FOLDER, which holds cifar-100-binary.tar.gz"),
        ("svhn_cropped", " --manual_dir=FOLDER, which holds train_32x32.mat and test_32x32.mat"),
        ("imagenet2012", "which holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"),
    ],
)
def test_missing_sets_name_the_command(tmp_path, name, command):
    with pytest.raises(ValueError) as caught:
        data.load({"name": name, "data_dir": str(tmp_path)})
    assert command in str(caught.value)


def test_a_preparation_at_work_is_not_removed(tmp_path):
    """Leftovers are removed by age, but not while a process holds them."""
    final = tmp_path / "set" / "1.0.0"

    def write(workplace: Path) -> Path:
        placing.place(final.with_name("2.0.0"), lambda other: _filled(other / "x"), "other", abandoned_after=-1)
        assert workplace.exists()
        return _filled(workplace / "finished")

    leftover = tmp_path / "set" / "incomplete.old"
    leftover.mkdir(parents=True)
    placing.place(final, write, "set", abandoned_after=-1)
    assert not leftover.exists()
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["1.0.0", "2.0.0"]


def _filled(folder: Path) -> Path:
    folder.mkdir()
    (folder / "file").touch()
    return folder
