"""Glyphs: deterministic, clean labels, disjoint classes, a cache that heals itself."""

import hashlib
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from noisyml.data.datasets.embedded import glyphs, typefaces
from noisyml.data.datasets.embedded.glyphs import Glyphs
from noisyml.data.datasets.embedded.typefaces import FACES, Character, draw, find_characters, script
from noisyml.errors import UserError

SMALL = {
    "num_train_classes": 12,
    "num_val_classes": 3,
    "num_test_classes": 8,
    "distortions": 2,
    "min_faces": 16,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def small(cache):
    return Glyphs(**SMALL, cache_dir=cache).splits()


@pytest.fixture
def drawless(cache, small, tmp_path):
    """A cache that knows the alphabet but holds no pixels."""
    folder = tmp_path / "glyphs"
    folder.mkdir()
    for path in Path(cache).rglob("alphabet-*.json"):
        shutil.copy(path, folder)
    return tmp_path


@pytest.fixture(scope="module")
def alphabet():
    return find_characters(12, 0.04)


@pytest.mark.long
def test_sizes_and_types(small):
    assert list(small) == ["train", "val", "test"]
    for split, classes in zip(small.values(), (12, 3, 8), strict=True):
        assert len(split) == classes * 16 * 2
        assert split.images.pixels.shape == (len(split), 32, 32)
        assert split.images.pixels.dtype == np.uint8
        assert split.images.load(0).mode == "L"
        assert len(split.class_names) == classes
        assert np.bincount(split.labels).tolist() == [32] * classes
        assert len(set(split.keys)) == len(split)
        assert np.unique(split.extras["font"]).tolist() == list(range(16))


def test_classes_of_splits_are_disjoint(small):
    names = [set(split.class_names) for split in small.values()]
    assert len(set.union(*names)) == 12 + 3 + 8


def test_extras_name_the_class(small):
    train = small["train"]
    names = np.array(train.class_names)[train.labels]
    assert (train.extras["caption"] == names).all()
    for key, caption, kind in zip(
        train.keys, train.extras["caption"], train.extras["script"], strict=True
    ):
        point = int(key.split("/")[0].removeprefix("U+"), 16)
        assert unicodedata.name(chr(point)) == caption
        assert script(point) == kind


def test_classes_are_not_in_code_point_order(small):
    points = [int(key.split("/")[0][2:], 16) for key in small["train"].keys[:: 16 * 2]]
    assert points != sorted(points)


def test_no_two_images_are_the_same(small):
    pixels = np.concatenate([split.images.pixels for split in small.values()])
    assert len(np.unique(pixels.reshape(len(pixels), -1), axis=0)) == len(pixels)


@pytest.mark.further
def test_another_process_draws_the_same_pixels(small):
    program = (
        "from noisyml.data.datasets.embedded.glyphs import Glyphs;"
        f"print(*[s.fingerprint for s in Glyphs(**{SMALL!r}).splits().values()]);"
        "import sys; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [split.fingerprint for split in small.values()]


def test_test_classes_do_not_depend_on_the_number_of_training_classes(small, cache):
    more = Glyphs(**(SMALL | {"num_train_classes": 14}), cache_dir=cache).splits()
    assert more["test"].fingerprint == small["test"].fingerprint
    assert more["train"].class_names[:12] == small["train"].class_names


@pytest.mark.parametrize("key", ["seed", "class_seed"])
def test_seeds_change_the_images(small, cache, key):
    other = Glyphs(**SMALL, **{key: 1}, cache_dir=cache).splits()["train"]
    assert other.fingerprint != small["train"].fingerprint
    assert (other.class_names == small["train"].class_names) == (key == "seed")


def test_a_picture_does_not_depend_on_the_others():
    characters = [Character(point, (0, 5)) for point in (0x41, 0x3B4, 0x416)]
    together = draw(characters, 32, 3, seed=7)
    np.testing.assert_array_equal(draw(characters[1:2], 32, 3, seed=7), together[6:12])


def test_instances_look_like_their_class():
    # The nearest other picture of raw pixels is of the same class far more often than chance.
    characters = [Character(point, tuple(range(16))) for point in range(0x41, 0x5B)]
    pixels = draw(characters, 32, 2, seed=0).reshape(26 * 32, -1).astype(np.float64)
    pixels -= pixels.mean(axis=1, keepdims=True)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    similarity = pixels @ pixels.T
    np.fill_diagonal(similarity, -1)
    labels = np.repeat(np.arange(26), 32)
    hits = (labels[similarity.argmax(axis=1)] == labels).mean()
    assert 0.5 < hits < 0.95


@pytest.mark.further
def test_look_alikes_are_one_class(alphabet):
    points = {character.code_point for character in alphabet}
    assert 1900 < len(points) < 2200
    # Latin A, not its Greek and Cyrillic twins; letters that only look alike in size stay.
    assert 0x41 in points
    assert not points & {0x391, 0x410}
    assert {0x4F, 0x6F, 0x30} <= points
    # Blanks, combining marks, controls and the object-replacement box are no classes.
    assert not points & {0x20, 0xA0, 0x300, 0xAD, 0xFFFC}


@pytest.mark.long
def test_no_class_has_the_clean_picture_of_another(alphabet):
    seen = [{} for _ in FACES]
    for character in alphabet:
        assert len(character.faces) >= 12
        for face in set(character.faces) & {0, 5, 10, 12}:
            picture = typefaces._canvas(face, character.code_point, 32)
            assert picture.any()
            twin = seen[face].setdefault(picture.tobytes(), character.code_point)
            assert twin == character.code_point


def test_closed_set_shares_classes_and_no_instance(cache):
    source = Glyphs(num_train_classes=10, min_faces=16, split="closed_set", cache_dir=cache)
    splits = source.splits()
    keys = [set(split.keys) for split in splits.values()]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 10 * 16 * 4
    for split in splits.values():
        assert split.class_names == splits["train"].class_names
        assert len(np.unique(split.labels)) == 10
    assert len(splits["test"]) == 10 * 13


def test_closed_set_by_faces_tests_on_unseen_faces(cache):
    source = Glyphs(
        num_train_classes=10, min_faces=16, split="closed_set", held_out="faces", cache_dir=cache
    )
    fonts = {name: set(split.extras["font"].tolist()) for name, split in source.splits().items()}
    assert [len(fonts[name]) for name in ("train", "val", "test")] == [11, 2, 3]
    assert len(set.union(*fonts.values())) == 16


def test_max_faces_limits_every_class(cache):
    splits = Glyphs(**SMALL, max_faces=5, cache_dir=cache).splits()
    assert np.bincount(splits["test"].labels).tolist() == [10] * 8


@pytest.mark.long
def test_damaged_cache_is_drawn_anew(drawless, small):
    source = Glyphs(**SMALL, cache_dir=str(drawless))
    source.splits()
    (pixels,) = drawless.rglob("pixels-*.npy")
    good = pixels.read_bytes()
    for damage in (good[:-100], good[:-1] + bytes([good[-1] ^ 1]), b""):
        pixels.write_bytes(damage)
        assert source.splits()["train"].fingerprint == small["train"].fingerprint
        assert pixels.read_bytes() == good
    assert not list(drawless.rglob(".*"))


def test_cache_is_used(cache, monkeypatch, small):
    source = Glyphs(**SMALL, cache_dir=cache)
    monkeypatch.setattr(glyphs, "draw", lambda *_: pytest.fail("drawn in spite of the cache"))
    assert source.splits()["test"].fingerprint == small["test"].fingerprint


def test_fingerprint_is_that_of_pixels_and_labels(small):
    train = small["train"]
    expected = hashlib.sha256(train.images.pixels.tobytes() + train.labels.tobytes()).hexdigest()
    assert train.fingerprint == expected


def test_image_size(cache):
    splits = Glyphs(**(SMALL | {"image_size": 48}), cache_dir=cache).splits()
    assert splits["test"].images.pixels.shape[1:] == (48, 48)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "open"}, "split=open must be zero_shot or closed_set"),
        ({"min_faces": 17}, "min_faces=17 must be a whole number from 1 to 16"),
        ({"num_train_classes": 1}, "num_train_classes=1 must be a whole number of at least 2"),
        ({"held_out": "dice"}, "held_out=dice must be instances or faces"),
        ({"max_faces": 0}, "max_faces=0 must be a whole number from 1 to 16"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(UserError, match=message):
        Glyphs(**settings)


def test_more_classes_than_there_are(cache):
    with pytest.raises(UserError, match="but 9011 are asked for"):
        Glyphs(**(SMALL | {"num_train_classes": 9000}), cache_dir=cache).splits()


@pytest.mark.long
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, cache, caplog):
    (tmp_path / "file").write_text("")
    drawn = Glyphs(**SMALL, cache_dir=str(tmp_path / "file")).splits()
    kept = Glyphs(**SMALL, cache_dir=cache).splits()
    assert drawn["train"].fingerprint == kept["train"].fingerprint
    assert "nothing is kept there" in caplog.text


@pytest.mark.further
def test_names_as_captions_of_other_characters_to_test(tmp_path):
    from noisyml.data.checks import contact_sheet
    from noisyml.targets import PAIRS

    settings = {"num_train_classes": 6, "num_test_classes": 4, "num_val_classes": 0}
    splits = Glyphs(targets="caption", cache_dir=str(tmp_path), **settings).splits()
    single = Glyphs(cache_dir=str(tmp_path), **settings).splits()
    for name, split in splits.items():
        assert split.target is PAIRS
        assert split.class_names == []
        names = [single[name].class_names[i] for i in single[name].labels]
        assert split.labels.tolist() == names
        assert split.keys == single[name].keys
    assert not set(splits["train"].labels) & set(splits["test"].labels)
    assert contact_sheet(splits["test"], classes=3, instances=5).height == 3 * 64
    with pytest.raises(TypeError):
        splits["train"].target.checked([3], 0)


def test_distractors_are_of_no_class_and_leave_the_other_splits_alone(cache, small):
    source = Glyphs(**SMALL, num_distractor_classes=5, cache_dir=cache)
    splits = source.splits()
    assert len(splits["distractors"]) == 5 * 16 * 2
    assert set(splits["distractors"].labels.tolist()) == {-1}
    for name, split in small.items():
        assert np.array_equal(splits[name].images.pixels, split.images.pixels)
        assert not set(splits["distractors"].keys) & set(split.keys)
    assert source.test_sets(list(splits)) == {
        "test": {"pool": "test"},
        "distractors": {"pool": "test", "distractors": "distractors"},
    }
    with pytest.raises(UserError, match="num_distractor_classes=5 needs split=zero_shot"):
        Glyphs(split="closed_set", num_distractor_classes=5)
