"""Which items of a batch are positives of each other in H2Rec's code-guided alignment."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ensuite.data.cooccurrence import PairsConfig, find_pairs
from ensuite.data.dataset import Events


class Likeness(nn.Module):
    """The list of pairs, looked up for the items of a batch; only a training needs it, and it is counted
    again when one is resumed."""

    offsets: Tensor  # [V + 2] int64; the pairs of item i are offsets[i]:offsets[i + 1] of
    neighbours: Tensor  # [P] int64
    weights: Tensor  # [P] float32

    def __init__(self, n_items: int):
        super().__init__()
        self.register_buffer("offsets", torch.zeros(n_items + 2, dtype=torch.int64), persistent=False)
        self.register_buffer("neighbours", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_buffer("weights", torch.zeros(0), persistent=False)

    def count(self, events: Events, settings: PairsConfig) -> None:
        """Find the pairs in training ``events``."""
        pairs, device = find_pairs(events, settings), self.offsets.device
        self.offsets = torch.from_numpy(pairs.indptr.astype(np.int64)).to(device)
        self.neighbours = torch.from_numpy(pairs.indices.astype(np.int64)).to(device)
        self.weights = torch.from_numpy(pairs.data.astype(np.float32)).to(device)

    def forward(self, items: Tensor, codes: Tensor | None = None) -> Tensor:
        """Return how far each of ``items`` [N], ascending and different, is a positive of each: [N, N].

        An item is its own, by 1; with their ``codes`` [N, C], so are those with equal codes.
        """
        first, count = self.offsets[items], self.offsets[items + 1] - self.offsets[items]
        row = torch.repeat_interleave(torch.arange(len(items), device=items.device), count)  # [M]
        pair = torch.arange(len(row), device=items.device) + (first - count.cumsum(0) + count)[row]
        neighbour = self.neighbours[pair]
        column = torch.searchsorted(items, neighbour).clamp(max=len(items) - 1)
        here = items[column] == neighbour  # the other neighbours are not in the batch
        found = torch.eye(len(items), device=items.device)
        found[row[here], column[here]] = self.weights[pair[here]]
        if codes is not None:
            group = codes.unique(dim=0, return_inverse=True)[1]  # [N]
            found = found.masked_fill(group[:, None] == group, 1.0)
        return found
