"""Keys and values of a history in every layer, against which a new event, or many candidates, are read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ensuite.nn.hstu import HSTUBlock
from ensuite.nn.time_bias import time_buckets

KeysValues = list[tuple[Tensor, Tensor]]


class LayerCache:
    """What later positions see of a history, in every layer of a stack.

    With the request's time in the bias, a position's output is final only once the time of the event after it
    is known. So the cache holds *settled* positions; the newest event is read against them as often as
    requests come, and written once the next event has come. Queries and outputs of settled positions are read
    by nobody and are not kept.

    Parameters
    ----------
    blocks
        The stack of `HSTUBlock`.
    x
        Inputs of the first layer: [B, L, D]; with ``capacity`` >= L room is made for more positions.
    lengths
        How many positions of each row are settled: [B] int64; those after them are not read.
    times, query_times
        Times of the events and of the queries at them, [B, L] int64 each; None without a time bias.
    """

    def __init__(
        self,
        blocks: Sequence[HSTUBlock],
        x: Tensor,
        lengths: Tensor,
        times: Tensor | None = None,
        query_times: Tensor | None = None,
        capacity: int = 0,
    ):
        self.blocks = list(blocks)
        self.lengths = lengths.clone()
        room = max(0, capacity - x.shape[1])
        self.times = None if times is None else F.pad(times, (0, room))  # [B, C]
        step = torch.arange(x.shape[1], device=x.device)
        offsets = (step[:, None] - step)[None]  # [1, L, L]
        buckets = None if times is None or query_times is None else time_buckets(query_times, times)
        self.keys_values: KeysValues = []
        for block in self.blocks:
            p = block.project(x)
            attended = block.attention.dense(p.query, p.key, p.value, offsets >= 0, offsets, buckets)
            x = block.finish(x, p.gate, attended)
            more = (0, 0, 0, 0, 0, room)
            self.keys_values.append((F.pad(p.key, more), F.pad(p.value, more)))

    def read(
        self, x: Tensor, positions: Tensor, times: Tensor | None = None, query_times: Tensor | None = None
    ) -> tuple[Tensor, KeysValues]:
        """Run new positions through all layers; each sees the settled ones and itself, none sees another new
        one.

        Parameters
        ----------
        x
            [B, Q, D].
        positions
            Where each stands in its row, counted from 0: [B, Q] int64.
        times, query_times
            As for the class: [B, Q].

        Returns
        -------
        output, keys_values
            [B, Q, D], and what `write` needs.
        """
        batch, count = positions.shape
        capacity = self.keys_values[0][0].shape[1]
        slots = torch.arange(capacity, device=x.device)
        settled = (slots < self.lengths[:, None])[:, None].expand(batch, count, capacity)
        itself = torch.eye(count, dtype=torch.bool, device=x.device).expand(batch, count, count)
        visible = torch.cat([settled, itself], 2)  # [B, Q, C + Q]
        offsets = F.pad(positions[:, :, None] - slots, (0, count))  # [B, Q, C + Q], 0 to itself
        buckets = None
        if self.times is not None and times is not None and query_times is not None:
            buckets = time_buckets(query_times, torch.cat([self.times, times], 1))
        own: KeysValues = []
        for block, (keys, values) in zip(self.blocks, self.keys_values):
            p = block.project(x)
            keys, values = torch.cat([keys, p.key], 1), torch.cat([values, p.value], 1)
            x = block.finish(
                x, p.gate, block.attention.dense(p.query, keys, values, visible, offsets, buckets)
            )
            own.append((p.key, p.value))
        return x, own

    def write(self, keys_values: KeysValues, times: Tensor | None = None) -> None:
        """Settle one position of each row, as `read` gave it; there must be room."""
        rows = torch.arange(len(self.lengths), device=self.lengths.device)
        for (keys, values), (key, value) in zip(self.keys_values, keys_values):
            keys[rows, self.lengths], values[rows, self.lengths] = key[:, 0], value[:, 0]
        if self.times is not None and times is not None:
            self.times[rows, self.lengths] = times[:, 0]
        self.lengths += 1
