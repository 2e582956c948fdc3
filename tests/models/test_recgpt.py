"""RecGPT: what its tokens see, what its loss asks, exact scores and the paper's search, bad input.

What its tokeniser keeps (a token depends on its part of the vector alone, digits stay on the grid, every
token comes back from its digits) is in tests/codes; that it recommends in catalogues that it has not seen, in
tests/training/test_transfer.py.
"""

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
    pick,
    small_config,
    small_materials,
    training_batch,
)

from ensuite.codes.build import build_table
from ensuite.codes.fsq import FSQ, FSQConfig
from ensuite.codes.parallel import narrow_search
from ensuite.codes.table import SemanticIdTable
from ensuite.codes.trie import CodeTrie
from ensuite.data.batches import Batch, History, read_history
from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.evaluate.ranks import compute_ranks
from ensuite.models.content_knn import ContentKNN, ContentKNNConfig
from ensuite.models.materials import Materials
from ensuite.models.recgpt import RecGPT, RecGPTConfig
from ensuite.serve.recommender import Recommender
from ensuite.training.config import read_recipe, resolve

SIZE = 7  # codes of each of 4 levels, in one vocabulary


def materials(seed: int = 0, n: int = N_ITEMS) -> Materials:
    """Return codes of one vocabulary, with groups of items that share a tuple, and vectors of 16 numbers."""
    rng = np.random.default_rng(seed)
    codes = np.full((n + 1, 4), -1, np.int32)
    codes[1:] = rng.integers(0, SIZE, (n, 4))
    codes[n] = codes[n - 1] = codes[3]  # three items that share a tuple
    table = SemanticIdTable(codes, (SIZE,) * 4, "shared", False, ITEM_IDS[:n], {"tokeniser": {"kind": "fsq"}})
    vectors = torch.from_numpy(rng.normal(size=(n + 1, 16))).float()
    vectors[0] = 0
    return Materials(codes=table, vectors=vectors)


def build(**settings: Any) -> RecGPT:
    _, config = small_config("recgpt")
    given = materials()
    torch.manual_seed(0)
    model = RecGPT(RecGPT.sized_for(dataclasses.replace(config.model, **settings), given), N_ITEMS)
    for parameter in model.parameters():  # away from the small weights that training starts with
        torch.nn.init.normal_(parameter, std=0.3)
    model.take(given)
    model.fit(made_up_log())
    return model.eval()


def histories(model: RecGPT, n: int = 6) -> History:
    events = made_up_log()
    starts, ends = events.offsets[:n], events.ends[:n]
    return read_history(events, np.maximum(starts, ends - model.max_length), ends)


@torch.inference_mode()
def exact(model: RecGPT, history: History) -> torch.Tensor:
    return model.exact_scores(history, model.catalogue())


@torch.inference_mode()
def scored(model: RecGPT, history: History) -> torch.Tensor:
    return model.scorer(history, model.catalogue())(0, model.n_items + 1)


# -- what tokens see --


@pytest.mark.parametrize("block_mask", [True, False])
def test_tokens_of_an_item_see_each_other_and_no_later_item(block_mask: bool):
    model = build(block_mask=block_mask)
    history = History(torch.tensor([[5, 9, 2, 11]]))
    with torch.inference_mode():
        before = model(history)[0]  # [n, L, D]
        model.codes[9, 2] = (model.codes[9, 2] + 1) % SIZE  # the third token of the second item
        after = model(history)[0]
    changed = (before - after).abs().amax(2) > 1e-6  # [n, L]
    assert not changed[0].any()
    assert changed[2:].all()
    assert changed[1].tolist() == ([True] * 4 if block_mask else [False, False, True, True])


@pytest.mark.parametrize("block_mask", [True, False])
def test_padded_left_or_right_the_logits_are_the_same(block_mask: bool):
    model = build(block_mask=block_mask)
    history = histories(model)
    n = history.items.shape[1]
    places = n - history.lengths[:, None] + torch.arange(n)  # of the items when padding stands on the left
    left = torch.zeros(len(history.items), 2 * n, dtype=torch.int64).scatter(1, places, history.items)[:, :n]
    position = ((torch.arange(4 * n) - 4 * (n - history.lengths[:, None])).clamp(min=0)) % (4 * n)
    item = torch.arange(4 * n) // 4
    sees = item[:, None] >= item if block_mask else torch.ones(4 * n, 4 * n).tril().bool()
    mask = sees & (left.repeat_interleave(4, 1) > 0)[:, None]  # keys of padding are hidden
    mask |= torch.eye(4 * n, dtype=torch.bool)
    with torch.inference_mode():
        hidden = model.encode(model.embed(left) + model.positions(position), mask)[:, -4:]  # [B, L, D]
        logits = torch.stack([hidden[:, level] @ model.classes(level)[1:].T for level in range(4)], 1)
        ours = torch.stack(model.log_probs(history), 1)
    theirs = (logits / model.config.temperature).log_softmax(-1)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert torch.allclose(
        ours,
        torch.stack(model.log_probs(pick(history, list(range(6)), n + 3) if n + 3 <= 12 else history), 1),
    )


def test_slices_are_added_where_there_is_an_item_and_can_be_left_out():
    model, plain = build(), build(slices=False)
    assert "vectors" not in plain.state_dict()
    items = torch.tensor([[4, 7, 0]])
    x = model.embed(items)
    part = model.vectors[7].view(4, 4)[2]  # the third part of the second item
    token = model.tokens.weight[model.codes[7, 2].long() + 1]
    expected = F.layer_norm(token, (16,), model.token_norm.weight, model.token_norm.bias) + F.layer_norm(
        model.project_slice.weight @ part, (16,), model.slice_norm.weight, model.slice_norm.bias
    )
    assert torch.allclose(x[0, 4 + 2], expected, atol=1e-5)
    nothing = F.layer_norm(model.tokens.weight[0], (16,), model.token_norm.weight, model.token_norm.bias)
    assert torch.allclose(x[0, 8:], nothing.expand(4, -1), atol=1e-5)
    assert not model.vectors.requires_grad  # the content is read, not moved


def test_levels_share_their_tokens_only_with_a_tokeniser_of_one_grid():
    assert build().head.weight.shape == (1 + SIZE, 16)
    _, config = small_config("recgpt")
    model = RecGPT(config.model, N_ITEMS)
    model.take(small_materials(config))
    assert model.head.weight.shape == (1 + 6 + 5 + 4 + 3, 16)
    rows = [model.classes(level)[1:].data_ptr() for level in range(4)]
    assert [len(model.classes(level)) - 1 for level in range(4)] == [6, 5, 4, 3]
    assert len(set(rows)) == 4


# -- the loss --


def test_the_loss_asks_each_position_for_the_code_of_the_next_item_in_its_own_slot():
    model = build()
    _, config = small_config("recgpt")
    batch = training_batch(model, config)
    with torch.inference_mode():
        loss, hidden = model.loss(batch), model(batch.history)
        terms = []
        for row, at in batch.targets.nonzero().tolist():
            following = int(batch.targets[row, at])
            for level in range(4):
                logits = hidden[row, at, level] @ model.head.weight[1:].T
                terms.append(-float(logits.log_softmax(0)[model.codes[following, level]]))
    assert len(terms) == 4 * int(batch.history.lengths.sum())
    assert float(loss) == pytest.approx(np.mean(terms), rel=1e-5)


def test_the_last_item_asks_for_nothing():
    model = build()
    history = History(torch.tensor([[5, 9, 2]]))
    targets = torch.tensor([[9, 2, 0]])
    hidden = model(history)
    hidden.retain_grad()
    model.forward = lambda _: hidden  # type: ignore[method-assign]
    model.loss(Batch(history, targets, torch.zeros(1, dtype=torch.int64))).backward()
    assert hidden.grad[0, :2].abs().sum((1, 2)).gt(0).all()
    assert not hidden.grad[0, 2].any()


# -- scores and search --


def test_an_items_score_is_the_sum_of_its_codes_log_probabilities():
    model = build()
    history = histories(model)
    scores, log_probs = scored(model, history), model.log_probs(history)
    for item in (1, 17, N_ITEMS):
        codes = model.codes[item].tolist()
        by_hand = sum(p[:, c] for p, c in zip(log_probs, codes))
        assert torch.allclose(scores[:, item], by_hand, atol=1e-4)
    assert torch.equal(scores, exact(model, history))
    assert scores[:, 0].isneginf().all()


def test_temperature_moves_no_item_past_another():
    history = histories(build())
    cold, warm = (exact(build(temperature=t), history)[:, 1:] for t in (0.1, 2.0))
    orders = [scores.sort(dim=1, descending=True, stable=True).indices for scores in (cold, warm)]
    assert torch.equal(*orders)
    assert not torch.allclose(cold, warm)


@pytest.mark.parametrize("constrained", [True, False])
def test_wide_enough_the_papers_search_ranks_as_exact_scores_do(constrained: bool):
    model = build()
    history = histories(model)
    scores = exact(model, history)
    wide = {"first_beams": SIZE, "branches": SIZE, "beams": SIZE**4}
    searched = build(ranking="beam", constrained=constrained, **wide)
    assert torch.allclose(scored(searched, history)[:, 1:], scores[:, 1:], atol=1e-3)
    trie = model.catalogue()
    with torch.inference_mode():
        leaf, _ = narrow_search(trie, model.log_probs(history), len(trie.depths[1]), SIZE, 50)
        first = trie.order[trie.depths[-1].first_leaf[leaf[:, 0]]]
    assert torch.equal(first, scores[:, 1:].argmax(1) + 1)


@pytest.mark.parametrize("constrained", [True, False])
def test_the_papers_search_keeps_its_widths_and_leaves_the_rest_tied(constrained: bool):
    model = build(ranking="beam", first_beams=6, branches=2, beams=5, constrained=constrained)
    history, trie = histories(model), model.catalogue()
    with torch.inference_mode():
        log_probs = model.log_probs(history)
        ranked, scores = scored(model, history), exact(model, history)
    for row in range(len(ranked)):
        beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        prefixes = [{tuple(c[:d]) for c in model.codes[1:].tolist()} for d in range(5)]
        for level in range(4):
            longer = []
            for score, codes in beams:
                values = [(score + float(log_probs[level][row, c]), (*codes, c)) for c in range(SIZE)]
                if constrained:
                    values = [v for v in values if v[1] in prefixes[level + 1]]
                longer += sorted(values, reverse=True)[: 2 if level else 6]
            beams = sorted(longer, reverse=True)[: 5 if level else 6]
        reached = {codes for _, codes in beams} & prefixes[4]
        found = [item for item in range(1, N_ITEMS + 1) if tuple(model.codes[item].tolist()) in reached]
        assert torch.allclose(ranked[row, found], scores[row, found], atol=1e-3)
        rest = [item for item in range(1, N_ITEMS + 1) if item not in found]
        assert len(ranked[row, rest].unique()) == 1
        assert not found or float(ranked[row, rest[0]]) < float(ranked[row, found].min())
    assert trie.n_items == N_ITEMS


def test_the_first_token_has_a_width_of_its_own():
    codes = torch.arange(-1, 8)[:, None]  # eight items of one code
    leaf, score = narrow_search(CodeTrie(codes), [torch.arange(8.0)[None]], first=6, branches=2, width=5)
    assert leaf.tolist() == [[7, 6, 5, 4, 3, 2]]
    assert score.tolist() == [[7, 6, 5, 4, 3, 2]]


@pytest.mark.parametrize("ranking", ["exact", "beam"])
def test_items_of_one_tuple_share_a_score_and_come_in_their_order(ranking: str):
    model = build(ranking=ranking, first_beams=SIZE, branches=SIZE, beams=60)
    history = histories(model)
    scores = scored(model, history)
    same = [3, N_ITEMS - 1, N_ITEMS]
    assert torch.equal(scores[:, same], scores[:, same[:1]].expand(-1, 3))
    answers = Recommender(model, ITEM_IDS).recommend([["i07"], ["i20", "i01"]], k=N_ITEMS - 5)
    for ids in answers.ids:
        places = [ids.index(ITEM_IDS[item - 1]) for item in same if ITEM_IDS[item - 1] in ids]
        assert places == list(range(places[0], places[0] + len(places)))


def test_a_narrow_search_still_recommends_as_many_as_are_asked_for(caplog: pytest.LogCaptureFixture):
    model = build(ranking="beam", beams=2, first_beams=1, branches=1)
    seen = ["i07", "i03", "i44"]
    answer = Recommender(model, ITEM_IDS).recommend(seen, k=N_ITEMS - 3)
    assert set(answer.ids) == set(ITEM_IDS) - set(seen)  # every tuple is of the catalogue, each item once
    assert answer.scores == sorted(answer.scores, reverse=True)
    build(ranking="beam", beams=500).catalogue()
    assert "beams = 500, and 50 items have codes" in caplog.text


def test_new_items_are_scored_and_read_by_code_and_content_alone():
    model = build()
    history = histories(model)
    vector = torch.randn(1, 16)
    grown = model.with_codes(torch.tensor([[1, 2, 3, 4]]), vector)
    assert torch.allclose(exact(grown, history)[:, :-1], exact(model, history), atol=1e-5)
    assert exact(grown, History(torch.tensor([[N_ITEMS + 1, 4]]))).isfinite()[:, 1:].all()
    with pytest.raises(EnsuiteError, match="content vectors of 16 numbers"):
        model.with_codes(torch.tensor([[1, 2, 3, 4]]))


# -- what text is worth --


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Materials]:
    """Users who walk round 8 categories, to any of 60 items of the next; an item's vector says its category
    in each of its 4 parts, with noise. Most items are rare."""
    rng = np.random.default_rng(0)
    category = np.arange(480) % 8
    centres = rng.normal(size=(8, 16))
    vectors = (centres[category] + 0.6 * rng.normal(size=(480, 16))).astype(np.float32)
    sequences = []
    for _ in range(120):
        first, n = rng.integers(8), rng.integers(5, 9)
        sequences.append([int(rng.choice(np.flatnonzero(category == (first + i) % 8))) + 1 for i in range(n)])
    dataset = make_dataset(tmp_path_factory.mktemp("corpus") / "data", sequences, n_items=480)
    config = FSQConfig(levels=4, grid=(5, 4, 4), heads=2, layers=0, steps=100, lr=1e-2, dropout=0.0)
    table = build_table(
        vectors,
        dataset.items["item_id"].to_list(),
        FSQ(config, 16),
        encoder={"hash": "made up"},
        duplicates="shared",
    )
    return dataset, Materials(codes=table, vectors=F.pad(torch.from_numpy(vectors), (0, 0, 1, 0)))


def quality(corpus: tuple[Dataset, Materials], **settings: Any) -> float:
    """Train a small model; return its share of targets in the first 60, a category's size."""
    from ensuite.data.samples import Samples, SamplesConfig

    dataset, given = corpus
    torch.manual_seed(1)
    small = RecGPTConfig(dim=32, blocks=1, heads=2, inner=64, dropout=0.0, max_length=8, **settings)
    model = RecGPT(RecGPT.sized_for(small, given), dataset.n_items)
    model.take(given)
    samples = Samples(dataset.events("train"), SamplesConfig(), max_length=8, batch_size=50, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for epoch in range(15):
        for step in range(len(samples)):
            optimizer.zero_grad()
            model.loss(samples.batch(epoch, step)).backward()
            optimizer.step()
    ranks = compute_ranks(model.eval(), dataset.events("all"), dataset.cases("test"))
    return float((ranks.rank <= 60).mean())


def test_without_the_parts_of_the_text_more_is_lost_than_without_the_block_mask(corpus):
    whole = quality(corpus)
    unseen, unmasked = quality(corpus, slices=False), quality(corpus, block_mask=False)
    assert whole > 0.25  # by chance 0.125
    assert whole - unseen > whole - unmasked + 0.05


# -- content-kNN --


def test_content_neighbours_by_hand():
    vectors = torch.tensor([[0.0, 0], [2, 0], [0, 3], [1, 1], [0, 0]])
    history = History(torch.tensor([[1, 2, 0], [2, 1, 1]]))
    for profile, expected in (
        ("mean", [[0.5**0.5, 0.5**0.5, 1.0, 0.0], [2 / 5**0.5, 1 / 5**0.5, 3 / 10**0.5, 0.0]]),
        ("last", [[0.0, 1.0, 0.5**0.5, 0.0], [1.0, 0.0, 0.5**0.5, 0.0]]),
    ):
        config = ContentKNN.sized_for(ContentKNNConfig(profile=profile), Materials(vectors=vectors))
        model = ContentKNN(config, 4)
        model.take(Materials(vectors=vectors))
        scores = model.scorer(history, model.catalogue())(1, 5)
        assert torch.allclose(scores, torch.tensor(expected))


# -- bad input --


def test_what_it_cannot_use_is_refused(tmp_path: Path):
    dataset = made_up_dataset(tmp_path / "data")
    from ensuite.training.loop import train

    with pytest.raises(EnsuiteError, match="no column of the item table says that"):  # a dataset without text
        train("recgpt", dataset, tmp_path / "run")
    with pytest.raises(EnsuiteError, match="do not divide its 15 numbers"):
        RecGPT(RecGPTConfig(level_sizes=(7, 7), content_dim=15), 5)
    given = materials()
    assert given.codes is not None
    digit = dataclasses.replace(given, codes=dataclasses.replace(given.codes, policy="digit"))
    with pytest.raises(EnsuiteError, match="--duplicates shared"):
        build().take(digit)
    for wrong, said in (
        ({"heads": 5}, "does not divide"),
        ({"constrained": False}, "is about a search"),
        ({"temperature": 0.0}, "temperature is positive"),
        ({"branches": 0}, "at least 1"),
    ):
        with pytest.raises(EnsuiteError, match=said):
            resolve("recgpt", {"model": wrong})


def test_its_recipes_resolve():
    recipes = sorted((Path(__file__).parents[2] / "recipes" / "recgpt").glob("*.yaml"))
    assert len(recipes) >= 2
    for path in recipes:
        values, where = read_recipe(path)
        _, config = resolve("recgpt", values, where=where)
        assert config.codes is not None
        assert (config.codes.tokeniser, config.codes.duplicates) == ("fsq", "shared")
        FSQConfig(**config.codes.settings)  # type: ignore[arg-type]
