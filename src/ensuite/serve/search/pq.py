"""PQTopK: the best items of a quantised table, from a few looked-up sums an item.

Petrov, Macdonald, Tonellotto, "Efficient Inference of Sub-Item Id-based Sequential Recommendation Models with
Millions of Items" (RecSys 2024): the score of an item is the sum over splits of the scores of its sub-items,
which are computed once a user. Written from the paper's idea. One thing is added: two splits are looked up at
a time, in a table of the sums of all pairs of their sub-items, which halves the number of look-ups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ensuite.codes.product import ProductCodes
from ensuite.serve.top_k import top_k

BLOCK = 1 << 15
"""Items scored at a time, so that their sums stay in the cache beside the tables."""


class PQTopK:
    """Looks at the codes of every item: exact for the quantised table.

    The score of an item is *defined* as ``((p0 + p1) + p2) + ...`` in float32, where p_g is the sum of the
    scores of its sub-items in splits 2g and 2g + 1: the same bits for one user and for many, with pruning and
    without. It differs from the dot product with the reconstructed vector in the last bits only, and from the
    model's own score by what quantisation costs.
    """

    def __init__(self, codes: ProductCodes):
        self.codes = codes
        self.keys = pair_codes(codes)  # [G, V] uint16

    def search(
        self, users: Tensor, k: int, allowed: Tensor | None, excluded: Sequence[np.ndarray]
    ) -> tuple[Tensor, Tensor]:
        keys, rows = self.keys, None
        if allowed is not None:
            rows = np.flatnonzero(allowed[1:].numpy()) + 1  # [A]
            keys = keys.take(rows - 1, axis=1)
        found = [
            self._search_one(pair_scores(self.codes, user), keys, rows, k, out)
            for user, out in zip(users, excluded)
        ]
        return torch.cat([scores for scores, _ in found]), torch.cat([items for _, items in found])

    def _search_one(
        self, tables: np.ndarray, keys: np.ndarray, rows: np.ndarray | None, k: int, excluded: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        scores = look_up(tables, keys)
        scores[excluded - 1 if rows is None else np.isin(rows, excluded)] = -np.inf
        values, place = top_k(torch.from_numpy(scores)[None], k)
        return values, place + 1 if rows is None else torch.from_numpy(rows)[place]


def pair_codes(codes: ProductCodes) -> np.ndarray:
    """Return the cell of each item in the tables of `pair_scores`: [G, V] uint16, G = M / 2 rounded up."""
    n_sub_items, byte = codes.sub_vectors.shape[1], codes.codes.T.int()  # [M, V]
    byte = F.pad(byte, (0, 0, 0, len(byte) % 2))  # an odd one out is paired with a split of zeros
    return (byte[0::2] * n_sub_items + byte[1::2]).numpy().astype(np.uint16)


def pair_scores(codes: ProductCodes, user: Tensor) -> np.ndarray:
    """Return the sums of the scores of all pairs of sub-items in neighbouring splits: [G, K * K] float32."""
    scores = codes.score_sub_items(user)  # [M, K]
    scores = F.pad(scores, (0, 0, 0, len(scores) % 2))
    return (scores[0::2, :, None] + scores[1::2, None, :]).flatten(1).numpy()


def look_up(tables: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return the scores of items with the cells ``keys`` [G, N] in ``tables`` [G, K * K]: [N]."""
    scores, part = np.empty(keys.shape[1], np.float32), np.empty(BLOCK, np.float32)
    for first in range(0, keys.shape[1], BLOCK):
        block = scores[first : first + BLOCK]
        for group, (table, key) in enumerate(zip(tables, keys[:, first : first + BLOCK])):
            # wrap: any mode but the default writes into `out` without a copy; no key is out of bounds
            found = table.take(key, out=part[: len(block)] if group else block, mode="wrap")
            if group:
                block += found
    return scores
