"""A room imports only rooms on lower floors, and nobody imports TensorFlow's world before it is needed."""

import ast
from pathlib import Path

import jax_advtrain

PACKAGE = Path(jax_advtrain.__file__).parent
FLOORS = {
    "errors": -1,
    "attacks": 0,
    "models": 0,
    "data": 0,
    "devices": 0,
    "tasks": 1,
    "segmentation": 2,
    "margins": 1,
    "defenses": 2,
    "evaluation": 3,
    "training": 4,
    "reports": 4,
    "config": 5,
    "config_check": 6,
    "command_line": 6,
    "studies": 7,
    "main": 8,
    "compare": 9,
}
# Shipped beside the package inside the wheel; they are configs, not a room.
NO_ROOM = {"__init__", "configs"}
NETWORK_LIBRARIES = {"flax", "haiku", "equinox", "torch", "tensorflow", "keras"}
ONLY_INSIDE_FUNCTIONS = {"tensorflow", "tensorflow_datasets", "grain", "nibabel"}

FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(tree: ast.AST, path: Path, *, module_level: bool = False) -> set[str]:
    """Dotted names that a file imports, anywhere in it or only where importing the file runs it."""
    package = ("jax_advtrain", *path.relative_to(PACKAGE).parts[:-1])
    found: set[str] = set()
    waiting = list(ast.iter_child_nodes(tree))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            found.update(f"{source}.{alias.name}" for alias in node.names)
        if module_level and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        waiting += ast.iter_child_nodes(node)
    return found


def rooms_imported(path: Path) -> set[str]:
    names = imported(ast.parse(path.read_text()), path)
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "jax_advtrain" and len(part) > 1}


def test_every_file_belongs_to_a_room():
    assert {room(path) for path in FILES} - NO_ROOM == set(FLOORS)


def test_a_room_imports_lower_floors_only():
    higher = [
        f"{path.relative_to(PACKAGE)} (floor {FLOORS[room(path)]}) imports {other} (floor {FLOORS.get(other)})"
        for path in FILES
        if room(path) not in NO_ROOM
        for other in rooms_imported(path) - {room(path)}
        if FLOORS.get(other, 99) >= FLOORS[room(path)]
    ]
    assert not higher


def test_attacks_need_no_network_library():
    for path in (PACKAGE / "attacks").glob("*.py"):
        names = imported(ast.parse(path.read_text()), path)
        assert not {name.split(".")[0] for name in names} & NETWORK_LIBRARIES, path


def test_tensorflow_datasets_and_grain_are_imported_where_they_are_used():
    for path in FILES:
        names = imported(ast.parse(path.read_text()), path, module_level=True)
        assert not {name.split(".")[0] for name in names} & ONLY_INSIDE_FUNCTIONS, path


def test_the_reader_of_imports_sees_what_it_should():
    """The tests above prove nothing if this walker is blind."""
    source = """
import grain.python
from jax_advtrain.training import loop
from jax_advtrain import reports
try:
    import tensorflow
except ImportError:
    pass
class Lazy:
    import keras
    def use(self):
        from ..data import load
        import tensorflow_datasets
"""
    path = PACKAGE / "attacks" / "made_up.py"
    everywhere = imported(ast.parse(source), path)
    assert {name.split(".")[1] for name in everywhere if name.startswith("jax_advtrain")} == {
        "training",
        "reports",
        "data",
    }
    assert {"grain.python", "tensorflow", "keras", "tensorflow_datasets"} <= everywhere
    at_import = imported(ast.parse(source), path, module_level=True)
    assert "tensorflow" in at_import and "keras" in at_import
    assert "tensorflow_datasets" not in at_import and "jax_advtrain.data.load" not in at_import
