"""Weights to and from PyTorch's names and files, and exported folders."""

import json
import pickle
import re
import sys
import zlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jax_advtrain import models
from jax_advtrain.models import convert, weights
from jax_advtrain.models.weights_flat import abstract, flat
from jax_advtrain.models.weights_torch import from_torch_names, to_torch_names, with_normalisation

IMAGES = (16, 20, 3)
WRN = {"name": "wide_resnet", "depth": 10, "width": 1}
DEEPMIND = WRN | {"activation": "silu", "same_padding": True, "mean": 0.5, "std": [0.25, 0.5, 1.0]}
RESNET = {"name": "resnet", "width": 2}
PREACT = {"name": "preact_resnet", "width": 2}
TRADES = {"name": "trades_cnn", "channels": (2, 3), "hidden": 4}
VIT = {"name": "vit", "patch_size": 4, "width": 6, "depth": 2, "heads": 2}
SMALL = {"name": "small_cnn", "channels": (2, 3), "hidden": (4,)}
MLP = {"name": "mlp", "hidden": (4,)}
# Each with a name and a shape of the original's state_dict, as its class prints them.
ORIGINALS = [
    (WRN, "block2.layer.0.convShortcut.weight", (32, 16, 1, 1)),
    (WRN, "bn1.running_var", (64,)),
    (DEEPMIND, "layer.2.block.0.conv_1.weight", (64, 64, 3, 3)),
    (DEEPMIND, "layer.0.block.0.batchnorm_0.running_mean", (16,)),
    (DEEPMIND, "logits.weight", (3, 64)),
    (RESNET, "layer2.0.shortcut.1.weight", (4,)),
    (RESNET, "linear.bias", (3,)),
    (RESNET | {"stem": "imagenet", "depth": 50}, "layer1.0.downsample.0.weight", (8, 2, 1, 1)),
    (RESNET | {"stem": "imagenet"}, "fc.weight", (3, 16)),
    (PREACT, "layer2.0.shortcut.0.weight", (4, 2, 1, 1)),
    (PREACT | {"final_norm": True}, "bn.weight", (16,)),
    (TRADES, "feature_extractor.conv3.weight", (3, 2, 3, 3)),
    (TRADES, "classifier.fc1.weight", (4, 3 * 1 * 2)),
    (VIT, "blocks.1.attn.qkv.weight", (18, 6)),
    (VIT, "patch_embed.proj.weight", (6, 3, 4, 4)),
    (VIT, "pos_embed", (1, 21, 6)),
    (VIT, "cls_token", (1, 1, 6)),
    (SMALL, "conv0.weight", (2, 3, 3, 3)),
    (SMALL | {"batch_norm": True}, "norm1.running_var", (3,)),
    (SMALL | {"channels": ()}, "dense0.weight", (4, 960)),
    (MLP, "dense0.weight", (4, 960)),
]


def made(config, image_shape=IMAGES):
    """A network whose every number is another one, drawn by its name; nothing is compiled."""

    def drawn(path, leaf):
        rng = np.random.default_rng(zlib.crc32(str(path).encode()))
        return rng.uniform(0.1, 1.0, leaf.shape).astype(np.float32)

    template = abstract(config, 3, image_shape)
    return models.Network(template.graphdef, *(jax.tree_util.tree_map_with_path(drawn, tree) for tree in template[1:]))


def in_torch(config):
    network = made(config)
    return to_torch_names(config, network.params, network.batch_stats, IMAGES)


def assert_equal(one, other):
    assert one.graphdef == other.graphdef
    for mine, yours in zip(one[1:], other[1:], strict=True):
        mine, yours = flat(mine), flat(yours)
        assert mine.keys() == yours.keys()
        for name, array in mine.items():
            np.testing.assert_array_equal(array, yours[name], err_msg=name)


@pytest.mark.parametrize(("config", "name", "shape"), ORIGINALS, ids=lambda value: str(value)[:60])
def test_there_and_back_is_the_same_bit_for_bit(config, name, shape):
    arrays = in_torch(config)
    assert arrays[name].shape == shape
    assert all(array.flags.c_contiguous for array in arrays.values())
    assert_equal(from_torch_names(config, arrays, 3, IMAGES), made(config))


@pytest.mark.parametrize(
    ("config", "kernel", "name", "sizes"),
    [
        (MLP, "dense0", "dense0", IMAGES),
        (SMALL, "dense0", "dense0", (4, 5, 3)),
        (SMALL | {"channels": ()}, "dense0", "dense0", IMAGES),
        (TRADES, "dense1", "classifier.fc1", (1, 2, 3)),
    ],
)
def test_the_first_dense_layer_takes_channels_first(config, kernel, name, sizes):
    ours, theirs = made(config).params[kernel]["kernel"], in_torch(config)[f"{name}.weight"]
    x = np.random.default_rng(0).normal(size=sizes)
    np.testing.assert_allclose(x.ravel() @ ours, theirs @ x.transpose(2, 0, 1).ravel(), rtol=1e-6)


def test_points_have_no_channels():
    network = made(MLP, (2,))
    arrays = to_torch_names(MLP, network.params, network.batch_stats, (2,))
    np.testing.assert_array_equal(arrays["dense0.weight"], network.params["dense0"]["kernel"].T)
    assert_equal(from_torch_names(MLP, arrays, 3, (2,)), network)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "state_dict.net.", "1."])
def test_prefixes_and_what_is_not_used(prefix):
    arrays = in_torch(WRN) | {
        "block1.layer.0.bn1.num_batches_tracked": np.array(3),
        "sub_block1.layer.0.conv1.weight": np.ones((16, 16, 3, 3), np.float32),
    }
    assert_equal(from_torch_names(WRN, {prefix + name: a for name, a in arrays.items()}, 3, IMAGES), made(WRN))


def test_other_names_of_the_same_network():
    """torchvision's names on small images' network, which many training scripts use."""
    arrays = {re.sub("shortcut", "downsample", name): array for name, array in in_torch(RESNET).items()}
    arrays = {re.sub("^linear", "fc", name): array for name, array in arrays.items()}
    assert_equal(from_torch_names(RESNET, arrays, 3, IMAGES), made(RESNET))


@pytest.mark.parametrize(
    "names",
    [("mu", "sigma"), ("mean", "std"), ("0.mean", "0.std"), ("module.normalize.mean", "module.normalize.std")],
)
def test_buffers_of_mean_and_std_become_the_configs(names):
    mean, std = np.array([0.4914, 0.4822, 0.4465], np.float32), np.full(3, 0.25, np.float32)
    prefix = "1." if names[0].startswith("0.") else ""
    arrays = {prefix + name: array for name, array in in_torch(RESNET).items()}
    arrays |= {names[0]: mean.reshape(1, 3, 1, 1), names[1]: std.reshape(1, 3, 1, 1)}
    config, plain = with_normalisation(RESNET, arrays)
    assert config == RESNET | {"mean": [0.4914, 0.4822, 0.4465], "std": [0.25] * 3}
    assert plain.keys() == in_torch(RESNET).keys()
    assert with_normalisation(config, plain)[0] == config
    assert_equal(from_torch_names(RESNET, arrays, 3, IMAGES), made(config))
    with_normalisation(config | {"std": 0.25}, arrays)
    with pytest.raises(ValueError, match=r"model.mean = 0.5, but the file holds \[0.4914"):
        from_torch_names(RESNET | {"mean": 0.5}, arrays, 3, IMAGES)
    del arrays[names[1]]
    with pytest.raises(ValueError, match="a buffer of mean and none of its fellow"):
        from_torch_names(RESNET, arrays, 3, IMAGES)


def without(arrays, *names):
    return {name: array for name, array in arrays.items() if name not in names}


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        (WRN, lambda a: without(a, "fc.bias"), r"1 missing \(fc.bias\)$"),
        (WRN, lambda a: a | {"scores": a["fc.bias"]}, r"1 unexpected \(scores\)$"),
        (WRN, lambda a: a | {"fc.bias": np.zeros(7)}, r"1 of another shape \(fc.bias \(7,\), not \(3,\)\)$"),
        (WRN, lambda a: dict(list(a.items())[4:]), r"4 missing \(.+, .+, .+, \.\.\.\)$"),
        (WRN | {"depth": 16}, lambda a: in_torch(WRN), r"\d+ missing \(block1.layer.1"),
        (WRN, lambda a: in_torch(RESNET), "missing .* unexpected"),
        (WRN, lambda a: in_torch(DEEPMIND), "names are those of DeepMind, .* model.same_padding = True"),
        (DEEPMIND, lambda a: in_torch(WRN), "names are those of TRADES .* model.same_padding = False"),
        (WRN, lambda a: a | {"module.fc.bias": np.ones(3)}, "two different arrays for 'fc.bias'"),
        (WRN | {"same_padding": True}, lambda a: a, "give the model config model.activation and model.mean"),
        (WRN, lambda a: {}, r"\d+ missing"),
    ],
)
def test_a_mismatch_names_the_keys(config, change, said):
    with pytest.raises(ValueError, match=said) as raised:
        from_torch_names(config, change(in_torch(config)), 3, IMAGES)
    assert "\n" not in str(raised.value)


def exported(folder, config=SMALL, **others):
    network = made(config)
    return weights.export(
        folder, config, network.params, network.batch_stats, num_classes=3, image_shape=IMAGES, **others
    )


@pytest.mark.parametrize("config", [SMALL | {"batch_norm": True}, MLP])
def test_a_loaded_network_gives_the_same_logits(tmp_path, config):
    folder = exported(tmp_path / "deeper" / "net", config, class_names=("a", "b", "c"))
    assert {path.name for path in folder.iterdir()} == {weights.WEIGHTS_NAME, weights.CONFIG_NAME}
    assert [path.name for path in folder.parent.iterdir()] == ["net"]
    x = np.random.default_rng(0).uniform(size=(2, *IMAGES)).astype(np.float32)
    loaded = weights.load(folder)
    np.testing.assert_array_equal(loaded(x), models.logits_fn(*made(config))(x))
    assert jax.tree.structure(loaded) == jax.tree.structure(models.logits_fn(*made(config)))
    read = weights.read(folder)
    assert (read.num_classes, read.image_shape, read.class_names) == (3, IMAGES, ("a", "b", "c"))
    assert json.loads((folder / weights.CONFIG_NAME).read_text())["dtype"] == "float32"


@pytest.mark.parametrize("config", [SMALL, DEEPMIND, VIT, TRADES], ids=lambda config: config["name"])
def test_all_fields_are_written_out(tmp_path, config):
    """A default that changes later cannot change the network."""
    folder = exported(tmp_path / "net", config)
    written = json.loads((folder / weights.CONFIG_NAME).read_text())["model"]
    assert set(written) == {"name", *models.field_names(config["name"])}
    assert {name: written[name] for name in config} == json.loads(json.dumps(config))
    assert weights.read(folder).network.graphdef == made(config).graphdef
    # A folder of before, with the given fields only, reads as it did.
    rewritten(folder, model=config)
    assert weights.read(folder).network.graphdef == made(config).graphdef


def test_a_converted_network_keeps_its_mean_and_std(tmp_path, capsys):
    buffers = {"0.mean": np.array([0.25, 0.5, 0.75], np.float32), "0.std": np.array([0.5, 0.5, 0.25], np.float32)}
    save_file(buffers | {f"1.{name}": array for name, array in in_torch(SMALL).items()}, tmp_path / "net.safetensors")
    assert convert.main(arguments(tmp_path)) == 0
    written = json.loads((tmp_path / "ours" / weights.CONFIG_NAME).read_text())["model"]
    assert (written["mean"], written["std"]) == ([0.25, 0.5, 0.75], [0.5, 0.5, 0.25])
    given = SMALL | {"mean": (0.25, 0.5, 0.75), "std": (0.5, 0.5, 0.25)}
    assert weights.read(tmp_path / "ours").network.graphdef == made(given).graphdef


def test_export_refuses(tmp_path):
    folder = exported(tmp_path / "net")
    with pytest.raises(ValueError, match="is there already"):
        exported(folder)
    with pytest.raises(ValueError, match=r"class_names = \('a',\): expected 3 names"):
        exported(tmp_path / "other", class_names=("a",))
    network = made(MLP)
    with pytest.raises(ValueError, match=r"missing \(params.conv0"):
        weights.export(tmp_path / "other", SMALL, *network[1:], num_classes=3, image_shape=IMAGES)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def rewritten(folder, **fields):
    path = folder / weights.CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_load_refuses(tmp_path):
    folder = exported(tmp_path / "net")
    rewritten(folder, num_classes=7)
    with pytest.raises(ValueError, match=r"2 of another shape \(params.dense1.bias \(3,\), not \(7,\)"):
        weights.load(folder)
    rewritten(folder, num_classes=3, model={"name": "os.path.join"})
    with pytest.raises(ValueError, match=r"'os.path.join', whose module would be executed; give own_classes=True"):
        weights.load(folder)
    rewritten(folder, format=2)
    with pytest.raises(ValueError, match="is damaged: ValueError: format 2, this version reads 1"):
        weights.load(folder)
    (folder / weights.CONFIG_NAME).write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        weights.load(folder)
    with pytest.raises(ValueError, match="is no folder of an exported network"):
        weights.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no exported network"):
        weights.load(tmp_path)


def arguments(tmp_path, **changed):
    given = {
        "in": tmp_path / "net.safetensors",
        "out": tmp_path / "ours",
        "model": json.dumps(SMALL),
        "num_classes": 3,
        "image_shape": "16,20,3",
    }
    return [f"--{name}={value}" for name, value in (given | changed).items() if value is not None]


def test_the_command_line_there_and_back(tmp_path, capsys):
    save_file({f"module.{name}": array for name, array in in_torch(SMALL).items()}, tmp_path / "net.safetensors")
    assert convert.main(arguments(tmp_path)) == 0
    assert capsys.readouterr().out == f"written: {tmp_path / 'ours'}\n"
    assert_equal(weights.read(tmp_path / "ours").network, made(SMALL))
    back = ["--to=torch", f"--in={tmp_path / 'ours'}", f"--out={tmp_path / 'back.safetensors'}"]
    assert convert.main(back) == 0
    written = load_file(tmp_path / "back.safetensors")
    assert written.keys() == in_torch(SMALL).keys()
    assert all(np.array_equal(written[name], array) for name, array in in_torch(SMALL).items())
    assert convert.main(back) == 2  # it is there


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"in": "nowhere.pt"}, "nowhere.pt: no such file"),
        ({"in": __file__}, "expected .safetensors, or .pt and .pth"),
        ({"num_classes": 7}, "2 of another shape (dense1.bias (3,), not (7,), dense1.weight (3, 4), not (7, 4))"),
        ({"num_classes": "ten"}, "are whole numbers"),
        ({"num_classes": None, "model": None}, "give --model, --num_classes"),
        ({"model": '{"name": "wide_resnt"}'}, "did you mean 'wide_resnet'?"),
        ({"model": "wide_resnet"}, "is no JSON"),
        ({"model": "[1]"}, "expected JSON like"),
        ({"model": '{"name": "small_cnn", "depth": 28}'}, "field 'depth' is not known"),
        ({"image_shape": "16,20"}, "takes images of shape (height, width, channels)"),
        ({"image_shape": "16x20x3"}, "are whole numbers"),
        ({"to": "torch"}, "--model, --num_classes, --image_shape: the folder"),
        ({"to": "tensorflow"}, "invalid choice"),
        ({"out": None}, "--out"),
    ],
)
def test_bad_input_is_one_line_and_code_2(tmp_path, capsys, changed, said):
    save_file(in_torch(SMALL), tmp_path / "net.safetensors")
    assert convert.main(arguments(tmp_path, **changed)) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and shown.err.startswith("error: ") and said in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_a_pickle_is_no_safetensors(tmp_path, capsys):
    path = tmp_path / "net.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}))
    assert convert.main(arguments(tmp_path)) == 2
    assert "cannot be read as safetensors" in capsys.readouterr().err


def test_pt_needs_pytorch(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "net.pt").write_bytes(pickle.dumps({}))
    assert convert.main(arguments(tmp_path, **{"in": tmp_path / "net.pt"})) == 2
    assert "needs PyTorch to be read" in capsys.readouterr().err


class Executed:
    def __reduce__(self):
        return (sys.exit, ("a pickle was executed",))


@pytest.mark.slow
def test_files_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "net.pt"
    tensors = {f"module.{name}": torch.from_numpy(array) for name, array in in_torch(SMALL).items()}
    torch.save({"epoch": 3, "state_dict": tensors, "optimizer": {"lr": 0.1}}, path)
    assert_equal(from_torch_names(SMALL, convert.read_torch(path), 3, IMAGES), made(SMALL))
    torch.save({"a": torch.ones(2, dtype=torch.bfloat16)}, path)
    assert convert.read_torch(path)["a"].dtype == np.float32
    torch.save({"state_dict": {"epoch": 3}}, path)
    with pytest.raises(ValueError, match="holds no weights by name"):
        convert.read_torch(path)
    for content in (pickle.dumps(Executed()), pickle.dumps({"a": Executed()}), b"", b"nothing of the kind"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no file of plain weights"):
            convert.read_torch(path)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [18, 50])
def test_logits_of_torchvision(depth):
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    original = getattr(torchvision.models, f"resnet{depth}")(num_classes=3).eval()
    x = np.random.default_rng(0).uniform(size=(2, 64, 48, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = original(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    arrays = {name: tensor.numpy() for name, tensor in original.state_dict().items()}
    network = from_torch_names({"name": "resnet", "stem": "imagenet", "depth": depth}, arrays, 3, x.shape[1:])
    np.testing.assert_allclose(models.logits_fn(*network)(x), theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).mean())
