"""Patches of slides in the official layouts, in trees of tiny pictures."""

import numpy as np
import pytest
from PIL import Image

from noisyml.data.datasets.pathology.folders import BACH, KatherTextures, KimiaPath24
from noisyml.data.datasets.pathology.pcam import PatchCamelyon
from noisyml.errors import UserError


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), "purple").save(path)


@pytest.fixture
def pcam(tmp_path):
    h5py = pytest.importorskip("h5py")
    for part, n in {"train": 6, "valid": 3, "test": 4}.items():
        for end, values in {
            "x": np.arange(n * 96 * 96 * 3, dtype=np.uint32).astype(np.uint8).reshape(n, 96, 96, 3),
            "y": (np.arange(n) % 2).astype(np.uint8).reshape(n, 1, 1, 1),
        }.items():
            name = f"camelyonpatch_level_2_split_{part}_{end}.h5"
            with h5py.File(tmp_path / name, "w") as file:
                file[end] = values
    return tmp_path


def test_patch_camelyon_reads_labels_of_four_dimensions_and_patches_one_by_one(pcam):
    source = PatchCamelyon(str(pcam), check_counts=False)
    splits = source.splits()
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 6,
        "val": 3,
        "test": 4,
    }
    assert splits["train"].labels.tolist() == [0, 1, 0, 1, 0, 1]
    patch = np.asarray(splits["val"].images.load(2))
    expected = np.arange(3 * 96 * 96 * 3, dtype=np.uint32).astype(np.uint8)
    assert np.array_equal(patch, expected.reshape(3, 96, 96, 3)[2])
    with pytest.raises(UserError, match="expected 262144 as published, found 6"):
        PatchCamelyon(str(pcam)).splits()
    (pcam / "camelyonpatch_level_2_split_valid_y.h5").unlink()
    assert source.missing().endswith("valid_y.h5")


def test_kather_tissues_are_divided_by_class(tmp_path):
    for folder in KatherTextures.folders:
        for number in range(10):
            image(tmp_path / folder / f"100B0_CRC-Prim-HE-09_{number:03d}.tif_Row_1_Col_301.tif")
    splits = KatherTextures(str(tmp_path), check_counts=False).splits()
    sizes = {name: np.bincount(split.labels).tolist() for name, split in splits.items()}
    assert sizes == {"train": [7] * 8, "val": [1] * 8, "test": [2] * 8}
    assert splits["train"].class_names[3] == "lympho"
    with pytest.raises(UserError, match="expected 625 as published, found 10"):
        KatherTextures(str(tmp_path)).splits()


def test_bach_lies_below_photos(tmp_path):
    for folder in BACH.folders:
        for number in range(5):
            image(tmp_path / "Photos" / folder / f"{folder[0].lower()}{number:03d}.tif")
    splits = BACH(str(tmp_path), check_counts=False).splits()
    assert list(splits["test"].class_names) == ["Normal", "Benign", "InSitu", "Invasive"]
    assert sum(map(len, splits.values())) == 20


def test_kimia_counts_its_folders_and_does_not_sort_them_as_text(tmp_path):
    for part in ("Training", "RGBPatches-test"):
        for number in range(24):
            image(tmp_path / part / f"s{number}" / "patch_1.jpg")
    source = KimiaPath24(str(tmp_path), val_fraction=0.0, check_counts=False)
    splits = source.splits()
    by_folder = dict(zip(splits["test"].keys, splits["test"].labels.tolist(), strict=True))
    assert by_folder["RGBPatches-test/s2/patch_1.jpg"] == 2
    assert by_folder["RGBPatches-test/s10/patch_1.jpg"] == 10
    with pytest.raises(UserError, match="expected 1325 as published, found 24"):
        KimiaPath24(str(tmp_path)).splits()
