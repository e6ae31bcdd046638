"""Reading files that may be damaged, of another kind, or not files at all.

Whatever a reader raises, the user is told in one sentence which file it was, what is wrong with it
and what to do.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyml.errors import UserError


class DamagedFileError(UserError):
    """A file is there and cannot be read.

    Args:
        path: of the file.
        reason: what is wrong with it, in a few words.
        advice: what to do, as the end of a sentence.
    """

    def __init__(self, path: Path, reason: str, advice: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path} cannot be read ({reason}): {advice}.")


@contextlib.contextmanager
def reading(path: Path, advice: str) -> Iterator[None]:
    """Context in which any error means that a file is damaged.

    Nothing is opened that is no regular file: a named pipe would wait for ever. A file that is not
    there is left to the reader.

    Args:
        path: what is read in the context.
        advice: what to do about a damaged one, as the end of a sentence.

    Raises:
        DamagedFileError: in place of any error but a `UserError`.
    """
    if path.exists() and not path.is_file():
        raise DamagedFileError(path, "it is no file", advice)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise DamagedFileError(path, reason_of(path, error), advice) from error


def reason_of(path: Path, error: Exception) -> str:
    """The fault of a file, in a few words.

    Args:
        path: of the file.
        error: what its reader raised.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if not path.exists():
        return "it is not there"
    if path.stat().st_size == 0:
        return "it is empty"
    if isinstance(error, EOFError):
        return "it ends in the middle"
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    lines = [line.strip().rstrip(".:") for line in str(error).splitlines() if line.strip()]
    # Readers append advice of their own, PyTorch's how to run what is in the file.
    first = lines[0].partition(". ")[0] if lines else type(error).__name__
    return first if len(first) <= 160 else f"{first[:157]}..."


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DamagedFileError: it holds no such object.
    """
    with reading(path, advice):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no JSON object")
        return found


def read_yaml(path: Path, advice: str) -> Any:
    """The content of a YAML file: plain lists, mappings and values; None if there is nothing.

    Raises:
        DamagedFileError: it is no YAML.
    """
    import yaml

    with reading(path, advice):
        text = path.read_text(encoding="utf-8")
        try:
            return yaml.load(text, Loader=_loader())
        except yaml.MarkedYAMLError as error:
            mark, last = error.problem_mark, text.count("\n")
            line = min(mark.line, last) + 1 if mark else "?"
            raise ValueError(f"line {line} is no YAML: {error.problem}") from error


def _loader() -> Any:
    """The safe loader of YAML: that of the C library, ten times as fast, where it is built in."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_npy(path: Path, advice: str, *, mapped: bool = True) -> NDArray[Any]:
    """The array in a ``.npy`` file, without unpickling.

    Args:
        path: of the file.
        advice: what to do about a damaged one, as the end of a sentence.
        mapped: leave the array on disk.

    Raises:
        DamagedFileError: it is no such file.
    """
    with reading(path, advice):
        found = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            found.close()
            raise ValueError("it is an archive of several arrays (.npz), not one array (.npy)")
        return found
