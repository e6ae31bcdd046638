"""Shards that lie on a web server, against the same ones on a disk."""

import contextlib
import http.server
import os
import re
import tarfile
import threading
import time

import pytest
from support.shards import drawn_from, write_shard
from torch._utils import ExceptionWrapper

from noisyml.data.datasets.captions.webdataset import WebDatasetShards, shard_records
from noisyml.data.readers import places
from noisyml.errors import UserError

NUMBER = 40


class Handler(http.server.SimpleHTTPRequestHandler):
    """The files of a folder, also ranges of their bytes, as web servers give them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        if server.failures:
            kind = server.failures.pop(0)
            if kind == "gone":
                self.close_connection = True
                return
            if isinstance(kind, int):
                self.send_error(kind)
                return
        else:
            kind = None
        file = server.folder / self.path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        content, span = file.read_bytes(), self.headers.get("Range")
        self.send_response(206 if span and server.ranges else 200)
        if span and server.ranges:
            first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", span).groups())
            last = min(last, len(content) - 1)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[first : last + 1]
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{file.stat().st_mtime_ns}"')
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if kind == "half" else content)
        if kind == "half":
            self.close_connection = True

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of two shards; `failures` are what it does to the next requests."""
    monkeypatch.setattr(places, "PAUSES", (0.0, 0.0))
    folder = tmp_path / "served"
    folder.mkdir()
    write_shard(folder / "0.tar", range(25))
    write_shard(folder / "1.tar", range(25, NUMBER), "json")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.folder, running.asked, running.failures, running.ranges = folder, [], [], True
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()


def source(server, shards="{0..1}.tar", cache=None):
    return WebDatasetShards(f"{server.url}/{shards}", 0.2, 0.2, cache_dir=cache)


def test_a_server_s_shards_are_those_of_the_disk(server, tmp_path):
    ours = source(server, cache=str(tmp_path / "cache")).splits()
    disk = WebDatasetShards(str(server.folder), 0.2, 0.2).splits()
    assert ours.keys() == disk.keys()
    for name, split in ours.items():
        assert split.keys == disk[name].keys
        assert split.labels.tolist() == disk[name].labels.tolist()
        for i in range(len(split)):
            assert split.inputs.content(i) == disk[name].inputs.content(i)
    # A second run asks whether the shards are the same, and goes through none of them.
    server.asked.clear()
    again = source(server, cache=str(tmp_path / "cache")).splits()
    assert server.asked == ["/0.tar", "/1.tar"]
    assert again["train"].fingerprint == ours["train"].fingerprint
    # A changed shard is gone through anew.
    write_shard(server.folder / "1.tar", range(25, NUMBER - 1))
    os.utime(server.folder / "1.tar", (1, 1))
    changed = source(server, cache=str(tmp_path / "cache")).splits()
    assert sum(map(len, changed.values())) == NUMBER - 1
    assert changed["train"].fingerprint != ours["train"].fingerprint


def test_large_images_are_passed_over_in_the_search_for_captions(server, monkeypatch):
    monkeypatch.setattr(places, "READ_AHEAD", 1024)
    assert [r.caption for r in shard_records(f"{server.url}/0.tar")] == [
        f"shot {i}" for i in range(25)
    ]


@pytest.mark.long
def test_ranks_and_workers_share_a_server_s_shards_and_go_on_at_any_batch(server):
    split = source(server).splits()["train"]
    disk = WebDatasetShards(str(server.folder), 0.2, 0.2).splits()["train"]
    whole_epoch = drawn_from(split)
    assert whole_epoch == drawn_from(disk)
    seen = [text for batch in whole_epoch for text, _ in batch]
    assert len(seen) == len(set(seen)) == len(split) // 8 * 8
    ranks = [drawn_from(split, rank, 2, workers=1) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole_epoch
    assert drawn_from(split, start=1, workers=2) == whole_epoch[1:]


@pytest.mark.parametrize("failure", [503, 429, "half", "gone"])
def test_a_failure_in_passing_costs_another_request(server, failure):
    split = source(server).splits()["train"]
    whole_epoch = drawn_from(split)
    server.failures += [failure, failure]
    assert drawn_from(split) == whole_epoch
    assert not server.failures


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (503, r"/0\.tar cannot be read: the server answers 503 Service Unavailable, 3 times"),
        ("half", r"/0\.tar cannot be read: the answer breaks off, 3 times in a row; see to"),
        (403, r"/0\.tar cannot be read: the server answers 403 Forbidden; check the address"),
    ],
)
def test_a_server_that_fails_is_named_with_its_shard(server, failure, sentence):
    server.failures += [failure] * 3
    with pytest.raises(UserError, match=sentence):
        source(server).splits()


def test_a_server_that_goes_away_ends_workers_in_one_sentence(server):
    split = source(server).splits()["train"]
    server.failures += ["gone"] * 3
    try:
        drawn_from(split)
    except UserError:
        carried = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(UserError, match=r"^http://\S+/[01]\.tar cannot be read: no answer") as told:
        carried.reraise()
    assert "\n" not in str(told.value)


def test_addresses_that_lead_nowhere(server):
    with pytest.raises(UserError, match=r"/2\.tar cannot be read: the server answers 404"):
        source(server, "{0..2}.tar").splits()
    with pytest.raises(UserError, match=r"a brace has no partner"):
        source(server, "{0..2.tar").splits()
    server.ranges = False
    with pytest.raises(UserError, match=r"gives no parts of files .*fetch the file"):
        source(server).splits()


@pytest.mark.parametrize("kept", ["half of an image", "whole members"])
@pytest.mark.parametrize("where", ["disk", "server"])
def test_a_shard_that_breaks_off_is_refused(server, kept, where):
    file = server.folder / "1.tar"
    with tarfile.open(file) as shard:
        member = shard.getmembers()[6]
    end = member.offset if kept == "whole members" else member.offset_data + member.size // 2
    with file.open("r+b") as content:
        content.truncate(end)
    place = str(file) if where == "disk" else f"{server.url}/1.tar"
    with pytest.raises(UserError, match=rf"shard {re.escape(place)} cannot be read .*fetch it"):
        list(shard_records(place))


def test_a_compressed_shard_is_refused(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w:gz"):
        pass
    with pytest.raises(UserError, match="as an uncompressed tar file"):
        list(shard_records(str(tmp_path / "0.tar")))


def test_a_shard_that_changes_while_it_is_read_is_refused(server, monkeypatch):
    monkeypatch.setattr(places, "READ_AHEAD", 1024)
    records = shard_records(f"{server.url}/0.tar")
    next(records)
    os.utime(server.folder / "0.tar", (time.time() + 5,) * 2)
    with (
        pytest.raises(UserError, match=r"0\.tar was changed while it was read"),
        contextlib.closing(records),
    ):
        list(records)
