"""Letters and signs drawn from the TrueType faces inside matplotlib: a data set without download.

Class = code point, instances = faces x fixed distortions. Three rules keep the labels clean:

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
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

from noisyml.data.base import DatasetSource, Split
from noisyml.data.readers import cache
from noisyml.data.readers.layout import array_split, check_choice, require_files
from noisyml.data.readers.partition import (
    SPLIT_KINDS,
    SplitKind,
    carve_samples,
    check_fractions,
    hash_ranks,
)
from noisyml.errors import UserError

if TYPE_CHECKING:
    from noisyml.targets import Labels

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


class Glyphs(DatasetSource):
    """Rendered characters, deterministic and cached.

    Args:
        num_train_classes: classes of ``train`` (of every split if ``closed_set``).
        num_val_classes: further classes of ``val`` (``zero_shot`` only; 0 for no ``val``).
        num_test_classes: further classes of ``test`` (``zero_shot`` only).
        distortions: pictures per class and face, each with its own fixed distortion.
        min_faces: a class needs at least so many faces (1 to 16; 12 gives about 2,000 classes).
        max_faces: use at most so many faces per class, chosen by `class_seed`; None for all.
        image_size: side of the square pictures in pixels.
        split: ``zero_shot`` (disjoint classes) or ``closed_set`` (same classes, other instances).
        held_out: what ``val`` and ``test`` of a closed set hold: ``instances`` drawn per class, or
            whole ``faces`` that training never sees.
        val_fraction: share of the instances (or faces) for ``val``; ``closed_set`` only.
        test_fraction: share of the instances (or faces) for ``test``; ``closed_set`` only.
        min_difference: least squared difference between two classes, as a share of the larger
            squared norm, averaged over shared faces; nearer pairs lose their higher code point.
        targets: what is to be learnt: ``character`` (one label per picture), or the ``words`` of
            its Unicode name (several), which disjoint characters share.
        min_word_classes: words that fewer of the training characters have are left out.
        class_seed: seed of the order in which characters become classes.
        seed: seed of the distortions.
        cache_dir: folder for the drawn pixels; None to draw anew each time.

    Raises:
        UserError: a value out of range.
    """

    #: Drawn from the font: its own validation classes are labelled as truly as the test classes.
    clean_val = True
    description: ClassVar[str] = (
        "Letters and signs in 16 typefaces, 32x32 grey; about 2,000 classes, no download"
    )
    how_to_get: ClassVar[str] = "install matplotlib 3.9 or later, which brings the typefaces."

    def __init__(
        self,
        num_train_classes: int = 100,
        num_val_classes: int = 20,
        num_test_classes: int = 100,
        distortions: int = 4,
        min_faces: int = 12,
        max_faces: int | None = None,
        image_size: int = 32,
        split: SplitKind = "zero_shot",
        held_out: Literal["instances", "faces"] = "instances",
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        min_difference: float = 0.04,
        targets: Literal["character", "words"] = "character",
        min_word_classes: int = 5,
        class_seed: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        check_choice("dataset.split", split, SPLIT_KINDS)
        check_choice("dataset.held_out", held_out, ("instances", "faces"))
        check_choice("dataset.targets", targets, ("character", "words"))
        check_fractions(val_fraction, test_fraction)
        for key, value, least, most in (
            ("num_train_classes", num_train_classes, 2, 10_000),
            ("num_val_classes", num_val_classes, 0, 10_000),
            ("num_test_classes", num_test_classes, 2, 10_000),
            ("distortions", distortions, 1, 1_000),
            ("min_faces", min_faces, 1, len(FACES)),
            ("max_faces", len(FACES) if max_faces is None else max_faces, 1, len(FACES)),
            ("image_size", image_size, 8, 512),
            ("min_difference", min_difference, 0, 1),
            ("min_word_classes", min_word_classes, 1, 10_000),
            ("class_seed", class_seed, 0, 2**63),
            ("seed", seed, 0, 2**63),
        ):
            if not least <= value <= most:
                raise UserError(f"dataset.{key} is {value}; it must lie in {least} .. {most}.")
        self.num_train_classes = num_train_classes
        self.num_val_classes = num_val_classes
        self.num_test_classes = num_test_classes
        self.distortions = distortions
        self.min_faces = min_faces
        self.max_faces = max_faces
        self.image_size = image_size
        self.split = split
        self.held_out = held_out
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.min_difference = float(min_difference)
        self.targets = targets
        self.min_word_classes = min_word_classes
        self.class_seed = class_seed
        self.seed = seed
        self.cache_dir = None if cache_dir is None else Path(cache_dir) / "glyphs"

    def missing(self) -> str | None:
        """None, or the first typeface that matplotlib does not bring."""
        return next((str(f) for f in map(_face_file, range(len(FACES))) if not f.is_file()), None)

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (if asked for) and ``test``.

        Raises:
            UserError: more classes are asked for than there are, or the cache cannot be written.
        """
        require_files(self, "glyphs")
        if self.cache_dir is not None:
            # Before the seconds of drawing, not after them.
            cache.make_folder(self.cache_dir)
        chosen = self._chosen()
        words = self._words(chosen["train"])
        if self.split == "closed_set":
            return self._closed_set(chosen["train"], words)
        everything = [character for part in chosen.values() for character in part]
        pixels = self._pixels(everything)
        splits, start = {}, 0
        for name, part in chosen.items():
            count = sum(len(character.faces) for character in part) * self.distortions
            rows = np.arange(count)
            splits[name] = self._split(name, part, pixels[start : start + count], rows, words)
            start += count
        return splits

    def _closed_set(self, characters: list[Character], words: list[str]) -> dict[str, Split]:
        pixels = self._pixels(characters)
        labels, fonts = _labels_and_fonts(characters, self.distortions)
        if self.held_out == "faces":
            used = np.unique(fonts)
            names = [FACES[face] for face in used]
            of_face = carve_samples(
                np.zeros(len(used), dtype=np.int64),
                names,
                self.val_fraction,
                self.test_fraction,
                self.class_seed,
            )
            part = of_face[np.searchsorted(used, fonts)]
        else:
            keys = _keys(characters, self.distortions)
            part = carve_samples(
                labels, keys, self.val_fraction, self.test_fraction, self.class_seed
            )
        rows = {name: np.flatnonzero(part == i) for i, name in enumerate(("train", "val", "test"))}
        if not len(rows["test"]):
            raise UserError(
                f"dataset.test_fraction={self.test_fraction} leaves no {self.held_out} for the "
                "test split; raise it, or the number of faces or distortions."
            )
        if len(np.unique(labels[rows["train"]])) < len(characters):
            raise UserError(
                "dataset.held_out=faces takes every face of some class from training; raise "
                "dataset.min_faces or lower dataset.test_fraction and dataset.val_fraction."
            )
        return {
            name: self._split(name, characters, pixels[chosen], chosen, words)
            for name, chosen in rows.items()
            if len(chosen) or name != "val"
        }

    def _split(
        self,
        name: str,
        characters: list[Character],
        pixels: NDArray[np.uint8],
        rows: NDArray[np.int64],
        words: list[str],
    ) -> Split:
        labels, fonts = _labels_and_fonts(characters, self.distortions)
        keys = _keys(characters, self.distortions)
        labels, fonts = labels[rows], fonts[rows]
        captions = np.array([character.name for character in characters])
        scripts = np.array([script(character.code_point) for character in characters])
        extras = {"caption": captions[labels], "script": scripts[labels], "font": fonts}
        names = captions.tolist()
        targets: Labels = labels
        if self.targets == "words":
            names = words
            has = [[word in caption.split() for word in words] for caption in captions.tolist()]
            targets = np.array(has, dtype=np.uint8)[labels]
        return array_split(name, pixels, targets, names, [keys[row] for row in rows], extras)

    def _words(self, characters: list[Character]) -> list[str]:
        """The words that enough of the characters' names have, sorted; none for single labels."""
        if self.targets == "character":
            return []
        counts = Counter(word for c in characters for word in set(c.name.split()))
        words = sorted(word for word, count in counts.items() if count >= self.min_word_classes)
        if len(words) < 2:
            raise UserError(
                f"Fewer than two words occur in {self.min_word_classes} of the "
                f"{len(characters)} training characters: lower dataset.min_word_classes or raise "
                "dataset.num_train_classes."
            )
        return words

    def _chosen(self) -> dict[str, list[Character]]:
        """The characters of each split, in the order of their labels.

        Training takes from the front of the shuffled alphabet, testing from its end: the test
        classes stay the same when the number of training classes changes.
        """
        alphabet = self._alphabet()
        order = np.argsort(
            hash_ranks([f"U+{c.code_point:04X}" for c in alphabet], self.class_seed), kind="stable"
        )
        shuffled = [self._limit_faces(alphabet[i]) for i in order]
        sizes = {
            "train": self.num_train_classes,
            "val": self.num_val_classes if self.split == "zero_shot" else 0,
            "test": self.num_test_classes if self.split == "zero_shot" else 0,
        }
        if sum(sizes.values()) > len(shuffled):
            raise UserError(
                f"dataset=glyphs has {len(shuffled)} classes shared by {self.min_faces} faces, but "
                f"{sum(sizes.values())} are asked for; lower the numbers of classes or "
                "dataset.min_faces."
            )
        end = len(shuffled) - sizes["test"]
        chosen = {
            "train": shuffled[: sizes["train"]],
            "val": shuffled[end - sizes["val"] : end],
            "test": shuffled[end:],
        }
        return {name: part for name, part in chosen.items() if part}

    def _limit_faces(self, character: Character) -> Character:
        if self.max_faces is None or len(character.faces) <= self.max_faces:
            return character
        names = [f"{character.code_point}/{FACES[face]}" for face in character.faces]
        chosen = np.argsort(hash_ranks(names, self.class_seed), kind="stable")[: self.max_faces]
        return Character(character.code_point, tuple(character.faces[i] for i in sorted(chosen)))

    def _alphabet(self) -> list[Character]:
        settings = {"min_faces": self.min_faces, "min_difference": self.min_difference}
        if self.cache_dir is None:
            return find_characters(self.min_faces, self.min_difference)
        path = self.cache_dir / f"alphabet-{_cache_key(settings)}.json"
        cached = cache.read_json(path).get("characters")
        if cached is None:
            characters = find_characters(self.min_faces, self.min_difference)
            cache.write(path, json.dumps({"characters": [asdict(c) for c in characters]}).encode())
            return characters
        return [Character(c["code_point"], tuple(c["faces"])) for c in cached]

    def _pixels(self, characters: list[Character]) -> NDArray[np.uint8]:
        """Pixels [N, S, S] from the cache if their checksum holds, else drawn and cached."""
        settings: dict[str, Any] = {
            "characters": [[c.code_point, *c.faces] for c in characters],
            "image_size": self.image_size,
            "distortions": self.distortions,
            "seed": self.seed,
        }
        if self.cache_dir is None:
            return draw(characters, self.image_size, self.distortions, self.seed)
        path = self.cache_dir / f"pixels-{_cache_key(settings)}.npy"
        checksum = cache.read_json(path.with_suffix(".json")).get("sha256")
        cached = None if checksum is None else cache.read_array(path)
        if cached is not None and hashlib.sha256(cached.tobytes()).hexdigest() == checksum:
            return cached
        pixels = draw(characters, self.image_size, self.distortions, self.seed)
        cache.write(path, pixels)
        checksum = hashlib.sha256(pixels.tobytes()).hexdigest()
        note = {"sha256": checksum, "shape": pixels.shape, **settings, **_versions()}
        cache.write(path.with_suffix(".json"), json.dumps(note).encode())
        return pixels


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
        with TTFont(_face_file(face), lazy=True) as font:
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
    """Which characters the face draws (bool [P]) and their undistorted cells (uint8 [P, R * R])."""
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
    instances = list(_instances(characters, distortions))
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
        str(_face_file(face)), size=round(2 * size * EM), layout_engine=ImageFont.Layout.BASIC
    )


def _face_file(face: int) -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{FACES[face]}.ttf"


def _instances(
    characters: Sequence[Character], distortions: int
) -> Iterator[tuple[Character, int, int]]:
    for character in characters:
        for face in character.faces:
            for k in range(distortions):
                yield character, face, k


def _keys(characters: Sequence[Character], distortions: int) -> list[str]:
    return [
        f"U+{character.code_point:04X}/{FACES[face]}/{k}"
        for character, face, k in _instances(characters, distortions)
    ]


def _labels_and_fonts(
    characters: Sequence[Character], distortions: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    counts = [len(character.faces) for character in characters]
    labels = np.repeat(np.arange(len(characters)), counts)
    fonts = np.array([face for character in characters for face in character.faces])
    return (
        np.repeat(labels, distortions).astype(np.int64),
        np.repeat(fonts, distortions).astype(np.int64),
    )


def _versions() -> dict[str, Any]:
    """What, besides the settings, decides the pixels."""
    import matplotlib

    return {
        "renderer": RENDERER,
        "matplotlib": matplotlib.__version__,
        "freetype": features.version("freetype2"),
        "pillow": Image.__version__,
        "numpy": np.__version__,
        "unicode": unicodedata.unidata_version,
    }


def _cache_key(settings: dict[str, Any]) -> str:
    text = json.dumps({**settings, **_versions()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]
