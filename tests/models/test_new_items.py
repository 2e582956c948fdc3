"""Systems that take items without being trained again (protocol `TakesItems`)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import N_ITEMS, build_model, histories

from ensuite.config import config_dict
from ensuite.errors import EnsuiteError
from ensuite.models.base import TakesItems
from ensuite.models.registry import load_model, model_names
from ensuite.models.sasrec import SASRec
from ensuite.nn.embeddings import ItemTable

TAKES = ["h2rec", "hstu", "icsrec", "mqsa-ted", "sasrec", "sigma"]


def test_which_systems_take_items():
    assert [name for name in model_names() if issubclass(load_model(name), TakesItems)] == TAKES


@pytest.mark.parametrize("name", TAKES)
@torch.inference_mode()
def test_an_item_like_one_other_is_scored_and_read_as_it_is(name):
    model = build_model(name)
    rows = [7, 30]
    grown = model.with_items([[row] for row in rows])
    assert (grown.n_items, model.n_items) == (N_ITEMS + 2, N_ITEMS)
    assert type(grown) is type(model)
    history = histories(model)
    before = model.scorer(history, model.catalogue())(0, N_ITEMS + 1)
    after = grown.scorer(history, grown.catalogue())(0, N_ITEMS + 3)
    torch.testing.assert_close(after[:, : N_ITEMS + 1], before)
    unseen = ~(history.items[:, :, None] == torch.tensor(rows)).any(1)
    torch.testing.assert_close(after[:, N_ITEMS + 1 :][unseen], before[:, rows][unseen])
    items = history.items.clone()
    items[items == 7] = N_ITEMS + 1
    items[:, 0], like = N_ITEMS + 2, history.items.clone()
    like[:, 0] = 30
    read = grown.encode(replace(history, items=items))
    torch.testing.assert_close(read, model.encode(replace(history, items=like)))


def test_like_several_it_is_their_mean():
    table = ItemTable(4, 2)
    with torch.no_grad():
        table.weight.copy_(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 6.0], [1.0, 1.0]]))
    assert table.grown([[1, 2], [3]], "dot").weight.tolist()[4:] == [[1, 3], [1, 1]]
    new = table.grown([[1, 2]], "cosine").weight[4]
    torch.testing.assert_close(new, torch.tensor([0.5**0.5, 0.5**0.5]) * 4)  # mean direction, mean length
    assert len(table.weight) == 4


def test_two_tables_say_why_not():
    model = SASRec(SASRec.Config(dim=8, tied=False), 5)
    with pytest.raises(EnsuiteError, match="tied = false"):
        model.with_items([[1]])
    assert config_dict(model.config)["tied"] is False
