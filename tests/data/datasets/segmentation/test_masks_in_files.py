"""VOC 2012 and Cityscapes in their official layouts, and lists of published splits."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from noisyml.data.datasets.segmentation.cityscapes import CLASSES, Cityscapes, cityscapes_classes
from noisyml.data.datasets.segmentation.voc2012 import VOC2012
from noisyml.data.labelled import LabelledPart
from noisyml.errors import UserError
from noisyml.targets.masks import decode_mask

#: First lines of the list of 10,582 images and of the validation list.
TRAIN = ["2007_000032", "2007_000039", "2007_000063", "2011_003276"]
VAL = ["2007_000033", "2007_000042"]
CITIES = {
    "train": ["jena_000078_000019", "hamburg_000000_080169", "strasbourg_000001_006562"],
    "val": ["frankfurt_000000_000294"],
}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def image(path, size=(6, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 0).save(path)


def mask(path, pixels, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.fromarray(pixels)
    if palette:
        numbers = made
        made = numbers.convert("P")
        made.putdata(pixels.ravel().tolist())
        made.putpalette([v for i in range(256) for v in ((i * 37) % 256, i, 255 - i)])
    made.save(path)


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    write(lists / "train_aug.txt", "\n".join(TRAIN) + "\n")
    write(lists / "val.txt", "\n".join(VAL) + "\n")
    for number, name in enumerate([*TRAIN, *VAL]):
        image(root / "JPEGImages" / f"{name}.jpg")
        pixels = np.full((4, 6), number, dtype=np.uint8)
        pixels[0] = 255
        # Official masks have a palette; those of SBD in PNG files are grey; one is in MATLAB's.
        if name in VAL or name == TRAIN[0]:
            mask(root / "SegmentationClass" / f"{name}.png", pixels, palette=True)
        elif name == TRAIN[3]:
            file = tmp_path / "benchmark_RELEASE" / "dataset" / "cls" / f"{name}.mat"
            file.parent.mkdir(parents=True)
            savemat(file, {"GTcls": {"Segmentation": pixels}})
        else:
            mask(root / "SegmentationClassAug" / f"{name}.png", pixels)
    return root


def test_voc_reads_palettes_grey_files_and_those_of_sbd(voc, tmp_path):
    sbd = str(tmp_path / "benchmark_RELEASE" / "dataset")
    source = VOC2012(str(voc), sbd=sbd, check_counts=False)
    assert source.missing() is None
    splits = source.splits()
    assert list(splits["train"].keys) == TRAIN
    assert list(splits["test"].keys) == VAL
    for number, content in enumerate([*splits["train"].labels, *splits["test"].labels]):
        pixels = decode_mask(content)
        assert (pixels[1:] == number).all()
        assert (pixels[0] == 255).all()
    assert splits["train"].class_names[-1] == "tvmonitor"
    with pytest.raises(UserError, match=r"1 of 4 masks.*2011_003276"):
        VOC2012(str(voc), check_counts=False).splits()
    with pytest.raises(UserError, match="expected 10582 as published, found 4"):
        VOC2012(str(voc), sbd=sbd).splits()
    (voc / "ImageSets" / "Segmentation" / "train_aug.txt").unlink()
    assert source.missing().endswith("train_aug.txt")


def test_cityscapes_numbers_its_classes_anew_once(tmp_path):
    root, cache = tmp_path / "cityscapes", tmp_path / "cache"
    for part, names in CITIES.items():
        for name in names:
            city = name.partition("_")[0]
            image(root / "leftImg8bit" / part / city / f"{name}_leftImg8bit.png")
            numbers = np.array([[0, 7, 8], [33, 34, 26]], dtype=np.uint8)
            pixels = np.kron(numbers, np.ones((2, 2), dtype=np.uint8))
            mask(root / "gtFine" / part / city / f"{name}_gtFine_labelIds.png", pixels)
    source = Cityscapes(str(root), check_counts=False, cache_dir=str(cache))
    splits = source.splits()
    assert sorted(splits["train"].keys) == sorted(CITIES["train"])
    found = decode_mask(splits["train"].labels[0])[::2, ::2]
    assert found.tolist() == [[255, 0, 1], [18, 255, 13]]
    assert len(list((cache / "masks").glob("converted-*.parquet"))) == 2
    again = source.splits()
    assert again["train"].labels.tolist() == splits["train"].labels.tolist()
    assert again["train"].fingerprint == splits["train"].fingerprint
    assert list(CLASSES.values())[11] == "person"
    assert (cityscapes_classes(np.arange(256, dtype=np.uint8)) != 255).sum() == 19


LISTS = {
    # TorchSemiSeg (CPS), U2PL, and bare names.
    "/images/train/jena_000078_000019.png\t/segmentation/train/jena_000078_000019_gtFine.png": 0,
    "leftImg8bit/train/hamburg/hamburg_000000_080169_leftImg8bit.png": 1,
    "strasbourg_000001_006562": 2,
}


def split_of(keys):
    from noisyml.data.readers.layout import array_split

    pixels = np.zeros((len(keys), 2, 2), dtype=np.uint8)
    labels = np.arange(len(keys)) % 2
    return array_split("train", pixels, labels, ["a", "b"], keys)


@pytest.mark.parametrize("line", LISTS)
def test_lines_of_published_splits_name_their_images(tmp_path, line):
    write(tmp_path / "labeled.txt", line + "\n")
    splits = {"train": split_of(CITIES["train"])}
    marks = LabelledPart(keys=str(tmp_path / "labeled.txt")).apply(splits)["train"].labelled
    assert np.flatnonzero(marks).tolist() == [LISTS[line]]


def test_orders_of_positions_are_cut_where_the_size_says(tmp_path):
    order = [3, 0, 4, 1, 2]
    write(tmp_path / "split_0.json", json.dumps(order))
    (tmp_path / "split_0.pkl").write_bytes(pickle.dumps(np.array(order), protocol=2))
    splits = {"train": split_of([f"k{i}" for i in range(5)])}
    for suffix in ("json", "pkl"):
        part = LabelledPart(keys=str(tmp_path / f"split_0.{suffix}"), size=2)
        assert np.flatnonzero(part.apply(splits)["train"].labelled).tolist() == [0, 3]
    with pytest.raises(UserError, match=r"data\.labelled_size"):
        LabelledPart(keys=str(tmp_path / "split_0.json"))
    four = {"train": split_of([f"k{i}" for i in range(4)])}
    with pytest.raises(UserError, match="no permutation of the 4"):
        LabelledPart(keys=str(tmp_path / "split_0.json"), size=2).apply(four)


def test_a_list_of_unknown_names_is_refused(tmp_path):
    write(tmp_path / "labeled.txt", "2007_000032\nnowhere\n")
    with pytest.raises(UserError, match="line 2: 'nowhere' is no sample"):
        LabelledPart(keys=str(tmp_path / "labeled.txt")).apply({"train": split_of(TRAIN)})
