"""Time and peak memory of one step of each objective at 10 thousand, 100 thousand and 1 million items.

    python benchmarks/objectives_memory.py                # all rows: several minutes
    python benchmarks/objectives_memory.py --items 100000 --losses chunked

One step = loss and gradients by the output and the item table, at batch 128 x 200 positions in 64 dimensions.
Each measurement has a process of its own; peak memory is that process's largest resident size, the import of
torch included (some 0.25 GB). Where the exact loss over 1 million items would take minutes, fewer positions
are measured and the column ``positions`` says how many: neither time nor memory is extrapolated. The plain
form is run where its logits, their softmax and their gradient fit into the memory that is free, and is
otherwise reported as not run, with what it needs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parents[1] / "results" / "objectives_memory.csv"
POSITIONS, DIM, NEGATIVES = 128 * 200, 64, 256
LOSSES = {
    "plain": "cross-entropy, all logits",
    "chunked": "cross-entropy, chunked",
    "shared": f"sampled softmax, {NEGATIVES} negatives a batch",
    "sequence": f"sampled softmax, {NEGATIVES} negatives a sequence",
    "position": f"sampled softmax, {NEGATIVES} negatives a position",
    "bce": "BCE, 1 negative a position",
}
COLUMNS = ["loss", "items", "positions", "dim", "seconds", "peak_gb", "note", "threads", "torch"]


def step(loss: str, n_items: int, positions: int) -> None:
    """Measure one step in this process; print it as JSON."""
    import resource
    import time

    import torch

    from ensuite.objectives import ObjectiveConfig, build_objective
    from ensuite.objectives.cross_entropy import CrossEntropy

    torch.manual_seed(0)
    output = torch.randn(positions, DIM).requires_grad_()
    table = (torch.randn(n_items + 1, DIM) * 0.1).requires_grad_()
    targets = torch.randint(1, n_items + 1, (positions,))
    row = torch.arange(positions) // 200
    share = {"shared": "batch", "sequence": "sequence"}.get(loss, "position")
    if loss == "plain":
        objective = CrossEntropy(chunked=False)
    elif loss == "chunked":
        objective = build_objective(ObjectiveConfig(), n_items)
    elif loss == "bce":
        objective = build_objective(ObjectiveConfig(loss="bce"), n_items)
    else:
        config = ObjectiveConfig(loss="sampled-softmax", negatives=NEGATIVES, share=share)
        objective = build_objective(config, n_items)
    seconds = []
    for _ in range(1 if n_items * positions > 10**9 and loss in ("plain", "chunked") else 3):
        output.grad = table.grad = None
        start = time.perf_counter()
        objective(output, targets, lambda i: table if i is None else table[i], row).backward()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    measured = {"seconds": min(seconds), "peak": peak, "threads": torch.get_num_threads()}
    print(json.dumps(measured | {"torch": torch.__version__}))


def measure(loss: str, n_items: int, positions: int) -> dict[str, object]:
    """Return a row of the table."""
    values: dict[str, object] = {"loss": LOSSES[loss], "items": n_items, "dim": DIM, "positions": positions}
    need = 3 * 4 * positions * n_items  # logits, softmax, gradient
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if loss == "plain" and need > 0.8 * free:
        return values | {"note": f"not run: needs {need / 1e9:.0f} GB"}
    if loss == "chunked" and positions * n_items > 5 * 10**9:
        positions = 2048
        values |= {"positions": positions, "note": f"measured on {positions} positions, not {POSITIONS}"}
    command = [sys.executable, __file__, "--step", loss, str(n_items), str(positions)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        return values | {
            "note": f"failed: {(run.stderr.strip().splitlines() or [f'status {run.returncode}'])[-1]}"
        }
    result = json.loads(run.stdout)
    return values | {
        "seconds": round(result["seconds"], 3),
        "peak_gb": round(result["peak"] / 1e9, 2),
        "threads": result["threads"],
        "torch": result["torch"],
    }


def write(rows: list[dict[str, object]], path: Path) -> None:
    """Write what has been measured so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--positions", type=int, default=POSITIONS)
    parser.add_argument("--out", type=Path, default=RESULTS, help="table to write (default: %(default)s)")
    parser.add_argument("--step", nargs=3, metavar=("LOSS", "ITEMS", "POSITIONS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        return step(args.step[0], int(args.step[1]), int(args.step[2]))
    console = Console()
    rows = []
    for n_items in args.items:
        for loss in args.losses:
            with console.status(f"{LOSSES[loss]}, {n_items:,} items"):
                rows.append(measure(loss, n_items, args.positions))
            write(rows, args.out)
    table = Table(
        "loss", "items", "positions", "seconds", "peak GB", "note", title=f"one step, {DIM} dimensions"
    )
    for r in rows:
        cells = (r.get(c, "") for c in ("loss", "items", "positions", "seconds", "peak_gb", "note"))
        table.add_row(*(f"{c:,}" if isinstance(c, int) else str(c) for c in cells))
    console.print(table)
    console.print(f"written to {args.out}")


if __name__ == "__main__":
    main()
