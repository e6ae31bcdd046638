"""Commands as a user types them."""

import shutil
import sys

import pytest
from support.shell import TINY, shell

from noisyml import cli

__all__ = ["shell"]


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    """The folder of a run that several tests need; see `trained`."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NOISYML_CACHE", str(folder / "cache"))
        typed = ["train", *TINY, "selector=prism_avg", "hydra.run.dir=run"]
        patch.setattr(sys, "argv", ["noisyml", *typed])
        assert cli.main() == 0
    return folder / "run"


@pytest.fixture
def trained(shell, trained_once):
    """A run of a few epochs on digits, in the folder of the test, which may change it."""
    return shutil.copytree(trained_once, shell.folder / "outputs" / "train" / "run")
