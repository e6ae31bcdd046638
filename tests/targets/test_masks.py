"""Masks as labels: files of class numbers, their questions, and what is refused."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from noisyml.errors import UserError
from noisyml.noise import MaskClassSwap, NoiseManifest
from noisyml.targets import MASKS, target_of
from noisyml.targets.masks import as_labels, decode_mask, encode_mask, mask_size

A = np.array([[0, 0, 1], [2, 2, 255]], dtype=np.uint8)
B = np.array([[0, 1, 1], [255, 2, 2]], dtype=np.uint8)


def masks(*pages):
    return as_labels([encode_mask(page) for page in pages])


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_palettes_give_their_numbers_and_colours_are_refused():
    palette = Image.fromarray(A, "L").convert("P")
    palette.putdata(A.ravel().tolist())
    palette.putpalette([7, 7, 7] * 256)
    assert np.array_equal(decode_mask(png(palette)), A)
    with pytest.raises(UserError, match="mode RGB"):
        decode_mask(png(Image.fromarray(A, "L").convert("RGB")))
    with pytest.raises(UserError, match="cannot be decoded"):
        decode_mask(b"\x89PNG and nothing more")


def test_questions():
    labels, names = masks(A, B), ["ground", "ant", "bee"]
    assert target_of(labels) is MASKS
    assert target_of(labels.tolist()) is MASKS
    assert MASKS.class_counts(labels, 3).tolist() == [2, 2, 2]
    assert MASKS.sizes(labels, 3).tolist() == [3, 3, 4]
    assert MASKS.members(masks(A, A * 0), 1).tolist() == [0]
    assert MASKS.texts(labels, names)[0] == "ground + ant + bee"
    assert MASKS.labelled(masks(A, A * 0 + 255)).tolist() == [True, False]
    assert MASKS.tensor(labels).shape == (2, 2, 3)
    assert mask_size(labels[0]) == (2, 3)
    numbers, names_shown, shown = MASKS.groups(labels, names, 5)
    assert numbers.tolist() == [2, 1] or numbers.tolist() == [2, 2]
    assert set(shown.tolist()) <= {1, 2}
    assert names_shown == names


def test_rates_count_pixels():
    changed = np.array([True])
    rates = MASKS.rates(masks(B), masks(A), changed)
    # Of five pixels with a true class one has another, and one has none.
    assert rates == {"wrong_pixels": 1 / 5, "unlabelled_pixels": 1 / 5}
    assert MASKS.agreement(masks(B), masks(A), 3) == (3, 4, 5)
    counts = MASKS.count_matrix(masks(B), masks(A), 3, 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]


def test_pixels_of_no_class_are_refused_before_training():
    with pytest.raises(UserError, match=r"pixel of class 2.*2 classes"):
        MASKS.checked(masks(A), 2)
    with pytest.raises(TypeError):
        MASKS.checked([b"no file"], 3)


def test_a_manifest_of_masks_survives_its_file(tmp_path):
    clean = masks(A, B, A)
    made = MaskClassSwap(rate=0.5, seed=1).inject(clean, 3, keys=["a", "b", "c"])
    made.save(tmp_path / "noise.parquet")
    read = NoiseManifest.load(tmp_path / "noise.parquet")
    assert read.sha256 == made.sha256
    assert read.observed.tolist() == made.observed.tolist()
    assert read.target is MASKS
    assert read.rates() == made.rates()
    read.check_split(clean, ["a", "b", "c"])
    with pytest.raises(UserError, match="other clean labels"):
        read.check_split(masks(B, B, A), ["a", "b", "c"])


def test_a_record_holds_an_unchanged_mask_once_and_gives_it_back(tmp_path):
    rng = np.random.default_rng(0)
    pages = masks(*rng.integers(0, 3, (20, 32, 32), dtype=np.uint8))
    observed = pages.copy()
    observed[3] = pages[4]
    changed = np.arange(20) == 3
    record = NoiseManifest(
        observed=observed, clean=pages, changed=changed, num_classes=3, injector="own"
    )
    file = tmp_path / "noise.parquet"
    record.save(file)
    column = pq.read_table(file)["observed"]
    assert column.null_count == 19
    back = NoiseManifest.load(file)
    assert (back.observed == observed).all()
    assert (back.clean == pages).all()
    assert back.sha256 == record.sha256
    # Masks nobody knows the truth of stand as they are.
    unknown = MASKS.unknown_truth(pages)
    NoiseManifest(
        observed=pages,
        clean=unknown,
        changed=np.zeros(20, dtype=bool),
        num_classes=3,
        injector="own",
    ).save(file)
    back = NoiseManifest.load(file)
    assert (back.observed == pages).all()
    assert (back.clean == unknown).all()
