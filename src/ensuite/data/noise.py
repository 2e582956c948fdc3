"""Random items put into histories, to see how well a trained model bears them."""

from __future__ import annotations

import torch
from torch import Tensor

from ensuite.data.batches import History


def insert_noise(history: History, share: float, n_items: int) -> History:
    """Insert random items at random places: floor(share * length) into each history, each before a real event
    and none of the history's own items (a history that holds nearly all items may get one of its own).

    What is inserted is a function of the history alone: the same in every batch and each time. Times are left
    out of the result.

    >>> noisy = insert_noise(History(torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])), 0.5, n_items=100)
    >>> noisy.lengths.tolist()
    [6, 3]
    """
    items, mask = history.items, history.mask  # [B, L]
    if share == 0:
        return History(items)
    count = (history.lengths * share).long()  # [B]
    number = _numbers(history)  # [B, L]
    places = number.masked_fill(~mask, torch.iinfo(torch.int64).max).argsort(1).argsort(1) < count[:, None]
    to = history.positions + places.cumsum(1)  # [B, L] where each event goes; noise stands before it
    noise = number % n_items + 1
    for _ in range(20):  # step over the history's own items; the chance to meet one each time is small
        known = (noise[:, :, None] == items[:, None]).any(2)
        noise = torch.where(known, (noise + 7) % n_items + 1, noise)
    wide = items.new_zeros(len(items), items.shape[1] + int(count.max()))
    row, at = (places & mask).nonzero(as_tuple=True)
    wide[row, to[row, at] - 1] = noise[row, at]
    row, at = mask.nonzero(as_tuple=True)
    wide[row, to[row, at]] = items[row, at]
    return History(wide)


def _numbers(history: History) -> Tensor:
    """Return a number in [0, 2^63) for each event, drawn by hashing the whole history: [B, L] int64."""
    place = history.positions + 1
    whole = (history.items * place * place).sum(1, keepdim=True)  # padding, item 0, adds nothing
    x = _mix(whole) + place * 0x9E3779B97F4A7C1
    return _mix(_mix(x)) & torch.iinfo(torch.int64).max


def _mix(x: Tensor) -> Tensor:
    """Scramble the bits of int64 numbers (products wrap round)."""
    x = x * 0x2545F4914F6CDD1D
    return x ^ ((x >> 31) & 0xFFFFFFFF)
