"""`ensuite index` and `ensuite recommend --engine` through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ensuite.data.dataset import Dataset
from ensuite.serve.search.index import FILE, read_index
from ensuite.training.loop import train
from ensuite.training.run import load_run

SMALL = {"model": {"dim": 8, "blocks": 1, "heads": 1, "max_length": 8}, "training": {"epochs": 1}}


@pytest.fixture(scope="module")
def trained(cycle: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("sasrec", cycle, tmp_path_factory.mktemp("runs") / "sasrec", recipe=SMALL).path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def test_auto_measures_and_keeps_what_it_picks(ensuite, run):
    done = ensuite("index", run, "--k", 3, "--users", 40, "--pq.splits", 4)
    for word in (
        "exact",
        "pq-pruned",
        "recall@3",
        "test histories",
        "Next: ensuite recommend",
    ):
        assert word in done.stdout
    assert f"Picked: {read_index(load_run(run)).kind} (" in done.stdout


@pytest.mark.parametrize("kind", ["pq", "pq-pruned"])
def test_a_kind_that_is_asked_for_is_kept_and_used(ensuite, run, kind):
    done = ensuite("index", run, "--kind", kind, "--k", 3, "--pq.splits", 2, "--pq.sub-items", 2)
    assert f"({kind})" in done.stdout
    index = read_index(load_run(run))
    assert (index.kind, index.settings.pq.splits, index.settings.pq.sub_items) == (kind, 2, 2)

    def ask(*words: object) -> list[float]:
        asked = ensuite("recommend", run, "--history", 30, 40, "--k", 4, "--json", *words)
        return [item["score"] for item in json.loads(asked.stdout)["items"]]

    assert ask() == ask("--engine", "index")
    assert ask() != ask("--engine", "torch")  # two sub-items a split: far from the model's scores


def test_without_the_data_item_vectors_stand_for_users(ensuite, run):
    card = json.loads((run / "card.json").read_text())
    card["data"]["path"] = "moved"
    (run / "card.json").write_text(json.dumps(card))
    done = ensuite("index", run, "--kind", "exact", "--k", 3)
    assert "item vectors stand for users" in done.stderr
    assert "20 item vectors in place of users" in done.stdout
    failed = ensuite("index", run, "--data", "moved", check=False)
    assert failed.returncode == 2
    assert "moved" in failed.stderr


def test_a_stale_index_stops_recommend_and_is_built_again(ensuite, run, cycle):
    ensuite("index", run, "--kind", "pq", "--k", 3, "--pq.splits", 4)
    other = train("sasrec", cycle, run.parent / "other", recipe=SMALL | {"seed": 7}).path
    shutil.copy(other / "model.safetensors", run / "model.safetensors")
    failed = ensuite("recommend", run, "--history", 30, check=False)
    assert failed.returncode == 2
    assert FILE in failed.stderr
    assert "stale" in failed.stderr
    assert ensuite("recommend", run, "--history", 30, "--engine", "torch").returncode == 0
    ensuite("index", run, "--kind", "pq", "--k", 3, "--pq.splits", 4)
    assert ensuite("recommend", run, "--history", 30).returncode == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--pq.splits", 3], "splits = 3 does not divide the 8 dimensions"),
        (["--k", 0], "--k 0"),
        (["--k", 21], "--k 21"),
        (["--users", 0], "--users 0"),
        (["--batch", -1], "--batch -1"),
        (["--recall", 1.5], "--recall 1.5"),
        (["--pq.sub-items", 300], "sub_items = 300"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_written(ensuite, run, words, why):
    failed = ensuite("index", run, *words, check=False)
    assert failed.returncode == 2
    assert why in failed.stderr
    assert not (run / FILE).exists()


def test_recommend_engine_index_without_one(ensuite, run):
    failed = ensuite("recommend", run, "--history", 30, "--engine", "index", check=False)
    assert failed.returncode == 2
    assert "ensuite index" in failed.stderr


def test_systems_without_item_vectors(ensuite, cycle, tmp_path):
    path = train("markov", cycle, tmp_path / "markov").path
    failed = ensuite("index", path, check=False)
    assert failed.returncode == 2
    assert "Markov has no item vectors" in failed.stderr
