"""Quirks of released list files, from a few of their lines each, in trees of tiny pictures."""

import json

import numpy as np
import pytest
from PIL import Image
from support.remote_sensing_trees import SIDES, write_tiff

from noisyml.data.datasets.faces.raf_db import RAFDB
from noisyml.data.datasets.real_noise.cars98n import Cars98N
from noisyml.data.datasets.real_noise.food101n import Food101NClosedSet
from noisyml.data.datasets.remote_sensing.bigearthnet import BANDS, BigEarthNetS2
from noisyml.data.datasets.retrieval.cub200 import CUB200
from noisyml.data.datasets.retrieval.sop import StanfordOnlineProducts
from noisyml.data.datasets.retrieval.vehicle_id import VehicleID
from noisyml.data.datasets.small_images.tiny_imagenet import TinyImageNet
from noisyml.noise import HumanLabels, LabelList


def _image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), "red").save(path)


def _text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def _named(split):
    names = [split.class_names[label] for label in split.labels]
    return dict(zip(split.keys, names, strict=True))


def test_cub_counts_ids_from_1_and_numbers_its_folders(tmp_path):
    _text(tmp_path / "classes.txt", "1 001.Black_footed_Albatross\n101 101.White_Pelican\n")
    paths = {
        1: "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg",
        5865: "101.White_Pelican/White_Pelican_0001_97604.jpg",
    }
    _text(tmp_path / "images.txt", "".join(f"{i} {path}\n" for i, path in paths.items()))
    # In another order than images.txt; the official closed-set halves beside it are not read.
    _text(tmp_path / "image_class_labels.txt", "5865 101\n1 1\n")
    _text(tmp_path / "train_test_split.txt", "1 0\n5865 1\n")
    for path in paths.values():
        _image(tmp_path / "images" / path)
    splits = CUB200(str(tmp_path), check_counts=False).splits()
    assert _named(splits["train"]) == {f"images/{paths[1]}": "Black_footed_Albatross"}
    assert _named(splits["test"]) == {f"images/{paths[5865]}": "White_Pelican"}


def test_cars98n_numbers_folders_by_their_names_as_text(tmp_path):
    train = [
        "/data/cars_noise/img_v3/1/4198c93c40cb88b7--hummer-h-the-muscle.jpg,2",
        "/data/cars_noise/img_v3/10/73563657--list-model.jpg,3",
        "/data/cars_noise/img_v3/39/ca84a937--fayetteville-ga-cars-for-sale-used (1).jpg,34",
    ]
    test = ["/data/cars196/images/Ram C-V Cargo Van Minivan 2012/00001.jpg,173"]
    for name, rows in (("CARSN_train", train), ("CARS_test", test)):
        _text(tmp_path / "datalist" / f"{name}.csv", "\n".join(rows) + "\n")
        for row in rows:
            _image(tmp_path / row.rpartition(",")[0].removeprefix("/data/"))
    splits = Cars98N(str(tmp_path), check_counts=False).splits()
    assert splits["train"].class_names == ["1", "10", "39"]
    assert splits["train"].keys[2].endswith("used (1).jpg")
    assert splits["test"].class_names == ["Ram C-V Cargo Van Minivan 2012"]


def test_food101_lists_images_without_their_suffix(tmp_path):
    for dish in ("apple_pie", "baby_back_ribs"):
        _image(tmp_path / "food-101" / "images" / dish / "1011328.jpg")
        _image(tmp_path / "Food-101N_release" / "images" / dish / "a b.jpg")
    _text(tmp_path / "food-101" / "meta" / "test.txt", "apple_pie/1011328\n")
    meta = tmp_path / "Food-101N_release" / "meta"
    _text(meta / "imagelist.tsv", "class_name/key\napple_pie/a b.jpg\nbaby_back_ribs/a b.jpg\n")
    header = "class_name/key\tverification_label\n"
    _text(meta / "verified_train.tsv", header + "apple_pie/a b.jpg\t0\n")
    _text(meta / "verified_val.tsv", header)
    splits = Food101NClosedSet(str(tmp_path), check_counts=False).splits()
    assert _named(splits["test"]) == {"food-101/images/apple_pie/1011328.jpg": "apple_pie"}
    assert splits["train"].keys[0] == "Food-101N_release/images/apple_pie/a b.jpg"
    # Verified lists name images with blanks; columns are separated by a tab.
    assert splits["train"].extras["clean_label"].tolist() == [-2, -1]


def test_cifar_n_was_written_before_numpy_2(tmp_path):
    """A file of torch whose arrays name the module that NumPy 2 renamed."""
    import torch

    columns = {"clean_label": np.array([6, 9, 9]), "worse_label": np.array([1, 9, 9])}
    torch.save(columns, tmp_path / "labels.pt")
    content = (tmp_path / "labels.pt").read_bytes()
    assert b"numpy._core.multiarray" in content or b"numpy.core.multiarray" in content
    people = HumanLabels(path=str(tmp_path / "labels.pt"), label="worse_label")
    assert people.inject([6, 9, 9], 10).changed.tolist() == [True, False, False]


def test_raf_db_counts_from_1_and_ends_without_a_line_end(tmp_path):
    rows = ["train_00001.jpg 5", "train_00002.jpg 5", "train_00003.jpg 7", "test_0001.jpg 1"]
    _text(tmp_path / "EmoLabel" / "list_patition_label.txt", "\n".join(rows) + "\n")
    for row in rows:
        _image(tmp_path / "Image" / "aligned" / row.split()[0].replace(".", "_aligned."))
    splits = RAFDB(str(tmp_path), val_fraction=0, check_counts=False).splits()
    assert list(_named(splits["train"]).values()) == ["Sadness", "Sadness", "Neutral"]
    _text(tmp_path / "noise.txt", "train_00002.jpg 7\ntrain_00001.jpg 5\ntrain_00003.jpg 7")
    noise = LabelList(path=str(tmp_path / "noise.txt"), first_label=1)
    train = splits["train"]
    manifest = noise.inject(train.labels, 7, keys=train.keys, class_names=train.class_names)
    assert manifest.changed.tolist() == [False, True, False]


def test_tiny_imagenet_has_synonyms_and_another_order(tmp_path):
    _text(tmp_path / "wnids.txt", "n03444034\nn02124075\n")
    words = "n02124075\tEgyptian cat\nn03444034\tgo-kart\nn00002137\tabstraction, abstract entity\n"
    _text(tmp_path / "words.txt", words)
    _text(tmp_path / "val" / "val_annotations.txt", "val_0.JPEG\tn03444034\t0\t32\t44\t62\n")
    _image(tmp_path / "val" / "images" / "val_0.JPEG")
    for wnid in ("n03444034", "n02124075"):
        _image(tmp_path / "train" / wnid / "images" / f"{wnid}_0.JPEG")
        _text(tmp_path / "train" / wnid / f"{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    splits = TinyImageNet(str(tmp_path), val_fraction=0, check_counts=False).splits()
    assert splits["train"].class_names == ["Egyptian cat", "go-kart"]
    assert _named(splits["test"]) == {"val/images/val_0.JPEG": "go-kart"}


def test_bigearthnet_lists_have_no_header_and_carriage_returns(tmp_path):
    patches = [f"S2A_MSIL2A_20170617T113321_{end}" for end in ("36_85", "4_55", "4_56")]
    labels = [
        ["Pastures"],
        ["Continuous urban fabric", "Discontinuous urban fabric"],
        ["Bare rock"],
    ]
    for patch, names in zip(patches, labels, strict=True):
        folder = tmp_path / "patches" / patch
        content = json.dumps({"labels": names, "coordinates": {"ulx": 604800}})
        _text(folder / f"{patch}_labels_metadata.json", content)
        for band in BANDS:
            side = SIDES.get(band.name, 60)
            write_tiff(folder / f"{patch}_{band.name}.tif", np.zeros((side, side), np.uint16))
    for part, patch in zip(("train", "val", "test"), patches, strict=True):
        _text(tmp_path / f"{part}.csv", f"{patch}\r\n")
    source = BigEarthNetS2(str(tmp_path / "patches"), str(tmp_path), check_counts=False)
    splits = source.splits()
    assert splits["train"].keys == patches[:1]
    found = [np.flatnonzero(splits[part].labels[0]).tolist() for part in ("train", "val", "test")]
    # Two old classes that are one of the 19, and one that is none of them.
    assert found == [[4], [0], []]


def test_vehicle_id_writes_the_image_first_and_with_zeros(tmp_path):
    _text(
        tmp_path / "train_test_split" / "train_list.txt",
        "0279029 23781\n0279028 23781\n0000012 9\n",
    )
    _text(tmp_path / "train_test_split" / "test_list_800.txt", "0000001 66\n0000002 66\n")
    for name in ("0279029", "0279028", "0000012", "0000001", "0000002"):
        _image(tmp_path / "image" / f"{name}.jpg")
    splits = VehicleID(str(tmp_path), protocol="self", check_counts=False).splits()
    assert splits["train"].class_names == ["9", "23781"]
    assert splits["train"].keys[0] == "image/0279029.jpg"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_sop_has_a_header_and_ids_that_go_on_in_the_test(tmp_path, end):
    header = "image_id class_id super_class_id path"
    train, test = "1 1 1 bicycle_final/111085122871_0.JPG", "59552 11319 1 bicycle_final/2_0.JPG"
    for name, row in (("train", train), ("test", test)):
        _text(tmp_path / f"Ebay_{name}.txt", end.join([header, row, ""]))
        _image(tmp_path / row.split()[3])
    splits = StanfordOnlineProducts(str(tmp_path), check_counts=False).splits()
    assert _named(splits["train"]) == {"bicycle_final/111085122871_0.JPG": "bicycle 1"}
    assert _named(splits["test"]) == {"bicycle_final/2_0.JPG": "bicycle 11319"}
