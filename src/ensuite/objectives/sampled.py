"""Losses over one positive and N drawn negatives: sampled softmax, BCE, gBCE, BPR.

Each is a function of the scores alone, ``positive [T]`` and ``negative [T, N]``. A negative that happens to
equal the positive has score -inf: it adds nothing to any of the losses, and its gradient is zero.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ensuite.objectives.base import ItemVectors
from ensuite.objectives.fused import Drawn, Head, Way, fused_loss
from ensuite.objectives.negatives import NegativeSampler

DENSE_RATIO = (
    28  # scores of the whole catalogue cost less than N gathered vectors from V / N below this (measured)
)
RUN_COST = 1400  # a product per sequence costs as much as gathering so many vectors (measured)


def softmax_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Return ``-log(exp(s+) / (exp(s+) + sum exp(s-)))``: [T]."""
    return torch.cat([positive[:, None], negative], 1).logsumexp(1) - positive


def bce_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Return ``-log sigmoid(s+) - sum log(1 - sigmoid(s-))``, added, not averaged (SASRec, 3.5): [T]."""
    return F.softplus(-positive) + F.softplus(negative).sum(1)


def bpr_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Return the mean over the negatives of ``-log sigmoid(s+ - s-)``: [T]."""
    return F.softplus(negative - positive[:, None]).mean(1)


def gbce_loss(n_items: int, negatives: int, calibration: float) -> Head:
    """Return gSASRec's ``-(beta log sigmoid(s+) + sum log(1 - sigmoid(s-))) / (k + 1)`` as a head.

    With a sampling rate ``a = k / (V - 1)``, at most 1, ``beta = a (t (1 - 1/a) + 1/a) = 1 - t (1 - a)``.
    Calibration t = 0 gives beta = 1, that is `bce_loss` / (k + 1); t = 1 gives beta = a. Since
    ``log(sigmoid(s)^beta) = beta log sigmoid(s)``, a softplus gives it at any score; the released code's
    detour by a changed logit, in float64 with clamps, is not needed.
    """
    rate = min(1.0, negatives / (n_items - 1))
    beta = 1.0 - calibration * (1.0 - rate)

    def head(positive: Tensor, negative: Tensor) -> Tensor:
        return (beta * F.softplus(-positive) + F.softplus(negative).sum(1)) / (negatives + 1)

    return head


class Sampled(nn.Module):
    """A loss over drawn negatives, as an `Objective`.

    Parameters
    ----------
    head
        The loss of each position from its scores.
    sampler
        Draws the negatives.
    temperature
        Scores are divided by it; above 0.
    logq
        Subtract from a negative's score the log of how often its item is expected among the N draws.

    Notes
    -----
    **Sampled softmax with logq.** The softmax needs ``Z = exp(s+) + sum over the other items of exp(s)``.
    With N draws from a proposal q, each negative d other than the positive weighted by ``1 / (N q(d))``, the
    drawn sum is an unbiased estimate of the second part, whatever q; without the weights popular items would
    be pushed down as often as they are drawn. The usual logQ correction subtracts ``log q`` from the positive
    too, although the positive is not drawn but always there: "Correcting the LogQ Correction" (Khrylchenko et
    al., RecSys 2025, arXiv 2507.09331) shows that this is the bias that is left. Their gradient is ``(1 -
    P(+))`` times that of ``-s+ + log sum over negatives of exp(s - log q)``, where P(+) is the positive's
    probability under the model: a pair already learnt counts for little. Here the positive stands in the
    denominator, uncorrected: ``-s+ + log(exp(s+) + sum exp(s - log(N q)))``. Its gradient is the same one,
    with P(+) estimated from the same draws, so nothing has to be detached, and the value tends to the full
    cross-entropy as N grows.

    **Without logq** (plain form, as HSTU's released code): the same with the weights left out. The best
    scores are then ``log(p(item | history) / q(item))`` up to a constant: under uniform draws they rank as
    they should, under popularity or in-batch draws they are tilted towards rare items.
    """

    def __init__(self, head: Head, sampler: NegativeSampler, temperature: float = 1.0, logq: bool = False):
        super().__init__()
        self.head = head
        self.sampler = sampler
        self.temperature = temperature
        self.logq = logq

    def forward(self, output: Tensor, targets: Tensor, vectors: ItemVectors, row: Tensor) -> Tensor:
        if len(output) == 0:
            return output.sum() * 0.0
        drawn = Drawn(*self.sampler(targets, row))
        if self.temperature != 1.0:
            output = output / self.temperature
        n_items = self.sampler.n_items
        bias = None
        if self.logq:
            bias = -self.sampler.log_expected(torch.arange(n_items + 1, device=output.device))
        if n_items < 2 * (len(targets) + drawn.items.numel()):
            return fused_loss(
                output, vectors(None), targets, drawn, self.head, choose_way(drawn, targets, n_items), bias
            )
        # Few rows of a large table: a table of those alone.
        table = vectors(torch.cat([targets, drawn.items.reshape(-1)]))  # [T + draws, D]
        way = choose_way(drawn, targets, None)
        return fused_loss(output, table, targets, drawn, self.head, way, bias, compact=True)


def choose_way(drawn: Drawn, targets: Tensor, n_items: int | None) -> Way:
    """Choose the way of least measured cost; ``n_items`` None says that no table of all items is there."""
    if drawn.items.ndim == 1:
        return "shared"
    if drawn.group is not None and drawn.count * len(targets) > RUN_COST * len(drawn.items):
        return "shared"
    return cast(Way, "dense" if n_items is not None and DENSE_RATIO * drawn.count >= n_items else "gather")
