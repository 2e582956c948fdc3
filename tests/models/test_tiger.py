"""TIGER: its two forms, the search that follows from them, cold items, runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
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
from ensuite.data.batches import History, read_history
from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.evaluate.ranks import compute_ranks
from ensuite.models.materials import Materials
from ensuite.models.tiger import TIGER, TIGERConfig
from ensuite.objectives import ObjectiveConfig, build_objective
from ensuite.serve.recommender import Recommender
from ensuite.training.config import read_recipe, resolve
from ensuite.training.loop import train
from ensuite.training.run import Run, load_run

FORMS = pytest.mark.parametrize("architecture", ["encoder-decoder", "decoder"])


def build(architecture: str = "encoder-decoder", **settings: Any) -> TIGER:
    _, config = small_config("tiger")
    torch.manual_seed(0)
    c = dataclasses.replace(config.model, architecture=architecture, **settings)
    model = TIGER(c, N_ITEMS)
    model.take(small_materials(config))
    model.fit(made_up_log())
    return model.eval()


def histories(model: TIGER, n: int = 6) -> History:
    events = made_up_log()
    starts, ends = events.offsets[:n], events.ends[:n]
    return read_history(events, np.maximum(starts, ends - model.max_length), ends)


@torch.inference_mode()
def exact(model: TIGER, history: History) -> torch.Tensor:
    return model.exact_scores(history, model.catalogue())


def by_hand(model: TIGER, items: list[int], target: int) -> float:
    """Return log p(target) as training sees it: the loss of one sample, times the number of levels."""
    history = History(torch.tensor([items]))
    targets = torch.zeros_like(history.items)
    targets[0, -1] = target
    from ensuite.data.batches import Batch

    with torch.inference_mode():
        return -float(model.loss(Batch(history, targets, torch.zeros(1, dtype=torch.int64)))) * 4


@FORMS
def test_scores_of_the_search_are_what_the_loss_trains(architecture):
    model = build(architecture)
    history = histories(model, 3)
    scores = exact(model, history)
    for row in range(3):
        items = history.items[row, : history.lengths[row]].tolist()
        for target in (1, 17, 50):
            assert float(scores[row, target]) == pytest.approx(by_hand(model, items, target), abs=1e-3)


@FORMS
def test_the_decoder_learns_at_every_position_what_prefixes_teach(architecture):
    model = build(architecture)
    _, config = small_config("tiger", kind="every-position")
    every = training_batch(model, config)
    with torch.inference_mode():
        loss = float(model.loss(every))
        singly = [
            by_hand(model, every.history.items[b, : p + 1].tolist(), int(every.targets[b, p]))
            for b, p in every.targets.nonzero().tolist()
        ]
    assert loss == pytest.approx(-sum(singly) / len(singly) / 4, abs=1e-3)


@FORMS
def test_with_as_many_beams_as_items_the_search_is_exact(architecture):
    model = build(architecture)
    history = histories(model)
    scores = exact(model, history)
    with torch.inference_mode():
        items, found = model.generate(history, N_ITEMS)
    assert sorted(items[0].tolist()) == list(range(1, N_ITEMS + 1))
    assert torch.allclose(found, scores.gather(1, items), atol=1e-4)
    assert torch.allclose(found, scores.sort(dim=1, descending=True).values[:, :N_ITEMS], atol=1e-4)
    with torch.inference_mode():
        few, _ = model.generate(history, 5, beams=12, excluded=items[:, :10])
    assert all(not set(a) & set(b) for a, b in zip(few.tolist(), items[:, :10].tolist()))


@FORMS
def test_padding_and_neighbours_change_nothing(architecture):
    model = build(architecture)
    history = histories(model)
    scores = exact(model, history)
    rows = [4, 0, 2]
    assert torch.allclose(
        exact(model, pick(history, rows, history.items.shape[1] + 3)), scores[rows], atol=1e-4
    )


def test_tokens_of_levels_never_meet():
    model = build()
    tokens = {
        (level, code): int(model.first_tokens[level]) + code
        for level, size in enumerate(model.config.level_sizes)
        for code in range(size)
    }
    assert len(set(tokens.values())) == len(tokens)
    assert {0, model.begin_token} & set(tokens.values()) == set()
    stream = model.item_tokens(torch.tensor([[3, 0]]))
    assert stream[0, 4:].tolist() == [0] * 4
    assert stream[0, :4].tolist() == [tokens[level, int(c)] for level, c in enumerate(model.codes[3])]


def test_items_that_the_search_does_not_reach_share_a_score_below_the_others():
    model = build(ranking="beam", beams=8)
    history = histories(model)
    scores = exact(model, history)
    with torch.inference_mode():
        ranked = model.scorer(history, model.catalogue())(0, N_ITEMS + 1)
        items, found = model.generate(history, 8)
    for row in range(len(ranked)):
        listed = items[row].tolist()
        assert torch.allclose(ranked[row, listed], scores[row, listed], atol=1e-4)
        rest = ranked[row, [i for i in range(1, N_ITEMS + 1) if i not in listed]]
        assert len(rest.unique()) == 1
        assert float(rest[0]) < float(found[row].min())


def test_the_recommender_searches_and_keeps_what_is_excluded_out():
    model = build(ranking="beam", beams=4)
    recommender = Recommender(model, ITEM_IDS)
    seen = ["i07", "i03", "i44"]
    answer = recommender.recommend(seen, k=N_ITEMS - 3)
    assert set(answer.ids) == set(ITEM_IDS) - set(seen)
    assert answer.scores == sorted(answer.scores, reverse=True)
    some = recommender.recommend(seen, k=2, candidates=["i03", "i10", "i20", "i30"])
    assert set(some.ids) <= {"i10", "i20", "i30"}
    whole = Recommender(build(ranking="exact"), ITEM_IDS).recommend(seen, k=N_ITEMS - 3)
    assert whole.ids == answer.ids  # 47 beams are all there are


def test_a_beam_wider_than_the_catalogue_is_cut_and_said(caplog):
    build(ranking="beam", beams=500).catalogue()
    assert "beams = 500, and 50 items have codes" in caplog.text


def test_items_added_after_training_are_found_and_change_nothing():
    model = build()
    history = histories(model)
    taken = {tuple(codes) for codes in model.codes[1:].tolist()}
    free = next(
        [a, b, c, d]
        for a in range(6)
        for b in range(5)
        for c in range(4)
        for d in range(3)
        if (a, b, c, d) not in taken
    )
    grown = model.with_codes(torch.tensor([free]))
    assert (model.n_items, grown.n_items) == (N_ITEMS, N_ITEMS + 1)
    before, after = exact(model, history), exact(grown, history)
    assert torch.allclose(before, after[:, :-1], atol=1e-5)
    assert bool(after[:, -1].isfinite().all())
    with torch.inference_mode():
        only = torch.arange(N_ITEMS + 2) == N_ITEMS + 1
        items, _ = grown.generate(history, 1, allowed=only)
        read = grown.generate(History(torch.tensor([[N_ITEMS + 1, 3]])), 3)[0]
    answer = Recommender(grown, [*ITEM_IDS, "new"]).recommend(
        ["i07", "new"], k=1, candidates=["new"], exclude="none"
    )
    assert answer.ids == ["new"]
    assert items.flatten().tolist() == [N_ITEMS + 1] * len(history.items)
    assert int((read > 0).sum()) == 3
    with pytest.raises(EnsuiteError, match="code 6 at level 0, which has 6"):
        model.with_codes(torch.tensor([[6, 0, 0, 0]]))


def test_cold_items_take_their_share_of_a_list_and_no_more():
    model = build(cold_share=0.2)
    model.cold = torch.arange(N_ITEMS + 1) > 25
    history = histories(model)
    free = build()
    with torch.inference_mode():
        items, _ = model.generate(history, 10, beams=50)
        uncapped, _ = free.generate(history, 50)
        everything, _ = model.generate(history, 50)
    assert bool(((items > 25).sum(1) <= 2).all())
    for capped, whole in zip(items.tolist(), uncapped.tolist()):
        cold = [i for i in whole if i > 25][:2]
        assert capped == [i for i in whole if i <= 25 or i in cold][:10]
    assert sorted(everything[0].tolist()) == list(range(1, 51))  # beyond their share they come last
    answer = Recommender(model, ITEM_IDS).recommend(["i07"], k=10)
    assert sum(item > "i25" for item in answer.ids) <= 2
    with pytest.raises(ValueError, match="use ranking = beam"):
        build(cold_share=0.2, ranking="exact")


def test_cold_items_can_be_found_by_their_content_codes():
    model = build()
    model.codes[9] = model.codes[4]
    model.codes[9, 3] = (model.codes[4, 3] + 1) % 3
    model.cold[9] = True
    history = histories(model)
    apart = exact(model, history)
    model.config = dataclasses.replace(model.config, cold_match=True)
    matched = exact(model, history)
    assert not torch.allclose(apart[:, 9], apart[:, 4])
    assert torch.allclose(matched[:, 9], matched[:, 4])
    assert torch.allclose(matched[:, 4], apart[:, 4])
    _, config = small_config("tiger")
    with pytest.raises(EnsuiteError, match="has none \\(duplicates: shared\\)"):
        build(cold_match=True).take(small_materials(config))


def test_what_it_cannot_use_is_refused(tmp_path: Path):
    dataset = made_up_dataset(tmp_path / "data")
    with pytest.raises(EnsuiteError, match="no column of the item table says that"):
        train("tiger", dataset, tmp_path / "run")
    with pytest.raises(EnsuiteError, match="unknown tokeniser 'rq-vea'; did you mean 'rq-vae'"):
        train("tiger", dataset, tmp_path / "run", recipe={"codes": {"tokeniser": "rq-vea"}})
    others = SemanticIdTable(
        np.concatenate([np.full((1, 2), -1), np.arange(100).reshape(50, 2)]).astype(np.int32),
        (100, 100),
        "shared",
        True,
        [f"x{n}" for n in range(50)],
    )
    others.save(tmp_path / "codes")
    with pytest.raises(EnsuiteError, match="was made for other items"):
        train("tiger", dataset, tmp_path / "run", recipe={"codes": {"table": str(tmp_path / "codes")}})
    with pytest.raises(EnsuiteError, match="sasrec reads no codes"):
        train("sasrec", dataset, tmp_path / "run", recipe={"codes": {"table": "x"}})
    with pytest.raises(EnsuiteError, match="no table of codes was given"):
        TIGER(TIGERConfig(), 5)
    bpr = build_objective(ObjectiveConfig(loss="bpr"), N_ITEMS, torch.ones(N_ITEMS + 1))
    with pytest.raises(EnsuiteError, match="only label_smoothing has a meaning"):
        TIGER(TIGERConfig(level_sizes=(3, 3)), N_ITEMS, bpr)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_and_answers_without_the_table(tmp_path: Path):
    dataset = made_up_dataset(tmp_path / "data")
    _, config = small_config("tiger")
    recipe = config.to_dict() | materials_section(config, tmp_path)
    recipe["training"] = {"epochs": 3, "batch_size": 32}
    whole = train("tiger", dataset, tmp_path / "whole", recipe=recipe)

    class Stop(Exception):
        pass

    def stop(epoch: int, _: Any) -> None:
        if epoch == 1:
            raise Stop

    with pytest.raises(Stop):
        train("tiger", dataset, tmp_path / "cut", recipe=recipe, on_validation=stop)
    (tmp_path / "codes").rename(tmp_path / "gone")
    resumed = train("tiger", dataset, tmp_path / "cut", resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    saved = yaml.safe_load((tmp_path / "cut" / "config.yaml").read_text())
    assert saved["model"]["level_sizes"] == [6, 5, 4, 3]
    run = load_run(tmp_path / "cut")
    assert np.array_equal(run.model.codes.numpy(), small_materials(config).codes.codes)


@pytest.mark.parametrize("settings", [{}, {"architecture": "decoder"}])
def test_it_learns_a_cycle_and_a_narrow_beam_ranks_as_exact_does(settings, cycle: Dataset, tmp_path: Path):
    n = cycle.n_items
    codes = np.full((n + 1, 2), -1, np.int32)
    codes[1:, 0], codes[1:, 1] = np.arange(n) // 4, np.arange(n) % 4
    sizes = (-(-n // 4), 4)
    SemanticIdTable(codes, sizes, "shared", True, cycle.items["item_id"].to_list()).save(tmp_path / "codes")
    recipe = {
        "model": {"dim": 32, "blocks": 1, "heads": 2, "head_dim": 16, "inner": 64, "dropout": 0.0} | settings,
        "training": {"epochs": 12, "lr": 0.01, "batch_size": 32},
        "codes": {"table": str(tmp_path / "codes")},
    }
    run = train("tiger", cycle, tmp_path / "run", recipe=recipe)
    assert run.card["training"]["best_ndcg@10"] > 0.5  # by chance: 0.23
    model, cases = run.model, cycle.cases("test")
    wide = compute_ranks(model, cycle.events("all"), cases)
    model.config = dataclasses.replace(model.config, ranking="beam", beams=max(12, n // 2))
    narrow = compute_ranks(model, cycle.events("all"), cases)
    gain = [np.where(r.rank <= 10, 1 / np.log2(1 + r.rank), 0).mean() for r in (wide, narrow)]
    assert gain[1] == pytest.approx(gain[0], rel=0.005)


def test_materials_size_the_configuration():
    codes = np.array([[-1, -1], [0, 1], [2, 0]], np.int32)
    table = SemanticIdTable(codes, (3, 2), "shared", True, ["a", "b"])
    sized = TIGER.sized_for(TIGERConfig(), Materials(codes=table))
    assert sized.level_sizes == (3, 2)


def test_codes_are_a_stage_of_the_run_that_is_not_done_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = made_up_dataset(tmp_path / "data")
    train("sasrec", dataset, tmp_path / "sasrec", recipe={"training": {"epochs": 1}})
    _, config = small_config("tiger")
    small = {key: value for key, value in config.to_dict()["model"].items() if key != "level_sizes"}
    recipe = {
        "model": small,
        "training": {"epochs": 1, "batch_size": 32},
        "codes": {"encoder": f"run:{tmp_path / 'sasrec'}", "settings": {"levels": 2, "size": 6}},
    }

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("ensuite.training.loop.gather_materials", stop)
        with pytest.raises(KeyboardInterrupt):
            train("tiger", dataset, tmp_path / "run", recipe=recipe)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "codes"}
    made = (tmp_path / "run" / "codes" / "codes.parquet").stat().st_mtime_ns
    with pytest.raises(EnsuiteError, match="--resume to go on, --overwrite to start again"):
        train("tiger", dataset, tmp_path / "run", recipe=recipe)
    run = train("tiger", dataset, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "codes" / "codes.parquet").stat().st_mtime_ns == made
    table = SemanticIdTable.load(tmp_path / "run" / "codes")
    assert np.array_equal(run.model.codes.numpy(), table.codes)
    assert tuple(run.config.model.level_sizes) == table.level_sizes
    assert run.config.model.level_sizes[:2] == (6, 6)
    few = {"training": {"epochs": 1}}
    further = train("tiger", dataset, tmp_path / "further", recipe=few, start_from=tmp_path / "run")
    assert further.config.codes.table == str(tmp_path / "run" / "codes")  # what its weights have learned
    assert torch.equal(further.model.codes, run.model.codes)
    again = train("tiger", dataset, tmp_path / "run", recipe=recipe, overwrite=True)
    assert torch.equal(again.model.codes, run.model.codes)
    assert Recommender.load(tmp_path / "run").recommend(["i07"], k=5).ids


def test_its_recipes_resolve():
    recipes = sorted((Path(__file__).parents[2] / "recipes" / "tiger").glob("*.yaml"))
    assert len(recipes) >= 2
    for path in recipes:
        values, where = read_recipe(path)
        _, config = resolve("tiger", values, where=where)
        assert config.codes is not None
        assert config.codes.text
        at_once = config.samples.kind in ("every-position", "sliding")
        assert (config.model.architecture == "decoder") == at_once


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, np.ndarray, np.ndarray]:
    """300 users who walk round 12 categories, to any of 18 items of the next; vectors of the items lie near
    their category's. Two more items of each category occur in no sequence.

    Returns the dataset, the vectors [240, 16] and the categories [240]; items 217 to 240 are new.
    """
    rng = np.random.default_rng(0)
    category = np.arange(240) % 12
    vectors = rng.normal(size=(12, 16))[category] + 0.5 * rng.normal(size=(240, 16))
    sequences = []
    for _ in range(300):
        first, n = rng.integers(12), rng.integers(5, 11)
        members = [np.flatnonzero(category[:216] == (first + i) % 12) for i in range(n)]
        sequences.append([int(rng.choice(items)) + 1 for items in members])
    dataset = make_dataset(tmp_path_factory.mktemp("corpus") / "data", sequences, n_items=240)
    return dataset, vectors.astype(np.float32), category


def on_codes(corpus: Any, kind: str, settings: dict[str, int], out: Path) -> Run:
    """Train a small decoder on the codes that a tokeniser makes."""
    dataset, vectors, _ = corpus
    cls = tokeniser_class(kind)
    tokeniser = cls(build_config(cls.Config, settings, kind), vectors.shape[1])
    ids = dataset.items["item_id"].to_list()
    build_table(vectors, ids, tokeniser, encoder={"hash": "made up"}).save(out / "codes")
    recipe = {
        "model": {
            "architecture": "decoder",
            "dim": 32,
            "blocks": 1,
            "heads": 2,
            "head_dim": 16,
            "inner": 64,
            "cold_match": True,
        },
        "training": {"epochs": 12, "lr": 0.01, "batch_size": 32, "validate_every": 12},
        "codes": {"table": str(out / "codes")},
    }
    return train("tiger", dataset, out / "run", recipe=recipe)


def test_codes_of_content_beat_hashes_of_it_and_those_beat_random_ones(corpus, tmp_path: Path):
    kinds = {"rq-k-means": {"size": 16}, "lsh": {"planes": 4}, "random": {"size": 16}}
    found = {}
    for kind, settings in kinds.items():
        run = on_codes(corpus, kind, {"levels": 2} | settings, tmp_path / kind)
        found[kind] = run.card["training"]["best_ndcg@10"]
    assert found["rq-k-means"] > 1.2 * found["lsh"] > 1.2 * 1.2 * found["random"], found


def test_items_that_nobody_has_touched_are_found_by_their_content(corpus, tmp_path: Path):
    dataset, _, category = corpus
    model = on_codes(corpus, "rq-k-means", {"levels": 2, "size": 16}, tmp_path).model
    assert model.cold.nonzero()[:, 0].tolist()[-24:] == list(range(217, 241))
    events, cases = dataset.events("all"), dataset.cases("test").take(np.arange(100))
    history = read_history(events, cases.history_start, cases.history_end)
    with torch.inference_mode():
        scores = model.exact_scores(history, model.catalogue())[:, 217:]  # [100, 24]
    last = events.item_idx[cases.history_end - 1]
    wanted = torch.from_numpy((category[last - 1] + 1) % 12)
    best = torch.from_numpy(category[216:])[scores.topk(2, dim=1).indices]
    assert float((best == wanted[:, None]).float().mean()) > 0.5  # by chance: 1/12
