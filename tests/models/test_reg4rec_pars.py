"""REG4Rec's second stage: rewards, groups of paths, the window that ends with the training events, runs."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from conftest import make_dataset
from small_models import (
    N_ITEMS,
    made_up_dataset,
    made_up_log,
    small_config,
    small_materials,
    training_batch,
)

from ensuite.codes.table import SemanticIdTable
from ensuite.data.dataset import Dataset
from ensuite.data.samples import Samples, SamplesConfig
from ensuite.errors import EnsuiteError
from ensuite.models._reg4rec_pars import PARSConfig, advantages, clipped_loss, count_hits, path_rewards
from ensuite.models.reg4rec import REG4Rec
from ensuite.serve.recommender import Recommender
from ensuite.training.categories import CLUSTERS, categorise, leaf
from ensuite.training.config import resolve
from ensuite.training.loop import train
from ensuite.training.run import load_run, read_tensors


def hits(categories: list[int], right: list[bool]) -> list[float]:
    """Count for a path of three steps whose codes are right or not; the target's category is 27."""
    codes = torch.where(torch.tensor(right), torch.tensor([5, 2, 7]), 9)
    return count_hits(codes, torch.tensor(categories), torch.tensor([5, 2, 7]), torch.tensor(27)).tolist()


def test_rewards_are_those_of_the_papers_figure():
    assert hits([30, 30, 27], [True, False, True]) == [2, 0, 1, 1]
    assert hits([27, 30, 27], [True, True, True]) == [3, 1, 2, 0]
    assert hits([30, 30, 30], [False, False, False]) == [
        0,
        0,
        0,
        2,
    ]  # coherent, and wrong: it pays all the same
    assert hits([27, 30, 30], [True, True, False]) == [2, 0, 1, 1]
    assert hits([12, 12, 12], [True, True, True])[1] == 1


def group(n: int = 3) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randint(3, shape, generator=g)

    return draw(4, 5, 3), draw(4, 5, 3), draw(4, n, 3), draw(4, n), torch.rand(4, n, generator=g) < 0.7


def test_rewards_against_the_items_that_follow_weigh_less_and_less():
    codes, categories, ahead, of_ahead, real = group()
    c = PARSConfig(step_hit=1.0, global_path=2.0, category_hit=0.5, step_consistency=0.25, gamma=0.6)
    found = path_rewards(codes, categories, ahead, of_ahead, real, c)
    for b in range(4):
        for g in range(5):
            wanted = 0.0
            for n in range(3):
                counts = count_hits(codes[b, g], categories[b, g], ahead[b, n], of_ahead[b, n])
                parts = counts / torch.tensor([3, 1, 3, 2]) * torch.tensor([1.0, 2.0, 0.5, 0.25])
                wanted += 0.6**n * float(parts.sum()) * bool(real[b, n])
            assert float(found[b, g]) == pytest.approx(wanted, abs=1e-6)
    one = path_rewards(codes, categories, ahead[:, :1], of_ahead[:, :1], real[:, :1], c)
    alone = torch.zeros_like(real)
    alone[:, 0] = real[:, 0]
    assert torch.equal(one, path_rewards(codes, categories, ahead, of_ahead, alone, c))  # N = 1: no MSRA
    whole = torch.ones_like(real)
    for gamma in (1e-3, 0.5, 1.0):
        just = dataclasses.replace(c, gamma=gamma)
        same = ahead[:, :1].expand(-1, 3, -1), of_ahead[:, :1].expand(-1, 3)
        by_item = [
            path_rewards(codes, categories, same[0][:, :n], same[1][:, :n], whole[:, :n], just)
            for n in (1, 2, 3)
        ]
        assert bool((by_item[2] - by_item[1] <= by_item[1] - by_item[0] + 1e-6).all())


def test_advantages_of_a_group_sum_to_zero_and_equal_rewards_teach_nothing():
    rewards = torch.rand(6, 8) * 3
    rewards[2] = 0.7
    found = advantages(rewards)
    assert torch.allclose(found.sum(1), torch.zeros(6), atol=1e-5)
    assert found[2].abs().max() < 1e-9
    assert bool((found.argmax(1) == rewards.argmax(1))[[0, 1, 3, 4, 5]].all())
    log_probs = torch.randn(1, 8, 3, requires_grad=True)
    old = log_probs.detach() + 0.1 * torch.randn(1, 8, 3)
    free, bound = PARSConfig(kl=0.0), PARSConfig(kl=0.5)
    (without,) = torch.autograd.grad(clipped_loss(log_probs, old, old, found[2:3], free), log_probs)
    assert without.abs().max() < 1e-9
    (only_kl,) = torch.autograd.grad(clipped_loss(log_probs, old, old, found[2:3], bound), log_probs)
    assert torch.allclose(only_kl, 0.5 / 24 * (1 - (old - log_probs.detach()).exp()), atol=1e-6)
    assert bool((only_kl * (log_probs.detach() - old) >= -1e-9).all())  # it pulls back to the reference


def test_the_clipped_loss_by_hand():
    c = PARSConfig(clip=0.2, kl=0.0)
    ratio = torch.tensor([[[1.5], [0.5], [1.5], [0.5]]])
    log_probs = ratio.log().requires_grad_()
    gain = torch.tensor([[2.0, 2.0, -1.0, -1.0]])
    loss = clipped_loss(log_probs, torch.zeros_like(ratio), torch.zeros_like(ratio), gain, c)
    assert loss.item() == pytest.approx(-(1.2 * 2 + 0.5 * 2 - 1.5 - 0.8) / 4)
    loss.backward()
    assert log_probs.grad is not None
    moved = log_probs.grad.flatten() != 0
    assert moved.tolist() == [False, True, True, False]  # beyond the clip nothing is gained


def test_what_is_read_ahead_ends_with_the_training_events(tmp_path: Path):
    config = SamplesConfig(kind="prefixes", ahead=3)
    for validation, test in ((7, 8), (8, 6)):
        users = [[1, 2, 3, 4, validation, test], [5, 9, validation, test], [6, 7, 8]]
        dataset = make_dataset(tmp_path / f"{validation}", users, n_items=9)
        samples = Samples(dataset.events("train"), config, max_length=5, batch_size=64, seed=0)
        batch = samples.batch(0, 0)
        order = batch.number.argsort()
        assert batch.number[order].tolist() == [0, 1, 2, 3]
        assert sorted(batch.ahead.tolist()) == [[2, 3, 4], [3, 4, 0], [4, 0, 0], [9, 0, 0]]
        assert torch.equal(batch.ahead[:, 0], batch.targets.sum(1))
        again = samples.batch(1, 0)
        assert torch.equal(again.ahead[again.number.argsort()], batch.ahead[order])
    with pytest.raises(ValueError, match="use kind = prefixes, or ahead = 0"):
        SamplesConfig(kind="last-position", ahead=2)


def aligned(**settings: Any) -> tuple[REG4Rec, Samples, Any]:
    """Build a model whose paths of the first epoch are drawn."""
    _, config = small_config("reg4rec")
    preference = dataclasses.replace(config.model.preference, **settings)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, preference=preference))
    torch.manual_seed(0)
    model = REG4Rec(config.model, N_ITEMS)
    model.take(small_materials(config))
    model.fit(made_up_log())
    samples = Samples(made_up_log(), config.samples, max_length=model.max_length, batch_size=64, seed=0)
    model.train()
    model.start_epoch(0, samples.everything())
    return model, samples, config


def test_paths_are_kept_by_sample_and_a_policy_is_one_time_itself():
    model, samples, config = aligned()
    batch = training_batch(model, config)
    with torch.no_grad():
        items, books = model._drawn(batch)
        assert items.shape == (len(batch.user), 8)
        assert bool((items > 0).all())
        assert all(len(set(row)) == 8 for row in items.tolist())
        assert books.sort(2).values.unique(dim=0).shape[0] == 1
        log_probs, categories = model._judge(batch, items, books)
        assert torch.allclose(log_probs, model.behaviour[batch.number], atol=1e-5)  # no dropout either
        rewards = path_rewards(
            model.codes[items], categories, model.codes[batch.ahead], model.categories[batch.ahead],
            batch.ahead > 0, model.config.preference,
        )  # fmt: skip
        assert torch.allclose(advantages(rewards), model.advantage[batch.number], atol=1e-3)
        assert float(model.loss(batch)) == pytest.approx(0, abs=1e-4)
    assert len(model.drawn_items) == samples.n_samples


def test_paths_are_drawn_anew_as_often_as_asked_and_the_reference_stays():
    model, samples, _ = aligned(refresh_every=2)
    first, before = model.behaviour.clone(), model.drawn_items.clone()
    start = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    now = [p.detach().clone() for p in model.parameters()]
    model.start_epoch(1, samples.everything())
    assert torch.equal(model.drawn_items, before)
    assert torch.equal(model.behaviour, first)
    model.start_epoch(2, samples.everything())
    assert not torch.equal(model.drawn_items, before)
    assert all(torch.equal(a, b) for a, b in zip(now, model.parameters()))
    batch = samples.batch(0, 0)
    with torch.no_grad():
        model._set(start)
        log_probs, _ = model._judge(batch, *model._drawn(batch))
    assert torch.allclose(log_probs, model.reference_log_probs[batch.number], atol=1e-4)
    assert not torch.allclose(model.behaviour, model.reference_log_probs, atol=1e-2)


def test_a_constant_category_is_warned_of(caplog):
    caplog.set_level(logging.INFO, "ensuite.models._reg4rec_pars")
    aligned()
    assert "entropy of the predicted categories" in caplog.text
    assert "nearly all paths" not in caplog.text
    model, samples, _ = aligned()
    with torch.no_grad():
        model.category_head.bias[2] = 1e3
    model.start_epoch(0, samples.everything())
    assert "the steps of nearly all paths predict one category" in caplog.text


def test_better_paths_become_likelier():
    model, _, config = aligned()
    batch = training_batch(model, config, batch_size=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(10):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    with torch.no_grad():
        log_probs, _ = model._judge(batch, *model._drawn(batch))
    gained = (log_probs - model.behaviour[batch.number]).sum(2)
    better = model.advantage[batch.number] > 0
    assert float(gained[better].mean()) > 0.1 + float(gained[~better].mean())


def test_categories_come_from_a_column_and_what_it_leaves_open_from_clusters():
    assert leaf([["Beauty", "Hair Care", "Shampoos"], ["Beauty", "Sets"]]) == "Shampoos"
    assert [leaf(v) for v in (None, "", " ", [], [[]])] == [None] * 5
    assert [leaf(v) for v in (" x ", ["a", "b"], 7)] == ["x", "b", "7"]

    def never() -> torch.Tensor:
        raise AssertionError("the column says all")

    items = pl.DataFrame({"item_id": [1, 2, 3, 4], "genres": [["x", "b"], ["a"], ["b"], ["c", "a"]]})
    assert categorise(items, "", "data", never, 0).tolist() == [-1, 1, 0, 1, 0]
    vectors = torch.randn(101, 4)
    holes = pl.DataFrame({"item_id": range(100), "shelf": ["s"] * 50 + [""] * 50})
    found = categorise(holes, "shelf", "data", lambda: vectors, 0)
    assert found[1:51].unique().tolist() == [0]
    assert found[51:].unique().tolist() == list(range(1, CLUSTERS + 1))
    assert torch.equal(found, categorise(holes, "shelf", "data", lambda: vectors, 0))
    few = categorise(holes[:5].select("item_id"), "", "data", lambda: vectors[:6], 0)
    assert few.tolist() == [-1, *few[1:].tolist()]
    assert sorted(few[1:].tolist()) == list(range(5))
    with pytest.raises(EnsuiteError, match=r"codes\.category = 'kind': no such item column"):
        categorise(items, "kind", "data", never, 0)


RECIPE = {
    "model": {
        "dim": 16,
        "blocks": 1,
        "heads": 2,
        "head_dim": 8,
        "inner": 16,
        "max_length": 8,
        "preference": {"stride": 4, "lr": 0.001},
    },
    "training": {"epochs": 2, "batch_size": 64},
}


@pytest.fixture
def data(tmp_path: Path) -> tuple[Dataset, dict[str, Any]]:
    """The made-up log with a column of categories, and a recipe that names its codes."""
    dataset = made_up_dataset(tmp_path / "data", category=[f"c{n % 5}" for n in range(N_ITEMS)])
    _, config = small_config("reg4rec")
    table = small_materials(config).codes
    assert isinstance(table, SemanticIdTable)
    table.save(tmp_path / "codes")
    return dataset, RECIPE | {"codes": {"table": str(tmp_path / "codes")}}


def test_two_stages_are_one_run_that_goes_on_where_it_was_cut(data, tmp_path: Path):
    dataset, recipe = data
    whole = train("reg4rec", dataset, tmp_path / "whole", recipe=recipe)
    base = load_run(tmp_path / "whole" / "base")
    assert not base.config.model.pars
    assert base.config.training.epochs == whole.config.training.epochs == 2
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["kind"] == "train"] == [1, 2]
    assert (
        lines[0]["sequences"]
        < 0.4
        * json.loads((tmp_path / "whole" / "base" / "metrics.jsonl").read_text().splitlines()[0])["sequences"]
    )
    assert whole.config.model.n_categories == 5

    class Stop(Exception):
        pass

    def stop(epoch: int, _: Any) -> None:
        if epoch == 1:
            raise Stop

    with pytest.raises(Stop):
        train("reg4rec", dataset, tmp_path / "cut", recipe=recipe, on_validation=stop)
    resumed = train("reg4rec", dataset, tmp_path / "cut", resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    kept, _ = read_tensors(tmp_path / "whole" / "model.safetensors", "")
    assert not set(kept) & set(REG4Rec.training_only)  # finished weights are the network's
    held, _ = read_tensors(tmp_path / "whole" / "last.safetensors", "")
    assert {f"model.{name}" for name in REG4Rec.training_only} <= set(held)
    assert Recommender.load(tmp_path / "whole").recommend(["i07"], k=5).ids
    more = train("reg4rec", dataset, tmp_path / "more", start_from=tmp_path / "whole" / "base", recipe={
        "model": {"pars": True}, "training": RECIPE["training"]
    })  # fmt: skip
    assert not (tmp_path / "more" / "base").exists()
    assert more.card["training"]["epochs"] == 2  # preference.epochs: there is one stage, the second


def test_both_stages_know_the_codes_that_the_run_makes(data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dataset, _ = data
    train("sasrec", dataset, tmp_path / "sasrec", recipe={"training": {"epochs": 1}})
    made = {"tokeniser": "rq-k-means", "settings": {"levels": 2, "size": 6}}
    recipe = RECIPE | {"codes": {"encoder": f"run:{tmp_path / 'sasrec'}"} | made}

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("ensuite.training.loop._first_stage", stop)
        with pytest.raises(KeyboardInterrupt):
            train("reg4rec", dataset, tmp_path / "run", recipe=recipe)
    run = train("reg4rec", dataset, tmp_path / "run", resume=True)
    base = load_run(tmp_path / "run" / "base")
    assert base.config.codes.table == str(tmp_path / "run" / "codes")
    assert not (tmp_path / "run" / "base" / "codes").exists()
    assert torch.equal(base.model.codes, run.model.codes)
    assert run.config.model.digit
    assert run.card["state"] == "reconstruction, measured"


def test_what_comes_after_training_moves_no_reward(data, tmp_path: Path):
    dataset, recipe = data
    _, config = resolve("reg4rec", recipe)
    found = []
    for shift in (0, 7):
        items = np.asarray(dataset.events("all").item_idx).copy()
        events = dataset.events("train")
        later = np.ones(len(items), bool)
        later[events.rows()] = False
        items[later] = (items[later] + shift - 1) % N_ITEMS + 1
        events = dataclasses.replace(events, item_idx=items)
        model, _, _ = aligned()
        samples = Samples(events, config.samples, max_length=8, batch_size=64, seed=0)
        torch.manual_seed(3)
        model.start_epoch(0, samples.everything())
        found.append(model.advantage)
    assert torch.equal(*found)


def test_the_second_stage_needs_a_target(data, tmp_path: Path):
    dataset, recipe = data
    with pytest.raises(EnsuiteError, match="1 is the target alone"):
        train("reg4rec", dataset, tmp_path / "run", recipe=recipe | {"samples": {"ahead": 0}})
    assert not (tmp_path / "run").exists()
