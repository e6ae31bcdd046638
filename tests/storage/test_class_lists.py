"""Class names, prompts and true classes as published files have them, and mistakes in them."""

import json

import numpy as np
import pytest
from support import paths, vectors

from noisyml.errors import UserError
from noisyml.storage.class_lists import (
    joined_synonyms,
    padded_labels,
    read_class_names,
    read_label_lists,
    read_templates,
)

GOLDEN = paths.GOLDEN / "otter"


def written(tmp_path, name, *lines):
    file = tmp_path / name
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_names_equal_the_released_ones(tmp_path):
    case = {k: v.tolist() for k, v in vectors.arrays(GOLDEN, "text_formatting").items()}
    assert list(map(joined_synonyms, case["imagenet_lines"])) == case["imagenet_names"]
    assert np.array_equal(padded_labels([[4, 2], [7], [1, 2, 3]]), case["padded_targets"])
    table = written(tmp_path, "tencent_classes.txt", *case["tencent_lines"])
    assert read_class_names(table, released=True) == case["tencent_names"]
    assert read_class_names(table) == ["thing", *case["tencent_names"][1:]]
    names = written(tmp_path, "names.txt", *case["goi_names"])
    assert read_class_names(names) == case["goi_names"]
    lemmas = written(tmp_path, "imagenet1k_wordnet_lemmas.txt", *case["imagenet_lines"])
    assert read_class_names(lemmas) == case["imagenet_names"]
    # The 80 templates of CLIP lie among others in one JSON file.
    eighty = [f"a photo {i} of a {{}}." for i in range(case["n_full_templates"])]
    content = {"ImageNet": {"classes": ["tench"], "templates": eighty}, "CIFAR": ["one {}"]}
    clip = written(tmp_path, "prompts.json", json.dumps(content))
    assert read_templates(clip, "ImageNet") == eighty


def test_open_images_names_are_lines_as_they_are(tmp_path):
    lines = ["Sprenger's tulip", "Bun (Food)", "Ini huracán", "Helmet", "Bun (Food)", "51 pegasi"]
    # A name that stands twice keeps both numbers.
    assert read_class_names(written(tmp_path, "goi_classes.txt", *lines)) == lines


def test_a_table_of_tencent_has_a_parent_after_its_child_and_several_roots(tmp_path):
    head = "category_index\tcategory_id\tindex_of_parent_category\tcategory name"
    rows = [
        "0\tn00002452\t-1  thing",
        "1\tn00020827\t-1\tmatter",
        "2\tn00002684\t-1\tobject, physical object",
        "3\tn05225602\t4\tstructure, anatomical structure",
        "4\tn05220461\t0\tbody part",
    ]
    shipped = written(tmp_path, "tencent_classes.txt", head, *rows)
    names = [
        "thing",
        "matter",
        "object,or physical object",
        "structure,or anatomical structure",
        "body part",
    ]
    assert read_class_names(shipped) == names
    assert read_class_names(shipped, released=True) == ["-1  thing", *names[1:]]
    official = written(tmp_path, "dictionary.txt", head, rows[0].replace("  ", "\t"), *rows[1:])
    assert read_class_names(official) == names


def test_lists_of_imagenet(tmp_path):
    lines = ["organism, being", "animal, animate_being, beast", "check-in", "crane", "crane"]
    lemmas = written(tmp_path, "imagenet21k_wordnet_lemmas.txt", *lines)
    assert read_class_names(lemmas) == [
        "organism,or being",
        "animal,or animate being,or beast",
        "check-in",
        "crane",
        "crane",
    ]
    lines = [
        "n01440764,freshwater dace-like game fish of Europe, noted for its ability",
        "n01491361,large dangerous warm-water shark; striped, or spotted",
    ]
    definitions = written(tmp_path, "imagenet1k_definitions.txt", *lines)
    assert read_class_names(definitions) == [line.split(",", 1)[1] for line in lines]


def test_true_classes_of_imagenet_hold_ancestors(tmp_path):
    lines = [
        "n04162706/n04162706_17303.JPEG\t3371\t2609\t1833\t2",
        "n02957008/n02957008_4482.JPEG\t4959\t2",
    ]
    names, classes = read_label_lists(written(tmp_path, "labels.txt", *lines), 11166)
    assert names == [line.split("\t")[0] for line in lines]
    assert classes.tolist() == [[3371, 2609, 1833, 2], [4959, 2, -1, -1]]


def test_prompts_and_names_of_clip(tmp_path):
    # The notebook's file: two lists side by side. The other file: such pairs by data set.
    pair = {"classes": ["tench", "goldfish"], "templates": ["a bad photo of a {}.", "a {}."]}
    notebook = written(tmp_path, "imagenet_classes_templates.json", json.dumps(pair))
    assert read_templates(notebook) == pair["templates"]
    assert read_class_names(notebook) == pair["classes"]
    sets = {"CIFAR10": pair, "GTSRB": {"classes": ["stop"], "templates": ['a "{}" traffic sign.']}}
    prompts = written(tmp_path, "prompts.json", json.dumps(sets))
    assert read_templates(prompts, "GTSRB") == ['a "{}" traffic sign.']
    assert read_class_names(prompts, name="CIFAR10") == ["tench", "goldfish"]
    with pytest.raises(UserError, match=r"holds 2 lists of templates: name one .*CIFAR10, GTSRB"):
        read_templates(prompts)
    with pytest.raises(UserError, match=r"no data set 'CIFAR', but CIFAR10.*mean 'CIFAR10'"):
        read_class_names(prompts, name="CIFAR")
    with pytest.raises(UserError, match="holds no lists of templates"):
        read_templates(written(tmp_path, "a.json", json.dumps(["tench"])))
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_templates(written(tmp_path, "b.json", "{"))
    with pytest.raises(UserError, match="'a photo' does not"):
        read_templates(written(tmp_path, "c.json", json.dumps(["a {}", "a photo"])))


def test_lists_of_labels_and_mistakes_in_them(tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("a.jpg\t4\t2\nb.jpg\t7\nc.jpg\n")
    names, classes = read_label_lists(labels, 8)
    assert names == ["a.jpg", "b.jpg", "c.jpg"]
    assert classes.tolist() == [[4, 2], [7, -1], [-1, -1]]
    with pytest.raises(UserError, match="line 2: class 7, but the list of classes has 7"):
        read_label_lists(labels, 7)
    labels.write_text("\na.jpg,4\tcat\n")
    with pytest.raises(UserError, match="line 2: expected an image name and class numbers"):
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
