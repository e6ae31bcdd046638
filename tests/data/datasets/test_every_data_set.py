"""Promises that every data set keeps."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from support import paths

from noisyml.data import datasets
from noisyml.data.datasets.real_noise.cars98n import Cars98N
from noisyml.data.datasets.real_noise.food101n import Food101N
from noisyml.data.datasets.retrieval.cars196 import Cars196
from noisyml.data.datasets.retrieval.cub200 import CUB200
from noisyml.data.datasets.retrieval.inshop import InShop
from noisyml.data.datasets.retrieval.sop import StanfordOnlineProducts
from noisyml.data.datasets.retrieval.vehicle_id import VehicleID
from noisyml.data.datasets.small_images import fashion_mnist
from noisyml.data.datasets.small_images.fashion_mnist import FashionMNIST
from noisyml.errors import UserError

CONF = paths.CONF / "dataset"
FILES = (
    CUB200, Cars196, StanfordOnlineProducts, InShop, VehicleID, Cars98N, Food101N, FashionMNIST,
)  # fmt: skip


@pytest.mark.parametrize("family", [CUB200, Cars196, StanfordOnlineProducts])
def test_published_sums_are_md5_sums(family):
    assert family.archive_md5
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in family.archive_md5.values())


@pytest.mark.parametrize("name", ["cub200", "cars196", "sop", "inshop"])
def test_configurations_name_the_arguments(name, tmp_path):
    node = OmegaConf.load(CONF / f"{name}.yaml")
    source = instantiate(node, root=str(tmp_path))
    assert source.split == "official"
    assert source.missing() is not None


@pytest.mark.parametrize("family", FILES)
def test_missing_data_sets_say_how_to_get_them(family, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "none")
    source = family(str(tmp_path / "nowhere"))
    assert source.missing() is not None
    with pytest.raises(UserError) as caught:
        source.splits()
    message = str(caught.value)
    assert source.missing() in message
    assert source.how_to_get in message
    assert "fetch" in message
    assert "set dataset.root" in message
    assert any(word in message for word in ("GB", "MB", "images"))


def test_importing_data_sets_is_light():
    folder = Path(datasets.__file__).parent
    modules = [".".join(p.relative_to(folder).with_suffix("").parts) for p in folder.rglob("*.py")]
    assert len(modules) > 11
    heavy = {"torch", "pandas", "scipy", "sklearn", "matplotlib", "pyarrow"}
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(f'noisyml.data.datasets.{name}')\n"
        f"loaded = {heavy!r} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
