"""`ensuite steps`: from the words to the table, the CSV and the plot."""

from __future__ import annotations

import csv
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ensuite.data.dataset import Dataset
from ensuite.evaluate.evaluate import evaluate
from ensuite.evaluate.metrics import per_case
from ensuite.evaluate.ranks import compute_ranks
from ensuite.training.loop import train

Ensuite = Callable[..., subprocess.CompletedProcess[str]]
SMALL = {"model": {"method": "erl", "encoder": {"dim": 8, "max_length": 6}}, "training": {"epochs": 1}}


@pytest.fixture(scope="module")
def run(cycle: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    train("rearec", cycle, out / "erl", recipe=SMALL, seed=1)
    train("popularity", cycle, out / "popularity")
    train("rearec", cycle, out / "base", recipe={**SMALL, "model": {**SMALL["model"], "steps": 0}})
    return out


def test_steps_and_oracle(ensuite: Ensuite, run: Path, tmp_path: Path, cycle: Dataset) -> None:
    done = ensuite("steps", run / "erl", "--out", "report", "--metrics", "ndcg@5", "mrr", "--exclude", "none")
    assert "mean of the steps" in done.stdout
    assert "headroom" in done.stdout
    with (tmp_path / "report" / "steps.csv").open() as file:
        rows = {(row["metric"], row["slice"]): row for row in csv.DictReader(file)}
    assert {"all", "head items", "tail items", "history 6-10"} <= {part for _, part in rows}
    from ensuite.training.run import load_run

    model = load_run(run / "erl").model
    values = []
    for k in range(3):
        model.step = k  # type: ignore[assignment]
        ranks = compute_ranks(model, cycle.events("all"), cycle.cases("test"), exclude="none")
        values.append(per_case(ranks, "ndcg@5"))
    everyone = rows["ndcg@5", "all"]
    assert int(everyone["cases"]) == 120
    assert [float(everyone[f"step {k}"]) for k in range(3)] == pytest.approx([v.mean() for v in values])
    model.step = None  # type: ignore[assignment]
    final = evaluate(model, cycle, "test", ["ndcg@5"], exclude="none").metrics["ndcg@5"]
    assert float(everyone["final"]) == pytest.approx(final)
    oracle = np.max(values, 0).mean()
    assert float(everyone["oracle"]) == pytest.approx(oracle)
    assert float(everyone["headroom %"]) == pytest.approx(100 * (oracle / final - 1))
    assert max(v.mean() for v in values) < oracle
    for metric in ("ndcg@5", "mrr"):  # slices that share out the targets give the whole
        parts = [rows[metric, name] for name in ("head items", "tail items")]
        whole = sum(int(p["cases"]) * float(p["oracle"]) for p in parts) / 120
        assert float(rows[metric, "all"]["oracle"]) == pytest.approx(whole)
    svg = ElementTree.parse(tmp_path / "report" / "steps.svg").getroot()
    text = "".join(svg.itertext())
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    assert all(name in text for name in ("step 0", "step 2", "final", "oracle", "head", "ndcg@5"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("popularity",), "a run of popularity, which has no reasoning steps"),
        (("base",), "model.steps = 0"),
        (("erl", "--metrics", "coverage@10"), "compared by accuracy"),
        (("erl", "--metrics", "ndcg@50"), "larger than the 20 items"),
        (("erl", "--metrics", "ndgc@5"), "unknown metric"),
        (("nowhere",), "no such run"),
    ],
)
def test_mistakes_are_named(ensuite: Ensuite, run: Path, argv: tuple[str, ...], words: str) -> None:
    done = ensuite("steps", run / argv[0], *argv[1:], check=False)
    assert done.returncode == 2
    assert words in done.stderr.replace("\n", " ")
