"""A run carried over to a dataset that it has never seen, by its encoder and its tokeniser."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from conftest import make_dataset
from content.small_encoder import write_encoder

from ensuite.cli.transfer import main
from ensuite.codes.table import SemanticIdTable
from ensuite.codes.tokeniser import load_tokeniser
from ensuite.data.dataset import Dataset, write_dataset
from ensuite.data.join import join
from ensuite.errors import EnsuiteError
from ensuite.evaluate.compare import compare
from ensuite.evaluate.evaluate import evaluate
from ensuite.serve.recommender import Recommender
from ensuite.training.loop import train
from ensuite.training.run import Run, load_run
from ensuite.training.transfer import transfer

pytest.importorskip("transformers")

COLOURS, THINGS = ("red", "blue", "the", "of"), ("soap", "oil", "brush", "cream")


def shop(out: Path, seed: int, words: tuple[str, ...], n_users: int = 100) -> Dataset:
    """Write a shop of 32 items, eight of each thing, whose users go round the things."""
    rng = np.random.default_rng(seed)
    thing = rng.permutation(np.arange(32) % 4)
    sequences = []
    for _ in range(n_users):
        first, n = rng.integers(4), rng.integers(5, 9)
        sequences.append([int(rng.choice(np.flatnonzero(thing == (first + i) % 4))) + 1 for i in range(n)])
    dataset = make_dataset(out.with_name(f"{out.name}-ids"), sequences, n_items=32)
    titles = [f"{f'{THINGS[k]} ' * 5}{rng.choice(COLOURS)} {rng.choice(words)}" for k in thing]
    return write_dataset(
        out,
        offsets=dataset.offsets,
        item_idx=dataset.item_idx,
        time=None,
        split=dataset.split,
        items=dataset.items.with_columns(title=pl.Series(titles), brand=pl.lit("")),  # nobody knows a brand
        users=dataset.users,
        columns={},
        card={"time_unit": None, "split": dataset.card["split"], "name": out.name},
    )


@dataclasses.dataclass
class World:
    folder: Path
    pretrained: Run
    new: Dataset
    recipe: dict[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A small RecGPT trained on two shops, and a third one."""
    folder = tmp_path_factory.mktemp("shops")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENSUITE_CACHE", str(folder / "cache"))
        encoder = write_encoder(folder / "encoder", pooling="mean", normalize=True)
        both = join([shop(folder / "a", 1, ("a", "b")), shop(folder / "b", 2, ("c", "d"))], folder / "both")
        fsq = {"grid": [4, 4], "heads": 1, "layers": 0, "steps": 60, "lr": 0.01, "dropout": 0.0}
        recipe: dict[str, Any] = {
            "model": {"dim": 32, "blocks": 1, "heads": 2, "inner": 64, "max_length": 8, "dropout": 0.0},
            "codes": {"encoder": str(encoder), "settings": fsq | {"least_usage": 0.0}},
            "training": {"epochs": 25, "lr": 0.01, "batch_size": 32},
        }
        run = train("recgpt", both, folder / "run", recipe=recipe)
    return World(folder, run, shop(folder / "new", 3, ("a", "d", "e")), recipe)


@pytest.fixture(autouse=True)
def cache(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENSUITE_CACHE", str(world.folder / "cache"))


@pytest.fixture(scope="module")
def carried(world: World) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENSUITE_CACHE", str(world.folder / "cache"))
        return transfer(world.pretrained.path, world.new, world.folder / "carried")


def test_no_weight_changes_and_the_items_are_the_new_ones(world: World, carried: Run):
    before, after = dict(world.pretrained.model.named_parameters()), dict(carried.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (world.pretrained.model.n_items, carried.model.n_items) == (64, 32)
    table = SemanticIdTable.load(carried.path / "codes")
    tokeniser = load_tokeniser(carried.path / "codes" / "tokeniser.safetensors")
    assert (
        tokeniser.hash() == load_tokeniser(world.pretrained.path / "codes" / "tokeniser.safetensors").hash()
    )
    assert np.array_equal(carried.model.codes.numpy(), table.codes)
    vectors = carried.model.vectors[1:].numpy()
    assert np.array_equal(tokeniser.encode_array(vectors), table.codes[1:])
    assert table.provenance["vectors"]["fitted_on"] == 0
    assert bool(carried.model.cold[1:].all())


def test_it_recommends_what_comes_next_in_a_shop_that_it_has_never_seen(world: World, carried: Run):
    result = evaluate(carried.model, world.new, "test", ["hr@8"])
    assert result.metrics["hr@8"] > 0.5  # by chance 0.25
    answer = Recommender.load(carried.path).recommend([10, 20], k=3)
    assert len(answer.ids) == 3


def test_it_is_a_run_like_any_other_and_its_card_says_where_it_is_from(world: World, carried: Run):
    card = json.loads((carried.path / "card.json").read_text())
    assert card["data"]["fingerprint"] == world.new.fingerprint
    assert card["transfer"]["data"]["fingerprint"] == world.pretrained.card["data"]["fingerprint"]
    assert card["transfer"]["run"] == str(world.pretrained.path.resolve())
    assert carried.dataset().path == world.new.path
    recency = train("recency", world.new, world.folder / "recency")
    knn = train(
        "content-knn",
        world.new,
        world.folder / "knn",
        recipe={"codes": {"encoder": world.recipe["codes"]["encoder"]}},
    )
    table = compare([load_run(carried.path), recency, knn], exclude="none", resamples=50)
    assert {row.name for row in table.rows} == {"carried", "recency", "knn"}
    assert table.protocol["exclude"] == "none"
    assert {"repeated items", "new items"} <= set(table.slice_sizes)
    assert table.row("recency").slices["new items"].mean < table.row("recency").slices["repeated items"].mean
    twice = transfer(carried.path, world.new, world.folder / "twice")  # and can be carried on
    assert torch.equal(twice.model.codes, carried.model.codes)


def test_it_is_trained_on_from_its_weights_not_resumed(world: World, carried: Run):
    with pytest.raises(
        EnsuiteError, match=r"was not trained; to train on, start another run from it: --from"
    ):
        train("recgpt", world.new, carried.path, resume=True)
    few = {"training": {"epochs": 1, "batch_size": 32, "lr": 1e-6}}
    tuned = train("recgpt", world.new, world.folder / "tuned", recipe=few, start_from=carried.path)
    assert torch.equal(tuned.model.codes, carried.model.codes)
    assert torch.allclose(tuned.model.head.weight, carried.model.head.weight, atol=1e-4)


def test_the_command_says_what_to_lay_beside_it(world: World, capsys: pytest.CaptureFixture[str]):
    main(
        [
            str(world.pretrained.path),
            "--data",
            str(world.new.path),
            "--out",
            str(world.folder / "said"),
            "--quiet",
        ]
    )
    said = capsys.readouterr().out
    assert "32 items as " in said
    assert "of '{title}'" in said  # a column that says nothing is no part of it
    assert "ensuite train recency" in said
    assert "ensuite train content-knn" in said
    with pytest.raises(EnsuiteError, match="exists already; --resume to go on, --overwrite to start again"):
        transfer(world.pretrained.path, world.new, world.folder / "said")
    transfer(world.pretrained.path, world.new, world.folder / "said", overwrite=True)


def test_another_encoder_tokeniser_or_table_is_refused(world: World, tmp_path: Path):
    run, new = world.pretrained.path, world.new
    other = write_encoder(tmp_path / "other", seed=5, pooling="mean", normalize=True)
    with pytest.raises(EnsuiteError, match="made by another encoder"):
        transfer(run, new, tmp_path / "out", encoder=str(other))
    shutil.copytree(run / "codes", tmp_path / "moved")
    assert transfer(run, new, tmp_path / "right", table=tmp_path / "moved").model.n_items == 32
    strange = train("recgpt", new, tmp_path / "strange", recipe=world.recipe | {"training": {"epochs": 1}})
    with pytest.raises(EnsuiteError, match=r"not the codes that .* was trained on"):
        transfer(run, new, tmp_path / "out", table=strange.path / "codes")
    table = SemanticIdTable.load(run / "codes")
    tokeniser = load_tokeniser(strange.path / "codes" / "tokeniser.safetensors")
    with pytest.raises(EnsuiteError, match="made by another tokeniser"):
        table.of_others(
            [1], np.zeros((1, 8), np.float32), tokeniser, encoder=table.provenance["encoder"]["hash"]
        )
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_carried_over_is_refused(world: World, cycle: Dataset, tmp_path: Path):
    known = train("sasrec", world.new, tmp_path / "sasrec", recipe={"training": {"epochs": 1}})
    with pytest.raises(EnsuiteError, match="knows the items of its own dataset one by one"):
        transfer(known.path, world.new, tmp_path / "out")
    codes = {"encoder": f"run:{known.path}", "duplicates": "shared", "settings": {"levels": 2, "size": 4}}
    small = {"architecture": "decoder", "dim": 8, "blocks": 1, "heads": 1, "head_dim": 8, "inner": 8}
    collaborative = train(
        "tiger",
        world.new,
        tmp_path / "tiger",
        recipe={"model": small, "codes": codes, "training": {"epochs": 1}},
    )
    with pytest.raises(EnsuiteError, match="made of the item vectors of a run"):
        transfer(collaborative.path, world.new, tmp_path / "out")
    nameless = write_dataset(
        tmp_path / "nameless",
        offsets=cycle.offsets,
        item_idx=cycle.item_idx,
        time=None,
        split=cycle.split,
        items=cycle.items.select("item_id"),
        users=cycle.users,
        columns={},
        card={"time_unit": None, "split": cycle.card["split"]},
    )
    with pytest.raises(EnsuiteError, match="no column of the item table says that"):
        transfer(world.pretrained.path, nameless, tmp_path / "out")
    with pytest.raises(EnsuiteError, match="no item column 'maker'"):
        transfer(world.pretrained.path, world.new, tmp_path / "out", text="{maker}")


def test_a_system_of_codes_alone_is_carried_over_too(world: World, tmp_path: Path):
    codes = world.recipe["codes"] | {
        "tokeniser": "rq-k-means",
        "settings": {"levels": 2, "size": 4},
        "duplicates": "shared",
    }
    small = {"architecture": "decoder", "dim": 8, "blocks": 1, "heads": 1, "head_dim": 8, "inner": 8}
    run = train(
        "tiger",
        world.new,
        tmp_path / "tiger",
        recipe={"model": small, "codes": codes, "training": {"epochs": 1}},
    )
    a = Dataset.open(world.folder / "a")
    moved = transfer(run.path, a, tmp_path / "moved")
    assert Recommender.load(moved.path).recommend([10], k=5).ids


def test_a_share_of_the_users_is_trained_on_and_all_are_tested(cycle: Dataset, tmp_path: Path):
    from ensuite.training.config import resolve
    from ensuite.training.users import training_view, validation_cases

    _, whole = resolve("sasrec", {})
    _, part = resolve("sasrec", {"training": {"user_share": 0.1}})
    assert np.array_equal(training_view(cycle, whole).ends, cycle.events("train").ends)
    view = training_view(cycle, part)
    drawn = np.flatnonzero(view.lengths)
    assert len(drawn) == 12  # of 120
    assert np.array_equal(view.lengths[drawn], cycle.events("train").lengths[drawn])
    assert set(validation_cases(cycle, part).user) == set(drawn)
    counted = train("popularity", cycle, tmp_path / "few", recipe={"training": {"user_share": 0.1}})
    assert int(counted.model.counts.sum()) == int(view.lengths.sum())
    assert len(evaluate(counted.model, cycle).ranks) == len(cycle.cases("test"))
    with pytest.raises(EnsuiteError, match="a share above 0, at most 1"):
        resolve("sasrec", {"training": {"user_share": 0.0}})
