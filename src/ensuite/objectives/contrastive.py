"""Contrastive terms between two views of a batch, with false negatives masked out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(one: Tensor, two: Tensor, labels: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Compute the symmetric InfoNCE loss between B pairs: a scalar, the mean over 2B rows.

    Each vector has its partner as the positive and the other 2B - 2 vectors of the batch as negatives, by
    their dot products. Equal ``labels`` mark false negatives, which are left out; where nothing but the
    positive remains, a row's loss is 0.

    Parameters
    ----------
    one, two
        Vectors of the two views; row b of one belongs to row b of two: [B, D] each.
    labels
        What the pairs are of (target item, cluster): [B] int64; None masks nothing but a vector itself.
    temperature
        Dot products are divided by it; above 0.

    Notes
    -----
    Computed in float32 at least, under autocast too: dot products of unnormalised vectors are large.

    >>> one, two = torch.eye(2), torch.eye(2)
    >>> info_nce(one, two)  # the positive scores 1, the two negatives 0
    tensor(0.5514)
    >>> info_nce(one, two, torch.tensor([5, 5]))
    tensor(0.)
    """
    n = len(one)
    with torch.autocast(one.device.type, enabled=False):
        both = torch.cat([one, two])  # [2B, D]
        both = both.to(torch.promote_types(both.dtype, torch.float32))
        logits = (both / temperature) @ both.T  # [2B, 2B]
        if labels is None:
            ignored = torch.eye(2 * n, dtype=torch.bool, device=one.device)
        else:
            label = labels.repeat(2)
            ignored = label[:, None] == label  # [2B, 2B], a vector itself among them
        positive = torch.arange(2 * n, device=one.device).roll(n)  # row i of one view, row i of the other
        ignored[torch.arange(2 * n, device=one.device), positive] = False
        return F.cross_entropy(logits.masked_fill(ignored, float("-inf")), positive)
