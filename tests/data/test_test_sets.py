"""Several test sets at once, with distractors; inputs; samples without a label."""

import dataclasses

import numpy as np
import pytest
import torch

from noisyml.data.base import DatasetSource, Split, default_test_sets
from noisyml.data.datamodule import DataModule
from noisyml.data.inputs import ArrayImages
from noisyml.data.samplers.plans import Shuffle
from noisyml.data.subset import subset
from noisyml.data.transforms.image import ImageTransform
from noisyml.errors import UserError
from noisyml.noise import NoNoise

SIZES = {"train": 12, "query": 3, "gallery": 6, "hard_query": 2, "distractors": 9}
SETS = {
    "test": {"query": "query", "gallery": "gallery"},
    "hard": {"query": "hard_query", "gallery": "gallery"},
    "hard_1m": {"distractors": "distractors", "gallery": "gallery", "query": "hard_query"},
}


def split(name, n, **fields):
    rng = np.random.default_rng(n)
    labels = np.full(n, -1) if name == "distractors" else np.arange(n) % 3
    return Split(
        name,
        ArrayImages(rng.integers(0, 256, (n, 8, 8), dtype=np.uint8)),
        labels,
        list("abc"),
        [f"{name}{i}" for i in range(n)],
        name,
        **fields,
    )


class Revisited(DatasetSource):
    """Two test sets over one gallery, one of them also with distractors."""

    description = "tiny"

    def __init__(self, sets=SETS):
        self.sets = sets

    def missing(self):
        return None

    def splits(self):
        return {name: split(name, n) for name, n in SIZES.items()}

    def test_sets(self, names):
        return self.sets if self.sets is not None else default_test_sets(names)


def module(tmp_path, source, **settings):
    data = DataModule(
        source,
        NoNoise(),
        ImageTransform(),
        lambda labels, seed: Shuffle(labels, seed, batch_size=4),
        seed=0,
        cache_dir=str(tmp_path),
        eval_batch_size=4,
        **settings,
    )
    data.prepare_labels()
    return data


def test_a_split_of_several_test_sets_is_read_once(tmp_path):
    data = module(tmp_path, Revisited())
    assert data.test_sets == SETS
    assert data.test_splits == {
        "query": [("test", "query")],
        "gallery": [("test", "gallery"), ("hard", "gallery"), ("hard_1m", "gallery")],
        "hard_query": [("hard", "query"), ("hard_1m", "query")],
        "distractors": [("hard_1m", "distractors")],
    }
    loaders = data.test_dataloader()
    read = [sum(len(batch["index"]) for batch in loader) for loader in loaders]
    assert read == [SIZES[name] for name in data.test_splits]
    last = torch.cat([batch["label"] for batch in loaders[-1]])
    assert (last == -1).all()
    assert data.splits["distractors"].class_counts.tolist() == [0, 0, 0]


def test_without_a_word_splits_are_parts_of_the_default_set(tmp_path):
    data = module(tmp_path, Revisited(sets=None))
    parts = {"query": "query", "gallery": "gallery", "distractors": "distractors"}
    assert data.test_sets == {"test": parts}
    assert default_test_sets(["train", "val", "test"]) == {"test": {"pool": "test"}}
    assert default_test_sets(["train"]) == {}


@pytest.mark.parametrize(
    "sets",
    [
        {"test": {"query": "query"}},
        {"test": {"query": "query", "gallery": "nowhere"}},
        {"test": {"query": "query", "gallery": "gallery", "index": "distractors"}},
        {"hard": {"query": "query", "gallery": "gallery"}},
    ],
)
def test_sets_that_make_no_test_are_refused(tmp_path, sets):
    with pytest.raises(ValueError, match="test set"):
        module(tmp_path, Revisited(sets))


def test_batches_say_which_samples_are_labelled():
    labelled = np.arange(12) % 2 == 0
    train = split("train", 12, labelled=labelled)
    small = subset(train, 6, 0)
    positions = [train.keys.index(key) for key in small.keys]
    np.testing.assert_array_equal(small.labelled, labelled[positions])
    with pytest.raises(ValueError, match=r"labelled must be bool \[12\]"):
        split("train", 12, labelled=labelled[:5])


def test_the_mask_reaches_training_and_evaluation(tmp_path):
    class Partly(Revisited):
        def splits(self):
            splits = super().splits()
            labelled = np.arange(12) < 5
            return splits | {"train": dataclasses.replace(splits["train"], labelled=labelled)}

    data = module(tmp_path, Partly())
    for loader in (data.train_dataloader(), data.predict_dataloader("train")):
        for batch in loader:
            assert torch.equal(batch["labelled"], batch["index"] < 5)
    assert all("labelled" not in batch for batch in data.predict_dataloader("query"))


def test_pixels_are_asked_of_images_only():
    class Vectors(ArrayImages):
        kind = "vectors"

    vectors = dataclasses.replace(split("train", 4), inputs=Vectors(np.zeros((4, 8, 8), np.uint8)))
    with pytest.raises(UserError, match="The train split holds vectors, but images are needed"):
        _ = vectors.images
