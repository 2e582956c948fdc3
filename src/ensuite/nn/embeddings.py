"""Item and position tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Similarity = Literal["dot", "cosine"]
PositionsFrom = Literal["end", "start", "none"]


class ItemTable(nn.Module):
    """Vectors of items 1..V, with a zero row 0 for padding that never learns, and rows after V for special
    tokens.

    Parameters
    ----------
    rows
        V + 1, plus special tokens.
    dim
        Width D.
    std
        Standard deviation of the initial normal distribution, cut at two deviations.
    """

    def __init__(self, rows: int, dim: int, std: float = 0.02):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, dim))
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        with torch.no_grad():
            self.weight[0].zero_()

    def forward(self, items: Tensor) -> Tensor:
        """Look up ``items`` [...]: [..., D]."""
        return F.embedding(items, self.weight, padding_idx=0)

    def grown(self, like: Sequence[Sequence[int]], similarity: Similarity) -> ItemTable:
        """Return this table with a row more for each of ``like``: the mean of the rows that it names.

        For the cosine the mean is that of directions, since lengths do not count in a score; the new row gets
        the mean length, which an encoder that reads the row does see.
        """
        return self.extended(
            torch.stack([self._mean(self.weight.detach()[list(named)], similarity) for named in like])
        )

    def extended(self, rows: Tensor) -> ItemTable:
        """Return this table with ``rows`` [N, D] after its own."""
        table = ItemTable.__new__(ItemTable)
        nn.Module.__init__(table)  # no random vectors are drawn only to be overwritten
        table.weight = nn.Parameter(torch.cat([self.weight.detach(), rows]), requires_grad=False)
        return table

    @staticmethod
    def _mean(vectors: Tensor, similarity: Similarity) -> Tensor:
        mean = similar(similar(vectors, similarity).mean(0), similarity)
        return mean * vectors.norm(dim=-1).mean() if similarity == "cosine" else mean


class PositionTable(nn.Module):
    """Learned absolute positions, counted from the newest event (its slot is always the last) or from the
    oldest.

    Counted from the end, the last event of every history has the same slot, as in SASRec's left-padded input.
    """

    def __init__(self, length: int, dim: int, count_from: Literal["end", "start"], std: float = 0.02):
        super().__init__()
        self.length, self.count_from = length, count_from
        self.weight = nn.Parameter(torch.empty(length, dim))
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)

    def forward(self, positions: Tensor, lengths: Tensor) -> Tensor:
        """Return the vectors of ``positions`` [1 or B, L] in histories of ``lengths`` [B]: [1 or B, L, D].

        Padded positions lie outside of the table and are clamped into it: nothing reads them.
        """
        if self.count_from == "start":
            return self.weight[: positions.shape[1]][None]
        slots = (self.length - lengths)[:, None] + positions  # [B, L]
        return F.embedding(slots.clamp(max=self.length - 1), self.weight)


def similar(vectors: Tensor, similarity: Similarity) -> Tensor:
    """Return ``vectors`` [..., D] as they enter the dot product: unchanged, or with length 1 for the
    cosine."""
    return F.normalize(vectors, dim=-1, eps=1e-6) if similarity == "cosine" else vectors
