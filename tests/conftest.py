"""Small datasets that several test folders share. One thread is enough for them, and is repeatable."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from ensuite.data.dataset import Dataset, Split, write_dataset

torch.set_num_threads(1)


def make_dataset(
    out: Path,
    sequences: Sequence[Sequence[int]],
    times: Sequence[Sequence[int]] | None = None,
    n_items: int = 0,
) -> Dataset:
    """Write a leave-one-out dataset of item rows; item ids are ten times the rows, user ids are u0, u1,
    ..."""
    lengths = np.array([len(s) for s in sequences])
    n_items = n_items or max(max(s) for s in sequences)
    ids = np.arange(1, n_items + 1)
    kept = np.where(lengths >= 3, lengths, lengths + 2)  # short users are trained on only
    return write_dataset(
        out,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        item_idx=np.concatenate([np.asarray(s) for s in sequences]),
        time=None if times is None else np.concatenate([np.asarray(t) for t in times]),
        split=Split(kept - 2, np.minimum(kept - 1, lengths), lengths),
        items=pl.DataFrame({"item_id": ids * 10, "title": [f"item {i}" for i in ids]}),
        users=pl.DataFrame({"user_id": [f"u{i}" for i in range(len(sequences))]}),
        columns={},
        card={
            "time_unit": None if times is None else "s",
            "split": {"kind": "leave-one-out", "targets": "next"},
            "name": "tiny",
        },
    )  # fmt: skip


@pytest.fixture(scope="session")
def cycle(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """120 users who walk round a cycle of 20 items, item i followed by i + 1, with an event a minute."""
    rng = np.random.default_rng(0)
    sequences = [(rng.integers(20) + np.arange(rng.integers(5, 12))) % 20 + 1 for _ in range(120)]
    times = [1_000_000 + 60 * np.arange(len(s)) for s in sequences]
    return make_dataset(tmp_path_factory.mktemp("data") / "cycle", sequences, times)


@pytest.fixture
def ensuite(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the real command line in a temporary folder: ``ensuite("train", "sasrec", ...)``."""

    def run(*argv: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ensuite", *map(str, argv)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} -> {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run
