"""YFCC15M (Thomee et al., CACM 2016; the part CLIP used) in msgpack files of datadings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from noisyml.checks import OpenShare, WholeNonNegative
from noisyml.data.base import DatasetSource, Split
from noisyml.data.datasets.captions.records import Record, record_splits
from noisyml.data.readers.captions import flickr_caption
from noisyml.data.readers.layout import require_files
from noisyml.data.readers.partition import check_fractions
from noisyml.errors import UserError


class YFCC15M(DatasetSource):
    """Flickr images with title and description.

    Args:
        root: the folder with ``*.msgpack``.
        val_fraction: share for ``val``.
        test_fraction: share for ``test``.
        seed: which of the possible carvings; unrelated to the seed of a run.
        cache_dir: folder where the places of the images are kept; None: found anew each time.
    """

    description: ClassVar[str] = "YFCC15M: 15 million Flickr images with title and description"
    how_to_get: ClassVar[str] = (
        "fetch the 15 million images of the subset of YFCC100M that CLIP used "
        "(github.com/openai/CLIP, data/yfcc100m.md), write datadings' msgpack records with image, "
        "title and description, and set dataset.root to their folder."
    )
    labels_are_true = False

    def __init__(
        self,
        root: str,
        val_fraction: OpenShare = 0.01,
        test_fraction: OpenShare = 0.01,
        seed: WholeNonNegative = 0,
        cache_dir: str | None = None,
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        self.root = Path(root).expanduser()
        self.fractions = val_fraction, test_fraction
        self.seed = seed
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()

    def missing(self) -> str | None:
        """None, or the folder of records."""
        return None if any(self.root.glob("*.msgpack")) else f"{self.root}/*.msgpack"

    def splits(self) -> dict[str, Split]:
        """``train``, ``val`` and ``test``, carved by the places of the images.

        Raises:
            UserError: no records, or the library msgpack is not installed.
        """
        require_files(self, "yfcc15m")
        files = [str(path) for path in sorted(self.root.glob("*.msgpack"))]
        return record_splits(
            files, msgpack_records, image_of, self.fractions, self.seed, self.cache_dir
        )


def _library() -> Any:
    try:
        import msgpack
    except ImportError as error:
        raise UserError(
            "YFCC15M's records need the library msgpack: pip install 'noisyml[captions]'."
        ) from error
    return msgpack


def msgpack_records(file: str) -> Iterator[Record]:
    """Places and captions of the records of a file, named by their number.

    Raises:
        UserError: it holds something else.
    """
    with open(file, "rb") as stream:
        unpacker = _library().Unpacker(stream, raw=False, max_buffer_size=0)
        begin, number = 0, 0
        try:
            for record in unpacker:
                end = unpacker.tell()
                caption = flickr_caption(record["title"], record["description"])
                yield Record(str(number), caption, begin, end - begin)
                begin, number = end, number + 1
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}: record {number} is not one of image, title and description "
                f"({type(error).__name__}: {error})."
            ) from error


def image_of(content: bytes) -> bytes:
    """The encoded image in the bytes of a record."""
    image: bytes = _library().unpackb(content, raw=False)["image"]
    return image
