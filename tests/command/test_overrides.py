"""Changing a saved configuration with the words of a command."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig, OmegaConf

from noisyml.command.config import compose
from noisyml.command.overrides import apply_overrides
from noisyml.errors import UserError


@pytest.fixture
def config() -> DictConfig:
    return OmegaConf.create(OmegaConf.to_container(compose("train", ["name=x"]), resolve=False))


def test_values_are_read_as_hydra_reads_them(config: DictConfig) -> None:
    typed = [
        "seed=1e1",
        "++trainer.max_epochs=3",
        "model_choice=[last]",
        "name='a,b'",
        "+report=false",
    ]
    changed = apply_overrides(config, typed, groups=False)
    assert changed.seed == 10.0
    assert changed.trainer.max_epochs == 3
    assert changed.model_choice == ["last"]
    assert changed.name == "a,b"
    assert changed.report is False
    assert config.seed == 0, "the configuration itself stays"


def test_an_evaluator_takes_the_place_of_the_others_and_two_stand_side_by_side(
    config: DictConfig,
) -> None:
    assert list(config.evaluators) == ["retrieval"]
    one = apply_overrides(config, ["evaluator=classification"], groups=True)
    assert list(one.evaluators) == ["classification"]
    two = apply_overrides(config, ["evaluator=[retrieval,classification]"], groups=True)
    assert set(two.evaluators) == {"retrieval", "classification"}
    assert two.evaluators.retrieval == config.evaluators.retrieval


@pytest.mark.parametrize(
    ("typed", "groups", "sentence"),
    [
        ("dataset=digits", False, "A resumed run keeps its dataset: start a new run with dataset="),
        ("data={a:1}", True, "data is no choice of one part: change its settings, data.KEY=VALUE"),
        ("dataset=digit", True, "There is no dataset 'digit'. Did you mean 'digits'?"),
        ("trainer=ddp", True, "trainer=ddp is made of several parts"),
        ("recipe=cdr", True, "is made of several parts"),
        ("sed=1", True, "There is no setting 'sed' in this run. Did you mean 'seed'?"),
        ("seed=many", True, "seed=many should be a number or a switch; it was 0."),
        ("report=perhaps", True, "report=perhaps should be a number or a switch; it was true."),
        ("seed=1,2", True, "seed=1,2 gives several values where one is wanted."),
        ("~seed", True, "'~seed' is no setting: write key=value."),
        ("seed", True, "'seed' is no setting: write key=value."),
        ("seed=[1", True, "The override 'seed=[1' cannot be read."),
    ],
)
def test_mistakes_are_one_sentence(
    config: DictConfig, typed: str, groups: bool, sentence: str
) -> None:
    with pytest.raises(UserError) as raised:
        apply_overrides(config, [typed], groups=groups)
    assert sentence in str(raised.value)
