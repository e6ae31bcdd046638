"""Words of a command line: ``key=value`` taken apart, in one place for the whole project.

A key ends at the first ``=``, whatever follows; values are read by Hydra's own grammar, so that
``seed=0,1``, ``seed=range(3)`` and ``name='a,b'`` mean here what they mean to Hydra.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noisyml.command.config import conf_dir, group_names
from noisyml.errors import UserError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

#: ``+`` adds a setting, ``++`` sets or adds it, ``~`` deletes it.
PREFIXES = ("++", "+", "~")
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
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException

        try:
            return OverridesParser.create(config_loader=loader).parse_override(self.text)
        except HydraException:
            return None


def overrides_in(arguments: Sequence[str]) -> list[str]:
    """The overrides among what was typed, without options (``-m``) and their values."""
    from hydra._internal.utils import get_args_parser

    return list(get_args_parser().parse_known_args(list(arguments))[0].overrides)


def words_in(overrides: Sequence[str]) -> list[Word]:
    """`Word.parse` of each."""
    return [Word.parse(override) for override in overrides]


def last_given(words: Sequence[Word], key: str) -> str | None:
    """The value of a setting that was typed, of several the last; None for none, and for null."""
    values = [word for word in words if word.key == key and not word.deletes]
    return values[-1].value if values and values[-1].is_given else None


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
            chosen.append(f"{word.key}={listed}")
    return chosen
