"""One service with its pages, in a process of its own, and one Chromium, for all tests of this folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ensuite.data.dataset import Dataset, Split, write_dataset
from ensuite.training.loop import train

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TITLES = [
    "Amélie", "The Matrix", "Star Wars: A New Hope", "The Empire Strikes Back", "Return of the Jedi",
    "<script>document.title = 'taken'</script>", "Ran & Co. \"quoted\" 'title'", "Toy Story", "Léon", "Alien",
    "Aliens", "Blade Runner", "Vertigo", "Rear Window", "Casablanca", "Metropolis", "Nosferatu", "M", "Heat",
    "A title that goes on and on, so that nobody can say how anyone would fit it into a narrow column at all",
]  # fmt: skip


def make_data(out: Path) -> Dataset:
    """Write 120 users who walk round a cycle of 20 films, film i followed by i + 1, an event a minute."""
    rng = np.random.default_rng(0)
    walks = [(rng.integers(20) + np.arange(rng.integers(5, 12))) % 20 + 1 for _ in range(120)]
    lengths = np.array([len(walk) for walk in walks])
    return write_dataset(
        out,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        item_idx=np.concatenate(walks),
        time=np.concatenate([1_700_000_000 + 60 * np.arange(n) for n in lengths]),
        split=Split(lengths - 2, lengths - 1, lengths),
        items=pl.DataFrame({"item_id": np.arange(1, 21) * 10, "title": TITLES}),
        users=pl.DataFrame({"user_id": [f"u{i}" for i in range(120)]}),
        columns={},
        card={"time_unit": "s", "split": {"kind": "leave-one-out", "targets": "next"}, "name": "films"},
    )


@dataclass(frozen=True)
class Served:
    """A service that runs."""

    url: str
    runs: Path
    data: Dataset


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """A folder of three runs, and the dataset that they were trained on."""
    folder = tmp_path_factory.mktemp("page")
    data, runs = make_data(folder / "films"), folder / "runs"
    small = {
        "model": {"dim": 16, "blocks": 1, "max_length": 12, "dropout": 0.0},
        "training": {"epochs": 30, "batch_size": 32, "lr": 0.01, "patience": 0},
    }
    train("sasrec", data, runs / "sasrec", recipe=small)
    train("popularity", data, runs / "popularity")
    train("markov", data, runs / "markov")
    return runs, data


class Serving:
    """`ensuite serve` on a free port; ends with the context."""

    def __init__(self, runs: Path, folder: Path, *flags: str):
        self.words = [str(runs / "sasrec"), "--runs", str(runs), "--port", "0", *flags]
        self.folder = folder

    def __enter__(self) -> str:
        store = ["--store", str(self.folder / "events.sqlite")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ensuite", "serve", *self.words, *store],
            stdout=subprocess.PIPE,
            stderr=(self.folder / "log.txt").open("w"),
            text=True,
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "ENSUITE_CACHE": str(self.folder / "cache")},
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = re.search(r"page +(http://\S+)/", line)
            if found:
                return found[1]
        raise AssertionError((self.folder / "log.txt").read_text())

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        log = (self.folder / "log.txt").read_text()
        assert not any(word in log for word in ("Traceback", "Warning")), log


@pytest.fixture(scope="session")
def served(films: tuple[Path, Dataset], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    runs, data = films
    with Serving(runs, tmp_path_factory.mktemp("served")) as url:
        yield Served(url, runs, data)


@pytest.fixture(scope="session")
def serving() -> type[Serving]:
    """For a service with flags of its own: ``with serving(runs, folder, "--require-keys") as url:``."""
    return Serving


@pytest.fixture(scope="module")  # no longer: Playwright keeps an event loop in this thread while it runs
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'ensuite[dev]'")
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def look(browser: Any) -> Iterator[Any]:
    """Open a page in a browser session of its own: ``look(url, width=360, dark=True)``.

    What the page asks of any other host is refused and fails the test, as does an error in its scripts.
    """
    contexts, wrong = [], []

    def open_(url: str, *, width: int = 1280, height: int = 900, dark: bool = False, **options: Any) -> Any:
        scheme = "dark" if dark else "light"
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, **options
        )
        contexts.append(context)

        def guard(route: Any) -> None:
            asked = route.request.url
            if asked.startswith(("http://127.0.0.1:", "http://localhost:", "data:")):
                route.continue_()
            else:
                wrong.append(f"asked for {asked}")
                route.abort()

        context.route("**/*", guard)
        page = context.new_page()
        page.set_default_timeout(8000)
        page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
        page.goto(url)
        page.wait_for_selector("html[data-ready] main, main.door")  # the socket listens, or there is none
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not wrong
