"""The names that `import noisyml` offers, none of which is loaded before it is asked for."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import noisyml
from noisyml import noise


@pytest.mark.parametrize("name", [name for name in noisyml.__all__ if name != "__version__"])
def test_every_name_is_the_one_of_its_module(name: str) -> None:
    home = importlib.import_module(noisyml._MODULES[name])
    assert getattr(noisyml, name) is getattr(home, name)
    assert name in dir(noisyml)


def test_every_injector_is_offered() -> None:
    classes = (getattr(noise, name) for name in noise.__all__)
    injectors = {
        kind.__name__
        for kind in classes
        if isinstance(kind, type)
        and issubclass(kind, noise.Injector)
        and kind is not noise.Injector
    }
    assert injectors == set(noisyml._NAMES["noisyml.noise"])


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'top_k'"):
        noisyml.top_k  # noqa: B018


@pytest.mark.long
def test_the_import_alone_loads_nothing_heavy() -> None:
    code = (
        "import sys, noisyml\n"
        "heavy = {'torch', 'numpy', 'pandas', 'pydantic', 'lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'topk' in dir(noisyml)\n"
        "assert not heavy & set(sys.modules)\n"
        "from noisyml import kmeans\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
