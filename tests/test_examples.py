"""The examples in docstrings of the library part do what they say."""

import doctest
import importlib
import pkgutil

import pytest

import noisyml

LIBRARY = ("similarity", "losses", "noise", "metrics", "selectors", "targets", "checks")


def modules():
    for part in LIBRARY:
        package = importlib.import_module(f"noisyml.{part}")
        yield package.__name__
        for found in pkgutil.walk_packages(
            getattr(package, "__path__", []), f"{package.__name__}."
        ):
            if not found.name.endswith("._kernels"):
                yield found.name


@pytest.mark.parametrize("name", sorted(modules()))
def test_the_examples_of_a_module_hold(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


#: What needs run folders is shown in the README.
BARE = {"__version__", "compare", "load_runs", "train"}


@pytest.mark.parametrize("word", sorted(set(noisyml.__all__) - BARE))
def test_what_the_package_offers_shows_an_example(word):
    assert ">>>" in (getattr(noisyml, word).__doc__ or "")
