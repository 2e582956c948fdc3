"""Seconds per training epoch of SASRec beside its peers, in turn, on the same sequences and the same machine.

    ensuite prepare ml-1m --from ml-1m.zip --min-user 5 --min-item 5 --out data/ml-1m
    python -m venv .venv-rectools && .venv-rectools/bin/pip install torch==2.13.0 "rectools[torch]==0.19.0"
    python -m venv .venv-replay   && .venv-replay/bin/pip install torch==2.13.0 "replay-rec[torch]==0.22.0"
    python benchmarks/training.py --data data/ml-1m --rectools .venv-rectools/bin/python --replay
    .venv-replay/bin/python

Every contestant runs in a process of its own, with `--threads` threads; an epoch's time is that of the
training loop alone, the best of `--epochs` (the spread is kept). Peers have environments of their own: they
cannot share one with current libraries.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from ensuite.data.dataset import Dataset

HERE = Path(__file__).parent


@dataclass
class Options:
    """Which contestants run, and in which shape."""

    data: Path
    """A prepared dataset."""
    rectools: Path | None = None
    """Python of an environment with RecTools."""
    replay: Path | None = None
    """Python of an environment with RePlay."""
    losses: tuple[str, ...] = ("bce", "ce")
    """bce (one negative) and ce (the whole catalogue)."""
    dim: int = 50
    """Width."""
    length: int = 200
    """Longest history."""
    batch: int = 128
    """Sequences a step."""
    epochs: int = 3
    """Epochs timed."""
    peer_steps: int = 0
    """Peers do only so many steps an epoch, and their epoch is extrapolated from them (the row says so); 0 =
    all."""
    threads: int = 2
    """Threads of each contestant."""
    out: Path = HERE.parent / "results" / "training_speed.csv"
    """CSV to append to."""
    repeat: int = field(default=1)
    """Rounds: all contestants in turn, again."""


def main(options: Options) -> None:
    """Run all contestants in turn and append their rows to the CSV."""
    dataset = Dataset.open(options.data)
    runners = {"ensuite": Path(sys.executable), "rectools": options.rectools, "replay": options.replay}
    rows = []
    with tempfile.TemporaryDirectory() as work:
        log = Path(work) / "train.csv"
        export(dataset, log)
        for loss in options.losses:
            for _ in range(options.repeat):
                for peer, python in runners.items():
                    if python is None:
                        continue
                    sys.stderr.write(f"{peer} {loss} ...\n")
                    source = str(options.data) if peer == "ensuite" else str(log)
                    rows.append(
                        run(peer, python, loss, source, options)
                        | {"data": dataset.card.get("name", options.data.name)}
                    )
    show(rows)
    fresh = not options.out.exists()
    with options.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def export(dataset: Dataset, path: Path) -> None:
    """Write the training events as user, item, order: what the peers read."""
    events = dataset.events("train")
    user = np.repeat(np.arange(1, dataset.n_users + 1), events.lengths)
    item = events.item_idx[events.rows()]
    order = np.arange(len(user))
    np.savetxt(
        path, np.stack([user, item, order], 1), fmt="%d", delimiter=",", header="user,item,order", comments=""
    )


def run(peer: str, python: Path, loss: str, source: str, options: Options) -> dict[str, object]:
    """Run one contestant; the last line it prints is JSON with `epochs`, `rank_seconds` and `peak_mb`."""
    command = [
        str(python), str(HERE / "peers" / f"{peer}_sasrec.py"), source, loss,
        *map(str, (options.dim, options.length, options.batch, options.epochs, options.threads)),
        *([] if peer == "ensuite" else [str(options.peer_steps)]),
    ]  # fmt: skip
    environment = os.environ | {
        "OMP_NUM_THREADS": str(options.threads),
        "MKL_NUM_THREADS": str(options.threads),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{peer} failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "peer": peer, "version": found["version"], "loss": loss, "dim": options.dim, "length": options.length,
        "batch": options.batch, "threads": options.threads, "seconds_per_epoch": min(found["epochs"]),
        "slowest_epoch": max(found["epochs"]), "overhead_share": found.get("overhead", ""),
        "steps_timed": found.get("steps", "all"),
        "rank_seconds": found["rank_seconds"], "peak_mb": found["peak_mb"],
    }  # fmt: skip


def show(rows: list[dict[str, object]]) -> None:
    """Print the table, with ratios against the best peer of each loss."""
    table = Table(title="SASRec, seconds per epoch")
    for name in (
        "loss",
        "who",
        "version",
        "s/epoch (best)",
        "slowest",
        "best peer / ours",
        "full top-10, s",
        "peak MB",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        peers = [
            float(r["seconds_per_epoch"]) for r in rows if r["loss"] == row["loss"] and r["peer"] != "ensuite"
        ]  # type: ignore[arg-type]
        ours = row["peer"] == "ensuite" and peers
        ratio = f"{min(peers) / float(row['seconds_per_epoch']):.2f}" if ours else ""  # type: ignore[arg-type]
        table.add_row(
            str(row["loss"]), str(row["peer"]), str(row["version"]), f"{row['seconds_per_epoch']:.2f}",
            f"{row['slowest_epoch']:.2f}", ratio, f"{row['rank_seconds']:.2f}", f"{row['peak_mb']:,.0f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
