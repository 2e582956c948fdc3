"""One-pass search: a model that says all codes of the next item at once, so that an item's score is a sum of
values looked up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def sum_of_codes(log_probs: Sequence[Tensor], codes: Tensor) -> Callable[[int, int], Tensor]:
    """Return the function that scores blocks of items exactly: (first, last) to [B, last - first].

    No search is needed, and none is better: the codes of an item do not depend on one another here, so every
    item is scored, not only those that a beam reaches.

    Parameters
    ----------
    log_probs
        Of each level, [B, K_l].
    codes
        [V + 1, L]; items without codes (-1) score -inf, as padding does.

    Examples
    --------
    >>> codes = torch.tensor([[-1, -1], [0, 1], [1, 1]])
    >>> sum_of_codes([torch.tensor([[-1.0, -2.0]]), torch.tensor([[-5.0, -3.0]])], codes)(1, 3)
    tensor([[-4., -5.]])
    """

    def scores(first: int, last: int) -> Tensor:
        block = codes[first:last].long()  # [n, L]
        total = torch.stack([p[:, block[:, level].clamp(min=0)] for level, p in enumerate(log_probs)]).sum(0)
        return total.masked_fill(block[:, 0] < 0, -torch.inf)

    return scores
