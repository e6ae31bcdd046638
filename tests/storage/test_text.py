"""Text in the encodings that spreadsheets and editors write."""

import pytest

from noisyml.storage.text import read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_say_the_encoding(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("Größe,Фото\r\n".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "Größe,Фото\r\n"


def test_other_encodings_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes("Größe".encode("cp1252"))
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "a.txt")
