"""What SIGMA's sheet demands beyond the contract suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ensuite.data.batches import Batch, History
from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.evaluate.metrics import compute_metrics
from ensuite.evaluate.ranks import compute_ranks
from ensuite.models.sigma import SIGMA, SIGMAConfig, flipped
from ensuite.objectives import ObjectiveConfig, build_objective
from ensuite.training.config import resolve
from ensuite.training.loop import train
from ensuite.training.run import load_run

ITEMS = torch.tensor([[3, 5, 7, 2, 4, 9, 1, 6], [4, 1, 8, 5, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0, 0]])
LAST = torch.arange(3), torch.tensor([7, 3, 0])
MAMBA4REC: dict[str, Any] = {"flip": "none", "gate": "none", "fe_gru": False}


def build(**settings: Any) -> SIGMA:
    torch.manual_seed(0)
    defaults = {"dim": 8, "max_length": 10, "d_state": 4, "kept": 2, "init_std": 0.5}
    return SIGMA(SIGMAConfig(**(defaults | settings)), 9).eval()


VARIANTS: list[dict[str, Any]] = [
    {},
    {"blocks": 2},
    {"blocks": 3, "similarity": "cosine"},
    {"kept": 0},
    {"kept": 5},
    {"flip": "none"},
    {"flip": "released", "flipped_slots": 6},
    {"flip": "released", "flipped_slots": 9},
    {"gate": "none"},
    {"gate": "released"},
    {"fe_gru": False},
    {"fe_conv": "causal"},
    {"fe_conv": "none"},
    {"similarity": "cosine"},
    {"d_conv": 2},
    {"expand": 1},
    {"dt_init": "released"},
    {"as_released": True, "flipped_slots": 6},
    MAMBA4REC,
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_short_cut_of_encode_equals_the_whole_output(settings: dict[str, Any]) -> None:
    model, history = build(**settings), History(ITEMS)
    torch.testing.assert_close(model.encode(history), model(history)[LAST], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", VARIANTS[1:], ids=str)
def test_every_switch_changes_the_scores(settings: dict[str, Any]) -> None:
    default, other, history = build(), build(**settings), History(ITEMS)
    if "kept" in settings or settings in ({"gate": "released"}, {"dt_init": "released"}):
        assert default.state_dict().keys() == other.state_dict().keys()
    scores = [m.scorer(history, m.catalogue())(1, 10) for m in (default, other)]
    assert not torch.allclose(*scores, atol=1e-4)


# -- the flip --


@pytest.mark.parametrize("kept", [0, 2, 5])
def test_the_flip_is_undone_by_itself_and_leaves_the_last_events_and_padding(kept: int) -> None:
    lengths = torch.tensor([8, 4, 1])
    index = flipped(lengths - kept, 8)
    assert torch.equal(index.gather(1, index), torch.arange(8).expand(3, 8))
    for row, length in zip(index.tolist(), lengths.tolist()):
        turned = max(0, length - kept)
        assert row == [*reversed(range(turned)), *range(turned, 8)]


def test_with_all_events_kept_both_streams_are_one() -> None:
    """Then only the sum of the two weights counts, without the gate, which is each stream's own."""
    model, history = build(kept=9, gate="none"), History(ITEMS)
    before, weights = model.encode(history), model.blocks[0].mamba.weights
    weights.data += torch.tensor([0.5, -0.5, 0.0])
    torch.testing.assert_close(model.encode(history), before, rtol=1e-5, atol=1e-6)
    turning = build(kept=2, gate="none")
    before, weights = turning.encode(history), turning.blocks[0].mamba.weights
    weights.data += torch.tensor([0.5, -0.5, 0.0])
    after = turning.encode(history)
    assert not torch.allclose(after[0], before[0], atol=1e-3)
    torch.testing.assert_close(after[2], before[2], rtol=1e-5, atol=1e-6)  # a single event


def test_earlier_positions_see_later_events_through_the_flip_only() -> None:
    changed = ITEMS.clone()
    changed[0, 5] = 3
    for settings, sees in (({}, True), ({"flip": "none"}, False)):
        model = build(**settings)
        before, after = model(History(ITEMS))[0, :4], model(History(changed))[0, :4]
        assert torch.allclose(before, after, atol=1e-6) is not sees


def test_a_centred_convolution_sees_one_event_ahead_and_a_causal_one_none() -> None:
    changed = ITEMS.clone()
    changed[0, 5] = 3
    for conv, first in (("centred", 4), ("causal", 5), ("none", 5)):
        model = build(flip="none", fe_conv=conv)
        moved = (model(History(ITEMS)) - model(History(changed)))[0].abs().amax(-1) > 1e-6
        assert moved.nonzero()[0].item() == first


@pytest.mark.parametrize(
    "settings", [{}, {"blocks": 2}, {"gate": "released"}, {"kept": 0}, {"flip": "none"}], ids=str
)
def test_what_stands_in_padding_never_matters(settings: dict[str, Any]) -> None:
    model, history = build(**settings), History(ITEMS)
    before = model.encode(history)
    vectors = model.input_vectors(ITEMS)
    filled = torch.where(history.mask[..., None], vectors, torch.randn_like(vectors))
    assert torch.equal(model.encode_vectors(filled, history), before)
    model.norm.bias.data += 1.0  # what padding looks like inside, as do events; only they count
    streams, x = model._streams(history), model._embed(vectors)
    other = torch.where(history.mask[..., None], x, torch.randn_like(x))
    for block in model.blocks[:-1]:
        x, other = block(x, streams), block(other, streams)
    last = model.blocks[-1]
    torch.testing.assert_close(last.last(x, streams), last.last(other, streams), rtol=1e-5, atol=1e-6)


def test_as_released_padding_is_read() -> None:
    """The defect kept on purpose: the second stream of a short history begins with padding."""
    model, history = build(as_released=True, flipped_slots=8), History(ITEMS)
    model.norm.bias.data += 1.0  # padding is read through Mamba's own gate, which a zero closes
    whole = model._whole(history)
    streams, x = model._streams(whole), model._embed(model.input_vectors(whole.items))
    other = x.clone()
    other[1, 5:] += torch.randn(5, 8)
    last = model.blocks[-1]
    moved = (last.last(x, streams) - last.last(other, streams)).abs().amax(-1)
    assert moved[1] > 1e-3
    assert moved[0] == 0
    narrow = History(ITEMS[:, :8])
    wide = History(torch.nn.functional.pad(ITEMS, (0, 2)))
    assert torch.equal(model.encode(narrow), model.encode(wide))  # slots are those of max_length


# -- gate, weights, order --


def test_without_gates_and_other_weights_it_is_a_projection_of_plain_mamba() -> None:
    model, x = build(), torch.randn(2, 6, 8)
    block = model.blocks[0].mamba
    for linear in (block.gate.silu, block.gate.sigmoid):
        linear.weight.data.zero_()
        linear.bias.data.zero_()
    block.weights.data = torch.tensor([1.0, 0.0, 0.0])
    history = History(torch.randint(1, 10, (2, 6)))
    found = block(x, model._streams(history))
    torch.testing.assert_close(found, block.projection(block.mamba(x)), rtol=1e-5, atol=1e-6)
    plain = build(**MAMBA4REC).blocks[0].mamba
    assert plain.projection is None
    assert plain.weights is None
    torch.testing.assert_close(plain(x, model._streams(history)), plain.mamba(x))


def test_weights_are_learned_and_begin_as_released() -> None:
    model = build()
    weights = model.blocks[0].mamba.weights
    assert weights.tolist() == pytest.approx([0.8, 0.1, 0.1])
    model.encode(History(ITEMS)).pow(3).sum().backward()
    assert (weights.grad != 0).all()


def test_gates_have_dropout_in_training_only() -> None:
    model = build(dropout=0.0, gate_dropout=0.5)
    history = History(ITEMS)
    assert torch.equal(model.encode(history), model.encode(history))
    model.train()
    assert not torch.equal(model.encode(history), model.encode(history))
    still = build(dropout=0.0, gate_dropout=0.0).train()
    assert torch.equal(still.encode(history), still.encode(history))


def test_the_order_of_events_matters_without_positions() -> None:
    for settings in ({}, MAMBA4REC):
        model = build(**settings)
        turned = torch.tensor([[2, 3, 7, 5, 4, 9, 1, 6]])
        assert not torch.allclose(model.encode(History(ITEMS[:1])), model.encode(History(turned)), atol=1e-4)


def test_first_step_sizes_are_mambas_or_the_released_ones() -> None:
    for settings, spread in (({}, True), ({"dt_init": "released"}, False), ({"as_released": True}, False)):
        step = build(**settings, flipped_slots=8).blocks[0].mamba.mamba.step_size
        assert bool((step.bias < -1).all()) is spread  # softplus of it: below 0.1; of zero: 0.69
        assert (step.weight.abs().max() <= step.weight.shape[1] ** -0.5).item() is spread


# -- training --


def batch(kind_of_target: int = 7) -> Batch:
    targets = torch.zeros_like(ITEMS)
    targets[LAST] = torch.tensor([kind_of_target, 2, 5])
    return Batch(History(ITEMS), targets, torch.arange(3))


@pytest.mark.parametrize("settings", [{}, {"blocks": 2}, MAMBA4REC], ids=str)
def test_every_parameter_learns_and_padding_does_not(settings: dict[str, Any]) -> None:
    model = build(**settings)
    model.objective = build_objective(ObjectiveConfig(), 9, None)
    model.loss(batch()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert (model.items.weight.grad[0] == 0).all()


def test_the_loss_reads_the_last_position_alone() -> None:
    model = build()
    model.objective = build_objective(ObjectiveConfig(), 9, None)
    model.forward = None  # type: ignore[method-assign, assignment]  # would be called for other positions
    assert torch.isfinite(model.loss(batch()))


@pytest.mark.parametrize("settings", [{}, {"blocks": 2}, {"as_released": True, "flipped_slots": 7}], ids=str)
def test_bfloat16_is_near_single_precision(settings: dict[str, Any]) -> None:
    model = build(**settings, dim=16)
    model.objective = build_objective(ObjectiveConfig(), 9, None)
    exact = model.loss(batch())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(batch())
        first, state = model.begin(History(ITEMS)) if "as_released" not in settings else (loss, None)
        if state is not None:
            assert torch.isfinite(model.step(first, state)[0]).all()
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_samples_that_ask_for_earlier_positions_are_refused(
    ensuite: Callable[..., Any], cycle: Dataset
) -> None:
    words = ("--data", cycle.path, "--out", "run", "--samples.kind", "every-position")
    said = ensuite("train", "sigma", *words, check=False)
    assert said.returncode != 0
    assert "does not learn from 'every-position' samples" in said.stderr


@pytest.mark.parametrize("settings", [{}, {"blocks": 2}, {"flip": "none", "fe_conv": "none"}], ids=str)
def test_gradients_reach_the_history_through_steps_after_it(settings: dict[str, Any]) -> None:
    """What ReaRec trains: tokens read on after a history; compared with finite differences."""
    model = build(**settings).double()
    vector = model.items.weight

    def read(item: torch.Tensor) -> torch.Tensor:
        vector.data[7] = item.detach()
        table = torch.cat([vector[:7].detach(), item[None], vector[8:].detach()])
        model.items.forward = lambda items: table[items]  # type: ignore[method-assign]
        first, state = model.begin(History(ITEMS))
        second, state = model.step(first, state)
        return model.step(second, state)[0]

    item = vector.data[7].clone().requires_grad_()
    assert torch.autograd.gradcheck(read, [item], atol=1e-4)


def test_tokens_are_read_after_both_streams() -> None:
    """Two steps equal reading two events more where the flip turns the same events, and the convolution does
    not look ahead."""
    model, longer = build(kept=2, fe_conv="causal"), build(kept=4, fe_conv="causal")
    for items in (ITEMS[:1, :7], ITEMS[1:2, :3], ITEMS[:1, :1]):
        more = torch.tensor([[6, 2]])
        _, state = model.begin(History(items))
        for token in model._embed(model.input_vectors(more))[0]:
            found, state = model.step(token[None], state)
        whole = torch.cat([items, more], 1)
        torch.testing.assert_close(found, longer.encode(History(whole)), rtol=1e-5, atol=1e-6)


def test_a_centred_convolution_reads_a_token_with_nothing_after_it() -> None:
    short, x = build().blocks[0].mamba.short_term, torch.randn(1, 4, 8)
    lengths = torch.tensor([3])
    state = short(x, torch.arange(4)[None] < 3)[:, 2]
    found, _ = short.step(x[:, 3], short.recent(x * (torch.arange(4) < 3)[:, None], lengths), state)
    taps = short.conv
    features = x[:, 2] @ taps[0] + x[:, 3] @ taps[1] + short.conv_bias
    torch.testing.assert_close(found, short.gru(features[:, None], state[None])[0][:, 0])


def test_as_released_it_cannot_read_on() -> None:
    with pytest.raises(EnsuiteError, match="flip: length"):
        build(as_released=True, flipped_slots=8).begin(History(ITEMS))


@pytest.mark.parametrize("settings", [{}, MAMBA4REC, {"as_released": True, "flipped_slots": 7}], ids=str)
def test_it_learns_a_cycle(settings: dict[str, Any], cycle: Dataset, tmp_path: Path) -> None:
    model = {"dim": 16, "max_length": 12, "d_state": 4, "kept": 2, "dropout": 0.0} | settings
    recipe = {
        "model": model,
        "training": {"epochs": 8, "batch_size": 64, "lr": 0.02, "validate_every": 8},
    }
    train("sigma", cycle, tmp_path / "run", recipe=recipe)
    trained = load_run(tmp_path / "run").model
    ranks = compute_ranks(trained, cycle.events("all"), cycle.cases("test"))
    assert compute_metrics(ranks, ("hr@1",))["hr@1"] > 0.97


# -- bad input --


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d_state": 0}, "must be positive"),
        ({"gate_dropout": 1.0}, "gate_dropout = 1.0"),
        ({"kept": 10}, "kept = 10 of max_length = 10"),
        ({"flip": "released", "flipped_slots": 11}, "flipped_slots = 11: between 1 and max_length = 10"),
        ({"as_released": True, "gate": "none"}, "as_released fixes flip and gate"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**settings)
    with pytest.raises(EnsuiteError, match=message):
        resolve("sigma", {"model": {"max_length": 10, "kept": 2} | settings})
