"""Text in the encodings that spreadsheets and editors write."""

import os

import pytest

from noisyml.errors import UserError
from noisyml.storage.text import read_lines, read_table, read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_say_the_encoding(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("Größe,Фото\r\n".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "Größe,Фото\r\n"


def test_other_encodings_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes("Größe".encode("cp1252"))
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "a.txt")


def test_zero_bytes_are_another_encoding(tmp_path):
    (tmp_path / "a.csv").write_bytes("path,label\n".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"a\.csv is not UTF-8 text; save it as UTF-8"):
        read_table(tmp_path / "a.csv")
    with pytest.raises(UserError, match="a zero byte at byte 1; save it as UTF-8"):
        read_lines(tmp_path / "a.csv")
    with pytest.raises(UserError, match=r"gone\.txt cannot be read: No such file"):
        read_lines(tmp_path / "gone.txt")


def test_a_pipe_is_no_text(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(UserError, match=r"The table \S+a\.csv cannot be read: it is no file"):
        read_table(tmp_path / "a.csv")


def test_only_ends_of_lines_end_lines(tmp_path):
    names = ["a\u2028b.png", "c\x85d.png", "e\x0cf.png", "図\u3000.png"]
    (tmp_path / "a.txt").write_bytes("\r\n".join([*names, "", "last"]).encode())
    assert read_lines(tmp_path / "a.txt") == [*names, "last"]
    (tmp_path / "a.txt").write_bytes(b"old\rmac\r")
    assert read_lines(tmp_path / "a.txt") == ["old", "mac"]


def test_tables_keep_cells_as_they_stand(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'\r\npath , label,\r\n"a,b.png",007,\r\n,,\r\n=1+2.png, NA\r\n"two\nlines",x\r\n'
    )
    table = read_table(path)
    assert table.header == ["path", "label", ""]
    assert table.rows == [["a,b.png", "007", ""], ["=1+2.png", " NA", ""], ["two\nlines", "x", ""]]
    assert table.column("label") == ["007", " NA", "x"]
    assert (table.lines, table.blank) == ([3, 5, 7], [4])


def test_a_spreadsheet_says_its_separator(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("sep=;\npath;label\na,b.png;x\n")
    table = read_table(path)
    assert (table.header, table.rows, table.lines) == (["path", "label"], [["a,b.png", "x"]], [3])


def test_tables_without_a_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a.png,"(0, 0, 48, 48)",4\n\nb.png\n')
    table = read_table(path, header=False)
    assert table.rows == [["a.png", "(0, 0, 48, 48)", "4"], ["b.png"]]
    assert (table.lines, table.blank) == ([1, 3], [2])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("\n\n", "it is empty"),
        ("a,a\n1,2\n", "the column 'a' occurs twice"),
        ("a,b\n1,2\n1,2,3\n", "line 3 has 3 cells where the header has 2"),
        ('a,b\n1,2\n3,"x\n4,5\n6,7\n', "a quotation mark of line 3 is never closed"),
        ('sep=;\na;b\n1;2\n3;"4', "a quotation mark of line 4 is never closed"),
    ],
)
def test_tables_that_are_none(tmp_path, content, reason):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=rf"The table \S+a\.csv cannot be read: {reason}"):
        read_table(tmp_path / "a.csv")
