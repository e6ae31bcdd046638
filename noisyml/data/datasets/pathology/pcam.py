"""PatchCamelyon (Veeling et al., MICCAI 2018): lymph nodes, with or without tumour."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from noisyml.data.base import DatasetSource, Split
from noisyml.data.inputs import InputKind
from noisyml.data.readers.layout import (
    check_count,
    files_digest,
    first_missing,
    require_files,
    stat_files,
)
from noisyml.data.readers.matrices import Hdf5Rows
from noisyml.errors import UserError

#: Patches of each official part; classes are equally frequent but for some in ten thousand.
PATCHES = {"train": 262_144, "valid": 32_768, "test": 32_768}
_NAMES = {"train": "train", "valid": "val", "test": "test"}


@dataclass(frozen=True)
class Hdf5Images:
    """Images in a data set of an HDF5 file, uint8 [N, H, W, 3], read one by one."""

    kind: ClassVar[InputKind] = "images"

    rows: Hdf5Rows

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> Image.Image:
        """The image at `index`, RGB."""
        return Image.fromarray(np.asarray(self.rows[index], dtype=np.uint8))


class PatchCamelyon(DatasetSource):
    """327,680 patches of 96x96 pixels; ``tumour`` if the central 32x32 pixels hold some.

    Large shifts and crops change what the label says. The official validation part is ``val``.

    Args:
        root: folder with ``camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5``.
        check_counts: compare the numbers of patches with the published ones.
    """

    clean_val = True
    description: ClassVar[str] = "PatchCamelyon: 327,680 patches of lymph nodes, 96x96, 2 classes"
    how_to_get: ClassVar[str] = (
        "fetch the nine files of PatchCamelyon (8 GB; github.com/basveeling/pcam, doi "
        "10.5281/zenodo.1494286), unpack those that end in .gz, and set dataset.root to the folder "
        "with camelyonpatch_level_2_split_train_x.h5 and the others."
    )

    def __init__(self, root: str, check_counts: bool = True) -> None:
        self.root = Path(root)
        self.check_counts = check_counts

    def missing(self) -> str | None:
        """None, or the first file that is not there."""
        return first_missing(self.root, *(_file(part, end) for part in PATCHES for end in "xy"))

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` and ``test``.

        Raises:
            UserError: files missing, or of another number or shape.
        """
        require_files(self, "pcam")
        return {name: self._split(part, name) for part, name in _NAMES.items()}

    def _split(self, part: str, name: str) -> Split:
        files = [self.root / _file(part, end) for end in "xy"]
        pixels, labels = Hdf5Rows(files[0], "x"), Hdf5Rows(files[1], "y")
        if pixels.ndim != 4 or pixels.shape[-1] != 3 or len(pixels) != len(labels):
            raise UserError(
                f"{files[0]} holds {list(pixels.shape)} and {files[1]} {len(labels)} labels; "
                f"expected patches [N, height, width, 3] and as many labels: fetch them again."
            )
        if self.check_counts:
            check_count(f"Patches of the {name} split of pcam", len(pixels), PATCHES[part])
        given = np.asarray(labels[:]).reshape(-1).astype(np.int64)
        if not np.isin(given, (0, 1)).all():
            raise UserError(f"{files[1]} holds a label other than 0 and 1; fetch it again.")
        names = [file.name for file in files]
        return Split(
            name,
            Hdf5Images(pixels),
            given,
            ["no tumour", "tumour"],
            [f"{part}/{i:06d}" for i in range(len(given))],
            files_digest(names, stat_files(self.root, names), "pcam"),
        )


def _file(part: str, end: str) -> str:
    return f"camelyonpatch_level_2_split_{part}_{end}.h5"
