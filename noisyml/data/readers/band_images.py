"""Images of other bands than grey or RGB, read from GeoTIFF files and quantised to 8 bits.

Satellites measure 16-bit or floating-point values, and images flow through this house as bytes. A
band's values are mapped linearly from a range of its own to 0 .. 255 and clipped:
``round(255 (x - low) / (high - low))``. With the range *mean plus and minus two standard
deviations* of the training images (`spread`), a step is 1.6 % of a standard deviation, and a
backbone that subtracts 0.5 and divides by 0.25 sees standardised bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from noisyml.data.inputs import BrokenImage, InputKind, Picture
from noisyml.errors import UserError

Resampling = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True)
class Band:
    """One band of an instrument.

    Attributes:
        name: its official name, e.g. ``B8A``.
        mean: over the training images, in the unit of the files.
        std: standard deviation, likewise.
    """

    name: str
    mean: float
    std: float

    def limits(self, spread: float) -> tuple[float, float]:
        """Values that become 0 and 255."""
        return self.mean - spread * self.std, self.mean + spread * self.std


@dataclass(frozen=True)
class BandImages:
    """Images whose bands lie in one or more TIFF files; picklable, for worker processes.

    Attributes:
        root: folder of the data set.
        stems: N paths relative to the root, to which the suffixes are appended.
        suffixes: of the files of an image; their bands follow one another.
        chosen: positions of the bands to use, among all bands of these files.
        limits: float [bands, 2], what becomes 0 and 255 of each chosen band.
        side: length of both sides, in pixels; bands of another size are resampled.
        resampling: ``nearest``, ``bilinear`` or ``bicubic``.
    """

    kind: ClassVar[InputKind] = "images"

    root: Path
    stems: Sequence[str]
    suffixes: tuple[str, ...]
    chosen: tuple[int, ...]
    limits: NDArray[np.float32]
    side: int
    resampling: Resampling

    def __len__(self) -> int:
        return len(self.stems)

    def settings(self) -> str:
        """Settings that the pixels depend on beside the files, for a fingerprint."""
        choices = (self.suffixes, self.chosen, self.side, self.resampling)
        return repr((*choices, self.limits.tolist()))

    def content(self, index: int) -> bytes:
        """The files of the image at `index`, and how they are read."""
        files = [self.root / f"{self.stems[index]}{suffix}" for suffix in self.suffixes]
        return self.settings().encode() + b"".join(file.read_bytes() for file in files)

    def load(self, index: int) -> Picture:
        """The image at `index`: uint8 [side, side, bands], grey and RGB as PIL images."""
        read: list[NDArray[Any]] = []
        for suffix in self.suffixes:
            read += list(read_tiff(self.root / f"{self.stems[index]}{suffix}"))
        if max(self.chosen) >= len(read):
            raise BrokenImage(
                str(self.root / self.stems[index]), f"{len(read)} bands, too few for the chosen"
            )
        bands = np.stack([self._resampled(read[number]) for number in self.chosen], axis=-1)
        low, high = self.limits.T
        share = np.clip((bands - low) / (high - low), 0, 1)
        pixels = np.rint(share * 255).astype(np.uint8)
        if len(self.chosen) == 1:
            return Image.fromarray(pixels[:, :, 0])
        return Image.fromarray(pixels) if len(self.chosen) == 3 else pixels

    def _resampled(self, band: NDArray[Any]) -> NDArray[np.float32]:
        values = band.astype(np.float32)
        if values.shape == (self.side, self.side):
            return values
        way = Image.Resampling[self.resampling.upper()]
        return np.asarray(Image.fromarray(values).resize((self.side, self.side), way))


def read_tiff(path: Path) -> NDArray[Any]:
    """The bands of a TIFF file, [bands, H, W] in the file's own type.

    Raises:
        BrokenImage: it is missing or damaged.
        UserError: the package that reads it is not installed.
    """
    try:
        import tifffile
    except ImportError as error:
        raise UserError(
            "Images of several bands are read with tifffile, which is not installed: "
            "pip install 'noisyml[geo]'."
        ) from error
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            array = series.asarray()
            axes = series.axes
    except Exception as error:
        # A damaged file makes decoders trip over anything.
        raise BrokenImage(str(path), str(error) or type(error).__name__) from error
    if array.ndim == 2:
        return array[None]
    if array.ndim != 3:
        raise BrokenImage(str(path), f"{array.ndim} dimensions, not rows, columns and bands")
    # Samples (S) last: bands interleaved by pixel, as GDAL writes them by default.
    return np.moveaxis(array, 2, 0) if axes.endswith("S") else array


def choose_bands(
    chosen: Sequence[str] | str, known: Sequence[Band], named: dict[str, tuple]
) -> tuple[int, ...]:
    """Positions of the bands asked for.

    Args:
        chosen: a key of `named`, or names of bands in the order wanted.
        known: all bands in the order of the files.
        named: names of bands by a word, e.g. ``rgb``.

    Raises:
        UserError: an unknown word or band, a repeated one, or none.
    """
    names = [band.name for band in known]
    if isinstance(chosen, str):
        if chosen not in named:
            raise UserError(
                f"dataset.bands is '{chosen}'; choose {', '.join(named)}, or a list of "
                f"{', '.join(names)}."
            )
        chosen = named[chosen]
    wrong = next((name for name in chosen if name not in names), None)
    if wrong is not None:
        raise UserError(f"dataset.bands has no '{wrong}'; there are {', '.join(names)}.")
    if not chosen or len(set(chosen)) != len(chosen):
        raise UserError("dataset.bands must name at least one band, and each once.")
    return tuple(names.index(name) for name in chosen)


def band_limits(bands: Sequence[Band], chosen: Sequence[int], spread: float) -> NDArray[np.float32]:
    """Values of each chosen band that become 0 and 255, float32 [bands, 2].

    Raises:
        UserError: `spread` is not positive.
    """
    return np.array([bands[number].limits(spread) for number in chosen], dtype=np.float32)
