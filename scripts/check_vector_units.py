"""Compares every form of the search loops with plain C: ``python scripts/check_vector_units.py``.

Forms for this processor run as they are. Others run in an emulator where Debian's packages
gcc-aarch64-linux-gnu and qemu-user are installed: ARM with and without dot products, and x86-64
without AVX2. qemu knows no AVX-512, so its instructions are replaced by plain C that does the same
(libsimde-dev): that checks what the code asks for, not how a compiler translates it. Plain C must
give the same bits on all of them.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import build_kernels

ROOT = Path(__file__).resolve().parent.parent
LOOPS = ROOT / build_kernels.SOURCES
#: Prints a line for each unit: its name, and its answers or "-" where the processor lacks it.
MAIN = r"""
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
const char *noisyml_unit(int);
int noisyml_unit_runs(int);
uint64_t noisyml_unit_answers(int, uint64_t, int64_t);
int main(int n, char **given) {
    const int64_t rounds = n > 1 ? atoll(given[1]) : 1;
    for (int unit = 0; noisyml_unit(unit); unit++)
        if (noisyml_unit_runs(unit))
            printf("%s %" PRIx64 "\n", noisyml_unit(unit), noisyml_unit_answers(unit, 0, rounds));
        else
            printf("%s -\n", noisyml_unit(unit));
    return 0;
}
"""
OPTIONS = [option for option in build_kernels.OPTIONS if option not in ("-shared", "-fPIC")]


@dataclass(frozen=True)
class Machine:
    """A processor to run the loops on.

    Attributes:
        name: for people.
        units: those that it must have.
        compiler: the compiler's name.
        emulator: what runs the program, with its arguments.
        emulated: AVX-512 is replaced by plain C.
    """

    name: str
    units: tuple[str, ...] = ()
    compiler: str = "cc"
    emulator: tuple[str, ...] = ()
    emulated: bool = False


X86, ARM = "x86_64-linux-gnu-gcc", "aarch64-linux-gnu-gcc"
MACHINES = (
    Machine("this processor"),
    Machine("x86-64 without AVX2", ("plain",), X86, ("qemu-x86_64", "-cpu", "Nehalem")),
    Machine("AVX-512 in plain C", ("avx512vnni", "avx512", "avx2", "plain"), X86, emulated=True),
    Machine("ARM", ("neon", "plain"), ARM, ("qemu-aarch64", "-cpu", "cortex-a53")),
    Machine(
        "ARM with dot products",
        ("neondot", "neon", "plain"),
        ARM,
        ("qemu-aarch64", "-cpu", "neoverse-n1"),
    ),
)
#: Of AVX-512 in plain C.
SIMDE = Path("/usr/include/simde/x86/avx512.h")


def missing(machine: Machine) -> str | None:
    """What is not installed for a machine."""
    for tool in (machine.compiler, *machine.emulator[:1]):
        if shutil.which(tool) is None:
            return tool
    if machine.emulated and not SIMDE.exists():
        return str(SIMDE)
    return None


def answers(machine: Machine, rounds: int, folder: Path) -> dict[str, str]:
    """What each unit that the machine has answers to drawn inputs."""
    (folder / "main.c").write_text(MAIN)
    for file in LOOPS.glob("*.[ch]"):
        text = file.read_text()
        if machine.emulated and file.name == "avx512.c":
            # Functions for any processor, and vectors that are structs.
            text = re.sub(r'target\("[^"]*"\)', "unused", text)
            text = re.sub(r"__builtin_cpu_supports\(\"avx512\w+\"\)", "1", text)
            text = re.sub(r"(_mm512_|__m512i)", r"simde\1", text)
            text = text.replace("<immintrin.h>", "<simde/x86/avx512.h>")
        (folder / file.name).write_text(text)
    program = folder / "units"
    sources = sorted(map(str, folder.glob("*.c")))
    options = [*OPTIONS, "-Wno-psabi"] + ["-static"] * bool(machine.emulator)
    libraries = build_kernels.LIBRARIES
    command = [machine.compiler, *options, *sources, "-o", str(program), *libraries]
    subprocess.run(command, check=True)
    command = [*machine.emulator, str(program), str(rounds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = (line.split() for line in done.stdout.splitlines())
    return {unit: answer for unit, answer in lines if answer != "-"}


def faults(machine: Machine, found: dict[str, str], plain: str) -> list[str]:
    """Sentences on what is wrong with a machine's answers, given plain C's on any machine."""
    wrong = [f"{machine.name}: {unit} is not there" for unit in machine.units if unit not in found]
    return wrong + [
        f"{machine.name}: {unit} gives other bits than plain C"
        for unit, answer in found.items()
        if answer != plain
    ]


def main(arguments: list[str] | None = None) -> int:
    """Print what was compared, what was not and why; status 1 if bits differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=600, help="drawn inputs")
    rounds = parser.parse_args(arguments).rounds
    wrong: list[str] = []
    plain = ""
    for machine in MACHINES:
        lacking = missing(machine)
        if lacking is not None:
            print(f"{machine.name}: not compared, for {lacking} is not installed.")
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = answers(machine, rounds, Path(folder))
        plain = plain or found["plain"]
        wrong += faults(machine, found, plain)
        print(f"{machine.name}: {', '.join(found)}, {rounds} inputs")
    if plain:
        print("\n".join(wrong or ["all the same bits"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
