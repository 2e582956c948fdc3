"""The next-session task from the command line: prepare, train, evaluate, compare, recommend."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from ensuite.data.act_r_logs import act_r_log

Cli = Callable[..., subprocess.CompletedProcess[str]]
SMALL = [
    *(
        "--model.dim",
        "16",
        "--model.sessions",
        "6",
        "--model.session-length",
        "8",
        "--model.max-length",
        "120",
    ),
    *("--model.blocks", "1", "--training.batch-size", "32", "--training.lr", "0.01", "--quiet"),
]
SPLIT = ["--split", "sessions", "--held-sessions", "1", "2"]


@pytest.fixture
def log(tmp_path: Path) -> pl.DataFrame:
    events = act_r_log((0.6, 0.3, 0.1), users=40, items=60, sessions=12, seed=2).events
    events.write_csv(tmp_path / "log.csv")
    events.drop("session").write_csv(tmp_path / "plain.csv")
    return events


def test_from_a_log_to_the_next_session(ensuite: Cli, tmp_path: Path, log: pl.DataFrame) -> None:
    said = ensuite("prepare", "log.csv", "--out", "data", *SPLIT, "--session-min", "2").stdout
    assert "Split: sessions, targets: session" in said
    assert "sessions >= 2" in said
    ensuite("train", "pisa", "--data", "data", "--out", "runs/pisa", *SMALL, "--training.epochs", "4")
    ensuite(
        "train", "personal-repeat", "--data", "data", "--out", "runs/repeat", "--model.decay", "0", "--quiet"
    )
    for run in ("pisa", "repeat"):
        card = json.loads((tmp_path / "runs" / run / "card.json").read_text())
        assert card["protocol"]["exclude"] == "none"
    said = ensuite("evaluate", "runs/pisa", "--cohorts", "10", "--slices", "--json", "out.json").stdout
    assert "ndcg-rep@10" in said
    assert "cohorts of 10 users" in said
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["card"]["protocol"]["exclude"] == "none"
    assert out["card"]["protocol"]["cases"] == 80
    assert len(out["cohorts"]["ndcg@10"]) == 2
    curve = [json.loads(line) for line in (tmp_path / "runs/pisa/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in curve if line["kind"] == "train"]
    assert losses[-1] < losses[0]
    again = ensuite(
        "evaluate", "runs/pisa", "--phase", "valid", "--metrics", "ndcg@10", "--json", "valid.json"
    )
    assert again.returncode == 0
    best = max(line["metrics"]["ndcg@10"] for line in curve if line["kind"] == "valid")
    value = json.loads((tmp_path / "valid.json").read_text())["metrics"]["ndcg@10"]
    assert value == pytest.approx(best)  # one definition, in training and after
    assert "rep-ratio@10" in ensuite("compare", "runs/pisa", "runs/repeat", "--out", "report").stdout


def test_a_users_next_session_may_repeat(ensuite: Cli, log: pl.DataFrame) -> None:
    ensuite("prepare", "plain.csv", "--out", "data", *SPLIT, "--session-gap", "20m")
    ensuite("train", "pisa", "--data", "data", "--out", "run", *SMALL, "--training.epochs", "2")
    answer = json.loads(ensuite("recommend", "run", "--user", "3", "--json").stdout)
    listened = set(log.filter(pl.col("user") == 3)["item"].to_list())
    assert listened & {int(item["item_id"]) for item in answer["items"]}
    fresh = json.loads(
        ensuite("recommend", "run", "--user", "3", "--exclude", "seen", "--k", "5", "--json").stdout
    )
    assert not listened & {int(item["item_id"]) for item in fresh["items"]}
    times = ["--times", "1600000000", "1600000030", "1600000060"]
    words = ["recommend", "run", "--history", "1", "2", "3", *times]
    by_pause, one, two = (
        ensuite(*words, *rest, "--json").stdout
        for rest in ([], ["--sessions", "a", "a", "a"], ["--sessions", "a", "b", "b"])
    )
    assert by_pause == one
    assert one != two
    refused = ensuite(*words[:6], check=False)
    assert refused.returncode == 2
    assert "has no times" in refused.stderr
    refused = ensuite(*words, "--sessions", "a", check=False)
    assert "1 --sessions for 3 items" in refused.stderr


def test_pisa_says_at_the_start_what_it_misses(ensuite: Cli, tmp_path: Path, log: pl.DataFrame) -> None:
    ensuite("prepare", "plain.csv", "--out", "flat")
    refused = ensuite("train", "pisa", "--data", "flat", "--out", "run", *SMALL, check=False)
    assert "cut into sessions" in refused.stderr
    assert not (tmp_path / "run").exists()
    log.select("user", "item", "session").write_csv(tmp_path / "order.csv")
    ensuite("prepare", "order.csv", "--out", "order", *SPLIT)
    refused = ensuite("train", "pisa", "--data", "order", "--out", "run", *SMALL, check=False)
    assert "has no event times" in refused.stderr
    refused = ensuite("train", "pisa", "--data", "flat", "--out", "run", "--model.heads", "3", check=False)
    assert "heads = 3 does not divide" in refused.stderr
    refused = ensuite("prepare", "plain.csv", "--out", "none", *SPLIT, check=False)
    assert "--session-gap 20m" in refused.stderr
    refused = ensuite(
        "prepare", "log.csv", "--out", "none", "--split", "sessions", "--held-sessions", "9", "9", check=False
    )
    assert "needs users with at least one more" in refused.stderr


def test_validation_users_keep_all_their_sessions(ensuite: Cli, tmp_path: Path, log: pl.DataFrame) -> None:
    from ensuite.data.dataset import Dataset
    from ensuite.training.config import resolve
    from ensuite.training.trainer import validation_cases

    ensuite("prepare", "log.csv", "--out", "data", "--split", "sessions", "--held-sessions", "3", "1")
    data = Dataset.open(tmp_path / "data")
    _, config = resolve("pisa", {"training": {"validation_users": 7}})
    cases = validation_cases(data, config)
    assert len(cases) == 21
    assert len(set(cases.user)) == 7
