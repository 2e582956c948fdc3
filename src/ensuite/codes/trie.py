"""The catalogue as a prefix tree of codes, in flat arrays: what a search may write next, and which items a
tuple of codes stands for.

Items are sorted by their codes, so that the items under a node are a range of that order, and the children of
a node are a range of the next level. Depth 0 is the root; the nodes of depth L are the distinct tuples, and
an item is found by its place in the order. Nothing is a Python object per item: a million items of four codes
are built in about a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ensuite.errors import EnsuiteError


@dataclass(frozen=True)
class Depth:
    """The n nodes of one depth, in the order of their tuples."""

    code: Tensor  # [n] int64, the last code of each node's prefix; 0 at the root
    parent: Tensor  # [n] int64, a node of the depth above; 0 at the root
    first_child: Tensor  # [n + 1] int64, children are first_child[i]:first_child[i + 1] of the depth below
    first_leaf: Tensor  # [n + 1] int64, items are first_leaf[i]:first_leaf[i + 1] of the trie's order
    widest: int  # children of the node that has most of them

    def __len__(self) -> int:
        return len(self.code)


class CodeTrie:
    """The prefix tree over a table of codes.

    Parameters
    ----------
    codes
        [V + 1, L] integers, row 0 (padding) is not read; a row of -1 is an item without codes, which no
        search can reach.

    Raises
    ------
    EnsuiteError
        When no item has codes, or an item has only some of them.
    """

    def __init__(self, codes: Tensor):
        table = codes.detach().cpu().numpy()[1:]
        coded = table[:, 0] >= 0
        if bool((coded[:, None] != (table >= 0)).any()):
            item = int(np.flatnonzero((coded[:, None] != (table >= 0)).any(1))[0]) + 1
            raise EnsuiteError(f"item row {item} has codes at some levels only: {table[item - 1].tolist()}")
        if not coded.any():
            raise EnsuiteError("no item has codes: there is nothing a search could return")
        where = codes.device
        row = np.flatnonzero(coded)
        row = row[np.lexsort(table[row].T[::-1])]  # stable: items of one tuple in ascending order
        n = len(row)
        self.order = torch.from_numpy(row + 1).to(where)  # [N] item rows
        self.place = torch.full((len(codes),), n, device=where)  # [V + 1] of each row in the order, N: none
        self.place[self.order] = torch.arange(n, device=where)
        starts = [np.zeros(1, np.int64)]  # of each depth's nodes, in the order
        new = np.zeros(n, bool)
        new[0] = True
        for level in range(table.shape[1]):
            column = table[row, level]
            new[1:] |= column[1:] != column[:-1]
            starts.append(np.flatnonzero(new))
        self.depths: list[Depth] = []
        for depth, start in enumerate(starts):
            below = starts[depth + 1] if depth < table.shape[1] else start
            first_child = np.append(np.searchsorted(below, start), len(below))
            code = table[row[start], depth - 1] if depth else np.zeros(1)
            parent = np.searchsorted(starts[depth - 1], start, side="right") - 1 if depth else np.zeros(1)
            arrays = code, parent, first_child, np.append(start, n)
            tensors = [torch.from_numpy(a.astype(np.int64)).to(where) for a in arrays]
            widest = int(np.diff(first_child).max())
            self.depths.append(Depth(tensors[0], tensors[1], tensors[2], tensors[3], widest))

    @property
    def levels(self) -> int:
        """Codes of an item, L."""
        return len(self.depths) - 1

    @property
    def n_items(self) -> int:
        """Items that have codes, N."""
        return len(self.order)

    @property
    def n_tuples(self) -> int:
        """Distinct tuples: fewer than items where items share one."""
        return len(self.depths[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        tensors = [self.order, self.place]
        for depth in self.depths:
            tensors += [depth.code, depth.parent, depth.first_child, depth.first_leaf]
        return sum(t.numel() * t.element_size() for t in tensors)

    def children(self, depth: int, node: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the children of nodes [...] of ``depth``, padded to the widest node of that depth.

        Returns
        -------
        child, code, real
            [..., C] each: the node of the depth below, its code, and whether it is one.
        """
        here, below = self.depths[depth], self.depths[depth + 1]
        first, end = here.first_child[node], here.first_child[node + 1]
        child = first[..., None] + torch.arange(here.widest, device=node.device)
        real = child < end[..., None]
        child = torch.where(real, child, first[..., None])
        return child, below.code[child], real

    def child(self, depth: int, node: Tensor, code: Tensor) -> Tensor:
        """Return the child of nodes [...] of ``depth`` that ``code`` [...] leads to; -1 where there is none,
        or no node (-1)."""
        below = self.depths[depth + 1]
        size = 1 + int(torch.maximum(below.code.max(), code.max()))
        keys, wanted = below.parent * size + below.code, node * size + code  # children are in order
        at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return at.masked_fill((keys[at] != wanted) | (node < 0), -1)


class Allowed:
    """Which items a search may return, user by user, as counts under any node.

    Parameters
    ----------
    trie
        The catalogue.
    n_users
        Histories that are searched for, B.
    allowed
        True at the rows that may be returned, [V + 1] bool; None: all.
    excluded
        Rows that must not be returned, [B, X] int64, 0 where there are fewer; None: none.

    Raises
    ------
    EnsuiteError
        When a user is left with no item at all: an empty constraint is a mistake, not a list of anything.
    """

    def __init__(self, trie: CodeTrie, n_users: int, allowed: Tensor | None, excluded: Tensor | None):
        self.trie, device = trie, trie.order.device
        self.before: Tensor | None = None  # [N + 1] allowed items ahead of each place
        self.item = None if allowed is None else allowed.to(device)[trie.order]  # [N] bool, by place
        if self.item is not None:
            self.before = torch.zeros(trie.n_items + 1, dtype=torch.int64, device=device)
            torch.cumsum(self.item, 0, out=self.before[1:])
        self.out: Tensor | None = None  # [B, X] places that are excluded, ascending, N where there are fewer
        if excluded is not None and excluded.shape[1]:
            place = trie.place[excluded.to(device)]
            if self.item is not None:  # what is not allowed anyway is not to be counted off twice
                barred = ~torch.cat([self.item, self.item.new_ones(1)])[place]
                place = place.masked_fill(barred, trie.n_items)
            place = place.sort(1).values
            place[:, 1:] = place[:, 1:].masked_fill(place[:, 1:] == place[:, :-1], trie.n_items)
            self.out = place.sort(1).values
        self.left = self.count(0, torch.zeros(n_users, 1, dtype=torch.int64, device=device))[:, 0]  # [B]
        if bool((self.left == 0).any()):
            user = int((self.left == 0).nonzero()[0])
            raise EnsuiteError(
                f"nothing can be recommended to history {user + 1}: every item that has codes is excluded or "
                "outside the candidates; exclude fewer, or allow more"
            )

    @property
    def everything(self) -> bool:
        """Whether nothing is held back from anybody."""
        return self.before is None and self.out is None

    def count(self, depth: int, node: Tensor) -> Tensor:
        """Return how many items under nodes [B, M] of ``depth`` may be returned to each user: [B, M]."""
        leaf = self.trie.depths[depth].first_leaf
        first, end = leaf[node], leaf[node + 1]
        count = end - first if self.before is None else self.before[end] - self.before[first]
        if self.out is not None:
            count = count - (torch.searchsorted(self.out, end) - torch.searchsorted(self.out, first))
        return count

    def may(self, place: Tensor) -> Tensor:
        """Return whether the items at ``place`` [B, M] of the order may be returned: [B, M] bool."""
        place = place.contiguous()
        may = torch.ones_like(place, dtype=torch.bool) if self.item is None else self.item[place]
        if self.out is not None:
            at = torch.searchsorted(self.out, place).clamp(max=self.out.shape[1] - 1)
            may = may & (self.out.gather(1, at) != place)
        return may
