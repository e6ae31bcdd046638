"""The library of compiled loops, and the vector unit that they use here.

One library holds every loop in plain C and in forms for the vector units of the processor family
that it was compiled for; `units.c` lists these, the fastest first. The first one that the
processor has is taken. Before that it must give the bits of plain C on drawn input, for not every
unit was at hand where this was written; one that does not is left aside with a warning.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from noisyml.errors import UserError

log = logging.getLogger(__name__)

#: Where `scripts/build_kernels.py` puts the compiled loops.
LIBRARY = Path(__file__).parent.with_name("_kernels.so")
#: Environment variable: the vector unit to use, or "off" for PyTorch alone.
UNIT = "NOISYML_KERNELS"
_OFF = "off"
#: The version of the C functions that `kernels` calls.
INTERFACE = 8
#: Seed and number of the inputs that a unit must answer like plain C: a millisecond or two.
_CHECKS = 1, 6


@dataclass(frozen=True)
class Loops:
    """The loops of one vector unit.

    Attributes:
        library: the whole library.
        number: the unit's, in it.
        unit: the unit's name.
    """

    library: ctypes.CDLL
    number: int
    unit: str

    def loop(self, name: str) -> int:
        """Address of a loop."""
        address: int | None = self.library.noisyml_loop(self.number, name.encode())
        assert address is not None
        return address

    def answers(self, seed: int, rounds: int) -> int:
        """A number that tells apart what the loops make of so many inputs drawn from a seed."""
        return int(self.library.noisyml_unit_answers(self.number, seed, rounds))


def offered() -> list[Loops]:
    """The loops of all units that were compiled and this processor has, the fastest first and plain
    C last; none if there is no library."""
    library = _loaded()
    if library is None:
        return []
    library.noisyml_unit.restype = ctypes.c_char_p
    library.noisyml_loop.restype = ctypes.c_void_p
    library.noisyml_panel_bytes.restype = ctypes.c_int64
    library.noisyml_panel_bytes.argtypes = (ctypes.c_int64,)
    library.noisyml_unit_answers.restype = ctypes.c_uint64
    library.noisyml_unit_answers.argtypes = (ctypes.c_int, ctypes.c_uint64, ctypes.c_int64)
    found: list[Loops] = []
    while (name := library.noisyml_unit(len(found))) is not None:
        found.append(Loops(library, len(found), name.decode()))
    return [loops for loops in found if library.noisyml_unit_runs(loops.number)]


@functools.cache
def chosen() -> Loops | None:
    """The loops that are used here; None if PyTorch does all.

    Raises:
        UserError: the environment asks for a unit that is not there.
    """
    asked = os.environ.get(UNIT, "")
    if asked == _OFF:
        return None
    units = offered()
    if asked and asked not in [loops.unit for loops in units]:
        have = ", ".join(loops.unit for loops in units) or "none: they are not compiled"
        raise UserError(
            f"{UNIT}={asked} is no form of the search loops that runs here (there are {have}): "
            f"choose another one, {_OFF} for none, or leave it out."
        )
    for loops in units:
        if asked in ("", loops.unit):
            if loops.answers(*_CHECKS) == units[-1].answers(*_CHECKS):
                return loops
            problem = f"The search loops for {loops.unit} give other bits here than plain C"
            if asked:
                raise UserError(f"{problem}: leave {UNIT}={asked} out.")
            log.warning("%s and stay unused: please report this with your processor.", problem)
    return None


def _loaded() -> ctypes.CDLL | None:
    if not LIBRARY.exists():
        log.info("The search loops are not compiled here, so searches take longer: see the README.")
        return None
    try:
        library = ctypes.CDLL(str(LIBRARY))
        interface = library.noisyml_interface()
    except (OSError, AttributeError) as error:
        log.warning("The compiled search loops in %s cannot be loaded: %s", LIBRARY, error)
        return None
    if interface != INTERFACE:
        log.warning(
            "The compiled search loops in %s belong to another version of noisyml and stay unused: "
            "install the package again.",
            LIBRARY,
        )
        return None
    return library


@functools.cache
def team() -> int | None:
    """Address of the function that runs work on the threads of PyTorch, if they are GNU OpenMP's.

    They wait for more work actively, so two sets of threads would be in each other's way.
    """
    try:
        loaded = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        return ctypes.cast(loaded.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
