from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from noisyml.selectors.keep_all import KeepAll
from noisyml.selectors.prism import PrismAverage, PrismProxy, PrismVonMisesFisher

#: What the root configuration shares among selectors.
SHARED = {"selection": {"warmup_steps": 0}}
CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("keep_all", KeepAll),
        ("prism_avg", PrismAverage),
        ("prism_proxy", PrismProxy),
        ("prism_vmf", PrismVonMisesFisher),
    ],
)
def test_configs_build(name, kind):
    node = OmegaConf.load(CONF / "selector" / f"{name}.yaml")
    for noise, rate in (({"rate": 0.2}, 0.2), ({"path": "noise.parquet"}, 0.5)):
        root = OmegaConf.create({"selector": node, "noise": noise, **SHARED})
        selector = instantiate(root.selector)
        assert type(selector) is kind
        if kind is not KeepAll:
            assert selector.noise_rate == rate


def test_configs_state_the_defaults_of_the_code():
    """A config key and its default in the code must not drift apart."""
    for name, kind in (
        ("prism_avg", PrismAverage),
        ("prism_proxy", PrismProxy),
        ("prism_vmf", PrismVonMisesFisher),
    ):
        node = OmegaConf.load(CONF / "selector" / f"{name}.yaml")
        written, built = (
            instantiate(OmegaConf.create({"selector": node, **SHARED}).selector),
            kind(0.5),
        )
        for key, value in vars(built).items():
            if not key.startswith("_"):
                assert getattr(written, key) == value, key
        assert len(written.recent_cuts) == len(built.recent_cuts)
