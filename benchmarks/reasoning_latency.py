"""What latent reasoning costs at inference: the time to score all test users after 0, 1, ... thoughts.

    ensuite prepare ... --out data/beauty
    python benchmarks/reasoning_latency.py --data data/beauty --out results/

One untrained ReaRec (time does not depend on the weights) with `--steps` thoughts; its `config.steps` is set
to 0 .. K in turn, round after round, so that whatever else runs on the machine meets all of them. Two times a
depth: reading the histories (begin and thoughts, what the paper's extra cost is of), and that with the scores
of all items, as a ranking takes it; the least of all rounds is kept. The paper, on a GPU with SASRec: +2.2,
3.5, 4.5, 6.3, 10.6 % for 1 to 5 steps.
"""

from __future__ import annotations

import csv
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from ensuite.config import build_config
from ensuite.data.batches import case_batches
from ensuite.data.dataset import Dataset
from ensuite.evaluate.report.svg import Series, line_chart, standalone, with_legend
from ensuite.models.rearec import ReaRec

FIELDS = ("data", "base", "users", "steps", "read_seconds", "read_ratio", "score_seconds", "score_ratio")


@dataclass
class Options:
    """The shape of the base, and how often it is timed."""

    data: Path
    """A prepared dataset."""
    base: str = "sasrec"
    """sasrec, bert4rec or hstu."""
    dim: int = 128
    """Width."""
    blocks: int = 2
    """Layers of the base."""
    heads: int = 2
    """Attention heads."""
    length: int = 50
    """Longest history."""
    steps: int = 5
    """Most thoughts."""
    users: int = 0
    """Score so many of the test users; 0 = all."""
    batch: int = 256
    """Users scored at a time."""
    rounds: int = 3
    """Rounds; the least time is kept."""
    threads: int = 1
    """Threads."""
    device: str = "cpu"
    """cpu, cuda, ..."""
    out: Path = Path("results")
    """Folder for reasoning_latency.csv and reasoning_latency.svg."""


@torch.inference_mode()
def main(options: Options) -> None:
    """Time every depth, print the table, write CSV and plot."""
    torch.set_num_threads(options.threads)
    dataset = Dataset.open(options.data)
    events, cases = dataset.events("all"), dataset.cases("test")
    model = build(options, dataset.n_items, events.time is not None)
    # batches of similar length, made beforehand: reading the log is no part of the time
    batches = [
        history.to(options.device)
        for _, history in case_batches(
            events, cases, max_length=options.length, batch_size=options.batch, request_time=True
        )
    ]
    if options.users:
        batches = batches[:: max(1, len(batches) * options.batch // options.users)]
    users = sum(len(history.items) for history in batches)
    depths = range(options.steps + 1)
    read, score = ([float("inf")] * len(depths) for _ in range(2))
    shape = model.config
    for history in batches[:: max(1, len(batches) // 8)]:  # warm up
        model.scorer(history, model.catalogue())(1, dataset.n_items + 1)
    for _ in range(options.rounds):
        for k in depths:
            model.config = dataclasses.replace(shape, steps=k)
            catalogue = model.catalogue()
            for times, whole in ((read, False), (score, True)):
                began = now(options.device)
                for history in batches:
                    scores = model.scorer(history, catalogue)
                    if whole:
                        scores(1, dataset.n_items + 1)
                times[k] = min(times[k], now(options.device) - began)
    name = str(dataset.card.get("name", options.data.name))
    rows = [
        dict(
            zip(
                FIELDS,
                (name, options.base, users, k, read[k], read[k] / read[0], score[k], score[k] / score[0]),
            )
        )
        for k in depths
    ]
    show(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "reasoning_latency.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (options.out / "reasoning_latency.svg").write_text(plot(rows, options))


def build(options: Options, n_items: int, times: bool) -> ReaRec:
    """Build the untrained model with the deepest reasoning; HSTU reads times where there are some."""
    shape: dict[str, object] = {
        "dim": options.dim, "blocks": options.blocks, "heads": options.heads, "max_length": options.length,
    }  # fmt: skip
    if options.base == "hstu":
        shape |= {
            "dim_qk": options.dim // options.heads,
            "dim_v": options.dim // options.heads,
            "time_bias": times,
        }
    values = {"base": options.base, "encoder": shape, "steps": options.steps}
    config = build_config(ReaRec.config_for(values), values, "options")
    torch.manual_seed(0)
    return ReaRec(config, n_items).to(options.device).eval()


def now(device: str) -> float:
    """Return a clock's time once the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def plot(rows: list[dict[str, object]], options: Options) -> str:
    """Draw both times over the base's against the number of thoughts."""
    steps = [float(row["steps"]) for row in rows]  # type: ignore[arg-type]
    series = [
        Series(label, i, steps, [float(row[field]) for row in rows])  # type: ignore[arg-type]
        for i, (label, field) in enumerate(
            (("reading histories", "read_ratio"), ("with the scores of all items", "score_ratio"))
        )
    ]
    title = (
        f"Cost of reasoning, {options.base} (upper: reading histories; lower: with the scores of all items)"
    )
    chart = line_chart(series, title=title, x_label="thoughts", y_label="time, base = 1", x_ticks=steps)
    return standalone(with_legend(chart, series))


def show(rows: list[dict[str, object]]) -> None:
    """Print the table."""
    table = Table(*FIELDS[3:], title=f"{rows[0]['base']} on {rows[0]['data']}, {rows[0]['users']} users")
    for row in rows:
        table.add_row(*(f"{row[name]:.3f}" if name != "steps" else str(row[name]) for name in FIELDS[3:]))
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
