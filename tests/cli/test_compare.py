from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ensuite.data.dataset import Dataset
from ensuite.training.loop import train

Ensuite = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def runs(cycle: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two fitted runs on one dataset, and one on another."""
    out = tmp_path_factory.mktemp("runs")
    for name in ("popularity", "markov"):
        train(name, cycle, out / name)
    return out


def test_evaluate_writes_metrics_and_card(ensuite: Ensuite, runs: Path, tmp_path: Path, cycle: Dataset):
    done = ensuite("evaluate", runs / "markov", "--json", "out.json", "--slices", "--sampled", "uniform-5",
                   "--metrics", "ndcg@3", "hr@3", "coverage@3")  # fmt: skip
    out = json.loads((tmp_path / "out.json").read_text())
    assert set(out["metrics"]) == {"ndcg@3", "hr@3", "coverage@3", "ndcg@3/uniform-5", "hr@3/uniform-5"}
    assert 0.9 <= out["metrics"]["hr@3"] <= 1  # the next item of the cycle is certain
    assert out["card"]["data"]["fingerprint"] == cycle.fingerprint
    assert out["card"]["protocol"]["phase"] == "test"
    assert "ensuite compare" in done.stdout
    assert "transition 3+" in done.stdout


def test_two_processes_give_the_digits_of_one(ensuite: Ensuite, runs: Path, tmp_path: Path):
    ensuite("evaluate", runs / "markov", "--json", "one.json", "--batch-size", "16")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "ensuite",
    ]
    command += ["evaluate", str(runs / "markov"), "--json", str(tmp_path / "two.json"), "--batch-size", "16"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name).read_text())["metrics"] for name in ("one.json", "two.json"))
    assert one == two
    assert done.stdout.count("Next:") == 1


def test_compare_writes_a_report(ensuite: Ensuite, runs: Path, tmp_path: Path):
    done = ensuite("compare", runs / "popularity", runs / "markov", "--out", "report")
    assert {p.name for p in (tmp_path / "report").iterdir()} == {
        "table.csv",
        "slices.csv",
        "table.md",
        "report.html",
    }
    assert done.stdout.index("markov") < done.stdout.index("popularity")  # the best first
    assert "p < .001" in done.stdout
    assert "Next:" in done.stdout


def test_mistakes_are_named(ensuite: Ensuite, runs: Path, tmp_path: Path):
    (tmp_path / "junk").mkdir()
    for argv, said in (
        (["compare", runs / "markov", tmp_path / "junk"], "not a run folder"),
        (["compare"], "no run given"),
        (["compare", runs / "markov", runs / "popularity", "--against", "markof"], "did you mean 'markov'"),
        (["evaluate", runs / "markov", "--metrics", "ngcd@10"], "did you mean 'ndcg@10'"),
        (["evaluate", runs / "markov", "--metrics", "hr@1000"], "larger than the catalogue of 20"),
        (["evaluate", runs / "nothing"], "no such run"),
        (["evaluate", runs / "markov", "--data", tmp_path / "nowhere"], "nowhere"),
    ):
        done = ensuite(*argv, check=False)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_cards_that_differ_are_refused(ensuite: Ensuite, runs: Path, tmp_path: Path):
    import shutil

    shutil.copytree(runs / "markov", tmp_path / "other")
    card = json.loads((tmp_path / "other" / "card.json").read_text())
    card["protocol"]["exclude"] = "none"
    (tmp_path / "other" / "card.json").write_text(json.dumps(card))
    done = ensuite("compare", runs / "popularity", "other", check=False)
    assert done.returncode == 2
    assert 'protocol.exclude: "seen" in popularity; "none" in other' in done.stderr
