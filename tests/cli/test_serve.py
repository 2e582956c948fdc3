"""`ensuite serve` as a process: it starts, answers over loopback, and ends in good order."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ensuite.data.dataset import Dataset
from ensuite.serve.store import EventStore
from ensuite.training.loop import train


@pytest.fixture(scope="module")
def runs(cycle: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Markov chain on the cycle of 20 items, and the popularity beside it."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("markov", "popularity"):
        train(name, cycle, folder / name)
    return folder


class Served:
    """A process that serves, and what it printed when it began to."""

    def __init__(self, *argv: object):
        command = [sys.executable, "-m", "ensuite", "serve", *map(str, argv), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.text = ""
        for line in self.process.stdout:
            self.text += line
            if line.lstrip().startswith("curl"):
                break
        found = re.search(r"listens\s+(\S+)", self.text)
        if found is None:
            raise AssertionError(self.text + self.process.communicate()[1])
        self.url = found.group(1)

    def stop(self, how: int = signal.SIGTERM) -> tuple[int, str]:
        """End it: exit status and what it said on standard error."""
        self.process.send_signal(how)
        error = self.process.communicate(timeout=20)[1]
        return self.process.returncode, error


Start = Callable[..., Served]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `ensuite serve` with some words; whatever happens, it ends with the test."""
    begun: list[Served] = []

    def begin(*argv: object) -> Served:
        begun.append(Served(*argv))
        return begun[-1]

    yield begin
    for served in begun:
        if served.process.poll() is None:
            served.process.kill()
            served.process.communicate()


def post(url: str, body: Any, **more: Any) -> httpx.Response:
    return httpx.post(url, json=body, timeout=10, **more)


def test_the_whole_walk(start: Start, runs: Path, tmp_path: Path) -> None:
    store = tmp_path / "events.sqlite"
    served = start(runs / "markov", "--store", store, "--runs", runs, "--timeout", 5)
    assert "markov: markov, 20 items" in served.text
    assert f"store     {store}" in served.text
    assert "fallback  popularity" in served.text
    words = shlex.split(served.text.splitlines()[-1].strip())
    answer = httpx.post(words[1], content=words[-1], headers=dict([words[3].split(": ")]), timeout=10)
    assert len(answer.json()["items"]) == 3
    assert answer.json()["fallback"] is None
    events = {"events": [{"user_id": "ann", "item_id": 30}, {"user_id": "ann", "item_id": 40}]}
    assert post(served.url + "/v1/events", events).json()["new"] == 2
    asked = {"user_id": "ann", "k": 1}
    assert post(served.url + "/v1/recommend", asked).json()["items"][0]["item_id"] == 50
    assert httpx.get(served.url + "/readyz").json()["store"] == "ok"
    assert "ensuite_requests_total" in httpx.get(served.url + "/metrics").text
    assert httpx.get(served.url + "/docs").status_code == 200
    assert post(served.url + "/v1/model", {"run": "popularity"}).json()["run"] == "popularity"
    status, error = served.stop()
    assert status == 0
    assert [line.split(",")[0] for line in error.splitlines()] == [
        f"INFO ensuite.serve.service: serving {runs / 'popularity'}"
    ]
    again = start(runs / "markov", "--store", store, "--no-page")
    assert " page " not in again.text
    assert httpx.get(again.url + "/").status_code == 404
    assert post(again.url + "/v1/recommend", asked).json()["items"][0]["item_id"] == 50
    assert again.stop(signal.SIGINT)[0] == 0


def metrics(served: Served) -> str:
    return httpx.get(served.url + "/metrics", timeout=10).text


def test_what_is_under_way_is_answered_before_it_ends(start: Start, runs: Path, tmp_path: Path) -> None:
    served = start(runs / "markov", "--store", tmp_path / "events.sqlite", "--timeout", 30)
    answers: list[int] = []

    def ask() -> None:
        body = {"requests": [{"history": [10 * (1 + n % 20)] * 1_000, "k": 5} for n in range(256)]}
        answers.append(post(served.url + "/v1/recommend", body).status_code)

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    while len(re.findall(r"^ensuite_batch_size_count [1-9]", metrics(served), re.M)) == 0:
        time.sleep(0.01)
    status, error = served.stop()
    for thread in asking:
        thread.join()
    assert answers == [200] * 2
    assert (status, error) == (0, "")


def test_beyond_this_machine_callers_need_a_key(start: Start, runs: Path, tmp_path: Path, ensuite) -> None:
    store = tmp_path / "events.sqlite"
    done = ensuite("serve", runs / "markov", "--store", store, "--host", "0.0.0.0", "--port", 0, check=False)
    assert done.returncode == 2
    assert "ensuite store keys add NAME --scope" in done.stderr
    opened = EventStore.open(store)
    secret = opened.add_key("shop", frozenset({"read"}))
    opened.close()
    served = start(runs / "markov", "--store", store, "--require-keys")
    assert "API keys required" in served.text
    assert "Authorization: Bearer KEY" in served.text
    body = {"history": [30, 40], "k": 1}
    assert post(served.url + "/v1/recommend", body).status_code == 401
    key = {"Authorization": f"Bearer {secret}"}
    assert post(served.url + "/v1/recommend", body, headers=key).json()["items"][0]["item_id"] == 50
    events = {"events": [{"user_id": "ann", "item_id": 30}]}
    assert post(served.url + "/v1/events", events, headers=key).status_code == 403


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "nothing: no such run"),
        (["{run}", "--store", "mysql://host/db"], "SQLite or PostgreSQL, not mysql"),
        (["{run}", "--host", "999.1.1.1"], "999.1.1.1"),
        (["{run}", "--port", "65536"], "a number from 0 to 65535"),
        (["{run}", "--runs", "nothing"], "nothing: cannot be read"),
        (["{run}", "--fallback", "{run}"], "a markov run; the fallback list is that of a popularity run"),
        (["{run}", "--timeout", "0"], "--timeout above 0"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(ensuite, runs: Path, words: list[str], said: str) -> None:
    filled = [word.format(run=runs / "markov") for word in words]
    done = ensuite("serve", *filled, *([] if "--port" in words else ["--port", 0]), check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(ensuite, runs: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = ensuite("serve", runs / "markov", "--port", taken.getsockname()[1], check=False)
    assert done.returncode == 2
    assert "choose another --port" in done.stderr


def test_the_service_loads_little(runs: Path, tmp_path: Path) -> None:
    """What makes the start slow is imported where it is used: none of it by a plain service."""
    code = (
        "import sys, pathlib; from ensuite.serve.http import build_app; from ensuite.serve.service import "
        "Service; from ensuite.serve.store import EventStore; "
        f"Service(pathlib.Path({str(runs / 'markov')!r}), EventStore.open({str(tmp_path / 'e.sqlite')!r})); "
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"accelerate", "pandas", "nicegui", "onnx", "onnxruntime", "faiss", "optuna", "matplotlib"}
    assert heavy & set(done.stdout.split()) == set()


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    from ensuite.cli import main

    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    out = capsys.readouterr().out
    assert "ensuite store keys add shop" in out
    assert "SIGTERM" in out
