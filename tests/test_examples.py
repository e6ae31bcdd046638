"""The examples in docstrings of the library part do what they say."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import noisyml

LIBRARY = ("similarity", "losses", "noise", "metrics", "selectors", "targets", "checks")


def modules():
    for part in LIBRARY:
        package = importlib.import_module(f"noisyml.{part}")
        yield package.__name__
        for found in pkgutil.walk_packages(getattr(package, "__path__", []), f"{package.__name__}."):
            if not found.name.endswith("._kernels"):
                yield found.name


@pytest.mark.parametrize("name", sorted(modules()))
def test_the_examples_of_a_module_hold(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("part", LIBRARY[:5])
def test_public_functions_show_an_example(part):
    """Every function that the package's users import by name."""
    bare = []
    for name in modules():
        if not name.startswith(f"noisyml.{part}"):
            continue
        module = importlib.import_module(name)
        for word, function in vars(module).items():
            own = inspect.isfunction(function) and function.__module__ == name
            if own and not word.startswith("_") and ">>>" not in (function.__doc__ or ""):
                bare.append(f"{name}.{word}")
    assert bare == []
