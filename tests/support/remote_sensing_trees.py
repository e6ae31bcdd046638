"""Tiny remote-sensing sets in their official formats."""

import json

import numpy as np
import pytest
from PIL import Image

from noisyml.data.datasets.remote_sensing.bigearthnet import BANDS

MERCED_LABELS = [
    "airplane",
    "bare-soil",
    "buildings",
    "cars",
    "chaparral",
    "court",
    "dock",
    "field",
    "grass",
    "mobile-home",
    "pavement",
    "sand",
    "sea",
    "ship",
    "tanks",
    "trees",
    "water",
]
#: Sides of BigEarthNet's bands in pixels; those of 20 m have 60.
SIDES = {"B02": 120, "B03": 120, "B04": 120, "B08": 120, "B01": 20, "B09": 20}


def write_tiff(path, array, **settings):
    tifffile = pytest.importorskip("tifffile", reason="extra geo")
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, **settings)


def merced_tree(root):
    """UC Merced: two scenes of ten images of 4x3 pixels, random labels."""
    rng = np.random.default_rng(0)
    lines = ["\t".join(["IMAGE\\LABEL", *MERCED_LABELS])]
    for scene in ("agricultural", "beach"):
        (root / "Images" / scene).mkdir(parents=True)
        for i in range(10):
            picture = Image.new("RGB", (4, 3), "red")
            picture.save(root / "Images" / scene / f"{scene}{i:02d}.tif")
            marks = (rng.random(17) < 0.3).astype(int)
            lines.append("\t".join([f"{scene}{i:02d}", *map(str, marks)]))
    (root / "LandUse_Multilabeled.txt").write_text("\n".join(lines) + "\n")
    return root


def earth_tree(root, lists, parts):
    """BigEarthNet-S2: patches [(name, labels)] by part; bands differ by deviations of their own."""
    lists.mkdir()
    for part, patches in parts.items():
        (lists / f"{part}.csv").write_text("".join(f"{name},\n" for name, _ in patches))
        for name, labels in patches:
            for number, band in enumerate(BANDS):
                side = SIDES.get(band.name, 60)
                value = np.clip(band.mean + (number - 6) / 4 * band.std, 0, None)
                array = np.full((side, side), round(value), dtype=np.uint16)
                write_tiff(root / name / f"{name}_{band.name}.tif", array)
            write_earth_labels(root, name, labels)


def write_earth_labels(root, name, labels):
    meta = {"labels": labels, "coordinates": {}, "projection": ""}
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / f"{name}_labels_metadata.json").write_text(json.dumps(meta))
