"""Captions as the released readers make them."""

import itertools

from support import paths, vectors

from noisyml.data.readers.captions import clean_flickr_text, flickr_caption, wit_row

GOLDEN = paths.GOLDEN / "otter"


def test_texts_equal_the_released_ones():
    case = {k: v.tolist() for k, v in vectors.arrays(GOLDEN, "text_formatting").items()}
    assert list(map(clean_flickr_text, case["yfcc_raw"])) == case["yfcc_clean"]
    pairs = itertools.islice(itertools.pairwise(case["yfcc_raw"]), 3)
    assert [flickr_caption(*pair) for pair in pairs] == case["yfcc_caption"]
    captions = [wit_row(line, released=True)[1] for line in case["wit_lines"]]
    assert captions == case["wit_captions"]


def test_wit_rows_are_joined_by_blanks_unless_released():
    line = "a.jpg\tfirst\t second \n"
    assert wit_row(line) == ("a.jpg", "first second")
    assert wit_row(line, released=True) == ("a.jpg", "first second \n")
