"""PQTopK that leaves most items unread: the best cells of each table first, until no other item can win.

After Petrov, Macdonald, Tonellotto, "Efficient Recommendation with Millions of Items by Dynamic Pruning of
Sub-Item Embeddings" (SIGIR 2025), from its idea: an inverted index from sub-items to their items; sub-items
are visited in the order of their scores and their items scored in full; the k-th best score so far is the
threshold, and the search stops when the best sub-items not yet visited do not reach it together.

Here sub-items are *pairs* of neighbouring splits (the cells of `ensuite.serve.search.pq`). The bound is
then a sum of half as many maxima, so far nearer to the scores that items reach: an item that is not visited
has to miss the best cells of all pairs at once. Cells are visited in a few rounds of many, each one pass of
numpy, and the cuts between rounds come from a fixed sample of items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ensuite.codes.product import ProductCodes
from ensuite.serve.search.pq import PQTopK, pair_scores

SAMPLE = 2048
"""Items whose cells say where to cut."""
DEEPEST = 1 / 32
"""Share of the items that is visited through one table at most; beyond, reading all in order is faster."""
GROWTH = 16
"""How many times more items the next round may visit through each table."""
FEW = 1 / 8
"""When fewer than this share of the items may be recommended, these alone are read."""
MOST = 1 / 4
"""Share of the items that one round visits at most; of many equal scores a cut may let through more."""
PACKED = 4
"""Cells of an item that lie in one machine word: one access to memory instead of four."""


class PrunedPQTopK:
    """Returns what `PQTopK` does, to the bit, mostly without reading most items.

    It takes about 8 bytes an item and pair of splits. Where pruning does not help (a large k, scores that lie
    close together), it reads all codes after all.
    """

    def __init__(self, codes: ProductCodes):
        self.codes = codes
        self.scan = PQTopK(codes)
        keys = self.scan.keys  # [G, V]
        self.postings = [Postings.of(key, codes.sub_vectors.shape[1] ** 2) for key in keys]
        self.packed = _pack(keys)
        rng = np.random.default_rng(0)
        self.sample = keys[:, rng.permutation(codes.n_items)[:SAMPLE]].astype(np.int64)  # [G, S]

    def search(
        self, users: Tensor, k: int, allowed: Tensor | None, excluded: Sequence[np.ndarray]
    ) -> tuple[Tensor, Tensor]:
        may = None if allowed is None else allowed[1:].numpy()
        if may is not None and np.count_nonzero(may) < FEW * len(may):
            return self.scan.search(users, k, allowed, excluded)
        scores, rows = torch.empty(len(users), k), torch.empty(len(users), k, dtype=torch.int64)
        for number, (user, out) in enumerate(zip(users, excluded)):
            best = self._search_one(pair_scores(self.codes, user), k, may, out - 1)
            if best is None:
                found = self.scan.search(user[None], k, allowed, [out])
                scores[number], rows[number] = found[0][0], found[1][0]
            else:
                scores[number], rows[number] = torch.from_numpy(best.scores), torch.from_numpy(best.items + 1)
        return scores, rows

    def _search_one(
        self, tables: np.ndarray, k: int, may: np.ndarray | None, excluded: np.ndarray
    ) -> Best | None:
        """Return the best k, or None when too many items would have to be visited."""
        cuts = self._cuts(tables)  # [G, C]
        # Cells below a cut are at most the next number below it, and rounded sums keep the order: no item
        # that is not visited scores more than this, bit for bit.
        bounds = np.zeros(1, np.float32)
        for group, below in enumerate(np.nextafter(cuts, np.float32(-np.inf))):
            bounds = bounds + below if group else below  # [C], in the order of `_score`
        values = [postings.of_cells(table) for table, postings in zip(tables, self.postings)]
        best = Best(np.empty(0, np.float32), np.empty(0, np.int64))
        deepest = cuts.shape[1] - 1
        depth = 1 + self.sample.shape[1] * k // self.codes.n_items  # about k items or more in each table
        before = np.full(len(tables), np.inf, np.float32)
        while depth <= deepest:
            which = [
                np.flatnonzero((value >= cut) & (value < last))
                for value, cut, last in zip(values, cuts[:, depth], before)
            ]
            counts = [int(postings.counts[cells].sum()) for postings, cells in zip(self.postings, which)]
            if sum(counts) > MOST * self.codes.n_items:
                return None
            items = np.concatenate([postings.visit(cells) for postings, cells in zip(self.postings, which)])
            best = self._add(best, items, tables, k, may, excluded)
            if best.least(k) > bounds[depth]:
                return best
            enough = int(np.searchsorted(-bounds, -best.least(k), side="right"))  # the first bound below
            before = cuts[:, depth]
            depth = max(depth + 1, min(enough, depth * GROWTH, deepest))
        return None

    def _cuts(self, tables: np.ndarray) -> np.ndarray:
        """Return where to cut each table: the scores there of the best sampled items, [G, C], falling."""
        count = max(1, int(self.sample.shape[1] * DEEPEST))
        sampled = np.stack([table.take(cells) for table, cells in zip(tables, self.sample)])  # [G, S]
        return -np.sort(np.partition(-sampled, count - 1, axis=1)[:, :count], axis=1)

    def _add(
        self,
        best: Best,
        items: np.ndarray,
        tables: np.ndarray,
        k: int,
        may: np.ndarray | None,
        excluded: np.ndarray,
    ) -> Best:
        """Return the best k of ``best`` and of ``items`` (which may be in both, and come several times)."""
        scores = self._score(tables, items)
        kept = np.flatnonzero(scores >= best.least(k))
        if may is not None:
            kept = kept[may[items[kept]]]
        most = (k + len(excluded)) * len(tables)  # an item comes at most once through each table
        if len(kept) > most:
            kept = kept[scores[kept] >= np.partition(scores[kept], -most)[-most]]
        if len(excluded):
            kept = kept[~np.isin(items[kept], excluded)]
        scores = np.concatenate([best.scores, scores[kept]])
        items = np.concatenate([best.items, items[kept]])
        order = np.lexsort((items, -scores))
        scores, items = scores[order], items[order]
        first = np.append(True, items[1:] != items[:-1])[: len(items)]  # the same item has the same score
        return Best(scores[first][:k], items[first][:k])

    def _score(self, tables: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return what `ensuite.serve.search.pq.look_up` does, for items anywhere: [N]."""
        scores = np.zeros(len(items), np.float32)
        for number, word in enumerate(self.packed):
            cells = word.take(items).view(np.uint16).reshape(-1, PACKED)  # [N, 4]
            for group, table in enumerate(tables[number * PACKED : (number + 1) * PACKED]):
                part = table.take(cells[:, group])
                scores = scores + part if number or group else part
        return scores


@dataclass(frozen=True)
class Best:
    """The best items so far, best first, equal scores by item (counted from 0)."""

    scores: np.ndarray  # [<= k] float32
    items: np.ndarray  # [<= k] int64

    def least(self, k: int) -> np.float32:
        """Return the score that an item has to reach to be among the best k."""
        return self.scores[k - 1] if len(self.scores) == k else np.float32(-np.inf)


@dataclass(frozen=True)
class Postings:
    """The items of each cell of one table: of those that have any, or of all where most do."""

    cells: np.ndarray | None  # [N] int64, ascending; None: all
    starts: np.ndarray  # [N] int64
    counts: np.ndarray  # [N] int64
    items: np.ndarray  # [V] int32, from 0; those of cell i are items[starts[i] : starts[i] + counts[i]]

    @classmethod
    def of(cls, key: np.ndarray, n_cells: int) -> Postings:
        """Sort the items 0..V - 1 by their cells ``key`` [V]."""
        counts, cells = np.bincount(key, minlength=n_cells), None
        occupied = np.flatnonzero(counts)
        if len(occupied) < n_cells / 2:
            cells, counts = occupied, counts[occupied]
        return cls(cells, np.cumsum(counts) - counts, counts, np.argsort(key, kind="stable").astype(np.int32))

    def of_cells(self, table: np.ndarray) -> np.ndarray:
        """Return the values of ``table`` [K * K] in the cells: [N]."""
        return table if self.cells is None else table.take(self.cells)

    def visit(self, which: np.ndarray) -> np.ndarray:
        """Return the items of the cells at the positions ``which`` [C] of the N: int64."""
        starts, counts = self.starts[which], self.counts[which]
        ends = np.cumsum(counts)
        place = np.repeat(starts - ends + counts, counts) + np.arange(ends[-1] if len(ends) else 0)
        return self.items.take(place).astype(np.int64)


def _pack(keys: np.ndarray) -> list[np.ndarray]:
    """Put four cells of each item, keys [G, V] uint16, into one word: a list of [V] int64."""
    padded = np.zeros((-len(keys) % PACKED + len(keys), keys.shape[1]), np.uint16)
    padded[: len(keys)] = keys
    words = padded.reshape(-1, PACKED, keys.shape[1]).transpose(0, 2, 1)  # [G / 4, V, 4]
    return [np.ascontiguousarray(word).view(np.int64)[:, 0] for word in words]
