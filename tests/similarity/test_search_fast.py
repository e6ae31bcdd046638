"""The coarse product before the float32 one: its bound holds, and the answer stays the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisyml.errors import UserError
from noisyml.similarity.exact import kernels, scan
from noisyml.similarity.exact import quantised as coarse
from noisyml.similarity.exact.arithmetic import Side, centre_of
from noisyml.similarity.exact.float32 import Float32Filter, common_scale
from noisyml.similarity.exact.plan import spread_out
from noisyml.similarity.exact.sources import RowSource
from noisyml.similarity.search import block_sizes, self_topk, topk

METRICS = ("cosine", "ip", "l2")
FORMATS = ("int8_loops", "int8_onednn", "bfloat16")
SMALL = {"query_block": 64, "gallery_block": 256}

needs_int8 = pytest.mark.skipif(not coarse.int8_works(), reason="no 8-bit products here")
needs_kernels = pytest.mark.skipif(not kernels.available(), reason="no compiled loops here")


def skip_what_does_not_work(number_format):
    if number_format == "int8_onednn" and not coarse.int8_works():
        pytest.skip("no 8-bit products here")
    if number_format == "int8_loops" and not kernels.available():
        pytest.skip("no compiled loops here")


@pytest.fixture(autouse=True)
def _formats_that_work(request):
    if "number_format" in request.fixturenames:
        skip_what_does_not_work(request.node.callspec.params.get("number_format"))


def costs(of_a_candidate):
    return dict.fromkeys(FORMATS, of_a_candidate)


@pytest.fixture
def eager(monkeypatch):
    """Take the coarse way whatever the size of the task; says how many tiles it served."""
    served = {True: 0, False: 0}
    whole = scan._CoarseScan.scan

    def counted(self, cell):
        done = whole(self, cell)
        served[done] += 1
        return done

    monkeypatch.setattr(scan._CoarseScan, "scan", counted)
    monkeypatch.setattr(coarse, "LEAST_WORK", 0)
    monkeypatch.setattr(coarse, "_AXES_WORK", 0)
    monkeypatch.setattr(coarse, "_CANDIDATE_COST", costs(50))
    monkeypatch.setattr(scan, "_COARSE_SHARE", 1.0)
    return served


def data(n, dim, spectrum, seed):
    """Clusters whose coordinates shrink like i^-spectrum, in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, dim + 1, dtype=torch.float32) ** -spectrum
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
    centres = torch.randn(n // 8, dim, generator=generator) * scale
    noise = 0.5 * torch.randn(n, dim, generator=generator) * scale
    return (centres[torch.randint(n // 8, (n,), generator=generator)] + noise) @ turn


def same(one, other):
    return torch.equal(one.index, other.index) and torch.equal(one.scores, other.scores)


@pytest.mark.long
@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("spectrum", [0.0, 1.5])
@pytest.mark.parametrize("metric", METRICS)
def test_fast_finds_what_exact_finds_to_the_bit(
    eager, monkeypatch, metric, spectrum, number_format
):
    monkeypatch.setattr(coarse, "number_format_of", lambda device: number_format)
    x = data(1200, 40, spectrum, 0)
    expected = self_topk(x, 5, metric=metric, **SMALL)
    assert same(self_topk(x, 5, metric=metric, precision="fast", **SMALL), expected)
    exclude = torch.arange(1200)
    found = topk(x, x, 5, metric=metric, precision="fast", exclude=exclude, **SMALL)
    assert same(found, expected)
    assert eager[True] > 0


@pytest.mark.long
@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("metric", METRICS)
def test_ties_dead_rows_and_outliers(eager, monkeypatch, metric, number_format):
    monkeypatch.setattr(coarse, "number_format_of", lambda device: number_format)
    x = data(1000, 24, 1.0, 1)
    x[100:260] = x[100]  # more ties than a shortlist holds
    x[300:340] = 0
    x[400:500] = x[400] + 1e-6 * x[500:600]  # nearer than any coarse score can tell
    x[600:620] *= 100
    x[640:660] *= 1e-3
    expected = self_topk(x, 6, metric=metric, **SMALL)
    assert same(self_topk(x, 6, metric=metric, precision="fast", **SMALL), expected)
    assert same(
        topk(x[:200], x.double(), 6, metric=metric, precision="fast", **SMALL),
        topk(x[:200], x.double(), 6, metric=metric),
    )
    # Without room for rounded queries they are rounded again for every tile.
    tight = {"precision": "fast", "memory_budget_bytes": 2**10, **SMALL}
    assert same(self_topk(x, 6, metric=metric, **tight), expected)


def sides(metric, queries, gallery):
    cpu = torch.device("cpu")
    centre = centre_of(gallery) if metric == "l2" else None
    query = Side.of(RowSource(queries, "query", cpu), metric, centre)
    target = Side.of(RowSource(gallery, "gallery", cpu), metric, centre)
    scale = common_scale(query, target)
    return Float32Filter(query, target, queries.shape[1], scale), scale


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(METRICS),
    st.sampled_from(FORMATS),
    st.integers(2, 70),
    st.floats(0.1, 1.0),
    st.floats(0.0, 2.0),
    st.floats(0.01, 3.0),
    st.integers(0, 2**31),
)
def test_a_coarse_score_and_its_error_are_never_below_the_truth(
    metric, number_format, dim, share, spectrum, clip, seed
):
    skip_what_does_not_work(number_format)
    queries, gallery = data(64, dim, spectrum, seed), data(130, dim, spectrum, seed + 1)
    gallery[:20] *= 5
    queries[3] = 0
    queries[5, 0] = 30  # far beyond the clipping point
    fine, scale = sides(metric, queries, gallery)
    length = max(1, int(share * dim))
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    left = fine.prepare("left", queries, slice(0, 64))
    right = fine.prepare("right", gallery, slice(0, 130))
    spread = clip * float(right[:, :dim].square().mean().sqrt())
    filter_ = coarse.CoarseFilter(fine, turn[:length].float(), spread, number_format)
    mine, theirs = filter_.rounded("left", left), filter_.rounded("right", right)
    cheap = filter_.products(mine, theirs, filter_.packed(theirs)).double() * filter_.unit
    rows = fine.query.canonical(queries, slice(0, 64)) / scale
    columns = fine.gallery.canonical(gallery, slice(0, 130)) / scale
    truth = rows @ columns.T
    if metric == "l2":
        truth = -0.5 * (rows[:, None] - columns[None]).square().sum(2)
    cheap = cheap[:64, :130]
    assert (cheap + filter_.errors(mine, theirs)[:64, None] >= truth).all()
    assert (cheap + filter_.errors(theirs, mine)[:130] >= truth).all()


def chosen(x, k=5):
    n = len(x)
    fine, _ = sides("cosine", x, x)
    some = spread_out(n, 512)
    items = spread_out(n, 4096)
    return coarse.chosen_filter(fine, (some, x[some]), (items, x[items]), k, n * n, True, 0)


@needs_int8
def test_the_trial_follows_the_data(monkeypatch):
    steep, flat = data(4096, 256, 1.5, 2), data(4096, 256, 0.0, 3)
    assert chosen(steep) is None  # far too small a task
    monkeypatch.setattr(coarse, "LEAST_WORK", 0)
    monkeypatch.setattr(coarse, "_AXES_WORK", 0)
    monkeypatch.setattr(coarse, "_CANDIDATE_COST", costs(1000))
    short = chosen(steep)
    assert short is not None
    assert len(short.basis) <= 128
    torch.testing.assert_close(
        short.basis @ short.basis.T, torch.eye(len(short.basis)), rtol=0, atol=1e-5
    )
    whole = chosen(flat)
    assert whole is None or len(whole.basis) == 256
    monkeypatch.setattr(coarse, "_CANDIDATE_COST", costs(1e12))
    assert chosen(flat) is None
    monkeypatch.setattr(coarse, "number_format_of", lambda device: None)
    assert chosen(steep) is None
    monkeypatch.undo()
    monkeypatch.setattr(coarse, "LEAST_WORK", 0)
    assert chosen(torch.zeros(300, 16)) is None


@needs_int8
def test_products_that_saturate_are_not_used(monkeypatch):
    product = coarse.int8_product
    monkeypatch.setattr(
        coarse, "int8_product", lambda *arguments: product(*arguments).clamp(-(2**15), 2**15 - 1)
    )
    coarse.int8_works.cache_clear()
    try:
        assert not coarse.int8_works()
        monkeypatch.setattr(kernels, "available", lambda: False)
        assert coarse.number_format_of(torch.device("cpu")) is None
    finally:
        coarse.int8_works.cache_clear()


@pytest.mark.parametrize("number_format", ["int8_loops", "int8_onednn"])
def test_tiles_full_of_candidates_go_to_float32(eager, monkeypatch, number_format):
    monkeypatch.setattr(coarse, "number_format_of", lambda device: number_format)
    # In one dimension half of all rows have cosine 1 with a query: nothing can be ruled out.
    x = torch.randn(1500, 8, generator=torch.Generator().manual_seed(4))
    x[:, 1:] *= 1e-3
    monkeypatch.setattr(coarse, "_FLOAT32_COST", dict.fromkeys(FORMATS, 1e9))
    monkeypatch.setattr(scan, "_COARSE_SHARE", 0.5)
    monkeypatch.setattr(kernels, "_LEAST_ROOM", 64)
    expected = self_topk(x, 3, metric="l2", **SMALL)
    assert same(self_topk(x, 3, metric="l2", precision="fast", **SMALL), expected)
    assert eager[False] > 0


@needs_kernels
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_rounded_queries_are_kept_as_far_as_there_is_memory(eager, monkeypatch, share):
    monkeypatch.setattr(coarse, "number_format_of", lambda device: "int8_loops")
    x = data(1500, 32, 0.5, 6)
    kept, keeps = [], coarse.RoundedRows.keeps
    monkeypatch.setattr(
        coarse.RoundedRows,
        "keeps",
        lambda self, *part: kept.append(keeps(self, *part)) or kept[-1],
    )
    tile = 6 * 64 * 256 + (64 + 256) * 32 * 20  # what a block takes
    budget = tile + int(share * len(x)) * (32 + 16)
    fast = {"precision": "fast", "memory_budget_bytes": budget, **SMALL}
    assert same(self_topk(x, 3, **fast), self_topk(x, 3))
    assert eager[True] > 0
    assert set(kept) == {0.0: {False}, 0.4: {True, False}, 1.0: {True}}[share]
    assert same(topk(x[:700], x, 4, **fast), topk(x[:700], x, 4))


@needs_kernels
def test_wide_panels_are_for_large_galleries():
    cpu = torch.device("cpu")
    assert block_sizes(512, cpu, None, None, None, 2**16 - 1)[:2] == (2048, 2048)
    assert block_sizes(512, cpu, None, None, None, 2**16)[:2] == (2048, 8192)
    tight = block_sizes(512, cpu, 2**22, None, None, 2**20)
    assert 64 <= tight.query <= tight.gallery < 2048
    assert tight.gallery % tight.query == 0


def test_an_unknown_precision_is_named():
    with pytest.raises(UserError, match="precision=float16 must be exact or fast"):
        self_topk(torch.zeros(3, 2), 1, precision="float16")
