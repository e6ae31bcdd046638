"""Stanford Cars (Krause, Stark, Deng, Fei-Fei, 3DRR 2013), split for zero-shot retrieval."""

from __future__ import annotations

import logging
import re
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from noisyml.checks import WholeNonNegative
from noisyml.data.readers.folders import LeftOut, entries, image_files
from noisyml.data.readers.layout import first_missing, first_missing_of_layouts
from noisyml.data.readers.partition import DevelopmentSplit
from noisyml.data.readers.zero_shot import Rows, ZeroShotFiles
from noisyml.errors import UserError

log = logging.getLogger(__name__)

Layout = Literal["auto", "folders", "annos", "devkit"]
LAYOUTS: tuple[Layout, ...] = ("folders", "annos", "devkit")
TRAINING_CLASSES = 98
#: Names of the classes in the order of their ids, as in ``cars_meta.mat`` of the devkit.
CLASS_LIST = "cars196_classes.txt"


class Cars196(ZeroShotFiles):
    """Cars: classes 1-98 train, 99-196 test, whatever the half of the original release.

    Three layouts are read. Only ``folders`` has the file names of PRISM's noisy lists. The ids of
    the classes are those of the devkit in all three.

    * ``folders``: ``images/<class name>/*.jpg``. Where a folder has no class's name, the ids are
      the ranks of the folders, see `ranked`.
    * ``annos``: ``cars_annos.mat`` and ``car_ims/``.
    * ``devkit``: ``devkit/cars_meta.mat``, ``devkit/cars_train_annos.mat``,
      ``cars_test_annos_withlabels.mat`` (there or in ``devkit/``), ``cars_train/``, ``cars_test/``.

    Args:
        root: folder of the data set.
        layout: one of the three, or ``auto`` for the first that is there.
        val_classes: see `ZeroShotFiles`.
        check_counts: see `ZeroShotFiles`.
        split: see `ZeroShotFiles`.
        archives: see `ZeroShotFiles`.
    """

    description: ClassVar[str] = "Cars196: 16,185 cars, 98 classes to train, 98 to test"
    how_to_get: ClassVar[str] = (
        "fetch the Stanford Cars data set of Krause et al., 2013 (16,185 images, about 2 GB; "
        "ai.stanford.edu/~jkrause/cars/car_dataset.html no longer serves it, mirrors do) and set "
        "dataset.root to a folder with images/<class name>/*.jpg, or cars_annos.mat and car_ims/, "
        "or devkit/, cars_test_annos_withlabels.mat, cars_train/ and cars_test/."
    )
    name = "cars196"
    published: ClassVar[dict[str, tuple[int, int]]] = {"train": (8054, 98), "test": (8131, 98)}
    archive_md5: ClassVar[dict[str, str]] = {
        "car_ims.tgz": "d5c8f0aa497503f355e17dc7886c3f14",
        "cars_annos.mat": "b407c6086d669747186bd1d764ff9dbc",
    }

    def __init__(
        self,
        root: str,
        layout: Layout = "auto",
        val_classes: WholeNonNegative = 0,
        check_counts: bool = True,
        split: DevelopmentSplit = "official",
        archives: str | None = None,
    ) -> None:
        super().__init__(root, val_classes, check_counts, split, archives)
        self.layout = layout

    def missing(self) -> str | None:
        """None, or what the layout lacks, or the one of which most is there."""
        layouts = LAYOUTS if self.layout == "auto" else (self.layout,)
        return first_missing_of_layouts(self.root, *map(self._needed, layouts))

    def rows(self) -> dict[str, Rows]:
        """All images of the layout, halved by official class id."""
        layout = self.layout
        if layout == "auto":
            layout = next(
                name for name in LAYOUTS if first_missing(self.root, *self._needed(name)) is None
            )
        found = {
            "folders": self._from_folders,
            "annos": self._from_annos,
            "devkit": self.from_devkit,
        }[layout]()
        in_train = found.ids <= TRAINING_CLASSES
        return {"train": found.take(in_train), "test": found.take(~in_train)}

    def _needed(self, layout: Layout) -> tuple[str, ...]:
        """Names below the root that a layout needs."""
        if layout == "folders":
            return ("images",)
        if layout == "annos":
            return ("cars_annos.mat", "car_ims")
        return (
            "devkit/cars_meta.mat",
            "devkit/cars_train_annos.mat",
            self._test_annotations(),
            "cars_train",
            "cars_test",
        )

    def _test_annotations(self) -> str:
        name = "cars_test_annos_withlabels.mat"
        return name if (self.root / name).exists() else f"devkit/{name}"

    def _from_folders(self) -> Rows:
        images = self.root / "images"
        left_out = LeftOut()
        folders, _ = entries(images, left_out)
        paths: list[str] = []
        ids: list[int] = []
        names = ranked(folders, images)
        for number, name in names.items():
            files = image_files(images / name, left_out)
            paths += [f"images/{name}/{file}" for file in files]
            ids += [number] * len(files)
        self.left_out = left_out.by_kind
        return Rows(paths, np.array(ids, dtype=np.int64), names)

    def _from_annos(self) -> Rows:
        path = self.root / "cars_annos.mat"
        content = _load_mat(path, "annotations", "class_names")
        records = _fields(path, content["annotations"], "relative_im_path", "class")
        names = {i: str(name) for i, name in enumerate(content["class_names"], start=1)}
        return _rows(path, [str(image) for image, _ in records], records, names)

    def from_devkit(self) -> Rows:
        """All images of the layout ``devkit``, those of its training half first."""
        meta = _load_mat(self.root / "devkit" / "cars_meta.mat", "class_names")
        names = {i: str(name) for i, name in enumerate(meta["class_names"], start=1)}
        records, paths = [], []
        for folder, file in (
            ("cars_train", "devkit/cars_train_annos.mat"),
            ("cars_test", self._test_annotations()),
        ):
            path = self.root / file
            part = _fields(path, _load_mat(path, "annotations")["annotations"], "fname", "class")
            records += part
            paths += [f"{folder}/{image}" for image, _ in part]
        return _rows(self.root / "devkit", paths, records, names)


def official_classes() -> list[str]:
    """The 196 names in the order of their ids."""
    text = resources.files(__package__).joinpath(CLASS_LIST).read_text(encoding="utf-8")
    return text.splitlines()


def ranked(folders: list[str], images: Path) -> dict[int, str]:
    """The folders of classes by their ids, in the order of the ids.

    A folder cannot have every name: "Ram C/V" is "Ram C-V" there; letters and digits are compared.
    If a folder has no class's name, the ids are the ranks of the folders by name, in which those
    that have one keep the official order among themselves, and a warning says so.

    Args:
        folders: names, sorted by bytes.
        images: where they lie, for the warning.
    """
    official = {_letters(name): i for i, name in enumerate(official_classes(), start=1)}
    ids = {name: official.get(_letters(name)) for name in folders}
    odd = [name for name, number in ids.items() if number is None]
    if not odd:
        return dict(sorted((number, name) for name, number in ids.items() if number is not None))
    log.warning(
        "%s: %d of %d folders have the name of no class, the first is '%s': the classes are "
        "numbered by the folders that are there",
        images, len(odd), len(folders), odd[0],
    )  # fmt: skip
    known = iter(sorted((number, name) for name, number in ids.items() if number is not None))
    order = [name if ids[name] is None else next(known)[1] for name in folders]
    return dict(enumerate(order, start=1))


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()


def _load_mat(path: Path, *names: str) -> dict[str, Any]:
    """The variables of a MATLAB file, structures as dictionaries."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, simplify_cells=True)
    except (OSError, ValueError, NotImplementedError, MatReadError) as error:
        raise UserError(f"{path} cannot be read as a MATLAB file: {error}.") from error
    for name in names:
        if name not in content:
            raise UserError(f"{path} has no variable '{name}'; fetch the official file.")
    return {name: np.atleast_1d(content[name]) for name in names}


def _fields(path: Path, records: Any, image: str, label: str) -> list[tuple[str, int]]:
    """Image and class of every annotation."""
    try:
        return [(record[image], int(record[label])) for record in records]
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{path}: an annotation has no '{image}' or '{label}'; fetch the file with labels."
        ) from error


def _rows(
    path: Path, paths: list[str], records: list[tuple[str, int]], names: dict[int, str]
) -> Rows:
    ids = np.array([number for _, number in records], dtype=np.int64)
    unnamed = np.setdiff1d(ids, list(names))
    if len(unnamed):
        raise UserError(f"{path}: class {unnamed[0]} has no name among the {len(names)} classes.")
    return Rows(paths, ids, names)
