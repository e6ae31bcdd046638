"""Classification sets of image files, read from tiny trees in the official layouts."""

import csv

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from support import paths

from noisyml.data.datasets.faces import affectnet, ferplus
from noisyml.data.datasets.faces.affectnet import AffectNet
from noisyml.data.datasets.faces.ferplus import FERPlus, majority_vote
from noisyml.data.datasets.faces.raf_db import RAFDB
from noisyml.data.datasets.real_noise.clothing1m import Clothing1M, balanced_subset
from noisyml.data.datasets.real_noise.food101n import Food101NClosedSet
from noisyml.data.datasets.small_images.cifar import Cifar10, Cifar100
from noisyml.data.datasets.small_images.mnist import MNIST
from noisyml.data.datasets.small_images.tiny_imagenet import TinyImageNet
from noisyml.errors import UserError
from noisyml.noise import LabelList, NoNoise

CONF = paths.CONF / "dataset"
FILES = {
    "affectnet": AffectNet, "clothing1m": Clothing1M, "ferplus": FERPlus, "raf_db": RAFDB,
    "food101n_closed_set": Food101NClosedSet, "tiny_imagenet": TinyImageNet,
}  # fmt: skip
ARRAYS = (MNIST, Cifar10, Cifar100)


def _image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), "red").save(path)


def _names(split):
    return [split.class_names[label] for label in split.labels]


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "wnids.txt").write_text("n02\nn01\nn03\n")
    words = "n01\tgoldfish, Carassius auratus\nn02\tcrane\nn03\tcrane\nn09\tcat\n"
    (tmp_path / "words.txt").write_text(words)
    for wnid in ("n01", "n02", "n03"):
        for i in range(4):
            _image(tmp_path / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    rows = [("val_0.JPEG", "n03"), ("val_1.JPEG", "n01")]
    for name, _ in rows:
        _image(tmp_path / "val" / "images" / name)
    lines = [f"{name}\t{wnid}\t0\t32\t44\t62\n" for name, wnid in rows]
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    return tmp_path


def test_tiny_imagenet(tiny):
    splits = TinyImageNet(str(tiny), val_fraction=0.25, check_counts=False).splits()
    assert splits["train"].class_names == ["goldfish", "crane (n02)", "crane (n03)"]
    assert {n: len(s) for n, s in splits.items()} == {"train": 9, "val": 3, "test": 2}
    assert _names(splits["test"]) == ["crane (n03)", "goldfish"]
    assert all(key.split("/")[1] == f"n0{c + 1}" for key, c in
               zip(splits["train"].keys, splits["train"].labels, strict=True))  # fmt: skip
    assert splits["test"].images.load(0).size == (4, 3)
    with pytest.raises(
        UserError, match=r"train split of tiny_imagenet: expected 100000 .*found 12"
    ):
        TinyImageNet(str(tiny)).splits()
    (tiny / "wnids.txt").write_text("n01\nn02\nn04\n")
    with pytest.raises(UserError, match=r"has no word for n04"):
        TinyImageNet(str(tiny), check_counts=False).splits()
    (tiny / "wnids.txt").write_text("n01\nn02\n")
    with pytest.raises(UserError, match=r"val_annotations.txt, line 1: class 'n03'"):
        TinyImageNet(str(tiny), check_counts=False).splits()


def _clothing(root, folder):
    noisy, clean, lists = (
        {},
        {},
        {"noisy_train": [], "clean_train": [], "clean_val": [], "clean_test": []},
    )
    for i in range(28):
        path = f"images/{i % 10}/{i},{i}.jpg"
        noisy[path] = i % 14
        lists["noisy_train"].append(path)
        if i % 7 == 0:
            clean[path] = 3
    for part in ("clean_train", "clean_val", "clean_test"):
        for i in range(2):
            path = f"images/1/{part}{i}.jpg"
            clean[path] = 5 + i
            lists[part].append(path)
    for path in {*noisy, *clean}:
        _image(root / path)
    folder.mkdir(exist_ok=True)
    for name, keys in lists.items():
        (folder / f"{name}_key_list.txt").write_text("\n".join(keys) + "\n")
    for name, table in (("noisy", noisy), ("clean", clean)):
        (folder / f"{name}_label_kv.txt").write_text(
            "".join(f"{k} {v}\n" for k, v in table.items())
        )


@pytest.mark.parametrize("folder", [".", "annotations"])
def test_clothing1m(tmp_path, folder):
    _clothing(tmp_path, tmp_path / folder)
    source = Clothing1M(str(tmp_path), check_counts=False)
    splits = source.splits()
    assert source.clean_val
    assert not source.labels_are_true
    assert {n: len(s) for n, s in splits.items()} == {"train": 28, "val": 2, "test": 2}
    assert _names(splits["val"]) == ["Hoodie", "Windbreaker"]
    # A few training images were labelled by hand: there, and only there, the truth is known.
    train = splits["train"]
    manifest = NoNoise().inject(train.labels, 14).with_unknown_truth(train.extras["clean_label"])
    assert np.flatnonzero(manifest.state >= 0).tolist() == [0, 7, 14, 21]
    assert manifest.changed.sum() == 4
    assert not manifest.truth_known
    clean = Clothing1M(str(tmp_path), train="clean", check_counts=False)
    assert clean.labels_are_true
    assert len(clean.splits()["train"]) == 2
    some = Clothing1M(str(tmp_path), subset=14, check_counts=False).splits()["train"]
    assert np.bincount(some.labels, minlength=14).tolist() == [1] * 14
    with pytest.raises(UserError, match=r"train split of clothing1m: expected 1000000 .* found 28"):
        Clothing1M(str(tmp_path)).splits()
    (tmp_path / "images" / "3" / "3,3.jpg").unlink()
    with pytest.raises(UserError, match="1 of 28 images of the train split are missing"):
        Clothing1M(str(tmp_path), check_counts=False).splits()
    some = Clothing1M(str(tmp_path), max_missing=0.1, check_counts=False)
    assert len(some.splits()["train"]) == 27
    assert some.left_out == {"listed images that are not there": ["images/3/3,3.jpg"]}
    with pytest.raises(UserError, match=r"1 of 28 .* raise dataset.max_missing \(now 0.01\)"):
        Clothing1M(str(tmp_path), max_missing=0.01, check_counts=False).splits()
    for wrong in ({"subset": 3}, {"max_missing": 1.0}, {"train": "all"}):
        with pytest.raises(UserError, match=rf"^{next(iter(wrong))}=.* must be"):
            Clothing1M(str(tmp_path), **wrong)


def test_the_balanced_subset_fills_classes_up_to_their_share():
    labels = np.repeat([0, 1, 2], [50, 3, 30])
    keys = [f"{i}.jpg" for i in range(83)]
    rows = balanced_subset(labels, keys, 20, seed=1)
    # ceil(20 / 3) = 7 of the large classes, all of the small one.
    assert np.bincount(labels[rows]).tolist() == [7, 3, 7]
    order = np.random.default_rng(0).permutation(83)
    again = balanced_subset(labels[order], [keys[i] for i in order], 20, seed=1)
    assert {keys[i] for i in rows} == {keys[order[i]] for i in again}
    assert not np.array_equal(rows, balanced_subset(labels, keys, 20, seed=2))
    assert len(balanced_subset(labels, keys, 7, seed=1)) == 7


def test_raf_db_and_its_noisy_lists(tmp_path):
    lines = [f"train_{i:05d}.jpg {i % 7 + 1}\n" for i in range(1, 29)]
    lines += [f"test_{i:04d}.jpg {i % 7 + 1}\n" for i in range(1, 8)]
    for line in lines:
        _image(tmp_path / "Image" / "aligned" / line.split()[0].replace(".jpg", "_aligned.jpg"))
    labels = tmp_path / "EmoLabel" / "list_patition_label.txt"
    labels.parent.mkdir()
    labels.write_text("".join(lines))
    splits = RAFDB(str(tmp_path), val_fraction=0.25, check_counts=False).splits()
    assert {n: len(s) for n, s in splits.items()} == {"train": 21, "val": 7, "test": 7}
    assert _names(splits["test"])[:2] == ["Fear", "Disgust"]
    assert splits["test"].keys[0] == "test_0001.jpg"
    assert splits["test"].images.load(0).size == (4, 3)
    noisy = tmp_path / "EmoLabel" / "mine.txt"
    noisy.write_text("".join(line.replace(" 7", " 1") for line in lines[:28]))
    for part in ("train", "val"):
        split = splits[part]
        manifest = LabelList(path=str(noisy), first_label=1).inject(
            split.labels, 7, keys=split.keys
        )
        np.testing.assert_array_equal(manifest.observed, split.labels % 6)
    with pytest.raises(UserError, match=r"train split of raf_db: expected 12271 .* found 28"):
        RAFDB(str(tmp_path)).splits()
    labels.write_text("".join(lines).replace(" 7", " 8"))
    with pytest.raises(UserError, match="has the label 8, but labels run from 1 to 7"):
        RAFDB(str(tmp_path), check_counts=False).splits()
    labels.write_text("val_1.jpg 1\n")
    with pytest.raises(UserError, match=r"line 1: 'val_1.jpg' begins with neither"):
        RAFDB(str(tmp_path), check_counts=False).splits()


#: The first rows of the released table, and a face that is none.
VOTES = (
    ("Training", "fer0000000.png", "4,0,0,1,3,2,0,0,0,0"),
    ("Training", "fer0000001.png", "6,0,1,1,0,0,0,0,2,0"),
    ("Training", "fer0000003.png", "4,0,0,4,1,0,0,0,1,0"),
    ("Training", "fer0000006.png", "2,0,0,8,0,0,0,0,0,0"),
    ("Training", "", "0,0,0,0,0,0,0,0,0,10"),
    ("PublicTest", "fer0028638.png", "0,10,0,0,0,0,0,0,0,0"),
    ("PublicTest", "fer0028639.png", "0,0,0,0,0,0,0,10,0,0"),
    ("PrivateTest", "fer0032220.png", "0,0,8,0,0,0,2,0,0,0"),
    ("PrivateTest", "fer0032221.png", "1,0,0,0,0,0,1,0,8,0"),
)


def _ferplus(root, images):
    header = (
        "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    )
    (root / "fer2013new.csv").write_text(
        "\n".join([header, *(",".join(row) for row in VOTES)]) + "\n"
    )
    for usage, name, _ in VOTES:
        if name:
            _image(root / images / ferplus.FOLDERS[usage] / name)


@pytest.mark.parametrize("images", [".", "images"])
def test_ferplus(tmp_path, images):
    _ferplus(tmp_path, images)
    splits = FERPlus(str(tmp_path), check_counts=False).splits()
    # 4:3:2 after striking out the single vote is no majority, 4:4 neither.
    assert [key.rpartition("/")[2] for key in splits["train"].keys] == [
        "fer0000001.png",
        "fer0000006.png",
    ]
    assert _names(splits["train"]) == ["Neutral", "Sadness"]
    assert _names(splits["val"]) == ["Happiness", "Contempt"]
    assert _names(splits["test"]) == ["Surprise"]
    seven = FERPlus(str(tmp_path), classes=7, majority="plurality", check_counts=False).splits()
    assert _names(seven["train"]) == ["Neutral"] * 3 + ["Sadness"]
    assert _names(seven["val"]) == ["Happiness"]
    assert _names(seven["test"]) == ["Surprise", "Neutral"]
    assert len(seven["train"].class_names) == 7
    carved = FERPlus(
        str(tmp_path), majority="plurality", val="carved", val_fraction=0.4, check_counts=False
    ).splits()
    assert {n: len(s) for n, s in carved.items()} == {"train": 3, "val": 1, "test": 2}
    with pytest.raises(UserError, match=r"Rows of fer2013new.csv .* Training: expected 28709"):
        FERPlus(str(tmp_path)).splits()
    table = tmp_path / "fer2013new.csv"
    table.write_text(table.read_text().replace("PrivateTest", "Private"))
    with pytest.raises(UserError, match=r"line 9: the usage is 'Private'"):
        FERPlus(str(tmp_path), check_counts=False).splits()
    table.write_text("Usage,Image name\nTraining,a.png\n")
    with pytest.raises(UserError, match="lacks one of the columns"):
        FERPlus(str(tmp_path), check_counts=False).splits()


def _votes(*counts):
    return [str(count) for count in (*counts, *[0] * (10 - len(counts)))]


def test_ferplus_trains_from_the_lists_of_its_authors(tmp_path):
    _ferplus(tmp_path, ".")
    source = FERPlus(str(tmp_path), check_counts=False)
    source.splits()
    assert source.left_out == {
        "rows without a picture": [f"line {2 + i}" for i, row in enumerate(VOTES) if not row[1]],
        "faces without a majority for a chosen class": source.left_out[
            "faces without a majority for a chosen class"
        ],
    }
    for usage, folder in ferplus.FOLDERS.items():
        # The votes of the lists are not those of the table; the box of the face has commas.
        rows = [
            f'{name},"(0, 0, 48, 48)",{",".join(_votes(0, 0, 0, 9, 1))}'
            for part, name, _ in VOTES
            if part == usage and name
        ]
        (tmp_path / folder / "label.csv").write_text("\n".join(rows) + "\n")
    splits = FERPlus(str(tmp_path), check_counts=False).splits()
    assert {name for split in splits.values() for name in _names(split)} == {"Sadness"}
    table = FERPlus(str(tmp_path), votes="table", check_counts=False).splits()
    assert _names(table["train"]) == ["Neutral", "Sadness"]
    (tmp_path / "fer2013new.csv").unlink()
    assert FERPlus(str(tmp_path)).missing() is None
    assert str(FERPlus(str(tmp_path), votes="table").missing()).endswith("fer2013new.csv")
    with pytest.raises(UserError, match=r"Rows of label.csv .* Training: expected 28558"):
        FERPlus(str(tmp_path)).splits()
    (tmp_path / "FER2013Valid" / "label.csv").write_text("a.png,4,0\n")
    with pytest.raises(UserError, match=r"Valid/label.csv, line 1: expected 12 columns, found 3"):
        FERPlus(str(tmp_path), check_counts=False).splits()


def test_ferplus_counts_what_the_authors_elect():
    published = FERPlus("x", votes="lists").published()
    assert published == {"train": 25_045, "val": 3_191, "test": 3_137}
    assert list(FERPlus("x", votes="lists", val="carved").published()) == ["train", "test"]
    assert FERPlus("x", votes="lists", classes=7).published() == {}
    assert FERPlus("x", votes="table").published() == {}


def test_ferplus_keeps_the_row_of_a_picture_that_stands_in_its_place(tmp_path):
    """As in the official table: a second row out of the order of names, one of them first."""
    header = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,"
    rows = [
        ("Training", "fer0000001.png", _votes(9)), ("Training", "fer0000007.png", _votes(0, 9)),
        ("Training", "fer0000002.png", _votes(9)), ("Training", "", _votes()),
        ("Training", "fer0000006.png", _votes(9)), ("Training", "fer0000007.png", _votes(0, 0, 9)),
        ("Training", "fer0000008.png", _votes(9)), ("PublicTest", "fer0000011.png", _votes(9)),
        ("PrivateTest", "fer0000012.png", _votes(0, 0, 0, 9)),
        ("PrivateTest", "fer0000013.png", _votes(9)),
        ("PrivateTest", "fer0000012.png", ["0"] * 9 + ["10"]),
    ]  # fmt: skip
    lines = [header + "unknown,NF", *(",".join([a, b, *votes]) for a, b, votes in rows)]
    (tmp_path / "fer2013new.csv").write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig")
    for usage, name, _ in rows:
        if name:
            _image(tmp_path / ferplus.FOLDERS[usage] / name)
    source = FERPlus(str(tmp_path), check_counts=False)
    splits = source.splits()
    assert dict(zip(splits["train"].keys, _names(splits["train"]), strict=True)) == {
        "FER2013Train/fer0000001.png": "Neutral", "FER2013Train/fer0000002.png": "Neutral",
        "FER2013Train/fer0000006.png": "Neutral", "FER2013Train/fer0000007.png": "Surprise",
        "FER2013Train/fer0000008.png": "Neutral",
    }  # fmt: skip
    assert _names(splits["test"]) == ["Sadness", "Neutral"]
    assert source.left_out == {
        "rows without a picture": ["line 5"],
        "second rows of a picture": ["line 3 fer0000007.png", "line 12 fer0000012.png"],
    }


@pytest.mark.parametrize(
    ("there", "lacking"),
    [
        (["training.csv", "Manually_Annotated_Images/"], "validation.csv"),
        (["train_set/images/", "train_set/annotations/", "val_set/images/"], "val_set/annotations"),
        ([], "train_set/images"),
    ],
)
def test_affectnet_names_what_the_layout_that_is_there_lacks(tmp_path, there, lacking):
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    assert AffectNet(str(tmp_path)).missing() == str(tmp_path / lacking)


def test_cifar_names_what_the_version_that_is_there_lacks(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        (folder / name).touch()
    assert Cifar10(str(tmp_path)).missing() == str(folder / "data_batch_3")


def test_majorities():
    votes = np.array([[3, 2, 1, 0], [3, 3, 0, 0], [0, 0, 0, 5], [1, 1, 1, 1], [0, 4, 3, 1]])
    assert majority_vote(votes, absolute=True).tolist() == [0, -1, -1, -1, 1]
    assert majority_vote(votes, absolute=False).tolist() == [0, 0, -1, 0, 1]


def _affectnet_sets(root):
    for folder, labels in (("train_set", [0, 1, 7, 6]), ("val_set", [7, 2])):
        for i, label in enumerate(labels):
            _image(root / folder / "images" / f"{i}.jpg")
            (root / folder / "annotations").mkdir(exist_ok=True)
            np.save(root / folder / "annotations" / f"{i}_exp.npy", np.array(str(label)))
            np.save(root / folder / "annotations" / f"{i}_val.npy", np.array("0.5"))


def _affectnet_lists(root):
    header = ["subDirectory_filePath", "face_x", "face_y", "face_width", "face_height",
              "facial_landmarks", "expression", "valence", "arousal"]  # fmt: skip
    for name, labels in (("training", [0, 1, 9, 7, 6, 10]), ("validation", [7, 2])):
        rows = [
            [f"{name}/{i}.jpg", 0, 0, 9, 9, "1;2", label, 0.1, 0.2]
            for i, label in enumerate(labels)
        ]
        for row in rows:
            _image(root / "Manually_Annotated_Images" / row[0])
        folder = root / "Manually_Annotated_file_lists"
        folder.mkdir(exist_ok=True)
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows] if name == "training" else rows)


@pytest.mark.parametrize("make", [_affectnet_sets, _affectnet_lists])
def test_affectnet_layouts_agree(tmp_path, make):
    make(tmp_path)
    splits = AffectNet(str(tmp_path), val_fraction=0.0, check_counts=False).splits()
    assert _names(splits["train"]) == ["Neutral", "Happiness", "Contempt", "Anger"]
    assert _names(splits["test"]) == ["Contempt", "Sadness"]
    seven = AffectNet(str(tmp_path), classes=7, val_fraction=0.0, check_counts=False).splits()
    assert _names(seven["train"]) == ["Neutral", "Happiness", "Anger"]
    assert _names(seven["test"]) == ["Sadness"]
    with pytest.raises(UserError, match=r"train split of affectnet: expected 287651 .* found 4"):
        AffectNet(str(tmp_path)).splits()
    with pytest.raises(UserError, match=r"classes=6 must be 8 or 7"):
        AffectNet(str(tmp_path), classes=6)


def test_affectnet_mistakes(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return (print, ("executed",))

    _affectnet_sets(tmp_path)
    file = tmp_path / "train_set" / "annotations" / "2_exp.npy"
    np.save(file, np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"2_exp.npy holds no expression"):
        AffectNet(str(tmp_path), check_counts=False).splits()
    assert "executed" not in capsys.readouterr().out
    np.save(file, np.array(8))
    with pytest.raises(UserError, match="has the label 8, but labels run from 0 to 7"):
        AffectNet(str(tmp_path), check_counts=False).splits()
    assert sum(affectnet.TRAIN) == 287_651


@pytest.fixture
def food(tmp_path):
    train = ["apple_pie/1.jpg", "apple_pie/2.jpg", "waffles/3.jpg", "waffles/4.jpg"]
    test = ["waffles/7", "apple_pie/8"]
    for image in train:
        _image(tmp_path / "Food-101N_release" / "images" / image)
    for image in test:
        _image(tmp_path / "food-101" / "images" / f"{image}.jpg")
    for folder in ("Food-101N_release", "food-101"):
        (tmp_path / folder / "meta").mkdir()
    meta = tmp_path / "Food-101N_release" / "meta"
    (meta / "imagelist.tsv").write_text("\n".join(["class_name/key", *train]) + "\n")
    head = "class_name/key\tverification_label\n"
    (meta / "verified_train.tsv").write_text(head + "apple_pie/2.jpg\t1\nwaffles/4.jpg\t0\n")
    (meta / "verified_val.tsv").write_text(head + "apple_pie/1.jpg\t0\n")
    (tmp_path / "food-101" / "meta" / "test.txt").write_text("\n".join(test) + "\n")
    return tmp_path


def test_food101n_for_classification(food):
    source = Food101NClosedSet(str(food), check_counts=False)
    splits = source.splits()
    assert _names(splits["train"]) == ["apple_pie"] * 2 + ["waffles"] * 2
    assert _names(splits["test"]) == ["waffles", "apple_pie"]
    train = splits["train"]
    manifest = NoNoise().inject(train.labels, 2).with_unknown_truth(train.extras["clean_label"])
    assert manifest.state.tolist() == [1, 0, -1, 1]
    assert manifest.clean.tolist() == [-1, 0, -1, -1]
    with pytest.raises(UserError, match=r"Classes in .*: expected 101 as published, found 2"):
        Food101NClosedSet(str(food)).splits()
    (food / "Food-101N_release" / "images" / "waffles" / "4.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 4 training images .* \(now 0.1\)"):
        source.splits()
    some = Food101NClosedSet(str(food), max_missing=0.5, check_counts=False).splits()["train"]
    assert some.extras["clean_label"].tolist() == [-2, 0, -1]


@pytest.mark.parametrize("name", FILES)
def test_configurations_name_the_arguments(name, tmp_path):
    source = instantiate(OmegaConf.load(CONF / f"{name}.yaml"), root=str(tmp_path))
    assert isinstance(source, FILES[name])
    assert source.check_counts


@pytest.mark.parametrize("family", [*FILES.values(), *ARRAYS])
def test_missing_data_sets_say_how_to_get_them(family, tmp_path):
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
