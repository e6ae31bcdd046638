"""The papers' data sets, read from tiny trees in the official layouts."""

import gzip
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from scipy.io import savemat
from support import paths

from noisyml.data import datasets
from noisyml.data.datasets.embedded.digits import Digits
from noisyml.data.datasets.real_noise.cars98n import Cars98N
from noisyml.data.datasets.real_noise.food101n import Food101N
from noisyml.data.datasets.retrieval.cars196 import Cars196
from noisyml.data.datasets.retrieval.cub200 import CUB200
from noisyml.data.datasets.retrieval.inshop import InShop
from noisyml.data.datasets.retrieval.sop import StanfordOnlineProducts
from noisyml.data.datasets.retrieval.vehicle_id import VehicleID
from noisyml.data.datasets.small_images import fashion_mnist
from noisyml.data.datasets.small_images.fashion_mnist import FashionMNIST
from noisyml.data.datasets.small_images.mnist import read_idx
from noisyml.data.readers.partition import held_out_classes
from noisyml.data.readers.path_lists import read_path_list
from noisyml.errors import UserError

CONF = paths.CONF / "dataset"
FILES = (
    CUB200, Cars196, StanfordOnlineProducts, InShop, VehicleID, Cars98N, Food101N, FashionMNIST,
)  # fmt: skip


def _image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), "red").save(path)


def _names(split):
    return [split.class_names[label] for label in split.labels]


@pytest.fixture
def cub(tmp_path):
    root = tmp_path / "CUB_200_2011"
    root.mkdir()
    (root / "classes.txt").write_text("".join(f"{c} {c:03d}.Bird_{c}\n" for c in range(1, 201)))
    images, labels, number = [], [], 0
    for c in (1, 2, 100, 101, 200):
        for j in range(2):
            number += 1
            path = f"{c:03d}.Bird_{c}/Bird_{c}_{j}.jpg"
            _image(root / "images" / path)
            images.append(f"{number} {path}\n")
            labels.append(f"{number} {c}\n")
    (root / "images.txt").write_text("".join(images))
    (root / "image_class_labels.txt").write_text("".join(reversed(labels)))
    return root


def test_cub_splits_by_class(cub):
    splits = CUB200(str(cub), check_counts=False).splits()
    assert list(splits) == ["train", "test"]
    assert _names(splits["train"]) == ["Bird_1"] * 2 + ["Bird_2"] * 2 + ["Bird_100"] * 2
    assert _names(splits["test"]) == ["Bird_101"] * 2 + ["Bird_200"] * 2
    assert splits["test"].labels.tolist() == [0, 0, 1, 1]
    # What the released noisy lists call the images, behind the folder's name.
    assert splits["train"].keys[0] == "images/001.Bird_1/Bird_1_0.jpg"
    assert splits["train"].images.load(0).size == (4, 3)


def test_cub_validation_takes_the_last_training_classes(cub):
    splits = CUB200(str(cub), val_classes=1, check_counts=False).splits()
    assert set(_names(splits["val"])) == {"Bird_100"}
    assert set(_names(splits["train"])) == {"Bird_1", "Bird_2"}
    with pytest.raises(UserError, match=r"val_classes=2 does not fit cub200: .* allow 0 to 1"):
        CUB200(str(cub), val_classes=2, check_counts=False).splits()


def test_development_takes_half_of_the_training_classes(cub):
    with pytest.raises(UserError, match=r"split=dev halves the 3 training classes of cub200"):
        CUB200(str(cub), split="dev", check_counts=False).splits()
    for number, c in ((11, 3), (12, 7)):
        _image(cub / "images" / f"{c:03d}.Bird_{c}" / "a.jpg")
        with (cub / "images.txt").open("a") as images:
            images.write(f"{number} {c:03d}.Bird_{c}/a.jpg\n")
        with (cub / "image_class_labels.txt").open("a") as labels:
            labels.write(f"{number} {c}\n")
    splits = CUB200(str(cub), split="dev", check_counts=False).splits()
    # Five classes: the first 5 // 2 train; the official test is left alone.
    assert set(_names(splits["train"])) == {"Bird_1", "Bird_2"}
    assert set(_names(splits["val"])) == {"Bird_3", "Bird_7", "Bird_100"}
    assert set(_names(splits["test"])) == {"Bird_101", "Bird_200"}
    assert splits["val"].labels.tolist() == [2, 2, 0, 1]
    with pytest.raises(UserError, match=r"split=dev holds out half .* leave dataset.val_classes=1"):
        CUB200(str(cub), split="dev", val_classes=1, check_counts=False).splits()
    with pytest.raises(UserError, match=r"split=half must be official or dev"):
        CUB200(str(cub), split="half", check_counts=False).splits()


@pytest.mark.parametrize(
    ("classes", "trained"), [(100, 50), (98, 49), (11_318, 5659), (3997, 1998)]
)
def test_development_halves_of_the_benchmarks(classes, trained):
    """CUB, Cars, SOP and In-Shop: classes 0 to 49, 48, 5658 and 1997 train (proxynca_pp)."""
    held_out = held_out_classes(np.repeat(np.arange(classes), 2), "dev", 0, "x")
    np.testing.assert_array_equal(np.flatnonzero(~held_out), np.arange(2 * trained))


def test_archives_are_compared_with_their_published_sums(cub, tmp_path, monkeypatch):
    folder = tmp_path / "downloads"
    folder.mkdir()
    source = CUB200(str(cub), check_counts=False, archives=str(folder))
    with pytest.raises(UserError, match=r"holds none of CUB_200_2011\.tgz of cub200"):
        source.splits()
    (folder / "CUB_200_2011.tgz").write_bytes(b"abc")
    with pytest.raises(UserError, match=r"MD5 sum 900150983cd24fb0d6963f7d28e17f72, published is"):
        source.splits()
    # RFC 1321, A.5.
    sums = {"CUB_200_2011.tgz": "900150983cd24fb0d6963f7d28e17f72"}
    monkeypatch.setattr(CUB200, "archive_md5", sums)
    assert len(source.splits()["train"]) == 6


@pytest.mark.parametrize("family", [CUB200, Cars196, StanfordOnlineProducts])
def test_published_sums_are_md5_sums(family):
    assert family.archive_md5
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in family.archive_md5.values())


def test_counts_are_checked(cub):
    with pytest.raises(UserError, match=r"expected 5864 as published, found 6.*check_counts=false"):
        CUB200(str(cub)).splits()


def test_class_counts_are_checked(cub, monkeypatch):
    monkeypatch.setattr(CUB200, "published", {"train": (6, 3), "test": (4, 5)})
    with pytest.raises(UserError, match=r"Classes of the test split .*: expected 5 .*, found 2"):
        CUB200(str(cub)).splits()
    monkeypatch.setattr(CUB200, "published", {"train": (6, 3), "test": (4, 2)})
    assert len(CUB200(str(cub)).splits()["train"]) == 6


def test_cub_contradictions(cub):
    (cub / "images" / "002.Bird_2" / "Bird_2_1.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 6 images of the train split are missing.*Bird_2_1"):
        CUB200(str(cub), check_counts=False).splits()
    labels = cub / "image_class_labels.txt"
    good = labels.read_text()
    labels.write_text(good + "11 1\n")
    with pytest.raises(UserError, match=r"Image 11 stands in only one of images.txt"):
        CUB200(str(cub), check_counts=False).splits()
    labels.write_text(good.replace("10 200", "10 201"))
    with pytest.raises(UserError, match=r"class 201 is not in classes.txt"):
        CUB200(str(cub), check_counts=False).splits()
    labels.write_text(good.replace("10 200", "10"))
    with pytest.raises(UserError, match=r"line 1: expected 2 columns, found 1"):
        CUB200(str(cub), check_counts=False).splits()
    labels.write_text(good.replace("10 200", "10 two"))
    with pytest.raises(UserError, match=r"'two' stands where a whole number"):
        CUB200(str(cub), check_counts=False).splits()


def _car_names():
    return [f"Make {c:03d} Sedan" for c in range(1, 197)]


CARS = (1, 98, 98, 99, 196)


def _cars_folders(root):
    for name in _car_names():
        (root / "images" / name).mkdir(parents=True)
    for i, c in enumerate(CARS):
        _image(root / "images" / _car_names()[c - 1] / f"{i}.jpg")


def _cars_annos(root):
    records = []
    for i, c in enumerate(CARS, start=1):
        _image(root / "car_ims" / f"{i:06d}.jpg")
        records.append((f"car_ims/{i:06d}.jpg", float(c), float(i % 2)))
    fields = [("relative_im_path", "O"), ("class", "O"), ("test", "O")]
    content = {
        "annotations": np.array([records], dtype=fields),
        "class_names": np.array([_car_names()], dtype=object),
    }
    savemat(root / "cars_annos.mat", content)


def _cars_devkit(root):
    (root / "devkit").mkdir()
    names = {"class_names": np.array([_car_names()], dtype=object)}
    savemat(root / "devkit" / "cars_meta.mat", names)
    fields = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
    halves = {"cars_train": (1, 99), "cars_test": (98, 98, 196)}
    files = ("devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat")
    for file, (folder, classes) in zip(files, halves.items(), strict=True):
        records = [(1.0, float(c), f"{i:05d}.jpg") for i, c in enumerate(classes, start=1)]
        for _, _, name in records:
            _image(root / folder / name)
        savemat(root / file, {"annotations": np.array([records], dtype=fields)})


@pytest.mark.parametrize("make", [_cars_folders, _cars_annos, _cars_devkit])
def test_cars_layouts_agree(tmp_path, make):
    make(tmp_path)
    splits = Cars196(str(tmp_path), check_counts=False).splits()
    train, test = ([f"Make {c:03d} Sedan" for c in half] for half in ((1, 98, 98), (99, 196)))
    assert sorted(_names(splits["train"])) == train
    assert sorted(_names(splits["test"])) == test
    assert splits["train"].images.load(2).size == (4, 3)


def test_cars_layout_can_be_named(tmp_path):
    _cars_folders(tmp_path)
    _cars_annos(tmp_path)
    for layout, start in (("auto", "images/"), ("annos", "car_ims/")):
        source = Cars196(str(tmp_path), layout=layout, check_counts=False)
        assert source.splits()["train"].keys[0].startswith(start)
    assert Cars196(str(tmp_path), layout="devkit").missing().endswith("devkit/cars_meta.mat")
    with pytest.raises(UserError, match=r"layout=kaggle must be auto, folders, annos or devkit"):
        Cars196(str(tmp_path), layout="kaggle")


def test_cars_folders_in_byte_order(tmp_path):
    for name in ("smart fortwo", "Acura RL", "AM General Hummer"):
        _image(tmp_path / "images" / name / "1.jpg")
    rows = Cars196(str(tmp_path)).rows()
    assert rows["train"].names == {1: "AM General Hummer", 2: "Acura RL", 3: "smart fortwo"}


def test_hidden_files_of_other_systems_are_no_images(tmp_path):
    for name in ("Acura RL", "AM General Hummer"):
        _image(tmp_path / "images" / name / "1.JPG")
        (tmp_path / "images" / name / "._1.JPG").write_bytes(b"no image")
    (tmp_path / "images" / ".cache").mkdir()
    rows = Cars196(str(tmp_path)).rows()["train"]
    assert rows.paths == ["images/AM General Hummer/1.JPG", "images/Acura RL/1.JPG"]
    assert rows.ids.tolist() == [1, 2]


def test_cars_without_labels(tmp_path):
    _cars_devkit(tmp_path)
    records = np.array([[(1.0, "1.jpg")]], dtype=[("bbox_x1", "O"), ("fname", "O")])
    savemat(tmp_path / "cars_test_annos_withlabels.mat", {"annotations": records})
    with pytest.raises(UserError, match="has no 'fname' or 'class'"):
        Cars196(str(tmp_path), check_counts=False).splits()
    (tmp_path / "cars_test_annos_withlabels.mat").write_bytes(b"nonsense" * 40)
    with pytest.raises(UserError, match="cannot be read as a MATLAB file"):
        Cars196(str(tmp_path), check_counts=False).splits()


def test_sop(tmp_path):
    header = "image_id class_id super_class_id path\n"
    rows = {"train": [(1, 1, "bicycle"), (1, 1, "bicycle"), (2, 12, "toaster")]}
    rows["test"] = [(11319, 1, "bicycle"), (11319, 1, "bicycle")]
    for part, items in rows.items():
        lines = []
        for i, (c, kind, name) in enumerate(items):
            path = f"{name}_final/{part}_{c}_{i}.JPG"
            _image(tmp_path / path)
            lines.append(f"{i + 1} {c} {kind} {path}\n")
        (tmp_path / f"Ebay_{part}.txt").write_text(header + "".join(lines))
    splits = StanfordOnlineProducts(str(tmp_path), check_counts=False).splits()
    assert splits["train"].labels.tolist() == [0, 0, 1]
    assert splits["train"].class_names == ["bicycle 1", "toaster 2"]
    assert splits["train"].extras["coarse_label"].tolist() == [0, 0, 11]
    assert splits["test"].keys == [
        "bicycle_final/test_11319_0.JPG",
        "bicycle_final/test_11319_1.JPG",
    ]
    with pytest.raises(UserError, match="Images of the train split of sop: expected 59551"):
        StanfordOnlineProducts(str(tmp_path)).splits()


INSHOP = (
    ("MEN/Denim/id_1/01_1_front.jpg", "id_1", "train"),
    ("MEN/Denim/id_1/02_1_front.jpg", "id_1", "train"),
    ("MEN/Denim/id_2/01_1_front.jpg", "id_2", "train"),
    ("MEN/Denim/id_3/01_1_front.jpg", "id_3", "train"),
    ("WOMEN/Tees/id_8/01_1_front.jpg", "id_8", "gallery"),
    ("WOMEN/Tees/id_9/01_1_front.jpg", "id_9", "query"),
    ("WOMEN/Tees/id_8/02_1_front.jpg", "id_8", "query"),
    ("WOMEN/Tees/id_9/02_1_front.jpg", "id_9", "gallery"),
)


@pytest.mark.parametrize(("lists", "images"), [("Eval", "Img"), (".", ".")])
def test_inshop(tmp_path, lists, images):
    lines = [f"{len(INSHOP)}\n", "image_name item_id evaluation_status\n"]
    for path, item, part in INSHOP:
        _image(tmp_path / images / "img" / path)
        lines.append(f"img/{path}   {item} {part}  \n")
    (tmp_path / lists).mkdir(exist_ok=True)
    list_file = tmp_path / lists / "list_eval_partition.txt"
    list_file.write_text("".join(lines))
    splits = InShop(str(tmp_path), val_classes=1, check_counts=False).splits()
    assert {n: _names(s) for n, s in splits.items()} == {
        "train": ["id_1", "id_1", "id_2"],
        "val": ["id_3"],
        "query": ["id_9", "id_8"],
        "gallery": ["id_8", "id_9"],
    }
    assert splits["query"].labels.tolist() == [1, 0]
    assert splits["gallery"].labels.tolist() == [0, 1]
    assert splits["gallery"].images.load(1).size == (4, 3)
    with pytest.raises(UserError, match="Images of the train split of inshop: expected 25882"):
        InShop(str(tmp_path)).splits()
    list_file.write_text("".join(lines).replace("gallery", "galery"))
    with pytest.raises(UserError, match="line 7: the split is 'galery'"):
        InShop(str(tmp_path), check_counts=False).splits()


def test_inshop_development_and_global_numbers(tmp_path):
    """Query and gallery list their items in different orders; only a global numbering agrees."""
    (tmp_path / "img").mkdir()
    rows = [(f"img/{item}_{j}.jpg", f"id_{item}", "train") for item in (5, 3, 2, 9) for j in "ab"]
    rows += [(f"img/{item}_q.jpg", f"id_{item}", "query") for item in (8, 4, 6)]
    rows += [(f"img/{item}_g.jpg", f"id_{item}", "gallery") for item in (4, 6, 8)]
    lines = [f"{len(rows)}\n", "image_name item_id evaluation_status\n"]
    for row in rows:
        _image(tmp_path / row[0])
        lines.append(" ".join(row) + "\n")
    (tmp_path / "list_eval_partition.txt").write_text("".join(lines))
    splits = InShop(str(tmp_path), split="dev", check_counts=False).splits()
    assert set(_names(splits["train"])) == {"id_2", "id_3"}
    assert set(_names(splits["val"])) == {"id_5", "id_9"}
    assert splits["query"].labels.tolist() == [2, 0, 1]
    assert splits["gallery"].labels.tolist() == [0, 1, 2]


@pytest.fixture
def cars98n(tmp_path):
    train = [
        f"/data/cars_noise/img_v3/{c}/photo (1) {j}.jpg,{c + 1}" for c in (0, 1, 10) for j in "abcd"
    ]
    test = [f"/home/x/cars196/images/Audi {c}/{j}.jpg,{c}" for c in (99, 100) for j in "ab"]
    (tmp_path / "datalist").mkdir()
    (tmp_path / "datalist" / "CARSN_train.csv").write_text("\n".join(train) + "\n")
    (tmp_path / "datalist" / "CARS_test.csv").write_text("\n".join(test) + "\n")
    for row in train + test:
        path = row.rpartition(",")[0].replace("/data/", "").replace("/home/x/", "")
        _image(tmp_path / path)
    return tmp_path


def test_cars98n(cars98n, caplog):
    source = Cars98N(str(cars98n), check_counts=False)
    splits = source.splits()
    assert splits["train"].class_names == ["0", "1", "10"]
    assert splits["train"].keys[0] == "cars_noise/img_v3/0/photo (1) a.jpg"
    assert splits["test"].class_names == ["Audi 99", "Audi 100"]
    assert source.missing_files == []
    assert not source.labels_are_true
    assert not caplog.records


def test_missing_crawled_images_are_left_out_and_reported(cars98n, caplog):
    (cars98n / "cars_noise" / "img_v3" / "1" / "photo (1) b.jpg").unlink()
    source = Cars98N(str(cars98n), check_counts=False)
    splits = source.splits()
    assert len(splits["train"]) == 11
    assert splits["train"].labels.tolist() == [0] * 4 + [1] * 3 + [2] * 4
    assert source.missing_files == ["cars_noise/img_v3/1/photo (1) b.jpg"]
    assert "1 of 12 training images are missing" in caplog.text
    strict = Cars98N(str(cars98n), max_missing=0.05, check_counts=False)
    with pytest.raises(UserError, match=r"1 of 12 training images .* raise dataset.max_missing"):
        strict.splits()


def test_test_images_must_all_be_there(cars98n):
    (cars98n / "cars196" / "images" / "Audi 99" / "a.jpg").unlink()
    with pytest.raises(UserError, match="1 of 4 images of the test split are missing"):
        Cars98N(str(cars98n), check_counts=False).splits()


def test_lists_are_counted(cars98n):
    with pytest.raises(UserError, match="Images of the train split of cars98n: expected 9558"):
        Cars98N(str(cars98n)).splits()


def test_path_list_outside_the_folder(tmp_path):
    (tmp_path / "list.csv").write_text("/data/cars_noise/a.jpg,1\n/data/other/b.jpg,2\n")
    with pytest.raises(UserError, match=r"line 2: the path goes through no folder cars_noise"):
        read_path_list(tmp_path / "list.csv", ("cars_noise",))


def _food(root):
    classes = [f"dish_{c:03d}" for c in range(1, 102)]
    lines = ["class_name/key"]
    for c in (1, 50, 51):
        path = f"{classes[c - 1]}/{c}.jpg"
        _image(root / "Food-101N_release" / "images" / path)
        lines.append(path)
    (root / "Food-101N_release" / "meta").mkdir()
    list_file = root / "Food-101N_release" / "meta" / "imagelist.tsv"
    list_file.write_text("\n".join(lines) + "\n")
    for name in classes:
        (root / "food-101" / "images" / name).mkdir(parents=True)
    for c in (1, 51, 101):
        _image(root / "food-101" / "images" / classes[c - 1] / "7.jpg")
    return list_file


def test_food101n_from_the_official_releases(tmp_path):
    list_file = _food(tmp_path)
    splits = Food101N(str(tmp_path), check_counts=False).splits()
    assert splits["train"].class_names == ["dish_001", "dish_050"]
    assert splits["test"].class_names == ["dish_051", "dish_101"]
    assert splits["train"].keys[1] == "Food-101N_release/images/dish_050/50.jpg"
    with pytest.raises(UserError, match=r"imagelist.tsv: expected 310009 as published, found 3"):
        Food101N(str(tmp_path)).splits()
    list_file.write_text("class_name/key\nsoup/1.jpg\n")
    with pytest.raises(UserError, match=r"line 2: class 'soup' has no folder"):
        Food101N(str(tmp_path), check_counts=False).splits()


def test_food101n_from_released_lists(tmp_path):
    for part, labels in (("train", (1, 2)), ("test", (51, 52))):
        rows = [f"/data/food101nDML/{part}/dish {c}/x.jpg,{c}" for c in labels]
        (tmp_path / f"FOOD_{part}.csv").write_text("\n".join(rows) + "\n")
        for row in rows:
            _image(tmp_path / row.removeprefix("/data/").rpartition(",")[0])
    splits = Food101N(str(tmp_path), lists=str(tmp_path), check_counts=False).splits()
    assert splits["train"].class_names == ["dish 1", "dish 2"]
    assert splits["test"].keys[0] == "food101nDML/test/dish 51/x.jpg"


def _idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    content = head + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _fashion(folder, suffix):
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, number in (("train", 40), ("t10k", 20)):
        arrays[prefix] = rng.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        labels = np.arange(number, dtype=np.uint8) % 10
        _idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", arrays[prefix])
        _idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
    return arrays


@pytest.mark.parametrize(("folder", "suffix"), [("FashionMNIST/raw", ""), (".", ".gz")])
def test_fashion_mnist(tmp_path, folder, suffix):
    arrays = _fashion(tmp_path / folder, suffix)
    splits = FashionMNIST(str(tmp_path), val_fraction=0.25, check_counts=False).splits()
    assert {n: len(s) for n, s in splits.items()} == {"train": 30, "val": 10, "test": 20}
    assert np.bincount(splits["val"].labels).tolist() == [1] * 10
    for name in ("train", "val"):
        official = [int(key.removeprefix("train/")) for key in splits[name].keys]
        np.testing.assert_array_equal(splits[name].images.pixels, arrays["train"][official])
    np.testing.assert_array_equal(splits["test"].images.pixels, arrays["t10k"])
    with pytest.raises(UserError, match="expected 60000 as published, found 40"):
        FashionMNIST(str(tmp_path)).splits()


def test_fashion_mnist_from_debian(tmp_path, monkeypatch):
    _fashion(tmp_path / "usr", ".gz")
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "usr")
    assert FashionMNIST(str(tmp_path / "none")).missing() is None
    assert len(FashionMNIST(str(tmp_path / "none"), check_counts=False).splits()["test"]) == 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x0d\x01\0\0\0\x01abcd", "no IDX file of bytes"),
        (b"\0\0\x08\x03\0\0\0\x01", "no IDX file of bytes"),
        (b"\0\0\x08\x01\0\0\0\x09abc", "announces 17 bytes and has 11"),
        (b"", "no IDX file"),
    ],
)
def test_idx_mistakes(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_idx(tmp_path / "x", 1)
    (tmp_path / "x.gz").write_bytes(gzip.compress(content + b"more")[:-6])
    with pytest.raises(UserError, match="cannot be unpacked"):
        read_idx(tmp_path / "x.gz", 1)


def test_digits():
    splits = Digits().splits()
    assert sum(map(len, splits.values())) == 1797
    assert splits["train"].images.pixels.max() == 255
    assert splits["test"].class_names == [str(i) for i in range(10)]
    assert Digits().splits()["train"].fingerprint == splits["train"].fingerprint
    assert Digits(seed=1).splits()["train"].fingerprint != splits["train"].fingerprint
    apart = Digits(split="zero_shot", val_fraction=0.0, test_fraction=0.5).splits()
    assert not set(apart["train"].class_names) & set(apart["test"].class_names)
    assert np.unique(apart["test"].labels).tolist() == list(range(5))


@pytest.mark.parametrize("name", ["cub200", "cars196", "sop", "inshop"])
def test_configurations_name_the_arguments(name, tmp_path):
    node = OmegaConf.load(CONF / f"{name}.yaml")
    source = instantiate(node, root=str(tmp_path))
    assert source.split == "official"
    assert source.missing() is not None


@pytest.mark.parametrize("family", FILES)
def test_missing_data_sets_say_how_to_get_them(family, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "none")
    source = family(str(tmp_path / "nowhere"))
    assert source.missing() is not None
    with pytest.raises(UserError) as caught:
        source.splits()
    message = str(caught.value)
    assert source.missing() in message
    assert source.how_to_get in message
    assert "fetch" in message
    assert "set dataset.root" in message
    assert any(word in message for word in ("GB", "MB", "images"))


def test_importing_data_sets_is_light():
    folder = Path(datasets.__file__).parent
    modules = [".".join(p.relative_to(folder).with_suffix("").parts) for p in folder.rglob("*.py")]
    assert len(modules) > 11
    heavy = {"torch", "pandas", "scipy", "sklearn", "matplotlib", "pyarrow"}
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(f'noisyml.data.datasets.{name}')\n"
        f"loaded = {heavy!r} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
