import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from support import paths

from noisyml.audit.scores.selectors import (
    Audit,
    ClassDensity,
    ConfidentLearning,
    SimiFeat,
    WeightedNeighbours,
)
from noisyml.selectors.bare import Bare
from noisyml.selectors.curriculum import Curriculum
from noisyml.selectors.keep_all import KeepAll
from noisyml.selectors.neighbour_vote import NeighbourVote
from noisyml.selectors.prism import PrismAverage, PrismProxy, PrismVonMisesFisher
from noisyml.selectors.watching import Learnt, LossMixture, MarginArea

#: What the root configuration shares among selectors.
SHARED = {"selection": {"warmup_steps": 0, "warmup_share": 0.0}}
CONF = paths.CONF


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("audit", Audit),
        ("bare", Bare),
        ("class_density", ClassDensity),
        ("confident_learning", ConfidentLearning),
        ("curriculum", Curriculum),
        ("aum", MarginArea),
        ("keep_all", KeepAll),
        ("knn_vote", NeighbourVote),
        ("learnt", Learnt),
        ("loss_mixture", LossMixture),
        ("prism_avg", PrismAverage),
        ("prism_proxy", PrismProxy),
        ("prism_vmf", PrismVonMisesFisher),
        ("simifeat", SimiFeat),
        ("wann", WeightedNeighbours),
    ],
)
def test_configs_build(name, kind):
    node = OmegaConf.load(CONF / "selector" / f"{name}.yaml")
    for noise, rate in (({"rate": 0.2}, 0.2), ({"path": "noise.parquet"}, 0.5)):
        root = OmegaConf.create({"selector": node, "noise": noise, **SHARED})
        selector = instantiate(root.selector)
        assert type(selector) is kind
        if hasattr(selector, "noise_rate"):
            assert selector.noise_rate == rate


def test_configs_state_the_defaults_of_the_code():
    """A config key and its default in the code must not drift apart."""
    for name, built in (
        ("audit", Audit()),
        ("bare", Bare()),
        ("class_density", ClassDensity()),
        ("confident_learning", ConfidentLearning()),
        ("curriculum", Curriculum(0.5)),
        ("aum", MarginArea()),
        ("knn_vote", NeighbourVote()),
        ("learnt", Learnt()),
        ("loss_mixture", LossMixture()),
        ("prism_avg", PrismAverage(0.5)),
        ("prism_proxy", PrismProxy(0.5)),
        ("prism_vmf", PrismVonMisesFisher(0.5)),
        ("simifeat", SimiFeat()),
        ("wann", WeightedNeighbours()),
    ):
        node = OmegaConf.load(CONF / "selector" / f"{name}.yaml")
        written = instantiate(OmegaConf.create({"selector": node, **SHARED}).selector)
        for key, value in vars(built).items():
            if not key.startswith("_"):
                assert getattr(written, key) == value, key
        if hasattr(built, "recent_cuts"):
            assert len(written.recent_cuts) == len(built.recent_cuts)
