"""What MQSA-TED's paper and released code demand beyond the contract suite."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ensuite.data.batches import Batch, History
from ensuite.data.dataset import Dataset, Events
from ensuite.errors import EnsuiteError
from ensuite.models.mqsa_ted import MQSATED, MQSATEDConfig, causal_mean
from ensuite.objectives import ObjectiveConfig, build_objective
from ensuite.training.loop import train

V = 9
ITEMS = torch.tensor([[3, 5, 7, 2, 5], [4, 1, 5, 0, 0], [6, 0, 0, 0, 0]])
TARGETS = torch.tensor([[5, 7, 2, 5, 1], [1, 5, 8, 0, 0], [3, 0, 0, 0, 0]])
BATCH = Batch(History(ITEMS), TARGETS, torch.arange(3))
WALK = np.array([3, 5, 7, 2, 5, 1, 3, 5, 2], np.int32)
LOG = Events(np.array([0]), np.array([len(WALK)]), WALK, None, 1.0, V)


def build(loss: str = "cross-entropy", **settings: Any) -> MQSATED:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "dim": 8,
        "blocks": 2,
        "heads": 2,
        "max_length": 6,
        "window": 2,
        "dropout": 0.0,
        "init_std": 0.5,
    }
    objective = build_objective(ObjectiveConfig(loss=loss), V)  # type: ignore[arg-type]
    model = MQSATED(MQSATEDConfig(**(defaults | settings)), V, objective)
    model.fit(LOG)
    return model.eval()


def alike(model: MQSATED, other: MQSATED) -> MQSATED:
    """Give ``model`` those of ``other``'s weights that it has, by name."""
    model.load_state_dict(other.state_dict(), strict=False)
    return model


def plain(**settings: Any) -> MQSATED:
    """Return a model whose loss is the objective's alone, but for ``settings``."""
    return build(**({"lambda_kd": 0.0, "l2": 0.0} | settings))


# -- the two branches --

VARIANTS: list[dict[str, Any]] = [
    {},
    {"blocks": 1},
    {"window": 1},
    {"window": 4},
    {"window": 50},
    {"alpha": 0.0},
    {"alpha": 1.0},
    {"alpha": 0.25},
    {"similarity": "cosine"},
    {"as_released": True},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_short_cut_of_encode_equals_the_whole_output(settings: dict[str, Any]):
    model, history = build(**settings), History(ITEMS)
    whole = model(history)[torch.arange(3), history.lengths - 1]
    torch.testing.assert_close(model.encode(history), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [v for v in VARIANTS if v and "as_released" not in v], ids=str)
def test_every_switch_changes_the_scores(settings: dict[str, Any]):
    history, default = History(ITEMS), build()
    scores = [
        m.scorer(history, m.catalogue())(1, V + 1) for m in (default, alike(build(**settings), default))
    ]
    assert not torch.allclose(*scores, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_with_a_window_of_one_both_branches_are_one(alpha: float):
    """Given the same weights, they give what a single branch of SASRec's released block gives."""
    both, single = build(window=1), build(window=1, alpha=1.0)
    assert both.short is not None
    assert both.long is not None
    both.long.load_state_dict(both.short.state_dict())
    mixed = alike(build(window=1, alpha=alpha), both)
    torch.testing.assert_close(mixed(History(ITEMS)), alike(single, both)(History(ITEMS)))


def test_alpha_mixes_what_the_branches_give_alone():
    both = build(alpha=0.3)
    short, long = (alike(build(alpha=alpha), both) for alpha in (1.0, 0.0))
    assert short.long is None
    assert long.short is None  # so nothing can depend on it
    outputs = [m(History(ITEMS)) for m in (both, short, long)]
    torch.testing.assert_close(outputs[0], 0.3 * outputs[1] + 0.7 * outputs[2])
    assert not torch.allclose(outputs[1], outputs[2], atol=1e-3)


def long_query(model: MQSATED, items: Tensor) -> tuple[Tensor, Tensor]:
    """Return the long branch's first query, and its output: [B, T, D] each."""
    assert model.long is not None
    seen: list[Tensor] = []
    handle = model.long.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    history = History(items)
    output = model.long(model.embed(model.input_vectors(items), history))
    handle.remove()
    return seen[0], output


@pytest.mark.parametrize(("at", "in_query"), [(1, False), (2, True), (3, True)])
def test_the_long_query_reads_its_window_and_no_more(at: int, in_query: bool):
    """With a window of 2, the query at position 3 reads positions 2 and 3; what attends reads all before."""
    model, moved = build(window=2, alpha=0.0), ITEMS[:1].clone()
    moved[0, at] = 9
    (before, whole), (after, other) = (long_query(model, items) for items in (ITEMS[:1], moved))
    assert torch.allclose(before[0, 3], after[0, 3]) is not in_query
    assert not torch.allclose(whole[0, 3], other[0, 3], atol=1e-4)
    assert torch.allclose(whole[0, :at], other[0, :at], atol=1e-6)


def test_means_near_the_start_are_over_what_there_is():
    x = torch.randn(1, 5, 4)
    mean = causal_mean(x, 3)
    for t in range(5):
        torch.testing.assert_close(mean[0, t], x[0, max(0, t - 2) : t + 1].mean(0))


def test_padding_is_neither_in_the_mean_nor_in_its_count():
    """Three events read by a model of 6 slots, and by one of 3 that holds the last 3 of its positions."""
    long = build(window=5)
    short = build(window=5, max_length=3)
    weights = long.state_dict()
    short.load_state_dict(weights | {"positions.weight": weights["positions.weight"][-3:]})
    padded, bare = History(ITEMS[1:2]), History(ITEMS[1:2, :3])
    torch.testing.assert_close(long.encode(padded), short.encode(bare))
    torch.testing.assert_close(long(padded)[:, :3], short(bare))


# -- the loss --


def test_without_its_terms_the_loss_is_the_objective():
    model = plain()
    logits = model(BATCH.history)[TARGETS > 0] @ model.items.weight[1:].T
    wanted = torch.nn.functional.cross_entropy(logits, TARGETS[TARGETS > 0] - 1)
    torch.testing.assert_close(model.loss(BATCH), wanted)


def test_terms_are_added_with_their_weights():
    rec, full = plain().loss(BATCH), build(lambda_kd=0.7, l2=0.02)
    squares = sum(p.square().sum() for p in full.parameters())
    torch.testing.assert_close(full.loss(BATCH), rec + 0.7 * full.distil(BATCH.history) + 0.01 * squares)
    assert {id(p) for p in full.parameters()} >= {id(full.items.weight), id(full.positions.weight)}


@pytest.mark.parametrize("settings", [
    {"tau": 0.2}, {"time_span": 2}, {"row_norm": "sum"}, {"support": "edges"}, {"count_whole": True},
    {"similarity": "cosine"}, {"lambda_kd": 0.3}, {"l2": 0.1},
], ids=str)  # fmt: skip
def test_every_switch_of_the_loss_changes_it(settings: dict[str, Any]):
    default = build(max_length=5, tau=0.5)
    other = alike(build(**({"max_length": 5, "tau": 0.5} | settings)), default)
    assert abs(default.loss(BATCH).item() - other.loss(BATCH).item()) > 1e-4


def test_transitions_are_counted_in_the_last_events():
    """All events: 3-5 twice, 5-7, 7-2, 2-5, 5-1, 1-3, 5-2; among the last 4 only 1-3, 3-5, 5-2."""
    sizes = []
    for settings in ({"max_length": 4}, {"max_length": 4, "count_whole": True}, {"max_length": 9}):
        model = build(**settings)
        assert model.transitions is not None
        sizes.append(len(model.transitions.after))
    assert sizes == [3, 7, 7]


def test_distillation_teaches_both_sides_of_the_table():
    model = build()
    assert model.transitions is not None
    history = History(torch.tensor([[3]]))
    (whole,) = torch.autograd.grad(model.distil(history), model.items.weight)
    table = model.items.weight
    students = table[3:4].detach() * 8**0.5
    (output_side,) = torch.autograd.grad(model.transitions(students, torch.tensor([3]), table), table)
    input_side = whole - output_side
    assert input_side[3].abs().max() > 1e-3
    assert input_side[torch.arange(V + 1) != 3].abs().max() < 1e-6
    assert (output_side[1:].abs().amax(1) > 1e-6).all()
    assert not whole[0].any()


class Spy(torch.nn.Module):
    def forward(self, students: Tensor, items: Tensor, table: Tensor, counts: Tensor | None) -> Tensor:
        self.students, self.items, self.counts = students, items, counts
        return students.sum() * 0.0


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_events_are_distilled_each_with_its_dropout_or_once_by_item(dropout: float):
    model = build(dropout=dropout).train()
    model.transitions = spy = Spy()  # type: ignore[assignment]
    model.distil(BATCH.history)
    rows = spy.students[spy.items == 5]
    if dropout:
        assert sorted(spy.items.tolist()) == sorted(ITEMS[ITEMS > 0].tolist())
        assert spy.counts is None
        assert len(rows) == 3
        assert (rows == 0).any()
        assert not torch.equal(rows[0], rows[1])
    else:
        assert spy.items.tolist() == [1, 2, 3, 4, 5, 6, 7]
        assert spy.counts is not None
        assert spy.counts.tolist() == [1, 1, 1, 1, 3, 1, 1]
        torch.testing.assert_close(rows[0], model.items.weight[5] * 8**0.5)


def test_students_of_cosine_scores_are_unit_vectors():
    model = build(similarity="cosine")
    model.transitions = spy = Spy()  # type: ignore[assignment]
    model.distil(BATCH.history)
    torch.testing.assert_close(spy.students.norm(dim=1), torch.ones(7))


def test_a_draw_of_events_gives_the_same_loss_in_expectation():
    whole, some = build(), build(distilled=4)
    wanted = whole.distil(BATCH.history).item()
    torch.manual_seed(1)
    with torch.no_grad():
        draws = torch.tensor([some.distil(BATCH.history).item() for _ in range(300)])
    assert draws.std() > 0.01
    assert abs(draws.mean() - wanted) < 4 * draws.std() / 300**0.5
    assert build(distilled=99).distil(BATCH.history).item() == wanted


def test_as_released_the_padding_column_is_a_candidate():
    model = plain(as_released=True)
    logits = model(BATCH.history)[TARGETS > 0] @ model.items.weight.T  # column 0: zeros
    assert not logits[:, 0].any()
    wanted = torch.nn.functional.cross_entropy(logits, TARGETS[TARGETS > 0])
    loss = model.loss(BATCH)
    torch.testing.assert_close(loss, wanted)
    assert loss > plain().loss(BATCH)
    loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
    assert not model.items.weight.grad[0].any()  # type: ignore[index]
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-24}


def test_what_only_the_loss_reads_is_not_saved():
    assert not [name for name in build().state_dict() if "transitions" in name]


def test_it_asks_to_be_fitted():
    model = MQSATED(MQSATEDConfig(dim=8), V, build_objective(ObjectiveConfig(), V))
    with pytest.raises(RuntimeError, match="call fit"):
        model.loss(BATCH)


# -- a run --


def test_it_learns_the_cycle(cycle: Dataset, tmp_path: Path):
    recipe = {
        "model": {"dim": 32, "dropout": 0.1, "distilled": 200},
        "training": {"epochs": 12, "batch_size": 16, "lr": 0.01, "metric": "ndcg@10"},
    }
    train("mqsa-ted", cycle, tmp_path / "run", recipe=recipe)
    assert json.loads((tmp_path / "run/card.json").read_text())["training"]["best_ndcg@10"] > 0.95


def test_what_training_may_read_is_all_that_is_counted(cycle: Dataset):
    """Each user's last two events are held out: items that follow only there are edges of the whole log
    alone."""
    model = MQSATED(MQSATEDConfig(dim=8), cycle.n_items)
    model.fit(cycle.events("train"))
    assert model.transitions is not None
    first, size = cycle.offsets[:-1], cycle.split.train_end
    rows = [cycle.item_idx[a : a + n] for a, n in zip(first, size)]
    edges = {(int(a), int(b)) for row in rows for a, b in pairwise(row)}
    assert len(model.transitions.after) == len(edges)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "heads = 3 does not divide dim = 8"),
        ({"alpha": 1.5}, "alpha = 1.5"),
        ({"window": 0}, "window and time_span count events"),
        ({"time_span": 0}, "window and time_span count events"),
        ({"tau": 0.0}, "tau = 0.0"),
        ({"lambda_kd": -0.1}, "lambda_kd, l2 and distilled"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"blocks": 0}, "blocks"),
        ({"row_norm": "mean"}, "row_norm"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_as_released_needs_the_softmax_over_all_items(
    ensuite: Callable[..., subprocess.CompletedProcess[str]], cycle: Dataset
):
    with pytest.raises(EnsuiteError, match=r"objective\.loss = cross-entropy"):
        build("bce", as_released=True)
    flags = ("--data", cycle.path, "--out", "run", "--model.as-released", "--objective.loss", "gbce")
    refused = ensuite("train", "mqsa-ted", *flags, check=False)
    assert refused.returncode != 0
    assert "cross-entropy" in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stdout + refused.stderr
    wrong = ensuite(
        "train", "mqsa-ted", "--data", cycle.path, "--out", "run", "--model.alpha", 2, check=False
    )
    assert "alpha = 2" in wrong.stdout + wrong.stderr


def test_bfloat16_gives_nearly_the_same_loss_and_finite_gradients():
    model = build(similarity="cosine").train()
    exact = model.loss(BATCH)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(BATCH)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
