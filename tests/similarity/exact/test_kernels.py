"""The compiled loops against plain tensor operations, and the search without them."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.units import UNITS, used

from noisyml.metrics.retrieval import retrieval_metrics
from noisyml.similarity.exact import kernels, shortlist
from noisyml.similarity.exact import quantised as coarse
from noisyml.similarity.exact.arithmetic import Side
from noisyml.similarity.exact.float32 import Float32Filter
from noisyml.similarity.exact.loops import library
from noisyml.similarity.exact.sources import RowSource
from noisyml.similarity.ranks.block import descending
from noisyml.similarity.search import self_topk, topk

compiled = pytest.mark.skipif(not kernels.available(), reason="no compiled loops here")


def found(pairs):
    return sorted(zip(pairs.query.tolist(), pairs.place.tolist(), strict=True))


def true_places(mask):
    return sorted(map(tuple, mask.nonzero().tolist()))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=UNITS)
def each_form(request):
    with used(request.param):
        yield


#: Squares that add up to 32,767, the largest sum that 16 bits hold.
FULL_STRETCH = [49, 35, 56, 46, 61, 16, 76, 40, 63, 12, 49, 36, 55, 10, 40, 1]


def integer_rows(kind, n, depth, generator):
    """Rows whose neighbouring sizes add up to `LIMIT` at most."""
    limit = kernels.LIMIT
    if kind == "any":
        first = torch.randint(-limit, limit + 1, (n, depth // 2), generator=generator)
        share = torch.rand(n, depth // 2, generator=generator) * 2 - 1
        rows = torch.stack([first, ((limit - first.abs()) * share).trunc().long()], 2).flatten(1)
    elif kind == "short":  # all their sums fit into 16 bits
        rows = torch.randint(-20, 21, (n, depth), generator=generator)
    else:  # as large as they may be, for sums in 16 bits or at all; of either sign
        quads = torch.tensor(FULL_STRETCH if kind == "full" else [limit // 2 + 1, limit // 2] * 8)
        chunk = quads.view(-1, 1, 2).expand(-1, 2, 2).flatten()
        rows = chunk.repeat(n, depth // len(chunk))
        rows[torch.rand(n, generator=generator) < 0.5] *= -1
        rows[torch.rand(n, generator=generator) < 0.1] *= 0
    return rows.to(torch.int8)


KINDS = st.sampled_from(["any", "short", "full", "largest"])
#: Scans of few rows are shared among threads, too.
SMALL_PARTS = {"_PAIRS_PER_SCAN": 1, "_COLUMNS_PER_PART": 16, "_ROWS_PER_THREAD": 16}
#: Forms of the loops; drawn beside the rest, so that more of them cost no more time.
FORMS = st.sampled_from(list(UNITS) or ["none"])


@compiled
@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 90),
    st.integers(1, 5),
    st.integers(1, 70),
    st.sampled_from([1, 3]),
    st.tuples(KINDS, KINDS),
    st.booleans(),
    FORMS,
    st.integers(0, 2**31),
)
def test_integer_scans_find_what_bars_and_floors_let_through(
    m, n, steps, width, threads, kinds, scattered, unit, seed
):
    generator = torch.Generator().manual_seed(seed)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)

    def numbers(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

    sizes = m, n
    rows = [
        integer_rows(kind, size, steps * kernels.DEPTH_STEP, generator)
        for kind, size in zip(kinds, sizes, strict=True)
    ]
    exact = [torch.randn(size, width, generator=generator) for size in sizes]
    bias = [numbers(-1000, 1000, size) for size in sizes]
    key = [numbers(0, 40, size).to(torch.int64) for size in sizes]
    scores = rows[0].double() @ rows[1].double().T + bias[0][:, None] + bias[1]
    places = torch.cartesian_prod(torch.arange(m), torch.arange(n)).view(-1, 2)
    real = kernels.products(*exact, places[:, 0], places[:, 1]).view(m, n)
    lying = [kernels.FloatRows(some) for some in exact]
    if scattered:
        at = [torch.randperm(size + 3, generator=generator)[:size] for size in sizes]
        factor = [torch.randn(size, generator=generator) for size in sizes]
        for side, size in enumerate(sizes):
            held = torch.full((size + 3, width), torch.nan)
            held[at[side]] = exact[side]
            lying[side] = kernels.FloatRows(held, at[side], factor[side])
        real = real * factor[0][:, None] * factor[1]
    middle = int(scores.median())
    bar = [middle + numbers(-2000, 2000, size) for size in sizes]
    bar[0][0], bar[1][-1] = 2**31 - 1, -(2**31)
    floor = [torch.randn(size, generator=generator) for size in sizes]
    floor[0][-1] = torch.inf
    try:
        with used(unit), mock.patch.multiple(kernels, **SMALL_PARTS):
            stored = rows[0], kernels.packed(rows[1])
            left, right = (
                kernels.IntegerSide(*column)
                for column in zip(stored, bias, bar, key, lying, floor, strict=True)
            )
            by_left, by_right = kernels.scan_integers(left, right, 1.0)
    finally:
        torch.set_num_threads(before)
    met = (scores > bar[0][:, None]) | (scores > bar[1])
    met &= key[0][:, None] != key[1]
    assert found(by_left) == true_places(met & (real >= floor[0][:, None]))
    assert found(by_right) == true_places((met & (real >= floor[1])).T)
    assert torch.equal(by_left.score, real[by_left.query, by_left.place])
    assert torch.equal(by_right.score, real[by_right.place, by_right.query])


@compiled
@pytest.mark.parametrize("reach", [slice(0), slice(20, 30)])  # also where a pair counts meanwhile
def test_scans_end_where_too_many_pairs_are_to_be_looked_at(reach, each_form):
    m, n = 200, 100  # more than are looked at anyway
    rows = torch.ones(m, kernels.DEPTH_STEP, dtype=torch.int8)
    nothing = torch.zeros(m, dtype=torch.int32)

    def side(stored, size, bar, key):
        floor = torch.full((size,), 4.0)
        floor[reach if size == m else slice(0)] = 2.0
        integers = nothing[:size], nothing[:size] + bar, torch.arange(size) + key
        exact = kernels.FloatRows(torch.ones(size, 3))
        return kernels.IntegerSide(stored, *integers, exact, floor)

    sides = side(rows, m, 31, 0), side(kernels.packed(rows[:n]), n, 99, m)
    by_left, by_right = kernels.scan_integers(*sides, 1.0)
    assert len(by_left.query) == n * len(range(m)[reach])
    assert not len(by_right.query)
    assert kernels.scan_integers(*sides, 0.5) is None


@compiled
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.floats(0.001, 3.0), FORMS, st.integers(0, 2**31))
def test_rounded_rows_keep_their_limits_and_say_what_is_lost(width, step, unit, seed):
    rows = torch.randn(80, width, generator=torch.Generator().manual_seed(seed))
    rows[0] = 1000.0 * step
    with used(unit):
        whole, lost = kernels.rounded(rows, step)
    assert whole.shape == (80, width + -width % kernels.DEPTH_STEP)
    assert not whole[:, width:].any()
    pairs = whole.to(torch.int32).abs().unflatten(1, (-1, 2)).sum(2)
    assert int(pairs.max()) <= kernels.LIMIT
    back = rows.double() - whole[:, :width].double() * torch.tensor(step).float().double()
    torch.testing.assert_close(lost.double(), back.norm(dim=1), rtol=1e-4, atol=1e-6)
    wanted = torch.nn.functional.pad((rows / step).round(), (0, -width % kernels.DEPTH_STEP))
    fits = wanted.abs().unflatten(1, (-1, 2)).sum(2) <= kernels.LIMIT
    fits = fits.repeat_interleave(2, 1)
    # A quotient on the edge may go either way.
    assert (whole - wanted)[fits].abs().max() <= 1
    assert ((whole != wanted) & fits).float().mean() < 0.01
    # What does not fit is shortened, never turned round, and no more than it must be.
    assert (whole[~fits] * wanted[~fits] >= 0).all()
    assert (pairs.repeat_interleave(2, 1)[~fits] == kernels.LIMIT).all()


@compiled
@pytest.mark.parametrize("k", [1, 5])
def test_lists_keep_what_a_sort_would(k, two_threads, monkeypatch):
    generator = torch.Generator().manual_seed(k)
    n, items = 300, 1000
    margins = torch.rand(n, generator=generator) * 0.005
    scores = torch.rand(n, items, generator=generator).mul_(500).round_().div_(500)
    scores[7] = 0.5  # more ties than fit
    lists = [shortlist.Shortlist(margins, k, items, torch.int32)]
    with monkeypatch.context() as without:
        without.setattr(kernels, "available", lambda: False)
        lists.append(shortlist.Shortlist(margins, k, items, torch.int32))
    for part in torch.randperm(n * items, generator=generator).split(20_000):
        query, item = part // items, part % items
        for one in lists:
            one.add(query - 5, item - 2, scores[query, item], (5, 2))
    best = scores.sort(dim=1, descending=True).values[:, k - 1]
    for one in lists:
        numbers = one.numbers()
        assert one.lost[7]
        assert (numbers[7] == -1).all()
        for query in (~one.lost).nonzero().flatten().tolist():
            wanted = (scores[query] >= best[query] - margins[query]).nonzero().flatten()
            kept = numbers[query][numbers[query] >= 0]
            assert set(wanted.tolist()) <= set(kept.tolist())
            assert len(kept) == len(set(kept.tolist()))
        alive = ~one.lost
        assert torch.equal(one.threshold[alive], best[alive])
        assert int(alive.sum()) > n - 10


@compiled
@pytest.mark.parametrize("threads", [1, 2])
def test_tiles_are_read_like_masks(threads, each_form):
    generator = torch.Generator().manual_seed(threads)
    tile = torch.randn(150, 333, generator=generator)[:, :330]  # rows apart
    tile[3, 5] = -torch.inf
    left = torch.randn(140, generator=generator) + 2
    right = torch.randn(321, generator=generator) + 2
    left[0], right[7] = torch.finfo(torch.float32).min, torch.inf
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        by_left, by_right = kernels.scan_tile(tile, left, right, tile.numel())
        assert kernels.scan_tile(tile, left - 100, right, 64) is None  # 45,000 do not fit
    finally:
        torch.set_num_threads(before)
    shown = tile[:140, :321]
    assert found(by_left) == true_places(shown >= left[:, None])
    assert found(by_right) == true_places((shown >= right).T)
    assert torch.equal(by_left.score, tile[by_left.query, by_left.place])
    assert torch.equal(by_right.score, tile[by_right.place, by_right.query])


@compiled
@pytest.mark.parametrize("width", [1, 7, 33, 130])
def test_products_of_pairs(width, each_form):
    generator = torch.Generator().manual_seed(width)
    left = torch.randn(50, width, generator=generator)
    right = torch.randn(60, width, generator=generator)
    rows = torch.randint(50, (9000,), generator=generator)
    columns = torch.randint(60, (9000,), generator=generator)
    truth = (left.double()[rows] * right.double()[columns]).sum(1)
    single = kernels.products(left, right, rows, columns)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), truth, rtol=0, atol=1e-4)
    summed = kernels.products(left, right, rows, columns, in_float64=True)
    torch.testing.assert_close(summed, truth, rtol=0, atol=1e-13)
    double = kernels.products(left.double(), right.double(), rows, columns)
    torch.testing.assert_close(double, truth, rtol=0, atol=1e-13)
    assert kernels.products(left, right, rows[:0], columns[:0]).shape == (0,)


@compiled
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_without_the_loops_the_answers_are_the_same(monkeypatch, precision):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(900, 24, generator=generator)
    x[200:230] = x[200]
    labels = torch.randint(40, (900,), generator=generator)

    def answers():
        return [
            *self_topk(x, 7, precision=precision, query_block=128),
            *topk(x[:100], x, 7, metric="l2", precision=precision, exclude=torch.arange(100)),
            *retrieval_metrics(x, labels, return_per_query=True)[1].values(),
        ]

    monkeypatch.setattr(coarse, "LEAST_WORK", 0)
    with_loops = answers()
    monkeypatch.setattr(kernels, "available", lambda: False)
    for one, other in zip(with_loops, answers(), strict=True):
        assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))


@compiled
@pytest.mark.parametrize("team", [True, False])
def test_threads_of_pytorch_or_of_our_own_do_all_jobs(team, two_threads, monkeypatch):
    if team and library.team() is None:
        pytest.skip("PyTorch has no GNU OpenMP here")
    if not team:
        monkeypatch.setattr(library, "team", lambda: None)
    torch.set_num_threads(7)  # more than there are processors; the fixture sets them back
    rows = torch.randn(900, 40, generator=torch.Generator().manual_seed(0))
    whole, _ = kernels.rounded(rows, 0.05)
    torch.set_num_threads(1)
    assert torch.equal(whole, kernels.rounded(rows, 0.05)[0])


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_are_counted_between_ranked_ones(two_threads, dtype):
    generator = torch.Generator().manual_seed(3)
    ranked = torch.rand(170, 9, generator=generator, dtype=torch.float64)
    ranked = ranked.sort(dim=1, descending=True).values
    lengths = torch.randint(0, 10, (170,), generator=generator)
    rows = torch.randint(0, 169, (9003,), generator=generator, dtype=torch.int32)
    scores = torch.rand(9003, generator=generator, dtype=dtype)
    margin = 0.01 * torch.rand(170, generator=generator, dtype=torch.float64)
    counts, touched = torch.zeros(170, 10, dtype=torch.int32), torch.zeros(170, dtype=torch.bool)
    opened = kernels.count_between(counts, ranked, lengths, rows, scores, margin, touched)

    there = torch.arange(9) < lengths[rows, None]
    surely = (there & (ranked[rows] > (scores + margin[rows])[:, None])).sum(1)
    may_be = (there & (ranked[rows] >= (scores - margin[rows])[:, None])).sum(1)
    assert sorted(opened.tolist()) == (surely != may_be).nonzero().flatten().tolist()
    clear = surely == may_be
    expected = torch.zeros_like(counts).index_put_(
        (rows[clear], surely[clear]), torch.tensor(1, dtype=torch.int32), accumulate=True
    )
    assert torch.equal(counts, expected)
    assert touched.nonzero().flatten().tolist() == rows.unique().tolist()


def rows_to_sort(kind: str, width: int) -> torch.Tensor:
    scores = torch.randn(40, width, generator=torch.Generator().manual_seed(1)).double()
    if kind == "ties":  # and zeros of both signs
        return (2 * scores).round() / 2
    if kind == "last bits":  # which is where insertion takes too long
        return 1 + scores * 2.0**-45
    if kind == "rising":
        return (1 - torch.arange(width, 0, -1).double() * 2.0**-50).expand(40, width).contiguous()
    return scores


@compiled
@pytest.mark.parametrize("kind", ["spread", "ties", "last bits", "rising"])
@pytest.mark.parametrize("width", [0, 1, 2, 47, 48, 49, 300, 1000])
@pytest.mark.parametrize("by_places", [False, True])
def test_relevant_items_are_put_in_order(two_threads, kind, width, by_places):
    generator = torch.Generator().manual_seed(2)
    scores = rows_to_sort(kind, width)
    relevant = torch.rand(scores.shape, generator=generator) < 0.9
    scores = scores.masked_fill(~relevant, torch.nan)  # not read
    table = torch.randperm(5000, generator=generator)
    first = torch.randint(4000, (40,), generator=generator)
    places = first[:, None] + torch.arange(width)
    if by_places:
        places = torch.randint(5000, (40, width), generator=generator)
    room = int(relevant.sum(1).max()) if width else 0
    into = torch.full((40, room), -1.0).double(), torch.full((40, room), -1)
    kernels.put_in_order(scores, relevant, places if by_places else first, table, into)

    for row in range(40):
        chosen = relevant[row].nonzero().flatten()
        order = scores[row, chosen].argsort(descending=True, stable=True)
        assert torch.equal(into[0][row, : len(chosen)], scores[row, chosen[order]])
        assert torch.equal(into[1][row, : len(chosen)], table[places[row, chosen[order]]])
        assert (into[1][row, len(chosen) :] == -1).all()


@compiled
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_counts_stay_within_their_caps(share):
    counts = torch.tensor([[2, 0, 3, 9], [0, 0, 0, 0], [30, 0, 0, 0]], dtype=torch.int32)
    caps = torch.tensor([[4, 4, 4], [2, 1, -1], [50, 40, 29]], dtype=torch.int32)
    found = kernels.within_caps(counts, caps, torch.tensor([2, 0, 1]), share, 3.0)
    # Of a quarter, 30 stand for more than 4 * (30 - 3 * 30 ** 0.5) = 54.
    assert found.tolist() == ([2, 2, 2] if share == 1.0 else [0, 2, 2])


@pytest.mark.parametrize("width", [1, 2, 7, 64, 65])
def test_scores_are_put_in_descending_order(width):
    scores = torch.randn(40, width, generator=torch.Generator().manual_seed(1)).double()
    scores[::2] = (2 * scores[::2]).round() / 2  # ties, and zeros of both signs
    scores[1::4] = 1 + scores[1::4] * 2.0**-50  # differences in the last bits
    scores[:, width // 2 :][::3] = -torch.inf
    expected = scores.sort(dim=1, descending=True, stable=True).indices
    found, order = descending(scores)
    assert torch.equal(order, expected)
    assert torch.equal(found, scores.gather(1, expected))


def test_rows_are_multiplied_where_they_lie_unless_float32_is_too_narrow_or_they_are_others():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))

    def lying(rows, metric="cosine"):
        side = Side.of(RowSource(rows, "given", torch.device("cpu")), metric, None)
        product = Float32Filter(side, side, rows.shape[1], 1.0)
        which = torch.arange(9, 30)
        there = product.where_they_lie("left", rows, which, which)
        return there, product.prepare("left", rows[which], which)

    for metric in ("cosine", "ip"):
        there, prepared = lying(x, metric)
        assert there.rows is x
        found = there.rows[there.at] * there.factor[:, None]
        torch.testing.assert_close(found, prepared[: len(found)], rtol=1e-6, atol=0)
    long, short = x.clone(), x.clone()
    long[3] *= 2.0**30
    short[3] *= 2.0**-30
    for rows in (x.double(), x[:, ::2], x.half(), long, short):
        assert lying(rows)[0] is None
    assert lying(x, "l2")[0] is None
    nothing = x.clone()
    nothing[3] = 0
    assert lying(nothing)[0] is not None
