"""Data sets of instance retrieval, from trees of tiny pictures with excerpts of the real lists."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from noisyml.data.datasets.instances import gldv2
from noisyml.data.datasets.instances.gldv2 import GoogleLandmarksClean
from noisyml.data.datasets.instances.instre import Instre
from noisyml.data.datasets.instances.revisited import ROxford5k, RParis6k
from noisyml.data.datasets.instances.sfm120k import SfM120k
from noisyml.errors import UserError


def picture(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)


#: Lines of the real files: names without folder or suffix, boxes of floats or whole numbers, a
#: query without easy images, one without junk.
GALLERY = ["ashmolean_000283", "oxford_002124", "radcliffe_camera_000158", "oxford_000001"]
GROUND_TRUTH = {
    "gnd": [
        {"bbx": [13.5, 3.1, 33.5, 25.7], "easy": [0, 2], "hard": [1], "junk": [3]},
        {"bbx": [10, 5, 30, 25], "easy": [], "hard": [3], "junk": []},
    ],
    "imlist": GALLERY,
    "qimlist": ["all_souls_000013", "balliol_000187"],
}


@pytest.fixture
def oxford(tmp_path):
    for name in (*GALLERY, *GROUND_TRUTH["qimlist"]):
        picture(tmp_path / "jpg" / f"{name}.jpg")
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(GROUND_TRUTH, protocol=3))
    return tmp_path


def test_oxford_has_lists_by_difficulty_and_boxes(oxford):
    source = ROxford5k(str(oxford), image_size=20, check_counts=False)
    splits = source.splits()
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 4, "query": 2, "gallery": 4
    }  # fmt: skip
    assert source.test_sets(list(splits)) == {"test": {"query": "query", "gallery": "gallery"}}
    known = source.judgements
    assert known.protocol == "revisited"
    rows = sorted(zip(known.query, known.document, known.grade, strict=True))
    assert rows == [(0, 0, 2), (0, 1, 1), (0, 2, 2), (0, 3, -1), (1, 3, 1)]
    # The gallery is brought to 20 pixels, a query to the same share of its box.
    assert splits["gallery"].images.load(0).size == (20, 15)
    assert splits["query"].images.load(0).size == (10, 11)
    assert splits["train"].images.load(0).size == (40, 30)
    whole = ROxford5k(str(oxford), image_size=None, crop_queries=False, check_counts=False)
    assert whole.splits()["query"].images.load(0).size == (40, 30)
    assert len({s.fingerprint for s in (*splits.values(), whole.splits()["query"])}) == 4
    assert not source.has_labels


def test_distractors_are_a_test_set_of_their_own(oxford, tmp_path):
    more = tmp_path / "revisitop1m"
    for name in ("0/a1.jpg", "f/b2.jpg"):
        picture(more / "jpg" / name)
    source = ROxford5k(str(oxford), distractors=str(more), check_counts=False)
    assert source.missing().endswith("revisitop1m.txt")
    (more / "revisitop1m.txt").write_text("0/a1.jpg\nf/b2.jpg\n")
    splits = source.splits()
    assert splits["distractors"].labels.tolist() == [-1, -1]
    assert source.test_sets(list(splits)) == {
        "test": {"query": "query", "gallery": "gallery"},
        "distractors": {"query": "query", "gallery": "gallery", "distractors": "distractors"},
    }


def test_published_numbers_are_compared(oxford):
    with pytest.raises(UserError, match=r"Images of roxford5k: expected 4993 .* found 4"):
        ROxford5k(str(oxford)).splits()
    assert RParis6k(str(oxford)).missing().endswith("gnd_rparis6k.pkl")
    with pytest.raises(UserError, match=r"fetch paris_1\.tgz.*set dataset\.root"):
        RParis6k(str(oxford)).splits()


class Trap:
    """Runs a command when it is unpickled the ordinary way."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def test_a_malicious_ground_truth_is_refused_and_nothing_of_it_runs(oxford):
    touched = oxford / "touched"
    content = pickle.dumps({**GROUND_TRUTH, "extra": Trap(touched)})
    (oxford / "gnd_roxford5k.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"it names .*system\), and is not read"):
        ROxford5k(str(oxford), check_counts=False).splits()
    assert not touched.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gnd": [{"bbx": [1, 2, 3, 4], "easy": [9], "hard": [], "junk": []}] * 2}, "beyond the 4"),
        ({"gnd": [{"bbx": [1, 2, 3], "easy": [], "hard": [], "junk": []}] * 2}, "no file of anno"),
        ({"gnd": [{"bbx": [1, 2, 3, 4]}]}, "no file of annotations"),
        ({"imlist": [1, 2, 3, 4]}, "no file of annotations"),
        ({"qimlist": ["a"]}, "1 queries and annotations of 2"),
    ],
)
def test_other_contents_are_named(oxford, change, said):
    (oxford / "gnd_roxford5k.pkl").write_bytes(pickle.dumps({**GROUND_TRUTH, **change}))
    with pytest.raises(UserError, match=said):
        ROxford5k(str(oxford), check_counts=False).splits()


# -- INSTRE ----------------------------------------------------------------------------------------


@pytest.fixture
def instre(tmp_path):
    """As the real file: cells of texts, structures with rows of uint16, positions from 1."""
    gallery = ["INSTRE-S1/01a_canada_book/001.jpg", "INSTRE-S2/x/1.jpg", "INSTRE-M/01/001.jpg"]
    queries = ["INSTRE-S1/01a_canada_book/013.jpg", "INSTRE-M/01/002.jpg"]
    for name in (*gallery, *queries):
        picture(tmp_path / "images" / name, (100, 80))
    ground_truth = np.empty((1, 2), dtype=[("ok", object), ("bbx", object)])
    ground_truth[0, 0] = (
        np.array([[1, 3]], np.uint16), np.array([[20, 10, 70, 60]], np.uint16)
    )  # fmt: skip
    ground_truth[0, 1] = (np.array([[2]], np.uint16), np.array([[0, 0, 100, 40]], np.uint16))
    cells = {
        name: np.array([texts], dtype=object)
        for name, texts in (("imlist", gallery), ("qimlist", queries))
    }
    savemat(tmp_path / "gnd_instre.mat", {"gnd": ground_truth, **cells})
    return tmp_path


def test_instre_counts_from_1_and_its_boxes_are_corners(instre):
    source = Instre(str(instre), image_size=50, check_counts=False)
    splits = source.splits()
    known = source.judgements
    assert known.protocol == "instances"
    assert list(zip(known.query, known.document, strict=True)) == [(0, 0), (0, 2), (1, 1)]
    # A box of 50 of 100 pixels: half of 50.
    assert splits["query"].images.load(0).size == (25, 25)
    assert splits["query"].images.load(1).size == (50, 20)
    assert splits["gallery"].images.load(0).size == (50, 40)
    with pytest.raises(UserError, match="Images of instre: expected 27293"):
        Instre(str(instre)).splits()


def test_instre_as_the_released_code_reads_it(instre):
    source = Instre(str(instre), "released", check_counts=False)
    boxes = source.splits()["query"].inputs.boxes
    assert boxes[0] == (20, 10, 90, 70)
    assert source.judgements.document.tolist() == [1, -1, 2]


def test_a_damaged_matrix_of_instre_is_named(instre):
    (instre / "gnd_instre.mat").write_bytes(b"no matrix")
    with pytest.raises(UserError, match=r"gnd_instre\.mat cannot be read"):
        Instre(str(instre), check_counts=False).splits()


# -- Google landmarks ------------------------------------------------------------------------------


@pytest.fixture
def landmarks(tmp_path):
    rows = {7: 3, 9: 2, 11: 4, 20: 3}
    lines = ["landmark_id,images"]
    for landmark, count in rows.items():
        images = [f"a{landmark:02}{i}ff" for i in range(count)]
        lines.append(f"{landmark},{' '.join(images)}")
        for image in images:
            picture(tmp_path / "train" / gldv2.image_path(image))
    (tmp_path / "train_clean.csv").write_text("\n".join(lines) + "\n")
    for folder, images in (("index", ("0fa", "1fb", "2fc")), ("test", ("aaa", "bbb", "ccc"))):
        for image in images:
            picture(tmp_path / folder / gldv2.image_path(image))
    (tmp_path / "index" / "index_image_to_landmark.csv").write_text(
        "id,landmark_id\n0fa,1\n1fb,1\n2fc,2\n"
    )
    (tmp_path / "test" / "retrieval_solution_v2.1.csv").write_text(
        "id,images,Usage\naaa,1fb 0fa 1fb,Public\nddd,None,Public\neee,,Ignored\n"
        "bbb,2fc gone,Private\n"
    )
    return tmp_path


def test_landmarks_with_few_images_are_left_out_and_some_held_out(landmarks):
    source = GoogleLandmarksClean(str(landmarks), test_classes=1, min_images=3, check_counts=False)
    splits = source.splits()
    assert list(splits["train"].class_names) == ["7", "11"]
    assert splits["train"].labels.tolist() == [0] * 3 + [1] * 4
    assert list(splits["test"].class_names) == ["20"]
    assert splits["train"].keys[0] == "a/0/7/a070ff.jpg"
    with pytest.raises(UserError, match="Training images of gldv2_clean: expected 1223195"):
        GoogleLandmarksClean(str(landmarks)).splits()


def test_the_retrieval_of_landmarks_skips_what_is_ignored(landmarks):
    source = GoogleLandmarksClean(
        str(landmarks), test="retrieval", min_images=1, image_size=20, check_counts=False
    )
    splits = source.splits()
    known = source.judgements
    assert known.query_ids == ["aaa", "bbb"]
    assert list(zip(known.query, known.document, strict=True)) == [(0, 1), (0, 0), (1, 2), (1, -1)]
    assert {name: mask.tolist() for name, mask in known.parts.items()} == {
        "public": [True, False], "private": [False, True]
    }  # fmt: skip
    assert splits["gallery"].images.load(0).size == (20, 15)
    assert not source.has_labels
    table = landmarks / "test" / "retrieval_solution_v2.1.csv"
    table.write_text("id,images,Usage\naaa,0fa,Maybe\n")
    with pytest.raises(UserError, match=r"line 2: 'Maybe' stands where Public"):
        source.splits()
    table.unlink()
    assert source.missing() == str(table)


# -- SfM-120k --------------------------------------------------------------------------------------


def test_places_are_classes(tmp_path):
    parts = {
        "train": {"cids": ["00aabbcc", "11aabbcc"], "cluster": [5, 9], "qidxs": [0], "pidxs": [1]},
        "val": {"cids": ["22aabbcc"], "cluster": [3]},
    }
    for part in parts.values():
        for key in part["cids"]:
            path = tmp_path / "ims" / "cc" / "bb" / "aa" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 3)).save(path, format="JPEG")
    (tmp_path / "retrieval-SfM-120k.pkl").write_bytes(pickle.dumps(parts))
    splits = SfM120k(str(tmp_path), check_counts=False).splits()
    assert splits["train"].keys == ["cc/bb/aa/00aabbcc", "cc/bb/aa/11aabbcc"]
    assert splits["train"].class_names == ["model 5", "model 9"]
    assert splits["test"].class_names == ["model 3"]
    assert splits["test"].images.load(0).size == (4, 3)
    with pytest.raises(UserError, match="Images of the train part of sfm120k: expected 91642"):
        SfM120k(str(tmp_path)).splits()
    del parts["val"]["cluster"]
    (tmp_path / "retrieval-SfM-120k.pkl").write_bytes(pickle.dumps(parts))
    with pytest.raises(UserError, match="does not hold cids and cluster of the part 'val'"):
        SfM120k(str(tmp_path), check_counts=False).splits()
