"""H2Rec: its identities, branches and losses, what it must not see, and what it grows by."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_dataset
from small_models import (
    ITEM_IDS,
    N_ITEMS,
    made_up_dataset,
    made_up_log,
    materials_section,
    pick,
    small_config,
    small_materials,
    training_batch,
)

from ensuite.codes.build import build_table
from ensuite.codes.kinds import tokeniser_class
from ensuite.codes.table import SemanticIdTable
from ensuite.config import build_config
from ensuite.data.batches import Batch, History, read_history
from ensuite.data.dataset import Events
from ensuite.errors import EnsuiteError
from ensuite.models.base import Retriever
from ensuite.models.h2rec import H2Rec, H2RecConfig
from ensuite.models.materials import Materials
from ensuite.models.sasrec import SASRec, SASRecConfig
from ensuite.objectives import ObjectiveConfig, build_objective
from ensuite.training.config import TrainingConfig
from ensuite.training.loop import train
from ensuite.training.optimizer import build_optimizer
from ensuite.training.run import load_run


def materials(*, digit: bool = False) -> Materials:
    """The small materials; items 7 and 8 have the same codes (but for a digit that tells them apart)."""
    _, config = small_config("h2rec")
    made = small_materials(config)
    assert made.codes is not None
    codes, sizes = made.codes.codes.copy(), made.codes.level_sizes
    codes[8] = codes[7]
    if digit:
        last = np.arange(N_ITEMS + 1, dtype=np.int32)[:, None] % 2
        codes, sizes = np.concatenate([codes, last], 1), (*sizes, 2)
        codes[0] = -1
    table = SemanticIdTable(codes, sizes, "digit" if digit else "shared", True, ITEM_IDS)
    return dataclasses.replace(made, codes=table)


def build(given: Materials | None = None, **settings: Any) -> H2Rec:
    _, config = small_config("h2rec")
    torch.manual_seed(0)
    c = dataclasses.replace(config.model, **{"code_weight": 0.1, "mask_weight": 0.1, **settings})
    given = given or materials()
    c = H2Rec.sized_for(c, given)
    model = H2Rec(c, N_ITEMS, build_objective(ObjectiveConfig(), N_ITEMS))
    model.take(given)
    model.fit(made_up_log())
    return model.eval()


def histories(model: H2Rec, n: int = 6, events: Events | None = None) -> History:
    events = made_up_log() if events is None else events
    starts, ends = events.offsets[:n], events.ends[:n]
    return read_history(events, np.maximum(starts, ends - model.max_length), ends)


def batch(kind: str = "every-position", size: int = 8) -> Batch:
    return training_batch(build(), small_config("h2rec", kind=kind)[1], size)


@torch.inference_mode()
def scores(model: H2Rec, history: History) -> torch.Tensor:
    return model.scorer(history, model.catalogue())(0, model.n_items + 1)


# -- identities --


@pytest.mark.parametrize(
    ("branches", "alike"), [("both", False), ("hid", False), ("mean", False), ("sid", True)]
)
def test_equal_codes_make_equal_items_only_where_nothing_else_speaks(branches: str, alike: bool):
    model = build(branches=branches)
    found = scores(model, histories(model))
    assert torch.allclose(found[:, 7], found[:, 8]) == alike
    assert not torch.allclose(found[:, 7], found[:, 9])


@pytest.mark.parametrize("pool", ["mean", "sum", "concat"])
@pytest.mark.parametrize("width", [16, 24])
def test_sids_are_pooled_codes_through_two_linear_maps(pool: str, width: int):
    given = materials()
    books = [torch.randn(size, width) for size in small_config("h2rec")[1].model.level_sizes]
    model = build(dataclasses.replace(given, codebooks=books), pool=pool)
    of = model.identities
    vectors = [of.code_vectors[of.codes[:, n] + of.offsets[n]] for n in range(4)]
    pooled = {
        "mean": torch.stack(vectors).mean(0),
        "sum": torch.stack(vectors).sum(0),
        "concat": torch.cat(vectors, 1),
    }[pool]
    assert float(pooled[1:].square().mean()) == pytest.approx(0.02**2, rel=1e-4)
    expected = pooled if of.to_sid is None else of.to_sid(pooled)
    assert (of.to_sid is None) == (width == 16 and pool != "concat")
    if of.to_sid is not None:
        torch.nn.init.normal_(of.to_sid[0].bias)
        expected = of.to_sid(pooled)
    torch.testing.assert_close(of.sid()[1:], expected[1:])
    some = torch.tensor([[0, 5], [3, 0]])
    assert not of.sid(some)[some == 0].any()
    torch.testing.assert_close(of.sid(some)[some > 0], expected[[5, 3]])
    assert not of.hid(some)[some == 0].any()
    assert not any(view[some == 0].any() for view in of.views(some))


def test_hids_start_as_principal_components():
    model, given = build(), materials()
    x = given.vectors[1:].double() - given.vectors[1:].double().mean(0)
    _, _, v = torch.linalg.svd(x, full_matrices=False)
    expected = x @ v.T
    expected *= 0.02 / expected.square().mean().sqrt()
    found = model.identities.hid()[1:].double()
    torch.testing.assert_close(found.abs(), expected.abs(), rtol=1e-3, atol=1e-6)  # but for directions
    torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(build(hid_start="random").identities.hid(), model.identities.hid())


def test_content_of_fewer_numbers_than_the_width_leaves_the_others_at_random():
    given = materials()
    model = build(dataclasses.replace(given, vectors=given.vectors[:, :5]))
    assert model.identities.axes.shape == (5, 5)
    assert model.identities.hid()[1:, 5:].abs().gt(0).all()


def test_codes_stay_as_they_are_unless_they_learn():
    for learn in (False, True):
        model = build(learn_codes=learn).train()
        before = model.identities.code_vectors.detach().clone()
        optimizer = build_optimizer(model, TrainingConfig())
        model.loss(batch()).backward()
        optimizer.step()
        assert torch.equal(model.identities.code_vectors, before) == (not learn)


def test_every_map_of_codes_learns():
    """Their maps are there before the optimiser is."""
    given = materials()
    wide = [torch.randn(size, 24) for size in small_config("h2rec")[1].model.level_sizes]
    model = build(dataclasses.replace(given, codebooks=wide)).train()
    model.loss(batch()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert model.identities.to_view is not None


def test_a_digit_that_tells_duplicates_apart_is_not_read():
    plain, digit = build(), build(materials(digit=True))
    assert digit.config.level_sizes == plain.config.level_sizes
    assert torch.equal(plain.identities.codes, digit.identities.codes)


@pytest.mark.parametrize("kind", ["rq-k-means", "rq-vae", "opq", "fsq", "mpq"])
def test_any_quantiser_will_do(kind: str):
    given = materials()
    settings: dict[str, Any] = {"levels": 2, "least_usage": 0.0}
    settings |= {"heads": 1, "steps": 2} if kind == "fsq" else {"size": 6}
    settings |= {"steps": 2} if kind in ("rq-vae", "mpq") else {}
    cls = tokeniser_class(kind)
    tokeniser = cls(build_config(cls.Config, settings, kind), 16)
    table = build_table(
        given.vectors[1:].numpy(), ITEM_IDS, tokeniser, encoder={"hash": "e"}, duplicates="shared"
    )
    books = [book.float() for book in tokeniser.code_vectors()]
    model = build(Materials(codes=table, vectors=given.vectors, codebooks=books)).train()
    assert bool(torch.isfinite(model.loss(batch())))


def test_codes_that_stand_for_nothing_start_at_random_when_asked_to():
    given = dataclasses.replace(materials(), codebooks=None)
    with pytest.raises(EnsuiteError, match="stand for nothing; give --model"):
        build(given)
    assert build(given, code_start="random").config.code_dim == 16


# -- branches --


def test_hid_alone_is_sasrec():
    model = build(branches="hid", hid_start="random", dropout=0.0)
    c = model.config
    other = SASRec(
        SASRecConfig(dim=c.dim, blocks=c.blocks, heads=c.heads, inner=c.inner, max_length=12, dropout=0.0),
        N_ITEMS,
        model.objective,
    )
    names = {"items.": "identities.items.", "blocks.": "backbones.0.blocks.", "norm.": "backbones.0.norm."}
    state = model.state_dict()
    for ours, theirs in names.items():
        state |= {name.replace(theirs, ours): state[name] for name in list(state) if name.startswith(theirs)}
    other.load_state_dict({name: state[name] for name in other.state_dict()})
    history = histories(model)
    torch.testing.assert_close(scores(model, history), scores(other.eval(), history))
    for kind in ("every-position", "prefixes"):
        torch.testing.assert_close(model.loss(batch(kind)), other.loss(batch(kind)))


OTHERS: list[dict[str, Any]] = [
    {"pool": "concat"},
    {"backbone": "gru"},
    {"shared_backbone": False},
    {"fuse_levels": False},
    {"guide_codes": False},
    {"gate": "static"},
    {"gate": "uniform", "masked": "random"},
    {"masked": "highest", "similarity": "cosine"},
    {"branches": "sid"},
    {"branches": "hid"},
    {"branches": "sum"},
    {"branches": "concat"},
]


@pytest.mark.parametrize("settings", OTHERS, ids=str)
def test_no_setting_lets_a_branch_see_what_comes_later(settings: dict[str, Any]):
    model = build(**settings)
    history = histories(model)
    moved = history.items.clone()
    moved[:, 4:] = torch.where(moved[:, 4:] > 0, moved[:, 4:] % N_ITEMS + 1, 0)
    with torch.inference_mode():
        before = model._outputs(model.read(history), history, last=False)
        later = History(moved)
        after = model._outputs(model.read(later), later, last=False)
        long = history.lengths > 4
        for one, two in zip(before, after):
            torch.testing.assert_close(one[:, :4], two[:, :4], rtol=1e-4, atol=1e-5)
            assert not torch.allclose(one[long, 4], two[long, 4], atol=1e-4)
        torch.testing.assert_close(
            model(history)[torch.arange(6), history.lengths - 1], model.encode(history), rtol=1e-4, atol=1e-5
        )
    model.train()
    for kind in ("every-position", "prefixes"):
        assert bool(torch.isfinite(model.loss(batch(kind))))


def test_as_released_later_events_are_seen():
    model = build(legacy_bidirectional=True)
    assert not model.causal
    history = histories(model)
    moved = history.items.clone()
    moved[:, 4:] = torch.where(moved[:, 4:] > 0, moved[:, 4:] % N_ITEMS + 1, 0)
    with torch.inference_mode():
        assert not torch.allclose(model(history)[:, :4], model(History(moved))[:, :4], atol=1e-4)
        one = pick(history, [1], int(history.lengths[1]))
        torch.testing.assert_close(model.encode(one), model.encode(history)[1:2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            model(history)[torch.arange(6), history.lengths - 1], model.encode(history), rtol=1e-4, atol=1e-5
        )


# -- the gate --


def test_levels_weigh_from_coarse_to_fine_and_sum_to_one():
    model = build()
    gate = model.read(histories(model)).gate
    assert gate.shape[2] == 4
    torch.testing.assert_close(gate.sum(-1), torch.ones(gate.shape[:2]))
    assert not torch.allclose(gate[0, 0], gate[1, 0])
    for layer in model.gate.layers:
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.zeros_(layer.weight)
    gate = model.read(histories(model)).gate
    prior = torch.tensor([1.0, 1 - 0.8 / 3, 0.2 + 0.8 / 3, 0.2])
    torch.testing.assert_close(gate, prior.softmax(0).expand_as(gate))
    assert bool((gate.diff(dim=-1) < 0).all())


@pytest.mark.parametrize("legacy", [False, True])
def test_slots_before_a_history_change_nothing(legacy: bool):
    """More slots on the left are a larger window, whose last positions are the same."""
    few = build(legacy_index=legacy)
    many = build(legacy_index=legacy, max_length=20)
    with torch.no_grad():
        few.positions.weight.normal_()
        many.positions.weight[-12:] = few.positions.weight
    state = {k: v for k, v in few.state_dict().items() if "positions" not in k}
    many.load_state_dict(state, strict=False)
    history = histories(few)
    asked = batch("prefixes")
    same = [
        torch.allclose(few.read(history).gate, many.read(history).gate, atol=1e-6),
        torch.allclose(scores(few, history), scores(many, history), atol=1e-6),
        bool(torch.isclose(few.loss(asked), many.loss(asked), rtol=1e-5)),
    ]
    assert same == [not legacy] * 3


def test_as_released_short_histories_share_a_gate_and_a_user_vector():
    model = build(legacy_index=True, max_length=30)
    history = History(torch.tensor([[1, 2, 3, 4], [9, 30, 31, 2]]))
    read = model.read(history)
    assert read.gate.shape[1] == 1
    torch.testing.assert_close(read.gate[0], read.gate[1])  # the position's vector alone is read
    full = model._outputs(read, history, last=False)[0]
    constant = model.mask_loss(read, history, full)
    torch.testing.assert_close(constant, torch.tensor(2.0).log())  # two equal users
    other = build()
    assert bool(other.mask_loss(*_read(other, history)) < constant - 0.1)


def _read(model: H2Rec, history: History) -> tuple[Any, History, torch.Tensor]:
    read = model.read(history)
    return read, history, model._outputs(read, history, last=True)[0]


# -- the losses --


def test_without_alignment_it_is_plain_training_to_the_bit():
    """Against `Retriever.loss`, which knows of no other loss, with the same random numbers."""
    runs = []
    for loss in (H2Rec.loss, Retriever.loss):
        model = build(code_weight=0.0, mask_weight=0.0).train()
        optimizer = build_optimizer(model, TrainingConfig(lr=0.01))
        for step in range(3):
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss(model, batch()).backward()
            optimizer.step()
        runs.append(model.state_dict())
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name
    start = build(code_weight=0.0, mask_weight=0.0).state_dict()
    other = build(code_weight=0.3, mask_weight=0.3).state_dict()
    assert all(torch.equal(value, other[name]) for name, value in start.items())
    assert set(other) - set(start) == {"instead"}


@pytest.mark.parametrize("kind", ["every-position", "prefixes"])
@pytest.mark.parametrize("of", ["code_weight", "mask_weight"])
def test_losses_add_up(kind: str, of: str):
    asked, weights = batch(kind), {"code_weight": 0.0, "mask_weight": 0.0}
    model = build(**(weights | {of: 0.5}))
    plain = build(**weights)
    plain.load_state_dict(model.state_dict(), strict=False)
    if of == "code_weight":
        added = model.code_loss(asked.targets[asked.targets > 0].unique())
    else:
        added = model.mask_loss(*_read(model, asked.history))
    torch.testing.assert_close(model.loss(asked), plain.loss(asked) + 0.5 * added)


def test_who_is_like_whom():
    model = build()
    assert model.likeness is not None
    pairs = torch.zeros(N_ITEMS + 1, N_ITEMS + 1)
    for i in range(1, N_ITEMS + 1):
        first, last = model.likeness.offsets[i : i + 2].tolist()
        pairs[i, model.likeness.neighbours[first:last]] = model.likeness.weights[first:last]
    assert 0 < float((pairs > 0).float().mean()) < 0.5
    items = torch.tensor([2, 7, 8, 20, 21, 33, 50])
    found = model.likeness(items)
    expected = pairs[items[:, None], items]
    expected.fill_diagonal_(1)
    torch.testing.assert_close(found, expected)
    with_codes = model.likeness(items, model.identities.codes[items])
    expected[1, 2] = expected[2, 1] = 1  # items 7 and 8
    torch.testing.assert_close(with_codes, expected)


def test_it_pays_that_items_with_equal_codes_have_near_hids():
    model = build()
    items = torch.tensor([1, 7, 8, 20])
    far = float(model.code_loss(items).detach())
    with torch.no_grad():
        model.identities.items.weight[[7, 8]] = model.identities.items.weight[[7, 8]].mean(0)
    assert float(model.code_loss(items).detach()) < far


def test_more_items_than_are_aligned_are_a_random_share():
    model = build(code_items=5)
    items, seen = torch.arange(1, 31), []
    likeness = model.likeness.forward
    model.likeness.forward = lambda rows, codes: seen.append(rows) or likeness(rows, codes)
    for seed in (0, 1):
        torch.manual_seed(seed)
        model.code_loss(items)
    assert [len(rows) for rows in seen] == [5, 5]
    assert not torch.equal(*seen)
    assert all(bool((rows.diff() > 0).all()) for rows in seen)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.74, 1.0])
@pytest.mark.parametrize("masked", ["lowest", "highest", "random"])
def test_exactly_so_many_levels_are_masked(share: float, masked: str):
    model = build(mask_share=share, masked=masked)
    gate = torch.rand(20, 4).softmax(1)
    found = model.masked_levels(gate)
    assert found.sum(1).tolist() == [max(1, int(4 * share))] * 20
    outside, inside = gate.masked_fill(found, torch.nan), gate.masked_fill(~found, torch.nan)
    if masked == "lowest" and share < 1:
        assert bool((inside.nan_to_num(-1).amax(1) <= outside.nan_to_num(2).amin(1)).all())
    if masked == "highest" and share < 1:
        assert bool((inside.nan_to_num(2).amin(1) >= outside.nan_to_num(-1).amax(1)).all())


def test_a_masked_level_is_not_read():
    """Where every level is masked, users differ in nothing but their gates' mixture of constants."""
    model = build(mask_share=1.0, gate="uniform")
    asked = histories(model)
    read, _, full = _read(model, asked)
    one = model.mask_loss(read, asked, full)
    other = dataclasses.replace(read, answers=torch.randn_like(read.answers))
    torch.testing.assert_close(model.mask_loss(other, asked, full), one)


def test_no_pair_stems_from_a_validation_or_test_event(tmp_path: Path):
    """Items 7 and 8 meet in training, 9 and 10 at the end of histories only."""
    dataset = make_dataset(
        tmp_path / "data", [[1 + u % 6, 7, 8, 3, 9, 10] for u in range(20)], n_items=N_ITEMS
    )
    model = build(pairs={"weigh": "decay"}, code_weight=0.1)
    model.fit(dataset.events("train"))
    assert model.likeness(torch.tensor([7, 8]))[0, 1] > 0
    assert 9 not in model.likeness.neighbours.tolist()
    assert 10 not in model.likeness.neighbours.tolist()
    model.fit(dataset.events("all"))
    assert {9, 10} <= set(model.likeness.neighbours.tolist())


def test_contradictions_are_refused():
    for settings, said in [
        ({"cross_heads": 3}, "cross_heads = 3"),
        ({"code_temperature": 0.01}, "code_temperature"),
        ({"mask_share": 1.5}, "mask_share"),
        ({"backbone": "gru", "legacy_index": True}, "not for a GRU"),
        ({"heads": 3}, "heads = 3 does not divide"),
    ]:
        with pytest.raises(EnsuiteError, match=said):
            build_config(H2RecConfig, settings, "test")
    with pytest.raises(EnsuiteError, match="one level of codes"):
        H2Rec(H2RecConfig(level_sizes=(4,), code_dim=8), 5)
    with pytest.raises(EnsuiteError, match="no table of codes was given"):
        H2Rec(H2RecConfig(), 5)


# -- new items --


def test_an_item_with_known_codes_needs_a_hid_only():
    model, given = build(), materials()
    codes = torch.from_numpy(given.codes.codes[[7, 20]])
    grown = model.with_codes(codes, given.vectors[[7, 20]])
    history = histories(model)
    before, after = scores(model, history), scores(grown, history)
    torch.testing.assert_close(after[:, : N_ITEMS + 1], before)
    torch.testing.assert_close(after[:, N_ITEMS + 1 :], before[:, [7, 20]])  # nothing has learned yet
    same = {name for name, value in model.state_dict().items() if value is not None}
    changed = {n for n in same if model.state_dict()[n].shape != grown.state_dict()[n].shape}
    assert changed == {"identities.items.weight", "identities.codes"}
    known = [p.data_ptr() for n, p in model.named_parameters() if n != "identities.items.weight"]
    assert known == [p.data_ptr() for n, p in grown.named_parameters() if n != "identities.items.weight"]
    assert model.n_items == N_ITEMS
    alone = model.with_codes(codes)
    assert not alone.identities.hid()[-2:].any()
    torch.testing.assert_close(alone.identities.sid()[-2:], model.identities.sid()[[7, 20]])
    assert build(branches="sid").with_codes(codes).n_items == N_ITEMS + 2
    with pytest.raises(EnsuiteError, match="new item 1: code 6 at level 0, which has 6"):
        model.with_codes(torch.tensor([[6, 0, 0, 0]]))


def test_an_item_like_several_has_the_codes_of_the_middle_one():
    model = build()
    with torch.no_grad():
        middle = int(
            (model.identities.sid()[[3, 9, 12]] - model.identities.sid()[[3, 9, 12]].mean(0))
            .norm(dim=1)
            .argmin()
        )
    grown = model.with_items([[3, 9, 12]])
    assert torch.equal(grown.identities.codes[-1], model.identities.codes[[3, 9, 12][middle]])
    torch.testing.assert_close(grown.identities.hid()[-1], model.identities.hid()[[3, 9, 12]].mean(0))


# -- trained --


CLUSTERS, EACH = 6, 10


def learn(codes: str, **settings: Any) -> float:
    """Train on users who stay in one of 6 clusters of items, whose last item occurs in no history; return how
    often that of a user's cluster is the best of the 6 such items. By chance: 1/6."""
    rng = np.random.default_rng(0)
    n = CLUSTERS * EACH
    cluster = np.arange(n) // EACH
    centers = rng.normal(size=(CLUSTERS, 8)) * 3
    vectors = (centers[cluster] + rng.normal(size=(n, 8))).astype(np.float32)
    cls = tokeniser_class("rq-k-means")
    tokeniser = cls(build_config(cls.Config, {"levels": 2, "size": 8}, "test"), 8)
    table = build_table(vectors, range(n), tokeniser, encoder={"hash": "e"}, duplicates="shared")
    if codes == "permuted":
        table = dataclasses.replace(table, codes=table.codes[[0, *(1 + rng.permutation(n))]])
    sequences = np.stack([u % CLUSTERS * EACH + 1 + rng.permutation(EACH - 1)[:7] for u in range(60)])
    events = Events(np.arange(60) * 7, np.arange(60) * 7 + 7, sequences.ravel(), None, 1.0, n)
    books = [book.float() for book in tokeniser.code_vectors()]
    given = Materials(codes=table, vectors=F.pad(torch.from_numpy(vectors), (0, 0, 1, 0)), codebooks=books)
    torch.manual_seed(0)
    base = H2RecConfig(
        dim=16, blocks=1, max_length=8, dropout=0.1, hid_start="random", code_weight=0.1, **settings
    )
    model = H2Rec(H2Rec.sized_for(base, given), n, build_objective(ObjectiveConfig(), n))
    model.take(given)
    model.fit(events)
    optimizer = build_optimizer(model, TrainingConfig(lr=0.01))
    items = torch.from_numpy(sequences)
    asked = Batch(History(items[:, :-1]), items[:, 1:], torch.arange(60))
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(asked).backward()
        optimizer.step()
    found = scores(model.eval(), History(items))  # [60, V + 1]
    cold = found[:, torch.arange(1, CLUSTERS + 1) * EACH]  # [60, 6]
    return float((cold.argmax(1) == torch.arange(60) % CLUSTERS).float().mean())


def test_an_item_without_an_event_is_found_by_its_codes():
    assert learn("its own") > 0.4
    assert learn("permuted") < 0.3
    assert learn("its own", branches="hid") < 0.3


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path):
    dataset = made_up_dataset(tmp_path / "data")
    _, config = small_config("h2rec")
    recipe = config.to_dict() | {"training": {"epochs": 2, "batch_size": 16}}
    recipe |= materials_section(config, tmp_path)
    whole = train("h2rec", dataset, tmp_path / "whole", recipe=recipe)
    one = {**recipe, "training": {"epochs": 1, "batch_size": 16}}
    train("h2rec", dataset, tmp_path / "part", recipe=one)
    stop = {"training": {"epochs": 2}}
    train("h2rec", dataset, tmp_path / "part", recipe=stop, resume=True)
    ends = [load_run(tmp_path / name).model.state_dict() for name in ("whole", "part")]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    # From its weights: what was learned is kept, and what it was made of too.
    again = {**recipe, "training": {"epochs": 1, "batch_size": 16, "lr": 1e-12}}
    model = train("h2rec", dataset, tmp_path / "again", recipe=again, start_from=tmp_path / "whole").model
    torch.testing.assert_close(model.identities.hid(), whole.model.identities.hid())
    assert torch.equal(model.identities.codes, whole.model.identities.codes)
