"""Looking over a data set before training on it: broken images, duplicates, classes, pictures."""

from __future__ import annotations

import hashlib
import io
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from noisyml.data.base import Split
from noisyml.data.inputs import ArrayImages, BrokenImage, FileImages, ImageSource, as_rgb
from noisyml.targets import Labels, target_of

#: Images given to the threads at a time: bounds the memory that waiting results take.
BLOCK = 2048
NAME_WIDTH = 220


@dataclass(frozen=True)
class ImageFacts:
    """Facts that decoding one image tells.

    Attributes:
        digest: hash of the file's bytes (of the pixels if held in memory); empty if unreadable.
        mode: PIL mode as stored, e.g. ``L``, ``RGB``, ``CMYK``; empty if broken.
        size: width and height in pixels; (0, 0) if broken.
        broken: why the image cannot be decoded, else None.
    """

    digest: str
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    broken: str | None = None


@dataclass(frozen=True)
class SplitReport:
    """Findings of `check_images` in one split of N images and C classes.

    Attributes:
        split: the split's name.
        keys: the N sample keys.
        labels: int64 [N] or uint8 [N, C].
        class_names: C names.
        facts: one entry per image.
    """

    split: str
    keys: list[str]
    labels: Labels
    class_names: list[str]
    facts: list[ImageFacts]

    @property
    def broken(self) -> list[tuple[str, str]]:
        """Key and reason of every undecodable image, in order."""
        return [
            (key, fact.broken)
            for key, fact in zip(self.keys, self.facts, strict=True)
            if fact.broken is not None
        ]

    @property
    def modes(self) -> dict[str, int]:
        """Number of images of each stored mode, most frequent first."""
        return dict(Counter(fact.mode for fact in self.facts if fact.mode).most_common())

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Least, median and greatest width and height; ``{}`` if no image could be decoded."""
        sides = np.array([fact.size for fact in self.facts if fact.broken is None])
        if not len(sides):
            return {}
        columns = {"min": sides.min(0), "median": np.median(sides, axis=0), "max": sides.max(0)}
        return {name: (int(value[0]), int(value[1])) for name, value in columns.items()}

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Images of each class, int64 [C]."""
        return target_of(self.labels).class_counts(self.labels, len(self.class_names))

    @property
    def unlabelled(self) -> int:
        """Images without any label; multi-label only."""
        return int((~target_of(self.labels).labelled(self.labels)).sum())

    @property
    def lone_classes(self) -> list[str]:
        """Classes with a single image: nothing in the split can be retrieved for it."""
        return [self.class_names[i] for i in np.flatnonzero(self.class_counts == 1)]

    @property
    def empty_classes(self) -> list[str]:
        """Classes of the list of names without any image in the split."""
        return [self.class_names[i] for i in np.flatnonzero(self.class_counts == 0)]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        histogram = dict(zip(self.class_names, self.class_counts.tolist(), strict=True))
        return {
            "split": self.split,
            "images": len(self.keys),
            "broken": [{"key": key, "reason": reason} for key, reason in self.broken],
            "modes": self.modes,
            "sizes": self.sizes,
            "class_counts": histogram,
            "unlabelled": self.unlabelled,
            "lone_classes": self.lone_classes,
            "empty_classes": self.empty_classes,
        }


@dataclass(frozen=True)
class Duplicate:
    """Images with the same bytes.

    Attributes:
        members: split, key and class name (names, joined) of each.
    """

    members: list[tuple[str, str, str]]

    @property
    def across_splits(self) -> bool:
        """True if more than one split holds the image: the test is then no test."""
        return len({split for split, _, _ in self.members}) > 1

    @property
    def labels_differ(self) -> bool:
        """True if the copies carry different classes: one label at least is wrong."""
        return len({name for _, _, name in self.members}) > 1


def check_images(
    split: Split, workers: int = 4, progress: Callable[[int], None] | None = None
) -> SplitReport:
    """Decode every image of a split.

    Args:
        split: the split.
        workers: decoding threads, at least 1.
        progress: called with the number of images done since its last call.

    Raises:
        ValueError: `workers` below 1.
    """
    facts: list[ImageFacts] = []
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(split), BLOCK):
            rows = range(start, min(start + BLOCK, len(split)))
            for fact in pool.map(lambda row: inspect_image(split.images, row), rows):
                facts.append(fact)
                if progress is not None:
                    progress(1)
    return SplitReport(split.name, list(split.keys), split.labels, list(split.class_names), facts)


def inspect_image(images: ImageSource, index: int) -> ImageFacts:
    """Hash and decode one image; a broken one is reported, not raised."""
    digest = mode = ""
    try:
        if isinstance(images, FileImages):
            with open(images.path(index), "rb") as file:
                content = file.read()
            digest = hashlib.sha256(content).hexdigest()
            # `load` converts; what the file holds is only seen before that.
            mode = _stored_mode(content)
        image = images.load(index)
    except OSError as error:
        return ImageFacts(digest, broken=error.strerror or str(error))
    except BrokenImage as error:
        return ImageFacts(digest, broken=error.reason or str(error))
    if isinstance(images, ArrayImages):
        pixels = images.pixels[index]
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    size = image.shape[1::-1] if isinstance(image, np.ndarray) else image.size
    if not digest:
        digest = hashlib.sha256(repr(size).encode() + image.tobytes()).hexdigest()
    stored = f"{image.shape[2]} bands" if isinstance(image, np.ndarray) else image.mode
    return ImageFacts(digest, mode or stored, (int(size[0]), int(size[1])))


def _stored_mode(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.mode
    except Exception:
        # Decoding the whole image will fail too, and says why.
        return ""


def find_duplicates(reports: Mapping[str, SplitReport]) -> list[Duplicate]:
    """All groups of images with the same bytes, within and across splits, in order of first sight.

    Args:
        reports: report of each split.
    """
    groups: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for name, report in reports.items():
        texts = target_of(report.labels).texts(report.labels, report.class_names)
        for key, text, fact in zip(report.keys, texts, report.facts, strict=True):
            if fact.digest:
                groups[fact.digest].append((name, key, text))
    return [Duplicate(members) for members in groups.values() if len(members) > 1]


def sizes_differ(reports: Iterable[SplitReport]) -> bool:
    """True if the decodable images of all splits together have more than one size."""
    limits = {report.sizes[key] for report in reports if report.sizes for key in ("min", "max")}
    return len(limits) > 1


def contact_sheet(
    split: Split, classes: int = 24, instances: int = 16, tile: int = 64
) -> Image.Image:
    """A picture of the split: a row per class, spread evenly over classes and their images.

    Args:
        split: the split; one without classes (captions) has a row per caption.
        classes: most rows.
        instances: most columns.
        tile: side of an image, in pixels; a crossed red tile stands for a broken one.
    """
    names: list[str] = list(split.class_names)
    if names:
        shown = _spread(np.flatnonzero(split.class_counts), classes)
        members = [split.members(int(label)) for label in shown]
    else:
        group, names, shown = split.target.groups(split.labels, names, classes)
        members = [np.flatnonzero(group == number) for number in shown]
    rows = [_spread(own, instances) for own in members]
    width = NAME_WIDTH + tile * max(len(row) for row in rows)
    sheet = Image.new("RGB", (width, tile * len(rows)), "black")
    pen = ImageDraw.Draw(sheet)
    font = sheet_font(11)
    for y, (label, row) in enumerate(zip(shown, rows, strict=True)):
        name = str(names[int(label)])
        pen.multiline_text(
            (4, y * tile + 4), wrapped(name, tile), fill="white", font=font, spacing=1
        )
        for x, index in enumerate(row):
            corner = (NAME_WIDTH + x * tile, y * tile)
            try:
                image = as_rgb(split.images.load(int(index)))
            except BrokenImage:
                box = (*corner, corner[0] + tile - 1, corner[1] + tile - 1)
                pen.rectangle(box, outline="red")
                pen.line(box, fill="red")
                pen.line((box[0], box[3], box[2], box[1]), fill="red")
                continue
            scale = tile / max(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            image = image.resize(size, Image.Resampling.BICUBIC)
            offset = ((tile - size[0]) // 2, (tile - size[1]) // 2)
            sheet.paste(image, (corner[0] + offset[0], corner[1] + offset[1]))
    return sheet


def sheet_font(size: int) -> ImageFont.FreeTypeFont:
    """A typeface with accents, Greek and Cyrillic, in pixels; Pillow's own has only ASCII."""
    import matplotlib

    return ImageFont.truetype(
        Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size
    )


def wrapped(name: str, tile: int, width: int = 30) -> str:
    """The name cut into lines of `width` letters that fit into `tile` pixels."""
    lines = textwrap.wrap(name, width=width, max_lines=max(1, tile // 14))
    return "\n".join(lines)


def _spread(values: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` of the values, evenly spaced, first and last among them."""
    if len(values) <= most:
        return values
    return values[np.round(np.linspace(0, len(values) - 1, most)).astype(np.int64)]
