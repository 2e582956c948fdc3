"""Time and memory of `ensuite.prepare` on a large Parquet log, against what Polars needs to read and sort it.

    python benchmarks/prepare.py                          # 20 million events, about a minute
    python benchmarks/prepare.py --events 2000000 --ids text

The log is generated: Zipf items, Zipf users, rows in no order. Each side runs in a process of its own, so
that peak memory is its own too (an import of the libraries included). A row is added to results/prepare.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

RESULTS = Path(__file__).parents[1] / "results" / "prepare.csv"

SORT = """
import json, resource, sys, time
import polars as pl
start = time.perf_counter()
frame = pl.read_parquet(sys.argv[1]).sort("user_id", "timestamp", maintain_order=True)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                  "size": frame.estimated_size()}))
"""

PREPARE = """
import json, resource, sys, time
import narwhals, numpy, polars, pyarrow, rich.table, tyro
from ensuite.data.prepare import PrepareConfig, prepare
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
stages = []
start = time.perf_counter()
prepare(sys.argv[1], out=sys.argv[2], config=PrepareConfig(**json.loads(sys.argv[3])),
        progress=lambda p: stages.append((p.stage, time.perf_counter() - start,
                                          resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)))
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                  "libraries": before, "stages": stages}))
"""


def zipf(n: int, size: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Draw ``size`` of ``n`` things, the k-th most frequent with weight k ** -exponent."""
    weight = np.cumsum(np.arange(1, n + 1) ** -exponent)
    drawn = np.searchsorted(weight, rng.random(size) * weight[-1])
    return rng.permutation(n)[drawn]


def generate(path: Path, events: int, ids: str, seed: int = 0) -> None:
    """Write the log: one user per 20 events, one item per 200; times in seconds over two years."""
    rng = np.random.default_rng(seed)
    columns = {
        "user_id": zipf(events // 20, events, 0.8, rng),
        "item_id": zipf(events // 200, events, 1.0, rng),
    }
    frame = pl.DataFrame(columns | {"timestamp": 1_600_000_000 + rng.integers(0, 2 * 365 * 86_400, events)})
    if ids == "sparse":
        frame = frame.with_columns(pl.col("user_id", "item_id") * 1_000_003 + 7)
    elif ids == "text":
        frame = frame.with_columns(
            pl.format("u{}", "user_id").alias("user_id"), pl.format("B{}", "item_id").alias("item_id")
        )
    frame.write_parquet(path)


def measure(code: str, *args: str) -> dict[str, float]:
    """Run ``code`` in a new process and return the JSON it prints."""
    run = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--ids", choices=["dense", "sparse", "text"], default="dense")
    parser.add_argument(
        "--options", default="{}", help="options of PrepareConfig as JSON, such as '{\"min_user\": 5}'"
    )
    parser.add_argument(
        "--repeat", type=int, default=3, help="the fastest of so many runs counts, on both sides"
    )
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--generate", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.generate is not None:
        return generate(args.generate, args.events, args.ids)
    folder = Path(tempfile.mkdtemp(prefix="ensuite-prepare-"))
    try:
        log = folder / "log.parquet"
        # in a process of its own: a child's peak memory is never reported below that of its parent
        subprocess.run(
            [sys.executable, __file__, "--events", str(args.events), "--ids", args.ids, "--generate", log],
            check=True,
        )
        sort, ours = [], []
        for _ in range(args.repeat):
            sort.append(measure(SORT, str(log)))
            ours.append(measure(PREPARE, str(log), str(folder / "out"), args.options))
            shutil.rmtree(folder / "out")
    finally:
        shutil.rmtree(folder)
    size = sort[0]["size"]
    best_sort, best = min(s["seconds"] for s in sort), min(s["seconds"] for s in ours)
    row = {
        "events": args.events,
        "ids": args.ids,
        "options": args.options,
        "size_in_memory_mb": round(size / 1e6),
        "polars_read_sort_s": round(best_sort, 2),
        "prepare_s": round(best, 2),
        "time_ratio": round(best / best_sort, 2),
        "polars_peak_mb": round(max(s["peak"] for s in sort) / 1e6),
        "prepare_peak_mb": round(max(s["peak"] for s in ours) / 1e6),
        "memory_ratio": round(max(s["peak"] for s in ours) / size, 2),
        "polars": pl.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "command": f"python benchmarks/prepare.py --events {args.events} --ids {args.ids} --options "
        f"'{args.options}'",
    }
    for name, value in row.items():
        sys.stdout.write(f"{name:>20}  {value}\n")
    sys.stdout.write(f"{'stages':>20}  {ours[-1]['stages']}\n")
    if args.no_save:
        return
    new = not RESULTS.exists()
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
