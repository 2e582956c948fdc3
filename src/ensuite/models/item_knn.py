"""Item-to-item nearest neighbours: items that the same users chose, counted once per user, whatever the
order.

Similarities are computed by the `implicit` package (``pip install 'ensuite[knn]'``): the cosine of two
items' users; the cosine after TF-IDF weights, which trust a user of few items more than one of many; or the
dot product of BM25 weights. It is needed for fitting only: a fitted model loads and recommends without it.
See Deshpande and Karypis, "Item-based top-N recommendation algorithms", ACM TOIS 2004."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from ensuite.config import config
from ensuite.data.batches import History
from ensuite.data.dataset import Events
from ensuite.errors import EnsuiteError
from ensuite.models._counting import SparseModel, ages, item_counts, popularity_shares
from ensuite.models.base import BlockScorer


@config
class ItemKNNConfig:
    """Configuration of item-kNN."""

    similarity: Literal["cosine", "tfidf", "bm25"] = "cosine"
    """How alike two items are, from the users that they share."""
    neighbours: int = 100
    """How many most similar items are kept for each item, itself not counted."""
    half_life: float = 0.0
    """Events after which an item of the history weighs half; 0 = all weigh the same, the order does not
    matter."""
    max_length: int = 200
    """How many of the last events of a history are read."""
    bm25_k1: float = 1.2
    """BM25: saturation."""
    bm25_b: float = 0.75
    """BM25: how much the number of an item's users normalises."""

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.max_length < 1:
            raise ValueError("neighbours and max_length: at least 1")
        if self.half_life < 0:
            raise ValueError(f"half_life = {self.half_life}: 0 (no decay) or more events")


class ItemKNN(SparseModel):
    """Score = sum of the similarities to the items of the history. Items similar to none lie below 0, by
    popularity."""

    Config = ItemKNNConfig
    summary = "Item-to-item nearest neighbours: cosine, TF-IDF or BM25 (implicit)"
    paper = "Linden et al., IEEE Internet Computing 2003"
    family = "baseline"
    state = "measured"
    counts: Tensor  # [V + 1] int64

    def __init__(self, config: ItemKNNConfig, n_items: int, objective: None = None):
        super().__init__(config, n_items)
        self.register_buffer("counts", torch.zeros(n_items + 1, dtype=torch.int64))

    def fit(self, events: Events) -> None:
        items = events.item_idx[events.rows()].astype(np.int64) - 1
        user = np.repeat(np.arange(len(events.lengths)), events.lengths)
        shape = (len(events.lengths), events.n_items)
        seen = sp.csr_matrix((np.ones(len(items)), (user, items)), shape=shape)
        seen.data[:] = 1.0
        neighbours = self._knn()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of implicit about its own choice of sparse formats
            neighbours.fit(seen, show_progress=False)
        similar = neighbours.similarity.tocoo()
        other = (similar.row != similar.col) & (similar.data > 0)
        cells = similar.row[other] + 1, similar.col[other] + 1
        self.keep(sp.csr_matrix((similar.data[other], cells), shape=(events.n_items + 1,) * 2))
        self.counts = torch.from_numpy(item_counts(events))

    def _knn(self) -> Any:
        try:
            from implicit import nearest_neighbours as knn
        except ImportError as error:
            raise EnsuiteError(
                f"item-knn needs the package `implicit` for fitting ({error}); pip install 'ensuite[knn]'"
            ) from error
        size = self.config.neighbours + 1  # an item is its own nearest neighbour
        if self.config.similarity == "bm25":
            return knn.BM25Recommender(K=size, K1=self.config.bm25_k1, B=self.config.bm25_b)
        return {"cosine": knn.CosineRecommender, "tfidf": knn.TFIDFRecommender}[self.config.similarity](
            K=size
        )

    def scorer(self, history: History, catalogue: sp.csr_matrix) -> BlockScorer:
        history = history.last(self.max_length)
        weight = history.mask * torch.ones_like(history.items, dtype=torch.float32)  # [B, L]
        if self.config.half_life:
            weight = weight * 0.5 ** (ages(history) / self.config.half_life)
        reached = self.reach(history, weight * ~_again(history.items), catalogue)
        below = popularity_shares(self.counts) - 1  # [V + 1]

        def scores(first: int, last: int) -> Tensor:
            block = reached(first, last)
            return torch.where(block > 0, block, below[first:last])

        return scores


def _again(items: Tensor) -> Tensor:
    """True where an item occurs again later in its row: it counts once, where it was last: [B, L] bool."""
    length = items.shape[1]
    position = torch.arange(length, device=items.device).expand_as(items)
    order = (items * length + position).argsort(1)  # by item, then position
    sorted_items = items.gather(1, order)
    same_as_next = torch.zeros_like(items, dtype=torch.bool)
    same_as_next[:, :-1] = sorted_items[:, :-1] == sorted_items[:, 1:]
    return torch.zeros_like(same_as_next).scatter(1, order, same_as_next)
