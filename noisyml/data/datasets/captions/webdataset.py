"""Shards of images and captions: the tar files of the library webdataset."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.datasets.captions.records import Record, record_splits
from noisyml.data.readers.layout import require_files
from noisyml.data.readers.partition import check_fractions
from noisyml.errors import UserError

IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "ppm", "bmp"})
TEXTS = frozenset({"txt", "text", "caption"})


class WebDatasetShards(DatasetSource):
    """Tar files in which the members of a sample share their name up to the first dot.

    The caption is a text member (``.txt``, ``.text``, ``.caption``) or the field ``caption`` of a
    ``.json`` member. Samples without an image or a caption are passed over.

    Args:
        path: one shard, or a folder of ``*.tar``.
        val_fraction: share for ``val``.
        test_fraction: share for ``test``.
        seed: which of the possible carvings; unrelated to the seed of a run.
        cache_dir: folder where the places of the samples are kept; None: found anew each time.
    """

    description: ClassVar[str] = "Images and captions in tar shards as webdataset writes them"
    how_to_get: ClassVar[str] = "set dataset.path to a shard or a folder of .tar files."
    labels_are_true = False

    def __init__(
        self,
        path: str,
        val_fraction: OpenShare = 0.02,
        test_fraction: OpenShare = 0.02,
        seed: WholeNonNegative = 0,
        cache_dir: str | None = None,
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        self.path = Path(path).expanduser()
        self.fractions = val_fraction, test_fraction
        self.seed = seed
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()

    def missing(self) -> str | None:
        """None, or the shard or folder."""
        if self.path.is_file() or (self.path.is_dir() and any(self.path.glob("*.tar"))):
            return None
        return f"a shard or a folder of .tar files, {self.path},"

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` and ``test``, carved by the names of the samples.

        Raises:
            UserError: no shards, a file that is no tar, or no sample in them.
        """
        require_files(self, "webdataset")
        files = [self.path] if self.path.is_file() else sorted(self.path.glob("*.tar"))
        return record_splits(files, shard_records, bytes, self.fractions, self.seed, self.cache_dir)


def shard_records(file: Path) -> Iterator[Record]:
    """Places and captions of the images of a shard.

    Raises:
        UserError: it is no tar file.
    """
    key, image, caption = "", None, ""
    try:
        with tarfile.open(file) as shard:
            for member in shard:
                if not member.isfile():
                    continue
                folder, slash, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                name, suffix = folder + slash + stem, suffix.rpartition(".")[2].lower()
                if name != key:
                    if image is not None and caption.strip():
                        yield Record(key, caption.strip(), *image)
                    key, image, caption = name, None, ""
                if suffix in IMAGES:
                    image = member.offset_data, member.size
                elif suffix in TEXTS or suffix == "json":
                    content = shard.extractfile(member)
                    text = "" if content is None else content.read().decode("utf-8", "replace")
                    caption = caption or (_caption(text) if suffix == "json" else text)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"The shard {file} cannot be read ({error}); fetch it again.") from error
    if image is not None and caption.strip():
        yield Record(key, caption.strip(), *image)


def _caption(text: str) -> str:
    try:
        content = json.loads(text)
    except ValueError:
        return ""
    return str(content.get("caption") or "") if isinstance(content, dict) else ""
