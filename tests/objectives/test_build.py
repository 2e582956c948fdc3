"""Configuration: contradictions are refused, with what to do about them."""

from __future__ import annotations

import pytest
import torch

from ensuite.config import build_config
from ensuite.errors import EnsuiteError
from ensuite.objectives import ObjectiveConfig, build_objective

LOSSES = ["cross-entropy", "sampled-softmax", "bce", "gbce", "bpr"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"label_smoothing": 1.0}, "label_smoothing = 1.0"),
        ({"loss": "bce", "label_smoothing": 0.1}, "cross-entropy"),
        ({"loss": "bce", "negatives": 0}, "negatives = 0"),
        ({"loss": "gbce", "calibration": 1.5}, "calibration = 1.5"),
        ({"loss": "gbce", "calibration": -0.1}, "calibration = -0.1"),
        ({"loss": "bce", "logq": True}, "sampled-softmax"),
        ({"loss": "sampled-softmax", "logq": True, "exclude_history": True}, "exclude_history"),
        ({"loss": "bce", "share": "batch", "exclude_history": True}, "share = batch"),
        ({"popularity_power": -1.0}, "popularity_power"),
        ({"loss": "bec"}, "loss"),
        ({"negative": 3}, "negatives"),
    ],
)
def test_contradictions_are_refused(values, says):
    with pytest.raises(EnsuiteError, match=says):
        build_config(ObjectiveConfig, values, "recipe.yaml")


@pytest.mark.parametrize(
    ("config", "n_items", "counts", "says"),
    [
        ({"loss": "bce", "sampler": "popularity"}, 5, None, "counts"),
        ({"loss": "sampled-softmax", "sampler": "in-batch", "logq": True}, 5, None, "in-batch with logq"),
        ({"loss": "bce", "sampler": "popularity"}, 5, torch.ones(5), r"\(6,\)"),
        ({"loss": "bce", "sampler": "popularity"}, 5, torch.zeros(6), "one above"),
        ({"loss": "gbce"}, 1, None, "at least 2"),
        ({}, 0, None, "at least one"),
    ],
)
def test_what_does_not_fit_the_catalogue_is_refused(config, n_items, counts, says):
    with pytest.raises(EnsuiteError, match=says):
        build_objective(ObjectiveConfig(**config), n_items, counts)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_lowers_the_loss_and_nothing_is_saved(loss):
    torch.manual_seed(0)
    table = torch.nn.Parameter(torch.randn(31, 8) * 0.1)
    output = torch.nn.Parameter(torch.randn(12, 8) * 0.1)
    targets, row = torch.arange(1, 13), torch.arange(12) // 4
    config = ObjectiveConfig(loss=loss, negatives=20, sampler="uniform")
    objective = build_objective(config, 30)
    assert not objective.state_dict()
    optimiser = torch.optim.Adam([table, output], 0.05)
    losses = []
    for _ in range(60):
        loss_ = objective(output, targets, lambda items: table if items is None else table[items], row)
        optimiser.zero_grad()
        loss_.backward()
        optimiser.step()
        losses.append(loss_.item())
    assert losses[-1] < 0.3 * losses[0]
    if loss == "cross-entropy":
        assert torch.equal((output @ table[1:].T).argmax(1) + 1, targets)
