"""What each component is worth: runs of one system that differ from the first in a setting or two.

    ensuite train icsrec --data data/beauty --out runs/full --recipe recipes/icsrec/beauty.yaml
    ensuite train icsrec --data data/beauty --out runs/no-fnm --recipe icsrec.yaml --model.no-fnm
    python benchmarks/ablations.py --data-name beauty runs/full runs/no-fnm

What differs is read from the runs' configurations. Rows of the same system and data in results/ablations.csv
are replaced, the others kept; `python benchmarks/results_page.py` then shows them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ensuite.evaluate.metrics import compute_metrics
from ensuite.evaluate.ranks import compute_ranks
from ensuite.training.run import Run, load_run

METRICS = ("ndcg@10", "hr@10")
SETTLED = ("training.epochs", "training.patience", "training.max_minutes", "training.checkpoint_minutes")
"""Settings that say when to stop: no ablation of the system."""


@dataclass
class Options:
    """The runs to be put beside each other."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The full system first, then the runs with something changed."""
    data_name: str
    """What the table calls the dataset."""
    data: Path | None = None
    """The dataset folder, when it has moved."""
    out: Path = Path(__file__).parents[1] / "results" / "ablations.csv"
    """The table."""


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of a nested mapping."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def changes(full: Run, run: Run) -> str:
    """Write the settings of ``run`` that differ from those of ``full``."""
    before = dict(flat(full.config.to_dict()))
    found = [
        f"{key}={value}".lower()
        for key, value in flat(run.config.to_dict())
        if before.get(key) != value and key not in SETTLED
    ]
    return ", ".join(found) or "-"


def row(full: Run, run: Run, options: Options) -> dict[str, Any]:
    dataset = run.dataset(options.data)
    out = {"system": full.config.name, "data": options.data_name, "change": changes(full, run)}
    for phase in ("valid", "test"):
        values = compute_metrics(
            compute_ranks(run.model, dataset.events("all"), dataset.cases(phase), exclude=dataset.exclude),
            METRICS,
        )
        out |= {f"{phase} {name}": round(value, 6) for name, value in values.items()}
    return out | {
        "epochs": run.card["training"]["best_epoch"],
        "train seconds": run.card["train_seconds"],
        "seed": run.config.seed,
    }


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    runs = [load_run(path) for path in options.runs]
    rows = [row(runs[0], run, options) for run in runs]
    kept = []
    if options.out.exists():
        with options.out.open(newline="") as file:
            mine = (rows[0]["system"], rows[0]["data"])
            kept = [old for old in csv.DictReader(file) if (old["system"], old["data"]) != mine]
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([*kept, *rows])
    for line in rows:
        print(f"{line['test ndcg@10']:.4f} (validation {line['valid ndcg@10']:.4f})  {line['change']}")


if __name__ == "__main__":
    main()
