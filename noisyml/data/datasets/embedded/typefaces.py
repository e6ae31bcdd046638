"""Characters drawn with the TrueType faces inside matplotlib, and the ones fit to be classes.

Three rules keep the labels clean:

* Only faces that map code points to the characters Unicode means take part. The Computer Modern
  faces (``cmsy10`` draws arrows where ASCII has letters), the private-use and sized STIX faces and
  the Last Resort face (one box per block) are left out.
* A face counts for a character if it draws ink, not its ``.notdef`` box, inside the reference cell.
* Look-alikes (Latin A, Greek Alpha, Cyrillic A) would be label noise of their own: in ascending
  order of code points, a character is dropped if one kept before it has the very same picture in
  any shared face, or differs by less than `min_difference` over all shared faces.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

#: Order matters: a face's position is its `font` number and part of the seed of its distortions.
FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
)
#: Raise it when the same settings give other pixels.
RENDERER = 1
#: Side of the cells in which look-alikes are sought, in pixels.
REFERENCE_SIDE = 32
#: Share of the cell's side: the em and the height of the baseline, so that accented capitals fit.
EM = 0.66
BASELINE = 0.72
GREY_LEVELS = 16
#: Range of each distortion; lengths are shares of the cell's side, greys shares of full white.
RANGES = (
    (-0.175, 0.175),  # rotation, radians
    (-0.15, 0.15),  # shear
    (0.88, 1.1),  # scale
    (0.94, 1.06),  # stretch along x
    (0.94, 1.06),  # stretch along y
    (-0.06, 0.06),  # shift along x
    (-0.06, 0.06),  # shift along y
    (-0.6, 0.8),  # weight of the strokes: eroded below 0, dilated above
    (0.0, 0.02),  # standard deviation of the blur
    (0.7, 1.0),  # grey of the ink
    (0.0, 0.15),  # grey of the paper
    (0.0, 0.06),  # standard deviation of the noise
)


@dataclass(frozen=True)
class Character:
    """One class: a code point and the faces (indices into `FACES`) that can draw it."""

    code_point: int
    faces: tuple[int, ...]

    @property
    def name(self) -> str:
        """Unicode name, e.g. ``LATIN SMALL LETTER E WITH ACUTE``."""
        return unicodedata.name(chr(self.code_point))


def script(code_point: int) -> str:
    """Coarse kind of a character: its alphabet for letters, else what sort of sign it is."""
    character = chr(code_point)
    category = unicodedata.category(character)
    if category[0] == "L":
        first = unicodedata.name(character).split()[0]
        return first.lower() if first in {"LATIN", "GREEK", "CYRILLIC", "ARMENIAN"} else "letter"
    kinds = {"N": "number", "P": "punctuation", "S": "symbol"}
    return "mathematics" if category == "Sm" else kinds[category[0]]


def find_characters(min_faces: int, min_difference: float) -> list[Character]:
    """The characters fit to be classes, by ascending code point (rules: see the module).

    Args:
        min_faces: least number of faces that draw the character.
        min_difference: least mean relative squared difference to every other character.
    """
    from fontTools.ttLib import TTFont

    maps = []
    for face in range(len(FACES)):
        with TTFont(face_file(face), lazy=True) as font:
            maps.append(frozenset(font.getBestCmap()))
    every = sorted(frozenset().union(*maps))
    counts = {point: sum(point in mapped for mapped in maps) for point in every}
    points = [p for p in every if counts[p] >= min_faces and _is_drawable(p)]

    drawn = np.zeros((len(points), len(FACES)), dtype=bool)
    cells = np.zeros((len(points), len(FACES), REFERENCE_SIDE**2), dtype=np.uint8)
    for face, mapped in enumerate(maps):
        rows = np.array([row for row, point in enumerate(points) if point in mapped])
        drawn[rows, face], cells[rows, face] = _reference_cells(face, [points[row] for row in rows])

    enough = drawn.sum(axis=1) >= min_faces
    drawn, cells = drawn[enough], cells[enough]
    points = [point for point, keep in zip(points, enough, strict=True) if keep]
    alike = _identical(cells, drawn) | (_difference(cells, drawn) < min_difference)
    kept = _keep_first(alike)
    return [
        Character(points[row], tuple(int(face) for face in np.flatnonzero(drawn[row])))
        for row in kept
    ]


def _is_drawable(point: int) -> bool:
    """Letters, numbers, punctuation and symbols with a name; no marks, blanks or controls."""
    character = chr(point)
    return unicodedata.category(character)[0] in "LNPS" and bool(unicodedata.name(character, ""))


def _reference_cells(
    face: int, points: Sequence[int]
) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Mask of the characters the face draws (bool [P]); undistorted cells (uint8 [P, R * R])."""
    # Canvases show a cell at twice its size; here they are not halved.
    size = REFERENCE_SIDE // 2
    # No Unicode character has this code point, so every face answers with its .notdef picture.
    drawings = np.stack([_canvas(face, point, size) for point in [*points, 0x10FFFF]])
    windows = drawings[:, size : 3 * size, size : 3 * size]
    inside = windows.any(axis=(1, 2))
    outside = drawings.any(axis=(1, 2)) & (
        drawings.sum(axis=(1, 2), dtype=np.int64) > windows.sum(axis=(1, 2), dtype=np.int64)
    )
    is_notdef = (drawings == drawings[-1]).all(axis=(1, 2))
    # Characters that are not drawn keep black cells, which the sums over faces rely on.
    drawn = inside & ~outside & ~is_notdef
    cells = np.where(drawn[:, None, None], windows, 0)
    return drawn[:-1], cells[:-1].reshape(len(points), -1)


def _identical(cells: NDArray[np.uint8], drawn: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pairs with the very same picture in at least one face that draws both; bool [P, P]."""
    same = np.zeros((len(drawn), len(drawn)), dtype=bool)
    for face in range(cells.shape[1]):
        # Characters the face does not draw get a number of their own.
        group = -1 - np.arange(len(drawn))
        numbers: dict[bytes, int] = {}
        for row in np.flatnonzero(drawn[:, face]):
            group[row] = numbers.setdefault(cells[row, face].tobytes(), len(numbers))
        same |= group[:, None] == group[None, :]
    np.fill_diagonal(same, False)
    return same


def _difference(cells: NDArray[np.uint8], drawn: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Squared difference of each pair over the larger squared norm, over shared faces; [P, P].

    Pixels are cut to 16 grey levels: all sums are then whole numbers below 2^24, exact in float32
    in whatever order the matrix product adds them, so the classes are the same on every machine.
    """
    values = (cells // (256 // GREY_LEVELS)).astype(np.float32)
    norms = np.einsum("pfi,pfi->pf", values, values)
    flat = values.reshape(len(values), -1)
    # Norm of the row's character over the faces it shares with the column's.
    shared = norms @ drawn.T.astype(np.float32)
    difference = shared + shared.T - 2 * (flat @ flat.T)
    largest = np.maximum(shared, shared.T)
    # Characters that no face shares cannot be told alike.
    return np.divide(difference, largest, out=np.ones_like(largest), where=largest > 0)


def _keep_first(alike: NDArray[np.bool_]) -> list[int]:
    """Rows kept when, in order, each kept row drops the later ones that are alike."""
    dropped = np.zeros(len(alike), dtype=bool)
    for row in np.flatnonzero(alike.any(axis=1)):
        if not dropped[row]:
            dropped[row + 1 :] |= alike[row, row + 1 :]
    return np.flatnonzero(~dropped).tolist()


def draw(
    characters: Sequence[Character], image_size: int, distortions: int, seed: int
) -> NDArray[np.uint8]:
    """All pictures, white on black: uint8 [N, S, S], ordered by character, face, distortion.

    Each picture has its own generator, seeded by (seed, code point, face, distortion): it does not
    depend on which other pictures are drawn.

    Args:
        characters: the classes.
        image_size: S, in pixels.
        distortions: pictures per character and face.
        seed: see above.
    """
    instances = list(instances_of(characters, distortions))
    pixels = np.empty((len(instances), image_size, image_size), dtype=np.uint8)
    # Blocks keep the intermediate arrays small enough for the cache of the processor.
    block = max(1, 2**20 // (2 * image_size) ** 2)
    for start in range(0, len(instances), block):
        chosen = instances[start : start + block]
        pixels[start : start + block] = _draw_block(chosen, image_size, seed)
    return pixels


def _draw_block(
    instances: Sequence[tuple[Character, int, int]], size: int, seed: int
) -> NDArray[np.uint8]:
    """Distorted pictures [n, S, S]: affine map, weight of the strokes, blur, contrast, noise."""
    uniform = np.empty((len(instances), 12))
    noise = np.empty((len(instances), size, size), dtype=np.float32)
    for row, (character, face, k) in enumerate(instances):
        rng = np.random.default_rng((seed, character.code_point, face, k))
        rng.random(out=uniform[row])
        rng.standard_normal(out=noise[row], dtype=np.float32)
    (
        angle,
        shear,
        scale,
        stretch_x,
        stretch_y,
        shift_x,
        shift_y,
        weight,
        blur,
        ink,
        paper,
        level,
    ) = (low + (high - low) * column for (low, high), column in zip(RANGES, uniform.T, strict=True))
    cos, sin, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    forward = (
        _matrices(cos, -sin, sin, cos)
        @ _matrices(one, shear, zero, one)
        @ _matrices(scale * stretch_x, zero, zero, scale * stretch_y)
    )
    # PIL wants the map from output to input coordinates, about the centres of both.
    inverse = np.linalg.inv(forward)
    centre = size + 2 * size * np.stack([shift_x, shift_y], axis=1)
    offset = 2 * size - np.einsum("nij,nj->ni", inverse, centre)
    warped = np.stack(
        [
            _warp(_canvas(face, character.code_point, size), inverse[row], offset[row])
            for row, (character, face, _) in enumerate(instances)
        ]
    )
    reach = max(1, round(size / 32))
    bold, light = (_spread(warped, reach, extreme) for extreme in (np.maximum, np.minimum))
    amount = weight.astype(np.float32)[:, None, None]
    strokes = warped + np.abs(amount) * (
        np.where(amount > 0, bold, light) - warped.astype(np.float32)
    )
    grey = _blur(_halve(strokes) / np.float32(255), blur * size)
    low, span, spread = (v.astype(np.float32)[:, None, None] for v in (paper, ink - paper, level))
    grey = low + span * grey + spread * noise
    return (np.clip(grey, 0, 1) * 255 + 0.5).astype(np.uint8)


def _matrices(a: NDArray, b: NDArray, c: NDArray, d: NDArray) -> NDArray[np.float64]:
    return np.stack([np.stack([a, b], axis=-1), np.stack([c, d], axis=-1)], axis=-2)


def _warp(
    canvas: NDArray[np.uint8], inverse: NDArray[np.float64], offset: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """The middle half of an affinely mapped canvas: [4S, 4S] to [2S, 2S]."""
    side = len(canvas) // 2
    coefficients = (*inverse[0].tolist(), offset[0], *inverse[1].tolist(), offset[1])
    image = Image.fromarray(canvas).transform(
        (side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    return np.asarray(image)


def _spread(pictures: NDArray[np.uint8], reach: int, extreme: np.ufunc) -> NDArray[np.uint8]:
    """Largest or smallest value in the square neighbourhood of each pixel, [n, H, W]."""
    for axis in (1, 2):
        padding = [(reach, reach) if i == axis else (0, 0) for i in range(3)]
        padded = np.pad(pictures, padding, mode="edge")
        length = pictures.shape[axis]
        slices = [
            padded[:, i : i + length] if axis == 1 else padded[:, :, i : i + length]
            for i in range(2 * reach + 1)
        ]
        pictures = functools.reduce(extreme, slices)
    return pictures


def _blur(pictures: NDArray[np.float32], sigma: NDArray[np.float64]) -> NDArray[np.float32]:
    """Gaussian blur, each picture with its own width: [n, H, W], sigma [n] in pixels."""
    radius = max(1, int(np.ceil(3 * sigma.max())))
    taps = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (taps / np.maximum(sigma, 1e-3)[:, None]) ** 2)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    for _ in range(2):
        # Blurring rows and transposing, twice, blurs both axes and restores the picture.
        padded = np.pad(pictures, ((0, 0), (radius, radius), (0, 0)), mode="edge")
        blurred = np.zeros_like(pictures)
        for tap in range(2 * radius + 1):
            blurred += weights[:, tap, None, None] * padded[:, tap : tap + pictures.shape[1]]
        pictures = blurred.transpose(0, 2, 1)
    return pictures


def _halve(pictures: NDArray) -> NDArray[np.float32]:
    """Mean of each block of 2 x 2 pixels: [n, 2H, 2W] to [n, H, W]."""
    blocks = pictures.astype(np.float32, copy=False)
    rows = blocks[:, 0::2] + blocks[:, 1::2]
    return (rows[:, :, 0::2] + rows[:, :, 1::2]) * np.float32(0.25)


# The distortions of a character and face come one after the other.
@functools.lru_cache(maxsize=2)
def _canvas(face: int, point: int, size: int) -> NDArray[np.uint8]:
    """The character at twice the size, with half a cell of margin on each side: [4S, 4S]."""
    image = Image.new("L", (4 * size, 4 * size))
    position = (2 * size, size + 2 * size * BASELINE)
    ImageDraw.Draw(image).text(position, chr(point), fill=255, font=_font(face, size), anchor="ms")
    return np.asarray(image)


@functools.lru_cache(maxsize=64)
def _font(face: int, size: int) -> ImageFont.FreeTypeFont:
    # The basic layout needs no optional library, so every installation draws the same.
    return ImageFont.truetype(
        str(face_file(face)), size=round(2 * size * EM), layout_engine=ImageFont.Layout.BASIC
    )


def face_file(face: int) -> Path:
    """The file of a face, by its position in `FACES`."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{FACES[face]}.ttf"


def instances_of(
    characters: Sequence[Character], distortions: int
) -> Iterator[tuple[Character, int, int]]:
    """Character, face and number of the distortion of every picture, in order."""
    for character in characters:
        for face in character.faces:
            for k in range(distortions):
                yield character, face, k


def versions() -> dict[str, Any]:
    """Versions that decide the pixels, besides the settings."""
    import matplotlib

    return {
        "renderer": RENDERER,
        "matplotlib": matplotlib.__version__,
        "freetype": features.version("freetype2"),
        "pillow": Image.__version__,
        "numpy": np.__version__,
        "unicode": unicodedata.unidata_version,
    }
