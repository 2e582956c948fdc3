"""Time our own SASRec: DATASET LOSS DIM LENGTH BATCH EPOCHS THREADS."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

from ensuite import Dataset, __version__, train
from ensuite.evaluate.metrics import compute_metrics
from ensuite.evaluate.ranks import compute_ranks

source, loss = sys.argv[1:3]
dim, length, batch, epochs, threads = map(int, sys.argv[3:])
torch.set_num_threads(threads)
dataset = Dataset.open(source)
recipe = {
    "model": {"dim": dim, "blocks": 2, "heads": 1, "max_length": length, "dropout": 0.2},
    "objective": {"loss": {"bce": "bce", "ce": "cross-entropy"}[loss]},
    "training": {"batch_size": batch, "epochs": epochs, "validate_every": epochs},
}
with tempfile.TemporaryDirectory() as work:
    run = train("sasrec", dataset, Path(work) / "run", recipe=recipe)
    lines = [line for line in run.history if line["kind"] == "train"]
    walls = [b["elapsed"] - a["elapsed"] for a, b in zip([{"elapsed": 0.0}, *lines], lines)]
    busy = sum(line["seconds"][part] for line in lines for part in ("forward", "backward", "optimizer"))
    cases, events = dataset.cases("test"), dataset.events("all")
    took = []
    for _ in range(3):
        began = time.perf_counter()
        compute_metrics(compute_ranks(run.model, events, cases), ("ndcg@10", "hr@10"))
        took.append(time.perf_counter() - began)
print(
    json.dumps(
        {
            "version": __version__,
            "epochs": walls,
            "overhead": round(1 - busy / sum(walls), 4),
            "rank_seconds": min(took),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    )
)
