"""Labels that only some samples have, and that nothing else tells."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from noisyml.data.datamodule import DataModule
from noisyml.data.datasets.discovery.source import CategoryDiscovery
from noisyml.data.datasets.embedded.digits import Digits
from noisyml.data.partial import LABELLED, UNLABELLED
from noisyml.data.samplers.mixture import Mixture
from noisyml.data.samplers.plans import MPerClass, Shuffle
from noisyml.data.transforms.image import ImageTransform
from noisyml.data.transforms.two_views import TwoViews
from noisyml.errors import UserError
from noisyml.noise import NoiseManifest, NoNoise, Symmetric
from noisyml.noise.injectors.files import FromManifest
from noisyml.targets import MULTI, PARTIAL, SINGLE, target_of

SOME = np.array([0, -1, 2, -1])


def test_kinds_are_told_apart_by_what_is_there():
    assert target_of(SOME) is PARTIAL
    assert target_of([0, 1]) is SINGLE
    assert target_of([-1, -1]) is SINGLE
    assert target_of([[0, 1]]) is MULTI
    assert PARTIAL.labelled(SOME).tolist() == [True, False, True, False]
    assert PARTIAL.present(SOME).tolist() == [0, 2]


def test_labels_that_are_not_there_are_neither_right_nor_wrong():
    clean = np.array([1, 1, 2, 0])
    changed = PARTIAL.changed(SOME, clean)
    assert changed.tolist() == [True, False, False, False]
    manifest = NoiseManifest(SOME, clean, changed, 3, injector="mine")
    assert manifest.actual_rate == 0.5
    assert manifest.rates()["labelled"] == 0.5
    assert manifest.count_matrix().tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match="not there counts as wrong"):
        NoiseManifest(SOME, clean, [True, True, False, False], 3, injector="mine")
    with pytest.raises(ValueError, match="observed label"):
        NoiseManifest(SOME + 1, clean, changed, 3, injector="mine")
    with pytest.raises(ValueError, match="clean label"):
        NoiseManifest(SOME, clean + 2, changed, 3, injector="mine")


def test_words_name_what_is_missing():
    names = ["ant", "bee", "cat"]
    assert PARTIAL.texts(SOME, names) == ["ant", "no label", "cat", "no label"]
    assert [PARTIAL.shown(label) for label in SOME] == ["0", "none", "2", "none"]
    assert PARTIAL.facts(SOME) == {"labelled": "2", "labelled classes": "2"}
    numbers, known, shown = PARTIAL.groups(SOME, names, 2)
    assert numbers.tolist() == [0, 3, 2, 3]
    assert known[3] == "no label"
    assert shown.tolist() == [0, 3]
    assert PARTIAL.among_present(SOME, names)[1] == names
    assert PARTIAL.digest(SOME, SOME) != SINGLE.digest(SOME, SOME)
    known, wrong = PARTIAL.truth(SOME, np.array([1, 1, -1, -2]))
    assert wrong.tolist() == [True, False, False, False]
    assert PARTIAL.class_counts(SOME, 3).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "error"), [([0, -2], UserError), ([3, -1], UserError), ([0.5, -1.0], TypeError)]
)
def test_other_values_are_refused(labels, error):
    with pytest.raises(error):
        PARTIAL.checked(np.array(labels), 3)


def data_module(tmp_path, noise=None, **settings):
    source = CategoryDiscovery(Digits(val_fraction=0.0, test_fraction=0.2), **settings)
    data = DataModule(
        source,
        noise or NoNoise(),
        TwoViews(ImageTransform(size=8, crop="random", padding=1)),
        lambda labels, seed: Mixture(labels, seed, batch_size=32),
        seed=0,
        cache_dir=str(tmp_path),
    )
    data.pool = "all"  # as methods of discovery ask
    return data


def test_no_batch_shows_a_hidden_class(tmp_path):
    data = data_module(tmp_path)
    manifest = data.prepare_labels()
    assert data.target is PARTIAL
    assert data.num_classes == 10
    assert data.known_classes.tolist() == [0, 1, 2, 3, 4]
    data.setup("fit")
    hidden = ~data.splits["train"].labelled
    assert (manifest.clean >= 0).all()
    assert (data.splits["train"].labels[hidden] == -1).all()
    for loader in (data.train_dataloader(), data.predict_dataloader("train")):
        for batch in loader:
            unknown = torch.from_numpy(hidden[batch["index"].numpy()])
            assert (batch["label"][unknown] == -1).all()
            assert (batch["label"][~unknown] >= 0).all()
            assert not set(batch) & {"clean", "clean_label"}
    views = next(iter(data.train_dataloader()))["views"]
    assert views.shape == (32, 2, 1, 8, 8)
    assert not torch.equal(views[:, 0], views[:, 1])


def test_tests_score_hidden_classes_given_the_labels_that_training_saw(tmp_path):
    data = data_module(tmp_path, Symmetric(rate=0.4, seed=3))
    manifest = data.prepare_labels()
    marks = manifest.observed >= 0
    assert np.array_equal(data.splits[LABELLED].labels, manifest.observed[marks])
    assert np.array_equal(data.splits[UNLABELLED].labels, manifest.clean[~marks])
    assert data.test_splits == {
        UNLABELLED: [("test", "query")],
        LABELLED: [("test", "gallery")],
        "test": [("held_out", "pool")],
    }
    # Noise stays among the old classes and the labelled images.
    assert manifest.observed.max() == 4
    assert 0.3 < manifest.actual_rate < 0.5
    assert manifest.changed[marks].mean() == pytest.approx(manifest.actual_rate)
    assert not manifest.changed[~marks].any()
    assert (
        manifest.clean[marks & ~manifest.changed] == manifest.observed[marks & ~manifest.changed]
    ).all()


def test_noise_of_a_run_is_found_again(tmp_path):
    file = tmp_path / "noise.parquet"
    first = data_module(tmp_path, Symmetric(rate=0.3)).prepare_labels()
    first.save(file)
    again = data_module(tmp_path, FromManifest(path=str(file))).prepare_labels()
    assert again.sha256 == first.sha256
    with pytest.raises(UserError, match="hides other labels"):
        data_module(tmp_path, FromManifest(path=str(file)), labelled_share=0.4).prepare_labels()


def test_fewer_training_images_stay_partial(tmp_path):
    data = data_module(tmp_path)
    data.train_size = 200
    manifest = data.prepare_labels()
    assert len(manifest) == 200
    assert len(data.splits[LABELLED]) + len(data.splits[UNLABELLED]) == 200
    data = data_module(tmp_path)
    data.planted_errors = 0.1
    with pytest.raises(UserError, match="some training samples have none"):
        data.prepare_labels()


def test_a_mixture_has_its_share_of_labelled_samples():
    labels = np.where(np.arange(100) < 20, 1, -1)
    plan = Mixture(labels, 0, batch_size=10, batches_per_epoch=400)
    drawn = plan.epoch(0)
    assert drawn.shape == (len(plan), 10)
    share = (labels[drawn] >= 0).mean()
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(drawn.size)
    assert np.array_equal(drawn, plan.epoch(0))
    assert not np.array_equal(drawn, plan.epoch(1))
    counts = np.bincount(drawn.ravel(), minlength=100)
    assert counts.min() > 0

    exact = Mixture(labels, 0, batch_size=10, labelled_share=0.3, draw="exact").epoch(0)
    assert ((labels[exact] >= 0).sum(axis=1) == 3).all()
    counts = np.bincount(exact.ravel(), minlength=100)
    assert set(counts[:20]) == {1, 2}
    assert counts[20:].max() == 1


def test_a_mixture_needs_both_kinds():
    for labels in (np.zeros(20, dtype=np.int64), np.full(20, -1)):
        with pytest.raises(UserError, match="sampler=shuffle"):
            Mixture(labels, 0, batch_size=4)
    with pytest.raises(UserError, match="exceeds"):
        Mixture(SOME, 0, batch_size=8)
    with pytest.raises(UserError, match="sampler=mixture"):
        MPerClass(SOME, 0, batch_size=2)
    assert len(Shuffle(SOME, 0, batch_size=2)) == 2
