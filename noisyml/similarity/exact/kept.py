"""State of a search in a folder, so that it goes on after a kill, and room on its disk."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisyml.similarity.exact.plan import Blocks, Task, spread_out
from noisyml.similarity.exact.shortlist import Shortlist
from noisyml.storage.files import scratch
from noisyml.storage.unfinished import Unfinished

#: The file of a search that is not done.
FILE = "search.npz"
#: Raise when its meaning changes.
_FORMAT = 2
#: Rows that tell one set of rows from another, beside the norms of all.
_SAMPLE = 256
_PANELS = "panels"


class KeptSearch:
    """The lists of a search after the panels of the gallery that are done, in a folder.

    What is kept holds for the same rows, request and panels; anything else begins anew.

    Args:
        folder: made if need be; of this search alone.
        task: the search.
        blocks: its block sizes.
    """

    def __init__(self, folder: Path, task: Task, blocks: Blocks) -> None:
        self.folder = folder
        self._kept = Unfinished(folder / FILE, _facts(task, blocks))

    def restore(self, shortlist: Shortlist) -> int:
        """Fill the lists with what is kept; the number of panels that this stands for, 0 if none.

        Raises:
            UserError: the file is damaged.
        """
        arrays = self._kept.restore()
        if not arrays:
            return 0
        for name, tensor in shortlist.state().items():
            tensor.copy_(torch.from_numpy(arrays[name]))
        return int(arrays[_PANELS])

    def offer(self, shortlist: Shortlist, panels: int) -> None:
        """Save, if the last time is long enough ago.

        Args:
            shortlist: the lists.
            panels: number of panels that all queries have met.
        """

        def arrays() -> dict[str, Any]:
            lists = {name: part.cpu().numpy() for name, part in shortlist.state().items()}
            return lists | {_PANELS: np.array(panels)}

        self._kept.offer(arrays)

    def room(self, n: int) -> Tensor:
        """`n` bytes, int8, of a file without a name that is gone with the tensor.

        Raises:
            DiskFull: there is no space for it.
        """
        return torch.from_numpy(scratch(self.folder, n))

    def remove(self) -> None:
        """Forget what is kept: the search is done."""
        self._kept.remove()


def _facts(task: Task, blocks: Blocks) -> dict[str, Any]:
    """Facts that must be the same for kept lists to be of use."""
    content = hashlib.sha256()
    sides = {id(side): side for side in (task.query_side, task.gallery.side)}
    for side in sides.values():
        content.update(_bytes_of(side.factor) + _bytes_of(side.norms))
    content.update(_bytes_of(task.queries.take(spread_out(len(task.queries), _SAMPLE))))
    content.update(_bytes_of(task.gallery.sample(_SAMPLE)[1]))
    if task.exclude is not None:
        content.update(_bytes_of(task.exclude))
    return {
        "format": _FORMAT,
        "queries": len(task.queries),
        "gallery": len(task.gallery.side.norms),
        "dim": task.queries.dim,
        "k": task.k,
        "metric": task.query_side.metric,
        "own": task.own is not None,
        "blocks": [blocks.query, blocks.gallery],
        "content": content.hexdigest(),
    }


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()
