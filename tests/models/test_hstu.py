"""HSTU: the invariants of its paper, and that its several ways of computing the same numbers agree."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ensuite.config import build_config
from ensuite.data.batches import Batch, History
from ensuite.errors import EnsuiteError
from ensuite.models.hstu import HSTU, HSTUConfig
from ensuite.nn.pointwise import PointwiseAttention
from ensuite.nn.stochastic_length import choose_events, stochastic_lengths
from ensuite.nn.time_bias import lookup, time_buckets
from ensuite.objectives import ObjectiveConfig, build_objective

V, L = 30, 90
VARIANTS = [
    {},
    {"heads": 2, "dim_qk": 8, "dim_v": 6, "normalizer": "length", "score_scale": True},
    {"activation": "softmax", "heads": 2, "similarity": "dot"},
    {"time_bias": False, "blocks": 1},
    {"position_bias": False, "time_mode": "last_event", "concat_ua": True},
    {"time_bias": False, "position_bias": False, "positions": False},
    {"affine_norm": True, "group_norm": True, "projection_bias": True, "heads": 2},
]


def make_history(batch: int = 5, length: int = L, seed: int = 0) -> History:
    """Histories of different lengths, the first of full length, with gaps of seconds to weeks."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (batch,), generator=g)
    lengths[0] = length
    mask = torch.arange(length) < lengths[:, None]
    items = torch.randint(1, V + 1, (batch, length), generator=g) * mask
    gaps = torch.rand(batch, length + 1, generator=g).mul(13).exp().long()
    times = gaps.cumsum(1) + 1_000_000_000
    return History(items, times[:, :-1] * mask, times[:, 1:] * mask)


def make_model(seed: int = 0, loss: ObjectiveConfig | None = None, **fields: object) -> HSTU:
    """A small model in float64 whose biases and scores are far from 0."""
    torch.manual_seed(seed)
    values = {"dim": 12, "dim_qk": 12, "dim_v": 12, "max_length": L, "dropout": 0.0} | fields
    model = HSTU(HSTUConfig(**values), V, build_objective(loss, V) if loss else None).double()  # type: ignore[arg-type]
    for block in model.blocks:
        block.project_in.weight.data.mul_(20)
        for table in (block.attention.position, block.attention.time):
            if table is not None:
                table.data.normal_(0, 0.5)
    return model.eval()


def real(output: torch.Tensor, history: History) -> torch.Tensor:
    return output * history.mask[..., None]


@pytest.mark.parametrize("fields", VARIANTS)
def test_dense_ragged_and_last_position_agree_with_gradients(fields):
    model, history = make_model(**fields), make_history()
    weight = torch.randn(5, L, 12, dtype=torch.float64)
    outputs, gradients = [], []
    for run in (model.forward_dense, model.forward_ragged):
        model.zero_grad()
        output = real(run(history), history)
        (output * weight).sum().backward()
        outputs.append(output)
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    for dense, ragged in zip(*gradients):
        torch.testing.assert_close(ragged, dense, rtol=1e-8, atol=1e-8)
    last = model(history)[torch.arange(5), history.lengths - 1]
    torch.testing.assert_close(model.encode(history), last, rtol=1e-9, atol=1e-9)


def test_dense_and_ragged_agree_in_single_precision():
    model, history = make_model().float(), make_history()
    outputs = [real(run(history), history) for run in (model.forward_dense, model.forward_ragged)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


def test_bfloat16_gives_nearly_the_same_gradients():
    model, history = make_model(loss=ObjectiveConfig(temperature=0.05)).float(), make_history()
    batch, gradients = Batch(history, history.items, torch.arange(5)), []
    for bf16 in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model.loss(batch)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.parametrize("fields", [*VARIANTS, {"max_length": 20}])
def test_cached_steps_agree_with_reading_anew(fields):
    model, whole = make_model(**fields), make_history(3, 40)
    whole = History(*(x[:1].repeat(3, 1) for x in (whole.items, whole.times, whole.request_times)))
    lengths = torch.tensor([5, 11, 19])
    begin = torch.arange(40) < lengths[:, None]
    cache = model.start_cache(History(*(x * begin for x in (whole.items, whole.times, whole.request_times))))
    rows = torch.arange(3)
    for _ in range(4):
        cache.append(whole.items[rows, lengths], whole.times[rows, lengths])
        lengths = lengths + 1
        seen = torch.arange(40) < lengths[:, None]
        now = whole.times[rows, lengths - 1] + 7_000
        asked = whole.request_times.scatter(1, lengths[:, None] - 1, now[:, None])
        history = History(whole.items * seen, whole.times * seen, asked * seen).last(model.max_length)
        torch.testing.assert_close(cache.encode(now), model.encode(history), rtol=1e-8, atol=1e-8)


def test_causal_in_items_and_times_but_for_the_request_time():
    model, history = make_model(), make_history(1)
    before, at = model(history), 40

    def changed(**columns: torch.Tensor) -> list[int]:
        after = model(replace(history, **columns))
        return [i for i in range(L) if not torch.equal(before[0, i], after[0, i])]

    items, times, asked = (x.clone() for x in (history.items, history.times, history.request_times))
    items[0, at] = items[0, at] % V + 1
    assert min(changed(items=items)) == at  # the item at t + 1 does not move the output at t
    times[0, at] += 5_000_000
    asked[0, at - 1] += 5_000_000  # the time of event t + 1 is the request time of position t: it moves that
    assert min(changed(times=times, request_times=asked)) == at - 1
    assert min(changed(times=times)) == at


def test_last_event_mode_ignores_the_request_time():
    model, history = make_model(time_mode="last_event"), make_history()
    assert model.needs_times()
    assert not model.reads_request_time()
    moved = replace(history, request_times=history.request_times + 100_000)
    torch.testing.assert_close(model.encode(moved), model.encode(history))
    assert make_model().reads_request_time()


def test_padding_content_and_amount_change_nothing():
    model, history = make_model(), make_history()
    columns = (history.items, history.times, history.request_times)
    short = History(*(x[1:2, : int(history.lengths[1])] for x in columns))
    noise = torch.where(history.mask, history.times, 12345)
    for run in (model.forward_dense, model.forward_ragged):
        expected = real(run(history), history)
        torch.testing.assert_close(real(run(replace(history, times=noise)), history), expected)
        torch.testing.assert_close(run(short)[0], expected[1, : short.items.shape[1]])


def test_adding_a_constant_to_all_times_changes_nothing():
    model, history = make_model(), make_history()
    later = replace(history, times=history.times + 10**8, request_times=history.request_times + 10**8)
    torch.testing.assert_close(real(model(later), history), real(model(history), history))


def test_time_buckets():
    gaps = torch.unique(torch.rand(20_000, dtype=torch.float64).mul(40).exp().long())
    buckets = time_buckets(gaps, torch.zeros(1, dtype=torch.int64))[:, 0]
    exact = torch.tensor([min(128, math.floor(math.log(max(1, g)) / 0.301)) for g in gaps.tolist()])
    edge = torch.tensor([abs((x := math.log(max(1, g)) / 0.301) - round(x)) < 1e-4 for g in gaps.tolist()])
    assert torch.equal(buckets[~edge].long(), exact[~edge])
    assert (buckets.diff() >= 0).all()
    near = time_buckets(torch.tensor([100]), torch.tensor([99, 100, 101]))
    assert near.tolist() == [[0, 0, 0]]
    assert time_buckets(torch.tensor([2**62]), torch.tensor([0])).item() == 128


def test_the_gradient_of_a_lookup_is_that_of_indexing():
    table, index = torch.randn(9, dtype=torch.float64, requires_grad=True), torch.randint(0, 9, (4, 50, 50))
    weight = torch.randn(4, 50, 50, dtype=torch.float64)
    ours = torch.autograd.grad((lookup(table, index) * weight).sum(), table)
    theirs = torch.autograd.grad((table[index] * weight).sum(), table)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["silu", "softmax"])
def test_duplicates_raise_the_aggregate_without_a_softmax_only(kind):
    attention = PointwiseAttention(10, position_bias=False, time_bias=False, activation=kind)
    q, k, v = torch.ones(1, 1, 1, 4), torch.ones(1, 3, 1, 4), torch.ones(1, 3, 1, 4)
    offsets = torch.zeros(1, 1, 3, dtype=torch.int64)
    sums = [attention.dense(q, k, v, torch.arange(3)[None, None] < n, offsets)[0, 0, 0, 0] for n in (1, 2)]
    assert (sums[1] == 2 * sums[0]) == (kind == "silu")


@pytest.mark.parametrize("fields", VARIANTS)
def test_candidates_are_scored_as_if_alone(fields):
    model, history = make_model(**fields), make_history()
    candidates = torch.randint(1, V + 1, (5, 8))
    together = model.score_candidates(history, candidates)  # [B, C]
    alone = torch.cat([model.score_candidates(history, c) for c in candidates.split(1, 1)], 1)
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(model.score_candidates(history, candidates, micro_batch=3), together)
    order = torch.randperm(8)
    torch.testing.assert_close(model.score_candidates(history, candidates[:, order]), together[:, order])
    more = torch.cat([candidates, torch.randint(1, V + 1, (5, 1))], 1)
    torch.testing.assert_close(model.score_candidates(history, more)[:, :8], together)


def test_a_candidate_is_encoded_as_the_next_event_would_be():
    model, history = make_model(), make_history(1, 30)
    now = history.request_times[:, -1:]
    longer = History(*(torch.cat(pair, 1) for pair in (
        (history.items, torch.tensor([[7]])), (history.times, now), (history.request_times, now),
    )))  # fmt: skip
    encoded = model.encode_candidates(history, torch.tensor([[7]]))
    torch.testing.assert_close(encoded[:, 0], model.encode(longer))


def test_stochastic_length_keeps_all_or_a_fixed_number():
    torch.manual_seed(0)
    lengths = torch.full((20_000,), 180)
    kept = stochastic_lengths(lengths, 200, 1.6)
    short = int(200**0.8)
    assert set(kept.tolist()) == {180, short}
    share = 200**1.6 / 180**2
    assert abs((kept == 180).double().mean().item() - share) < 4 * math.sqrt(share * (1 - share) / 20_000)
    assert torch.equal(stochastic_lengths(torch.tensor([1, short]), 200, 1.6), torch.tensor([1, short]))
    every = torch.arange(1, 201)
    assert torch.equal(stochastic_lengths(every, 200, 2.0), every)


@pytest.mark.parametrize("selection", ["recent", "random", "recency"])
def test_chosen_events_keep_their_order(selection):
    torch.manual_seed(0)
    lengths, kept = torch.tensor([9, 4, 1]), torch.tensor([5, 4, 1])
    times = torch.arange(12).expand(3, -1) * 50
    index, mask = choose_events(lengths, kept, selection, 12, times)
    assert index.shape == (3, 5)
    assert mask.sum(1).tolist() == kept.tolist()
    for row, n in enumerate(lengths.tolist()):
        chosen = index[row][mask[row]]
        assert (chosen.diff() > 0).all()
        assert chosen.max() < n
    if selection == "recent":
        assert index[0].tolist() == [4, 5, 6, 7, 8]


def test_stochastic_length_is_for_training_only_and_keeps_targets_beside_their_items():
    model = make_model(loss=ObjectiveConfig(), stochastic_length=1.2)
    history = make_history()
    targets = history.items * 0 + torch.arange(1, L + 1).remainder(V).add(1) * history.mask
    batch = Batch(history, targets, torch.arange(5))
    short = model.shorten(batch)
    assert short.history.lengths.max() < L
    for row in range(5):
        before, after = (
            set(
                zip(
                    h.items[row].tolist(),
                    h.times[row].tolist(),
                    h.request_times[row].tolist(),
                    t[row].tolist(),
                )
            )
            for h, t in ((history, targets), (short.history, short.targets))
        )
        assert after <= before | {(0, 0, 0, 0)}
    assert model.loss(batch) == model.loss(batch)
    model.train()
    assert model.loss(batch) != model.loss(batch)


def test_outputs_have_length_one_and_scores_lie_within_the_temperature():
    model, history = make_model(), make_history()
    torch.testing.assert_close(model.encode(history).norm(dim=-1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(model.item_vectors()[1:].norm(dim=-1), torch.ones(V, dtype=torch.float64))
    scores = model.scorer(history, model.catalogue())(1, V + 1) / 0.05
    assert scores.abs().max() <= 20 + 1e-9


def test_a_missing_time_is_said_with_its_remedy():
    history = replace(make_history(), times=None, request_times=None)
    with pytest.raises(EnsuiteError, match=r"time column, or set model\.time_bias: false"):
        make_model().encode(history)
    make_model(time_bias=False).encode(history)
    assert not make_model(time_bias=False).needs_times()


@pytest.mark.parametrize(
    ("key", "value"),
    [("dropout", 1.0), ("stochastic_length", 0.5), ("heads", 0), ("time_mode", "never"), ("dims", 3)],
)
def test_wrong_settings_are_refused_by_name(key, value):
    with pytest.raises(EnsuiteError, match=key):
        build_config(HSTUConfig, {key: value}, "test")


def test_learns_that_the_time_of_the_request_decides_the_next_item():
    """After a short gap an item repeats, after a long one the next of a cycle comes: only times tell."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    wait = rng.integers(0, 2, (64, 21))
    items = torch.from_numpy((rng.integers(0, 8, (64, 1)) + wait.cumsum(1)) % 8 + 1)
    times = torch.from_numpy(np.where(wait, 100_000, 10).cumsum(1))
    batch = Batch(History(items[:, :-1], times[:, :-1], times[:, 1:]), items[:, 1:], torch.arange(64))
    config = HSTUConfig(dim=16, dim_qk=16, dim_v=16, max_length=20, dropout=0.0)
    model = HSTU(config, 8, build_objective(ObjectiveConfig(temperature=0.05), 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    best = (model(batch.history) @ model.item_vectors()[1:].T).argmax(-1) + 1
    assert (best == batch.targets).float().mean() > 0.95
