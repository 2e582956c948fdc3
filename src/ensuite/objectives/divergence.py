"""How far apart the rankings of several user vectors are: Kullback-Leibler divergence between their
softmaxes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Pairs = Literal["ordered", "upper"]
HELD = 1 << 24  # scores computed at once: 64 MiB of float32


def step_divergence(
    states: Tensor, vectors: Tensor, temperature: float = 1.0, pairs: Pairs = "ordered"
) -> Tensor:
    """Return the mean over users of the divergence between the softmaxes p_0 .. p_S-1 of their S vectors.

    Parameters
    ----------
    states
        S vectors of each user: [B, S, D], S at least 2.
    vectors
        Items that the softmaxes are over: [N, D]. In memory are `HELD` scores at a time; beyond that the
        scores are computed once more in the backward pass.
    temperature
        Scores are divided by it; above 0.
    pairs
        "ordered": the mean of KL(p_j || p_i) over all i != j, where p_i gets no gradient (ReaRec's released
        code). "upper": the sum over i < j, where both do (ReaRec's paper, which speaks of no detaching).

    >>> step_divergence(torch.tensor([[[0.0], [0.0]]]), torch.tensor([[0.0], [1.0]]))
    tensor(0.)
    """

    def some(part: Tensor, vectors: Tensor) -> Tensor:
        scores = part.flatten(0, 1) @ vectors.T  # [R * S, N]
        wide = torch.promote_types(scores.dtype, torch.float32)
        log_p = (scores.to(wide) / temperature).log_softmax(-1).unflatten(0, part.shape[:2])  # [R, S, N]
        return _sum_of_pairs(log_p, pairs)

    rows = max(1, HELD // (states.shape[1] * len(vectors)))
    if rows >= len(states):
        return some(states, vectors) / len(states)
    parts = [checkpoint(some, part, vectors, use_reentrant=False) for part in states.split(rows)]
    return torch.stack(parts).sum() / len(states)


def _sum_of_pairs(log_p: Tensor, pairs: Pairs) -> Tensor:
    """Sum over users; with a_j the sum over i of log p_j - log p_i, the pairs of p_j sum to p_j . a_j."""
    count = log_p.shape[1]
    if pairs == "ordered":
        # In p_j . a_j the gradient through log p_j itself is zero, so that all of a_j can be detached.
        apart = (count * log_p - log_p.sum(1, keepdim=True)).detach()
        return (log_p.exp() * apart).sum() / (count * (count - 1))
    before = log_p.cumsum(1) - log_p  # of the steps i < j
    number = torch.arange(count, device=log_p.device)[:, None]
    return (log_p.exp() * (number * log_p - before)).sum()
