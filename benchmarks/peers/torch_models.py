"""The networks of `networks.py` as torch modules with the same weights (peers' environment).

    python benchmarks/peers/torch_models.py /tmp/peers_data/*.npz

checks that the logits of both sides agree within 1e-4 on the images.
"""

import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def _weights(kept) -> dict[str, torch.Tensor]:
    """Kernels in torch's layout: (out, in, rows, columns) and (out, in)."""
    found = {}
    for name in kept.files:
        if name.startswith("w/"):
            array = kept[name]
            axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
            found[name[2:]] = torch.from_numpy(np.ascontiguousarray(array.transpose(axes)))
    return found


class _Network(nn.Module):
    def __init__(self, weights: dict[str, torch.Tensor]):
        super().__init__()
        for name, tensor in weights.items():
            self.register_buffer(name.replace("/", "_"), tensor)

    def conv(self, name: str, x: torch.Tensor, stride: int, padding: int = 1) -> torch.Tensor:
        kernel, bias = getattr(self, f"{name}_kernel"), getattr(self, f"{name}_bias")
        return functional.conv2d(x, kernel, bias, stride, padding)

    def dense(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, getattr(self, f"{name}_kernel"), getattr(self, f"{name}_bias"))


class SmallCNN(_Network):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv("conv0", x, 2))
        x = torch.relu(self.conv("conv1", x, 2))
        return self.dense("dense1", torch.relu(self.dense("dense0", x.flatten(1))))


class ResNet(_Network):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv("stem", x, 2))
        for n, stride in enumerate((1, 2, 2)):
            inner = torch.relu(self.conv(f"block{n}_first", x, stride))
            inner = self.conv(f"block{n}_second", inner, 1)
            x = torch.relu(self.conv(f"block{n}_skip", x, stride, 0) + inner)
        return self.dense("dense", x.mean(dim=(2, 3)))


def from_arrays(architecture: str, kept) -> nn.Module:
    """`kept` has `files` and items, as an opened npz."""
    weights = _weights(kept)
    if architecture == "small_cnn":
        # The project flattens (rows, columns, channels), torch (channels, rows, columns): the first dense layer's
        # columns are put in torch's order, so that neither side permutes anything.
        kernel, channels = weights["dense0/kernel"], weights["conv1/kernel"].shape[0]
        side = int((kernel.shape[1] // channels) ** 0.5)
        reordered = kernel.reshape(-1, side, side, channels).permute(0, 3, 1, 2)
        weights["dense0/kernel"] = reordered.reshape(kernel.shape).contiguous()
        return SmallCNN(weights).eval()
    return ResNet(weights).eval()


def load(path: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """(network, images NCHW, labels), after a check of the logits.

    Raises:
      ValueError: the logits differ from those saved by more than 1e-4.
    """
    kept = np.load(path)
    network = from_arrays(str(kept["architecture"]), kept)
    images = torch.from_numpy(np.ascontiguousarray(kept["images"].transpose(0, 3, 1, 2)))
    with torch.no_grad():
        worst = (network(images) - torch.from_numpy(kept["logits"])).abs().max().item()
    if not worst < 1e-4:
        raise ValueError(f"{path}: logits differ by {worst:.2g}; they must agree within 1e-4")
    return network, images, torch.from_numpy(kept["labels"].astype(np.int64))


if __name__ == "__main__":
    for path in sys.argv[1:]:
        load(path)
        print(f"{path}: logits agree")
