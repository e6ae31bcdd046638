import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import paths, vectors

from noisyml.errors import UserError
from noisyml.similarity.memory_bank import MemoryBank


def unit_rows(n, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, dim, dtype=torch.float64, generator=generator)
    return torch.nn.functional.normalize(rows, dim=1)


def recomputed(bank):
    rows, labels, _ = bank.filled()
    addends = rows.double()
    if rows.dtype != torch.float64:
        addends = (addends * 2**32).round() / 2**32
    sums = torch.zeros_like(bank.class_sums).index_add_(0, labels, addends)
    return sums, torch.bincount(labels, minlength=bank.num_classes)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 12),
    batches=st.lists(st.integers(0, 17), min_size=1, max_size=12),
    wrap=st.sampled_from(["ring", "released"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16]),
    seed=st.integers(0, 2**16),
)
def test_class_sums_equal_recomputed_sums(size, batches, wrap, dtype, seed):
    bank = MemoryBank(size, 3, 4, wrap=wrap, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    for n, q in enumerate(batches):
        labels = torch.randint(4, (q,), generator=generator)
        bank.enqueue(unit_rows(q, 3, seed + n), labels, torch.arange(q))
        sums, counts = recomputed(bank)
        atol = 1e-12 if dtype == torch.float64 else 0.0
        torch.testing.assert_close(bank.class_sums, sums, rtol=0, atol=atol)
        torch.testing.assert_close(bank.class_counts, counts)
        assert not bank.class_sums[bank.class_counts == 0].any()
        assert len(bank) == int((bank.labels >= 0).sum())
        assert bank.is_full == (len(bank) == size)


def test_class_sums_do_not_depend_on_the_order_of_summation():
    """Accelerators add in any order, and ranks must not drift apart for that."""
    rows, labels = unit_rows(300, 8, seed=0).float(), torch.arange(300) % 2
    rows[::3] *= 3e-8  # too small for float64 to hold their sums with the others exactly
    banks = [MemoryBank(250, 8, 2) for _ in range(2)]
    for bank, seed in zip(banks, (1, 2), strict=True):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(3):
            for row in (50 + torch.randperm(250, generator=generator)).split(70):
                bank.enqueue(rows[row], labels[row], row)
    assert torch.equal(banks[0].class_sums, banks[1].class_sums)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 9), batches=st.lists(st.integers(0, 14), min_size=1, max_size=9))
def test_a_ring_holds_exactly_the_newest_rows(size, batches):
    bank = MemoryBank(size, 2, 3, dtype=torch.float64)
    seen = 0
    for q in batches:
        index = torch.arange(seen, seen + q)
        bank.enqueue(unit_rows(q, 2, seen), index % 3, index)
        seen += q
    stored = bank.filled().index.tolist()
    assert sorted(stored) == list(range(max(0, seen - size), seen))
    if seen:
        assert bank.index[bank.pointer - 1] == seen - 1


def test_the_released_wrap_overwrites_the_last_rows():
    bank = MemoryBank(7, 2, 1, wrap="released")
    rows = unit_rows(20, 2, 0)
    for start, stop in ((0, 3), (3, 6), (6, 9)):
        bank.enqueue(rows[start:stop], torch.zeros(3, dtype=torch.long), torch.arange(start, stop))
    assert bank.index.tolist() == [0, 1, 2, 3, 6, 7, 8]
    assert bank.pointer == 0
    assert bank.is_full
    bank.enqueue(rows[9:20], torch.zeros(11, dtype=torch.long), torch.arange(9, 20))
    assert bank.index.tolist() == list(range(13, 20))


def test_views_and_emptiness():
    bank = MemoryBank(5, 3, 2)
    assert len(bank) == 0
    assert bank.filled().embeddings.shape == (0, 3)
    bank.enqueue(unit_rows(2, 3, 1), torch.tensor([1, 0]), torch.tensor([8, 9]))
    rows = bank.filled()
    assert rows.embeddings.data_ptr() == bank.embeddings.data_ptr()
    assert rows.labels.tolist() == [1, 0]
    assert rows.index.tolist() == [8, 9]


@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.integers(0, 6), min_size=1, max_size=10), back=st.integers(0, 10))
def test_changed_since_names_every_changed_class(batches, back):
    bank = MemoryBank(8, 2, 30, dtype=torch.float64)
    history = []
    for n, q in enumerate(batches):
        history.append((bank.version, bank.class_sums.clone()))
        labels = torch.randint(30, (q,), generator=torch.Generator().manual_seed(n))
        bank.enqueue(unit_rows(q, 2, n), labels, torch.arange(q))
    version, sums = history[-1 - min(back, len(history) - 1)]
    really = set((bank.class_sums != sums).any(dim=1).nonzero().flatten().tolist())
    named = bank.changed_since(version)
    assert named is None or really <= set(named.tolist())
    last = bank.changed_since(history[-1][0])
    assert last is not None
    assert len(last) <= 2 * batches[-1]


def test_state_dict_continues_where_it_stopped(tmp_path):
    first = MemoryBank(6, 3, 4)
    first.enqueue(unit_rows(5, 3, 0), torch.tensor([0, 1, 2, 3, 0]), torch.arange(5))
    torch.save(first.state_dict(), tmp_path / "bank.pt")
    second = MemoryBank(6, 3, 4)
    stale = second.version
    second.load_state_dict(torch.load(tmp_path / "bank.pt", weights_only=True))
    assert second.changed_since(stale) is None
    for bank in (first, second):
        bank.enqueue(unit_rows(4, 3, 1), torch.tensor([3, 3, 1, 0]), torch.arange(5, 9))
    for name, value in first.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second.state_dict()[name])
        else:
            assert value == second.state_dict()[name]


def test_half_precision_around_it_does_not_touch_the_statistics():
    bank = MemoryBank(4, 3, 2)
    bank.enqueue(unit_rows(3, 3, 0), torch.tensor([0, 1, 0]), torch.arange(3))
    expected = copy.deepcopy(bank.class_sums)
    torch.nn.Sequential(bank).half()
    assert bank.embeddings.dtype == torch.float32
    assert torch.equal(bank.class_sums, expected)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_named(label):
    bank = MemoryBank(4, 2, 3)
    with pytest.raises(UserError, match="labels 0 to 2"):
        bank.enqueue(unit_rows(1, 2, 0), torch.tensor([label]), torch.tensor([0]))
    assert len(bank) == 0


@pytest.mark.parametrize(
    "arguments", [{"size": 0}, {"wrap": "spiral"}, {"num_classes": 0}], ids=str
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(UserError):
        MemoryBank(**({"size": 4, "dim": 2, "num_classes": 3} | arguments))


def test_shapes_are_checked():
    bank = MemoryBank(4, 2, 3)
    with pytest.raises(ValueError, match="expected embeddings"):
        bank.enqueue(unit_rows(2, 3, 0), torch.tensor([0, 1]), torch.tensor([0, 1]))


def test_a_ring_answers_as_the_one_released_with_promptcal():
    case = vectors.tensors(paths.GOLDEN / "promptcal", "memory_bank")
    bank = MemoryBank(int(case["size"]), 3, 1, dtype="float64")
    assert len(bank) == int(case["len_before"])
    for step in range(5):
        rows = case[f"add_{step}"]
        bank.enqueue(rows, torch.zeros(4, dtype=torch.int64), torch.arange(4))
        torch.testing.assert_close(bank.filled().embeddings, case[f"query_{step}"])
        assert bank.pointer % bank.size == int(case[f"pointer_{step}"]) % bank.size
        assert len(bank) == int(case[f"len_{step}"])
