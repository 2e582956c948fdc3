"""`ensuite train` as a user calls it: recipes, overrides, signals, broken files, several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ensuite.data.dataset import Dataset

Cli = Callable[..., subprocess.CompletedProcess[str]]
SMALL = [
    "--model.dim",
    "16",
    "--model.blocks",
    "1",
    "--model.max-length",
    "8",
    "--training.batch-size",
    "16",
    "--quiet",
]


def test_help_shows_every_setting_with_its_default(ensuite: Cli) -> None:
    text = ensuite("train", "sasrec", "--help").stdout
    for flag in (
        "--model.dim",
        "--objective.loss",
        "--samples.kind",
        "--training.lr",
        "--resume",
        "--recipe",
    ):
        assert flag in text
    assert "torchrun" in ensuite("train", "--help").stdout


def test_defaults_then_recipe_then_command_line(ensuite: Cli, cycle: Dataset, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "model: {dim: 8, blocks: 1}\ntraining: {lr: 0.5, epochs: 1}\nobjective: {loss: bce}\n"
    )
    done = ensuite(
        "train",
        "sasrec",
        "--data",
        cycle.path,
        "--out",
        "run",
        "--recipe",
        "r.yaml",
        "--model.dim",
        12,
        "--seed",
        5,
    )
    config = (tmp_path / "run" / "config.yaml").read_text()
    for line in ("dim: 12", "blocks: 1", "lr: 0.5", "loss: bce", "seed: 5", "heads: 1"):
        assert line in config
    assert "Next: ensuite evaluate run" in done.stdout
    assert "best" in done.stderr, "validation is shown in passing"


def test_sigterm_saves_and_resume_gives_the_same_weights(
    ensuite: Cli, cycle: Dataset, tmp_path: Path
) -> None:
    long = [*SMALL, "--training.epochs", "40", "--training.patience", "0"]
    command = ["train", "sasrec", "--data", str(cycle.path), *long]
    ensuite(*command, "--out", "whole")
    started = subprocess.Popen(
        [sys.executable, "-m", "ensuite", *command, "--out", "broken"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # sums round alike only with as many threads
        text=True,
    )
    log = tmp_path / "broken" / "metrics.jsonl"
    while not (log.exists() and len(log.read_text().splitlines()) >= 4):
        assert started.poll() is None, started.stderr and started.stderr.read()
        time.sleep(0.01)
    started.send_signal(signal.SIGTERM)
    _, text = started.communicate(timeout=60)
    assert started.returncode == 2
    assert "stopped by SIGTERM" in text
    assert "--resume" in text
    card = json.loads((tmp_path / "broken" / "card.json").read_text())
    assert card["training"]["ended"] == "stopped by SIGTERM"
    assert card["train_seconds"] > 0
    ensuite("train", "sasrec", "--data", cycle.path, "--out", "broken", "--resume", "--quiet")
    whole, resumed = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.fixture
def trained(ensuite: Cli, cycle: Dataset, tmp_path: Path) -> Path:
    ensuite("train", "sasrec", "--data", cycle.path, "--out", "run", *SMALL, "--training.epochs", "2")
    return tmp_path / "run"


def test_broken_checkpoints_are_refused_by_name(ensuite: Cli, cycle: Dataset, trained: Path) -> None:
    path = trained / "last.safetensors"
    whole = path.read_bytes()

    def resume() -> str:
        done = ensuite(
            "train", "sasrec", "--data", cycle.path, "--out", "run", "--resume", "--quiet", check=False
        )
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    path.write_bytes(whole[: len(whole) // 2])
    assert "last.safetensors: damaged" in resume()
    path.write_bytes(whole)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | {"format_version": "99"}
    save_file(load_file(path), path, metadata=metadata)
    assert "checkpoint format 99, this version of ensuite reads 1" in resume()
    path.unlink()
    assert "no checkpoint to resume from" in resume()


def test_killed_in_the_middle_of_a_checkpoint(
    ensuite: Cli, cycle: Dataset, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed write leaves is a hidden partial file; the checkpoint before it is what resume reads."""
    (trained / ".last.safetensors.deadbeef.partial").write_bytes(b"half")
    before = load_file(trained / "model.safetensors")
    ensuite("train", "sasrec", "--data", cycle.path, "--out", "run", "--resume", "--quiet")
    after = load_file(trained / "model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_full_disk_keeps_the_checkpoint_before(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ensuite.training.run as run
    from ensuite.errors import EnsuiteError

    before = (trained / "last.safetensors").read_bytes()

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "save_file", full)
    with pytest.raises(EnsuiteError, match="No space left on device"):
        run.write_tensors(trained / "last.safetensors", {"a": torch.zeros(1)}, {})
    assert (trained / "last.safetensors").read_bytes() == before
    assert not list(trained.glob(".*partial"))


def test_two_processes_give_the_metrics_of_one(ensuite: Cli, cycle: Dataset, tmp_path: Path) -> None:
    """Trained without dropout on two processes: the same batches, the same gradients, the same metrics to the
    last digit."""
    flags = [
        "--data",
        str(cycle.path),
        *SMALL,
        "--model.dropout",
        "0",
        "--training.epochs",
        "3",
        "--training.lr",
        "0.01",
    ]
    ensuite("train", "sasrec", *flags, "--out", "one")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "-m",
        "ensuite",
    ]
    subprocess.run(
        [*torchrun, "train", "sasrec", *flags, "--out", "two"], cwd=tmp_path, check=True, env=environment
    )
    logs = [
        [
            json.loads(line)["metrics"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
            if '"valid"' in line
        ]
        for name in ("one", "two")
    ]
    assert len(logs[0]) == 3
    assert logs[0] == logs[1]
    ensuite("evaluate", "two", "--json", "one.json")
    subprocess.run(
        [*torchrun, "evaluate", "two", "--json", "two.json"], cwd=tmp_path, check=True, env=environment
    )
    one, two = (json.loads((tmp_path / f"{name}.json").read_text())["metrics"] for name in ("one", "two"))
    assert one == two
