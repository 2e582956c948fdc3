"""Order-free search: an item is a set of M codes, one of each codebook, and a model decides as it goes which
codebook comes next.

A prefix tree fixes the order, so what a beam can still become is held as the list of its items, and a code is
open to it when an item of the list has it. Lists are cut from postings (codebook, code) -> items: after the
first code they are short, so that a step costs what the lists hold, not beams x codebooks x catalogue as
bitsets would (for a million items in 8 codebooks of 256 those alone take 256 MB; the postings take 64).

Each beam takes its next code from one codebook, so the codes it writes part its list into pieces without an
item in common: all beams together are the leaves of a tree of decisions. An item is reached on one path only,
whatever orders the others took, and as many beams as items that are asked for always find them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ensuite.codes.beam import drawn
from ensuite.errors import EnsuiteError

Start = tuple[Tensor, Any]
"""Log-probabilities of the codes of all codebooks, [B, 1, M, K], each codebook for itself, and a state."""

Step = Callable[[Tensor, Tensor, Tensor, Any], tuple[Tensor, Any]]
"""(codebooks [B, W] and codes [B, W] that the beams write next, the beams [B, W] of the state that they
continue, the state) to (log-probabilities after it, [B, W, M, K], the new state)."""


class CodeIndex:
    """Postings of a table of codes: which items have a code of a codebook.

    Parameters
    ----------
    codes
        [V + 1, M] integers; row 0 is padding, rows of -1 are items without codes.
    sizes
        Codes of each codebook.
    """

    def __init__(self, codes: Tensor, sizes: Sequence[int]):
        self.sizes, self.widest = tuple(sizes), max(sizes)
        self.codes = codes.long()  # [V + 1, M]
        self.coded = codes[:, 0] >= 0  # [V + 1] bool
        rows = self.coded.nonzero()[:, 0]
        if not len(rows):
            raise EnsuiteError("no item has codes: there is nothing a search could return")
        kept = self.codes[rows]  # [N, M]
        by_code = kept.argsort(dim=0, stable=True)
        self.items = rows[by_code].T.contiguous()  # [M, N] item rows in the order of their codes
        code = torch.arange(self.widest + 1, device=codes.device).expand(len(self.sizes), -1).contiguous()
        self.first = torch.searchsorted(kept.gather(0, by_code).T.contiguous(), code)  # [M, K + 1]

    @property
    def codebooks(self) -> int:
        """Codes of an item, M."""
        return len(self.sizes)

    def postings(self, book: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return the items that have each of P codes, one list after another: items [T], and which [T]."""
        first = self.first[book, code]
        n = self.first[book, code + 1] - first
        which = torch.repeat_interleave(torch.arange(len(n), device=n.device), n)
        at = torch.arange(len(which), device=n.device) - (n.cumsum(0) - n)[which]
        return self.items[book[which], first[which] + at], which


def unordered_search(
    index: CodeIndex,
    start: Start,
    step: Step,
    *,
    width: int,
    k: int,
    allowed: Tensor | None = None,
    excluded: Tensor | None = None,
    order: Sequence[int] | None = None,
    last: int = 0,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k best items of each user, their log-probabilities along their paths, and these: [B, k]
    twice, and the codebooks in the order of their steps, [B, k, M].

    Parameters
    ----------
    width
        Beams, W, at least k.
    allowed, excluded
        As for `ensuite.codes.trie.Allowed`.
    order
        The codebooks in a fixed order; None: each beam goes on with the codebook of whose best open code the
        model is most certain (REG4Rec's CRSS).
    last
        So many codebooks at the end come after all others: the digit that tells duplicates apart.
    temperature, generator
        As for `ensuite.codes.beam.beam_search`: draw paths instead of taking the best.

    Raises
    ------
    EnsuiteError
        When a user is left with no item at all.
    """
    if width < k:
        raise ValueError(f"width = {width} beams cannot promise k = {k} items")
    log_probs, state = start
    n_users, device = len(log_probs), log_probs.device
    may = _may(index, n_users, allowed, excluded)
    books, size = index.codebooks, index.widest
    user = torch.arange(n_users, device=device)[:, None]
    score = torch.zeros(n_users, 1, device=device)
    book = code = parent = torch.zeros(n_users, 1, dtype=torch.int64, device=device)
    rank_by, used = score, torch.zeros(n_users, 1, books, dtype=torch.bool, device=device)
    path = torch.zeros(n_users, 1, books, dtype=torch.int64, device=device)
    is_open = _first_open(index, may)
    items = owner = torch.empty(0, dtype=torch.int64, device=device)  # lists of all beams, beam by beam
    for number in range(books):
        beams = score.shape[1]
        if number:
            log_probs, state = step(book, code, parent, state)
            is_open = torch.zeros(n_users * beams, books, size, dtype=torch.bool, device=device)
            level = torch.arange(books, device=device)
            is_open[owner[:, None], level, index.codes[items]] = True
            is_open = is_open.view(n_users, beams, books, size)
        is_open = is_open & ~used[..., None] & rank_by.isfinite()[..., None, None]
        gained = log_probs.float()
        if order is None:
            certain = gained.masked_fill(~is_open, -torch.inf).amax(3)  # [B, W, M]
            chosen = certain[..., : books - last if number < books - last else books].argmax(2)  # [B, W]
        else:
            chosen = torch.full_like(score, order[number], dtype=torch.int64)
        pick = chosen[..., None, None].expand(-1, -1, 1, size)
        gained, is_open = gained.gather(2, pick)[:, :, 0], is_open.gather(2, pick)[:, :, 0]  # [B, W, K]
        total = score[..., None] + gained
        keys = drawn(gained, is_open, rank_by, temperature, generator) if temperature else total
        keys = keys.masked_fill(~is_open, -torch.inf).flatten(1)
        rank_by, at = keys.topk(min(width, keys.shape[1]), dim=1)  # [B, W']
        live = rank_by.isfinite()
        at = torch.where(live, at, at[:, :1])  # places that nobody takes read what the best beam reads
        parent, code = at // size, at % size
        book, score = chosen.gather(1, parent), total.flatten(1).gather(1, at)
        used = used[user, parent].scatter(2, book[..., None], True)
        path = path[user, parent]
        path[..., number] = book
        if number:
            items, owner = _cut(index, items, owner, (user * beams + parent)[live], book[live], code[live])
        else:
            items, owner = index.postings(book[live], code[live])
            if may is not None:
                kept = may[live.nonzero()[owner, 0], items]
                items, owner = items[kept], owner[kept]
        owner = live.flatten().nonzero()[:, 0][owner]  # among all places for beams
    return _first_items(items, owner, score, path, k)


def _may(index: CodeIndex, n_users: int, allowed: Tensor | None, excluded: Tensor | None) -> Tensor | None:
    """Return which rows each user may be given, [B, V + 1]; None: all that have codes."""
    if allowed is None and (excluded is None or not excluded.shape[1]):
        return None
    device = index.codes.device
    may = index.coded if allowed is None else index.coded & allowed.to(device)
    may = may.expand(n_users, -1).clone()
    if excluded is not None:
        may.scatter_(1, excluded.to(device), False)
    empty = ~may.any(1)
    if bool(empty.any()):
        raise EnsuiteError(
            f"nothing can be recommended to history {int(empty.nonzero()[0]) + 1}: every item that has codes "
            "is excluded or outside the candidates; exclude fewer, or allow more"
        )
    return may


def _first_open(index: CodeIndex, may: Tensor | None) -> Tensor:
    """Return which codes an item is left for before any is chosen: [B or 1, 1, M, K] bool."""
    if may is None:
        return (index.first.diff(dim=1) > 0)[None, None]
    is_open = may.new_zeros(len(may), 1, index.codebooks, index.widest)
    row, item = may.nonzero(as_tuple=True)
    is_open[row[:, None], 0, torch.arange(index.codebooks, device=may.device), index.codes[item]] = True
    return is_open


def _cut(
    index: CodeIndex, items: Tensor, owner: Tensor, parent: Tensor, book: Tensor, code: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the lists of P new beams, cut from those of their parents [P] by their new code: the items [T],
    and the new beam of each, ascending."""
    bounds = torch.searchsorted(owner, torch.stack([parent, parent + 1]))
    first, n = bounds[0], bounds[1] - bounds[0]
    which = torch.repeat_interleave(torch.arange(len(n), device=n.device), n)
    at = first[which] + torch.arange(len(which), device=n.device) - (n.cumsum(0) - n)[which]
    found = items[at]
    kept = index.codes[found, book[which]] == code[which]
    return found[kept], which[kept]


def _first_items(
    items: Tensor, owner: Tensor, score: Tensor, path: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first k items of each user's lists, which are in the order of their beams, with the score
    and the path of each: [B, k], [B, k] and [B, k, M]."""
    n_users, beams = score.shape
    user = owner // beams
    n = torch.bincount(user, minlength=n_users)
    place = torch.arange(len(user), device=user.device) - (n.cumsum(0) - n)[user]
    kept = place < k
    found = torch.zeros(n_users, k, dtype=torch.int64, device=score.device)
    scores = torch.full((n_users, k), -torch.inf, device=score.device)
    paths = torch.zeros(n_users, k, path.shape[2], dtype=torch.int64, device=score.device)
    found[user[kept], place[kept]] = items[kept]
    scores[user[kept], place[kept]] = score.flatten()[owner[kept]]
    paths[user[kept], place[kept]] = path.flatten(0, 1)[owner[kept]]
    return found, scores, paths
