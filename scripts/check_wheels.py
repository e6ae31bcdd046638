"""What an index and a user ask of the wheels in a folder: ``python scripts/check_wheels.py dist``.

With ``--installed``: that the package installed here has its compiled loops, that they load, and
that those for vector units that this processor has give the bits of those in plain C.
"""

from __future__ import annotations

import ctypes
import re
import sys
import zipfile
from email import message_from_bytes
from importlib.util import find_spec
from pathlib import Path

#: Platforms that an index takes; a plain linux_x86_64 is none.
_ACCEPTED = re.compile(
    r"any|(manylinux|musllinux)_\d+_\d+_\w+|manylinux20\d\d_\w+|macosx_\w+|win_\w+"
)
#: What every wheel has.
_FILES = ("noisyml/py.typed", "noisyml/conf/train.yaml", "noisyml/reports/templates/report.html.j2")
_LOOPS = "noisyml/similarity/exact/_kernels.so"
_RELATIVE = re.compile(r"\]\((?![a-z]+:|#)[^()\s]+\)", re.IGNORECASE)


def faults(wheel: Path) -> list[str]:
    """Sentences on what is wrong with a wheel."""
    found = []
    platforms = wheel.stem.split("-")[-1].split(".")
    found += [f"no index takes {p}" for p in platforms if not _ACCEPTED.fullmatch(p)]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = message_from_bytes(
            archive.read(next(n for n in names if n.endswith(".dist-info/METADATA")))
        )
    found += [f"{name} is missing" for name in _FILES if name not in names]
    if not any(re.search(r"\.dist-info/licenses/LICENSE$", name) for name in names):
        found.append("the licence is missing")
    if (_LOOPS in names) == (platforms == ["any"]):
        found.append("compiled loops and the platform in its name do not go together")
    found += [f"{n} does not belong in it" for n in names if n.startswith(("tests/", "scripts/"))]
    if metadata["License-Expression"] != "Apache-2.0":
        found.append(f"its licence is called {metadata['License-Expression']}")
    dead = _RELATIVE.findall(str(metadata.get_payload()))
    found += [f"the link {link} leads nowhere on an index" for link in dead]
    return found


def installed_faults() -> list[str]:
    """Sentences on what is wrong with the compiled loops of the installed package.

    Raises:
        OSError: there are none, or the system cannot load them.
    """
    package = find_spec("noisyml")
    assert package is not None
    assert package.origin is not None
    loops = ctypes.CDLL(str(Path(package.origin).parent.parent / _LOOPS))
    loops.noisyml_unit.restype = ctypes.c_char_p
    loops.noisyml_unit_answers.restype = ctypes.c_uint64
    answers: dict[bytes, int] = {}
    number = 0
    while (unit := loops.noisyml_unit(number)) is not None:
        if loops.noisyml_unit_runs(number):
            drawn = ctypes.c_uint64(0), ctypes.c_int64(60)
            answers[unit] = loops.noisyml_unit_answers(number, *drawn)
        number += 1
    return [
        f"its loops for {unit.decode()} give other bits here than plain C"
        for unit, answer in answers.items()
        if answer != answers[b"plain"]
    ]


def main(arguments: list[str]) -> int:
    """Print what is wrong, or the names of the wheels; status 1 if something is."""
    if arguments == ["--installed"]:
        for fault in (wrong := installed_faults()):
            print(fault)
        return 1 if wrong else 0
    wheels = sorted(Path(arguments[0]).glob("*.whl"))
    wrong = [f"{wheel.name}: {fault}" for wheel in wheels for fault in faults(wheel)]
    print("\n".join(wrong or [f"{wheel.name}: accepted" for wheel in wheels] or ["no wheels"]))
    return 1 if wrong or not wheels else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
