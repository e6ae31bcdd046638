"""Exact search against brute force in float64: values, ties, options, limits and mistakes."""

import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisyml.errors import UserError
from noisyml.similarity.exact import arithmetic
from noisyml.similarity.exact.sources import RowSource
from noisyml.similarity.kmeans import kmeans
from noisyml.similarity.search import block_sizes, self_topk, topk

METRICS = ("cosine", "ip", "l2")
#: Small blocks, so that small data have many of them.
SMALL = {"query_block": 64, "gallery_block": 128}


def all_scores(queries, gallery, metric):
    """Scores of all pairs in float64, by the definition."""
    queries, gallery = (torch.as_tensor(x).double() for x in (queries, gallery))
    if metric == "cosine":
        queries, gallery = (
            x / torch.where(x.norm(dim=1) > 0, x.norm(dim=1), 1)[:, None]
            for x in (queries, gallery)
        )
    if metric == "l2":
        return -(queries[:, None] - gallery[None]).square().sum(2)
    return queries @ gallery.T


def brute(queries, gallery, k, metric, exclude=None):
    """The k best by a stable sort: equal scores by lowest index."""
    scores = all_scores(queries, gallery, metric)
    if exclude is not None:
        for line, items in zip(scores, exclude, strict=True):
            line[items[items >= 0]] = -torch.inf
    scores, index = scores.sort(dim=1, descending=True, stable=True)
    index[scores == -torch.inf] = -1
    missing = max(0, k - scores.shape[1])
    scores = torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)
    return scores[:, :k], torch.nn.functional.pad(index, (0, missing), value=-1)[:, :k]


def assert_found(found, queries, gallery, k, metric, exclude=None):
    """The scores of brute force, and its neighbours but for ties within float64."""
    scores, index = brute(queries, gallery, k, metric, exclude)
    assert found.index.dtype == torch.int64
    assert found.scores.shape == found.index.shape == index.shape
    size = max(1.0, float(torch.as_tensor(gallery).double().square().sum(1).max()))
    # Of float32 scores, the nearest ones.
    torch.testing.assert_close(found.scores.double(), scores, rtol=6e-8, atol=1e-12 * size)
    differs = found.index != index
    assert torch.equal(found.index == -1, index == -1)
    matrix = all_scores(queries, gallery, metric)
    row, slot = differs.nonzero(as_tuple=True)
    mine, theirs = matrix[row, found.index[row, slot]], matrix[row, index[row, slot]]
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12 * size)
    for line in found.index:
        real = line[line >= 0]
        assert len(real.unique()) == len(real)


def own(n):
    return torch.arange(n)[:, None]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_search_equals_brute_force(metric, dtype):
    generator = torch.Generator().manual_seed(0)
    gallery = (3 + torch.randn(300, 17, generator=generator)).to(dtype)
    queries = (3 + torch.randn(90, 17, generator=generator)).to(dtype)
    found = topk(queries, gallery, 7, metric=metric, **SMALL)
    assert found.scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_found(found, queries, gallery, 7, metric)
    found = self_topk(gallery, 7, metric=metric, **SMALL)
    assert_found(found, gallery, gallery, 7, metric, own(300))


@pytest.mark.parametrize("metric", METRICS)
def test_the_self_join_is_the_search_without_oneself_to_the_bit(metric):
    x = torch.randn(333, 9, generator=torch.Generator().manual_seed(1))
    one = self_topk(x, 12, metric=metric, **SMALL)
    other = topk(x, x, 12, metric=metric, exclude=torch.arange(333), **SMALL)
    assert torch.equal(one.index, other.index)
    assert torch.equal(one.scores, other.scores)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 200),
    st.integers(1, 6),
    st.integers(1, 40),
    st.sampled_from(["ip", "l2"]),
    st.integers(0, 2**31),
    st.integers(1, 3),
)
@pytest.mark.long
def test_exact_ties_go_by_lowest_index(n, dim, k, metric, seed, largest):
    generator = torch.Generator().manual_seed(seed)
    # Whole numbers: scores are exact in the reference too, and most of them are tied.
    x = torch.randint(-largest, largest + 1, (n, dim), generator=generator).float()
    queries = torch.randint(-largest, largest + 1, (20, dim), generator=generator).float()
    found = topk(queries, x, k, metric=metric, **SMALL)
    scores, index = brute(queries, x, k, metric)
    assert torch.equal(found.index, index)
    assert torch.equal(found.scores.double(), scores)
    found = self_topk(x, k, metric=metric, **SMALL)
    scores, index = brute(x, x, k, metric, own(n))
    assert torch.equal(found.index, index)
    assert torch.equal(found.scores.double(), scores)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 260),
    st.integers(1, 260),
    st.integers(1, 24),
    st.integers(1, 12),
    st.sampled_from(METRICS),
    st.sampled_from([64, 128]),
    st.sampled_from([64, 192, 256]),
    st.integers(0, 2**31),
)
@pytest.mark.long
@pytest.mark.long
def test_block_sizes_change_nothing(n, n_queries, dim, k, metric, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=generator)
    # Duplicates and zero rows, here and there.
    x[torch.randint(n, (n // 3,), generator=generator)] = x[0].clone()
    x[torch.randint(n, (n // 5,), generator=generator)] = 0
    queries = torch.randn(n_queries, dim, generator=generator)
    whole = topk(queries, x, k, metric=metric)
    parts = topk(queries, x, k, metric=metric, query_block=rows, gallery_block=columns)
    assert torch.equal(whole.index, parts.index)
    assert torch.equal(whole.scores, parts.scores)
    assert_found(whole, queries, x, k, metric)
    whole = self_topk(x, k, metric=metric)
    parts = self_topk(x, k, metric=metric, query_block=rows, gallery_block=columns)
    assert torch.equal(whole.index, parts.index)
    assert torch.equal(whole.scores, parts.scores)
    assert_found(whole, x, x, k, metric, own(n))


@pytest.mark.parametrize("metric", METRICS)
def test_near_ties_below_float32_are_told_apart(metric):
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(1, 40, generator=generator, dtype=torch.float64)
    # A hundred rows within 1e-9 of each other: far more than a shortlist holds.
    x = base + 1e-9 * torch.randn(100, 40, generator=generator, dtype=torch.float64)
    queries = base + 0.1 * torch.randn(30, 40, generator=generator, dtype=torch.float64)
    assert_found(topk(queries, x, 5, metric=metric), queries, x, 5, metric)
    scores = all_scores(queries, x, metric)
    assert torch.equal(topk(queries, x, 5, metric=metric).index, scores.topk(5).indices)


@pytest.mark.parametrize("metric", METRICS)
def test_equal_rows_tie_and_dead_rows_find_the_first_items(metric):
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(3)).repeat(500, 1)
    x[100:110] = 0
    found = self_topk(x, 4, metric=metric, **SMALL)
    assert found.index[0].tolist() == [1, 2, 3, 4]
    assert found.index[2].tolist() == [0, 1, 3, 4]
    assert found.index[499].tolist() == [0, 1, 2, 3]
    dead = {"cosine": [0, 1, 2, 3], "ip": [0, 1, 2, 3], "l2": [100, 101, 102, 104]}
    assert found.index[103].tolist() == dead[metric]
    assert (found.scores[0] == found.scores[0, 0]).all()


def test_large_offsets_do_not_swamp_distances():
    generator = torch.Generator().manual_seed(4)
    x = (1000 + torch.randn(400, 8, generator=generator)).float()
    found = self_topk(x, 6, metric="l2", **SMALL)
    scores, index = brute(x, x, 6, "l2", own(400))
    assert torch.equal(found.index, index)
    torch.testing.assert_close(found.scores.double(), scores, rtol=1e-7, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("metric", METRICS)
def test_size_does_not_matter(metric, scale):
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = x.float().double()
    plain = self_topk(x, 3, metric=metric)
    scaled = self_topk(x * scale, 3, metric=metric)
    assert torch.equal(plain.index, scaled.index)
    power = 0 if metric == "cosine" else 2
    torch.testing.assert_close(scaled.scores / scale**power, plain.scores, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("metric", METRICS)
def test_rows_of_very_different_norm(metric):
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(300, 10, generator=generator)
    x *= 10.0 ** torch.randint(-18, 18, (300, 1), generator=generator)
    found = self_topk(x.double(), 5, metric=metric, **SMALL)
    scores, index = brute(x, x, 5, metric, own(300))
    if metric != "l2":  # the reference loses small distances among large ones no less
        assert torch.equal(found.index, index)
    torch.testing.assert_close(found.scores, scores, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("width", [1, 3])
def test_excluded_items_are_left_out(width):
    generator = torch.Generator().manual_seed(7)
    gallery = torch.randint(-2, 3, (150, 4), generator=generator).float()
    queries = torch.randint(-2, 3, (70, 4), generator=generator).float()
    exclude = torch.randint(-1, 150, (70, width), generator=generator)
    found = topk(queries, gallery, 150, metric="ip", exclude=exclude, **SMALL)
    scores, index = brute(queries, gallery, 150, "ip", exclude)
    assert torch.equal(found.index, index)
    assert torch.equal(found.scores.double(), scores)
    best = topk(queries, gallery, 5, metric="ip", exclude=exclude.numpy(), **SMALL)
    assert torch.equal(best.index, index[:, :5])
    if width == 1:
        flat = topk(queries, gallery, 5, metric="ip", exclude=exclude.flatten(), **SMALL)
        assert torch.equal(flat.index, best.index)


def test_fewer_candidates_than_asked_for():
    x = torch.eye(3)
    found = self_topk(x, 5)
    assert found.index.tolist() == [[1, 2, -1, -1, -1], [0, 2, -1, -1, -1], [0, 1, -1, -1, -1]]
    assert found.scores.tolist() == [[0.0, 0.0, *[-torch.inf] * 3]] * 3
    alone = self_topk(x[:1], 2)
    assert alone.index.tolist() == [[-1, -1]]
    nothing = topk(x, x[:0], 2)
    assert nothing.index.tolist() == [[-1, -1]] * 3
    assert (nothing.scores == -torch.inf).all()
    assert topk(x[:0], x, 2).index.shape == (0, 2)
    assert self_topk(x[:0], 2, metric="l2").scores.shape == (0, 2)


def test_arrays_on_disk_and_in_any_layout_give_the_same(tmp_path):
    x = torch.randn(260, 21, generator=torch.Generator().manual_seed(8))
    expected = self_topk(x, 6)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r", allow_pickle=False)
    swapped = x.numpy().astype(">f4")
    for form in (mapped, x.numpy(), x.T.contiguous().T, x.numpy()[::-1][::-1], swapped):
        assert torch.equal(self_topk(form, 6).index, expected.index)
        found = topk(form, mapped, 6, exclude=torch.arange(260), **SMALL)
        assert torch.equal(found.index, expected.index)
        assert torch.equal(found.scores, expected.scores)
    assert np.array_equal(np.load(tmp_path / "x.npy", allow_pickle=False), x.numpy())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("metric", METRICS)
def test_the_self_join_of_rows_on_disk_equals_brute_force(tmp_path, metric, dtype):
    x = (1 + torch.randn(300, 19, generator=torch.Generator().manual_seed(14))).numpy()
    np.save(tmp_path / "x.npy", x.astype(dtype))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r", allow_pickle=False)
    assert isinstance(mapped, np.memmap)
    found = self_topk(mapped, 5, metric=metric, **SMALL)
    assert found.scores.dtype == (torch.float64 if dtype == np.float64 else torch.float32)
    assert_found(found, np.array(mapped), np.array(mapped), 5, metric, own(300))


def test_a_large_k():
    x = torch.randn(700, 5, generator=torch.Generator().manual_seed(9))
    assert_found(self_topk(x, 400, **SMALL), x, x, 400, "cosine", own(700))


def test_a_coarser_matmul_precision_changes_nothing():
    x = torch.randn(500, 32, generator=torch.Generator().manual_seed(10))
    expected = self_topk(x, 5)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = self_topk(x, 5)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.scores, expected.scores)


def test_threads_change_nothing():
    x = torch.randn(900, 64, generator=torch.Generator().manual_seed(11))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = self_topk(x, 5, metric="l2")
        torch.set_num_threads(2)
        two = self_topk(x, 5, metric="l2")
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one.index, two.index)
    assert torch.equal(one.scores, two.scores)


def test_no_gradient_is_recorded_and_progress_is_told():
    x = torch.randn(300, 4, requires_grad=True)
    calls = []
    found = self_topk(x, 2, progress=lambda done, total: calls.append((done, total)), **SMALL)
    assert not found.scores.requires_grad
    assert [done for done, _ in calls] == list(range(1, calls[-1][1] + 1))


def test_pairs_are_scored_alike_with_and_without_gathering():
    generator = torch.Generator().manual_seed(12)
    left = torch.randn(20, 33, generator=generator, dtype=torch.float64)
    right = torch.randn(50, 33, generator=generator, dtype=torch.float64)
    rows = torch.randint(20, (200,), generator=generator).sort().values
    columns = torch.randint(50, (200,), generator=generator)
    expected = (left @ right.T)[rows, columns]
    for products in (arithmetic.sampled_products, arithmetic._gathered_products):
        torch.testing.assert_close(products(left, right, rows, columns), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_exact_scores_do_not_depend_on_the_way_they_are_computed(metric):
    generator = torch.Generator().manual_seed(13)
    x = torch.randn(60, 700, generator=generator, dtype=torch.float64)
    source = RowSource(x, "given", torch.device("cpu"))
    centre = arithmetic.centre_of(x) if metric == "l2" else None
    side = arithmetic.Side.of(source, metric, centre)
    limbs = side.limbs(x, slice(0, 60))
    whole = arithmetic.exact_products(limbs, limbs)
    assert torch.equal(whole, whole.T)
    row, column = torch.randint(60, (2, 300), generator=generator)
    pairs = arithmetic.exact_pairs([y[row] for y in limbs], [y[column] for y in limbs])
    assert torch.equal(pairs, whole[row, column])
    canonical = side.canonical(x, slice(0, 60))
    bound = arithmetic.double_error(side.norms[:, None], side.norms, metric, 700)
    assert ((canonical @ canonical.T - whole).abs() <= bound).all()


@pytest.mark.long
def test_memory_stays_within_the_budget():
    script = """
        import sys
        import torch
        from noisyml.similarity.search import self_topk

        def peak():  # of this process alone: getrusage would begin with the parent's
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

        torch.set_num_threads(1)
        x = torch.randn(int(sys.argv[1]), 16)
        self_topk(x[:300], 10)
        before = peak()
        self_topk(x, 10, memory_budget_bytes=8 * 2**20)
        print(peak() - before)
    """
    n = 12_000
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(n)],
        check=True,
        capture_output=True,
        text=True,
    )
    used = int(done.stdout) * 1024
    # An N x N matrix would take 549 MiB.
    assert used < 40 * 2**20 + n * 10 * 150


def test_blocks_follow_the_budget():
    cpu = torch.device("cpu")
    whole = block_sizes(512, cpu, None, None, None)
    assert whole[:2] == (2048, 2048)
    tight = block_sizes(512, cpu, 2**22, None, None)
    assert 64 <= tight.query <= tight.gallery < 2048
    assert tight.gallery % tight.query == 0
    assert block_sizes(512, cpu, 1, None, None)[:2] == (64, 64)
    assert block_sizes(512, cpu, None, 100, 300)[:2] == (128, 256)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"k": 0}, "k=0 must be a whole number of at least 1"),
        ({"metric": "euclidean"}, "metric=euclidean must be cosine, ip or l2"),
        ({"queries": torch.zeros(3, 5)}, "queries have 5 dimensions and the gallery has 4"),
        ({"queries": torch.zeros(4)}, r"query embeddings have shape \[4\]"),
        ({"gallery": torch.zeros(2, 4, dtype=torch.int64)}, r"gallery embeddings .*int64"),
        ({"gallery": np.zeros((2, 0), np.float32)}, "0 dimensions"),
        ({"exclude": torch.zeros(2, dtype=torch.int64)}, r"exclude has shape \[2\]"),
        ({"exclude": torch.full((3,), 9)}, "numbers from 9 to 9: gallery rows go from 0 to 5"),
        ({"exclude": torch.zeros(3)}, "exclude has shape .*float32"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, sentence):
    request = {"queries": torch.zeros(3, 4), "gallery": torch.zeros(6, 4), "k": 2, **arguments}
    with pytest.raises(UserError, match=sentence) as caught:
        topk(**request)
    assert len(re.findall(r"\.(?:\s|$)", str(caught.value))) == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_broken_rows_are_named(value):
    x = torch.randn(5, 4)
    broken = x.clone()
    broken[3, 1] = value
    with pytest.raises(UserError, match=r"1 of 5 gallery embeddings .*row 3"):
        topk(x, broken, 2)
    with pytest.raises(UserError, match=r"1 of 5 query embeddings .*row 3"):
        topk(broken, x, 2)
    with pytest.raises(UserError, match=r"1 of 5 given embeddings .*row 3"):
        self_topk(broken, 2, metric="l2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
@pytest.mark.parametrize(
    "call", [lambda x: self_topk(x, 1, device="cuda"), lambda x: kmeans(x, 2, device="cuda")]
)
def test_a_device_that_is_not_there_is_a_sentence(call):
    with pytest.raises(UserError, match="device=cuda is asked for, and there is no CUDA here"):
        call(np.eye(4, dtype=np.float32))
