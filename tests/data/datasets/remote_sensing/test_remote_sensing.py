"""Remote-sensing sets, read from tiny trees in their official formats, and images of many bands."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from support import paths
from support.remote_sensing_trees import (
    MERCED_LABELS,
    earth_tree,
    merced_tree,
    write_earth_labels,
    write_tiff,
)

from noisyml.data.checks import check_images, contact_sheet
from noisyml.data.datasets.remote_sensing import bigearthnet
from noisyml.data.datasets.remote_sensing.bigearthnet import BANDS, NOMENCLATURE, BigEarthNetS2
from noisyml.data.datasets.remote_sensing.treesatai import GENERA, SPECIES, TreeSatAI
from noisyml.data.datasets.remote_sensing.ucmerced import UCMercedMultiLabel
from noisyml.data.inputs import BrokenImage, as_rgb
from noisyml.data.readers.band_images import Band, BandImages, choose_bands, read_tiff
from noisyml.data.readers.layout import at_once, stat_files
from noisyml.data.transforms.image import ImageTransform
from noisyml.data.views import EvaluationView
from noisyml.errors import UserError
from noisyml.models.backbones.from_timm import timm_model
from noisyml.models.backbones.from_torchvision import resnet
from noisyml.targets import MULTI

CONF = paths.CONF / "dataset"
FILES = {
    "ucmerced_multilabel": UCMercedMultiLabel,
    "treesatai": TreeSatAI,
    "bigearthnet_s2": lambda root: BigEarthNetS2(root, lists=f"{root}/lists"),
}


@pytest.fixture
def merced(tmp_path):
    return merced_tree(tmp_path)


def test_uc_merced_divides_every_scene(merced):
    splits = UCMercedMultiLabel(str(merced), check_counts=False).splits()
    assert {n: len(s) for n, s in splits.items()} == {"train": 14, "val": 2, "test": 4}
    table = [
        line.split() for line in (merced / "LandUse_Multilabeled.txt").read_text().splitlines()
    ]
    rows = {row[0]: [int(mark) for mark in row[1:]] for row in table[1:]}
    for split in splits.values():
        assert split.target is MULTI
        assert split.class_names == MERCED_LABELS
        assert np.bincount(split.extras["scene"]).tolist() == [len(split) // 2] * 2
        for key, marks in zip(split.keys, split.labels, strict=True):
            assert rows[Path(key).stem] == marks.tolist()
        assert split.images.load(0).size == (4, 3)
    with pytest.raises(UserError, match=r"Images in .*: expected 2100 as published, found 20"):
        UCMercedMultiLabel(str(merced)).splits()
    with pytest.raises(UserError, match=r"test_fraction=0.0 must be a number above 0"):
        UCMercedMultiLabel(str(merced), test_fraction=0.0)
    table = merced / "LandUse_Multilabeled.txt"
    good = table.read_text()
    table.write_text(good.replace("beach03\t", "beach03\t2\t"))
    with pytest.raises(UserError, match=r"line 15: expected 18 columns, found 19"):
        UCMercedMultiLabel(str(merced), check_counts=False).splits()
    table.write_text(good.replace("\t1", "\t2"))
    with pytest.raises(UserError, match="another number than 0 and 1"):
        UCMercedMultiLabel(str(merced), check_counts=False).splits()


def test_the_nineteen_classes_gather_the_forty_three():
    """Sumbul et al., 2021, table 1: eleven classes are removed, the others keep or join."""
    assert len(NOMENCLATURE) == 43
    assert sum(new is None for new in NOMENCLATURE.values()) == 11
    assert len(bigearthnet.CLASSES_19) == 19
    assert set(NOMENCLATURE.values()) - {None} == set(bigearthnet.CLASSES_19)
    joined = {
        new: sum(other == new for other in NOMENCLATURE.values()) for new in bigearthnet.CLASSES_19
    }
    assert {new: number for new, number in joined.items() if number > 1} == {
        "Urban fabric": 2,
        "Arable land": 3,
        "Permanent crops": 4,
        "Natural grassland and sparsely vegetated areas": 2,
        "Moors, heathland and sclerophyllous vegetation": 2,
        "Inland wetlands": 2,
        "Coastal wetlands": 2,
        "Inland waters": 2,
        "Marine waters": 3,
    }
    alone = [old for old, new in NOMENCLATURE.items() if joined.get(new) == 1]
    # Only the slash is written differently.
    assert [old for old in alone if NOMENCLATURE[old] != old] == ["Transitional woodland/shrub"]
    assert sum(bigearthnet.PUBLISHED.values()) == 519_284


PATCHES = {
    "train": [("S2A_1", ["Vineyards", "Airports"]), ("S2A_2", ["Sea and ocean", "Estuaries"])],
    "val": [("S2A_3", ["Pastures", "Olive groves"])],
    "test": [("S2A_4", ["Bare rock"])],
}


@pytest.fixture
def earth(tmp_path):
    root, lists = tmp_path / "BigEarthNet-v1.0", tmp_path / "lists"
    earth_tree(root, lists, PATCHES)
    return root, lists


def test_bigearthnet(earth):
    root, lists = map(str, earth)
    splits = BigEarthNetS2(root, lists, check_counts=False).splits()
    assert {n: len(s) for n, s in splits.items()} == {"train": 2, "val": 1, "test": 1}
    train = splits["train"]
    named = [[train.class_names[c] for c in np.flatnonzero(row)] for row in train.labels]
    assert named == [["Permanent crops"], ["Marine waters"]]
    # Nothing but a removed class: no label is left.
    assert not splits["test"].labels.any()
    assert train.keys == ["S2A_1", "S2A_2"]
    all43 = BigEarthNetS2(root, lists, classes=43, check_counts=False).splits()["train"]
    assert all43.labels.sum(axis=1).tolist() == [2, 2]
    with pytest.raises(
        UserError, match=r"train split of bigearthnet_s2: expected 269695 .* found 2"
    ):
        BigEarthNetS2(root, lists).splits()
    (earth[0] / "S2A_3" / "S2A_3_labels_metadata.json").write_text('{"labels": ["Glaciers"]}')
    with pytest.raises(UserError, match="'Glaciers', which is none of the 43"):
        BigEarthNetS2(root, lists, check_counts=False).splits()
    (earth[0] / "S2A_3" / "S2A_3_labels_metadata.json").unlink()
    with pytest.raises(UserError, match=r"is missing for a patch of .*val.csv"):
        BigEarthNetS2(root, lists, check_counts=False).splits()


def test_labels_of_bigearthnet_are_kept_until_a_file_changes(earth, tmp_path, monkeypatch):
    root, lists = map(str, earth)
    settings = {"check_counts": False, "cache_dir": str(tmp_path / "cache")}
    plain = BigEarthNetS2(root, lists, check_counts=False).splits()
    read = []
    own = bigearthnet._read_labels
    monkeypatch.setattr(bigearthnet, "_read_labels", lambda *a: read.append(a[0]) or own(*a))

    def splits(**more):
        read.clear()
        return BigEarthNetS2(root, lists, **settings, **more).splits()

    for expected in (4, 0):
        for name, split in splits().items():
            assert np.array_equal(split.labels, plain[name].labels)
            assert split.labels.dtype == np.uint8
        assert len(read) == expected
    # The same files serve both nomenclatures.
    assert splits(classes=43)["train"].labels.sum(axis=1).tolist() == [2, 2]
    assert not read
    write_earth_labels(earth[0], "S2A_3", ["Sea and ocean"])
    changed = splits()["val"]
    assert [path.parent.name for path in read] == ["S2A_3"]
    assert [changed.class_names[c] for c in np.flatnonzero(changed.labels[0])] == ["Marine waters"]
    for file in (tmp_path / "cache" / "bigearthnet").iterdir():
        file.write_bytes(file.read_bytes()[:-3])
    assert np.array_equal(splits()["val"].labels, changed.labels)
    assert len(read) == 4
    (earth[0] / "S2A_4" / "S2A_4_labels_metadata.json").unlink()
    with pytest.raises(UserError, match=r"is missing for a patch of .*test.csv"):
        splits()


def test_many_files_are_asked_for_at_once_and_answered_in_order(tmp_path):
    names = [f"{i}.txt" for i in range(700)]
    for i, name in enumerate(names[:650]):
        (tmp_path / name).write_text("x" * (i % 7))
    stats = stat_files(tmp_path, names)
    assert [s.st_size for s in stats[:650]] == [i % 7 for i in range(650)]
    assert stats[650:] == [None] * 50

    def fail(some):
        if "300.txt" in some or "699.txt" in some:
            raise UserError(f"{some[0]} fails")
        return len(some)

    assert sum(at_once(fail, names[:256])) == 256
    with pytest.raises(UserError, match=r"^256.txt fails"):
        at_once(fail, names)


def test_bands_are_resampled_and_span_two_deviations(earth):
    root, lists = map(str, earth)
    source = BigEarthNetS2(root, lists, check_counts=False)
    images = pickle.loads(pickle.dumps(source.splits()["train"].images))
    pixels = images.load(0)
    assert pixels.shape == (120, 120, 12)
    assert pixels.dtype == np.uint8
    for number, band in enumerate(BANDS):
        value = round(max(band.mean + (number - 6) / 4 * band.std, 0))
        expected = 127.5 + (value - band.mean) / band.std * 63.75
        assert abs(int(pixels[0, 0, number]) - expected) <= 0.6
        assert (pixels[:, :, number] == pixels[0, 0, number]).all()
    # What the backbone's mean 0.5 and deviation 0.25 make of it: standardised bands.
    standardised = (pixels[0, 0, 11] / 255 - 0.5) / 0.25
    assert abs(standardised - 5 / 4) < 0.01
    rgb = BigEarthNetS2(root, lists, bands="rgb", check_counts=False).splits()["train"]
    assert rgb.images.load(0).mode == "RGB"
    np.testing.assert_array_equal(np.asarray(rgb.images.load(0)), pixels[:, :, [3, 2, 1]])
    assert len(BigEarthNetS2(root, lists, bands="ten").chosen) == 10
    grey = BigEarthNetS2(root, lists, bands=["B08"], check_counts=False).splits()["train"]
    assert grey.images.load(0).mode == "L"
    wide = BigEarthNetS2(root, lists, spread=4.0, check_counts=False).splits()["train"]
    assert wide.fingerprint != source.splits()["train"].fingerprint
    (earth[0] / "S2A_1" / "S2A_1_B09.tif").write_bytes(b"II*\0")
    with pytest.raises(BrokenImage, match=r"S2A_1_B09.tif"):
        images.load(0)
    (earth[0] / "S2A_2" / "S2A_2_B01.tif").unlink()
    with pytest.raises(UserError, match="1 of 2 images of the train split are missing"):
        source.splits()


@pytest.mark.parametrize("crop", ["none", "centre", "random", "random_resized"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_transforms_treat_bands_like_colours(crop, interpolation):
    """Twelve bands made of four copies of a colour image come out as four copies."""
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (20, 17, 3), dtype=np.uint8)
    bands = np.concatenate([colour] * 4, axis=2)
    transform = ImageTransform(
        size=12, resize=14, crop=crop, horizontal_flip=0.5, interpolation=interpolation
    )
    for seed in range(4):
        many = transform.train(bands, seed)
        assert many.shape == (12, 12, 12)
        assert many.dtype == torch.uint8
        assert torch.equal(many[:3], many[9:])
        one = transform.train(Image.fromarray(colour), seed)
        # PIL and PyTorch round their filters differently.
        assert (many[:3].int() - one.int()).abs().max() <= 2
    flat = transform.evaluate(bands)
    assert (flat[:3].int() - transform.evaluate(Image.fromarray(colour)).int()).abs().max() <= 2
    assert ImageTransform().evaluate(bands).shape == (12, 20, 17)


def test_transforms_refuse_what_bands_cannot_do():
    bands = np.zeros((8, 8, 12), dtype=np.uint8)
    with pytest.raises(UserError, match=r"colour=rgb cannot be made of an image of 12 bands"):
        ImageTransform(colour="rgb").evaluate(bands)
    with pytest.raises(UserError, match=r"lanczos is for grey and RGB .* images of 12 bands"):
        ImageTransform(size=4, interpolation="lanczos").evaluate(bands)


@pytest.mark.long
def test_networks_take_as_many_bands_as_they_are_told(earth):
    root, lists = map(str, earth)
    split = BigEarthNetS2(root, lists, check_counts=False).splits()["train"]
    batch = EvaluationView(split, ImageTransform(size=32)).__getitems__([0, 1])
    assert batch["image"].shape == (2, 12, 32, 32)
    assert batch["labels"].shape == (2, 19)
    for network in (resnet("resnet18", in_channels=12), timm_model("test_resnet", in_channels=12)):
        features = network.eval()(batch["image"])
        assert features.shape == (2, network.out_features)
        normalised = network.normalise(batch["image"])
        torch.testing.assert_close(normalised, (batch["image"] / 255 - 0.5) / 0.25)
    with pytest.raises(UserError, match=r"images have 12 channels and the backbone takes 3"):
        resnet("resnet18")(batch["image"])
    with pytest.raises(UserError, match=r"in_channels is 12: set backbone.weights=null, or back"):
        resnet("resnet18", weights="imagenet", in_channels=12)


def test_weights_for_three_channels_fit_a_projection_of_the_bands(tmp_path):
    coloured = resnet("resnet18")
    torch.save(coloured.body.state_dict(), tmp_path / "weights.pt")
    weights = {"weights": str(tmp_path / "weights.pt"), "in_channels": 10}
    network = resnet("resnet18", band_projection=True, **weights).eval()
    projection, first = network.body.conv1
    assert torch.equal(first.weight, coloured.body.conv1.weight)
    images = torch.randint(0, 256, (2, 10, 32, 32), dtype=torch.uint8)
    body = coloured.body.eval()
    expected = body(projection((images / 255 - 0.5) / 0.25))
    torch.testing.assert_close(network(images), expected)
    assert network.activations(images, ["block1"]).maps["block1"].shape == (2, 64, 8, 8)


def test_bands_can_be_looked_at(earth):
    root, lists = map(str, earth)
    split = BigEarthNetS2(root, lists, check_counts=False).splits()["train"]
    report = check_images(split)
    assert report.modes == {"12 bands": 2}
    assert report.sizes["max"] == (120, 120)
    assert contact_sheet(split, tile=32).size[1] == 64
    assert np.asarray(as_rgb(np.full((2, 2, 2), 7, np.uint8)))[0, 0].tolist() == [7, 7, 7]


def _forest(root):
    names = ["Abies_alba_1_834_WEFL_NLF.tif", "Cleared_0_12_BI.tif", "Larix_kaempferi_2_3_X.tif"]
    shares = {
        names[0]: [["Abies", 0.9], ["Fagus", 0.07], ["Quercus", 0.08]],
        names[1]: [["Cleared", 0.05]],
        names[2]: [["Larix", 1.0]],
    }
    (root / "labels").mkdir()
    (root / "labels" / "TreeSatBA_v9_60m_multi_labels.json").write_text(json.dumps(shares))
    (root / "train_filenames.lst").write_text("\n".join(names[:2]) + "\n")
    (root / "test_filenames.lst").write_text(names[2] + "\n")
    aerial = np.arange(4 * 304 * 304, dtype=np.uint32).reshape(304, 304, 4).astype(np.uint8)
    s2 = np.stack([np.full((6, 6), 100 * (b + 1), dtype=np.uint16) for b in range(12)])
    for name in names:
        write_tiff(
            root / "aerial" / "60m" / name, aerial, planarconfig="contig", photometric="minisblack"
        )
        write_tiff(
            root / "s2" / "60m" / name, s2, planarconfig="separate", photometric="minisblack"
        )
        write_tiff(root / "s1" / "200m" / name, np.full((3, 20, 20), -12, dtype=np.float32))
    return names, aerial


def test_treesatai(tmp_path):
    names, aerial = _forest(tmp_path)
    source = TreeSatAI(str(tmp_path), val_fraction=0.0, check_counts=False)
    splits = source.splits()
    # A share of 0.07 is not more than 0.07, and an image without labels is left out.
    assert splits["train"].keys == names[:1]
    found = np.flatnonzero(splits["train"].labels[0])
    assert [GENERA[c] for c in found] == ["Abies", "Quercus"]
    np.testing.assert_array_equal(splits["train"].images.load(0), aerial)
    rgb = TreeSatAI(str(tmp_path), bands="rgb", val_fraction=0.0, check_counts=False).splits()
    np.testing.assert_array_equal(np.asarray(rgb["test"].images.load(0)), aerial[:, :, [3, 1, 2]])
    species = TreeSatAI(
        str(tmp_path), labels="species", val_fraction=0.0, check_counts=False
    ).splits()
    assert [SPECIES[c] for c in species["train"].labels] == ["Abies_alba", "Cleared"]
    assert SPECIES[species["test"].labels[0]] == "Larix_kaempferi"
    s2 = TreeSatAI(str(tmp_path), "s2", val_fraction=0.0, area_threshold=0.0, check_counts=False)
    pixels = s2.splits()["train"].images.load(1)
    assert pixels.shape == (6, 6, 12)
    # The third band of the file is B04, the eleventh B01.
    means = {band.name: (band.mean, band.std) for band in BANDS}
    for position, name in ((2, "B04"), (10, "B01")):
        mean, std = means[name]
        expected = 127.5 + (100 * (position + 1) - mean) / std * 63.75
        assert abs(int(pixels[0, 0, position]) - expected) <= 0.6
    s1 = TreeSatAI(str(tmp_path), "s1", "200m", labels="species", check_counts=False).splits()
    assert np.asarray(s1["train"].images.load(0))[0, 0].tolist()[0] == 128
    with pytest.raises(UserError, match=r"two lists of treesatai: expected 50381 .* found 3"):
        TreeSatAI(str(tmp_path)).splits()
    (tmp_path / "train_filenames.lst").write_text("Ginkgo_1.tif\n")
    with pytest.raises(UserError, match=r"no entry for 'Ginkgo_1.tif'"):
        source.splits()
    with pytest.raises(UserError, match=r"'Ginkgo_1.tif' begins with none of the 20 species"):
        TreeSatAI(str(tmp_path), labels="species", check_counts=False).splits()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sensor": "radar"}, "sensor=radar must be aerial, s1 or s2"),
        ({"extent": "200m"}, "images of dataset.extent=60m only"),
        ({"bands": "infrared"}, r"dataset.bands is 'infrared'; choose all, rgb, or a list of IR"),
        ({"sensor": "s1", "bands": "rgb"}, r"choose all, or a list of VV, VH"),
        ({"bands": ["R", "X"]}, r"dataset.bands has no 'X'; there are IR, G, B, R"),
        ({"bands": ["R", "R"]}, "each once"),
        ({"spread": 0.0}, r"spread=0.0 must be a number above 0"),
        ({"area_threshold": 1.0}, r"area_threshold=1.0 must be a number from 0 to below 1"),
    ],
)
def test_band_mistakes(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        TreeSatAI(str(tmp_path), **settings)


def test_bands_in_both_layouts_of_a_file(tmp_path):
    array = np.random.default_rng(0).integers(0, 9999, (5, 7, 8), dtype=np.uint16)
    write_tiff(tmp_path / "planes.tif", array, planarconfig="separate", photometric="minisblack")
    interleaved = np.moveaxis(array, 0, 2)
    write_tiff(
        tmp_path / "pixels.tif", interleaved, planarconfig="contig", photometric="minisblack"
    )
    for name in ("planes.tif", "pixels.tif"):
        np.testing.assert_array_equal(read_tiff(tmp_path / name), array)
    limits = np.array([[0, 9999]] * 2, dtype=np.float32)
    few = BandImages(tmp_path, ["planes.tif"], ("",), (0, 6), limits, 8, "nearest")
    with pytest.raises(BrokenImage, match="5 bands, too few"):
        few.load(0)
    assert choose_bands(["b", "a"], (Band("a", 0, 1), Band("b", 0, 1)), {}) == (1, 0)


def test_the_reader_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match=r"pip install 'noisyml\[geo\]'"):
        read_tiff(tmp_path / "a.tif")


@pytest.mark.parametrize("name", FILES)
def test_configurations_name_the_arguments(name, tmp_path):
    own = {"lists": str(tmp_path), "cache_dir": str(tmp_path)}
    changes = own if name == "bigearthnet_s2" else {}
    source = instantiate(OmegaConf.load(CONF / f"{name}.yaml"), root=str(tmp_path / "x"), **changes)
    assert source.check_counts
    assert source.missing() is not None


@pytest.mark.parametrize("name", FILES)
def test_missing_data_sets_say_how_to_get_them(name, tmp_path):
    source = FILES[name](str(tmp_path / "nowhere"))
    with pytest.raises(UserError) as caught:
        source.splits()
    message = str(caught.value)
    assert source.missing() in message
    assert source.how_to_get in message
    assert "fetch" in message
    assert "set dataset.root" in message
    assert any(word in message for word in ("GB", "MB", "images"))
