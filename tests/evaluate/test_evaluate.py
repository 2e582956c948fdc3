from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from evaluate.fakes import DotScorer, TableScorer

from ensuite.data.dataset import Dataset, Split, write_dataset
from ensuite.errors import EnsuiteError
from ensuite.evaluate.compare import Entry, compare
from ensuite.evaluate.evaluate import evaluate
from ensuite.evaluate.report.svg import Series, line_chart, with_legend


def write_log(out: Path, n_users: int = 60, n_items: int = 30) -> Dataset:
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 20, n_users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return write_dataset(
        out,
        offsets=offsets,
        item_idx=rng.permuted(np.tile(np.arange(1, n_items + 1), (n_users, 1)), axis=1)[
            np.repeat(np.arange(n_users), lengths), np.concatenate([np.arange(n) for n in lengths])
        ],
        time=None,
        split=Split(lengths - 2, lengths - 1, lengths),
        items=pl.DataFrame({"item_id": np.arange(n_items), "genres": ["A|B", "B", "C"] * (n_items // 3)}),
        users=pl.DataFrame({"user_id": [f"person-{u}" for u in range(n_users)]}),
        columns={},
        card={
            "time_unit": None,
            "split": {"kind": "leave-one-out", "targets": "next"},
            "name": "a <small> log",
        },
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_log(tmp_path_factory.mktemp("log") / "data")


def card(dataset: Dataset, **protocol: object) -> dict[str, object]:
    return {
        "model": "fake",
        "n_items": 30,
        "seed": 1,
        "parameters": 480,
        "train_seconds": 12.5,
        "peak_memory_bytes": 700 << 20,
        "data": {"fingerprint": dataset.fingerprint, "split": dataset.card["split"]},
        "protocol": {"candidates": "all items", "exclude": "seen", "request_time": False, **protocol},
    }


def three(dataset: Dataset) -> list[Entry]:
    history = [
        {"kind": "valid", "epoch": e, "step": e, "metrics": {"ndcg@10": e / 10}, "elapsed": e}
        for e in range(1, 5)
    ]
    return [
        Entry("dot <b>", DotScorer(30), card(dataset), history),
        Entry("dot-2", DotScorer(30, seed=1), card(dataset, request_time=True), history),
        Entry("table", TableScorer(np.arange(31.0).tolist()), card(dataset)),
    ]


def test_all_kinds_of_metrics_in_one_call(dataset: Dataset):
    names = [
        "ndcg@10",
        "coverage@5",
        "hr@3/uniform-8",
        "hr@3/popularity-8",
        "mrr",
        "diversity@5",
        "popularity-lift@5",
    ]
    result = evaluate(DotScorer(30), dataset, "valid", names)
    assert list(result.metrics) == names
    assert all(np.isfinite(v) for v in result.metrics.values())
    assert result.per_case("hr@3/uniform-8").mean() == result.metrics["hr@3/uniform-8"]
    assert {"head items", "tail items"} <= set(result.slices(dataset))
    both = result.slices(dataset, ["hr@3", "hr@3/uniform-8"])
    n_cases = {part: values["cases"] for part, values in both.items()}
    for name in ("hr@3", "hr@3/uniform-8"):
        means = [both[part][name] * n_cases[part] for part in ("head items", "tail items")]
        assert sum(means) / len(result.ranks) == pytest.approx(result.per_case(name).mean())


def test_test_history_holds_the_validation_target(dataset: Dataset):
    cases, events = dataset.cases("test"), dataset.events("all")
    model = TableScorer([0.0] * 31)
    ranks = evaluate(model, dataset, "test").ranks
    assert (ranks.n_candidates == 30 - (cases.history_end - cases.history_start)).all()
    assert (events.item_idx[cases.history_end] == ranks.target).all()


def test_nan_names_the_user_by_id(dataset: Dataset):
    with pytest.raises(EnsuiteError, match="user 'person-"):
        evaluate(TableScorer([float("nan")] * 31), dataset)


def test_cutoff_beyond_the_catalogue_is_said_before_work(dataset: Dataset):
    class Idle(TableScorer):
        def catalogue(self):  # type: ignore[no-untyped-def]
            raise AssertionError("asked for scores")

    for name in ("hr@31", "coverage@31"):
        with pytest.raises(EnsuiteError, match="larger than the catalogue of 30"):
            evaluate(Idle([0.0] * 31), dataset, metrics=[name])


def test_a_comparison_is_right_and_paired(dataset: Dataset):
    entries = three(dataset)
    result = compare(entries, dataset=dataset, metrics=["ndcg@10", "hr@10", "coverage@10"])
    means = [row.metrics["ndcg@10"].mean for row in result.rows]
    assert means == sorted(means, reverse=True)
    assert result.reference == result.rows[0].name
    alone = evaluate(entries[0].model, dataset).metrics["ndcg@10"]
    assert result.row("dot <b>").metrics["ndcg@10"].mean == pytest.approx(alone, rel=1e-12)
    for row in result.rows[1:]:
        test = row.tests["hr@10"]
        assert test.difference.mean == pytest.approx(
            row.metrics["hr@10"].mean - result.rows[0].metrics["hr@10"].mean
        )
        assert test.difference.low <= test.difference.mean <= test.difference.high
        assert test.p_holm >= test.p
    assert result.row("dot-2").request_time
    assert compare(entries, dataset=dataset, against="table").reference == "table"


def test_a_model_against_itself_is_level(dataset: Dataset):
    result = compare({"a": DotScorer(30), "b": DotScorer(30)}, dataset=dataset, metrics=["ndcg@10"])
    test = next(row.tests["ndcg@10"] for row in result.rows if row.tests)
    assert (test.difference.mean, test.difference.low, test.difference.high, test.p) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"fingerprint": "other"}}, 'data.fingerprint: .*"other" in table'),
        ({"protocol": {"exclude": "none"}}, 'protocol.exclude: "seen" in dot <b>, dot-2; "none" in table'),
        ({"protocol": {"candidates": "100 sampled"}}, "protocol.candidates"),
        ({"n_items": 31}, "n_items: 30 in dot <b>, dot-2; 31 in table"),
    ],
)
def test_differing_cards_are_refused(dataset: Dataset, change: dict[str, object], said: str):
    a, b, c = three(dataset)
    with pytest.raises(EnsuiteError, match=said):
        compare([a, b, Entry("table", c.model, {**c.card, **change})], dataset=dataset)


def test_wrong_calls_are_explained(dataset: Dataset, tmp_path: Path):
    a, b, _ = three(dataset)
    for runs, said in (
        ([], "nothing to compare"),
        ([a, a], "two rows are called"),
        (["runs/a"], "load_run"),
        ([3], "a int cannot be compared"),
        ([Entry("x", DotScorer(31))], "knows 31 items"),
        ([Entry("x", DotScorer(30), {"data": {"fingerprint": "abc"}})], "fingerprint abc"),
    ):
        with pytest.raises(EnsuiteError, match=said):
            compare(runs, dataset=dataset)
    with pytest.raises(EnsuiteError, match="did you mean 'dot-2'"):
        compare([a, b], dataset=dataset, against="dot-3")
    with pytest.raises(EnsuiteError, match="no dataset"):
        compare([a, b])
    with pytest.raises(EnsuiteError, match="at least one accuracy metric"):
        compare([a, b], dataset=dataset, metrics=["coverage@10"])


def test_the_report_is_whole_and_asks_nobody(dataset: Dataset, tmp_path: Path):
    result = compare(three(dataset), dataset=dataset, out=tmp_path / "deep" / "report")
    files = {p.name: p.read_text() for p in (tmp_path / "deep" / "report").iterdir()}
    assert set(files) == {"table.csv", "slices.csv", "table.md", "report.html"}
    page = files["report.html"]
    for outside in ("http:", "https:", "src=", "href=", "@import", "url(", "<script", "<link"):
        assert outside not in page
    assert "dot <b>" not in page  # escaped
    assert "dot &lt;b&gt;" in page
    assert "a <small> log" not in page
    headings = (
        "Learning curves",
        "against the cut-off",
        "Popular and rare",
        "Targets by popularity",
        "Known and new transitions",
        "Scoring speed",
        "Training time",
    )
    assert all(heading in page for heading in headings)
    assert page.count("<svg") == page.count("</svg>") == 10
    assert "nan" not in page.lower().replace("finance", "")
    table = pl.read_csv(tmp_path / "deep" / "report" / "table.csv")
    assert table["name"].to_list() == [row.name for row in result.rows]
    assert table["ndcg@10"].to_list() == pytest.approx([row.metrics["ndcg@10"].mean for row in result.rows])
    assert table["parameters"].to_list()[0] == 480
    assert len(pl.read_csv(tmp_path / "deep" / "report" / "slices.csv")) >= 9
    assert files["table.md"].count("\n|") >= 4


def test_svg_is_well_formed(dataset: Dataset):
    from xml.etree import ElementTree

    from ensuite.evaluate.report.page import render_page

    page = render_page(compare(three(dataset), dataset=dataset))
    for chart in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + chart.split("</svg>")[0] + "</svg>")


def test_one_row_is_a_report_too(dataset: Dataset, tmp_path: Path):
    compare([DotScorer(30)], dataset=dataset, out=tmp_path / "one")
    assert "1 system on" in (tmp_path / "one" / "report.html").read_text()


def test_a_legend_takes_as_many_rows_as_its_names_need() -> None:
    series = [Series(f"a system with a long name, number {n}", n, [0.0, 1.0], [0.1, 0.2]) for n in range(6)]
    chart = line_chart(series, title="t", x_label="x", y_label="y")

    def size(drawn: str) -> list[float]:
        return [float(x) for x in re.search(r'viewBox="([^"]+)"', drawn)[1].split()]  # type: ignore[index]

    drawn = with_legend(chart, series)
    _, top, wide, high = size(drawn)
    marks = {(float(x), float(y)) for x, y in re.findall(r'<rect x="([\d.]+)" y="(-[\d.]+)"', drawn)}
    assert len(marks) == 6
    assert len({y for _, y in marks}) > 1
    assert all(top <= y < 0 and x + 13 + 6.8 * len(series[0].name) <= wide for x, y in marks)
    assert high == size(chart)[3] - top
