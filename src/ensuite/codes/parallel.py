"""One-pass search: a model that says all codes of the next item at once, so that an item's score is a sum of
values looked up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ensuite.codes.trie import CodeTrie


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


def narrow_search(
    trie: CodeTrie,
    log_probs: Sequence[Tensor],
    first: int,
    branches: int,
    width: int,
    *,
    constrained: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the tuples that RecGPT's search reaches, best first: an approximation of `sum_of_codes`.

    The ``first`` best codes of the first level are kept; of each beam the ``branches`` best codes of the next
    level are looked at, and the ``width`` best beams are kept.

    Parameters
    ----------
    log_probs
        Of each level, [B, K_l].
    constrained
        Whether only codes that lead to an item are written; else what is no item in the end is dropped.

    Returns
    -------
    leaf, score
        [B, W] each: leaves of the trie, -1 with a score of -inf where there are fewer.
    """
    node = torch.zeros(len(log_probs[0]), 1, dtype=torch.int64, device=log_probs[0].device)  # [B, W]
    score = torch.zeros(node.shape, device=node.device)
    for depth, level in enumerate(log_probs):
        if constrained:
            child, codes, real = trie.children(depth, node)  # [B, W, C] each
            gained = level[:, None].expand(-1, node.shape[1], -1).gather(2, codes)
            gained = gained.masked_fill(~real, -torch.inf)
        else:
            best = level.topk(min(branches if depth else first, level.shape[1]), dim=1)
            gained, codes = (x[:, None].expand(-1, node.shape[1], -1) for x in best)
            child = trie.child(depth, node[..., None].expand_as(codes), codes)
        looked_at = min(branches if depth else first, gained.shape[2])
        gained, at = gained.topk(looked_at, dim=2)  # of each beam
        total = (score[..., None] + gained).flatten(1)
        score, kept = total.topk(min(width if depth else first, total.shape[1]), dim=1)
        node = child.gather(2, at).flatten(1).gather(1, kept)
    if not constrained:
        score = score.masked_fill(node < 0, -torch.inf)
    return node.masked_fill(score.isneginf(), -1), score
