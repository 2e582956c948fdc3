"""Losses over one positive and N drawn negatives: sampled softmax, BCE, gBCE, BPR.

Each is a function of the scores alone, ``positive [T]`` and ``negative [T, N]``, where a negative that happens to equal the
positive has score -inf: it then adds nothing to any of the losses, and its gradient is zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ensuite.objectives.base import ItemVectors
from ensuite.objectives.negatives import NegativeSampler

Head = Callable[[Tensor, Tensor], Tensor]
"""``head(positive [T], negative [T, N])`` gives the loss of each position: [T]."""


def softmax_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Return ``-log(exp(s+) / (exp(s+) + sum exp(s-)))``: [T]."""
    return torch.cat([positive[:, None], negative], 1).logsumexp(1) - positive


def bce_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Return ``-log sigmoid(s+) - sum log(1 - sigmoid(s-))``, the terms added, not averaged (SASRec, equation 6): [T]."""
    return F.softplus(-positive) + F.softplus(negative).sum(1)


def bpr_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Return the mean over the negatives of ``-log sigmoid(s+ - s-)``: [T]."""
    return F.softplus(negative - positive[:, None]).mean(1)


def gbce_loss(n_items: int, negatives: int, calibration: float) -> Head:
    """Return gSASRec's loss: ``-(beta log sigmoid(s+) + sum log(1 - sigmoid(s-))) / (k + 1)``."""
    rate = min(1.0, negatives / (n_items - 1))
    beta = 1.0 - calibration * (1.0 - rate)

    def head(positive: Tensor, negative: Tensor) -> Tensor:
        return (beta * F.softplus(-positive) + F.softplus(negative).sum(1)) / (negatives + 1)

    return head


class Sampled(nn.Module):
    """A loss over drawn negatives, as an `Objective`."""

    def __init__(self, head: Head, sampler: NegativeSampler, temperature: float = 1.0, logq: bool = False):
        super().__init__()
        self.head = head
        self.sampler = sampler
        self.temperature = temperature
        self.logq = logq

    def forward(self, output: Tensor, targets: Tensor, vectors: ItemVectors, row: Tensor) -> Tensor:
        if len(output) == 0:
            return output.sum() * 0.0
        negatives, group = self.sampler(targets, row)
        output = output / self.temperature
        positive = (output * vectors(targets)).sum(1)
        if negatives.ndim == 1:
            negative = output @ vectors(negatives).T
            negatives = negatives[None].expand_as(negative)
        else:
            if group is not None:
                negatives = negatives[group]
            negative = torch.einsum("td,tnd->tn", output, vectors(negatives))
        if self.logq:
            negative = negative - self.sampler.log_expected(negatives)
        negative = negative.masked_fill(negatives == targets[:, None], -torch.inf)
        return self.head(positive.float(), negative.float()).mean()
