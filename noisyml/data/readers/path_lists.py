"""Sets with real label noise, read from the lists that PRISM's authors released.

A list (``datalist/*.csv`` of github.com/alibaba-edu/Ranking-based-Instance-Selection) has a row
``path,label`` per image and no header; paths are absolute on the authors' machine. They are cut at
the data set's folder and looked for below ``root``.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.readers.layout import stat_files
from noisyml.data.readers.zero_shot import Rows, ZeroShotFiles
from noisyml.errors import UserError

logger = logging.getLogger(__name__)


def read_path_list(path: Path, folders: Sequence[str]) -> Rows:
    """A released list, its paths cut at the first part that is one of `folders`.

    Args:
        path: the list.
        folders: names of data-set folders, e.g. ``("cars_noise", "cars196")``.

    Raises:
        UserError: a line is not ``path,label``, or its path goes through none of the folders.
    """
    from noisyml.noise.released.lists import read_list

    listed = read_list(path)
    paths = []
    for number, image in enumerate(listed.paths, start=1):
        parts = PurePosixPath(image).parts
        start = next((i for i, part in enumerate(parts) if part in folders), None)
        if start is None:
            raise UserError(
                f"{path}, line {number}: the path goes through no folder "
                f"{' or '.join(folders)}: '{image}'."
            )
        paths.append("/".join(parts[start:]))
    ids = listed.labels
    parents = defaultdict(set)
    for image, number in zip(paths, ids.tolist(), strict=True):
        parents[number].add(PurePosixPath(image).parent.name)
    names = {
        number: next(iter(found)) if len(found) == 1 else f"class {number}"
        for number, found in parents.items()
    }
    return Rows(paths, ids, names)


class CrawledFiles(ZeroShotFiles):
    """A zero-shot set whose training half was crawled, so that some of its files may be gone.

    Args:
        root: folder that the paths start from.
        max_missing: share of the training images that may be missing, in [0, 1); they are left
            out with a warning, and `missing_files` names them. Test images must all be there.
        val_classes: see `ZeroShotFiles`.
        check_counts: see `ZeroShotFiles`; what is listed is counted, missing or not.
    """

    #: The noise is real, and nobody knows which labels are wrong.
    labels_are_true = False

    def __init__(
        self,
        root: str,
        max_missing: OpenShare = 0.1,
        val_classes: WholeNonNegative = 0,
        check_counts: bool = True,
    ) -> None:
        super().__init__(root, val_classes, check_counts)
        self.max_missing = max_missing
        #: Training images that are listed but not there; filled by `splits`.
        self.missing_files: list[str] = []

    def available(self, part: str, rows: Rows) -> Rows:
        """The training rows whose files are there; test rows as they are.

        Raises:
            UserError: more than `max_missing` are gone.
        """
        if part != "train":
            return rows
        there = np.array([stat is not None for stat in stat_files(self.root, rows.paths)], bool)
        self.missing_files = [p for p, found in zip(rows.paths, there, strict=True) if not found]
        if not self.missing_files:
            return rows
        self.left_out = {"listed images that are not there": self.missing_files}
        share = len(self.missing_files) / len(rows.paths)
        report = (
            f"{self.name}: {len(self.missing_files)} of {len(rows.paths)} training images are "
            f"missing below {self.root}, the first is {self.missing_files[0]}"
        )
        if share > self.max_missing:
            raise UserError(
                f"{report}; fetch them, or raise dataset.max_missing (now {self.max_missing}) to "
                "train without them."
            )
        logger.warning("%s; training goes on without them.", report)
        return rows.take(there)
