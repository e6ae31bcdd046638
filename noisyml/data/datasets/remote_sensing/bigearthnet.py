"""BigEarthNet-S2, version 1 (Sumbul et al., IGARSS 2019; nomenclature: Sumbul et al., 2021)."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import Positive
from noisyml.data.base import Split
from noisyml.data.readers.band_images import (
    Band,
    BandImages,
    Resampling,
    band_limits,
    choose_bands,
)
from noisyml.data.readers.closed_set import ClosedSetFiles, Listed
from noisyml.data.readers.layout import (
    at_once,
    files_digest,
    first_missing,
    stat_files,
)
from noisyml.errors import UserError
from noisyml.storage import caches
from noisyml.storage.text import read_lines

log = logging.getLogger(__name__)

#: In the order of the files; means and deviations of the authors' models, over the training images.
BANDS = (
    Band("B01", 340.76769064, 554.81258967),
    Band("B02", 429.9430203, 572.41639287),
    Band("B03", 614.21682446, 582.87945694),
    Band("B04", 590.23569706, 675.88746967),
    Band("B05", 950.68368468, 729.89827633),
    Band("B06", 1792.46290469, 1096.01480586),
    Band("B07", 2075.46795189, 1273.45393088),
    Band("B08", 2218.94553375, 1365.45589904),
    Band("B8A", 2266.46036911, 1356.13789355),
    Band("B09", 2246.0605464, 1302.3292881),
    Band("B11", 1594.42694882, 1079.19066363),
    Band("B12", 1009.32729131, 818.86747235),
)
TEN_METRES = ("B02", "B03", "B04", "B08")
NAMED_BANDS: dict[str, tuple[str, ...]] = {
    "all": tuple(band.name for band in BANDS),
    # The two bands of 60 m see the air rather than the ground.
    "ten": tuple(band.name for band in BANDS if band.name not in ("B01", "B09")),
    "rgb": ("B04", "B03", "B02"),
}
#: Pixels of a side at 10 m.
SIDE = 120
PARTS = ("train", "val", "test")
#: Rows of the official lists, without the patches under snow, cloud or cloud shadow.
PUBLISHED = {"train": 269_695, "val": 123_723, "test": 125_866}

#: The 43 classes of CORINE level 3 and what they are among the 19; None: removed.
_LAND = "Land principally occupied by agriculture, with significant areas of natural vegetation"
_GRASS = "Natural grassland and sparsely vegetated areas"
_HEATH = "Moors, heathland and sclerophyllous vegetation"
NOMENCLATURE: dict[str, str | None] = {
    "Continuous urban fabric": "Urban fabric",
    "Discontinuous urban fabric": "Urban fabric",
    "Industrial or commercial units": "Industrial or commercial units",
    "Road and rail networks and associated land": None,
    "Port areas": None,
    "Airports": None,
    "Mineral extraction sites": None,
    "Dump sites": None,
    "Construction sites": None,
    "Green urban areas": None,
    "Sport and leisure facilities": None,
    "Non-irrigated arable land": "Arable land",
    "Permanently irrigated land": "Arable land",
    "Rice fields": "Arable land",
    "Vineyards": "Permanent crops",
    "Fruit trees and berry plantations": "Permanent crops",
    "Olive groves": "Permanent crops",
    "Pastures": "Pastures",
    "Annual crops associated with permanent crops": "Permanent crops",
    "Complex cultivation patterns": "Complex cultivation patterns",
    _LAND: _LAND,
    "Agro-forestry areas": "Agro-forestry areas",
    "Broad-leaved forest": "Broad-leaved forest",
    "Coniferous forest": "Coniferous forest",
    "Mixed forest": "Mixed forest",
    "Natural grassland": _GRASS,
    "Moors and heathland": _HEATH,
    "Sclerophyllous vegetation": _HEATH,
    "Transitional woodland/shrub": "Transitional woodland, shrub",
    "Beaches, dunes, sands": "Beaches, dunes, sands",
    "Bare rock": None,
    "Sparsely vegetated areas": _GRASS,
    "Burnt areas": None,
    "Inland marshes": "Inland wetlands",
    "Peatbogs": "Inland wetlands",
    "Salt marshes": "Coastal wetlands",
    "Salines": "Coastal wetlands",
    "Intertidal flats": None,
    "Water courses": "Inland waters",
    "Water bodies": "Inland waters",
    "Coastal lagoons": "Marine waters",
    "Estuaries": "Marine waters",
    "Sea and ocean": "Marine waters",
}
#: The 19 classes in their official order.
CLASSES_19 = (
    "Urban fabric",
    "Industrial or commercial units",
    "Arable land",
    "Permanent crops",
    "Pastures",
    "Complex cultivation patterns",
    _LAND,
    "Agro-forestry areas",
    "Broad-leaved forest",
    "Coniferous forest",
    "Mixed forest",
    _GRASS,
    _HEATH,
    "Transitional woodland, shrub",
    "Beaches, dunes, sands",
    "Inland wetlands",
    "Coastal wetlands",
    "Inland waters",
    "Marine waters",
)
CLASSES_43 = tuple(NOMENCLATURE)


class BigEarthNetS2(ClosedSetFiles):
    """Sentinel-2 patches of 1.2 km, 12 bands, several of 19 (or 43) kinds of land cover each.

    A patch is a folder with a GeoTIFF per band and ``<patch>_labels_metadata.json``; each of the
    three official lists has a patch name per line. Bands of 20 m and 60 m are resampled to the
    120x120 pixels of 10 m. See `band_images` for what becomes of the 16-bit values. Reading the
    labels opens every JSON file, which on a slow disk takes long for the whole set: they are kept,
    and read again when a file has changed.

    The numbers of rows are those of the authors' lists; they were not counted again.

    Args:
        root: folder of the patches, ``BigEarthNet-v1.0``.
        lists: folder with ``train.csv``, ``val.csv`` and ``test.csv`` of the authors' repository
            ``BigEarthNet-S2_19-classes_models`` (folder ``splits``).
        classes: 19, or 43 as in CORINE level 3. Of a patch that has only classes which the 19 do
            not know, all labels are 0.
        bands: ``all`` (12), ``ten`` (without the two of 60 m), ``rgb``, or a list of names.
        resampling: ``nearest``, ``bilinear`` or ``bicubic``.
        spread: standard deviations on either side of a band's mean that 8 bits span.
        check_counts: see `ClosedSetFiles`.
        cache_dir: folder in which labels are kept; None: read them each time.

    Raises:
        UserError: a choice that does not exist.
    """

    description: ClassVar[str] = "BigEarthNet-S2: 519,284 Sentinel-2 patches, 12 bands, 19 labels"
    how_to_get: ClassVar[str] = (
        "fetch BigEarthNet-S2-v1.0.tar.gz (66 GB; bigearth.net) and the folder splits of "
        "git.tu-berlin.de/rsim/BigEarthNet-S2_19-classes_models (train.csv, val.csv, test.csv), "
        "unpack the archive, set dataset.root to the folder BigEarthNet-v1.0 with a folder per "
        "patch, and dataset.lists to the folder of the three lists."
    )
    name = "bigearthnet_s2"

    def __init__(
        self,
        root: str,
        lists: str,
        classes: Literal[19, 43] = 19,
        bands: str | Sequence[str] = "all",
        resampling: Resampling = "bicubic",
        spread: Positive = 2.0,
        check_counts: bool = True,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(root, check_counts=check_counts)
        self.lists = Path(lists)
        self.classes = classes
        self.chosen = choose_bands(bands, BANDS, NAMED_BANDS)
        self.limits = band_limits(BANDS, self.chosen, spread)
        self.resampling = resampling
        self.cache_dir = None if cache_dir is None else Path(cache_dir) / "bigearthnet"

    def missing(self) -> str | None:
        """None, or the list or folder that is not there."""
        lists = first_missing(self.lists, *(f"{part}.csv" for part in PARTS))
        return lists or (None if self.root.is_dir() else str(self.root))

    def class_names(self) -> Sequence[str]:
        """The 19 or 43 classes in their official order."""
        return CLASSES_19 if self.classes == 19 else CLASSES_43

    def published(self) -> dict[str, int | Sequence[int]]:
        """Rows of the official lists."""
        return dict(PUBLISHED)

    def parts(self) -> dict[str, Listed]:
        """The three lists, labels from the patches' own files."""
        parts = {}
        for part in PARTS:
            path = self.lists / f"{part}.csv"
            patches = [line.split(",")[0].strip() for line in read_lines(path)]
            parts[part] = Listed(patches, self._labels(patches, path))
        return parts

    def to_split(self, part: str, listed: Listed, names: Sequence[str]) -> Split:
        """A split of patches; that the first chosen band of each is there is checked."""
        stems = [f"{patch}/{patch}" for patch in listed.paths]
        suffixes = tuple(f"_{BANDS[number].name}.tif" for number in self.chosen)
        files = dataclasses.replace(listed, paths=[stem + suffixes[0] for stem in stems])
        split = files.to_split(part, self.root, names)
        images = BandImages(
            self.root,
            stems,
            suffixes,
            tuple(range(len(suffixes))),
            self.limits,
            SIDE,
            self.resampling,
        )
        fingerprint = f"{split.fingerprint}+{images.settings()}"
        return dataclasses.replace(
            split, inputs=images, keys=list(listed.paths), fingerprint=fingerprint
        )

    def _labels(self, patches: Sequence[str], listed_in: Path) -> NDArray[np.uint8]:
        """Multi-hot [N, C] of the patches."""
        if self.cache_dir is None:
            labels = self._read(patches, listed_in)
        else:
            files = [_labels_file(patch) for patch in patches]
            key = files_digest(files, stat_files(self.root, files), str(self.root.resolve()))
            path = self.cache_dir / f"labels-{key[:20]}.npy"
            packed = caches.read_array(path)
            if packed is None or packed.shape != (len(patches), -(-len(CLASSES_43) // 8)):
                log.info("reading the labels of %d patches; they are kept in %s", len(files), path)
                packed = np.packbits(self._read(patches, listed_in), axis=1)
                caches.write(path, packed)
            labels = np.unpackbits(packed, axis=1, count=len(CLASSES_43))
        if self.classes == 43:
            return labels
        gathered = np.zeros((len(labels), len(CLASSES_19)), dtype=np.uint8)
        for old, marks in zip(CLASSES_43, labels.T, strict=True):
            new = NOMENCLATURE[old]
            if new is not None:
                gathered[:, CLASSES_19.index(new)] |= marks
        return gathered

    def _read(self, patches: Sequence[str], listed_in: Path) -> NDArray[np.uint8]:
        """Multi-hot [N, 43] from the patches' own files."""
        number = {name: i for i, name in enumerate(CLASSES_43)}

        def read(some: Sequence[str]) -> NDArray[np.uint8]:
            labels = np.zeros((len(some), len(number)), dtype=np.uint8)
            for row, patch in enumerate(some):
                path = self.root / _labels_file(patch)
                for name in _read_labels(path, listed_in):
                    if name not in number:
                        raise UserError(f"{path} has the label '{name}', which is none of the 43.")
                    labels[row, number[name]] = 1
            return labels

        return np.concatenate([np.empty((0, len(number)), np.uint8), *at_once(read, patches)])


def _labels_file(patch: str) -> str:
    return f"{patch}/{patch}_labels_metadata.json"


def _read_labels(path: Path, listed_in: Path) -> list[str]:
    try:
        labels = json.loads(path.read_bytes())["labels"]
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing for a patch of {listed_in}; unpack the archive again."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} has no readable 'labels'; unpack the archive again.") from error
    if not isinstance(labels, list):
        raise UserError(f"{path}: 'labels' is no list; unpack the archive again.")
    return [str(label) for label in labels]
