"""Stochastic length (HSTU, section 3.3): long histories are cut short at random, in training only."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Selection = Literal["recent", "random", "recency"]


def stochastic_lengths(lengths: Tensor, longest: int, alpha: float) -> Tensor:
    """Draw how many events of each sequence are kept.

    A sequence of n <= ``longest`` ** (alpha / 2) events is kept whole; a longer one whole with probability
    ``longest`` ** alpha / n ** 2, and is else cut to ``longest`` ** (alpha / 2) events, rounded down.

    Parameters
    ----------
    lengths
        n of each sequence: [B] int64.
    longest, alpha
        Nc of the paper, and the exponent in (1, 2].

    Returns
    -------
    Tensor
        [B] int64.
    """
    short = int(longest ** (alpha / 2) + 1e-9)
    whole = torch.rand(len(lengths), device=lengths.device) < longest**alpha / lengths.double() ** 2
    return torch.where(whole | (lengths <= short), lengths, short)


def choose_events(
    lengths: Tensor, kept: Tensor, selection: Selection, width: int, times: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Choose ``kept`` of the first ``lengths`` positions of each row, in their order.

    Parameters
    ----------
    lengths, kept [B] int64 each, kept <= lengths. selection recent: the last ones; random: all subsets alike;
    recency: weighted by 1 - f / sum(f), f = age of the event. width Number L of positions in a row. times [B,
    L] int64, for recency.

    Returns
    -------
    index, mask Positions [B, W] int64, rising along a row, and which of them are real [B, W] bool; W is the
    largest ``kept``.
    """
    step = torch.arange(width, device=lengths.device)
    real = step < lengths[:, None]  # [B, L]
    if selection == "recent":
        key = step.expand(len(lengths), -1).double()
    else:
        noise = torch.rand(len(lengths), width, dtype=torch.float64, device=lengths.device)
        key = -(
            -noise.clamp(1e-12, 1 - 1e-12).log()
        ).log()  # Gumbel: the largest of key + ln(weight) are a draw without replacement
        if selection == "recency":
            if times is None:
                raise ValueError("selection by recency needs times")
            newest = times.gather(1, (lengths - 1).clamp(min=0)[:, None])
            age = torch.where(real, newest - times, 0).double()
            key = key + (1 - age / age.sum(1, keepdim=True).clamp(min=1)).clamp(min=1e-9).log()
    key = key.masked_fill(~real, -torch.inf)
    rank = key.argsort(1, descending=True).argsort(1)
    chosen = rank < kept[:, None]  # [B, L]
    first = (~chosen).long().argsort(dim=1, stable=True)  # chosen positions first, in order
    longest = int(kept.max())
    return first[:, :longest], torch.arange(longest, device=kept.device) < kept[:, None]
