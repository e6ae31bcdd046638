"""Old and new classes, and which images are labelled, against the released divisions."""

from __future__ import annotations

import functools
import zlib

import numpy as np
import pytest
from PIL import Image
from support import paths, vectors

from noisyml.data.datasets.discovery.photographs import (
    Aircraft,
    BirdHalves,
    CarHalves,
    Herbarium19,
    ImageNet100,
)
from noisyml.data.datasets.discovery.source import CategoryDiscovery
from noisyml.data.datasets.discovery.splits import (
    ClassSplit,
    class_lists,
    draw_labelled,
    named_list,
)
from noisyml.data.datasets.embedded.digits import Digits
from noisyml.data.datasets.embedded.mosaic import Mosaic
from noisyml.errors import UserError

arrays = functools.partial(vectors.arrays, paths.GOLDEN / "promptcal")
LISTS = {
    "cub200": "cub",
    "stanford_cars": "scars",
    "fgvc_aircraft": "aircraft",
    "herbarium19": "herbarium_19",
}


@pytest.mark.parametrize("name", LISTS)
def test_class_lists_are_the_released_ones(name):
    case, released = arrays("class_splits"), LISTS[name]
    old, new = named_list(name)
    assert old == case[f"{released}_old"].tolist()
    assert new == case[f"{released}_new"].tolist()
    split = ClassSplit.of(name, len(old) + len(new))
    assert split.order.tolist() == [*old, *new]
    if f"{released}_new_counts_hard_medium_easy" in case:
        assert case[f"{released}_new_counts_hard_medium_easy"].sum() == len(new)


def test_rules_of_the_other_sets_are_the_released_ones():
    case = arrays("class_splits")
    assert list(ClassSplit.of(5, 10).old) == case["cifar10_old"].tolist()
    assert list(ClassSplit.of(80, 100).old) == case["cifar100_old"].tolist()
    assert list(ClassSplit.of(50, 100).old) == case["imagenet100_old"].tolist()
    assert class_lists()["imagenet100_of_1000"]["classes"] == case["imagenet100_of_1000"].tolist()
    drawn = np.sort(np.random.RandomState(0).choice(1000, size=100, replace=False))
    assert drawn.tolist() == case["imagenet100_of_1000"].tolist()
    for number in (10, 25, 50):
        listed = case[f"cifar100_{number}_old"].tolist()
        assert named_list(f"cifar100_{number}") == (listed, None)
        if number > 10:
            redrawn = np.random.RandomState(0).choice(np.arange(100), number, replace=False)
            assert redrawn.tolist() == listed


@pytest.mark.parametrize(
    ("n", "share"), [(25, 0.5), (101, 0.5), (40, 0.1), (25_000, 0.5), (40_000, 0.5)]
)
def test_labelled_images_are_those_of_the_released_draw(n, share):
    case, name = arrays("instance_split"), f"n{n}_p{round(100 * share)}"
    # New classes among the old ones do not enter the draw.
    labels = np.zeros(2 * n, dtype=np.int64)
    labels[1::2] = 1
    marks = draw_labelled(labels, 1, share, 0)
    rows = np.flatnonzero(marks) // 2
    assert len(rows) == case[f"{name}_count"]
    assert zlib.crc32(rows.astype("<i8").tobytes()) == case[f"{name}_sorted_crc32"]
    assert set(case[f"{name}_first20"].tolist()) <= set(rows.tolist())
    if name in case:
        assert sorted(case[name].tolist()) == rows.tolist()


def test_digits_hide_the_labels_of_half_the_old_images_and_of_all_new_ones():
    source = CategoryDiscovery(Digits(val_fraction=0.0, test_fraction=0.2), old_classes=[3, 1])
    splits = source.splits()
    train = splits["train"]
    plain = Digits(val_fraction=0.0, test_fraction=0.2).splits()["train"]
    assert train.class_names[:4] == ["3", "1", "0", "2"]
    names = np.array(train.class_names)[train.labels]
    assert names.tolist() == np.array(plain.class_names)[plain.labels].tolist()
    old = train.labels < 2
    assert train.labelled.sum() == old.sum() // 2
    assert not train.labelled[~old].any()
    assert source.test_sets(["train", "test"]) == {
        "test": {"query": "unlabelled", "gallery": "labelled"},
        "held_out": {"pool": "test"},
    }


def test_a_share_of_each_class_may_be_labelled():
    labels = np.repeat([0, 1, 2], [10, 3, 10])
    marks = draw_labelled(labels, 2, 0.3, 1, "per_class")
    assert [int(marks[labels == number].sum()) for number in range(3)] == [3, 1, 0]


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ("birds", "no list of old classes 'birds'"),
        ("cub200", "not the 10 of the data set"),
        (11, "not the 10 of the data set"),
        ([0, 0], "not the 10 of the data set"),
        ([], "not the 10 of the data set"),
    ],
)
def test_lists_that_do_not_fit_are_refused(old, message):
    with pytest.raises(UserError, match=message):
        CategoryDiscovery(Digits(), old_classes=old).splits()


def test_several_labels_per_image_are_refused():
    with pytest.raises(UserError, match="one class"):
        CategoryDiscovery(Mosaic(Digits(), num_train=10, num_test=10)).splits()
    with pytest.raises(UserError, match="raise it"):
        CategoryDiscovery(Digits(), labelled_share=0.0).splits()


def picture(path, shade=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(path)


def test_birds_are_read_by_their_own_halves(tmp_path):
    names = ["001.Auk", "002.Bee"]
    images = [f"{name}/{i}.jpg" for i in range(2) for name in names]
    rows = list(enumerate(images, start=1))
    (tmp_path / "classes.txt").write_text("1 001.Auk\n2 002.Bee\n")
    (tmp_path / "images.txt").write_text("".join(f"{i} {image}\n" for i, image in rows))
    label = "".join(f"{i} {1 + names.index(image.split('/')[0])}\n" for i, image in rows)
    (tmp_path / "image_class_labels.txt").write_text(label)
    source = BirdHalves(str(tmp_path), val_fraction=0.0, check_counts=False)
    assert source.missing() == str(tmp_path / "images")
    for image in images:
        picture(tmp_path / "images" / image)
    assert source.missing() == str(tmp_path / "train_test_split.txt")
    (tmp_path / "train_test_split.txt").write_text("1 1\n2 1\n3 0\n4 1\n")
    splits = source.splits()
    assert splits["train"].labels.tolist() == [0, 1, 1]
    assert splits["test"].labels.tolist() == [0]
    assert splits["train"].class_names == ["Auk", "Bee"]
    with pytest.raises(UserError, match="expected 5994"):
        BirdHalves(str(tmp_path), val_fraction=0.0).splits()
    (tmp_path / "train_test_split.txt").write_text("1 1\n")
    with pytest.raises(UserError, match="other images than"):
        source.splits()


def test_cars_are_read_by_their_own_halves(tmp_path):
    from scipy.io import savemat

    def annotations(rows):
        kind = [("fname", object), ("class", object)]
        return np.array([(image, label) for image, label in rows], dtype=kind)

    (tmp_path / "devkit").mkdir()
    savemat(
        tmp_path / "devkit" / "cars_meta.mat",
        {"class_names": np.array(["Audi", "BMW"], dtype=object)},
    )
    train = [("00001.jpg", 2), ("00002.jpg", 1), ("00003.jpg", 2)]
    savemat(tmp_path / "devkit" / "cars_train_annos.mat", {"annotations": annotations(train)})
    test = [("00001.jpg", 1), ("00002.jpg", 2)]
    savemat(tmp_path / "cars_test_annos_withlabels.mat", {"annotations": annotations(test)})
    for folder, rows in (("cars_train", train), ("cars_test", test)):
        for image, _ in rows:
            picture(tmp_path / folder / image)
    splits = CarHalves(str(tmp_path), val_fraction=0.0, check_counts=False).splits()
    assert splits["train"].labels.tolist() == [1, 0, 1]
    assert splits["test"].labels.tolist() == [0, 1]
    assert splits["train"].keys[0] == "cars_train/00001.jpg"


def test_aircraft_are_numbered_by_variant(tmp_path):
    (tmp_path / "images_variant_trainval.txt").write_text("1 DC-10\n2 707-320\n3 DC-10\n")
    (tmp_path / "images_variant_test.txt").write_text("4 707-320\n")
    for image in range(1, 5):
        picture(tmp_path / "images" / f"{image}.jpg")
    source = Aircraft(str(tmp_path), val_fraction=0.0, check_counts=False)
    assert source.missing() is None
    splits = source.splits()
    assert splits["train"].class_names == ["707-320", "DC-10"]
    assert splits["train"].labels.tolist() == [1, 0, 1]
    (tmp_path / "images_variant_test.txt").write_text("4\n")
    with pytest.raises(UserError, match="'4' has no variant"):
        source.splits()


def test_plants_are_numbered_by_folders_as_text(tmp_path):
    for folder, images in (("small-train", 2), ("small-validation", 1)):
        for name in ("10", "9", "100"):
            for image in range(images):
                picture(tmp_path / folder / name / f"{image}.jpg")
    splits = Herbarium19(str(tmp_path), val_fraction=0.0, check_counts=False).splits()
    assert splits["train"].class_names == ["10", "100", "9"]
    assert splits["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(splits["test"]) == 3


def test_the_small_imagenet_is_cut_out_of_the_whole_one(tmp_path):
    for number in range(1000):
        (tmp_path / "train" / f"n{number:08d}").mkdir(parents=True)
    (tmp_path / "val").mkdir()
    picture(tmp_path / "train" / "n00000014" / "a.jpg")
    picture(tmp_path / "train" / "n00000015" / "a.jpg")
    picture(tmp_path / "val" / "n00000001" / "a.jpg")
    source = ImageNet100(str(tmp_path), val_fraction=0.0)
    splits = source.splits()
    assert len(splits["train"].class_names) == 100
    assert splits["train"].labels.tolist() == [1]
    assert splits["test"].labels.tolist() == [0]
    (tmp_path / "train" / "n99999999").mkdir()
    with pytest.raises(UserError, match="1001 folders"):
        source.splits()
