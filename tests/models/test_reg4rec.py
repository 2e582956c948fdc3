"""REG4Rec: the order of codes, the network's two inputs, the search with its pruning."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import ITEM_IDS, N_ITEMS, histories, made_up_log, pick, small_config, small_materials

from ensuite.codes.kinds import tokeniser_class
from ensuite.codes.table import SemanticIdTable
from ensuite.config import build_config
from ensuite.data.batches import Batch, History
from ensuite.errors import EnsuiteError
from ensuite.models._reg4rec_pars import PARSConfig
from ensuite.models.materials import Materials
from ensuite.models.reg4rec import REG4Rec
from ensuite.serve.recommender import Recommender
from ensuite.training.config import read_recipe, resolve

INPUTS = pytest.mark.parametrize("input", ["compact", "tokens"])


def build(**settings: Any) -> REG4Rec:
    _, config = small_config("reg4rec")
    torch.manual_seed(0)
    model = REG4Rec(dataclasses.replace(config.model, **({"pars": False} | settings)), N_ITEMS)
    with torch.no_grad():
        model.heads.weight.mul_(8)  # fresh weights are certain of nothing
        model.category_head.weight.mul_(8)
        model.category_head.bias.zero_()
    model.take(small_materials(config))
    model.fit(made_up_log())
    return model.eval()


@torch.inference_mode()
def exact(model: REG4Rec, history: History) -> torch.Tensor:
    return model.exact_scores(history, model.catalogue())


@torch.inference_mode()
def ask(model: REG4Rec, history: History, k: int, **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return model.generate(history, k, **how)


def sample(items: list[int], target: int) -> Batch:
    history = History(torch.tensor([items]))
    targets = torch.zeros_like(history.items)
    targets[0, -1] = target
    return Batch(history, targets, torch.zeros(1, dtype=torch.int64))


@INPUTS
@pytest.mark.parametrize("order", ["crss", "fixed"])
@torch.no_grad()
def test_scores_of_the_search_are_what_reading_the_paths_gives(input, order):
    model = build(input=input, order=order, corp=0.0)
    history, index = histories(model, 3), model.catalogue()
    memory = model.encode(history.items)
    items, scores, books = model.search(history, index, width=N_ITEMS, k=N_ITEMS)
    assert [sorted(row) for row in items.tolist()] == [list(range(1, N_ITEMS + 1))] * 3
    codes = model.codes[items].long()
    read = -model.cross_entropy(model.read_paths(*memory, books, codes), books, codes)
    assert torch.allclose(read.sum(2), scores, atol=1e-4)
    if order == "fixed":
        assert bool((books == torch.arange(4)).all())
        batch = sample(history.items[0, : history.lengths[0]].tolist(), 17)
        model.config = dataclasses.replace(model.config, category_weight=0.0)
        assert float(model.loss(batch)) == pytest.approx(-float(exact(model, history)[0, 17]) / 4, abs=1e-4)


@INPUTS
def test_padding_and_neighbours_change_nothing(input):
    model = build(input=input)
    history = histories(model)
    rows = [4, 0, 2]
    padded = pick(history, rows, history.items.shape[1] + 3)
    assert torch.allclose(exact(model, padded), exact(model, history)[rows], atol=1e-4)


def test_relabelled_codebooks_give_the_same_lists():
    model, swap = build(), [2, 0, 3, 1]
    history, sizes, first = histories(model), model.config.level_sizes, model.offsets.tolist()
    rows = [torch.arange(sizes[b]) + first[b] for b in swap]
    other = REG4Rec(dataclasses.replace(model.config, level_sizes=tuple(sizes[b] for b in swap)), N_ITEMS)
    state = model.state_dict()
    tokens = torch.cat([torch.tensor([0]), *rows, torch.tensor([model.begin_token, model.item_token])])
    state["tokens.weight"] = state["tokens.weight"][tokens]
    state["heads.weight"] = state["heads.weight"][torch.cat(rows) - 1]
    state["codes"] = state["codes"][:, swap]
    state["join.0.weight"] = state["join.0.weight"].unflatten(1, (4, -1))[:, swap].flatten(1)
    other.load_state_dict(state)
    items, scores = ask(model, history, 12)
    again, same = ask(other.eval(), history, 12)
    assert torch.equal(items, again)
    assert torch.allclose(scores, same, atol=1e-4)


@pytest.mark.parametrize("confidence", ["best", "true"])
def test_the_target_is_taught_in_the_order_of_confidence_and_each_codebook_once(confidence):
    model = build(confidence=confidence)
    history, codes = histories(model), model.codes[torch.tensor([1, 9, 17, 25, 33, 41])].long()
    with torch.no_grad():
        memory, mask = model.encode(history.items)
        books = model.confident_order(memory, mask, codes)
        hidden = model.read_paths(memory, mask, books[:, None], codes[:, None])[:, 0]
        certain = model.log_probs(hidden)  # [B, M + 1, M, K]
        if confidence == "true":
            certain = certain.gather(3, codes[:, None, :, None].expand(-1, 5, -1, -1))
        certain = certain.amax(3)
    assert books.sort(1).values.tolist() == [[0, 1, 2, 3]] * 6
    for row, order in enumerate(books.tolist()):
        for step, book in enumerate(order):
            left = order[step:]
            assert book == max(left, key=lambda b: float(certain[row, step, b]))
    model.random_share.fill_(0.0)
    assert torch.equal(model.orders(memory, mask, codes), books)
    model.random_share.fill_(1.0)
    drawn = [model.orders(memory, mask, codes) for _ in range(20)]
    assert all(x.sort(1).values.tolist() == [[0, 1, 2, 3]] * 6 for x in drawn)
    assert len({tuple(x[0].tolist()) for x in drawn}) > 5


def test_random_orders_become_rarer():
    model = build(random_first=0.9, random_last=0.1, curriculum=4)
    shares = []
    for epoch in range(6):
        model.start_epoch(epoch, [])
        shares.append(round(float(model.random_share), 3))
    assert shares == [0.9, 0.7, 0.5, 0.3, 0.1, 0.1]


def test_the_digit_that_tells_duplicates_apart_comes_last():
    model = build(digit=True)
    with torch.no_grad():
        model.heads.weight[-3:] = 0
        model.heads.weight[-3] = 100 * torch.ones(16)  # nothing is as certain as the digit
        history, codes = histories(model), model.codes[1:7].long()
        memory, mask = model.encode(history.items)
        model.random_share.fill_(0.5)
        for _ in range(5):
            assert bool((model.orders(memory, mask, codes)[:, 3] == 3).all())
        assert bool((model.draw_paths(history, model.catalogue())[1][..., 3] == 3).all())
    assert sorted(ask(model, history, N_ITEMS)[0][0].tolist()) == list(range(1, N_ITEMS + 1))


def train_a_little(model: REG4Rec, batch: Batch, steps: int) -> None:
    optimizer = torch.optim.Adam(model.train().parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    model.eval()


def test_what_can_be_predicted_comes_first():
    """The next item's brand is that of the last one; its colour is anybody's guess."""
    rng = np.random.default_rng(0)
    codes = np.array([[-1, -1], *([colour, brand] for brand in range(4) for colour in range(6))], np.int32)
    table = SemanticIdTable(codes, (6, 4), "shared", False, list(range(24)))
    _, config = small_config("reg4rec")
    torch.manual_seed(0)
    c = dataclasses.replace(config.model, level_sizes=(6, 4), pars=False, dropout=0.0, n_categories=1)
    model = REG4Rec(c, 24)
    model.take(Materials(codes=table, categories=torch.tensor([-1] + [0] * 24)))
    last = torch.from_numpy(rng.integers(0, 24, 200))
    target = last // 6 * 6 + torch.from_numpy(rng.integers(0, 6, 200))
    history = History(last[:, None] + 1)
    train_a_little(model, Batch(history, target[:, None] + 1, torch.arange(200)), 40)
    with torch.no_grad():
        _, books = model.draw_paths(history, model.catalogue())
        memory, mask = model.encode(history.items)
        taught = model.confident_order(memory, mask, model.codes[target + 1].long())
    assert float((books[:, 0, 0] == 1).float().mean()) > 0.95
    assert float((taught[:, 0] == 1).float().mean()) > 0.95


def categories_of(model: REG4Rec, history: History, items: torch.Tensor, books: torch.Tensor) -> torch.Tensor:
    codes = model.codes[items].long()
    hidden = model.read_paths(*model.encode(history.items), books, codes)
    return model.category_head(hidden[:, :, 1:]).argmax(-1)  # [B, G, M]


@torch.no_grad()
def test_paths_that_disagree_with_themselves_come_last_and_none_vanishes():
    model = build(corp=0.0)
    torch.nn.init.normal_(model.tokens.weight, std=3.0)  # states differ more, and so do their categories
    history, index = histories(model), model.catalogue()
    items, scores, books = model.search(history, index, width=N_ITEMS, k=N_ITEMS)
    free = ask(model, history, N_ITEMS)
    assert torch.equal(free[0], items)
    seen = categories_of(model, history, items, books)
    agree = (seen[..., 1:3] == seen[..., :2]).sum(2)  # the pairs before the last step
    assert {0, 1, 2} <= set(agree.flatten().tolist())
    for corp, least in ((1.0, 2), (None, 1), (0.34, 1), (0.33, 0)):
        model.config = dataclasses.replace(model.config, corp=corp)
        found, kept = ask(model, history, N_ITEMS)
        for row in range(len(found)):
            good = items[row][agree[row] >= least].tolist()
            rest = items[row][agree[row] < least].tolist()
            assert found[row].tolist() == good + rest
            assert torch.allclose(kept[row, : len(good)], scores[row][agree[row] >= least], atol=1e-4)
        assert torch.equal(exact(model, history).argmax(1), found[:, 0])
    nobody = torch.isin(torch.arange(N_ITEMS + 1), items[0][agree[0] < 2])
    model.config = dataclasses.replace(model.config, corp=1.0)
    one = pick(history, [0])
    pruned = ask(model, one, 3, beams=3, allowed=nobody)[0]
    assert bool((pruned > 0).all())


def test_a_narrow_search_returns_as_many_catalogue_items_as_are_left():
    model = build()
    history = histories(model)
    seen, _ = ask(model, history, N_ITEMS)
    for k in (1, 5):
        items, scores = ask(model, history, k, beams=1, excluded=seen[:, k:])
        assert [set(row) for row in items.tolist()] == [set(row) for row in seen[:, :k].tolist()]
        assert bool((scores.diff(dim=1) <= 0).all())
    recommender = Recommender(build(ranking="beam", beams=4), ITEM_IDS)
    answer = recommender.recommend(["i07", "i03", "i44"], k=N_ITEMS - 3)
    assert set(answer.ids) == set(ITEM_IDS) - {"i07", "i03", "i44"}
    assert answer.scores == sorted(answer.scores, reverse=True)


def test_items_with_the_same_codes_are_both_found_and_those_added_later_too():
    model = build()
    history = histories(model)
    grown = model.with_codes(model.codes[[7, 9]])
    before, after = exact(model, history), exact(grown, history)
    assert torch.allclose(before, after[:, :-2], atol=1e-4)
    assert torch.equal(after[:, [7, 9]], after[:, -2:])
    items, _ = ask(grown, history, N_ITEMS + 2)
    assert sorted(items[0].tolist()) == list(range(1, N_ITEMS + 3))
    read, _ = ask(grown, History(torch.tensor([[N_ITEMS + 1, 3]])), 3)
    assert torch.equal(read, ask(grown, History(torch.tensor([[7, 3]])), 3)[0])


def test_cold_items_take_their_share_of_a_list_and_no_more():
    model = build(cold_share=0.2)
    model.cold = torch.arange(N_ITEMS + 1) > 25
    items, _ = ask(model, histories(model), 10)
    assert bool(((items > 25).sum(1) <= 2).all())
    assert bool((items > 0).all())


def test_what_it_cannot_use_is_refused():
    for wrong, said in (
        ({"corp": 1.5}, "corp = 1.5: a share"),
        ({"random_first": -0.1}, "random_first"),
        ({"cold_match": True}, "cold_match needs codes in an order"),
        ({"preference": {"gamma": 1.2}}, "gamma = 1.2: above 0 and at most 1"),
        ({"preference": {"group": 1}}, "a group at least 2"),
    ):
        with pytest.raises(EnsuiteError, match=said):
            resolve("reg4rec", {"model": wrong})
    with pytest.raises(EnsuiteError, match="group = 90 paths cannot end in as many of only 50 items"):
        build(pars=True, preference=PARSConfig(group=90))


def test_its_recipes_resolve():
    recipes = sorted((Path(__file__).parents[2] / "recipes" / "reg4rec").glob("*.yaml"))
    assert len(recipes) >= 2
    for path in recipes:
        values, where = read_recipe(path)
        _, config = resolve("reg4rec", values, where=where)
        assert config.codes is not None
        made = build_config(tokeniser_class(config.codes.tokeniser).Config, config.codes.settings, where)
        assert config.codes.tokeniser == "mpq"
        assert made.levels >= 4
