"""A network of the user's own, named by its dotted path."""

import sys

import jax.numpy as jnp
import pytest

from jax_advtrain import models

MODULE = """
import jax.numpy as jnp
from flax import nnx

class Linear(nnx.Module):
    def __init__(self, image_shape, num_classes, scale=1.0, *, bias: bool = True, rngs: nnx.Rngs):
        size = 1
        for length in image_shape:
            size *= length
        self.dense = nnx.Linear(size, num_classes, use_bias=bias, rngs=rngs)
        self.scale = scale

    def __call__(self, images, *, train=False, mask=None, groups=1):
        return self.scale * self.dense(images.reshape(images.shape[0], -1))

class AnyFields(Linear):
    def __init__(self, image_shape, num_classes, *, rngs, needed, **others):
        super().__init__(image_shape, num_classes, scale=others.get("scale", 1.0), rngs=rngs)

class Dropping(Linear):
    def __init__(self, image_shape, num_classes, *, rngs):
        super().__init__(image_shape, num_classes, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

class WrongConstructor(nnx.Module):
    def __init__(self, num_classes, *, rngs):
        pass

class WrongCall(Linear):
    def __call__(self, images):
        return images

class NoModule:
    pass

class Wrapping(Linear):
    def __init__(self, image_shape, num_classes, *, rngs, wrap=jnp.tanh, scale=2.0):
        super().__init__(image_shape, num_classes, scale=scale, rngs=rngs)

def function():
    pass
"""


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    folder = tmp_path / "own_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "networks.py").write_text(MODULE)
    (folder / "broken.py").write_text("raise RuntimeError('two\\nlines')")
    (folder / "lacking.py").write_text("import a_package_that_is_not_here")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "own_package"]:
        del sys.modules[name]


def test_a_class_by_its_path():
    name = "own_package.networks.Linear"
    assert models.field_names(name) == ("scale", "bias")
    x = jnp.ones((5, 4, 4, 1))
    one, two = (models.create({"name": name, "bias": False, "scale": scale}, 3, (4, 4, 1), 0) for scale in (1.0, 2.0))
    assert set(one.params["dense"]) == {"kernel"} and one.params["dense"]["kernel"].shape == (16, 3)
    assert jnp.allclose(2 * models.logits_fn(*one)(x), models.logits_fn(*two)(x))


def test_a_class_of_any_fields():
    config = {"name": "own_package.networks.AnyFields", "needed": 1, "scale": 2.0, "unheard_of": 3}
    models.check(config)
    assert models.create(config, 3, (4, 4, 1), 0).batch_stats == {}


def test_fields_written_out():
    """Defaults that JSON cannot hold stay with the class."""
    assert models.plain_fields({"name": "own_package.networks.Wrapping"}) == {
        "name": "own_package.networks.Wrapping",
        "scale": 2.0,
    }
    with pytest.raises(ValueError, match="the model config holds what JSON cannot"):
        models.plain_fields({"name": "own_package.networks.Wrapping", "wrap": jnp.tanh})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"name": "elsewhere.networks.Linear"}, ["there is no module 'elsewhere'", "PYTHONPATH"]),
        ({"name": "own_package.network.Linear"}, ["there is no module 'own_package.network'"]),
        ({"name": "own_package.networks.Linaer"}, ["own_package.networks has no Linaer"]),
        ({"name": "own_package.networks.function"}, ["function is no subclass of flax.nnx.Module"]),
        ({"name": "own_package.networks.NoModule"}, ["NoModule is no subclass of flax.nnx.Module"]),
        ({"name": "own_package.networks.WrongConstructor"}, ["too many positional", "(image_shape, num_classes, *"]),
        ({"name": "own_package.networks.WrongCall"}, ["'train'", "(images, *, train, mask, groups)"]),
        ({"name": "own_package.networks.Dropping"}, ["nnx.Param and nnx.BatchStat only"]),
        ({"name": "own_package.broken.Linear"}, ["cannot be imported: RuntimeError: two lines"]),
        ({"name": "own_package.lacking.Linear"}, ["cannot be imported: ModuleNotFoundError", "a_package_that"]),
        ({"name": "own_package.networks.Linear", "bais": True}, ["field 'bais'", "did you mean 'bias'"]),
        ({"name": "own_package.networks.Linear", "rngs": 1}, ["field 'rngs'"]),
        ({"name": "own_package.networks.AnyFields"}, ["field 'needed' has no default"]),
        ({"name": "own_package.networks.AnyFields", "needed": 1, "num_classes": 3}, ["field 'num_classes'"]),
        ({"name": ".Linear"}, ["'.Linear'"]),
        ({"name": "own_package."}, ["'own_package.'"]),
        ({"name": "..a.b"}, ["'..a.b'"]),
        ({"name": ["resnet"]}, ["['resnet']", "is not known", "module.Class"]),
    ],
    ids=str,
)
def test_bad_paths_are_one_clear_line(config, said):
    with pytest.raises(ValueError) as error:
        models.create(config, 3, (4, 4, 1), 0)
    message = str(error.value)
    assert "\n" not in message
    for part in said:
        assert part in message
