"""How PyTorch's originals name their layers and lay out their weights, and what ours become there."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Rules = tuple[tuple[str, str], ...]


class Style(NamedTuple):
    """Whose names: `rules` are regular expressions on the dotted path of a layer, all applied, in order; `needs` are
    config fields that come with the names, `unsaid` those that the file leaves open and a config must therefore say."""

    whose: str
    rules: Rules
    needs: Mapping[str, Any] = {}
    unsaid: tuple[str, ...] = ()


_RESIDUAL: Rules = ((r"^layer(\d)_(\d+)", r"layer\1.\2"), (r"\bnorm(\d)$", r"bn\1"))
_TRADES_WIDE: Rules = (
    (r"^block(\d)_(\d+)", r"block\1.layer.\2"),
    (r"\bnorm(\d)$", r"bn\1"),
    ("^norm$", "bn1"),
    (r"\bshortcut$", "convShortcut"),
    ("^dense$", "fc"),
)
_DEEPMIND: Rules = (
    ("^conv1$", "init_conv"),
    ("^norm$", "batchnorm"),
    ("^dense$", "logits"),
    *((rf"^block{group + 1}_(\d+)", rf"layer.{group}.block.\1") for group in range(3)),
    *((rf"\bnorm{index + 1}$", f"batchnorm_{index}") for index in range(2)),
    *((rf"\bconv{index + 1}$", f"conv_{index}") for index in range(2)),
)
_VIT: Rules = (
    (r"^block(\d+)", r"blocks.\1"),
    (r"\bqkv$", "attn.qkv"),
    (r"\bproject$", "attn.proj"),
    (r"\bdense(\d)$", r"mlp.fc\1"),
    ("^embed$", "patch_embed.proj"),
)
_ROBUSTBENCH = Style(
    "RobustBench",
    (*_RESIDUAL, (r"shortcut\.conv$", "shortcut.0"), (r"shortcut\.norm$", "shortcut.1"), ("^dense$", "linear")),
)
_TORCHVISION = Style(
    "torchvision",
    (*_RESIDUAL, (r"shortcut\.conv$", "downsample.0"), (r"shortcut\.norm$", "downsample.1"), ("^dense$", "fc")),
)
_STYLES: Mapping[str, tuple[Style, ...]] = {
    "mlp": (Style("jax_advtrain", ()),),
    "small_cnn": (Style("jax_advtrain", ()),),
    "trades_cnn": (Style("TRADES", (("^conv", "feature_extractor.conv"), ("^dense", "classifier.fc"))),),
    "preact_resnet": (
        Style("RobustBench", (*_RESIDUAL, ("^norm$", "bn"), (r"\bshortcut$", "shortcut.0"), ("^dense$", "linear"))),
    ),
    "resnet": (_TORCHVISION, _ROBUSTBENCH),
    "vit": (Style("timm", _VIT),),
    "wide_resnet": (
        Style("TRADES and RobustBench", _TRADES_WIDE, {"same_padding": False}),
        Style("DeepMind", _DEEPMIND, {"same_padding": True}, ("activation", "mean", "std")),
    ),
}
_LAST = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_WHOLE = {"class_token": "cls_token", "positions": "pos_embed"}


def styles(config_model: Mapping[str, Any]) -> tuple[Style, ...]:
    """The styles that a network's file may have, the likeliest first.

    Raises:
      ValueError: a network without names in PyTorch.
    """
    name = str(config_model.get("name"))
    if name not in _STYLES:
        raise ValueError(f"model {name!r} has no names in PyTorch; those have: {', '.join(_STYLES)}")
    is_second = (name == "wide_resnet" and config_model.get("same_padding", False)) or (
        name == "resnet" and config_model.get("stem", "cifar") == "cifar"
    )
    return _STYLES[name][::-1] if is_second else _STYLES[name]


def torch_name(name: str, rules: Rules) -> str:
    """ "block1_0.norm1.scale" -> "block1.layer.0.bn1.weight"."""
    if name in _WHOLE:
        return _WHOLE[name]
    path, _, last = name.rpartition(".")
    for pattern, replacement in rules:
        path = re.sub(pattern, replacement, path)
    return f"{path}.{_LAST.get(last, last)}"


def flattened(
    config_model: Mapping[str, Any], leaves: Mapping[str, Any], image_shape: Sequence[int]
) -> tuple[str, int] | None:
    """The kernel that takes a flattened (H, W, C), and C; None where there is none."""
    first = {"mlp": "dense0.kernel", "small_cnn": "dense0.kernel", "trades_cnn": "dense1.kernel"}
    name = str(config_model["name"])
    if name not in first or len(image_shape) != 3:
        return None
    convs = sorted((n for n in leaves if re.fullmatch(r"conv\d+\.kernel", n)), key=lambda n: int(n[4:-7]))
    return first[name], leaves[convs[-1]].shape[-1] if convs else image_shape[-1]


def to_torch(name: str, array: np.ndarray, flattened: tuple[str, int] | None) -> np.ndarray:
    """Our array of that (our) name as PyTorch lays it out; `flattened` as the function of that name gives it."""
    if name in _WHOLE:
        return array.reshape(1, -1, array.shape[-1])
    if not name.endswith(".kernel"):
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if flattened and name == flattened[0]:
        array = array.reshape(-1, flattened[1], array.shape[1]).swapaxes(0, 1).reshape(array.shape)
    return array.T


def from_torch(name: str, array: np.ndarray, flattened: tuple[str, int] | None) -> np.ndarray:
    """The inverse of `to_torch`."""
    if name in _WHOLE:
        return array[0, 0] if name == "class_token" else array[0]
    if not name.endswith(".kernel"):
        return array
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    array = array.T
    if flattened and name == flattened[0]:
        array = array.reshape(flattened[1], -1, array.shape[1]).swapaxes(0, 1).reshape(array.shape)
    return array
