"""The approximate search: how much it finds, and that filters never leave it short."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ensuite.errors import EnsuiteError
from ensuite.serve.search import hnsw
from ensuite.serve.search.hnsw import HNSWConfig, HNSWSearch, build_graph, read_graph, write_graph
from ensuite.serve.search.searcher import ExactSearch

N_ITEMS, DIM = 3_000, 16
NONE = np.zeros(0, np.int64)


@pytest.fixture(scope="module")
def vectors() -> torch.Tensor:
    pytest.importorskip("faiss", reason="faiss is not installed: pip install 'ensuite[ann]'")
    return torch.randn(N_ITEMS + 1, DIM, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def searcher(vectors) -> HNSWSearch:
    settings = HNSWConfig()
    return HNSWSearch(vectors, build_graph(vectors, settings), settings)


@pytest.fixture
def users() -> torch.Tensor:
    return torch.randn(40, DIM, generator=torch.Generator().manual_seed(1))


def test_finds_nearly_all_and_scores_exactly(searcher, vectors, users):
    scores, rows = searcher.search(users, 10, None, [NONE] * len(users))
    _, best = ExactSearch(vectors).search(users, 10, None, [NONE] * len(users))
    hits = [len(np.intersect1d(a, b)) for a, b in zip(rows.numpy(), best.numpy())]
    assert np.mean(hits) >= 9.5
    torch.testing.assert_close(scores, torch.einsum("bd,bkd->bk", users, vectors[rows]))
    assert bool((scores.diff(dim=1) <= 0).all())


def test_excluded_items_are_made_up_for(searcher, vectors, users, monkeypatch):
    """The best 60 of each user are excluded, more than are asked for: the next ones are found."""
    exact = ExactSearch(vectors)
    _, best = exact.search(users, 60, None, [NONE] * len(users))
    excluded = [np.sort(rows.numpy()) for rows in best]
    _, expected = exact.search(users, 10, None, excluded)
    monkeypatch.setattr(ExactSearch, "search", None)  # the graph alone answers
    _, rows = searcher.search(users, 10, None, excluded)
    assert all(not set(a.tolist()) & set(b.tolist()) for a, b in zip(rows, excluded))
    hits = [len(np.intersect1d(a, b)) for a, b in zip(rows.numpy(), expected.numpy())]
    assert np.mean(hits) >= 9.5


@pytest.mark.parametrize("share", [0.01, 0.2, 0.6])
def test_allowed_items_only_and_always_k(searcher, vectors, users, share):
    rng = np.random.default_rng(0)
    allowed = torch.from_numpy(rng.random(N_ITEMS + 1) < share)
    allowed[0] = False
    count = int(allowed.sum())
    for k in (10, count):
        _, rows = searcher.search(users[:5], k, allowed, [NONE] * 5)
        assert bool(allowed[rows].all())
        assert all(len(set(row.tolist())) == k for row in rows)
        if share < hnsw.FEW or k == count:  # all of them are scored
            expected = ExactSearch(vectors).search(users[:5], k, allowed, [NONE] * 5)
            assert torch.equal(rows.sort(1).values, expected[1].sort(1).values)


def test_falls_back_to_all_items_when_the_graph_gives_too_few(searcher, vectors, users, monkeypatch):
    monkeypatch.setattr(HNSWSearch, "_walk", lambda self, asked, *_: np.full((len(asked), 20), -1))
    scores, rows = searcher.search(users, 10, None, [NONE] * len(users))
    expected = ExactSearch(vectors).search(users, 10, None, [NONE] * len(users))
    torch.testing.assert_close(scores, expected[0])
    assert torch.equal(rows, expected[1])


def test_equal_scores_are_ordered_by_row():
    pytest.importorskip("faiss", reason="faiss is not installed: pip install 'ensuite[ann]'")
    vectors = torch.ones(21, 4)
    graph = build_graph(vectors, HNSWConfig())
    _, rows = HNSWSearch(vectors, graph, HNSWConfig()).search(
        torch.ones(1, 4), 5, None, [np.array([2], np.int64)]
    )
    assert rows.tolist() == [sorted(rows[0].tolist())]


def test_written_and_read_again_answers_alike(searcher, vectors, users):
    again = HNSWSearch(vectors, read_graph(write_graph(searcher.graph)), searcher.settings)
    expected = searcher.search(users, 10, None, [NONE] * len(users))
    found = again.search(users, 10, None, [NONE] * len(users))
    assert torch.equal(found[1], expected[1])


def test_without_faiss(monkeypatch, vectors):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(hnsw, "import_module", missing)
    with pytest.raises(EnsuiteError, match=r"pip install 'ensuite\[ann\]'"):
        build_graph(vectors, HNSWConfig())


@pytest.mark.parametrize("values", [{"links": 1}, {"ef_construction": 0}, {"ef_search": 0}])
def test_settings_out_of_range(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        HNSWConfig(**values)
