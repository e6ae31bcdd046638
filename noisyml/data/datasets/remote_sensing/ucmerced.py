"""UC Merced land use (Yang, Newsam, 2010) with several labels (Chaudhuri et al., TGRS 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.readers.closed_set import ClosedSetFiles, Listed
from noisyml.data.readers.layout import (
    check_count,
    first_missing,
    whole_numbers,
)
from noisyml.data.readers.partition import TestShare, carving, check_fractions
from noisyml.errors import UserError
from noisyml.storage.text import read_lines

TABLE = "LandUse_Multilabeled.txt"
IMAGES, CLASSES, SCENES = 2_100, 17, 21


class UCMercedMultiLabel(ClosedSetFiles):
    """2,100 aerial photographs of 21 scenes, 256x256, 17 labels of which each has one or more.

    There is no official division: every scene gives its share to ``val`` and ``test``. The extra
    ``scene`` numbers the scenes in the order of their names.

    Args:
        root: folder with ``Images/<scene>/<scene>00.tif`` and ``LandUse_Multilabeled.txt``.
        val_fraction: share of each scene for ``val``, in [0, 1).
        test_fraction: share of each scene for ``test``, in (0, 1).
        seed: which of the possible carvings; unrelated to the seed of a run.
        check_counts: see `ClosedSetFiles`.

    Raises:
        UserError: a fraction out of range.
    """

    description: ClassVar[str] = "UC Merced: 2,100 aerial photographs, 17 labels, several each"
    how_to_get: ClassVar[str] = (
        "fetch UCMerced_LandUse.zip (332 MB; weegee.vision.ucmerced.edu/datasets/landuse.html) and "
        "multilabels.zip with LandUse_Multilabeled.txt (bigearth.eu/datasets), unpack both, and "
        "set dataset.root to the folder with Images/<scene>/ and LandUse_Multilabeled.txt."
    )
    name = "ucmerced_multilabel"

    def __init__(
        self,
        root: str,
        val_fraction: OpenShare = 0.1,
        test_fraction: TestShare = 0.2,
        seed: WholeNonNegative = 0,
        check_counts: bool = True,
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        super().__init__(root, val_fraction, seed, check_counts)
        self.test_fraction = test_fraction

    def missing(self) -> str | None:
        """None, or the table or folder that is not there."""
        return first_missing(self.root, TABLE, "Images")

    def class_names(self) -> Sequence[str]:
        """The columns of the table."""
        return read_lines(self.root / TABLE)[0].split()[1:]

    def published(self) -> dict[str, int | Sequence[int]]:
        """Nothing by part: the parts are carved, the table is counted when it is read."""
        return {}

    def parts(self) -> dict[str, Listed]:
        """Rows of the table, every scene divided by the fractions."""
        path = self.root / TABLE
        rows = [line.split() for line in read_lines(path)[1:]]
        classes = len(self.class_names())
        short = next((i for i, row in enumerate(rows) if len(row) != classes + 1), None)
        if short is not None:
            raise UserError(
                f"{path}, line {short + 2}: expected {classes + 1} columns, found "
                f"{len(rows[short])}."
            )
        # The last two digits number the images of a scene.
        scenes = [row[0][:-2] for row in rows]
        names = sorted(set(scenes))
        if self.check_counts:
            check_count(f"Images in {path}", len(rows), IMAGES)
            check_count(f"Labels in {path}", classes, CLASSES)
            check_count(f"Scenes in {path}", len(names), SCENES)
        marks = whole_numbers([mark for row in rows for mark in row[1:]], path)
        if not np.isin(marks, (0, 1)).all():
            raise UserError(f"{path} holds another number than 0 and 1; fetch it again.")
        scene = np.array([names.index(name) for name in scenes], dtype=np.int64)
        every = Listed(
            [f"Images/{name}/{row[0]}.tif" for name, row in zip(scenes, rows, strict=True)],
            marks.reshape(len(rows), classes).astype(np.uint8),
            {"scene": scene},
            strata=scene,
        )
        self.split_origin = carving(self.val_fraction, self.test_fraction, self.seed)
        parts = every.carved(self.val_fraction, self.test_fraction, self.seed)
        return {part: listed for part, listed in parts.items() if len(listed.paths)}
