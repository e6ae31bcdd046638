"""Shards of images and captions: the tar files of the library webdataset.

Shards on a web server are read there: a first run goes through each of them once for captions and
places, and every image comes by a request of its own.
"""

from __future__ import annotations

import io
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
from noisyml.data.readers.places import is_remote, opened
from noisyml.errors import UserError

IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "ppm", "bmp"})
TEXTS = frozenset({"txt", "text", "caption"})


class WebDatasetShards(DatasetSource):
    """Tar files in which the members of a sample share their name up to the first dot.

    The caption is a text member (``.txt``, ``.text``, ``.caption``) or the field ``caption`` of a
    ``.json`` member. Samples without an image or a caption are passed over.

    Args:
        path: one shard, a folder of ``*.tar``, or the address of a shard on a web server that gives
            parts of files; ``{000..127}`` in it stands for each of the numbers.
        val_fraction: share for ``val``.
        test_fraction: share for ``test``.
        seed: which of the possible carvings; unrelated to the seed of a run.
        cache_dir: folder where the places of the samples are kept; None: found anew each time.
    """

    description: ClassVar[str] = "Images and captions in tar shards as webdataset writes them"
    how_to_get: ClassVar[str] = (
        "set dataset.path to a shard, a folder of .tar files, or an address "
        "('dataset.path=\"https://example.org/{000..127}.tar\"')."
    )
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
        self.path = path if is_remote(path) else str(Path(path).expanduser())
        self.fractions = val_fraction, test_fraction
        self.seed = seed
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()

    def places(self) -> list[str]:
        """Paths or addresses of the shards; none if there are none."""
        if "{" in self.path and not Path(self.path).exists():
            return numbered(self.path)
        if is_remote(self.path) or not Path(self.path).is_dir():
            return [self.path]
        return [str(file) for file in sorted(Path(self.path).glob("*.tar"))]

    def missing(self) -> str | None:
        """None, or the shard or folder on this machine; servers are asked by `splits`."""
        places = self.places()
        absent = [p for p in places if not is_remote(p) and not Path(p).is_file()]
        if places and not absent:
            return None
        return f"a shard or a folder of .tar files, {absent[0] if absent else self.path},"

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` and ``test``, carved by the names of the samples.

        Raises:
            UserError: no shards, a file that is no whole tar, or no sample in them.
            ServerFailed: a server does not give a shard.
        """
        require_files(self, "webdataset")
        return record_splits(
            self.places(), shard_records, bytes, self.fractions, self.seed, self.cache_dir
        )


def numbered(pattern: str) -> list[str]:
    """Names for each choice in braces, as the library webdataset reads them.

    Raises:
        UserError: the library braceexpand is not installed, or braces do not pair.

    Example:
        >>> numbered("{08..10}.tar")
        ['08.tar', '09.tar', '10.tar']
    """
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise UserError(
            "Braces in dataset.path need the library braceexpand: pip install 'noisyml[captions]'."
        ) from error
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise UserError(
            f"dataset.path={pattern}: a brace has no partner; write numbers as {{000..127}}."
        ) from error


def shard_records(file: str) -> Iterator[Record]:
    """Places and captions of the images of a shard.

    Raises:
        UserError: it is no tar file, a compressed one, or one that breaks off.
        ServerFailed: a server does not give it.
    """
    key, image, caption = "", None, ""
    try:
        with opened(file) as content, tarfile.open(fileobj=content, mode="r:") as shard:
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
                    found = shard.extractfile(member)
                    text = "" if found is None else found.read().decode("utf-8", "replace")
                    caption = caption or (_caption(text) if suffix == "json" else text)
            if content.seek(0, io.SEEK_END) < shard.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it breaks off")
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"The shard {file} cannot be read as an uncompressed tar file ({error}); fetch it "
            "again, or write it anew."
        ) from error
    if image is not None and caption.strip():
        yield Record(key, caption.strip(), *image)


def _caption(text: str) -> str:
    try:
        content = json.loads(text)
    except ValueError:
        return ""
    return str(content.get("caption") or "") if isinstance(content, dict) else ""
