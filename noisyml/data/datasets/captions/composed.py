"""Captions composed from the class names of any labelled data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from noisyml.checks import WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.readers.layout import require_files
from noisyml.errors import UserError


class ComposedCaptions(DatasetSource):
    """A data set of which an image is said to be its class, in one of several ways.

    Training images get a template each, drawn by their key; the others are captioned by the bare
    names, which is what zero-shot recognition chooses among.

    Args:
        source: any data set with one label per image.
        templates: captions of training images, ``{}`` is the name of the class.
        names: of the classes, in their order, to be used instead of those of the source.
        seed: which image gets which template; unrelated to the seed of a run.

    Raises:
        UserError: no template, or one without ``{}``.
    """

    description: ClassVar[str] = "The images of another data set, captioned by their classes"

    def __init__(
        self,
        source: DatasetSource,
        templates: Sequence[str],
        names: Sequence[str] | None = None,
        seed: WholeNonNegative = 0,
    ) -> None:
        if wrong := [text for text in templates if "{}" not in text]:
            raise UserError(
                f"dataset.templates: '{wrong[0]}' has no {{}} where the class name goes."
            )
        if not templates:
            raise UserError("dataset.templates=[] composes no caption: give a text with {}.")
        self.source, self.seed = source, seed
        self.templates = list(templates)
        self.names = None if names is None else list(names)
        self.labels_are_true, self.clean_val = source.labels_are_true, source.clean_val

    def missing(self) -> str | None:
        """The first thing that the source lacks, or None."""
        return self.source.missing()

    def splits(self) -> dict[str, Split]:
        """The splits of the source with captions.

        Raises:
            UserError: several labels per image, or another number of names than of classes.
        """
        require_files(self.source, type(self.source).__name__)
        return {name: self._captioned(split) for name, split in self.source.splits().items()}

    def _captioned(self, split: Split) -> Split:
        names = list(split.class_names) if self.names is None else self.names
        if split.target.name != "single":
            raise UserError("dataset.source must give one label per image; choose another.")
        if len(names) != len(split.class_names):
            raise UserError(
                f"dataset.names has {len(names)} names, and the data set has "
                f"{len(split.class_names)} classes: {', '.join(split.class_names)}."
            )
        said = [names[label] for label in split.labels.tolist()]
        if split.name == "train":
            said = [
                self.templates[self._draw(key)].replace("{}", name)
                for key, name in zip(split.keys, said, strict=True)
            ]
        return replace(split, labels=np.array(said, dtype=object), class_names=[])

    def _draw(self, key: str) -> int:
        digest = hashlib.sha256(f"{self.seed}\0{key}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % len(self.templates)
