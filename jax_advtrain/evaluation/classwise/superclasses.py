"""Which classes belong together: by class name for the sets that have super-classes, or by a file of the user's."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jax_advtrain.attacks.registry import unknown_name

# CIFAR-10 and STL-10 (Tian et al. 2021 speak of animals and vehicles).
_NATURAL = {
    "animals": ("bird", "cat", "deer", "dog", "frog", "horse", "monkey"),
    "vehicles": ("airplane", "automobile", "car", "ship", "truck"),
}
# Krizhevsky, Learning multiple layers of features from tiny images, 2009.
_CIFAR100 = {
    "aquatic mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit and vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "man-made outdoors": ("bridge", "castle", "house", "road", "skyscraper"),
    "natural scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles 1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles 2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}


class Superclasses(NamedTuple):
    """Names of the super-classes, and the number of the super-class of each class."""

    names: tuple[str, ...]
    groups: tuple[int, ...]


def known(class_names: Sequence[str]) -> Superclasses | None:
    """The super-classes of CIFAR-10, STL-10 or CIFAR-100, told by the names of the classes; None for others, and where
    all classes are of one."""
    for table in (_NATURAL, _CIFAR100):
        if set(class_names) <= {name for members in table.values() for name in members}:
            found = _group(class_names, table)
            return found if len(found.names) > 1 else None
    return None


def read(path: str | os.PathLike, class_names: Sequence[str]) -> Superclasses:
    """From a JSON file {"super-class": ["class", ...], ...} that names every class once.

    Raises:
      ValueError: no such file, another content, an unknown class (the nearest is named), one twice or not at all.
    """
    try:
        table = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no JSON: {error}"
        raise ValueError(f"analysis.superclasses={str(path)!r} cannot be read ({reason})") from None
    where = f"analysis.superclasses={str(path)!r}"
    if not (
        isinstance(table, dict)
        and table
        and all(
            isinstance(members, list) and all(isinstance(one, str) for one in members) for members in table.values()
        )
    ):
        raise ValueError(f'{where} must hold {{"super-class": ["class", ...], ...}}')
    named = [name for members in table.values() for name in members]
    for name in named:
        if name not in class_names:
            raise ValueError(f"{where}: {unknown_name('class', name, list(class_names)[:20])}")
    twice = sorted({name for name in named if named.count(name) > 1})
    missing = [name for name in class_names if name not in named]
    if twice or missing:
        what = f"{', '.join(twice[:5])} twice" if twice else f"no super-class for {', '.join(missing[:5])}"
        raise ValueError(f"{where} has {what}; name every class once")
    return _group(class_names, table)


def _group(class_names: Sequence[str], table: Mapping[str, Sequence[str]]) -> Superclasses:
    of = {name: group for group, members in table.items() for name in members}
    names = tuple(group for group in table if any(of[name] == group for name in class_names))
    return Superclasses(names, tuple(names.index(of[name]) for name in class_names))
