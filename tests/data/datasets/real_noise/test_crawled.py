"""CARS98N and Food-101N from tiny trees in their official layouts."""

import pytest
from PIL import Image

from noisyml.data.datasets.real_noise.cars98n import Cars98N
from noisyml.data.datasets.real_noise.food101n import Food101N
from noisyml.data.readers.path_lists import read_path_list
from noisyml.errors import UserError


def _image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), "red").save(path)


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
