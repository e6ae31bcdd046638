"""Commands of the documentation compose: every option and key in them exists and goes together."""

import argparse
import re
import runpy
import sys
from unittest import mock

import pytest
import support.composing  # noqa: F401
from omegaconf import DictConfig, OmegaConf
from support import paths
from support.snippets import command_lines, snippets, spans, written

from noisyml import cli
from noisyml.apps import embed, evaluate, reproduce
from noisyml.apps.list import KNOWN
from noisyml.assembly.compatibility import check_parts
from noisyml.assembly.nodes import ask
from noisyml.command.config import compose, options
from noisyml.command.words import Word, as_typed, overrides_in, split_line, words_in
from noisyml.reproduce.claims import choose_claims, load_claims
from noisyml.reproduce.figures import find_table

pytestmark = pytest.mark.command

#: Pages of the snippets that nobody can check, one each; the reason stands above the snippet.
UNCHECKED = ["docs/running.md"]
#: Extras of pip that the documentation names.
EXTRAS = re.compile(r"^(?:noisyml|\.)\[([\w,-]+)\]$")


def of_page(file):
    page = str(file.relative_to(paths.ROOT))
    text = file.read_text(encoding="utf-8")
    return [*snippets(text, page), *spans(text, page)]


SNIPPETS = [snippet for file in written() for snippet in of_page(file)]


def cases():
    """Each command once, with where it stands and the training run that it may be about."""
    found, base = {}, ()
    for snippet in SNIPPETS:
        if snippet.unchecked or snippet.language == "python":
            continue
        last = {"train": []}
        for words in command_lines(snippet):
            for name in ("noisyml",) if words[0] in ("torchrun", "srun") else ():
                words = words[words.index(name) :]
            if "..." in words:  # as before
                place = words.index("...")
                words = [*words[:place], *last[words[1]], *words[place + 1 :]]
            last[words[1] if len(words) > 1 else ""] = words[2:]
            if words[:2] == ["noisyml", "train"]:
                base = tuple(words[2:])
            found.setdefault(tuple(words), (snippet.place, base))
    return found


def first_of_each_kind(found):
    """One of those commands that differ in values alone, and not in keys or options."""
    kinds = {}
    for words, about in found.items():
        if words[:1] == ("noisyml",):
            parsed = words_in(words)
            kind = tuple(word.text if word.chooses else word.target for word in parsed)
            kinds.setdefault((kind, about[1]), words)
        else:
            kinds[words] = words
    return {words: found[words] for words in kinds.values()}


CASES = first_of_each_kind(cases())


def test_there_are_many():
    assert len(CASES) > 150


def test_what_is_not_checked_says_so_and_is_counted():
    found = [snippet for snippet in SNIPPETS if snippet.unchecked]
    assert [snippet.page for snippet in found] == UNCHECKED


@pytest.mark.parametrize(
    "words", CASES, ids=[f"{place}-{number}" for number, (place, _) in enumerate(CASES.values())]
)
def test_a_command_holds_together(words, monkeypatch):
    monkeypatch.chdir(paths.ROOT)
    program, *rest = words
    CHECKS[program](rest, CASES[words][1])


# -- programs ----------------------------------------------------------------------------------


def check_noisyml(words, base):
    verb, *rest = [word for word in words if word != "VERB"] or ["train"]
    if verb.startswith("-"):
        assert verb in ("-sc", "--help", "--version")
        return
    assert verb in KNOWN_VERBS
    VERBS.get(verb, check_parsed)(verb, rest, base)


def check_make(words, _):
    targets = re.findall(r"^([a-z-]+):", (paths.ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert words[0] in targets


def check_python(words, _):
    if words[0] == "-m":
        return check_pytest(words[2:], _) if words[1] == "pytest" else None
    assert (paths.ROOT / words[0]).is_file()
    return parsed_alone(words, lambda: runpy.run_path(words[0], run_name="__main__"))


def check_pytest(words, _):
    files = [word for word in words if word.endswith(".py")]
    assert files
    assert all((paths.ROOT / file).is_file() for file in files)


def check_pip(words, _):
    import tomllib

    known = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
    for word in words:
        for extra in (EXTRAS.match(word) or ["", ""])[1].split(","):
            assert not extra or extra in known["optional-dependencies"]


CHECKS = {
    "noisyml": check_noisyml,
    "make": check_make,
    "python": check_python,
    "pytest": check_pytest,
    "pip": check_pip,
    "uv": check_pip,
}


KNOWN_VERBS = cli.verbs()


class Parsed(Exception):
    """The words were understood; nothing need be done."""


def parsed_alone(words, work):
    """Let a program read its words and do nothing."""

    def then_stop(parse):
        def parse_and_stop(self, arguments=None, namespace=None):
            parse(self, arguments, namespace)
            raise Parsed

        return parse_and_stop

    parser = argparse.ArgumentParser
    with (
        mock.patch.object(parser, "parse_args", then_stop(parser.parse_args)),
        mock.patch.object(parser, "parse_intermixed_args", then_stop(parser.parse_intermixed_args)),
        mock.patch.object(sys, "argv", [*words]),
        mock.patch.object(sys, "path", [str(paths.ROOT / "scripts"), *sys.path]),
        pytest.raises(Parsed),
    ):
        work()


# -- verbs -------------------------------------------------------------------------------------


def check_parsed(verb, words, _):
    """A verb with options of its own."""
    import importlib

    module = importlib.import_module(cli.module_name(verb))
    parsed_alone(words, lambda: module.main(words))


def check_list(verb, words, base):
    check_parsed(verb, words, base)
    assert {word for word in words if word[0] != "-"} <= set(KNOWN)


def check_reproduce(_, words, base):
    typed = reproduce._typed(words)
    if typed.names[0] == "claims":
        choose_claims(load_claims(), typed.names[1:])
    else:
        for name in typed.names:
            find_table(name)


def check_train(_, words, base):
    config = composed("train", words)
    if any(word.key in ("resume", "init_from") for word in words_in(overrides_in(words))):
        return
    check_run(config)


def check_run(config):
    """Parts go together, and settings are what their constructors take."""
    config.run_dir = "RUN_DIR"
    config.name = "name"
    for node in nodes(config):
        ask(lambda settings: None, node)
    if config.get("stages") is None:
        check_parts(config)


def nodes(config):
    """Every part that says all it needs; what is missing is the user's."""
    for key, node in config.items():
        if key == "memory":  # its size is that of the data
            continue
        if isinstance(node, DictConfig) and "_target_" in node and not OmegaConf.missing_keys(node):
            yield node


def check_data(_, words, base):
    assert words[0] in ("check", "show")
    composed("data", words[1:])


def check_clean(_, words, base):
    if words[:1] == ["apply"]:
        assert {word.partition("=")[0] for word in words[1:]} <= {"decisions", "run", "out"}
    else:
        composed("clean", words)


def check_of_a_run(verb, words, base):
    """Own settings, and settings of the run, which stands before it on the page."""
    own = {"evaluate": evaluate, "embed": embed}[verb].OWN
    mine = [w for w in words if Word.parse(w).is_below(*own, "hydra")]
    composed(verb, mine)
    others = [w for w in words if w not in mine]
    if "checkpoint" in {Word.parse(w).key for w in words} and others:
        check_run(composed("train", [*base, *others]))
    else:
        composed(verb, words)


VERBS = {
    "train": check_train,
    "evaluate": check_of_a_run,
    "embed": check_of_a_run,
    "data": check_data,
    "clean": check_clean,
    "knn": lambda verb, words, base: composed("knn", words),
    "list": check_list,
    "reproduce": check_reproduce,
}


def composed(root, words):
    """The configuration of a command, of a sweep that of its first job; its other values exist."""
    overrides = []
    for word in words_in(split_line(as_typed(words))[1]):
        swept = word.swept and "-m" in words
        # Of an interval to search in, its lower end.
        values = word.values() or re.findall(r"\d[\d.e+-]*", word.value) if swept else [word.value]
        first, *others = values
        overrides.append(word.text if first == word.value else f"{word.target}={first}")
        if word.chooses:
            known = {option.name for option in options(word.key)}
            named = {name for value in others for name in value.strip("[]").split(",")}
            assert named <= known
    return compose(root, overrides)
