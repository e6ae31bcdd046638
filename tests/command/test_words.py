"""Words of the command line mean here what they mean to Hydra."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType

from noisyml.command.config import compose
from noisyml.command.words import Word, choices_in, last_given, spelled_out, words_in
from noisyml.errors import UserError

PREFIX = {
    OverrideType.CHANGE: "",
    OverrideType.ADD: "+",
    OverrideType.FORCE_ADD: "++",
    OverrideType.DEL: "~",
}


@pytest.mark.parametrize(
    "text",
    [
        "seed=1",
        "+callbacks.kill.step=3",
        "++selector.noise_rate=0.3",
        "~selector.noise_rate",
        "~noise=symmetric",
        "dataset@data.open_set_source=digits",
        "hydra/launcher=joblib",
        "name='a,b=c'",
        "name=",
        "seed=0,1,2",
        "noise.rate=choice(0.1,0.3)",
        "seed=range(3)",
        "sampler.batch_size=interval(1,3)",
        "dataset={path:x}",
        "splits=[train,test]",
        "name=${choice:method}",
        "paths.output=/some where/else",
    ],
)
def test_the_parts_are_those_that_hydra_sees(text: str) -> None:
    word, theirs = Word.parse(text), OverridesParser.create().parse_override(text)
    assert word.text == text
    assert word.prefix == PREFIX[theirs.type]
    assert word.key == theirs.key_or_group
    assert word.package == theirs.package
    assert (word.value is None) == (theirs.value_type is None)
    assert word.swept == theirs.is_sweep_override()
    if theirs.is_discrete_sweep():
        assert word.values() == list(theirs.sweep_string_iterator())
    elif not theirs.is_sweep_override() and not word.deletes:
        assert word.typed_value() == theirs.value()


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("resume=outputs/two=three", "resume", "outputs/two=three"),
        ("name=école", "name", "école"),
        ("noise.rate=[0.3", "noise.rate", "[0.3"),
        ("++name=ünï", "name", "ünï"),
        ("--config-dir=x", "--config-dir", "x"),
        ("no_value", "no_value", None),
        ("", "", None),
    ],
)
def test_a_word_that_hydra_cannot_read_still_has_a_key(
    text: str, key: str, value: str | None
) -> None:
    word = Word.parse(text)
    assert (word.key, word.value, word.swept) == (key, value, False)
    assert word.values() == ([] if value is None else [value])
    with pytest.raises(UserError, match="cannot be read"):
        word.typed_value()


def test_one_value_is_wanted_where_a_sweep_is_typed() -> None:
    with pytest.raises(UserError, match=r"seed=0,1 gives several values"):
        Word.parse("seed=0,1").typed_value()


def test_a_word_lies_below_parts_of_the_tree_by_whole_names() -> None:
    assert Word.parse("++selector.noise_rate=0.3").is_below("loss", "selector")
    assert Word.parse("selector=prism_avg").is_below("selector")
    assert Word.parse("hydra/launcher=ray").is_below("hydra")
    assert not Word.parse("names=x").is_below("name")
    assert not Word.parse("name=x").is_below("name.first")


def test_groups_are_told_from_settings() -> None:
    chooses = {
        word.key: word.chooses for word in words_in(["noise=none", "noise.rate=1", "seed=2"])
    }
    assert chooses == {"noise": True, "noise.rate": False, "seed": False}


@pytest.mark.parametrize("value", ["", "null"])
def test_the_last_of_several_counts_and_null_takes_it_back(value: str) -> None:
    words = words_in(["resume=a", "+resume=b", "seed=3"])
    assert last_given(words, "resume") == "b"
    assert last_given([*words, Word.parse(f"resume={value}")], "resume") is None
    assert last_given(words, "checkpoint") is None


def test_choices_are_the_words_that_name_an_existing_option() -> None:
    typed = ["noise=symmetric,none", "dataset=digit", "evaluator=[retrieval,classification]"]
    typed += ["seed=1", "~noise=none", "loss=[contrastive,nothing]"]
    assert choices_in(words_in(typed)) == [
        "noise=symmetric",
        "evaluator=[retrieval,classification]",
    ]


def test_a_list_of_noises_becomes_steps_of_one():
    typed = ["noise=[pair,symmetric,symmetric]", "noise.steps.symmetric_2.seed=1", "seed=0,1"]
    spelled = spelled_out(typed)
    config = compose("train", [word for word in spelled if word != "seed=0,1"])
    assert list(config.noise.steps) == ["pair", "symmetric", "symmetric_2"]
    assert config.noise.steps.symmetric_2.seed == 1
    assert spelled[-2:] == typed[1:]
    assert spelled_out(spelled) == spelled
    assert spelled_out(["noise=pair,symmetric"]) == ["noise=pair,symmetric"]
    with pytest.raises(UserError, match="sweeps over lists"):
        spelled_out(["noise=[pair,symmetric],none"])
