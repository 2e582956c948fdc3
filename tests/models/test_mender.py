"""Mender: what it reads, that it can be steered, what is learned and what is kept, both forms."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preferences.wishes import COLOURS, KINDS, TITLE, World, make_world

from ensuite.codes.table import SemanticIdTable
from ensuite.content.encoders import load_encoder
from ensuite.content.vectors import encode_items
from ensuite.data.batches import Batch, History
from ensuite.errors import EnsuiteError
from ensuite.models.materials import Materials
from ensuite.models.mender import PREFERENCE_TOKENS, Mender, MenderConfig
from ensuite.serve.recommender import Recommender
from ensuite.training.config import read_recipe, resolve
from ensuite.training.loop import train
from ensuite.training.run import Run, load_run

pytest.importorskip("transformers")
N_ITEMS = len(KINDS) * len(COLOURS)
SMALL = {"dim": 16, "blocks": 1, "heads": 2, "head_dim": 8, "inner": 24, "dropout": 0.0, "max_length": 6}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep vectors of these texts out of the user's cache."""
    monkeypatch.setenv("ENSUITE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The three of the ablation."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENSUITE_CACHE", str(folder / "cache"))
        return {
            inputs: train("mender", world.dataset, folder / inputs, recipe=world.recipe(inputs=inputs))
            for inputs in ("both", "history", "preference")
        }


@pytest.fixture(scope="module")
def materials(world: World, tmp_path_factory: pytest.TempPathFactory) -> Materials:
    table = SemanticIdTable.load(world.codes)
    encoder = load_encoder(str(world.encoder))
    cache = tmp_path_factory.mktemp("cache")
    found = encode_items(world.dataset.items, TITLE, encoder, where="items", cache=cache)
    vectors = torch.nn.functional.pad(torch.from_numpy(found.vectors), (0, 0, 1, 0))
    texts = ["", *world.dataset.items["title"]]
    books = [torch.randn(len(KINDS), 24), torch.randn(len(COLOURS), 24)]
    return Materials(table, vectors, books, texts=texts, encoder=table.provenance["encoder"])


def build(materials: Materials, **settings: Any) -> Mender:
    torch.manual_seed(0)
    config = Mender.sized_for(
        dataclasses.replace(MenderConfig(**(SMALL | settings)), level_sizes=()), materials
    )
    model = Mender(config, N_ITEMS)
    model.take(materials)
    return model.eval()


def told(model: Mender, items: torch.Tensor, *texts: str) -> History:
    """Histories with the same preferences stated in each."""
    stated = model.encode_preferences(texts)[None].expand(len(items), -1, -1)
    return History(items, preferences=stated)


@torch.inference_mode()
def scores(model: Mender, history: History) -> torch.Tensor:
    return model.exact_scores(history, model.catalogue())[:, 1:]


ITEMS = torch.tensor([[1, 6, 11, 0], [2, 7, 12, 17], [50, 0, 0, 0]])


def test_preference_and_history_together_beat_either_alone(runs):
    best = {name: run.card["training"]["best_ndcg@10"] for name, run in runs.items()}
    assert best["both"] > max(best["history"], best["preference"]) + 0.1


def test_what_is_stated_moves_the_ranking_and_nothing_stated_gives_one_too(runs):
    recommender = Recommender.of(load_run(runs["both"].path))
    history = ["i00", "i05", "i10"]
    ask = functools.partial(recommender.recommend, history, k=10, exclude="none")
    lists = {kind: ask(preference=f"find {kind}").ids for kind in KINDS}
    of_kind = [int(ids[0][1:]) // len(COLOURS) == n for n, ids in enumerate(lists.values())]
    assert sum(of_kind) >= 8
    overlaps = [len(set(a) & set(b)) for a in lists.values() for b in lists.values() if a is not b]
    assert np.mean(overlaps) < 10
    plain = ask()
    assert len(set(plain.ids)) == 10
    assert all(np.isfinite(plain.scores))
    asks = [["i00"], ["i07", "i03"]]
    many = recommender.recommend(asks, k=3, preference="find oil")
    assert [one.ids for one in many] == [
        recommender.recommend(ask, k=3, preference="find oil").ids for ask in asks
    ]


def test_a_preference_that_cannot_be_read_is_refused(runs):
    without = Recommender.of(runs["history"])
    with pytest.raises(EnsuiteError, match="this Mender reads no preference; leave it out"):
        without.recommend(["i00"], preference="find oil")
    with pytest.raises(EnsuiteError, match="a preference is empty"):
        Recommender.of(runs["both"]).recommend(["i00"], preference=" ")


@pytest.mark.parametrize("form", ["emb", "tok"])
def test_search_gives_items_of_the_catalogue_as_many_as_asked_for(materials, form):
    model = build(materials, form=form, ranking="beam")
    history = told(model, ITEMS, "find soap")
    with torch.inference_mode():
        items, found = model.generate(history, 7, beams=7, excluded=ITEMS)
        everything, exact = model.generate(history, N_ITEMS)
    assert items.shape == (3, 7)
    for row, seen in zip(items.tolist(), ITEMS.tolist()):
        assert len(set(row)) == 7
        assert set(row) <= set(range(1, N_ITEMS + 1)) - set(seen)
    assert bool((found.diff(dim=1) <= 0).all())
    assert torch.allclose(scores(model, history).gather(1, everything - 1), exact, atol=1e-4)


@pytest.mark.parametrize("form", ["emb", "tok"])
def test_padding_changes_nothing(materials, form):
    model = build(materials, form=form)
    plain = told(model, ITEMS, "find soap")
    wide = told(model, torch.nn.functional.pad(ITEMS, (0, 2)), "find soap")
    alone = told(model, ITEMS[:1, :3], "find soap")
    more = dataclasses.replace(plain, preferences=torch.nn.functional.pad(plain.preferences, (0, 0, 0, 4)))
    assert torch.allclose(scores(model, plain), scores(model, wide), atol=1e-5)
    assert torch.allclose(scores(model, plain), scores(model, more), atol=1e-5)
    assert torch.allclose(scores(model, plain)[:1], scores(model, alone), atol=1e-5)


def test_without_the_mask_zeros_are_attended_to_in_a_fixed_number(materials):
    model = build(materials, mask=False)
    memory, mask = model.memory(told(model, ITEMS, "find soap"))
    assert mask is None
    assert memory.shape[1] == 1 + model.max_length
    assert torch.allclose(memory[2, 2:], model.read.bias.expand(5, -1))
    wide = told(model, torch.nn.functional.pad(ITEMS, (0, 2)), "find soap")
    assert torch.allclose(scores(model, told(model, ITEMS, "find soap")), scores(model, wide), atol=1e-5)
    masked = build(materials)
    assert not torch.allclose(
        scores(masked, told(masked, ITEMS, "find soap")), scores(model, wide), atol=1e-4
    )


def test_five_preferences_and_the_last_items_are_the_memory(materials):
    model = build(materials)
    texts = [f"find {kind}" for kind in KINDS[:5]]
    memory, mask = model.memory(told(model, ITEMS, *texts))
    assert memory.shape[1] == 5 + 4
    assert mask.sum(1).tolist() == [5 + 3, 5 + 4, 5 + 1]
    expected = model.read(torch.cat([model.encode_preferences(texts), model.item_content[ITEMS[1]]]))
    assert torch.allclose(memory[1], expected, atol=1e-6)


def test_kept_item_vectors_are_what_the_encoder_says_now(materials, runs):
    for model in (build(materials), runs["both"].model):
        now = load_encoder(model.config.encoder).encode(materials.texts[1:])
        assert np.abs(model.item_content[1:].numpy() - now).max() < 1e-4


def test_the_oldest_items_are_dropped_whole_and_a_preference_never(materials):
    model = build(materials, form="tok", max_length=20)
    assert model.config.most_tokens == 160  # what the encoder reads
    long = torch.arange(1, 21)[None].repeat(2, 1)
    lengths = [0, *(min(6 + item, 32) for item in range(1, N_ITEMS + 1))]
    model.item_content = torch.tensor([[3] * n + [0] * (32 - n) for n in lengths], dtype=torch.int32)
    history = told(model, long, "find soap", "avoid red brush")
    words, real = model.lay_out(history.preferences, model.item_content[long])
    stated = [token - 1 for row in history.preferences[0].tolist() for token in row if token]
    front, _ = model.lay_out(history.preferences, model.item_content[long[:, :0]])
    head = front[0].tolist()
    assert head[-1 - len(stated) : -1] == stated
    room = 160 - len(head)
    kept = next(n for n in range(20) if sum(lengths[20 - n : 21]) > room)  # items that fit, from the newest
    assert 0 < kept < 20
    assert words[0][real[0]].tolist() == head + [2] * sum(lengths[21 - kept : 21])
    other = long.clone()
    other[:, 0] = 25  # it was dropped
    changed = scores(model, dataclasses.replace(history, items=other))
    assert torch.equal(changed, scores(model, history))
    other[:, -1] = 25
    assert not torch.allclose(scores(model, dataclasses.replace(history, items=other)), changed, atol=1e-4)
    with pytest.raises(EnsuiteError, match=f"at most {PREFERENCE_TOKENS} are read, and none is cut"):
        model.encode_preferences(["find soap " * 40])


def batch_of(model: Mender, unwanted: bool = False) -> Batch:
    targets = torch.zeros_like(ITEMS)
    targets[torch.arange(3), (ITEMS > 0).sum(1) - 1] = torch.tensor([16, 22, 5])
    history = told(model, ITEMS, "find soap")
    return Batch(history, targets, torch.arange(3), unwanted=torch.full((3,), unwanted))


def test_a_frozen_encoder_learns_nothing_and_is_no_part_of_the_run(materials):
    model = build(materials, form="tok").train()
    encoder = model.text_encoder("cpu").model
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model.loss(batch_of(model)).backward()
    assert all(p.grad is None for p in encoder.parameters())
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not encoder.training
    kept = sum(value.numel() for value in model.state_dict().values())
    assert kept == sum(p.numel() for p in model.parameters()) + sum(b.numel() for b in model.buffers())
    assert not [name for name in model.state_dict() if "embeddings" in name]


def test_with_adapters_only_they_the_map_and_the_decoder_learn(materials):
    pytest.importorskip("peft", reason="peft is not installed: pip install 'ensuite[lora]'")
    model = build(materials, form="tok", adapter="lora", adapter_rank=2).train()
    encoder = model.text_encoder("cpu").model
    adapted = {name.split("/lora")[0] for name in model.adapters}
    assert len(adapted) == 2 * 4  # query, key, value and output of two layers
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(2):  # at first one factor of each adapter is 0
        optimizer.zero_grad()
        model.loss(batch_of(model)).backward()
        optimizer.step()
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]) != ("lora" in name), name
    fresh = build(materials, form="tok", adapter="lora", adapter_rank=2)
    fresh.load_state_dict(model.state_dict())
    history = told(model, ITEMS, "find soap")
    assert torch.equal(scores(fresh, history), scores(model.eval(), history))


def test_scores_are_what_the_loss_trains(materials):
    for form in ("emb", "tok"):
        model = build(materials, form=form)
        batch = batch_of(model)
        found = scores(model, batch.history)
        expected = found[torch.arange(3), batch.targets.amax(1) - 1].mean()
        with torch.inference_mode():
            assert float(model.loss(batch)) * 2 == pytest.approx(-float(expected), abs=1e-4)


@pytest.mark.parametrize("negative", ["unlikelihood", "clamped"])
def test_what_must_not_come_goes_down_as_far_as_it_makes_sense(materials, negative):
    model = build(materials, negative=negative).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    wanted, unwanted = batch_of(model), batch_of(model, unwanted=True)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(wanted).backward()
        optimizer.step()
    target = wanted.targets.amax(1) - 1
    before = scores(model.eval(), wanted.history)[torch.arange(3), target]
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.train().loss(unwanted)
        loss.backward()
        optimizer.step()
        assert loss.item() >= 0
    after = scores(model.eval(), wanted.history)[torch.arange(3), target]
    assert bool((after < before - 2).all())
    if negative == "clamped":
        optimizer.zero_grad()
        loss = model.loss(unwanted)
        loss.backward()
        assert loss.item() == 0  # below chance the push ends
        assert not any(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)


def test_tokens_can_start_from_what_codes_stand_for(materials):
    model = build(materials, from_codebooks=True)
    assert model.widen is not None
    for level, book in enumerate(materials.codebooks):
        first = model.first_tokens[level]
        assert torch.equal(model.tokens.weight[first : first + len(book)], book)
    with_digit = dataclasses.replace(materials, codebooks=materials.codebooks[:1])
    digit = build(with_digit, from_codebooks=True).tokens.weight[len(KINDS) : len(KINDS) + len(COLOURS)]
    assert torch.equal(digit[0], torch.tensor([0.0, 1.0] * 12))
    with pytest.raises(EnsuiteError, match="these codes stand for nothing"):
        build(dataclasses.replace(materials, codebooks=None), from_codebooks=True)


def test_items_added_after_training_are_found_and_passed_over_in_histories(materials):
    model = build(materials)
    model.config = dataclasses.replace(model.config, level_sizes=model.config.level_sizes)
    grown = model.with_codes(torch.tensor([[0, 0]]))
    assert bool(scores(grown, told(grown, ITEMS, "find soap")).isfinite().all())
    with_new = told(grown, torch.tensor([[1, 6, N_ITEMS + 1]]), "find soap")
    without = told(grown, torch.tensor([[1, 6]]), "find soap")
    assert torch.allclose(scores(grown, with_new), scores(grown, without), atol=1e-5)
    known = model.with_codes(torch.tensor([[0, 0]]), model.item_content[11:12])
    as_known = told(known, torch.tensor([[1, 6, 11]]), "find soap")
    assert torch.allclose(scores(known, with_new), scores(known, as_known), atol=1e-5)


def test_texts_are_encoded_once_for_all_trainings(materials, monkeypatch: pytest.MonkeyPatch):
    texts = ["find soap at dawn", "avoid tea", "find soap at dawn"]
    first = build(materials).encode_preferences(texts)
    assert torch.equal(first[0], first[2])
    again = build(materials)
    alone = again.encode_preferences(texts[1:2])
    monkeypatch.setattr(type(again.text_encoder("cpu")), "encode", lambda *_: pytest.fail("encoded anew"))
    assert torch.equal(again.encode_preferences(texts), first)
    assert torch.allclose(alone, first[1:2], atol=1e-5)


def test_another_encoder_is_refused(materials, world, tmp_path: Path):
    folder = tmp_path / "encoder"
    shutil.copytree(world.encoder, folder)
    model = build(dataclasses.replace(materials, encoder={**materials.encoder, "name": str(folder)}))
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(EnsuiteError, match="not the encoder that this model was trained with: its hash"):
        model.encode_preferences(["find soap"])
    codes_of_a_run = dataclasses.replace(materials, encoder={"name": "run:runs/x", "hash": "h"})
    with pytest.raises(EnsuiteError, match=r"codes were made of run:runs/x, not of texts alone"):
        build(codes_of_a_run)
    assert build(codes_of_a_run, form="tok", encoder=str(world.encoder)).config.encoder == str(world.encoder)
    of_both = dataclasses.replace(materials, encoder={**materials.encoder, "images": "{image}"})
    with pytest.raises(EnsuiteError, match="not of texts alone"):
        build(of_both)
    with pytest.raises(
        EnsuiteError, match=r"model.encoder = minilm: form emb reads by the encoder of the codes"
    ):
        build(materials, encoder="minilm")


def test_what_contradicts_itself_is_refused():
    for settings, why in (
        ({"adapter": "lora"}, "adapter = lora changes the encoder"),
        ({"form": "tok", "mask": False}, "mask = false is a matter of form = emb"),
        ({"from_codebooks": True, "tied": True}, "tied scores codes by tokens"),
    ):
        with pytest.raises(ValueError, match=why):
            MenderConfig(**settings)


def test_its_recipes_resolve():
    recipes = sorted((Path(__file__).parents[2] / "recipes" / "mender").glob("*.yaml"))
    assert len(recipes) >= 3
    for path in recipes:
        values, where = read_recipe(path)
        assert resolve("mender", values, where=where)[1].samples.kind == "prefixes"
