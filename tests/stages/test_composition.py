"""Configurations of stages: what a stage replaces comes without the run's own settings of it."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from noisyml.command.config import conf_dir, register_resolvers
from noisyml.stages.composition import chosen_options, compose_stage
from noisyml.stages.plan import StagePlan


@pytest.fixture
def composed():
    """Composes the training configuration with Hydra's own part."""

    def composed(overrides):
        return compose("train", list(overrides), return_hydra_config=True)

    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield composed
    GlobalHydra.instance().clear()


def test_a_part_that_lies_within_another_is_replaced_whole(composed):
    typed = ["experiment=insclr_glyphs", "method.bank.rows=50", "sampler.batch_size=8"]
    run = composed(typed)
    assert (run.method.bank.rows, run.method.selection) == (50, "fixed")
    plan = StagePlan(name="base", overrides=["bank=negatives", "method.selection=none"])
    stage = compose_stage(plan, composed, typed, chosen_options(run))
    bank = stage.config.method.bank
    assert bank._target_.endswith("NegativeBank")
    assert set(bank) == {
        "_target_",
        "_partial_",
        "rows",
        "excluded_neighbours",
        "exclude_batch",
    }
    assert bank.rows == 100_000
    assert stage.config.method.selection == "none"
    # The rest is the run's own.
    assert stage.config.sampler.batch_size == 8
    assert stage.config.method.graph.stored == 100
    assert stage.choices["bank"] == "negatives"


def test_a_part_of_several_names_is_replaced_under_all_of_them(composed):
    typed = ["method=classification", "dataset=digits", "evaluator=classification"]
    run = composed(typed)
    plan = StagePlan(name="first", overrides=["evaluator=retrieval"])
    stage = compose_stage(plan, composed, typed, chosen_options(run))
    assert list(stage.config.evaluators) == ["retrieval"]
