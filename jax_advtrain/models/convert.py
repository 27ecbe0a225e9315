"""Reads weights of PyTorch checkpoints into ours, and writes them back.

  python -m jax_advtrain.models.convert --in=wrn.pt --out=exported --num_classes=10 --image_shape=32,32,3 \\
      --model='{"name": "wide_resnet", "depth": 28, "width": 10}'
  python -m jax_advtrain.models.convert --to=torch --in=exported --out=wrn.safetensors

The first reads .safetensors, or .pt and .pth where PyTorch is installed (weights only, no pickled code), with the
names of RobustBench, torchvision, timm or TRADES, and writes a folder for `jax_advtrain.load`. What a file does not
say is the config's to say: mean and std, unless the file holds them as buffers; activation; heads.
"""

import argparse
import json
import os
import pickle
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from jax_advtrain.models import weights, weights_flat, weights_torch

DONE, BAD_INPUT = 0, 2
_TORCH_ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")  # where training scripts put the weights


def from_torch(source: Path, out: Path, config_model: Any, num_classes: int, image_shape: tuple[int, ...]) -> Path:
    """Converts a PyTorch checkpoint into a folder of `weights.export`, and returns it.

    Raises:
      ValueError: one line: no such file, no weights in it, weights of another network, something lies at `out`.
    """
    if not isinstance(config_model, dict):
        raise ValueError(f'--model={config_model!r}: expected JSON like {{"name": "wide_resnet", "depth": 28}}')
    weights_flat.abstract(config_model, num_classes, image_shape)  # a bad config is said before a large file is read
    arrays = read_torch(source)
    config_model, arrays = weights_torch.with_normalisation(config_model, arrays)
    network = weights_torch.from_torch_names(config_model, arrays, num_classes, image_shape)
    return weights.export(
        out, config_model, network.params, network.batch_stats, num_classes=num_classes, image_shape=image_shape
    )


def to_torch(source: Path, out: Path) -> Path:
    """Converts a folder of `weights.export` into a safetensors file with PyTorch's names, and returns it.

    Raises:
      ValueError: one line: no exported network, one without names in PyTorch, something lies at `out`.
    """
    from safetensors.numpy import save_file

    if out.exists():
        raise ValueError(f"{out} is there already; give another --out, or move it away")
    if out.suffix != ".safetensors":
        raise ValueError(f"--out={out}: PyTorch's names are written into a .safetensors file")
    read = weights.read(source)
    network = read.network
    arrays = weights_torch.to_torch_names(read.config_model, network.params, network.batch_stats, read.image_shape)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        save_file(arrays, temporary)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return out


def read_torch(path: Path) -> weights_flat.Arrays:
    """The arrays of a PyTorch checkpoint, in numpy's dtypes (bfloat16 as float32); nothing in it is executed.

    Raises:
      ValueError: one line: no such file, an unknown ending, PyTorch missing, a pickle of more than weights.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return weights_flat.read_safetensors(path)
    if path.suffix not in _TORCH_ENDINGS:
        raise ValueError(f"{path}: expected .safetensors, or .pt and .pth of PyTorch")
    try:
        import torch  # pyright: ignore[reportMissingImports]  # only here, and only where it happens to be installed
    except ImportError:
        raise ValueError(f"{path} needs PyTorch to be read: pip install torch, or convert it to safetensors") from None
    try:
        with warnings.catch_warnings(action="ignore"):  # what it thinks of a file is said below, in one line
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is no file of plain weights (save model.state_dict()): {why}") from None
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    tensors = found.items() if isinstance(found, Mapping) else ()
    arrays = {str(name): _as_numpy(value, torch) for name, value in tensors if isinstance(value, torch.Tensor)}
    if not arrays:
        raise ValueError(f"{path} holds no weights by name: {type(found).__name__}")
    return arrays


def _as_numpy(tensor: Any, torch: Any) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (--help lists the flags)")


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m jax_advtrain.models.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--in", dest="source", required=True, help="the checkpoint; with --to=torch an exported folder")
    parser.add_argument("--out", required=True, help="a new folder; with --to=torch a new .safetensors file")
    parser.add_argument("--to", default="ours", choices=["ours", "torch"], help="default: ours")
    parser.add_argument("--model", help='the model config as JSON: \'{"name": "resnet", "stem": "imagenet"}\'')
    parser.add_argument("--num_classes", help="outputs of the network")
    parser.add_argument("--image_shape", help="HEIGHT,WIDTH,CHANNELS")
    return parser


def _converted(argv: list[str] | None) -> Path:
    asked = _parser().parse_args(argv)
    source, out = Path(asked.source).expanduser(), Path(asked.out).expanduser()
    described = {name: getattr(asked, name) for name in ("model", "num_classes", "image_shape")}
    if asked.to == "torch":
        given = [f"--{name}" for name, value in described.items() if value is not None]
        if given:
            raise ValueError(f"{', '.join(given)}: the folder that --to=torch reads says that itself; leave it out")
        return to_torch(source, out)
    lacking = [f"--{name}" for name, value in described.items() if value is None]
    if lacking:
        raise ValueError(f"give {', '.join(lacking)}: PyTorch's files do not say it (--help)")
    try:
        model = json.loads(asked.model)
    except ValueError as error:
        raise ValueError(f"--model={asked.model!r} is no JSON: {error}") from None
    numbers = [asked.num_classes, *asked.image_shape.split(",")]
    if not all(number.strip().isdecimal() for number in numbers):
        raise ValueError("--num_classes and --image_shape are whole numbers: --num_classes=10 --image_shape=32,32,3")
    num_classes, *image_shape = (int(number) for number in numbers)
    return from_torch(source, out, model, num_classes, tuple(image_shape))


def main(argv: list[str] | None = None) -> int:
    """Runs a command line (by default the process's) and returns the exit code: 0, or 2 for bad input."""
    try:
        print(f"written: {_converted(argv)}")
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    return DONE


if __name__ == "__main__":
    sys.exit(main())
