"""The search: its space, its bookkeeping over interruptions, and pruning; with trainings of a few
milliseconds."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import yaml

from ensuite.errors import EnsuiteError
from ensuite.models.registry import model_names
from ensuite.training.config import resolve
from ensuite.training.trainer import Interrupted, StopTraining
from ensuite.tune import search as module
from ensuite.tune.space import Range, built_in_space, defaults_inside, nest, read_space

pytest.importorskip("optuna")


def config_of(name: str, **values):
    return resolve(name, values)


@pytest.mark.parametrize("name", [name for name in model_names() if name != "recency"])
def test_the_built_in_space_of_every_model_is_valid(name):
    cls, config = config_of(name)
    space = built_in_space(cls, config)
    plain = {
        key: list(v) if isinstance(v, tuple) else {"low": v.low, "high": v.high, "log": v.log}
        for key, v in space.items()
    }
    assert set(read_space(plain, config, "space")) == set(space)
    for take in (
        lambda v: v[0] if isinstance(v, tuple) else v.low,
        lambda v: v[-1] if isinstance(v, tuple) else v.high,
    ):
        resolve(name, nest({key: take(values) for key, values in space.items()}))


def test_a_wrappers_base_can_be_searched():
    _, config = config_of("rearec")
    space = read_space({"model.encoder.dim": [32, 64], "model": {"steps": [1, 2]}}, config, "space")
    assert defaults_inside(space, config) == {"model.encoder.dim": 64, "model.steps": 2}
    assert resolve("rearec", nest({"model.encoder.dim": 32}))[1].model.encoder.dim == 32
    with pytest.raises(EnsuiteError, match=r"model.encoder.dimm'; did you mean 'dim'"):
        read_space({"model.encoder.dimm": [32]}, config, "space")


def test_nothing_to_search_is_said():
    with pytest.raises(EnsuiteError, match="recency: there is nothing to search"):
        built_in_space(*config_of("recency"))


def test_a_model_may_bring_its_own_space(monkeypatch):
    cls, config = config_of("markov")
    monkeypatch.setattr(cls, "space", {"model.last": [1, 2]}, raising=False)
    assert built_in_space(cls, config) == {"model.last": (1, 2)}


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"model.dimm": [1]}, "unknown key 'model.dimm'; did you mean 'dim'"),
        ({"models.dim": [1]}, "unknown key 'models.dim'; sections are model"),
        ({"model": {"dim": 3}}, "model.dim = 3: a list of choices"),
        ({"model.dim": []}, "a list of choices"),
        ({"training.lr": {"low": 1, "high": 0.1}}, "low = 1.* lies above high = 0.1"),
        ({"training.lr": {"low": 0, "high": 0.1, "log": True}}, "a log range starts above 0"),
        ({"training.lr": {"low": 0, "hihg": 0.1}}, "unknown key 'hihg'; did you mean 'high'"),
        ({}, "nothing to search"),
    ],
)
def test_a_wrong_space_is_refused_by_its_key(space, said):
    with pytest.raises(EnsuiteError, match=said):
        read_space(space, config_of("sasrec")[1], "space.yaml")


def test_ranges_of_integers_stay_integers_and_defaults_are_tried_first():
    config = config_of("sasrec")[1]
    space = read_space(
        {"model": {"dim": {"low": 16, "high": 64, "step": 16}, "dropout": {"low": 0.3, "high": 0.5}}},
        config,
        "s",
    )
    assert space["model.dim"].whole
    assert not space["model.dropout"].whole
    assert defaults_inside(space, config) == {"model.dim": 64}  # the default dropout, 0.2, lies outside
    assert not Range(low=0.0, high=1.0, step=0.25).holds(0.3)


class Curves:
    """Stands for the trainer: model.last picks one of the curves of validation metrics."""

    def __init__(self, curves, interrupt=()):
        self.curves, self.interrupt, self.asked, self.epochs = curves, list(interrupt), [], 0

    def __call__(self, model, data, out, *, recipe, seed, overwrite, on_validation):
        out.mkdir(parents=True)
        _, config = resolve(model, recipe, seed)
        self.asked.append((config.model.last, config.model.decay))
        if len(self.asked) in self.interrupt:
            raise Interrupted("stopped by SIGTERM")
        best = -1.0
        try:
            for epoch, value in enumerate(self.curves[config.model.last], 1):
                best = max(best, value)
                self.epochs += 1
                on_validation(epoch, {"ndcg@10": value})
        except StopTraining:
            pass
        (out / "last").write_text(str(config.model.last))
        return SimpleNamespace(card={"training": {"best_ndcg@10": best}}, config=config)


SPACE = {"model": {"last": {"low": 1, "high": 5}, "decay": {"low": 0.1, "high": 1.0}}}


def search(cycle, tmp_path, monkeypatch, curves, trials, interrupt=(), **values):
    stand_in = Curves(curves, interrupt)
    monkeypatch.setattr(module, "train", stand_in)
    told = []
    values = {
        "space": SPACE,
        "on_trial": lambda number, state, value, _: told.append((number, state, value)),
        **values,
    }
    try:
        return module.tune("markov", cycle, tmp_path / "out", trials=trials, **values), stand_in, told
    except EnsuiteError as error:
        return error, stand_in, told


RISING = {last: [0.1 * last, 0.15 * last] for last in range(1, 6)}


def test_the_best_is_kept_as_recipe_and_run(cycle, tmp_path, monkeypatch):
    result, stand_in, told = search(cycle, tmp_path, monkeypatch, RISING, trials=6, prune=False)
    assert stand_in.asked[0] == (1, 0.5)  # the defaults first
    best = max(last for last, _ in stand_in.asked)
    assert result.best == pytest.approx(0.15 * best)
    assert yaml.safe_load(result.recipe.read_text())["model"]["last"] == best
    assert (tmp_path / "out/best/last").read_text() == str(best)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "best",
        "best.yaml",
        "study.db",
        "trials.csv",
    ]
    assert [state for _, state, _ in told] == ["complete"] * 6
    table = result.trials()
    assert table["ndcg@10"][0] == result.best
    assert table["epochs"].to_list() == [2] * 6


def test_the_same_call_goes_on_and_does_not_repeat(cycle, tmp_path, monkeypatch):
    _, first, _ = search(cycle, tmp_path, monkeypatch, RISING, trials=3, prune=False)
    _, second, told = search(cycle, tmp_path, monkeypatch, RISING, trials=5, prune=False)
    _, third, _ = search(cycle, tmp_path, monkeypatch, RISING, trials=5, prune=False)
    assert [len(first.asked), len(second.asked), len(third.asked)] == [3, 2, 0]
    assert [number for number, _, _ in told] == [3, 4]
    assert not set(first.asked) & set(second.asked)


def test_an_interrupted_trial_is_not_counted(cycle, tmp_path, monkeypatch):
    error, _, _ = search(cycle, tmp_path, monkeypatch, RISING, trials=4, interrupt=[3], prune=False)
    assert isinstance(error, EnsuiteError)
    assert "2 trials are kept: the same command goes on" in str(error)
    result, second, _ = search(cycle, tmp_path, monkeypatch, RISING, trials=4, prune=False)
    assert len(second.asked) == 2
    assert result.trials().filter(state="complete").height == 4


def test_trials_below_the_median_are_stopped(cycle, tmp_path, monkeypatch):
    curves = {last: [0.1 if last in (3, 5) else 0.5] * 3 for last in range(1, 6)}
    result, stand_in, told = search(cycle, tmp_path, monkeypatch, curves, trials=12)
    table = result.trials()
    pruned = table.filter(state="pruned")
    assert pruned.height > 0
    assert set(pruned["model.last"]) <= {3, 5}
    assert set(pruned["epochs"]) == {1}
    assert all(state == "complete" for number, state, _ in told if number < module.STARTUP)
    assert table["state"].to_list() == sorted(table["state"].to_list())  # complete before pruned
    assert stand_in.epochs == 3 * 12 - 2 * pruned.height


def test_the_time_of_the_search_ends_a_trial_with_what_it_has(cycle, tmp_path, monkeypatch):
    result, stand_in, _ = search(cycle, tmp_path, monkeypatch, RISING, trials=50, timeout=0.0)
    assert len(stand_in.asked) <= 1
    assert isinstance(result, EnsuiteError) or result.trials()["epochs"].to_list() == [1]


def test_a_trial_that_fails_does_not_end_the_search(cycle, tmp_path, caplog):
    space = {"model": {"decay": [0.5, 7.0]}}  # 7 is refused by the configuration
    result = module.tune("markov", cycle, tmp_path / "out", trials=6, space=space)
    states = result.trials()["state"].to_list()
    assert "complete" in states
    assert "fail" in states
    assert "decay = 7.0" in caplog.text
    with pytest.raises(EnsuiteError, match=r"no trial was finished: .*decay = [78]"):
        module.tune("markov", cycle, tmp_path / "none", trials=2, space={"model": {"decay": [7.0, 8.0]}})


def test_another_space_or_recipe_in_the_same_folder_is_refused(cycle, tmp_path, monkeypatch):
    search(cycle, tmp_path, monkeypatch, RISING, trials=1)
    error, _, _ = search(cycle, tmp_path, monkeypatch, RISING, trials=2, space={"model.last": [1, 2]})
    assert "with another space; choose another --out or --storage" in str(error)
    error, _, _ = search(cycle, tmp_path, monkeypatch, RISING, trials=2, recipe={"model": {"steps": 2}})
    assert "with another recipe" in str(error)


def test_bad_input_is_named(cycle, tmp_path, monkeypatch):
    with pytest.raises(EnsuiteError, match="storage 'nonsense' cannot be opened"):
        module.tune("markov", cycle, tmp_path / "a", storage="nonsense")
    with pytest.raises(EnsuiteError, match="unknown metric"):
        module.tune("markov", cycle, tmp_path / "b", recipe={"training": {"metric": "ndgc@10"}})
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(EnsuiteError, match=r"pip install 'ensuite\[tune\]'"):
        module.tune("markov", cycle, tmp_path / "c")
