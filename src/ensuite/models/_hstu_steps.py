"""HSTU reads on after a history, one input vector at a time, as ReaRec needs it (protocol `Stepwise`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ensuite.data.batches import History
from ensuite.nn.embeddings import similar
from ensuite.nn.time_bias import time_buckets

if TYPE_CHECKING:
    from ensuite.models.hstu import HSTU

NEVER = 1 << 40  # a padded position: after everything that reads


class Reading(NamedTuple):
    """What the next token sees: C columns, padded ones among them."""

    keys_values: list[tuple[Tensor, Tensor]]  # of each layer: [B, C, H, dqk], [B, C, H, dv]
    positions: Tensor  # [B, C] int64
    next: Tensor  # [B, 1] int64, the next token's position
    times: Tensor | None  # [B, C] int64, None without the time bias
    now: Tensor | None  # [B, 1] int64, the time of every token


def begin(model: HSTU, history: History) -> tuple[Tensor, Reading]:
    """Return the users' vectors, [B, D], and a state for `step`.

    A token has no time of its own: as query and as key it is given the time of the request
    (``time_mode: last_event``: that of the last event). Offsets past the table share its last bias, so
    the window may be full.
    """
    x, (times, queries), steps = model.embed(history), model.query_times(history), history.positions
    newest = history.lengths[:, None] - 1  # [B, 1]
    now = None if queries is None else queries.gather(1, newest)
    offsets = steps[:, :, None] - steps[:, None]  # [1, L, L]
    buckets = None if times is None or queries is None else time_buckets(queries, times)  # [B, L, L]
    keys_values = []
    for block in model.stack[:-1]:
        p = block.project(x)
        keys_values.append((p.key, p.value))
        x = block.finish(
            x, p.gate, block.attention.dense(p.query, p.key, p.value, offsets >= 0, offsets, buckets)
        )
    block, rows = model.stack[-1], torch.arange(x.shape[0], device=x.device)[:, None]
    p = block.project(x)
    offsets = (newest - steps)[:, None]  # [B, 1, L]
    buckets = None if times is None or now is None else time_buckets(now, times)
    attended = block.attention.dense(p.query[rows, newest], p.key, p.value, offsets >= 0, offsets, buckets)
    output = block.finish(x[rows, newest], p.gate[rows, newest], attended)[:, 0]
    state = Reading(
        keys_values=[*keys_values, (p.key, p.value)],
        positions=torch.where(history.mask, steps, NEVER),
        next=newest + 1,
        times=times,
        now=now,
    )
    return similar(output, model.config.similarity), state


def step(model: HSTU, token: Tensor, state: Reading) -> tuple[Tensor, Reading]:
    """Read ``token`` [B, D] as the next position: the output there, [B, D], and the state after it."""
    x = token[:, None]
    positions = torch.cat([state.positions, state.next], 1)  # [B, C + 1]
    offsets = (state.next - positions)[:, None]  # [B, 1, C + 1]
    times = buckets = None
    if state.times is not None and state.now is not None:
        times = torch.cat([state.times, state.now], 1)
        buckets = time_buckets(state.now, times)
    grown = []
    for block, (keys, values) in zip(model.stack, state.keys_values):
        p = block.project(x)
        keys, values = torch.cat([keys, p.key], 1), torch.cat([values, p.value], 1)
        x = block.finish(
            x, p.gate, block.attention.dense(p.query, keys, values, offsets >= 0, offsets, buckets)
        )
        grown.append((keys, values))
    return similar(x[:, 0], model.config.similarity), Reading(
        grown, positions, state.next + 1, times, state.now
    )
