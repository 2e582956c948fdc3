"""Time of a training step and of scoring by the length of the history: SIGMA, Mamba4Rec, SASRec.

    python benchmarks/sequence_length.py --threads 1                      # lengths 50 to 2000: some minutes
    python benchmarks/sequence_length.py --lengths 20 40 --events 400 --dim 16 --items 100 --repeat 1

All have the same width and number of layers, the same objective (sampled softmax with shared negatives), and
are asked for the last position only, as SIGMA is trained. A batch holds about ``--events`` events whatever
the length, so a cost that is linear in the length is a flat line: times are given for a thousand events. Two
layers, since a single one of SASRec computes one query for the last position, which is linear as well.

Systems take turns at each length, and the fastest of ``--repeat`` rounds counts. Writes a CSV and, beside it,
a chart for each of the two times.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from ensuite.data.batches import Batch, History
from ensuite.evaluate.report.svg import Series, line_chart, standalone, with_legend
from ensuite.models.base import Retriever
from ensuite.models.sasrec import SASRec
from ensuite.models.sigma import SIGMA
from ensuite.objectives import ObjectiveConfig, build_objective

SYSTEMS: dict[str, tuple[type[Retriever], dict[str, Any]]] = {
    "SIGMA": (SIGMA, {}),
    "Mamba4Rec": (SIGMA, {"flip": "none", "gate": "none", "fe_gru": False}),
    "SASRec": (SASRec, {}),
}
TIMES = {"train": "training step", "score": "scoring the catalogue"}


@dataclass
class Options:
    """Shape of the systems, and where the numbers go."""

    lengths: tuple[int, ...] = (50, 100, 200, 500, 1000, 2000)
    """Events in each history."""
    events: int = 12_800
    """Events in a batch: it holds events / length histories, at least one."""
    dim: int = 64
    """Width of all systems."""
    blocks: int = 2
    """Layers of all systems."""
    items: int = 12_000
    """Size of the catalogue."""
    negatives: int = 256
    """Negatives of the sampled softmax."""
    threads: int = 1
    """Threads that PyTorch uses."""
    device: str = "cpu"
    """Where it runs: cpu or cuda."""
    repeat: int = 3
    """Rounds after a first one that does not count."""
    out: Path = Path(__file__).parents[1] / "results" / "sequence_length.csv"
    """CSV; the charts stand beside it."""


def main(options: Options) -> None:
    """Measure every length, write the table and the charts."""
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    console = Console()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for length in options.lengths:
        with console.status(f"length {length:,}"):
            rows += measure(length, options)
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    for key, name in TIMES.items():
        draw(rows, key, name, options.out.with_name(f"{options.out.stem}_{key}.svg"))
    table = Table("length", "batch", "system", *TIMES.values(), title="milliseconds for a thousand events")
    for row in rows:
        times = (f"{row[f'{key}_ms_per_1000']:.1f}" for key in TIMES)
        table.add_row(f"{row['length']:,}", str(row["batch"]), row["system"], *times)
    console.print(table)
    console.print(f"written to {options.out}")


def measure(length: int, options: Options) -> list[dict[str, Any]]:
    """Time all systems at one length, in turn."""
    torch.manual_seed(0)
    batch = max(1, options.events // length)
    history = History(torch.randint(1, options.items + 1, (batch, length)))
    targets = torch.zeros_like(history.items)
    targets[:, -1] = torch.randint(1, options.items + 1, (batch,))
    asked = Batch(history, targets, torch.arange(batch)).to(options.device)
    steps: dict[str, dict[str, Callable[[], object]]] = {}
    for name, (cls, settings) in SYSTEMS.items():
        sizes = {"dim": options.dim, "blocks": options.blocks, "max_length": length, "dropout": 0.2}
        objective = build_objective(
            ObjectiveConfig(loss="sampled-softmax", negatives=options.negatives, share="batch"), options.items
        )
        model = cls(cls.Config(**sizes, **settings), options.items, objective).to(options.device)
        steps[name] = {"train": train_step(model, asked), "score": scoring(model, asked.history)}
    best: dict[str, dict[str, float]] = {name: {} for name in steps}
    for turn in range(options.repeat + 1):
        for name, kinds in steps.items():
            for key, step in kinds.items():
                seconds = clock(step, options.device)
                if turn:
                    best[name][key] = min(seconds, best[name].get(key, seconds))
    shared = {"dim": options.dim, "blocks": options.blocks, "items": options.items}
    shared |= {"threads": options.threads, "device": options.device, "torch": torch.__version__}
    return [
        {"system": name, "length": length, "batch": batch}
        | {f"{key}_seconds": round(value, 5) for key, value in times.items()}
        | {f"{key}_ms_per_1000": round(1e6 * value / (batch * length), 3) for key, value in times.items()}
        | shared
        for name, times in best.items()
    ]


def train_step(model: Retriever, batch: Batch) -> Callable[[], object]:
    """Return a function that does a step of Adam on ``batch``."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()

    return step


def scoring(model: Retriever, history: History) -> Callable[[], object]:
    """Return a function that scores all items for ``history``."""

    @torch.inference_mode()
    def step() -> torch.Tensor:
        model.eval()
        return model.scorer(history, model.catalogue())(1, model.n_items + 1)

    return step


def clock(step: Callable[[], object], device: str) -> float:
    """Return the seconds that ``step`` takes."""
    began = time.perf_counter()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def draw(rows: list[dict[str, Any]], key: str, name: str, path: Path) -> None:
    """Draw one of the two times as an SVG file that needs no page around it."""
    series = []
    for colour, system in enumerate(SYSTEMS):
        own = [row for row in rows if row["system"] == system]
        values = [row[f"{key}_ms_per_1000"] for row in own]
        series.append(Series(system, colour, [row["length"] for row in own], values))
    chart = line_chart(
        series,
        title=f"Milliseconds of {name} for a thousand events, by length",
        x_label="events in a history",
        y_label=f"{name}, ms per 1,000 events",
        x_log=True,
        x_ticks=sorted({row["length"] for row in rows}),
        x_text=lambda value: f"{value:,.0f}",
    )
    path.write_text(standalone(with_legend(chart, series)))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
