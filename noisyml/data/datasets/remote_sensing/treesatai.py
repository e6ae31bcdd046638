"""TreeSatAI benchmark archive (Ahlswede et al., ESSD 2023): German forest, three sensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import OpenShare, Positive, WholeNonNegative
from noisyml.data.base import Split
from noisyml.data.datasets.remote_sensing import bigearthnet
from noisyml.data.readers.band_images import Band, BandImages, band_limits, choose_bands
from noisyml.data.readers.closed_set import ClosedSetFiles, Listed
from noisyml.data.readers.layout import check_count, first_missing
from noisyml.errors import UserError
from noisyml.storage.text import read_lines
from noisyml.targets import target_of

GENERA = (
    "Abies", "Acer", "Alnus", "Betula", "Cleared", "Fagus", "Fraxinus", "Larix", "Picea", "Pinus",
    "Populus", "Prunus", "Pseudotsuga", "Quercus", "Tilia",
)  # fmt: skip
SPECIES = (
    "Abies_alba", "Acer_pseudoplatanus", "Alnus_spec", "Betula_spec", "Cleared", "Fagus_sylvatica",
    "Fraxinus_excelsior", "Larix_decidua", "Larix_kaempferi", "Picea_abies", "Pinus_nigra",
    "Pinus_strobus", "Pinus_sylvestris", "Populus_spec", "Prunus_spec", "Pseudotsuga_menziesii",
    "Quercus_petraea", "Quercus_robur", "Quercus_rubra", "Tilia_spec",
)  # fmt: skip
LABELS = "labels/TreeSatBA_v9_60m_multi_labels.json"
LISTS = {"train": "train_filenames.lst", "test": "test_filenames.lst"}
#: Images of both lists together; how many each has is not published with the archive.
IMAGES = 50_381
_S2 = {band.name: band for band in bigearthnet.BANDS}
#: In the order of the files. No statistics are published: of Sentinel-2 those of BigEarthNet are
#: taken, of Sentinel-1 round values in decibels, and aerial bytes keep their full range.
SENSORS: dict[str, tuple[Band, ...]] = {
    "aerial": tuple(Band(name, 127.5, 63.75) for name in ("IR", "G", "B", "R")),
    "s1": (Band("VV", -12.0, 5.0), Band("VH", -19.0, 5.0), Band("VV/VH", 0.65, 0.25)),
    "s2": tuple(
        _S2[name]
        for name in (
            "B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09",
        )
    ),
}  # fmt: skip
RGB = {"aerial": ("R", "G", "B"), "s2": ("B04", "B03", "B02")}
#: Pixels of a side by sensor and extent.
SIDES = {
    ("aerial", "60m"): 304, ("s1", "60m"): 6, ("s2", "60m"): 6, ("s1", "200m"): 20,
    ("s2", "200m"): 20,
}  # fmt: skip


class TreeSatAI(ClosedSetFiles):
    """Patches of forest seen from a plane (20 cm) or by Sentinel-1 and -2 (10 m).

    The order of the bands and the labels are those of public readers of the archive; the archive
    itself was not at hand, so that the value ranges of ``s1`` and the order of the aerial bands
    could not be checked against it.

    Args:
        root: folder with ``aerial/60m/``, ``s1/{60m,200m}/``, ``s2/{60m,200m}/``, ``labels/`` and
            the two lists.
        sensor: ``aerial``, ``s1`` or ``s2``.
        extent: ``60m``, or ``200m`` (Sentinel only).
        labels: ``genus`` (15, several each) or ``species`` (20, the one of the file's name).
        area_threshold: a genus is a label if it covers more than this share of the patch, in
            [0, 1); images without any are left out. The paper takes 0.07.
        bands: ``all``, ``rgb`` (not s1), or a list of names.
        spread: standard deviations on either side of a band's mean that 8 bits span.
        val_fraction: share of the training images for ``val``, in [0, 1).
        seed: which of the possible carvings; unrelated to the seed of a run.
        check_counts: see `ClosedSetFiles`.

    Raises:
        UserError: a choice that does not exist, or a value out of range.
    """

    description: ClassVar[str] = "TreeSatAI: 50,381 forest patches, 15 genera, plane or Sentinel"
    how_to_get: ClassVar[str] = (
        "fetch the archive of zenodo.org/records/6780578 (50,381 images; aerial_60m_*.zip into "
        "aerial/60m, s1.zip, s2.zip, labels.zip, train_filenames.lst, test_filenames.lst), unpack "
        "it, and set dataset.root to the folder with aerial/, s1/, s2/, labels/ and the two lists."
    )
    name = "treesatai"

    def __init__(
        self,
        root: str,
        sensor: Literal["aerial", "s1", "s2"] = "aerial",
        extent: Literal["60m", "200m"] = "60m",
        labels: Literal["genus", "species"] = "genus",
        area_threshold: OpenShare = 0.07,
        bands: str | Sequence[str] = "all",
        spread: Positive = 2.0,
        val_fraction: OpenShare = 0.1,
        seed: WholeNonNegative = 0,
        check_counts: bool = True,
    ) -> None:
        super().__init__(root, val_fraction, seed, check_counts)
        if (sensor, extent) not in SIDES:
            raise UserError("dataset.sensor=aerial has images of dataset.extent=60m only.")
        self.sensor, self.extent = sensor, extent
        self.labels = labels
        self.area_threshold = area_threshold
        own = SENSORS[sensor]
        named = {"all": tuple(band.name for band in own)}
        if sensor in RGB:
            named["rgb"] = RGB[sensor]
        self.chosen = choose_bands(bands, own, named)
        self.limits = band_limits(own, self.chosen, spread)

    def missing(self) -> str | None:
        """None, or the first list or folder that is not there."""
        lists = first_missing(self.root, *LISTS.values(), f"{self.sensor}/{self.extent}")
        return lists or (first_missing(self.root, LABELS) if self.labels == "genus" else None)

    def class_names(self) -> Sequence[str]:
        """The genera or the species, by name."""
        return GENERA if self.labels == "genus" else SPECIES

    def published(self) -> dict[str, int | Sequence[int]]:
        """Nothing by part: the two lists are counted together when they are read."""
        return {}

    def parts(self) -> dict[str, Listed]:
        """The official lists, with the labels asked for."""
        names = {
            part: [line.strip() for line in read_lines(self.root / file)]
            for part, file in LISTS.items()
        }
        if self.check_counts:
            check_count(
                "Images of the two lists of treesatai", sum(map(len, names.values())), IMAGES
            )
        bare: list[str] = []
        read = self._genera if self.labels == "genus" else self._species
        parts = {}
        for part, images in names.items():
            labels = read(images)
            listed = Listed(
                [f"{self.sensor}/{self.extent}/{i}" for i in images], labels, keys=images
            )
            kept = target_of(labels).labelled(labels)
            bare += [images[row] for row in np.flatnonzero(~kept).tolist()]
            parts[part] = listed.take(np.flatnonzero(kept))
        self.left_out = {"images without a genus of such a share": bare} if bare else {}
        return parts

    def to_split(self, part: str, listed: Listed, names: Sequence[str]) -> Split:
        """A split of band images."""
        split = listed.to_split(part, self.root, names)
        side = SIDES[self.sensor, self.extent]
        images = BandImages(
            self.root, list(listed.paths), ("",), self.chosen, self.limits, side, "bilinear"
        )
        fingerprint = f"{split.fingerprint}+{images.settings()}"
        return dataclasses.replace(split, inputs=images, fingerprint=fingerprint)

    def _genera(self, images: Sequence[str]) -> NDArray[np.uint8]:
        path = self.root / LABELS
        try:
            shares = json.loads(path.read_bytes())
        except ValueError as error:
            raise UserError(f"{path} is no JSON file ({error}); unpack it again.") from error
        number = {name: i for i, name in enumerate(GENERA)}
        labels = np.zeros((len(images), len(GENERA)), dtype=np.uint8)
        for row, image in enumerate(images):
            if image not in shares:
                raise UserError(f"{path} has no entry for '{image}' of the lists; unpack it again.")
            for genus, share in shares[image]:
                if genus not in number:
                    raise UserError(f"{path}: '{genus}' of {image} is none of the 15 genera.")
                labels[row, number[genus]] |= share > self.area_threshold
        return labels

    def _species(self, images: Sequence[str]) -> NDArray[np.int64]:
        numbers = []
        for image in images:
            stem = PurePosixPath(image).stem
            found = [i for i, name in enumerate(SPECIES) if stem.startswith(f"{name}_")]
            if not found:
                raise UserError(
                    f"'{image}' begins with none of the 20 species; fetch the lists again."
                )
            numbers.append(found[0])
        return np.array(numbers, dtype=np.int64)
