"""Make docs/results.md, and its plots, from results/.

    ensuite compare runs/beauty/* --against sasrec-1 --out report/ && cp report/table.csv results/beauty.csv
    python benchmarks/results_page.py

Each dataset has a CSV of `ensuite compare`, whose rows are runs called SYSTEM or SYSTEM-SEED; runs of one
system become one row. results/published.csv holds what papers and repositories say, results/ablations.csv
what each component is worth.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean

from ensuite.evaluate.report.svg import Series, scatter_chart, standalone
from ensuite.evaluate.report.tables import count, p_value, score, seconds

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "results", ROOT / "docs"
DATASETS = {
    "beauty": (
        "Amazon Beauty, 5-core",
        "22,363 users, 12,101 items, 198,502 events; window 50. "
        "`ensuite prepare Beauty.txt.gz --format sequences --out data/beauty`",
    ),
    "beauty-text": (
        "Amazon Beauty with the items' texts: systems of codes and content",
        "The same events. The reference is a SASRec at every position for as many epochs as H2Rec; `tiger` "
        "is the paper's encoder-decoder, at 18 % of its paper's samples, `tiger-decoder` ours, both "
        "trained on a GPU; a beam ranks their first 50 and REG4Rec's, the others of the catalogue are tied "
        "below. How each was trained: [results/README.md](../results/README.md#generation). "
        "`ensuite prepare interactions.parquet --order position --items items.parquet "
        "--out data/beauty-text`",
    ),
    "games": (
        "Amazon Games with titles: systems of codes and content",
        "50,546 users, 16,859 items, 440,264 events; small budgets, one seed. "
        "`ensuite prepare interactions.parquet --user user_id --item item_id --order position "
        "--items items.parquet --out data/games`; how each was trained: "
        "[results/README.md](../results/README.md#generation).",
    ),
    "sports": (
        "Amazon Sports and Outdoors, 5-core",
        "35,598 users, 18,357 items, 296,337 events; window 50. "
        "`ensuite prepare Sports_and_Outdoors.txt.gz --format sequences --out data/sports`",
    ),
    "ml-1m": (
        "MovieLens-1M, 5-core",
        "6,040 users, 3,416 items, 999,611 ratings; window 200. 77 % of the ratings share their time with "
        "another rating of the user; here ties are in the order of item ids, while rows of papers rest on "
        "other orders: compare within the table. "
        "`ensuite prepare ml-1m --from ml-1m.zip --min-user 5 --min-item 5 --out data/ml-1m`",
    ),
}
METRICS = ("hr@10", "ndcg@10")
Row = dict[str, str]


def read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def systems(rows: list[Row]) -> dict[str, list[Row]]:
    """Put the seeds of one system together, the best system first."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[re.sub(r"-\d+$", "", row["name"])].append(row)
    for seeds in found.values():
        seeds.sort(key=lambda row: int(row["seed"] or 0))
    return dict(sorted(found.items(), key=lambda item: -average(item[1], "ndcg@10")))


def average(rows: list[Row], column: str) -> float:
    return mean(float(row[column]) for row in rows)


def known(rows: list[Row], column: str) -> float | None:
    values = [float(row[column]) for row in rows if row.get(column)]
    return mean(values) if values else None


def scores(rows: list[Row], metric: str) -> str:
    """Write the mean over the seeds, each seed, and the interval of the first."""
    if len(rows) == 1:
        low, high = float(rows[0][f"{metric} low"]), float(rows[0][f"{metric} high"])
        return f"{score(float(rows[0][metric]))} ({score(low)}–{score(high)})"
    each = " ".join(score(float(row[metric])) for row in rows)
    return f"{score(average(rows, metric))} ({each})"


def against(rows: list[Row]) -> str:
    """Write the difference to the reference and its p-value, by the row's first seed."""
    first = rows[0]
    if first["name"] == first["reference"]:
        return "reference"
    if not first["ndcg@10 difference"]:
        return ""
    value = float(first["ndcg@10 difference"])
    p = p_value(float(first["ndcg@10 p holm"]))
    return f"{'+' if value > 0 else ''}{score(value)}, p {p if p.startswith('<') else '= ' + p}"


def table_head(columns: list[str]) -> list[str]:
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]


def table(data: str, found: dict[str, list[Row]], published: dict[tuple[str, str], Row]) -> list[str]:
    columns = [
        "system",
        "seeds",
        "HR@10",
        "NDCG@10",
        "against tuned SASRec, first seeds",
        "training",
        "scoring",
    ]
    lines = table_head([*columns, "parameters", "published HR@10 / NDCG@10"])
    for name, rows in found.items():
        said = published.get((data, name), {})
        values = " / ".join(said.get(metric) or "-" for metric in METRICS) if said.get("ndcg@10") else ""
        source = "; ".join(part for part in (values, said.get("source", "")) if part)
        cells = [
            name,
            str(len(rows)),
            *(scores(rows, metric) for metric in METRICS),
            against(rows),
            seconds(known(rows, "train seconds")),
            seconds(known(rows, "scoring seconds")),
            count(known(rows, "parameters")),
            source,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def plot(data: str, title: str, found: dict[str, list[Row]]) -> str:
    """Draw quality against cost; return the picture's name."""
    series = [
        Series(
            name,
            colour,
            [max(0.1, known(rows, "train seconds") or 0.1)],
            [average(rows, "ndcg@10")],
            [float(rows[0]["ndcg@10 low"])],
            [float(rows[0]["ndcg@10 high"])],
        )
        for colour, (name, rows) in enumerate(found.items())
        if known(rows, "train seconds") is not None
    ]
    chart = scatter_chart(
        series,
        title=f"{title}: NDCG@10 against training time",
        x_label="training time",
        y_label="NDCG@10",
        x_text=seconds,
    )
    (DOCS / f"results-{data}.svg").write_text(standalone(chart))
    return f"results-{data}.svg"


def ablations() -> list[str]:
    path = RESULTS / "ablations.csv"
    if not path.exists():
        return []
    lines = [
        "## What each component is worth",
        "",
        "The recipe with one thing changed; NDCG@10 on validation and on test, one seed. Differences within "
        "about .001 are noise.",
        "",
        *table_head(["system", "data", "changed", "validation", "test", "against the recipe (test)"]),
    ]
    rows = read(path)
    full = {(row["system"], row["data"]): float(row["test ndcg@10"]) for row in rows if row["change"] == "-"}
    for row in rows:
        value = float(row["test ndcg@10"])
        difference = value - full[row["system"], row["data"]]
        shown = "" if row["change"] == "-" else f"{'+' if difference > 0 else ''}{score(difference)}"
        change = "the recipe" if row["change"] == "-" else f"`{row['change']}`"
        cells = [row["system"], row["data"], change, score(float(row["valid ndcg@10"])), score(value), shown]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def main() -> None:
    published = {(row["data"], row["system"]): row for row in read(RESULTS / "published.csv")}
    lines = [
        "# Results",
        "",
        "Made by `python benchmarks/results_page.py` from `results/*.csv`; what was run, with the",
        "commands, and what was found on the way stands in [results/README.md](../results/README.md).",
        "Leave-one-out, full ranking, seen items removed, validation apart, test scores.",
        "One seed: the value and its 95 % interval over users; several: their mean and each of them.",
        "",
    ]
    for data, (title, text) in DATASETS.items():
        path = RESULTS / f"{data}.csv"
        if not path.exists():
            continue
        found = systems(read(path))
        picture = plot(data, title, found)
        lines += [
            f"## {title}",
            "",
            text,
            "",
            *table(data, found, published),
            "",
            f"![quality against cost]({picture})",
            "",
        ]
    (DOCS / "results.md").write_text("\n".join([*lines, *ablations()]).rstrip() + "\n")


if __name__ == "__main__":
    main()
