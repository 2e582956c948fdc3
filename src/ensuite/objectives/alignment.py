"""Terms that draw two views of the same things together, where a thing may have several partners, or every
other thing to some degree."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_info_nce(
    one: Tensor, two: Tensor, weights: Tensor, temperature: float, debias: float = 0.0
) -> Tensor:
    """Compute the mean over anchors and both directions of

        -log( sum_j w_ij e_ij / (sum_j e_ij - debias * #{j: w_ij = 0}) ),  e_ij = exp(cos(i, j) / temperature)

    a scalar: anchors are the rows of one view, j those of the other.

    Parameters
    ----------
    one, two
        The views; row i of one belongs to row i of two: [N, D] each.
    weights
        How far j is a positive of i, 0 to 1, 1 on the diagonal: [N, N]. The same in both directions.
    temperature
        At least 0.05, so that nothing underflows.
    debias
        Taken off the denominator for each row that is no positive (as if it could be one by chance). What it
        leaves of their sum is at least 0: from a temperature of about -1 / log(debias) down it could be less.

    Notes
    -----
    With weights of the identity and no debias it is the symmetric InfoNCE of two views.

    >>> one, two = torch.eye(2), torch.eye(2)
    >>> weighted_info_nce(one, two, torch.eye(2), 1.0)  # log(1 + 1 / e)
    tensor(0.3133)
    >>> weighted_info_nce(one, two, torch.ones(2, 2), 1.0)
    tensor(0.)
    """
    with torch.autocast(one.device.type, enabled=False):
        wide = torch.promote_types(torch.promote_types(one.dtype, two.dtype), torch.float32)
        cosines = F.normalize(one.to(wide), dim=1) @ F.normalize(two.to(wide), dim=1).T  # [N, N]
        e = ((cosines - 1) / temperature).exp()  # of the scale exp(-1 / temperature), which cancels out
        positive = weights > 0
        chance = debias * math.exp(-1 / temperature) * (~positive).sum(1)  # [N]
        losses = []
        for table in (e, e.T):
            near = (table * positive).sum(1)
            far = (table.sum(1) - near - chance).clamp(min=0)
            losses.append((near + far).log() - (table * weights).sum(1).log())
        return torch.stack(losses).mean()


def soft_info_nce(one: Tensor, two: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute the symmetric cross-entropy between the products of two views, and how alike the rows of each
    view are among themselves: a scalar.

        logits = X Y^T / temperature,  targets = softmax((X X^T + Y Y^T) / 2 * temperature)

    The vectors [B, D] each are read as they are, and the gradient reaches the targets too. Both directions
    have the same targets, since what they are made of is symmetric.

    >>> soft_info_nce(torch.zeros(2, 3), torch.zeros(2, 3)).exp()  # of two that nothing tells apart
    tensor(2.)
    """
    with torch.autocast(one.device.type, enabled=False):
        wide = torch.promote_types(one.dtype, torch.float32)
        x, y = one.to(wide), two.to(wide)
        logits = x @ y.T / temperature  # [B, B]
        targets = ((x @ x.T + y @ y.T) / 2 * temperature).softmax(1)
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
