"""Steps of a long computation, which may lie on disk: what is finished is read, not computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisyml.storage.files import atomic
from noisyml.storage.reading import reading

Arrays = dict[str, NDArray[Any]]


class Steps:
    """Arrays of steps, which are computed; nothing is kept.

    Attributes:
        folder: in which steps may keep what they are not done with; None: there is none.
    """

    folder: Path | None = None

    def __call__(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """The arrays of a step."""
        return compute()


class StoredSteps(Steps):
    """Arrays of finished steps in a folder, one file a step.

    Args:
        folder: where the files lie.
        digest: of all that the steps depend on; a step of another digest is computed anew.

    Example:
        >>> import tempfile
        >>> steps = StoredSteps(Path(tempfile.mkdtemp()), "settings")
        >>> steps("one", lambda: {"x": np.arange(2)})["x"].tolist()
        [0, 1]
        >>> steps("one", lambda: {"x": np.arange(9)})["x"].tolist()
        [0, 1]
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder: Path = folder
        self.digest = digest

    def __call__(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """The arrays of a step, computed if they are not there."""
        file = self.folder / f"{name}.npz"
        if file.is_file():
            advice = "remove it and go on: the step is computed anew"
            with reading(file, advice), np.load(file, allow_pickle=False) as stored:
                found = {key: stored[key] for key in stored.files}
            if str(found.pop("digest", "")) == self.digest:
                return found
        arrays = compute()
        with (
            atomic(file, durable=True, sole_writer=True) as temporary,
            temporary.open("wb") as stream,
        ):
            np.savez(stream, digest=np.asarray(self.digest), **arrays)  # type: ignore[arg-type]
        return arrays
