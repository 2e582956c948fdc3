"""Approximate search: a navigable graph over item vectors (HNSW, Malkov and Yashunin 2018), by faiss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensuite.config import config
from ensuite.errors import EnsuiteError
from ensuite.serve.search.searcher import ExactSearch
from ensuite.serve.top_k import top_k

FEW = 1 / 8
"""When fewer than this share of the items may be recommended, all of these are scored."""
ADDED = 1 << 14
"""Items added to the graph between two reports of progress."""


@config
class HNSWConfig:
    """How the graph is built and walked."""

    links: int = 32
    """Links of an item on each level: more are more exact, larger and slower."""
    ef_construction: int = 200
    """Candidates that are kept while an item is linked."""
    ef_search: int = 128
    """Candidates that are kept while a user is answered; at least as many as items are asked for."""

    def __post_init__(self) -> None:
        if self.links < 2:
            raise ValueError(f"links = {self.links}: at least 2 are needed")
        for name in ("ef_construction", "ef_search"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1 is needed")


class HNSWSearch:
    """Walks the graph, then scores what it found exactly; the score is a dot product with the item's vector.

    The graph may miss items of the best k. It is asked for so many more as may be excluded; where it still
    leaves fewer than k, or few items may be recommended at all, all items are scored.
    """

    def __init__(self, vectors: Tensor, graph: Any, settings: HNSWConfig):
        self.vectors = vectors  # [V + 1, D]
        self.graph = graph
        self.settings = settings
        self.exact = ExactSearch(vectors)

    def search(
        self, users: Tensor, k: int, allowed: Tensor | None, excluded: Sequence[np.ndarray]
    ) -> tuple[Tensor, Tensor]:
        n_items = len(self.vectors) - 1
        if allowed is not None and int(allowed[1:].sum()) < FEW * n_items:
            return self.exact.search(users, k, allowed, excluded)
        items = self._walk(users, min(n_items, k + max(map(len, excluded))), allowed)  # [B, N], -1 = none
        scores, rows = torch.empty(len(users), k), torch.empty(len(users), k, dtype=torch.int64)
        for number, (user, found, out) in enumerate(zip(users, items, excluded)):
            left = np.setdiff1d(found[found >= 0] + 1, out)  # ascending, so that ties go to the smaller row
            row = torch.from_numpy(left)
            if len(row) < k:
                of_all = self.exact.search(user[None], k, allowed, [out])
                scores[number], rows[number] = of_all[0][0], of_all[1][0]
            else:
                best, place = top_k((self.vectors[row] @ user)[None], k)
                scores[number], rows[number] = best[0], row[place[0]]
        return scores, rows

    def _walk(self, users: Tensor, count: int, allowed: Tensor | None) -> np.ndarray:
        faiss = import_faiss()
        settings = faiss.SearchParametersHNSW(efSearch=max(self.settings.ef_search, count))
        if allowed is not None:
            bits = np.packbits(allowed[1:].numpy(), bitorder="little")
            settings.sel = faiss.IDSelectorBitmap(bits)
        return self.graph.search(users.numpy(), count, params=settings)[1]


def build_graph(
    vectors: Tensor, settings: HNSWConfig, progress: Callable[[int, int], None] | None = None
) -> Any:
    """Link the item vectors ``vectors`` [V + 1, D] by their dot products; ``progress`` is called with (items
    done, items in all)."""
    faiss = import_faiss()
    graph = faiss.IndexHNSWFlat(vectors.shape[1], settings.links, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = settings.ef_construction
    points, done = vectors[1:].numpy(), 0
    for first in range(0, len(points), ADDED):
        block = points[first : first + ADDED]
        graph.add(block)
        done += len(block)
        if progress is not None:
            progress(done, len(points))
    return graph


def write_graph(graph: Any) -> Tensor:
    """Return a graph as bytes: [N] uint8."""
    return torch.from_numpy(import_faiss().serialize_index(graph))


def read_graph(data: Tensor) -> Any:
    """Return the graph that `write_graph` wrote."""
    return import_faiss().deserialize_index(data.numpy())


def import_faiss() -> Any:
    """Return faiss, which answers with as many threads as torch."""
    try:
        faiss = import_module("faiss")
    except ImportError:
        raise EnsuiteError("hnsw: faiss is not installed; pip install 'ensuite[ann]'") from None
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss
