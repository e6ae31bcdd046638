"""Forms of the compiled search loops, for tests of each."""

from contextlib import AbstractContextManager
from unittest import mock

from noisyml.similarity.exact.loops import library

#: By name, the fastest first and plain C last.
UNITS = {loops.unit: loops for loops in library.offered()}


def used(unit: str) -> AbstractContextManager[object]:
    """While it is open, the loops of this unit are the ones that are used."""
    return mock.patch.object(library, "chosen", return_value=UNITS[unit])
