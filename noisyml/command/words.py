"""Words of a command line: ``key=value`` taken apart, in one place for the whole project.

A key ends at the first ``=``, whatever follows; values are read by Hydra's own grammar, so that
``seed=0,1``, ``seed=range(3)`` and ``name='a,b'`` mean here what they mean to Hydra. Paths and
names need no quotes: `as_hydra_reads` adds them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisyml.command.config import conf_dir, group_names
from noisyml.errors import UserError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

#: ``+`` adds a setting, ``++`` sets or adds it, ``~`` deletes it.
PREFIXES = ("++", "+", "~")
#: Last parts of the keys whose values are paths or names, and stay as they are typed.
TEXT_KEYS = frozenset(
    {
        *("path", "root", "dir", "folder", "file", "output", "cache", "cache_dir", "save_dir"),
        *("run", "run_dir", "resume", "init_from", "previous_run", "checkpoint"),
        *("embeddings", "gallery", "split", "gallery_split", "lists", "cleaned", "clean_list"),
        *("decisions", "against"),
        *("path_column", "label_column", "labels_column", "split_column"),
        *("name", "project", "entity", "weights"),
    }
)
#: Keys of that kind whose last part also stands for others.
_TEXT_PLACES = frozenset({"paths.data"})
#: Groups whose options compose, and where their steps lie: see `spelled_out`.
COMPOSED = {"noise": "noise.steps"}
_WORD = re.compile(
    r"\s*(?P<prefix>\+\+|\+|~|)(?P<key>[^=@]*)(?:@(?P<package>[^=]*))?(?P<rest>=.*)?", re.DOTALL
)


@dataclass(frozen=True)
class Word:
    """An override: a setting with its value, or the option of a group.

    Attributes:
        text: as it was typed.
        prefix: one of `PREFIXES`, or nothing.
        key: dotted name of a setting, or name of a group (``hydra/launcher``).
        package: where the group's option goes (``group@package=option``), None where not said.
        value: what stands after ``=``; None where nothing does (``~key``).
    """

    text: str
    prefix: str
    key: str
    package: str | None
    value: str | None

    @classmethod
    def parse(cls, text: str) -> Word:
        """The parts of a word; a word without ``=`` has no value."""
        match = _WORD.fullmatch(text)
        assert match is not None  # every text matches
        rest = match["rest"]
        return cls(
            text=text,
            prefix=match["prefix"],
            key=match["key"].strip(),
            package=match["package"],
            value=None if rest is None else rest[1:],
        )

    @property
    def target(self) -> str:
        """The text before ``=``, as typed: prefix, key and package."""
        package = "" if self.package is None else f"@{self.package}"
        return f"{self.prefix}{self.key}{package}"

    @property
    def deletes(self) -> bool:
        """True for ``~key``, whatever its value."""
        return self.prefix == "~"

    @property
    def chooses(self) -> bool:
        """True if the key is a group of the configuration tree."""
        return self.key in group_names()

    @property
    def is_text(self) -> bool:
        """True if its value is a path or a name."""
        return self.key in _TEXT_PLACES or self.key.rpartition(".")[2] in TEXT_KEYS

    @property
    def plain(self) -> str | None:
        """The value without the quotes and backslashes of Hydra's grammar; None where there is
        none.
        """
        parsed = None if self.value is None else self._parsed()
        if parsed is None or parsed.is_sweep_override():
            return self.value
        value = parsed.value()
        return str(value) if isinstance(value, str) else self.value

    @property
    def is_given(self) -> bool:
        """True if the value is something: not missing, not empty, not ``null``."""
        return self.value not in (None, "", "null")

    @property
    def swept(self) -> bool:
        """True if a sweep runs several values of it; False for a word that Hydra cannot read."""
        parsed = self._parsed()
        return parsed is not None and parsed.is_sweep_override()

    def is_below(self, *parts: str) -> bool:
        """True if the word sets one of `parts` (dotted keys or groups), or something inside it."""
        return any(
            self.key == part or self.key.startswith((f"{part}.", f"{part}/")) for part in parts
        )

    def values(self) -> list[str]:
        """The texts of all values that a sweep runs; of other words the one value, if any.

        Those of ``interval(0,1)`` cannot be listed, nor, outside Hydra, those of ``glob(*)``: there
        are none then.
        """
        from hydra.core.global_hydra import GlobalHydra
        from hydra.errors import HydraException

        loader = None
        if GlobalHydra.instance().is_initialized():
            loader = GlobalHydra.instance().config_loader()
        parsed = self._parsed(loader)
        if parsed is None or not parsed.is_sweep_override():
            return [] if self.value is None else [self.value]
        try:
            return list(parsed.sweep_string_iterator())
        except HydraException:
            return []

    def sweep(self) -> Any:
        """Hydra's object for the values of a sweep, of a word for which `swept` is true."""
        parsed = self._parsed()
        assert parsed is not None
        return parsed.value()

    def typed_value(self) -> Any:
        """The value as a number, switch, null, list, mapping or text.

        Raises:
            UserError: it cannot be read, or a sweep's several values where one is wanted.
        """
        parsed = self._parsed()
        if parsed is None:
            raise UserError(f"The override '{self.text}' cannot be read.")
        if parsed.is_sweep_override():
            raise UserError(f"{self.text} gives several values where one is wanted.")
        return parsed.value()

    def _parsed(self, loader: Any = None) -> Override | None:
        return _as_parsed(self.text) if loader is None else _parse(self.text, loader)


def _parse(text: str, loader: Any = None) -> Override | None:
    """The override as Hydra's grammar reads it; None for what it cannot read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create(config_loader=loader).parse_override(text)
    except HydraException:
        return None


#: The same without asking the grammar again, which takes milliseconds a word.
_as_parsed = functools.lru_cache(maxsize=1024)(_parse)


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """The words of a command line, with ``noise=[a,b]`` in those that Hydra has for it.

    Options of a group that lie under one key would be merged into one. A list of noises becomes
    ``noise=composed`` and a word for each step.

    Raises:
        UserError: such a list in a sweep.

    Example:
        >>> spelled_out(["noise=[pair,symmetric]", "seed=1"])[:2]
        ['+noise@noise.steps.pair=pair', '+noise@noise.steps.symmetric=symmetric']
    """
    found: list[str] = []
    for argument in arguments:
        word = Word.parse(argument)
        value = (word.value or "").strip()
        if word.key not in COMPOSED or word.prefix or word.package or "[" not in value:
            found.append(argument)
            continue
        if word.swept:
            raise UserError(
                f"{argument} sweeps over lists: compose one list, e.g. {word.key}=[pmd,symmetric], "
                f"and sweep over settings of its steps."
            )
        names: list[str] = []
        for option in options_of(word):
            times = sum(name.rstrip("_0123456789") == option for name in names)
            names.append(f"{option}_{times + 1}" if times else option)
            found.append(f"+{word.key}@{COMPOSED[word.key]}.{names[-1]}={option}")
        found.append(f"{word.key}=composed")
    return found


def quoted(text: str) -> str:
    """`text` as a quoted value of Hydra's override grammar."""
    # Backslashes count only before a quote, and before the one that ends the value.
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + m[2].replace("'", r"\'"), text) + "'"


def split_line(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options of a command line with their values, and its overrides, each in the order typed.

    Options may stand anywhere among the overrides.
    """
    from hydra._internal.utils import get_args_parser

    actions = get_args_parser()._option_string_actions
    options: list[str] = []
    overrides: list[str] = []
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("-"):
            overrides.append(word)
            continue
        options.append(word)
        action = actions.get(word)
        if action is None or action.nargs == 0 or not waiting:
            continue
        # An optional value (--info) is one of its choices.
        if action.nargs is None or waiting[0] in (action.choices or ()):
            options.append(waiting.pop(0))
    return options, overrides


def as_typed(arguments: Sequence[str]) -> list[str]:
    """A command line in the form that Hydra reads: options first, texts in quotes."""
    options, overrides = split_line(arguments)
    sweep = bool({"-m", "--multirun"} & set(options))
    return [*options, *as_hydra_reads(spelled_out(overrides), sweep=sweep)]


def as_hydra_reads(overrides: Sequence[str], *, sweep: bool) -> list[str]:
    """Overrides with quotes around those values that Hydra could not read, or not as text.

    Paths and names stay as typed: other alphabets, spaces, brackets, ``=``, digits alone. Of other
    keys only what Hydra cannot read at all is text; a list or quotes that do not end stay wrong.

    Args:
        overrides: as typed.
        sweep: whether commas part the values of a sweep; else they belong to a path or name.

    Example:
        >>> as_hydra_reads(["dataset.path=Fotos_Müller", "name=007", "seed=1"], sweep=False)
        ["dataset.path='Fotos_Müller'", "name='007'", 'seed=1']
    """
    return [_as_hydra_reads(word, sweep) for word in words_in(overrides)]


def _as_hydra_reads(word: Word, sweep: bool) -> str:
    value = word.value
    if value is None or value.strip() in ("", "null") or word.deletes or word.chooses:
        return word.text
    # The key alone must be readable: quotes cannot mend it.
    if Word.parse(f"{word.target}=x")._parsed() is None:
        return word.text
    parsed = word._parsed()
    if not word.is_text:
        readable = parsed is not None or value.lstrip()[0] in "[{'\""
        return word.text if readable else f"{word.target}={quoted(value)}"
    if Path(value).exists() and (parsed is None or word.plain != value):
        return f"{word.target}={quoted(value)}"
    if parsed is None:
        parts = value.split(",") if sweep else [value]
        return f"{word.target}={','.join(map(quoted, parts))}"
    if parsed.is_sweep_override():
        listed = re.match(r"\w+\(", value) is None
        return f"{word.target}={quoted(value)}" if listed and not sweep else word.text
    if isinstance(parsed.value(), bool | int | float):
        return f"{word.target}={quoted(value)}"
    return word.text


def words_of_job(hydra: Any) -> list[str]:
    """The overrides of the job under way, as they stand.

    A list of OmegaConf would resolve what is typed as ``${oc.env:TOKEN}`` whenever it is read.

    Args:
        hydra: ``HydraConfig.get()`` of the job.
    """
    from omegaconf import OmegaConf

    words: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    return [str(word) for word in words]


def overrides_in(arguments: Sequence[str]) -> list[str]:
    """The overrides among what was typed, without options (``-m``) and their values."""
    return split_line(arguments)[1]


def words_in(overrides: Sequence[str]) -> list[Word]:
    """`Word.parse` of each."""
    return [Word.parse(override) for override in overrides]


def last_given(words: Sequence[Word], key: str) -> str | None:
    """The value of a setting that was typed, of several the last; None for none, and for null."""
    values = [word for word in words if word.key == key and not word.deletes]
    return values[-1].plain if values and values[-1].is_given else None


def options_of(word: Word) -> list[str]:
    """The options that a group's word chooses, ``group=a`` or ``group=[a,b]``; of a sweep the
    first value's.
    """
    first = (word.values() or [""])[0]
    return [name for option in first.strip("[]").split(",") if (name := option.strip())]


def choices_in(words: Sequence[Word]) -> list[str]:
    """Those words, as ``group=option``, that choose existing options of a group.

    Of a sweep the first value is taken.
    """
    chosen = []
    for word in words:
        options = options_of(word) if word.chooses and not word.deletes else []
        if options and all((conf_dir() / word.key / f"{o}.yaml").is_file() for o in options):
            listed = options[0] if len(options) == 1 else f"[{','.join(options)}]"
            chosen.append(f"{word.target}={listed}")
    return chosen
