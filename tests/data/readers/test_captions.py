"""Captions and class names as the released readers make them."""

import itertools
import json

import numpy as np
import pytest
from support import paths, vectors

from noisyml.data.readers.captions import (
    clean_flickr_text,
    flickr_caption,
    joined_synonyms,
    padded_labels,
    read_class_names,
    read_label_lists,
    read_templates,
    wit_row,
)
from noisyml.errors import UserError

GOLDEN = paths.GOLDEN / "otter"


def test_texts_equal_the_released_ones(tmp_path):
    case = {k: v.tolist() for k, v in vectors.arrays(GOLDEN, "text_formatting").items()}
    assert list(map(clean_flickr_text, case["yfcc_raw"])) == case["yfcc_clean"]
    pairs = itertools.islice(itertools.pairwise(case["yfcc_raw"]), 3)
    assert [flickr_caption(*pair) for pair in pairs] == case["yfcc_caption"]
    assert list(map(joined_synonyms, case["imagenet_lines"])) == case["imagenet_names"]
    captions = [wit_row(line, released=True)[1] for line in case["wit_lines"]]
    assert captions == case["wit_captions"]
    assert np.array_equal(padded_labels([[4, 2], [7], [1, 2, 3]]), case["padded_targets"])

    table = tmp_path / "tencent_classes.txt"
    table.write_text("\n".join(case["tencent_lines"]) + "\n")
    assert read_class_names(table, released=True) == case["tencent_names"]
    assert read_class_names(table) == ["thing", *case["tencent_names"][1:]]
    names = tmp_path / "names.txt"
    names.write_text("\n".join(case["goi_names"]) + "\n")
    assert read_class_names(names) == case["goi_names"]
    lemmas = tmp_path / "imagenet1k_wordnet_lemmas.txt"
    lemmas.write_text("\n".join(case["imagenet_lines"]) + "\n")
    assert read_class_names(lemmas) == case["imagenet_names"]
    # The 80 templates of CLIP lie among others in one JSON file.
    clip = tmp_path / "prompts.json"
    eighty = [f"a photo {i} of a {{}}." for i in range(case["n_full_templates"])]
    content = {"ImageNet": {"classes": ["tench"], "templates": eighty}, "CIFAR": ["one {}"]}
    clip.write_text(json.dumps(content))
    assert read_templates(clip, "ImageNet") == eighty


def test_lists_of_labels_and_mistakes_in_them(tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("a.jpg\t4\t2\nb.jpg\t7\nc.jpg\n")
    names, classes = read_label_lists(labels, 8)
    assert names == ["a.jpg", "b.jpg", "c.jpg"]
    assert classes.tolist() == [[4, 2], [7, -1], [-1, -1]]
    with pytest.raises(UserError, match="line 2: class 7, but the list of classes has 7"):
        read_label_lists(labels, 7)
    labels.write_text("a.jpg,4\tcat\n")
    with pytest.raises(UserError, match="line 1: expected an image name and class numbers"):
        read_label_lists(labels)
    table = tmp_path / "t.txt"
    table.write_text("category_index\tcategory_id\nx\ty\n")
    with pytest.raises(UserError, match="line 2: expected the columns"):
        read_class_names(table)
    with pytest.raises(UserError, match="no list of classes"):
        read_class_names(tmp_path / "none.txt")
    templates = tmp_path / "templates.txt"
    templates.write_text("a photo of {}\na photo\n")
    with pytest.raises(UserError, match="'a photo' does not"):
        read_templates(templates)


def test_wit_rows_are_joined_by_blanks_unless_released():
    line = "a.jpg\tfirst\t second \n"
    assert wit_row(line) == ("a.jpg", "first second")
    assert wit_row(line, released=True) == ("a.jpg", "first second \n")
