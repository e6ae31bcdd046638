"""PKU VehicleID, read from a tiny tree in the official layout."""

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from support import paths

from noisyml.data.datasets.retrieval import vehicle_id
from noisyml.data.datasets.retrieval.vehicle_id import VehicleID, one_of_each
from noisyml.errors import UserError

CONF = paths.CONF / "dataset" / "vehicle_id.yaml"
TRAIN = {7: 3, 9: 2, 21: 2, 30: 1}
TEST = {8: 4, 11: 3, 25: 1}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "image").mkdir()
    (tmp_path / "train_test_split").mkdir()
    number = 0
    for name, vehicles in (("train_list", TRAIN), ("test_list_800", TEST)):
        lines = []
        for vehicle, images in vehicles.items():
            for _ in range(images):
                number += 1
                lines.append(f"{number:07d} {vehicle}\n")
                Image.new("RGB", (4, 3), "red").save(tmp_path / "image" / f"{number:07d}.jpg")
        # The official lists are in no particular order.
        (tmp_path / "train_test_split" / f"{name}.txt").write_text("".join(lines[::-1]))
    return tmp_path


def _names(split):
    return [split.class_names[label] for label in split.labels]


def test_one_image_of_each_test_vehicle_is_the_gallery(root):
    source = VehicleID(str(root), check_counts=False)
    splits = source.splits()
    assert list(splits) == ["train", "query", "gallery"]
    assert len(splits["train"]) == 8
    assert sorted(_names(splits["gallery"])) == ["11", "25", "8"]
    assert sorted(_names(splits["query"])) == ["11"] * 2 + ["8"] * 3
    assert splits["query"].class_names == splits["gallery"].class_names == ["8", "11", "25"]
    assert not set(splits["query"].keys) & set(splits["gallery"].keys)
    assert splits["gallery"].images.load(0).size == (4, 3)
    assert splits["train"].class_names == ["7", "9", "21", "30"]
    assert "seed=0" in source.split_origin


def test_the_gallery_depends_on_the_seed_and_not_on_the_order(root):
    def gallery(seed):
        return set(VehicleID(str(root), seed=seed, check_counts=False).splits()["gallery"].keys)

    before = [gallery(seed) for seed in range(6)]
    assert len({frozenset(keys) for keys in before}) > 2
    path = root / "train_test_split" / "test_list_800.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[::-1]))
    assert [gallery(seed) for seed in range(6)] == before


def test_choice_is_uniform():
    ids = np.repeat([4, 2], 5)
    counts = sum(
        one_of_each(ids, [str(i) for i in range(10)], seed).astype(int) for seed in range(2000)
    )
    assert counts[:5].sum() == counts[5:].sum() == 2000
    # Standard deviation of a count: sqrt(2000 * 0.2 * 0.8) = 18.
    assert abs(counts - 400).max() < 4 * 18


def test_all_against_all_and_held_out_vehicles(root):
    splits = VehicleID(str(root), protocol="self", val_classes=1, check_counts=False).splits()
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 7,
        "val": 1,
        "test": 8,
    }
    assert _names(splits["val"]) == ["30"]
    halves = VehicleID(str(root), split="dev", check_counts=False).splits()
    assert set(_names(halves["train"])) == {"7", "9"}
    assert set(_names(halves["val"])) == {"21", "30"}


def test_counts_are_checked(root, monkeypatch):
    with pytest.raises(UserError, match=r"Vehicles of the train split .* 13164 .* found 4"):
        VehicleID(str(root)).splits()
    monkeypatch.setattr(vehicle_id, "TRAINING_VEHICLES", (4, 99))
    with pytest.raises(UserError, match=r"Vehicles of the test split .* expected 800 .* found 3"):
        VehicleID(str(root)).splits()
    # The number of the papers comes with a number of images.
    monkeypatch.setattr(vehicle_id, "TRAINING_VEHICLES", (99, 4))
    with pytest.raises(UserError, match=r"Images of the train split .* 110178 .* found 8"):
        VehicleID(str(root)).splits()
    monkeypatch.setattr(vehicle_id, "IMAGES_OF_PAPERS", 8)
    monkeypatch.setattr(vehicle_id, "TEST_SIZES", (3, 800))
    lists = root / "train_test_split"
    (lists / "test_list_800.txt").rename(lists / "test_list_3.txt")
    small = VehicleID(str(root))
    small.test_size = 3
    assert len(small.splits()["query"]) == 5


def test_contradictions_are_named(root):
    lists = root / "train_test_split"
    good = (lists / "test_list_800.txt").read_text()
    (lists / "test_list_800.txt").write_text(good + "0000001 7\n")
    with pytest.raises(UserError, match="Vehicle 7 stands in the training and the test list"):
        VehicleID(str(root), check_counts=False).splits()
    (lists / "test_list_800.txt").write_text(good + "0000099 8\n")
    with pytest.raises(UserError, match=r"missing, the first is .*0000099\.jpg"):
        VehicleID(str(root), check_counts=False).splits()
    (lists / "test_list_800.txt").write_text(good + "0000099\n")
    with pytest.raises(UserError, match="line 9: expected 2 columns, found 1"):
        VehicleID(str(root), check_counts=False).splits()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"test_size": 3200}, r"test_size=3200 must be 800, 1600 or 2400"),
        ({"protocol": "cross"}, r"protocol=cross must be query_gallery or self"),
    ],
)
def test_mistakes_are_named(root, settings, said):
    with pytest.raises(UserError, match=said):
        VehicleID(str(root), **settings)


def test_a_missing_data_set_says_what_to_sign_and_where_to_put_it(root):
    with pytest.raises(UserError) as caught:
        VehicleID(str(root), test_size=1600).splits()
    message = str(caught.value)
    assert "test_list_1600.txt is missing" in message
    for word in ("licence", "fetch VehicleID_V1.0.zip", "images", "set dataset.root"):
        assert word in message


def test_the_configuration_builds_it(root):
    node = OmegaConf.load(CONF)
    assert CONF.read_text().startswith("# ")
    source = instantiate(node, root=str(root), check_counts=False)
    assert len(source.splits()["gallery"]) == 3
