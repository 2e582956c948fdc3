"""What PISA's sheet demands beyond the contract suite: memory, causality, losses, switches, and that the
weights of a made-up memory are found again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ensuite.data.act_r_logs import act_r_log
from ensuite.data.batches import Batch, History, read_history
from ensuite.data.dataset import Events
from ensuite.data.prepare import PrepareConfig, prepare
from ensuite.data.samples import Samples, SamplesConfig
from ensuite.errors import EnsuiteError
from ensuite.models.pisa import PISA, PISAConfig, ppmi_vectors
from ensuite.nn.act_r import (
    CoOccurrence,
    base_level,
    decay,
    item_slots,
    partial_matching,
    session_weights,
)
from ensuite.objectives import ObjectiveConfig, build_objective

V, N, S = 30, 4, 5


def make_events(seed: int = 0, users: int = 12, n_sessions: int = 9) -> Events:
    """Users of 4 to 9 sessions with 1 to 4 different items, a day or so apart."""
    rng = np.random.default_rng(seed)
    items, time, session, lengths = [], [], [], []
    for _ in range(users):
        now, total = 1_600_000_000, 0
        for number in range(int(rng.integers(4, n_sessions + 1))):
            now += int(rng.integers(10_000, 200_000))
            some = rng.choice(V // 2 if number % 2 else V, int(rng.integers(1, N + 1)), replace=False) + 1
            items += some.tolist()
            time += (now + 60 * np.arange(len(some))).tolist()
            session += [number] * len(some)
            total += len(some)
        lengths.append(total)
    ends = np.cumsum(lengths)
    columns = (np.array(items, np.int32), np.array(time), 1.0, V, np.array(session))
    return Events(ends - lengths, ends, *columns)


EVENTS = make_events()


def build(events: Events = EVENTS, objective: dict[str, Any] | None = None, **settings: Any) -> PISA:
    torch.manual_seed(0)
    small: dict[str, Any] = {"dim": 8, "sessions": S, "session_length": N, "long_term": 3, "max_length": 60}
    loss = build_objective(ObjectiveConfig(**{"loss": "bpr", "negatives": 2} | (objective or {})), V)
    model = PISA(PISAConfig(**(small | settings)), V, loss)
    model.fit(events)
    return model.eval()


def histories(events: Events = EVENTS, n: int = 12) -> History:
    start, end = events.offsets[:n], events.ends[:n]
    assert events.time is not None
    return read_history(events, start, end, events.time[end - 1] + 90_000)


def batch(model: PISA, events: Events = EVENTS) -> Batch:
    config = SamplesConfig(kind="sessions", stride=2)
    return Samples(events, config, max_length=model.max_length, batch_size=64, seed=0).batch(0, 0)


def change_items(history: History, from_session: int) -> History:
    assert history.sessions is not None
    later = (history.sessions >= from_session) & history.mask
    return replace(history, items=torch.where(later, history.items % V + 1, history.items))


# -- memory ----------------------------------------------------------------------------------------


def test_a_later_or_a_further_listen_never_lowers_a_base_level() -> None:
    now, items = 1_000_000, torch.tensor([[1, 2, 1, 3]])
    slots, owners = item_slots(items)

    def level(times: list[int], item: int) -> float:
        listens = decay(now - torch.tensor([times]), 0.5)[:, None]
        return float(base_level(slots, 3, listens)[0, 0, owners[0].tolist().index(item)])

    assert level([100, 200, 300, 400], 1) == pytest.approx((now - 100) ** -0.5 + (now - 300) ** -0.5)
    assert level([100, 200, 900, 400], 1) > level([100, 200, 300, 400], 1) > level([100, 200, now, 400], 2)
    assert float(decay(torch.tensor(0), 0.5)) == 1  # no division by zero


def test_base_levels_are_shares_of_what_was_heard_before() -> None:
    """The shares of all tracks ever heard sum to 1; a track's first session gives it none."""
    window = build(long_term=60).window(histories(), S)
    total = window.long_weights.sum(-1)  # [B, R]; all tracks are among the best 60
    first = (window.lengths < S) & True
    assert first.any()
    torch.testing.assert_close(total[~first], torch.ones_like(total[~first]))  # S sessions and some before
    assert (total[first, 0] == 0).all()
    never = (window.heard == 0) & (window.tracks > 0)
    assert never.any()
    assert (window.heard > 0).any()


def test_base_level_reads_nothing_at_or_after_its_own_session() -> None:
    model, history = build(), histories()
    before, after = model.window(history, 9), model.window(change_items(history, 3), 9)  # slot k is session k
    torch.testing.assert_close(before.heard[:, :3], after.heard[:, :3])
    assert torch.equal(before.long_items[:, :4], after.long_items[:, :4])  # slot 3 reads sessions 0..2
    assert not torch.equal(before.long_items[:, 4], after.long_items[:, 4])


def test_weights_are_shares_and_follow_the_tracks() -> None:
    parts, mask = torch.rand(3, 2, 5), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    gains = torch.tensor([0.3, 0.0, 2.0])
    weights = session_weights(parts, gains, 0.5, mask)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert (weights[1, 3:] == 0).all()
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(session_weights(parts[:, :1, order], gains, 0.5, mask[:1]), weights[:1, order])
    for even in (torch.zeros(3), torch.tensor([-1.0, -2.0, 0.0])):
        torch.testing.assert_close(session_weights(parts, even, 0.5, mask), mask / mask.sum(1, keepdim=True))
    assert torch.isfinite(session_weights(parts, gains, 0.5, torch.zeros(2, 5, dtype=torch.bool))).all()


def test_session_vectors_do_not_depend_on_the_order_of_tracks() -> None:
    model, history = build(), histories()
    vectors = model.session_vectors(model.window(history, S))
    items = history.items.clone()
    assert history.sessions is not None
    for row in range(len(items)):
        for number in range(int(history.sessions[row].max()) + 1):
            at = ((history.sessions[row] == number) & history.mask[row]).nonzero()[:, 0]
            items[row, at] = items[row, at.flip(0)]
    assert not torch.equal(items, history.items)
    torch.testing.assert_close(
        model.session_vectors(model.window(replace(history, items=items), S)), vectors, rtol=1e-4, atol=1e-6
    )


def test_co_occurrence_is_symmetric_without_a_diagonal_and_reads_training_alone() -> None:
    counted = CoOccurrence(V)
    counted.count(EVENTS, N)
    a, b = torch.meshgrid(torch.arange(V + 1), torch.arange(V + 1), indexing="ij")
    table = counted(a, b)
    assert torch.equal(table, table.T)
    assert (table.diagonal() == 0).all()
    assert (table[0] == 0).all()
    assert (table > 0).any()
    fewer = CoOccurrence(V)
    fewer.count(replace(EVENTS, ends=EVENTS.ends - 6), N)
    assert len(fewer.keys) < len(counted.keys)
    alone = torch.tensor([[[7, 0, 0, 0]]])
    assert (counted.spread(alone) == 0).all()
    vectors = torch.nn.functional.pad(torch.randn(1, 1, 1, 8), (0, 0, 0, 3))
    torch.testing.assert_close(partial_matching(vectors)[0, 0], torch.zeros(4), atol=1e-5, rtol=0)


# -- the encoder -----------------------------------------------------------------------------------


def test_a_later_session_leaves_the_output_at_earlier_ones() -> None:
    history = histories()
    assert history.sessions is not None
    early, late = ((part & history.mask) for part in (history.sessions < 3, history.sessions >= 3))
    for legacy, same in ((False, True), (True, False)):
        model = build(legacy_time=legacy, sessions=9)
        before, after = model(history), model(change_items(history, 3))
        assert torch.allclose(before[early], after[early], atol=1e-5) is same
        assert not torch.allclose(before[late], after[late], atol=1e-3)


def test_outputs_have_length_one_and_a_zero_vector_stays_finite() -> None:
    model = build()
    window = model.window(histories(), S)
    vectors = model.session_vectors(window)[:, :-1]
    out = model.run(window, vectors, window.lengths)
    real = torch.arange(vectors.shape[1])[None] < window.lengths[:, None]
    for x in (out.fused, out.short, out.long):
        torch.testing.assert_close(x[real].norm(dim=1), torch.ones(int(real.sum())))
    with torch.no_grad():
        model.items.weight.zero_()
    assert torch.isfinite(model.encode(histories())).all()


def test_output_at_the_last_event_is_the_users_vector() -> None:
    model, history = build(), histories()
    last = history.lengths - 1
    torch.testing.assert_close(model(history)[torch.arange(len(last)), last], model.encode(history))


def test_training_and_serving_agree() -> None:
    """The output that training takes a loss of is the one that is served when that session is asked for."""
    model, events = build(), EVENTS
    assert events.time is not None
    assert events.session is not None
    for user in range(4):  # short histories and long ones
        rows = np.arange(events.offsets[user], events.ends[user])
        last = rows[events.session[rows] == events.session[rows[-1]]][0]  # where the last session begins
        end = np.array([events.ends[user]])
        start = np.array([events.offsets[user]])
        whole = model.window(read_history(events, start, end), S + 1)
        grids = [whole.tracks, whole.heard, whole.long_items, whole.long_weights]
        window = type(whole)(
            *[g[:, :-1] for g in grids[:1]], whole.lengths, *[g[:, :-1] for g in grids[1:]], whole.slot
        )
        vectors = model.session_vectors(window)
        out = model.run(window, vectors[:, :-1], whole.lengths - 1)
        trained = (out.fused + model.config.lambda_ls * out.long)[0, whole.lengths[0] - 2]
        served = model.encode(read_history(events, start, np.array([last]), events.time[[last]]))[0]
        torch.testing.assert_close(trained, served, rtol=1e-4, atol=1e-5)


def test_sessions_are_cut_by_pauses_where_nobody_says_them() -> None:
    history = histories()
    model = build(session_gap=5_000)  # events of a session are a minute apart, sessions hours
    torch.testing.assert_close(model.encode(replace(history, sessions=None)), model.encode(history))
    finer = build(session_gap=30)
    assert not torch.allclose(finer.encode(replace(history, sessions=None)), model.encode(history), atol=1e-3)


def test_a_longer_memory_moves_the_base_level_but_not_the_sequence() -> None:
    history = histories()
    assert history.lengths.max() > 12
    model = build()
    cut, whole = model.window(history.last(12), 2), model.window(history, 2)
    assert torch.equal(cut.tracks, whole.tracks)
    assert not torch.allclose(cut.heard, whole.heard)


# -- losses ----------------------------------------------------------------------------------------


def test_without_the_track_losses_no_negative_has_a_gradient() -> None:
    model = build(lambda_task=0.0).train()
    some = batch(model)
    model.loss(some).backward()
    gradient = model.items.weight.grad
    assert gradient is not None
    there = set(some.history.items.unique().tolist()) - {0}
    absent = [item for item in range(V + 1) if item not in there]
    touched = gradient.abs().sum(1) > 0
    assert touched.any()
    assert not touched[absent].any()


def test_only_sessions_asked_for_are_learnt() -> None:
    model = build(lambda_task=0.0)
    some = batch(model)
    assert some.history.sessions is not None
    last = some.history.sessions == some.history.sessions.amax(1, keepdim=True)
    fewer = replace(some, targets=some.targets * last)
    assert not torch.isclose(model.loss(fewer), model.loss(some))
    moved = change_items(some.history, 1)
    elsewhere = replace(
        fewer, history=replace(moved, items=torch.where(last, some.history.items, moved.items))
    )
    assert not torch.isclose(model.loss(elsewhere), model.loss(fewer))  # what is read matters all the same


ABLATIONS: list[dict[str, Any]] = [
    {"parts": ("base-level",)},
    {"parts": ("base-level", "spreading")},
    {"parts": ()},
    {"flattening": 1.0},
    {"decay": 1.0},
    {"blocks": 0},
    {"long_term": 0},
    {"long_term": 1},
    {"skip": False},
    {"init": "random"},
    {"legacy_time": True},
    {"session_length": 2},
    {"sessions": 2},
]


@pytest.mark.parametrize("settings", ABLATIONS, ids=str)
def test_every_switch_changes_the_scores_and_learns(settings: dict[str, Any]) -> None:
    default, other = build(), build(**settings)
    if "init" not in settings:  # the same weights, but for those that the switch itself changes
        mine = other.state_dict()
        shared = {k: v for k, v in default.state_dict().items() if k != "gains" and k in mine}
        other.load_state_dict({k: v for k, v in shared.items() if v.shape == mine[k].shape}, strict=False)
    assert not torch.allclose(default.encode(histories()), other.encode(histories()), atol=1e-4)
    other.loss(batch(other)).backward()


@pytest.mark.parametrize(
    "settings", [{"lambda_task": 0.5}, {"lambda_pos": 0.2}, {"lambda_ls": 0.0}, {"legacy_regression": True}]
)
def test_every_weight_of_a_loss_changes_it(settings: dict[str, Any]) -> None:
    values = []
    for model in (build(), build(**settings)):
        torch.manual_seed(1)
        values.append(float(model.loss(batch(model)).detach()))
    assert values[0] != pytest.approx(values[1], rel=1e-3)


def test_gains_are_learned_or_kept() -> None:
    model = build().train()
    model.loss(batch(model)).backward()
    assert isinstance(model.gains, torch.nn.Parameter)
    assert model.gains.grad is not None
    assert model.gains.grad.abs().sum() > 0
    kept = build(learn_gains=False)
    assert "gains" not in dict(kept.named_parameters())
    assert kept.gains.tolist() == pytest.approx([0.1] * 3)


def test_items_that_share_sessions_begin_alike() -> None:
    """Two clubs of items that never meet: within one the vectors are alike, across they are orthogonal."""
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.choice(10, 3, replace=False) + 1 + 10 * (n % 2) for n in range(200)])
    session = np.repeat(np.arange(200), 3)
    events = Events(np.array([0]), np.array([600]), items.astype(np.int32), session * 9_000, 1.0, V, session)
    counted = CoOccurrence(V)
    vectors = torch.nn.functional.normalize(ppmi_vectors(counted.count(events, 3), 2), dim=1)
    cosines = vectors @ vectors.T
    assert cosines[1:11, 1:11].min() > 0.9
    assert cosines[1:11, 11:21].abs().max() < 0.1
    assert (vectors[21:] == 0).all()
    model = build(events)
    torch.testing.assert_close(model.items.weight.norm(dim=1)[1:], torch.ones(V))  # the unseen: random


# -- what it can learn -----------------------------------------------------------------------------


def recovered(weights: tuple[float, float, float], out: Any) -> np.ndarray:
    """Learn the gains from a log made up with ``weights``, given what goes together and what is alike; return
    the share of each part in the activations."""
    log = act_r_log(weights, users=80, seed=1)
    data = prepare(log.events, out=out, config=PrepareConfig(split="sessions", held_sessions=(1, 1)))
    loss = {"loss": "sampled-softmax", "negatives": 64, "share": "batch", "temperature": 0.1}
    torch.manual_seed(0)
    only_gains: dict[str, Any] = {
        "blocks": 0,
        "long_term": 0,
        "lambda_task": 1.0,
        "lambda_pos": 0.0,
        "skip": False,
    }
    shape: dict[str, Any] = {
        "dim": 76,
        "sessions": 20,
        "flattening": 1.0,
        "initial_gain": 0.5,
        "init": "random",
    }
    model = PISA(
        PISAConfig(**(only_gains | shape)),
        data.n_items,
        build_objective(ObjectiveConfig(**loss), data.n_items),
    )
    events = data.events("train")
    model.fit(events)
    ids = data.items["item_id"].to_numpy()
    style = torch.eye(12)[torch.from_numpy(log.style[ids])]
    own = torch.nn.functional.normalize(torch.randn(len(ids), 64), dim=1)
    together = np.triu(log.company[ids][:, None] == log.company[ids][None], 1).nonzero()
    with torch.no_grad():
        model.items.weight[1:] = torch.cat([style, own], 1) / 2**0.5
        model.positions.weight.zero_()
    model.co_occurrence.keys = torch.from_numpy((together[0] + 1) * (len(ids) + 1) + together[1] + 1)
    model.co_occurrence.values = torch.full((len(together[0]),), 1 / 3)
    samples = Samples(
        events, SamplesConfig(kind="sessions", stride=20), max_length=300, batch_size=120, seed=0
    )
    optimizer = torch.optim.Adam([model.gains], lr=0.1)
    for step in range(16):
        optimizer.zero_grad()
        model.loss(samples.batch(step // len(samples), step % len(samples))).backward()
        optimizer.step()
    with torch.no_grad():
        window = model.window(samples.batch(0, 0).history, 20)
        vectors = partial_matching(model.items(window.tracks))
        parts = [window.heard, model.co_occurrence.spread(window.tracks), vectors]
        mask = window.tracks > 0
        shares = np.array([float((g.relu() * p.relu() * mask).sum()) for g, p in zip(model.gains, parts)])
    return shares / shares.sum()


def test_the_weights_of_a_made_up_memory_are_found_again(tmp_path: Any) -> None:
    for part in range(3):
        only = tuple(float(part == other) for other in range(3))
        assert recovered(only, tmp_path / str(part)).argmax() == part  # type: ignore[arg-type]
    shares = recovered((0.6, 0.3, 0.1), tmp_path / "mixed")
    assert shares[0] > shares[1] > shares[2]


def test_it_learns_which_session_follows_which() -> None:
    """Users walk round a cycle of six clubs of four tracks, a session in each. No club comes twice in a row,
    so the two paths that bring back what was just heard, skip and long term, are closed."""
    rng = np.random.default_rng(0)
    clubs = [(rng.integers(6) + np.arange(10)) % 6 for _ in range(60)]
    items = np.concatenate([4 * club + rng.permutation(4)[:3] + 1 for own in clubs for club in own])
    session = np.tile(np.repeat(np.arange(10), 3), 60)
    ends = 30 * np.arange(1, 61)
    events = Events(ends - 30, ends, items.astype(np.int32), session * 90_000, 1.0, V, session)
    model = build(
        replace(events, ends=ends - 3), dim=32, sessions=9, skip=False, lambda_ls=0.0, lambda_pos=0.1
    )
    samples = Samples(
        replace(events, ends=ends - 3), SamplesConfig(kind="sessions"), max_length=60, batch_size=60, seed=0
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(50):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model.loss(samples.batch(step, 0)).backward()
        optimizer.step()
    history = read_history(events, ends - 30, ends - 3, session[ends - 3] * 90_000)
    with torch.no_grad():
        best = model.scorer(history, model.catalogue())(1, V + 1).topk(3).indices  # item row - 1
    right = (best // 4).numpy() == np.array([own[9] for own in clubs])[:, None]
    assert right.mean() > 0.9


# -- what is refused -------------------------------------------------------------------------------


def test_logs_without_times_sessions_or_company_are_refused() -> None:
    for events in (replace(EVENTS, time=None), replace(EVENTS, session=None)):
        with pytest.raises(EnsuiteError, match="pisa reads sessions and times"):
            build(events)
    with pytest.raises(EnsuiteError, match="holds one item only"):
        build(replace(EVENTS, session=np.arange(len(EVENTS.item_idx))))
    with pytest.raises(EnsuiteError, match="pisa reads times"):
        build().encode(History(torch.tensor([[1, 2]])))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "heads = 3 does not divide dim = 8"),
        ({"lambda_task": 1.5}, "lambda_task = 1.5: a share"),
        ({"sessions": 0}, "sessions = 0"),
        ({"parts": ("spreading", "spreading")}, "each once"),
        ({"parts": ("recency",)}, "parts"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"long_term": -1}, "long_term = -1"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**settings)
