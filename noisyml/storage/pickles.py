"""Foreign pickles, read without running anything in them.

A pickle may name any function to be called while it is read. Here only those are let through that
rebuild an array or an ordered mapping; plain Python values need none.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from noisyml.errors import UserError

#: Functions and classes by module and name, modules of NumPy as NumPy 2 calls them.
#: ``_codecs.encode`` turns text into bytes, the way Python 3 pickles bytes for Python 2.
ALLOWED = frozenset(
    {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.numeric", "_frombuffer"),
        ("_codecs", "encode"),
        ("collections", "OrderedDict"),
    }
)


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that makes arrays and plain Python values and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """The allowed functions by name.

        Raises:
            UnpicklingError: for any other.
        """
        today = module.replace("numpy.core.", "numpy._core.")
        if (today, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(today, name)


def read_plain(path: Path, *, encoding: str, advice: str) -> Any:
    """The content of a pickle made of arrays, lists, mappings, numbers and texts.

    Args:
        path: of the file.
        encoding: of texts that Python 2 wrote: ``bytes`` leaves them bytes; ``latin-1`` where the
            contents of arrays are among them.
        advice: what to do about a file that is not read, as the end of a sentence.

    Raises:
        UserError: the file is damaged, or names anything else; nothing of it has been called.
    """
    content = path.read_bytes()
    try:
        return _PlainUnpickler(io.BytesIO(content), encoding=encoding).load()
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(
            f"{path} is damaged or holds more than arrays ({error}), and is not read: {advice}."
        ) from error
