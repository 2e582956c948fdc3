"""What SASRec's sheet demands beyond the contract suite."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ensuite.data.batches import Batch, History
from ensuite.models.sasrec import SASRec, SASRecConfig
from ensuite.objectives import ObjectiveConfig, build_objective

ITEMS = torch.tensor([[3, 5, 7, 2], [4, 1, 0, 0]])


def build(**settings: Any) -> SASRec:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "dim": 8,
        "blocks": 2,
        "heads": 2,
        "max_length": 6,
        "dropout": 0.0,
        "init_std": 0.5,
    }
    return SASRec(SASRecConfig(**(defaults | settings)), 9).eval()


VARIANTS: list[dict[str, Any]] = [
    {},
    {"norm": "post"},
    {"residual": "none"},
    {"residual": "gated", "activation": "swiglu"},
    {"activation": "gelu"},
    {"as_released": True},
    {"positions": "start"},
    {"positions": "none"},
    {"tied": False},
    {"similarity": "cosine"},
    {"scale_input": False},
    {"inner": 20},
    {"blocks": 0},
    {"blocks": 1},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_short_cut_of_encode_equals_the_whole_output(settings: dict[str, Any]) -> None:
    model, history = build(**settings), History(ITEMS)
    whole = model(history)[torch.arange(2), torch.tensor([3, 1])]
    torch.testing.assert_close(model.encode(history), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", VARIANTS[1:-1], ids=str)
def test_every_switch_changes_the_scores(settings: dict[str, Any]) -> None:
    default, other, history = build(), build(**settings), History(ITEMS)
    scores = [m.scorer(history, m.catalogue())(1, 10) for m in (default, other)]
    assert not torch.allclose(*scores, atol=1e-4)


def test_without_blocks_only_the_last_item_counts() -> None:
    model = build(blocks=0)
    assert torch.equal(
        model.encode(History(torch.tensor([[3, 5, 7]]))), model.encode(History(torch.tensor([[9, 2, 7]])))
    )


def test_positions_from_the_end_give_the_newest_event_one_slot() -> None:
    """As with the paper's left padding, the last of 2 and of 5 events stand in the same slot; from the start
    they do not."""
    for count_from, same in (("end", True), ("start", False)):
        model = build(positions=count_from)
        assert model.positions is not None
        slots = [
            model.positions(torch.arange(n)[None], torch.tensor([n])).expand(1, n, 8)[0, -1] for n in (2, 5)
        ]  # fmt: skip
        assert torch.equal(*slots) is same


def test_padding_row_stays_zero_and_has_no_gradient() -> None:
    objective = build_objective(ObjectiveConfig(), 9, None)
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(dim=8, max_length=6), 9, objective)
    batch = Batch(History(ITEMS), torch.tensor([[5, 7, 2, 1], [1, 6, 0, 0]]), torch.arange(2))
    model.loss(batch).backward()
    gradient = model.items.weight.grad
    assert gradient is not None
    assert (gradient[0] == 0).all()
    assert (gradient[1:].abs().sum(1) > 0).all()
    assert (model.items.weight[0] == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 7}, "heads = 2 does not divide dim = 7"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"as_released": True, "norm": "post"}, "as_released fixes the block"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**settings)
