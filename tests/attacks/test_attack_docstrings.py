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
    assert {name for name, count in tried.items() if count} == {"boundary", "compose", "losses", "pgd", "registry"}
