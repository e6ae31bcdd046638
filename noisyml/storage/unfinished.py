"""Arrays of a long computation in a file until it is done, so that it goes on after a kill."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyml.storage.files import atomic
from noisyml.storage.reading import reading

log = logging.getLogger(__name__)

#: Seconds between two saves, at least, and in times of what the last one took.
_SAVE_EVERY, _SAVE_SHARE = 20.0, 40.0
_FACTS = "facts"


class Unfinished:
    """Arrays that a computation has found so far, in a file.

    Args:
        path: the file, of this computation alone.
        facts: values for JSON; what is kept is of use only where all of them are the same.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "sums.npz"
        >>> Unfinished(path, {"rows": 9}).save({"sums": np.arange(3)})
        >>> Unfinished(path, {"rows": 9}).restore()["sums"].tolist()
        [0, 1, 2]
        >>> Unfinished(path, {"rows": 8}).restore()
        {}
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path = path
        self._facts = json.dumps(facts, sort_keys=True)
        self._saved_at, self._save_took = time.monotonic(), 0.0

    def restore(self) -> dict[str, NDArray[Any]]:
        """The arrays that are kept; none if there are none, or those of something else.

        Raises:
            UserError: the file is damaged.
        """
        if not self.path.exists():
            return {}
        advice = "remove it, and the search begins anew"
        with reading(self.path, advice), np.load(self.path, allow_pickle=False) as kept:
            if str(kept[_FACTS]) == self._facts:
                return {name: kept[name] for name in kept.files if name != _FACTS}
        log.info("%s is of another search, so this one begins anew.", self.path)
        return {}

    def offer(self, arrays: Callable[[], Mapping[str, NDArray[Any]]]) -> None:
        """Save, if the last time is long enough ago."""
        since = time.monotonic() - self._saved_at
        if since >= max(_SAVE_EVERY, _SAVE_SHARE * self._save_took):
            self.save(arrays())

    def save(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write all arrays; a kill leaves them or those of the last time."""
        began = time.monotonic()
        with (
            atomic(self.path, sole_writer=True) as temporary,
            temporary.open("wb") as file,
        ):
            np.savez(file, **{_FACTS: np.array(self._facts)}, **arrays)  # type: ignore[arg-type]
        self._saved_at = time.monotonic()
        self._save_took = self._saved_at - began

    def remove(self) -> None:
        """Forget what is kept."""
        self.path.unlink(missing_ok=True)
