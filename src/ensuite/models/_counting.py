"""What the counted baselines share: counts of items, and sparse tables that are saved like any other model's
weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from ensuite.data.batches import History
from ensuite.data.dataset import Events
from ensuite.models.base import BlockScorer, FittedModel


def item_counts(events: Events, rows: np.ndarray | None = None) -> np.ndarray:
    """Count how often each item occurs among ``rows`` (default: all rows of ``events``): [V + 1] int64."""
    rows = events.rows() if rows is None else rows
    return np.bincount(events.item_idx[rows], minlength=events.n_items + 1)


def ages(history: History) -> Tensor:
    """Return how many events came after each: 0 at the last real position, and at padding: [B, L] int64."""
    return (history.lengths[:, None] - 1 - history.positions).clamp(min=0)


def popularity_shares(counts: Tensor) -> Tensor:
    """Map counts [V + 1] to [0, 1), in the same order: what may stand below every score of 1 and more."""
    return (counts.double() / (counts.max() + 1)).float()


class SparseModel(FittedModel):
    """A baseline whose scores are ``x @ table``: x [B, V + 1] weighs the items of a history, the table is
    sparse.

    The table lives in three buffers (its CSR arrays); a row holds what one item says about all others.
    """

    indptr: Tensor  # [V + 2] int64
    indices: Tensor  # [N] int32
    weights: Tensor  # [N] float32

    def __init__(self, config: Any, n_items: int, objective: None = None):
        super().__init__(config, n_items)
        self.register_buffer("indptr", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("indices", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("weights", torch.zeros(0))

    def keep(self, table: sp.csr_matrix) -> None:
        """Put a fitted table [V + 1, V + 1] into the buffers."""
        table.sort_indices()
        self.indptr = torch.from_numpy(table.indptr.astype(np.int64))
        self.indices = torch.from_numpy(table.indices.astype(np.int32))
        self.weights = torch.from_numpy(table.data.astype(np.float32))

    def catalogue(self) -> sp.csr_matrix:
        """Return the table as scipy reads it, without copying: [V + 1, V + 1]."""
        if len(self.indptr) != self.n_items + 2:
            raise RuntimeError(f"{type(self).__name__} has not been fitted: call fit(events) first")
        arrays = tuple(buffer.cpu().numpy() for buffer in (self.weights, self.indices, self.indptr))
        return sp.csr_matrix(arrays, shape=(self.n_items + 1, self.n_items + 1))

    def reach(self, history: History, weight: Tensor, table: sp.csr_matrix) -> BlockScorer:
        """Return the scorer of ``x @ table``, where x holds ``weight`` [B, L] at the items of the histories.

        The product is computed once, sparse, and only the block asked for is ever dense.
        """
        row, position = history.mask.nonzero(as_tuple=True)
        entries = weight[row, position].cpu().numpy().astype(np.float32)
        columns = history.items[row, position].cpu().numpy()
        shape = (len(history.items), self.n_items + 1)
        product = (sp.csr_matrix((entries, (row.cpu().numpy(), columns)), shape=shape) @ table).tocsc()
        device = history.items.device

        def scores(first: int, last: int) -> Tensor:
            return torch.from_numpy(product[:, first:last].toarray(order="C")).to(device)

        return scores
