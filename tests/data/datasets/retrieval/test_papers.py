"""The papers' data sets, read from tiny trees in the official layouts."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from noisyml.data.datasets.retrieval.cars196 import Cars196, official_classes
from noisyml.data.datasets.retrieval.cub200 import CUB200
from noisyml.data.datasets.retrieval.inshop import InShop
from noisyml.data.datasets.retrieval.sop import StanfordOnlineProducts
from noisyml.data.readers.partition import held_out_classes
from noisyml.errors import UserError


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


CARS = (1, 98, 98, 99, 196)


def _car_names():
    return [f"Make {c:03d} Sedan" for c in range(1, 197)]


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


#: The first classes of the devkit; in byte order "Acura Integra" comes second, "Acura RL" third.
FIRST_CARS = [
    "AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012",
    "Acura TL Type-S 2008", "Acura TSX Sedan 2012", "Acura Integra Type R 2001",
]  # fmt: skip


def test_cars_classes_are_those_of_the_devkit():
    names = official_classes()
    assert len(set(names)) == 196
    assert names[:6] == FIRST_CARS
    assert [i for i, name in enumerate(names, start=1) if "/" in name] == [174]
    assert [names.index(name) + 1 for name in sorted(names)] != list(range(1, 197))
    # Each half has the same classes in both orders: the standard split is the same.
    assert set(sorted(names)[:98]) == set(names[:98])


def test_cars_folders_have_the_ids_of_the_devkit(tmp_path, caplog):
    names = official_classes()
    for number in (1, 2, 6, 49, 50, 98, 99, 174, 196):
        _image(tmp_path / "images" / names[number - 1].replace("/", "-") / "1.jpg")
    (tmp_path / "images" / names[1] / "notes.txt").touch()
    source = Cars196(str(tmp_path), check_counts=False)
    rows = source.rows()
    assert sorted(rows["train"].ids.tolist()) == [1, 2, 6, 49, 50, 98]
    assert rows["test"].names[174] == "Ram C-V Cargo Van Minivan 2012"
    assert rows["train"].paths[1] == f"images/{names[1]}/1.jpg"
    assert source.left_out == {
        "files named *.txt": [str(tmp_path / "images" / names[1] / "notes.txt")]
    }
    assert not caplog.records
    # The layouts hold out the same classes.
    dev = Cars196(str(tmp_path), split="dev", check_counts=False).splits()
    assert dev["train"].class_names == [names[0], names[1], names[5]]


def test_cars_folders_of_other_names_are_numbered_by_rank(tmp_path, caplog):
    for name in ("Acura RL Sedan 2012", "Acura Integra Type R 2001", "Acura Zeta", "Aaa"):
        _image(tmp_path / "images" / name / "1.jpg")
    rows = Cars196(str(tmp_path)).rows()["train"]
    assert rows.names == {
        1: "Aaa", 2: "Acura RL Sedan 2012", 3: "Acura Integra Type R 2001", 4: "Acura Zeta",
    }  # fmt: skip
    assert "2 of 4 folders have the name of no class, the first is 'Aaa'" in caplog.text


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


def test_cars_names_what_the_layout_that_is_there_lacks(tmp_path):
    for folder in ("devkit", "cars_train", "cars_test"):
        (tmp_path / folder).mkdir()
    for file in ("cars_meta.mat", "cars_train_annos.mat"):
        (tmp_path / "devkit" / file).touch()
    assert str(Cars196(str(tmp_path)).missing()).endswith("cars_test_annos_withlabels.mat")
    (tmp_path / "images").mkdir()
    assert Cars196(str(tmp_path)).missing() is None
    assert str(Cars196(str(tmp_path / "none")).missing()).endswith("images")
