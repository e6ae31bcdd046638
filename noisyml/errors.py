"""The one exception a user may see: a sentence, not a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

#: Environment variable: packages and full names that a configuration in a run folder may name
#: beside the parts of noisyml; ``trust=[my_package]`` on a command line adds to it.
TRUST = "NOISYML_TRUST"
#: Exit status of a command that a user's mistake ended.
EXIT_USER_ERROR = 2


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    The command line prints the message alone and exits with status 2; set ``NOISYML_DEBUG=1`` for
    the traceback.
    """


class SweepError(UserError):
    """A mistake that concerns a whole sweep: its remaining jobs are not started."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, then what it was raised from or during, back to the first one.

    An error that is raised anew, from one that it has caused itself, closes a circle: each comes
    once.
    """
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the nearest of `known`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
