"""What is measured, and which kind is picked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ensuite.codes.product import ProductConfig
from ensuite.serve.search.index import Index, IndexConfig, build_index
from ensuite.serve.search.measure import Measured, best_rows, measure_index, pick, users_of_items


def measured(kind: str, recall: float, ms: float) -> Measured:
    return Measured(Index(kind, IndexConfig(), {}), recall, ms, ms, ms, 0.0)


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([("exact", 1.0, 5.0), ("pq", 0.995, 1.0), ("hnsw", 0.99, 0.5)], "hnsw"),
        ([("exact", 1.0, 5.0), ("pq", 0.995, 1.0), ("hnsw", 0.98, 0.5)], "pq"),
        ([("exact", 1.0, 5.0), ("pq", 0.5, 1.0)], "exact"),
        ([("exact", 1.0, 5.0), ("pq", 1.0, 4.6)], "exact"),
        ([("exact", 1.0, 5.0), ("pq", 1.0, 4.5)], "pq"),
    ],
)
def test_pick(rows, kind):
    assert pick([measured(*row) for row in rows], recall=0.99) == kind


def test_recall_is_the_share_of_the_models_best():
    vectors = torch.randn(501, 8, generator=torch.Generator().manual_seed(0))
    asked = users_of_items(vectors, 50)
    best = best_rows(vectors, asked, 10, batch=16)
    exact = measure_index(build_index("exact", vectors), vectors, asked, best, 16, 0.0)
    assert exact.recall == 1
    assert 0 < exact.median_ms <= exact.p99_ms
    coarse = IndexConfig(pq=ProductConfig(splits=2, sub_items=8))
    index = build_index("pq", vectors, coarse)
    quantised = measure_index(index, vectors, asked, best, 16, 0.0)
    _, found = index.searcher(vectors).search(asked.users, 10, None, asked.excluded)
    hits = [len(set(a) & set(b)) for a, b in zip(found.tolist(), best.tolist())]
    assert quantised.recall == pytest.approx(np.mean(hits) / 10)
    assert 0 < quantised.recall < 1
