"""Pairs of samples with one target, against a plain search through all samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ensuite.config import build_config
from ensuite.data.dataset import Events
from ensuite.data.pairs import hash_ranges
from ensuite.data.samples import Samples, SamplesConfig
from ensuite.errors import EnsuiteError

LOGS = st.lists(st.lists(st.integers(1, 4), max_size=7), min_size=1, max_size=6).filter(
    lambda log: any(len(s) > 1 for s in log)
)  # few items: many pairs, many equal histories


def make_samples(sequences: list[list[int]], length: int = 4, **config: object) -> Samples:
    """Samples of a log in which two held-out events, item 99, follow each user's training events."""
    rows, offsets, ends = [], [], []
    for s in sequences:
        offsets.append(len(rows))
        rows += s
        ends.append(len(rows))
        rows += [99, 99]
    events = Events(np.array(offsets), np.array(ends), np.array(rows, np.int32), None, 1.0, 99)
    settings = SamplesConfig(**({"kind": "prefixes", "pair": "random"} | config))  # type: ignore[arg-type]
    return Samples(events, settings, max_length=length, batch_size=5, seed=3)


def rows_of(samples: Samples) -> list[tuple[tuple[int, ...], int]]:
    """The history and target of every sample."""
    items = samples.events.item_idx
    return [(tuple(items[a : b - 1].tolist()), int(items[b - 1])) for a, b in zip(samples.start, samples.end)]


def candidates(samples: Samples) -> list[list[int]]:
    """For each sample the numbers of all others with its target and another history, in the log's order."""
    rows = rows_of(samples)
    by_row = np.argsort(samples.end).tolist()
    return [[j for j in by_row if rows[j][1] == target and rows[j][0] != history] for history, target in rows]


@given(LOGS, st.integers(1, 5))
def test_random_partners_have_the_target_and_another_history(sequences: list[list[int]], length: int) -> None:
    samples = make_samples(sequences, length)
    pairs = samples.same_target
    assert pairs is not None
    rng, wanted = np.random.default_rng(0), candidates(samples)
    for _ in range(8):
        for i, partner in enumerate(pairs.random(np.arange(samples.n_samples), rng).tolist()):
            assert partner in (wanted[i] or [i])


def test_each_possible_partner_is_drawn_alike() -> None:
    samples = make_samples([[1, 9], [2, 9], [2, 9], [3, 9], [3, 3, 9], [7, 8]])
    wanted, pairs = candidates(samples), samples.same_target
    assert pairs is not None
    rng = np.random.default_rng(0)
    for i, others in enumerate(wanted):
        drawn = pairs.random(np.full(8000, i), rng)
        counts = np.bincount(drawn, minlength=samples.n_samples)
        assert set(np.flatnonzero(counts)) == set(others or [i])
        assert counts[counts > 0] == pytest.approx(8000 / max(1, len(others)), rel=0.1)


@given(LOGS, st.integers(1, 5))
def test_the_released_partner_is_the_last_other_one(sequences: list[list[int]], length: int) -> None:
    samples = make_samples(sequences, length, pair="last")
    pairs = samples.same_target
    assert pairs is not None
    found = pairs.latest(np.arange(samples.n_samples)).tolist()
    assert found == [others[-1] if others else i for i, others in enumerate(candidates(samples))]


@given(LOGS)
def test_equal_histories_and_no_others_have_one_hash(sequences: list[list[int]]) -> None:
    samples = make_samples(sequences)
    hashes = hash_ranges(samples.events.item_idx, samples.start, samples.end - 1).tolist()
    histories = [history for history, _ in rows_of(samples)]
    assert len(set(hashes)) == len(set(histories)) == len(set(zip(hashes, histories)))


LOG = [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [3, 1, 4, 1, 5], [2, 7, 1, 8, 2, 8], [6], [9, 5]]


def test_a_batch_shows_the_partners_history_and_nothing_held_out() -> None:
    samples = make_samples(LOG, 3)
    rows = rows_of(samples)
    for step in range(len(samples)):
        batch = samples.batch(0, step)
        assert batch.pair is not None
        assert batch.pair.items.max() < 99
        assert batch.targets.max() < 99
        for targets, pair in zip(batch.targets, batch.pair.items):
            history = tuple(pair[pair > 0].tolist())
            assert (history, int(targets.max())) in rows
            assert (pair[len(history) :] == 0).all()


def test_draws_depend_on_seed_epoch_and_step_alone() -> None:
    def pairs(samples: Samples, epoch: int) -> list[list[int]]:
        batches = [samples.batch(epoch, step) for step in range(len(samples))]
        return [row for b in batches for row in b.pair.items.tolist()]  # type: ignore[union-attr]

    log = [[i % 7 + 1, i % 5 + 1, i % 3 + 1] for i in range(60)]
    one, two = make_samples(log), make_samples(log)
    assert torch.equal(one.batch(4, 7).pair.items, two.batch(4, 7).pair.items)  # type: ignore[union-attr]
    assert pairs(one, 0) == pairs(two, 0)
    first, second = (
        one.read(np.arange(one.n_samples), np.random.default_rng([3, epoch, 0])).pair for epoch in (0, 1)
    )
    assert not torch.equal(first.items, second.items)  # type: ignore[union-attr]


def test_a_pair_needs_one_target_a_sample() -> None:
    with pytest.raises(
        EnsuiteError, match="pair = random pairs samples by their one target, which 'sliding'"
    ):
        build_config(SamplesConfig, {"kind": "sliding", "pair": "random"}, "recipe: samples")
    assert make_samples(LOG, pair="none").batch(0, 0).pair is None
    assert make_samples(LOG, kind="last-position").batch(0, 0).pair is not None


def test_a_batch_moves_with_its_pair() -> None:
    batch = make_samples(LOG).batch(0, 0)
    moved = batch.to("meta")
    assert moved.pair is not None
    assert moved.pair.items.device.type == "meta"
    assert batch.pair is not None
    assert batch.pair.items.device.type == "cpu"
