"""PQTopK against the reconstructed vectors, and with pruning against itself without."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ensuite.codes.product import ProductCodes
from ensuite.serve.search import pq
from ensuite.serve.search.pq import PQTopK
from ensuite.serve.search.pruned import Postings, PrunedPQTopK
from ensuite.serve.search.searcher import ExactSearch


def make(
    seed: int, n_items: int, splits: int, sub_items: int = 16, width: int = 2, users: int = 3, whole=True
) -> tuple[ProductCodes, torch.Tensor]:
    """Make random codes and users. Whole numbers of a few values make sums exact in any order, and ties."""
    rng = np.random.default_rng(seed)
    shape = (splits, sub_items, width)
    subs = rng.integers(-2, 3, shape) if whole else rng.normal(size=shape)
    asked = (
        rng.integers(-2, 3, (users, splits * width)) if whole else rng.normal(size=(users, splits * width))
    )
    codes = torch.from_numpy(rng.integers(0, sub_items, (n_items, splits)).astype(np.uint8))
    return ProductCodes(codes, torch.tensor(subs, dtype=torch.float32)), torch.tensor(
        asked, dtype=torch.float32
    )


def reference(scores: np.ndarray, k: int, allowed, excluded) -> tuple[list, list]:
    """Sort everything: scores [B, V], by score and then by row."""
    found, values = [], []
    for row, out in zip(scores.astype(np.float64), excluded):
        row = row.copy()
        row[out - 1] = -np.inf
        if allowed is not None:
            row[~allowed[1:].numpy()] = -np.inf
        best = np.argsort(-row, kind="stable")[:k]
        found.append((best + 1).tolist())
        values.append(row[best].tolist())
    return values, found


def nothing(users: torch.Tensor) -> list[np.ndarray]:
    return [np.zeros(0, np.int64)] * len(users)


def dense(codes: ProductCodes, users: torch.Tensor) -> np.ndarray:
    return (users @ codes.reconstruct().T).numpy()


@st.composite
def requests(draw):
    """A quantised table, users, and what they may get: k up to all that is left, few or many allowed."""
    n_items = draw(st.integers(1, 400))
    codes, users = make(
        draw(st.integers(0, 10_000)),
        n_items,
        splits=draw(st.integers(1, 9)),
        sub_items=draw(st.sampled_from([1, 2, 7, 30])),
        users=draw(st.integers(1, 4)),
    )
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    allowed, left = None, np.arange(1, n_items + 1)
    if draw(st.booleans()):
        left = np.sort(rng.permutation(left)[: draw(st.integers(1, n_items))])
        allowed = torch.zeros(n_items + 1, dtype=torch.bool)
        allowed[left] = True
    most = draw(st.integers(0, min(20, len(left) - 1)))
    excluded = [np.sort(rng.permutation(n_items)[: rng.integers(0, most + 1)] + 1) for _ in users]
    room = min(len(np.setdiff1d(left, out)) for out in excluded)
    if room == 0:
        excluded, room = nothing(users), len(left)
    k = draw(st.one_of(st.integers(1, min(10, room)), st.just(room)))
    return codes, users, k, allowed, excluded


@given(requests())
@settings(max_examples=150, deadline=None)
def test_both_equal_a_sort_of_the_reconstructed_scores(request):
    codes, users, k, allowed, excluded = request
    expected = reference(dense(codes, users), k, allowed, excluded)
    for searcher in (PQTopK(codes), PrunedPQTopK(codes)):
        scores, rows = searcher.search(users, k, allowed, excluded)
        assert (scores.tolist(), rows.tolist()) == expected


@pytest.fixture
def never_scan(monkeypatch):
    """Fail when the pruned search reads all codes after all, so that a test is one of pruning."""

    def refuse(*_):
        raise AssertionError("the pruned search fell back to reading everything")

    monkeypatch.setattr(PQTopK, "search", refuse)


@pytest.mark.parametrize("splits", [2, 3, 8, 10])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("k", [1, 10, 100])
def test_pruned_equals_unpruned_to_the_bit(splits, whole, k, monkeypatch):
    codes, users = make(splits, 20_000, splits, sub_items=64, users=8, whole=whole)
    users[0] = 0  # all scores tie: rows 1..k are right
    rng = np.random.default_rng(0)
    allowed = torch.from_numpy(rng.random(20_001) < 0.5)
    plain, fast = PQTopK(codes), PrunedPQTopK(codes)
    best = plain.search(users, 60, None, nothing(users))[1].numpy()
    excluded = [np.unique(np.append(rows, rng.integers(1, 20_001, 20))) for rows in best]
    for may in (None, allowed):
        for out in (nothing(users), excluded):
            scores, rows = fast.search(users, k, may, out)
            expected = plain.search(users, k, may, out)
            assert torch.equal(scores, expected[0])
            assert torch.equal(rows, expected[1])


def test_what_wins_may_lie_in_the_best_cells_of_one_table_only():
    """The other tables are all zeros: a bound that leaves one cell too many unread would miss the best."""
    codes, users = make(5, 20_000, 8, sub_items=64, users=8, whole=False)
    fast = PrunedPQTopK(codes)
    for number, user in enumerate(users):
        user[torch.arange(16) // 4 != number % 4] = 0
        expected = reference(dense(codes, user[None]), 10, None, nothing(user[None]))
        assert fast.search(user[None], 10, None, nothing(user[None]))[1].tolist() == expected[1]


def test_most_items_are_not_visited(never_scan, monkeypatch):
    codes, users = make(1, 100_000, 8, sub_items=64, whole=False)
    visited = []
    visit = Postings.visit
    monkeypatch.setattr(
        Postings, "visit", lambda self, which: visited.append(visit(self, which)) or visited[-1]
    )
    PrunedPQTopK(codes).search(users, 10, None, nothing(users))
    assert sum(map(len, visited)) / len(users) < 0.1 * codes.n_items


def test_when_all_scores_tie_the_items_are_read_in_order_instead(monkeypatch):
    codes, _ = make(1, 10_000, 8, sub_items=64)
    users = torch.zeros(1, 16)
    monkeypatch.setattr(Postings, "visit", None)
    scores, rows = PrunedPQTopK(codes).search(users, 5, None, nothing(users))
    assert (scores.tolist(), rows.tolist()) == ([[0.0] * 5], [[1, 2, 3, 4, 5]])


def test_few_allowed_items_are_read_alone(monkeypatch):
    codes, users = make(2, 5_000, 4)
    allowed = torch.zeros(5_001, dtype=torch.bool)
    allowed[[7, 4_000, 4_999]] = True
    read = []
    look_up = pq.look_up
    monkeypatch.setattr(pq, "look_up", lambda tables, keys: read.append(keys.shape) or look_up(tables, keys))
    for searcher in (PQTopK(codes), PrunedPQTopK(codes)):
        _, rows = searcher.search(users, 2, allowed, nothing(users))
        assert set(rows.flatten().tolist()) <= {7, 4_000, 4_999}
    assert set(read) == {(2, 3)}


def test_a_batch_equals_its_users_one_by_one():
    codes, users = make(3, 30_000, 8, users=16, whole=False)
    for searcher in (PQTopK(codes), PrunedPQTopK(codes)):
        scores, rows = searcher.search(users, 10, None, nothing(users))
        for number, user in enumerate(users):
            alone = searcher.search(user[None], 10, None, nothing(user[None]))
            assert torch.equal(alone[0][0], scores[number])
            assert torch.equal(alone[1][0], rows[number])


def test_scores_are_near_the_dot_product_with_the_reconstructed_vector():
    codes, users = make(4, 1_000, 8, users=5, whole=False)
    scores, rows = PQTopK(codes).search(users, 20, None, nothing(users))
    exact = torch.from_numpy(dense(codes, users)).gather(1, rows - 1)
    torch.testing.assert_close(scores, exact, rtol=1e-5, atol=1e-5)


def test_exact_search_equals_a_sort():
    rng = np.random.default_rng(0)
    vectors = torch.from_numpy(rng.integers(-1, 2, (301, 4)).astype(np.float32))
    users = torch.from_numpy(rng.integers(-1, 2, (5, 4)).astype(np.float32))
    excluded = [np.unique(rng.integers(1, 301, 9)) for _ in users]
    scores, rows = ExactSearch(vectors).search(users, 12, None, excluded)
    expected = reference((users @ vectors[1:].T).numpy(), 12, None, excluded)
    assert (scores.tolist(), rows.tolist()) == expected


def test_blocks_do_not_change_what_is_found(monkeypatch):
    codes, users = make(6, 5_000, 5, whole=False)
    expected = PQTopK(codes).search(users, 10, None, nothing(users))
    monkeypatch.setattr(pq, "BLOCK", 1_000)
    found = PQTopK(codes).search(users, 10, None, nothing(users))
    assert torch.equal(expected[0], found[0])
    assert torch.equal(expected[1], found[1])


def test_an_item_not_visited_that_ties_with_the_best_has_the_smaller_row():
    """Two tables of one dimension a split, 128 items, a cut at 8 in both. Row 1 lies just below both cuts and
    is not visited; its score is the bound itself, and that of row 50, which is found through the first table.
    """
    below = np.nextafter(np.float32(8), np.float32(0))
    values = np.array([0, 10, 9, 8, below, 2 * below - np.float32(10)], np.float32)
    sub_vectors = torch.zeros(4, len(values), 1)
    sub_vectors[[0, 2], :, 0] = torch.from_numpy(values)  # the other split of each table scores 0
    codes = torch.zeros(128, 4, dtype=torch.uint8)
    codes[[49, 59, 69], 0] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    codes[[79, 89, 99], 2] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    codes[49, 2] = 5
    codes[0, [0, 2]] = 4
    table, user = ProductCodes(codes, sub_vectors), torch.ones(1, 4)
    scores, rows = PrunedPQTopK(table).search(user, 1, None, nothing(user))
    assert scores.item() == values[1] + values[5] == below + below
    assert rows.item() == 1
