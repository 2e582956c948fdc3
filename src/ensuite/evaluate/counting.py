"""Ranks within one batch, by counting: what scores higher than each target, and what scores the same."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ensuite.errors import EnsuiteError
from ensuite.evaluate.scoring import ScoredBatch

COUNTED_AT_ONCE = 1 << 20
"""Scores compared with the targets' at a time; 4 MB of float32 stay in the processor's cache."""


class NaNScores(EnsuiteError):
    """A model scored an item NaN; ``user`` is the user's row."""

    def __init__(self, user: int, name: object = None):
        self.user = user
        who = f"user row {user}" if name is None else f"user {name!r}"
        super().__init__(
            f"the model gives NaN scores for {who}: its weights or its inputs hold NaN or infinity; "
            "nothing can be ranked"
        )


class Counter:
    """Counts, for one batch, the candidates above and level with each target, and keeps the best few.

    Parameters
    ----------
    row, target
        Which case of the batch each target belongs to, ascending, and its item row: [T] int64 each.
    user
        User rows, for error messages: [B] int64.
    top
        How many of the best items of each case are kept.
    """

    def __init__(
        self, row: np.ndarray, target: np.ndarray, user: np.ndarray, device: torch.device, top: int = 0
    ):
        self.user = user
        self.top = top
        self.row = torch.from_numpy(row).to(device)
        self.target = torch.from_numpy(target).to(device)
        self.score = torch.full(
            (len(row),), torch.nan, device=device
        )  # [T], -inf when the target is no candidate
        self.higher = torch.zeros(len(row), dtype=torch.int64, device=device)
        self.level = torch.zeros_like(self.higher)
        self.n_candidates = torch.zeros(len(user), dtype=torch.int64, device=device)  # [B]
        self.best: tuple[Tensor, Tensor] | None = None  # scores and item rows, [B, K] each
        # Targets are compared one per case at a time: first each case's first one, then each case's second,
        # ...
        nth = np.arange(len(row)) - np.searchsorted(row, row)
        self.rounds = [
            torch.from_numpy(np.flatnonzero(nth == n)).to(device) for n in range(nth.max(initial=0) + 1)
        ]
        self._own = self._flags = torch.empty(0, device=device)

    def count(self, batch: ScoredBatch, seen: tuple[np.ndarray, np.ndarray] | None) -> None:
        """Score all items and count; ``seen`` are (case, item row) pairs to be left out, [N] int64 each.

        When the catalogue needs several blocks, those that hold targets are scored twice: a score computed
        in another way would differ in its last bits, and no tie would be found.
        """
        device, blocks = batch.device, batch.blocks
        pairs = seen or (np.zeros(0, np.int64), np.zeros(0, np.int64))
        width = max(1, COUNTED_AT_ONCE // len(self.user))
        one_chunk = len(blocks) == 1 and blocks[0][1] - blocks[0][0] <= width
        order = slice(None) if one_chunk else np.argsort(pairs[1], kind="stable")
        seen_row, seen_item = (torch.from_numpy(x[order]).to(device) for x in pairs)
        if len(blocks) > 1:
            held = np.unique(
                np.searchsorted([last for _, last in blocks], self.target.cpu().numpy(), side="right")
            )
            for first, last in (blocks[i] for i in held):
                self._read_targets(batch.scores(first, last), first, last)
        for first, last in blocks:
            scores = batch.scores(first, last)
            if len(blocks) == 1:
                self._read_targets(scores, first, last)
            for begin in range(first, last, width):
                end = min(begin + width, last)
                ends = torch.tensor([begin, end], device=device)
                part = slice(None) if one_chunk else slice(*torch.searchsorted(seen_item, ends).tolist())
                self._count(scores[:, begin - first : end - first], begin, seen_row[part], seen_item[part])

    def _read_targets(self, scores: Tensor, first: int, last: int) -> None:
        here = ((self.target >= first) & (self.target < last)).nonzero()[:, 0]
        self.score[here] = scores[self.row[here], self.target[here] - first].float()

    def _count(self, scores: Tensor, begin: int, seen_row: Tensor, seen_item: Tensor) -> None:
        """Count one chunk of columns. It is copied first: a scorer may hand out a view of the model's own
        memory.
        """
        rows, width = scores.shape
        if self._own.shape != scores.shape:
            self._own, self._flags = torch.empty((2, rows, width), device=scores.device)
        own = self._own.copy_(scores)
        nan = own.amax(1).isnan()  # a row's maximum is NaN as soon as one of its scores is
        if nan.any():
            raise NaNScores(int(self.user[int(nan.nonzero()[0, 0])]))
        own.view(-1).index_fill_(0, seen_row * width + (seen_item - begin), -torch.inf)
        here = ((self.target >= begin) & (self.target < begin + width)).nonzero()[:, 0]
        self.score[here] = own[self.row[here], self.target[here] - begin]
        # Comparisons written as floats and summed take a fifth of the time of booleans; exact below 2^24
        # columns.
        self.n_candidates += torch.gt(own, -torch.inf, out=self._flags).sum(1).long()
        for targets in self.rounds:
            whose = self.row[targets]
            some = own if len(whose) == rows else own[whose]
            flags = self._flags[: len(whose)]
            score = self.score[targets, None]
            self.higher[targets] += torch.gt(some, score, out=flags).sum(1).long()
            self.level[targets] += torch.eq(some, score, out=flags).sum(1).long()
        if self.top:
            self._keep_best(own, begin)

    def _keep_best(self, own: Tensor, begin: int) -> None:
        scores, items = own.topk(min(self.top, own.shape[1]), dim=1)
        items = items + begin
        if self.best is not None:
            scores = torch.cat([self.best[0], scores], 1)
            scores, order = scores.topk(min(self.top, scores.shape[1]), dim=1)
            items = torch.cat([self.best[1], items], 1).gather(1, order)
        self.best = scores, items

    def ranks(self) -> tuple[np.ndarray, np.ndarray]:
        """Return rank and ties of each target: [T] float64 and [T] int64."""
        score, higher, level = (x.cpu().numpy() for x in (self.score, self.higher, self.level))
        reachable = score > -np.inf
        ties = np.where(reachable, level - 1, 0)
        return np.where(reachable, 1.0 + higher + ties / 2, np.inf), ties

    def lists(self) -> np.ndarray:
        """Return the best items, 0 where no candidate is left: [B, K] int64."""
        assert self.best is not None
        scores, items = self.best
        return torch.where(scores > -torch.inf, items, 0).cpu().numpy()
