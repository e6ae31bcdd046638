"""Images with masks in files; masks are read once, and stay in memory as they are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from noisyml.data.base import Split
from noisyml.data.readers.layout import at_once, file_split, files_digest, stat_files
from noisyml.errors import UserError
from noisyml.storage.caches import done_without
from noisyml.storage.files import atomic
from noisyml.storage.parquet import from_column
from noisyml.storage.reading import reading
from noisyml.targets import Labels
from noisyml.targets.masks import as_labels, decode_mask, encode_mask

#: Makes class numbers of the pixels of a file.
Convert = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def read_masks(
    root: Path, paths: Sequence[str], convert: Convert | None = None, cache_dir: Path | None = None
) -> Labels:
    """Contents of mask files [N], a few thousand bytes each.

    Args:
        root: folder that the paths are relative to.
        paths: N PNG files of class numbers.
        convert: makes class numbers of what the files hold; None: they hold them.
        cache_dir: folder in which converted masks are kept; None: they are converted each time.

    Raises:
        UserError: a file is missing or no mask.
    """

    # Data sets are listed without loading what reads them.
    import pyarrow as pa
    import pyarrow.parquet as pq

    def contents(some: Sequence[str]) -> list[bytes]:
        found = []
        for path in some:
            try:
                content = (root / path).read_bytes()
            except OSError as error:
                raise UserError(
                    f"The mask {root / path} cannot be read ({error.strerror}); unpack the masks "
                    "again."
                ) from error
            found.append(content if convert is None else encode_mask(convert(decode_mask(content))))
        return found

    file = None
    if convert is not None and cache_dir is not None:
        digest = files_digest(paths, stat_files(root, paths), f"{root} {convert.__name__}")
        file = cache_dir / "masks" / f"converted-{digest[:20]}.parquet"
        if file.is_file():
            with reading(file, "remove it, and it is made anew"):
                return as_labels(from_column(pq.read_table(file)["mask"]).tolist())
    labels = as_labels([content for part in at_once(contents, paths) for content in part])
    if file is not None:
        table = pa.table({"mask": pa.array(list(labels), pa.large_binary())})
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic(file) as temporary:
                pq.write_table(table, temporary)
        except OSError as error:
            done_without(file.parent, error)
    return labels


def mask_split(
    name: str,
    root: Path,
    images: Sequence[str],
    masks: Labels,
    class_names: Sequence[str],
    keys: Sequence[str],
) -> Split:
    """A split of image files with masks; its fingerprint covers both.

    Args:
        name: the split's name.
        root: folder the images are relative to.
        images: N paths.
        masks: N masks.
        class_names: C names.
        keys: N unique names.
    """
    split = file_split(name, root, images, masks, class_names)
    digest = hashlib.sha256(split.fingerprint.encode())
    digest.update(split.target.content(masks))
    return replace(split, keys=list(keys), fingerprint=digest.hexdigest())
