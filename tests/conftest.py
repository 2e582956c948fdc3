"""Small datasets that several test folders share. One thread is enough for them, and is repeatable."""

from __future__ import annotations

import contextlib
import io
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from ensuite.cli import main
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
    """Run the command line in a temporary folder: ``ensuite("train", "sasrec", ...)``.

    In this process, since starting one takes seconds: from the words to the exit status it is what `ensuite`
    runs. What only a process of its own can show (signals, several processes, what is imported) starts one in
    its test.
    """

    def run(*argv: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        words, out, err, status = list(map(str, argv)), io.StringIO(), io.StringIO(), 0
        with contextlib.chdir(tmp_path), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(words)
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 1
        if check and status:
            raise AssertionError(f"ensuite {' '.join(words)} -> {status}\n{out.getvalue()}\n{err.getvalue()}")
        return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())

    return run
