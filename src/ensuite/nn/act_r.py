"""ACT-R's declarative memory (Anderson et al. 2004) over items: how active each is in a user's mind.

Three parts, as PISA reads them (RecSys 2024, section 4.1): the base level (how recently and how often),
spreading (what occurs together with the session's other items), partial matching (what is like them).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from ensuite.data.dataset import Events
from ensuite.data.sessions import begins

FLOOR = 1e-8
"""Activation of what has none, so that weights are never all zero."""


def decay(seconds: Tensor, exponent: float) -> Tensor:
    """Return what a listen ``seconds`` ago adds to the base level, ``seconds ** -exponent``: float32.

    Less than a second counts as one: the formula has no value at 0.
    """
    seconds = seconds.clamp(min=1).float()
    return seconds.rsqrt() if exponent == 0.5 else seconds**-exponent


def item_slots(items: Tensor) -> tuple[Tensor, Tensor]:
    """Number the different items of each row, so that tables are as wide as a history, not as the catalogue.

    Returns
    -------
    slots
        The slot of each event: [B, L] int64.
    owners
        The item of each slot, 0 where a row has fewer: [B, U]. Padding, where there is any, has slot 0.
    """
    ordered, order = items.sort(1)
    new = torch.zeros_like(ordered)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    number = new.cumsum(1)
    slots = torch.empty_like(number).scatter_(1, order, number)
    owners = items.new_zeros(len(items), int(number.max()) + 1 if items.numel() else 0)
    return slots, owners.scatter_(1, slots, items)


def base_level(slots: Tensor, n_slots: int, listens: Tensor) -> Tensor:
    """Sum what each listen adds to its item's base level, at each of R moments.

    Parameters
    ----------
    slots
        Item slot of each event: [B, L], see `item_slots`.
    listens
        What each event adds at each moment, 0 for what lies not before it or is padding: [B, R, L].

    Returns
    -------
    The activation ``a`` of each slot, not its logarithm: [B, R, U]. The softmax of ``ln a`` over all that a
    user ever heard is ``a`` over its sum, so the logarithm is never taken.
    """
    table = listens.new_zeros(*listens.shape[:2], n_slots)
    return table.scatter_add_(2, slots[:, None].expand_as(listens), listens)


class CoOccurrence(nn.Module):
    """How often items share a session: ``C = D^-1/2 F D^-1/2``, F the counts with a zero diagonal, D their
    sums.

    Sparse: the pairs (v, w), v < w, that occur, as sorted keys ``v * (V + 1) + w``.
    """

    keys: Tensor  # [P] int64, ascending
    values: Tensor  # [P] float32

    def __init__(self, n_items: int):
        super().__init__()
        self.n_items = n_items
        self.register_buffer("keys", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("values", torch.zeros(0))

    def count(self, events: Events, first: int) -> sp.csr_matrix:
        """Count the sessions of ``events`` (a training view), the ``first`` items of each: F, [V + 1, V + 1].
        What `spread` reads is kept."""
        assert events.session is not None
        rows = events.rows()
        user = np.repeat(np.arange(len(events.offsets)), events.lengths)
        number = np.cumsum(begins(user, events.session[rows])) - 1
        items = events.item_idx[rows].astype(np.int64)
        early = np.arange(len(rows)) - np.searchsorted(number, number) < first
        number, items = number[early], items[early]
        shape = (int(number.max(initial=-1)) + 1, self.n_items + 1)
        member = sp.csr_matrix((np.ones(len(items), np.float32), (number, items)), shape=shape)
        member.data[:] = 1.0  # an item that is there twice is there
        counts = (member.T @ member).tocsr()
        counts.setdiag(0)
        counts.eliminate_zeros()
        degree = np.asarray(counts.sum(1)).ravel()
        upper = sp.triu(counts, 1).tocsr()
        upper.sort_indices()
        pairs = upper.tocoo()
        self.keys = torch.from_numpy(pairs.row.astype(np.int64) * (self.n_items + 1) + pairs.col)
        norm = np.sqrt(degree[pairs.row] * degree[pairs.col])
        self.values = torch.from_numpy((pairs.data / norm).astype(np.float32))
        return counts

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return C[a, b] for item rows of any one shape; 0 for pairs that never shared a session."""
        if not len(self.keys):
            return torch.zeros(a.shape, device=a.device)
        key = torch.minimum(a, b) * (self.n_items + 1) + torch.maximum(a, b)
        at = torch.searchsorted(self.keys, key).clamp_(max=len(self.keys) - 1)
        return torch.where(self.keys[at] == key, self.values[at], 0.0)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        for name, buffer in self._buffers.items():  # how many pairs there were is not known before
            saved = state_dict.get(prefix + name)
            if buffer is not None and saved is not None:
                self._buffers[name] = torch.empty_like(saved, device=buffer.device)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[arg-type]

    def spread(self, sessions: Tensor) -> Tensor:
        """Return what each item of a session gets from the others, ``sum over w != v of C[v, w]``.

        ``sessions`` [..., N] holds item rows, 0 = padding; so does the result, float32, 0 at padding.
        """
        n = sessions.shape[-1]
        i, j = torch.triu_indices(n, n, 1, device=sessions.device)
        flat = sessions.reshape(-1, n)
        value = self(flat[:, i], flat[:, j])  # [M, N (N - 1) / 2]; no pair with padding is known
        out = value.new_zeros(flat.shape).index_add_(1, i, value).index_add_(1, j, value)
        return out.view(sessions.shape)


def partial_matching(vectors: Tensor) -> Tensor:
    """Return how like each vector is to its session's others, ``sum over w != v of <m_v, m_w>``: [..., N].

    ``vectors`` [..., N, D] are zero at padding.
    """
    alike = vectors @ vectors.mT  # [..., N, N]: cheaper than products of the size of the vectors
    return alike.sum(-1) - alike.diagonal(dim1=-2, dim2=-1)


def session_weights(parts: Tensor, gains: Tensor, flattening: float, mask: Tensor) -> Tensor:
    """Combine the parts of ACT-R to the weights of a session's items: at least 0, with the sum 1.

    Parameters
    ----------
    parts
        [P, ..., N]; below 0 counts as 0.
    gains
        Learned weight g of each part, [P]; below 0 counts as 0.
    flattening
        Power of the combined activation; 0 makes all weights equal.
    mask
        True at real items: [..., N]. A session without any has weights of 0.
    """
    combined = torch.tensordot(gains.relu(), parts.relu(), dims=1) + FLOOR  # [..., N]
    weights = (combined**flattening) * mask
    return weights / weights.sum(-1, keepdim=True).clamp(min=FLOOR**flattening)
