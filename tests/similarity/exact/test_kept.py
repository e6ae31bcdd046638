"""A search that was killed goes on from what it kept, to the same bits."""

import numpy as np
import pytest
import torch

from noisyml.errors import UserError
from noisyml.similarity.exact import kept, kernels, quantised
from noisyml.similarity.search import self_topk, topk
from noisyml.storage import unfinished

BLOCKS = {"query_block": 64, "gallery_block": 128}


class Killed(Exception):
    pass


def rows(n=700, dim=24, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _always_save(monkeypatch):
    monkeypatch.setattr(unfinished, "_SAVE_EVERY", 0.0)
    monkeypatch.setattr(unfinished, "_SAVE_SHARE", 0.0)


def killed_after(share):
    def progress(done, total):
        if done >= share * total:
            raise Killed

    return progress


def search(x, folder, progress=None, k=5, **settings):
    given = BLOCKS | {"progress": progress, "keep_in": folder} | settings
    return self_topk(x, k, **given)


def starts(folder, x, **settings):
    """The blocks done that a search reports first, and what it finds."""
    seen = []
    found = search(x, folder, lambda done, total: seen.append(done), **settings)
    return seen[0], found


@pytest.mark.long
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_a_killed_search_goes_on_to_the_same_bits(tmp_path, monkeypatch, precision, compiled):
    if not compiled:
        monkeypatch.setattr(kernels, "available", lambda: False)
    monkeypatch.setattr(quantised, "LEAST_WORK", 0)
    x = rows()
    whole = search(x, None, precision=precision)
    for share in (0.4, 0.8):
        with pytest.raises(Killed):
            search(x, tmp_path, killed_after(share), precision=precision)
    assert (tmp_path / kept.FILE).exists()
    first, found = starts(tmp_path, x, precision=precision)
    assert first > 10
    assert torch.equal(found.index, whole.index)
    assert torch.equal(found.scores, whole.scores)
    assert not list(tmp_path.iterdir())


def test_a_search_in_a_gallery_goes_on_too(tmp_path):
    queries, gallery = rows(100, seed=1), rows()
    settings = {**BLOCKS, "exclude": torch.arange(100)}
    with pytest.raises(Killed):
        topk(queries, gallery, 5, keep_in=tmp_path, progress=killed_after(0.7), **settings)
    seen = []
    found = topk(
        queries, gallery, 5, keep_in=tmp_path, progress=lambda *at: seen.append(at), **settings
    )
    assert seen[0][0] > 1
    assert torch.equal(found.index, topk(queries, gallery, 5, **settings).index)


@pytest.mark.parametrize("change", ["rows", "k", "metric", "blocks"])
def test_what_another_search_kept_is_not_used(tmp_path, change):
    x, settings = rows(), {}
    with pytest.raises(Killed):
        search(x, tmp_path, killed_after(0.7))
    if change == "rows":
        x[-1] *= 1.5
    else:
        settings = {
            "k": {"k": 6},
            "metric": {"metric": "l2"},
            "blocks": {"gallery_block": 192},
        }[change]
    first, found = starts(tmp_path, x, **settings)
    assert first == 1
    assert torch.equal(found.index, search(x, None, **settings).index)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / kept.FILE).write_bytes(b"PK nothing")
    with pytest.raises(UserError, match=r"search\.npz cannot be read .*begins anew"):
        search(rows(), tmp_path)


@pytest.mark.long
@pytest.mark.skipif(not kernels.available(), reason="no compiled loops here")
def test_rounded_rows_lie_on_disk_where_memory_is_short(tmp_path, monkeypatch):
    monkeypatch.setattr(quantised, "LEAST_WORK", 0)
    monkeypatch.setattr(quantised, "_CANDIDATE_COST", dict.fromkeys(quantised._CANDIDATE_COST, 50))
    rooms, room = [], kept.KeptSearch.room

    def counted(self, n):
        rooms.append(room(self, n))
        return rooms[-1]

    monkeypatch.setattr(kept.KeptSearch, "room", counted)
    x, short = rows(3000, 32), {"memory_budget_bytes": 2**16, "precision": "fast"}
    found = search(x, tmp_path, **short)
    assert len(rooms) == 1
    assert rooms[0].dtype == torch.int8
    assert bool(rooms[0].any())
    assert torch.equal(found.index, search(x, None, **short).index)
    assert torch.equal(found.scores, search(x, None, **short).scores)
    search(x, tmp_path, **short | {"memory_budget_bytes": 2**27})
    assert len(rooms) == 1


def test_nothing_is_saved_more_often_than_pays(tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "_SAVE_EVERY", 3600.0)
    with pytest.raises(Killed):
        search(rows(), tmp_path, killed_after(0.9))
    assert not list(tmp_path.iterdir())


def test_the_state_is_plain_arrays(tmp_path):
    with pytest.raises(Killed):
        search(rows(), tmp_path, killed_after(0.7))
    with np.load(tmp_path / kept.FILE, allow_pickle=False) as held:
        assert held["scores"].shape[0] == held["index"].shape[0] == 700
