"""Which preference goes with what, the five axes, and what models reach on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preferences.wishes import COLOURS, KINDS, TITLE, World, make_world

from ensuite.content.encoders import load_encoder
from ensuite.data.batches import History
from ensuite.errors import EnsuiteError
from ensuite.models.sasrec import SASRec, SASRecConfig
from ensuite.preferences.axes import Axes, phase_of
from ensuite.preferences.benchmark import Asker, combined, headline, run_benchmark, to_csv, to_svg
from ensuite.preferences.dot_product import DotProduct
from ensuite.preferences.matching import Space, build_space, candidates, choose
from ensuite.preferences.schema import Preferences, read_preferences
from ensuite.training.config import resolve
from ensuite.training.preferences import check_preferences, gather_preferences
from ensuite.training.progress import Display

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def preferences(world: World) -> Preferences:
    return read_preferences(world.wishes, world.dataset)


@pytest.fixture(scope="module")
def space(world: World, preferences: Preferences, tmp_path_factory: pytest.TempPathFactory) -> Space:
    encoder = load_encoder(str(world.encoder))
    return build_space(world.dataset, preferences, TITLE, encoder, cache=tmp_path_factory.mktemp("cache"))


def kind_of(items: np.ndarray) -> np.ndarray:
    return (np.asarray(items) - 1) // len(COLOURS)


def says(preferences: Preferences, numbers: np.ndarray) -> list[str]:
    return [preferences.text(n) for n in np.ravel(numbers).tolist()]


def test_the_oracle_takes_the_nearest_positive_one(world, preferences, space):
    rows = world.dataset.cases("test").history_end
    user, index = np.arange(len(rows)), np.full(len(rows), 5)
    target = np.asarray(world.dataset.item_idx)[rows]
    row = preferences.row_at(user, index)
    right = [f"find {KINDS[k]}" for k in kind_of(target)]
    assert says(preferences, candidates(preferences, row)[:, 1]) == right
    assert not candidates(preferences, row)[:, 0].any()  # "avoid" is no candidate
    mixed = replace(preferences, negative=np.zeros_like(preferences.negative))
    chosen = choose(mixed, user, index, target, "matched", space)[:, 0]
    products = np.einsum("qpd,qd->qp", space.texts[mixed.members[row]], space.items[target])
    best = np.where(mixed.members[row] > 0, products, -np.inf).argmax(1)
    assert (chosen == mixed.members[row, best]).all()
    assert 0 < best.mean() < 1
    only_bad = replace(preferences, negative=np.ones_like(preferences.negative))
    turned = says(preferences, choose(only_bad, user, index, target, "matched", space))
    assert all(text.startswith("find ") for text in turned)
    assert says(preferences, choose(preferences, user, index, target, "last")) == right
    every = choose(preferences, user, index, target, "all")
    assert ((every > 0).sum(1) == 2).all()
    assert not choose(preferences, user, np.zeros_like(index), target, "all").any()  # nothing before


@pytest.mark.parametrize("kind", ["fine", "coarse"])
def test_steering_swaps_histories_that_know_nothing_of_the_preference(world, preferences, space, kind):
    made = {phase: Axes(world.dataset, preferences, space, phase) for phase in ("train", "valid", "test")}
    found = {phase: axes.steering(kind) for phase, axes in made.items()}
    written = made["test"]._written
    for phase, questions in found.items():
        assert len(questions) > 5
        assert len(set(questions.target.tolist())) == len(questions)
        assert (questions.end > questions.start).all()
        for user, number in zip(questions.user.tolist(), questions.numbers[:, 0].tolist()):
            assert number not in written[user]
        assert {phase_of(text) for text in says(preferences, questions.numbers)} == {phase}
        ends = {"train": 4, "valid": 5, "test": 6}[phase]
        assert (questions.end - questions.start < ends).all()  # nothing of a later phase is read
    texts = [set(says(preferences, questions.numbers)) for questions in found.values()]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]
    vectors = space.items / np.linalg.norm(space.items, axis=1, keepdims=True).clip(1e-9)
    cosine = vectors[1:] @ vectors[1:].T
    others = made["test"]._others(np.array([7]), kind)[0] - 1
    rest = np.delete(cosine[6], 6)
    assert cosine[6, others] == (rest.max() if kind == "fine" else rest.min())


def test_sentiment_asks_for_what_was_disliked_without_a_history(world, preferences, space):
    questions = Axes(world.dataset, preferences, space, "test").sentiment()
    assert questions is not None
    assert len(questions) > 5
    assert (questions.start == questions.end).all()
    assert (questions.user % 3 == 0).all()  # only theirs are disliked
    assert len(set(questions.target.tolist())) == len(questions)
    pairs = zip(says(preferences, questions.against), says(preferences, questions.numbers))
    assert all(bad.replace("avoid", "find") == good for bad, good in pairs)
    assert Axes(world.dataset, preferences, space, "train").sentiment().target.tolist() == []


class Perfect:
    """Reads one preference, "find KIND" or "avoid KIND", and does it; of a kind, the first colours first."""

    max_length, n_items = 4, len(KINDS) * len(COLOURS)

    def reads_preferences(self) -> bool:
        return True

    def encode_preferences(self, texts: list[str]) -> torch.Tensor:
        found = [[KINDS.index(text.split()[1]) + 1, 1 if text.startswith("find") else -1] for text in texts]
        return torch.tensor(found, dtype=torch.float32)

    def catalogue(self) -> Any:
        return torch.from_numpy(kind_of(np.arange(self.n_items + 1))) + 1

    def scorer(self, history: History, catalogue: Any) -> Any:
        kind, sign = history.preferences[:, 0].T[:, :, None]  # [B, 1] each
        scores = (catalogue[None] == kind) * sign - 1e-3 * torch.arange(self.n_items + 1)
        return lambda first, last: scores[:, first:last]


def test_the_combined_measure_is_of_both_forms(world, preferences, space):
    axes = Axes(world.dataset, preferences, space, "test")
    questions = axes.sentiment()
    kinds = [KINDS.index(text.split()[1]) for text in says(preferences, questions.numbers)]
    right = np.array(kinds) * len(COLOURS) + 1 + (questions.target - 1) % len(COLOURS)
    questions = replace(questions, target=right)  # this encoder knows no kinds; the perfect model does
    asker = Asker(Perfect(), world.dataset, preferences, [questions])
    plain = (asker.ranks(questions, questions.numbers).rank <= 10).mean()
    found = {name: values.mean() for name, values in asker.measure(questions).items()}
    assert found == {"combined@5": 1.0, "combined@10": 1.0}
    swapped = replace(questions, numbers=questions.against, against=questions.numbers)
    assert not any(values.any() for values in asker.measure(swapped).values())
    assert not any(values.any() for values in combined(np.ones(3), np.ones(3)).values())  # one list for both
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(1, 30, (2, 500)).astype(float)
    for k in (5, 10):
        assert combined(positive, negative)[f"combined@{k}"].mean() <= (positive <= k).mean()
    assert found["combined@10"] <= plain


def test_any_model_enters(world, preferences, space):
    axes = list(Axes(world.dataset, preferences, space, "test").every())
    steering = ["fine steering", "coarse steering"]
    names = ["recommendation", "last preference", *steering, "sentiment", "consolidation"]
    assert [one.axis for one in axes] == names
    torch.manual_seed(0)
    sasrec = SASRec(SASRecConfig(dim=8, heads=1, blocks=1, max_length=4), Perfect.n_items).eval()
    entries = [("perfect", Perfect()), ("sasrec", sasrec), ("dot product", DotProduct(space))]
    results = run_benchmark(entries, world.dataset, preferences, axes)
    value = {(one.name, one.axis): one.metrics[headline(one.axis)].mean for one in results}
    assert value["perfect", "recommendation"] == value["perfect", "last preference"] == 1
    assert value["sasrec", "sentiment"] == 0
    assert value["sasrec", "recommendation"] < 0.5
    assert 0 <= value["dot product", "consolidation"] <= 1
    by_name = {one.name: one for one in results if one.axis == "recommendation"}
    assert by_name["perfect"].p is None
    assert by_name["sasrec"].p < 0.001
    found = by_name["sasrec"].metrics["recall@10"]
    assert 0 <= found.low < found.mean < found.high < 1
    lines = to_csv(results).splitlines()
    assert lines[0] == "run,axis,questions,metric,value,low,high,p against best"
    assert len(lines) == 1 + 3 * (5 * 5 + 2)
    assert "recommendation" in to_svg(results, "t")
    sasrec.load_state_dict({k: v * torch.nan for k, v in sasrec.state_dict().items()})
    with pytest.raises(EnsuiteError, match="not numbers"):
        run_benchmark(entries[1:2], world.dataset, preferences, axes[:1])


def test_ranks_count_ties_half_and_the_history_too(world, preferences, space):
    questions = Axes(world.dataset, preferences, space, "test").recommendation()

    class Flat(Perfect):
        def scorer(self, history: History, catalogue: Any) -> Any:
            return lambda first, last: torch.zeros(len(history.items), last - first)

    ranks = Asker(Flat(), world.dataset, preferences, [questions]).ranks(questions, questions.numbers)
    assert set(ranks.rank.tolist()) == {1 + (Perfect.n_items - 1) / 2}
    assert ranks.n_candidates.tolist() == [Perfect.n_items] * len(questions)


def test_without_ratings_there_is_no_sentiment(world, preferences, space, monkeypatch):
    monkeypatch.setattr("ensuite.preferences.axes.opinions", lambda dataset: None)
    axes = Axes(world.dataset, preferences, space, "test")
    assert axes.sentiment() is None
    assert [one.axis for one in axes.every()][-1] == "consolidation"
    assert len(list(axes.every())) == 5


class Reading(torch.nn.Module):
    """Of a model, only what `gather_preferences` asks."""

    def __init__(self, encoder: Path):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = type("Config", (), {"encoder": str(encoder)})

    def reads_preferences(self) -> bool:
        return True

    def encode_preferences(self, texts: list[str]) -> torch.Tensor:
        self.texts = list(texts)
        return torch.arange(1.0, len(texts) + 1)[:, None]


@pytest.mark.parametrize("mix", ["none", "fine", "coarse"])
def test_a_training_gets_what_goes_with_each_event_and_the_samples_of_a_mix(
    world, preferences, mix, tmp_path, monkeypatch
):
    monkeypatch.setenv("ENSUITE_CACHE", str(tmp_path))
    recipe = world.recipe() | {"preferences": {"file": str(world.wishes), "choice": "last", "mix": mix}}
    _, config = resolve("mender", recipe)
    model = Reading(world.encoder)
    known = gather_preferences(config, world.dataset, model, Display(False))
    from ensuite.data.samples import Samples, SamplesConfig

    events = known.beside(world.dataset.events("train"))
    samples = Samples(
        events, SamplesConfig(kind="prefixes"), max_length=4, batch_size=64, seed=0, extra=known.extra
    )
    asked = {}
    for batch in samples.everything():
        target = batch.targets.amax(1)
        text = [model.texts[int(n) - 1] for n in batch.history.preferences[:, 0, 0]]
        for one, item, length in zip(text, target.tolist(), batch.history.lengths.tolist()):
            asked.setdefault((one.split()[1], KINDS[kind_of(item)]), []).append(length)
        assert not batch.unwanted.any()
    own = sum(len(lengths) for (a, b), lengths in asked.items() if a == b)
    assert own >= 150 * 3  # of the log: the user said what came
    assert samples.n_samples == 150 * 3 + (0 if mix == "none" else len(known.extra.user))
    assert (mix == "none") == (known.extra is None)


def test_samples_of_sentiment_have_no_history_and_say_what_must_not_come(world, preferences, space):
    questions = Axes(world.dataset, preferences, space, "test").sentiment()
    good, bad = questions.extra(True), questions.extra(False)
    assert not good.unwanted.any()
    assert bad.unwanted.all()
    assert (bad.numbers == questions.against).all()
    from ensuite.data.samples import Samples, SamplesConfig
    from ensuite.data.stated import Stated

    texts = len(preferences.texts)
    stated = Stated(np.zeros((world.dataset.n_events, 1), np.int64), torch.arange(texts + 1.0)[:, None])
    events = replace(world.dataset.events("train"), stated=stated)
    samples = Samples(events, SamplesConfig(kind="prefixes"), max_length=4, batch_size=64, seed=0, extra=bad)
    batch = samples.read(np.arange(samples.of_log - 2, samples.of_log + 3), (0,))
    assert batch.unwanted.tolist() == [False] * 2 + [True] * 3
    assert batch.history.lengths.tolist()[2:] == [0] * 3
    assert batch.targets.amax(1).tolist()[2:] == questions.target[:3].tolist()
    assert batch.history.preferences[2:, 0, 0].tolist() == questions.against[:3, 0].tolist()


def test_a_training_without_what_it_needs_is_refused(world):
    def refused(preferences: dict[str, str], why: str, **model: str) -> None:
        _, config = resolve("mender", {"model": model, "preferences": preferences})
        with pytest.raises(EnsuiteError, match=why):
            check_preferences(config, world.dataset)

    refused({}, "mender reads preferences: give a file of them by --preferences.file")
    refused({"file": "gone.parquet"}, "gone.parquet: no such file")
    refused({"file": str(world.wishes)}, "this mender reads no preferences", inputs="history")
    with pytest.raises(EnsuiteError, match="sasrec reads no preferences; leave the section"):
        resolve("sasrec", {"preferences": {"file": "x"}})
