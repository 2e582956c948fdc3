"""BERT4Rec: the invariants of its paper."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ensuite.config import build_config
from ensuite.data.batches import Batch, History
from ensuite.data.dataset import Events
from ensuite.data.samples import Samples, SamplesConfig
from ensuite.errors import EnsuiteError
from ensuite.models.bert4rec import BERT4Rec, BERT4RecConfig
from ensuite.objectives import ObjectiveConfig, build_objective

V, L = 30, 12
MASK = V + 1
VARIANTS = [
    {},
    {"output_bias": False, "transform": False},
    {"layer_norm": False, "residual": False},
    {"feed_forward": False, "position_embedding": False, "blocks": 1},
    {"as_released": True, "blocks": 3, "inner": 8},
]


def make_model(seed: int = 0, n_items: int = V, **fields: object) -> BERT4Rec:
    """A small model in float64 with larger weights than it begins training with."""
    torch.manual_seed(seed)
    values: dict[str, Any] = {"dim": 16, "max_length": L, "init_std": 0.3} | fields
    model = BERT4Rec(BERT4RecConfig(**values), n_items, build_objective(ObjectiveConfig(), n_items))
    if model.output_bias is not None:
        model.output_bias.data.normal_()
    return model.double().eval()


def make_history(lengths: tuple[int, ...] = (12, 7, 3, 1), width: int = L, seed: int = 0) -> History:
    g = torch.Generator().manual_seed(seed)
    items = torch.randint(1, V + 1, (len(lengths), width), generator=g)
    return History(items * (torch.arange(width) < torch.tensor(lengths)[:, None]))


def cloze_batch(seed: int = 0, n_users: int = 40, **config: object) -> Batch:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 2 * L, n_users)
    ends = lengths.cumsum()
    items = rng.integers(1, V + 1, ends[-1]).astype(np.int32)
    events = Events(ends - lengths, ends, items, None, 1.0, V)
    settings = SamplesConfig(kind="cloze", **config)  # type: ignore[arg-type]
    return Samples(events, settings, max_length=L, batch_size=n_users, seed=seed).batch(0, 0)


@pytest.mark.parametrize("fields", VARIANTS)
def test_reading_some_positions_gives_what_all_positions_give(fields):
    model, history = make_model(**fields), make_history()
    index = torch.tensor([[3, 0], [6, 2], [0, 1], [0, 0]])
    every = model(history)
    torch.testing.assert_close(model.read(history, index), every[torch.arange(4)[:, None], index])
    asked = model.with_mask(history)
    last = model(asked)[torch.arange(4), asked.lengths - 1]
    torch.testing.assert_close(model.encode(history), last)


def test_the_mask_follows_the_last_events_and_fits_the_window():
    asked = make_model().with_mask(make_history((15, 12, 3), width=15))
    assert asked.items.shape == (3, L)
    assert (asked.items == MASK).sum(1).tolist() == [1, 1, 1]
    assert asked.lengths.tolist() == [L, L, 4]
    assert torch.equal(asked.items[0, :-1], make_history((15,), width=15).items[0, 4:])


def test_both_sides_are_seen_and_padding_is_not():
    model, history = make_model(), make_history()
    before = model(history)
    later = history.items.clone()
    later[1, 6] = later[1, 6] % V + 1
    assert not torch.allclose(model(History(later))[1, 2], before[1, 2])
    narrow = model(History(history.items[1:, :7]))
    torch.testing.assert_close(narrow[0], before[1, :7])


def test_without_positions_the_order_of_the_others_does_not_matter():
    history = make_history((11,), width=11)
    shuffled = History(history.items[:, torch.randperm(11)])
    model = make_model(position_embedding=False)
    torch.testing.assert_close(model.encode(shuffled), model.encode(history))
    assert not torch.allclose(make_model().encode(shuffled), make_model().encode(history))


def test_a_masked_item_is_unknown_to_the_model():
    model, batch = make_model(), cloze_batch()
    assert (batch.history.items[batch.targets != 0] == MASK).all()
    other = torch.where(batch.targets != 0, batch.targets % V + 1, 0)
    torch.testing.assert_close(model(batch.history), model(replace(batch, targets=other).history))


def test_masks_at_least_one_at_most_the_limit():
    for config, most in (({"mask_probability": 0.0}, 1), ({"mask_probability": 0.9, "max_masked": 3}, 3)):
        batch = cloze_batch(last_only=0.0, **config)
        counts = (batch.targets != 0).sum(1)
        assert counts.min() == 1
        assert counts.max() == most
        assert (batch.targets != 0).equal(batch.history.items == MASK)
        assert batch.history.items.max() == MASK


@pytest.mark.parametrize("fields", VARIANTS)
def test_the_loss_is_that_of_masked_positions_among_items(fields):
    model, batch = make_model(**fields), cloze_batch()
    table = model.items.weight[1 : V + 1]
    hidden = model(batch.history)[batch.targets != 0]
    logits = hidden[:, :16] @ table.T
    if model.output_bias is not None:
        logits = logits + model.output_bias[1:]
    expected = torch.nn.functional.cross_entropy(logits, batch.targets[batch.targets != 0] - 1)
    torch.testing.assert_close(model.loss(batch), expected)


def test_the_table_learns_from_input_and_output_and_padding_never_does():
    model, batch = make_model(), cloze_batch(mask_probability=0.5)
    model.loss(batch).backward()
    gradient = model.items.weight.grad
    assert gradient[MASK].abs().sum() > 0  # input only
    assert (gradient[0] == 0).all()
    own, model.items.weight.grad = gradient.clone(), None
    vectors = model.item_vectors
    model.item_vectors = lambda items=None: vectors(items).detach()  # type: ignore[method-assign]
    model.loss(batch).backward()
    assert not torch.allclose(model.items.weight.grad[1 : V + 1], own[1 : V + 1])
    assert model.items.weight.grad[1 : V + 1].abs().sum() > 0


def test_the_mask_is_no_candidate_and_the_bias_is_in_the_score():
    model, history = make_model(), make_history()
    assert model.item_vectors().shape == (V + 1, 17)
    before = model.scorer(history, model.catalogue())(1, V + 1)
    assert before.shape == (4, V)
    model.output_bias.data[5] += 3
    after = model.scorer(history, model.catalogue())(1, V + 1)
    change = torch.zeros(V, dtype=torch.float64)
    change[4] = 3
    torch.testing.assert_close(after - before, change.expand(4, -1))


def test_the_loss_begins_at_the_logarithm_of_the_catalogue():
    torch.manual_seed(0)
    model = BERT4Rec(BERT4RecConfig(max_length=L), V, build_objective(ObjectiveConfig(), V))
    assert model.loss(cloze_batch()).item() == pytest.approx(math.log(V), rel=0.03)


@pytest.mark.parametrize(("key", "value"), [("max_length", 1), ("heads", 3), ("dropout", 1.0), ("hidden", 3)])
def test_wrong_settings_are_refused_by_name(key, value):
    with pytest.raises(EnsuiteError, match=key):
        build_config(BERT4RecConfig, {key: value}, "test")


def test_learns_to_continue_a_period():
    """a, b, c, a, b, c, ...: after training the masked next item is known for nearly every user."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 8, 64) * 3
    phase = rng.integers(0, 3, (64, 1))
    items = (first[:, None] + (np.arange(10) + phase) % 3 + 1).astype(np.int32)
    rows = np.arange(64) * 10
    events = Events(rows, rows + 9, items.reshape(-1), None, 1.0, 24)
    samples = Samples(events, SamplesConfig(kind="cloze", last_only=0.5), max_length=9, batch_size=64, seed=0)
    torch.manual_seed(0)
    config = BERT4RecConfig(dim=32, max_length=9, dropout=0.0, attention_dropout=0.0, init_std=0.1)
    model = BERT4Rec(config, 24, build_objective(ObjectiveConfig(), 24))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for epoch in range(120):
        optimizer.zero_grad()
        model.loss(samples.batch(epoch, 0)).backward()
        optimizer.step()
    model.eval()
    scores = model.scorer(History(torch.from_numpy(items[:, :9]).long()), model.catalogue())(1, 25)
    assert (scores.argmax(1) + 1 == torch.from_numpy(items[:, 9])).double().mean() > 0.95
