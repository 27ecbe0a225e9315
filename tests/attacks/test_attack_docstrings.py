"""The examples in the docstrings run and give what they say."""

import doctest
import importlib
import pkgutil

import jax_advtrain.attacks


def test_docstring_examples():
    tried = {}
    for module in pkgutil.iter_modules(jax_advtrain.attacks.__path__, "jax_advtrain.attacks."):
        failed, tried[module.name.rsplit(".", 1)[1]] = doctest.testmod(importlib.import_module(module.name))
        assert failed == 0, module.name
    # Of these a user reads the docstring first: each has an example.
    ascents = {"pgd", "mim", "apgd", "square", "autoattack"}
    nearest = {"boundary", "carlini_wagner", "deepfool", "fab", "fmn"}
    composed = {"at_radius", "compose", "eot", "rounded", "targeting", "temperature"}
    assert ascents | nearest | composed | {"losses", "registry"} <= {name for name, count in tried.items() if count}
