"""Letters and signs drawn from the TrueType faces inside matplotlib: a data set without download.

Class = code point, instances = faces x fixed distortions; `typefaces` beside this module draws them
and says which characters are fit to be classes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from noisyml.checks import Count, Ge, Interval, OpenShare, Share, WholeNonNegative
from noisyml.data.base import DatasetSource, Split, TestSet
from noisyml.data.datasets.embedded.typefaces import (
    FACES,
    Character,
    draw,
    face_file,
    find_characters,
    instances_of,
    script,
    versions,
)
from noisyml.data.readers.layout import array_split, require_files
from noisyml.data.readers.partition import (
    SplitKind,
    carve_samples,
    check_fractions,
    hash_ranks,
)
from noisyml.errors import UserError
from noisyml.storage import caches

if TYPE_CHECKING:
    from noisyml.targets import Labels


#: A number of classes that can be told apart.
Several = Annotated[int, Ge(2)]
#: A number of faces.
FaceCount = Annotated[int, Interval(ge=1, le=16)]


class Glyphs(DatasetSource):
    """Rendered characters, deterministic and cached.

    Args:
        num_train_classes: classes of ``train`` (of every split if ``closed_set``).
        num_val_classes: further classes of ``val`` (``zero_shot`` only; 0 for no ``val``).
        num_test_classes: further classes of ``test`` (``zero_shot`` only).
        num_distractor_classes: further classes (``zero_shot`` only) whose pictures belong to no
            class and join the gallery of a second test set, ``distractors``.
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
        targets: what is to be learnt: ``character`` (one label per picture), the ``words`` of its
            Unicode name (several), which disjoint characters share, or that name as a ``caption``.
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
        num_train_classes: Several = 100,
        num_val_classes: WholeNonNegative = 20,
        num_test_classes: Several = 100,
        num_distractor_classes: WholeNonNegative = 0,
        distortions: Count = 4,
        min_faces: FaceCount = 12,
        max_faces: FaceCount | None = None,
        image_size: Annotated[int, Interval(ge=8, le=512)] = 32,
        split: SplitKind = "zero_shot",
        held_out: Literal["instances", "faces"] = "instances",
        val_fraction: OpenShare = 0.1,
        test_fraction: OpenShare = 0.2,
        min_difference: Share = 0.04,
        targets: Literal["character", "words", "caption"] = "character",
        min_word_classes: Count = 5,
        class_seed: WholeNonNegative = 0,
        seed: WholeNonNegative = 0,
        cache_dir: str | None = None,
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        if num_distractor_classes and (split != "zero_shot" or targets != "character"):
            raise UserError(
                f"dataset.num_distractor_classes={num_distractor_classes} needs split=zero_shot "
                f"and targets=character: set it to 0."
            )
        self.num_train_classes = num_train_classes
        self.num_val_classes = num_val_classes
        self.num_test_classes = num_test_classes
        self.num_distractor_classes = num_distractor_classes
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
        return next((str(f) for f in map(face_file, range(len(FACES))) if not f.is_file()), None)

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` (if asked for) and ``test``.

        Raises:
            UserError: more classes are asked for than there are.
        """
        require_files(self, "glyphs")
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
        if "distractors" in splits:
            nobody = np.full(len(splits["distractors"]), -1, dtype=np.int64)
            splits["distractors"] = replace(splits["distractors"], labels=nobody)
        return splits

    def test_sets(self, names: Collection[str]) -> dict[str, TestSet]:
        """``test`` by itself, and ``distractors``: searched together with pictures of no class."""
        sets: dict[str, TestSet] = {"test": {"pool": "test"}}
        if "distractors" in names:
            sets["distractors"] = {"pool": "test", "distractors": "distractors"}
        return sets

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
        if self.targets == "caption":
            names, targets = [], captions.astype(object)[labels]
        elif self.targets == "words":
            names = words
            has = [[word in caption.split() for word in words] for caption in captions.tolist()]
            targets = np.array(has, dtype=np.uint8)[labels]
        return array_split(name, pixels, targets, names, [keys[row] for row in rows], extras)

    def _words(self, characters: list[Character]) -> list[str]:
        """The words that enough of the characters' names have, sorted; none for single labels."""
        if self.targets != "words":
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
            "distractors": self.num_distractor_classes,
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
            "distractors": shuffled[end - sizes["val"] - sizes["distractors"] : end - sizes["val"]],
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
        cached = caches.read_json(path).get("characters")
        if cached is None:
            characters = find_characters(self.min_faces, self.min_difference)
            caches.write(path, json.dumps({"characters": [asdict(c) for c in characters]}).encode())
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
        checksum = caches.read_json(path.with_suffix(".json")).get("sha256")
        cached = None if checksum is None else caches.read_array(path)
        if cached is not None and hashlib.sha256(cached.tobytes()).hexdigest() == checksum:
            return cached
        pixels = draw(characters, self.image_size, self.distortions, self.seed)
        caches.write(path, pixels)
        checksum = hashlib.sha256(pixels.tobytes()).hexdigest()
        note = {"sha256": checksum, "shape": pixels.shape, **settings, **versions()}
        caches.write(path.with_suffix(".json"), json.dumps(note).encode())
        return pixels


def _keys(characters: Sequence[Character], distortions: int) -> list[str]:
    return [
        f"U+{character.code_point:04X}/{FACES[face]}/{k}"
        for character, face, k in instances_of(characters, distortions)
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


def _cache_key(settings: dict[str, Any]) -> str:
    text = json.dumps({**settings, **versions()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]
