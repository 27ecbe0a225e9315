"""The state of an evaluation in a file: one that was interrupted goes on where it stood, and gives the same answer."""

import dataclasses
import functools
import hashlib
import json
import os
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_advtrain.data import Dataset
from jax_advtrain.evaluation.ledger import Ledger
from jax_advtrain.evaluation.results import write_atomically

SECONDS = 30.0  # between two writings
NUM_PROBED = 8  # samples on which the model must answer as it did
_VERSION = 1
# Another batch shape or device may round otherwise; another model is further away than this.
_TOLERANCE = 1e-3


class StateFile:
    """Where a `Ledger` is kept; the file says which evaluation it belongs to."""

    def __init__(self, path: str | os.PathLike, identity: Mapping[str, Any], probed: np.ndarray):
        """`identity` holds plain values; `probed` are the model's outputs on the first samples."""
        self.path = Path(path)
        self.identity, self.probed = json.loads(json.dumps({"version": _VERSION, **identity})), probed
        self.written = time.monotonic()

    def restore(self, ledger: Ledger) -> None:
        """Puts into the ledger what the file holds; nothing where there is no file.

        Raises:
          ValueError: the file is none of these, or belongs to another evaluation.
        """
        if not self.path.exists():
            return
        other = "give another state_file, or delete this one to begin anew"
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = dict(file)
            identity = json.loads(arrays.pop("identity").item())
            probed = arrays.pop("probed")
            complete = {"passed", "known", "work"} <= set(arrays) and isinstance(identity, dict)
        except (ValueError, KeyError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.path} is no state of an evaluation ({_one_line(error)}); {other}") from None
        if not complete or len(arrays["passed"]) != len(ledger.passed):
            raise ValueError(f"{self.path} is no state of this evaluation; {other}")
        differing = sorted(
            name for name in identity.keys() | self.identity.keys() if identity.get(name) != self.identity.get(name)
        )
        if not differing and not _alike(probed, self.probed):
            differing = ["the model's answers"]
        if differing:
            told = "; ".join(
                f"{name}: {_short(identity[name])} there, {_short(self.identity[name])} now"
                if name in identity and name in self.identity
                else name
                for name in differing
            )
            raise ValueError(f"{self.path} is the state of another evaluation ({told}); {other}")
        ledger.restore(arrays)

    def save(self, ledger: Ledger, *, now: bool) -> None:
        """Writes the ledger, whole or not at all: at once, or if it is some time since the last writing."""
        if jax.process_index() or not (now or time.monotonic() - self.written >= SECONDS):
            return
        arrays: dict[str, Any] = {
            "identity": np.array(json.dumps(self.identity)),
            "probed": self.probed,
            **ledger.arrays(),
        }
        write_atomically(self.path, lambda file: np.savez(file, **arrays))
        self.written = time.monotonic()


def identity_of(data: Dataset, attack: Any, logits_fn: Any, **settings: Any) -> dict[str, Any]:
    """What an evaluation's answer hangs on, as plain values: samples, attack, settings and the model's weights."""
    return {
        **settings,
        "data": {**data.fingerprint(), "images_sha256": _sha256(data.images)},
        "attack": describe(attack),
        "weights": _sha256(*(_plain_array(leaf) for leaf in jax.tree.leaves(logits_fn))),
    }


def describe(value: Any) -> str:
    """A text that tells one attack from another, the same in every process: no addresses, as `repr` has them."""
    return _describe(value, ())


def _describe(value: Any, above: tuple[int, ...]) -> str:
    if id(value) in above:
        return "..."
    above = (*above, id(value))

    def inner(item):
        return _describe(item, above)

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (f"{field.name}={inner(getattr(value, field.name))}" for field in dataclasses.fields(value))
        return f"{type(value).__name__}({', '.join(fields)})"
    if isinstance(value, (jax.Array, np.ndarray)):
        array = _plain_array(value)
        return repr(array.tolist()) if array.size <= 16 else f"sha256 {_sha256(array)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name!r}: {inner(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(inner(item) for item in value)})"
    if isinstance(value, np.generic):
        return inner(value.item())
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, functools.partial):  # jax.tree_util.Partial too
        return f"partial({inner(value.func)}, {inner(value.args)}, {inner(value.keywords)})"
    if not callable(value):
        return f"{type(value).__qualname__}"
    named = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    cells = getattr(value, "__closure__", None) or ()  # optax's optimizers keep their numbers in closures
    held = [inner(cell.cell_contents) for cell in cells if _is_filled(cell)]
    return f"{named}[{', '.join(held)}]" if held else named


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _plain_array(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _sha256(*arrays: np.ndarray) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _alike(there: np.ndarray, here: np.ndarray) -> bool:
    if there.shape != here.shape:
        return False
    scale = np.max(np.abs(here), where=np.isfinite(here), initial=0.0)
    return np.allclose(there, here, rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_line(error: Exception) -> str:
    return _short(f"{type(error).__name__}: {error}")
