"""Training samples against a plain construction, one user at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensuite.data.batches import length_buckets
from ensuite.data.dataset import Events
from ensuite.data.samples import Samples, SamplesConfig
from ensuite.errors import EnsuiteError

LOGS = st.lists(st.lists(st.integers(1, 30), max_size=12), min_size=1, max_size=8)


def make_events(sequences: list[list[int]], gap: int = 2) -> Events:
    """Put ``gap`` held-out events, which no sample may show, after each user's training events."""
    rows, offsets, ends = [], [], []
    for s in sequences:
        offsets.append(len(rows))
        rows += s
        ends.append(len(rows))
        rows += [99] * gap
    item_idx = np.array(rows, np.int32)
    return Events(np.array(offsets), np.array(ends), item_idx, np.arange(len(rows)) * 7, 1.0, 99)


def read_all(samples: Samples, epoch: int = 0) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    found = []
    for step in range(len(samples)):
        batch = samples.batch(epoch, step)
        for user, items, targets in zip(
            batch.user.tolist(), batch.history.items.numpy(), batch.targets.numpy()
        ):
            n = int((items > 0).sum())
            assert (items[n:] == 0).all(), "padding is on the right"
            assert (targets[n:] == 0).all()
            found.append((user, tuple(items[:n].tolist()), tuple(targets[:n].tolist())))
    return sorted(found)


@given(LOGS, st.integers(1, 5), st.integers(1, 4))
def test_every_position_is_the_last_window_shifted_by_one(
    sequences: list[list[int]], length: int, batch: int
) -> None:
    wanted = sorted(
        (u, tuple(s[-length - 1 : -1]), tuple(s[-length:] if len(s) > length else s[1:]))
        for u, s in enumerate(sequences) if len(s) > 1
    )  # fmt: skip
    events = make_events(sequences)
    if not wanted:
        with pytest.raises(EnsuiteError, match="no training sample"):
            Samples(events, SamplesConfig(), max_length=length, batch_size=batch, seed=1)
        return
    samples = Samples(events, SamplesConfig(), max_length=length, batch_size=batch, seed=1)
    assert read_all(samples) == wanted
    assert len(samples) == len(samples.order(3))


@given(LOGS.filter(lambda log: any(len(s) > 1 for s in log)), st.integers(1, 5))
def test_prefixes_ask_for_every_event_but_the_first_once(sequences: list[list[int]], length: int) -> None:
    samples = Samples(
        make_events(sequences), SamplesConfig(kind="prefixes"), max_length=length, batch_size=3, seed=1
    )
    wanted = sorted(
        (u, tuple(s[max(0, t - length) : t]), (0,) * (min(t, length) - 1) + (s[t],))
        for u, s in enumerate(sequences) for t in range(1, len(s))
    )  # fmt: skip
    assert read_all(samples) == wanted


def test_prefixes_a_stride_apart_begin_with_the_longest() -> None:
    events = make_events([[1, 2, 3, 4, 5, 6, 7], [8, 9]])
    config = SamplesConfig(kind="prefixes", stride=4)
    samples = Samples(events, config, max_length=3, batch_size=2, seed=1)
    assert read_all(samples) == [(0, (1, 2), (0, 3)), (0, (4, 5, 6), (0, 0, 7)), (1, (8,), (9,))]


@given(LOGS.filter(lambda log: any(len(s) > 1 for s in log)), st.integers(1, 5), st.integers(0, 3))
def test_sliding_windows_cover_every_target(sequences: list[list[int]], length: int, stride: int) -> None:
    config = SamplesConfig(kind="sliding", stride=min(stride, length))
    found = read_all(Samples(make_events(sequences), config, max_length=length, batch_size=3, seed=1))
    for user, items, _ in found:
        assert len(items) == min(length, len(sequences[user]) - 1)
    for user, s in enumerate(sequences):
        asked = sum(len(targets) for u, _, targets in found if u == user)
        assert asked >= len(s) - 1 if len(s) > 1 else asked == 0


def test_last_position_asks_once() -> None:
    samples = Samples(
        make_events([[1, 2, 3, 4], [5, 6]]),
        SamplesConfig(kind="last-position"),
        max_length=2,
        batch_size=2,
        seed=1,
    )
    assert read_all(samples) == [(0, (2, 3), (0, 4)), (1, (5,), (6,))]


@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=6),
    st.floats(0, 1),
    st.integers(0, 3),
)
def test_cloze_masks_at_least_one_and_at_most_the_limit(
    sequences: list[list[int]], rate: float, limit: int
) -> None:
    config = SamplesConfig(kind="cloze", mask_probability=rate, max_masked=limit, last_only=0.3)
    events = make_events(sequences)
    for user, items, targets in read_all(Samples(events, config, max_length=6, batch_size=4, seed=5)):
        window, masked = sequences[user][-6:], [i for i, t in enumerate(targets) if t]
        assert 1 <= len(masked) <= max(1, min(limit or 99, round(len(window) * rate + 0.5)))
        assert [t or i for i, t in zip(items, targets)] == window
        assert all(items[i] == events.n_items + 1 for i in masked)


def test_cloze_draws_new_masks_each_epoch_and_the_same_ones_again() -> None:
    config = SamplesConfig(kind="cloze", mask_probability=0.3, last_only=0.0)
    samples = Samples(make_events([list(range(1, 31))] * 8), config, max_length=30, batch_size=8, seed=5)
    first, second, again = (samples.batch(epoch, 0).targets for epoch in (0, 1, 0))
    assert (first == again).all()
    assert (first != second).any()
    assert ((first > 0).sum(1) == 9).all()


def test_requests_are_the_next_events_own_time() -> None:
    batch = Samples(make_events([[1, 2, 3]]), SamplesConfig(), max_length=5, batch_size=1, seed=1).batch(0, 0)
    assert batch.history.times.tolist() == [[0, 7]]  # type: ignore[union-attr]
    assert batch.history.request_times.tolist() == [[7, 14]]  # type: ignore[union-attr]


def test_processes_share_a_batch_without_overlap() -> None:
    samples = Samples(
        make_events([[u + 1, 2, 3] for u in range(7)]), SamplesConfig(), max_length=4, batch_size=7, seed=1
    )
    users = [samples.batch(0, 0, (rank, 2)).user.tolist() for rank in range(2)]
    assert sorted(users[0] + users[1]) == list(range(7))
    assert sorted(map(len, users)) == [3, 4]


def test_buckets_hold_everything_once_and_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 1000)
    batches = length_buckets(lengths, 32, np.random.default_rng(1))
    assert sorted(np.concatenate(batches)) == list(range(1000))
    padded = sum(len(b) * lengths[b].max() for b in batches)
    plain = sum(
        len(b) * lengths[b].max() for b in length_buckets(lengths, 32, np.random.default_rng(1), pool=1)
    )
    assert padded < 1.2 * lengths.sum() < 1.6 * lengths.sum() < plain
