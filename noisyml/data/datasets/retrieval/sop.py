"""Stanford Online Products (Song, Xiang, Jegelka, Savarese, CVPR 2016)."""

from __future__ import annotations

from typing import ClassVar

from noisyml.data.readers.layout import first_missing, read_columns, whole_numbers
from noisyml.data.readers.zero_shot import Rows, ZeroShotFiles

LISTS = {"train": "Ebay_train.txt", "test": "Ebay_test.txt"}


class StanfordOnlineProducts(ZeroShotFiles):
    """Products of an online shop, about five photographs each; twelve coarse kinds.

    Args:
        root: the folder ``Stanford_Online_Products``.
        val_classes: see `ZeroShotFiles`.
        check_counts: see `ZeroShotFiles`.
        split: see `ZeroShotFiles`.
        archives: see `ZeroShotFiles`.
    """

    description: ClassVar[str] = "Stanford Online Products: 120,053 photographs, 22,634 products"
    how_to_get: ClassVar[str] = (
        "fetch Stanford_Online_Products.zip (2.9 GB) from the page of Deep Metric Learning via "
        "Lifted Structured Feature Embedding (cvgl.stanford.edu/projects/lifted_struct), unpack "
        "it, and set dataset.root to the folder Stanford_Online_Products with Ebay_train.txt, "
        "Ebay_test.txt and the twelve *_final/ folders."
    )
    name = "sop"
    published: ClassVar[dict[str, tuple[int, int]]] = {
        "train": (59551, 11318),
        "test": (60502, 11316),
    }
    archive_md5: ClassVar[dict[str, str]] = {
        "Stanford_Online_Products.zip": "7f73d41a2f44250d4779881525aea32e"
    }

    def missing(self) -> str | None:
        """None, or the first list that is not there."""
        return first_missing(self.root, *LISTS.values())

    def rows(self) -> dict[str, Rows]:
        """Rows of the two lists; the extra ``coarse_label`` counts the kinds from 0."""
        found = {}
        for part, file in LISTS.items():
            path = self.root / file
            # Columns: image_id class_id super_class_id path.
            table = read_columns(path, 4, skip=1)
            ids = whole_numbers([row[1] for row in table], path)
            coarse = whole_numbers([row[2] for row in table], path) - 1
            paths = [row[3] for row in table]
            names = {
                int(number): f"{image.partition('_final/')[0]} {number}"
                for number, image in zip(ids, paths, strict=True)
            }
            found[part] = Rows(paths, ids, names, {"coarse_label": coarse})
        return found
