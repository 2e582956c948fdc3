"""The heartbeat of a training: seen while it runs, gone when it is done, else kept with the reason."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from ensuite.errors import EnsuiteError
from ensuite.training import heartbeat
from ensuite.training.heartbeat import NAME, Heartbeat, read_progress
from ensuite.training.loop import train

RECIPE = {"model": {"dim": 8, "blocks": 1}, "training": {"epochs": 2, "batch_size": 16}}


def test_a_training_is_seen_while_it_runs_and_gone_when_it_is_done(cycle, tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "EVERY", 0.0)
    seen = []
    train(
        "sasrec",
        cycle,
        tmp_path / "run",
        recipe=RECIPE,
        on_validation=lambda epoch, metrics: seen.append(read_progress(tmp_path / "run")),
    )
    assert [(said.state, said.epoch, said.epochs) for said in seen] == [("running", 1, 2), ("running", 2, 2)]
    last = seen[-1]
    assert last.step == last.steps == 8
    assert last.loss > 0
    assert last.rate > 0
    assert last.seconds_left == pytest.approx(0, abs=1e-6)
    assert last.age < 60
    assert not (tmp_path / "run" / NAME).exists()
    assert read_progress(tmp_path / "run") is None


def test_it_is_written_once_a_second_at_most(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(heartbeat, "write_text", lambda path, text: written.append(text))
    with Heartbeat(tmp_path) as beat:
        beat.start_epoch(0, 1, 10_000, 0)
        for _ in range(10_000):
            beat.advance(1.0)
    assert len(written) <= 4


def test_a_training_that_fails_says_why(cycle, tmp_path):
    def fail(epoch, metrics):
        raise EnsuiteError("no more of this")

    with pytest.raises(EnsuiteError):
        train("sasrec", cycle, tmp_path / "run", recipe=RECIPE, on_validation=fail)
    said = read_progress(tmp_path / "run")
    assert (said.state, said.stopped) == ("stopped", "no more of this")
    train("sasrec", cycle, tmp_path / "run", recipe=RECIPE, resume=True)
    assert read_progress(tmp_path / "run") is None


def test_a_killed_training_is_interrupted_and_a_silent_one_may_hang(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    beat = Heartbeat(tmp_path)
    beat.about["pid"] = other.pid
    beat.start_epoch(0, 1, 10, 0)
    assert read_progress(tmp_path).state == "running"
    said = json.loads((tmp_path / NAME).read_text())
    (tmp_path / NAME).write_text(json.dumps(said | {"at": said["at"] - 2 * heartbeat.SILENT}))
    assert read_progress(tmp_path).state == "silent"
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert read_progress(tmp_path).state == "interrupted"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"at": "soon"}'])
def test_a_damaged_heartbeat_is_none(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    assert read_progress(tmp_path) is None


def test_a_folder_that_cannot_be_written_ends_no_training(tmp_path):
    with Heartbeat(tmp_path / "not there") as beat:
        beat.start_epoch(0, 1, 10, 0)
        beat.advance(1.0)
