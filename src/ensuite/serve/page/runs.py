"""The page "Runs": what is in the folder of runs, by dataset; at once by validation, on request on test with
intervals."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

from nicegui import ui

from ensuite.data import report as data_report
from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.evaluate.entries import check_cards
from ensuite.evaluate.report import tables
from ensuite.evaluate.report.page import cards_panel, learning_panel, pretty
from ensuite.serve.page.backend import Backend
from ensuite.serve.page.charts import VALIDATED, best_validation, cost, printed
from ensuite.serve.page.comparing import Comparisons, Job
from ensuite.serve.page.components import Tag, button, frame, markup
from ensuite.serve.page.shelf import Shelved, read_shelf

ASKED = 12
"""Runs that are ticked for a comparison at first: the best by validation whose training is done."""


class Runs:
    """The shelf, one section for each dataset."""

    def __init__(self, backend: Backend, comparisons: Comparisons):
        runs = read_shelf(backend.runs) if backend.runs is not None else []
        with frame("/runs", "Runs", backend.run.name):
            Tag("h1", "", "Runs")
            groups: dict[str, list[Shelved]] = {}
            for run in runs:
                groups.setdefault(run.fingerprint, []).append(run)
            if not groups:
                self._empty(backend)
                return
            said = f"{len(runs)} run{'s' * (len(runs) != 1)} in {backend.runs}"
            if len(groups) > 1:
                said += (
                    f", on {len(groups)} datasets. Their cards differ, so each dataset has a table of its "
                    "own: a number means something only together with its data, split and rule."
                )
            Tag("p", "lead", said)
            for members in groups.values():
                Group(members, comparisons)

    def _empty(self, backend: Backend) -> None:
        with Tag("section", "panel"), Tag("div", "empty"):
            Tag("p", "big", "No runs to show.")
            if backend.runs is None:
                Tag("p", "", "The service was started without a folder of runs. Start it with:")
                Tag("code", "command", f"ensuite serve {backend.run.path} --runs {backend.run.path.parent}")
            else:
                Tag("p", "", f"There is none in {backend.runs} yet. Train one:")
                Tag("code", "command", f"ensuite train sasrec --data DATA --out {backend.runs}/sasrec")


class Group:
    """The runs on one dataset."""

    def __init__(self, runs: list[Shelved], comparisons: Comparisons):
        self.runs = sorted(runs, key=lambda run: -best_validation(run).get(VALIDATED[0], -1.0))
        self.comparisons = comparisons
        ready = [run for run in self.runs if run.ready]
        done = [run for run in ready if run.progress is None]
        self.chosen = {run.name for run in done[:ASKED]}
        self.job: Job | None = None
        data = runs[0].card["data"]
        with Tag("section", "dataset", aria_label=f"Runs on {data['name']}"):
            with Tag("div", "title"):
                with Tag("div"):
                    Tag("h2", "", str(data["name"]))
                    split = data.get("split") or {}
                    Tag("span", "hint", f"split {split.get('kind')}, fingerprint {runs[0].fingerprint}")
                self.ask = button("Compare on test", self._compare, "primary", disabled=not self.chosen)
                self.back = button("Choose other runs", self._show_validation, "quiet", hidden=True)
            self.bar = Tag("div", "progress", hidden=True)
            self.out = Tag("div")
            with Tag("div", "report"):
                self._data(data["path"], runs[0].fingerprint)
        self._show_validation()
        ui.timer(0.05, self._find, once=True)
        self.timer = ui.timer(0.4, self._follow, active=False)

    # -- before it is compared --

    def _show_validation(self) -> None:
        self.ask.set(hidden=False)
        self.back.set(hidden=True)
        self.out.clear()
        with self.out:
            self._differing()
            with Tag("div", "report"), Tag("section", "card"), Tag("div", "scroll"), Tag("table", "shelf"):
                with Tag("tr"):
                    for head in ("run", *map(pretty, VALIDATED), "epoch kept", "training", "parameters"):
                        Tag("th", "", head)
                best = max((best_validation(run).get(VALIDATED[0], 0.0) for run in self.runs), default=0.0)
                for run in self.runs:
                    self._row(run, best)
            charts = learning_panel([run.entry() for run in self.runs[:ASKED]], VALIDATED[0])
            with Tag("div", "report"):
                markup(f'<div class="grid">{charts}</div>')
                markup(cards_panel([run.entry() for run in self.runs[:ASKED]]))
            Tag("p", "aside", "By the metrics of validation. On test, with intervals: Compare on test.")

    def _row(self, run: Shelved, best: float) -> None:
        metrics = best_validation(run)
        with Tag("tr"):
            with Tag("td"), Tag("div", "pick"):
                tick = Tag(
                    "input",
                    "",
                    type="checkbox",
                    checked=run.name in self.chosen,
                    disabled=not run.ready,
                    aria_label=f"Compare {run.name}",
                )
                tick.on(
                    "change", lambda e: self._tick(run, e.args), js_handler="(e) => emit(e.target.checked)"
                )
                with Tag("div"):
                    Tag("a", "run", run.name, href=f"/run?name={quote(run.name)}")
                    Tag("small", "", f"{run.card['model']}, seed {run.card.get('seed')}")
            for name in VALIDATED:
                value = metrics.get(name)
                with Tag("td"):
                    Tag("span", "", "–" if value is None else tables.score(value))
                    if name == VALIDATED[0] and value is not None and best > 0:
                        Tag("span", "spark").style(f"--part: {value / best:.3f}")
            training = run.card.get("training", {})
            kept, epochs = training.get("best_epoch"), training.get("epochs")
            for text in (_state(run) or (f"{kept} of {epochs}" if epochs else "–"), *cost(run)):
                Tag("td", "", text)

    def _differing(self) -> None:
        try:
            check_cards([run.entry() for run in self.runs])
        except EnsuiteError as error:
            with Tag("div", "warning", role="alert"):
                Tag("strong", "", "The cards of these runs differ.")
                Tag("pre", "", str(error).split("\n", 1)[-1])

    def _tick(self, run: Shelved, chosen: bool) -> None:
        (self.chosen.add if chosen else self.chosen.discard)(run.name)
        self.ask.set(disabled=not self.chosen)

    def _data(self, path: str, fingerprint: str) -> None:
        with Tag("details", "card") as details:
            Tag("summary", "", "The data")
            body = Tag("div", "stack")
        opened = False

        async def show() -> None:
            nonlocal opened
            if opened:
                return
            opened = True
            with body:
                try:
                    dataset = await asyncio.to_thread(Dataset.open, path)
                    if dataset.fingerprint != fingerprint:
                        raise EnsuiteError(f"{path} holds other data now than the runs were trained on")
                except EnsuiteError as error:
                    Tag("p", "aside", str(error))
                    return
                if "report" in dataset.card:
                    for table in data_report.tables(dataset.card):
                        markup(printed(table))
                    for note in dataset.card["report"].get("notes", []):
                        Tag("p", "aside", note)
                else:
                    Tag("p", "aside", f"{dataset!r}; it was written without a report.")

        details.on("toggle", lambda _: show(), args=[])

    # -- comparing --

    def _asked(self) -> list[Shelved]:
        return [run for run in self.runs if run.name in self.chosen]

    async def _shown(self, runs: list[Shelved]) -> bool:
        """Show the comparison of ``runs`` if it was made before; return whether it was."""
        found = await asyncio.to_thread(self.comparisons.find, runs)
        if found is not None:
            self._show(found)
        return found is not None

    async def _find(self) -> None:
        """Show the comparison when it was made before, or follow it when it is being made."""
        runs = self._asked()
        if not runs or await self._shown(runs):
            return
        self.job = self.comparisons.job(runs)
        self.timer.active = self.job is not None and not self.job.over

    async def _compare(self) -> None:
        runs = self._asked()
        if not runs or await self._shown(runs):
            return
        self.job = await asyncio.to_thread(self.comparisons.start, runs)
        self.timer.active = True

    async def _follow(self) -> None:
        job = self.job
        if job is None:
            return
        self.ask.set(disabled=not job.over)
        self.bar.set(hidden=job.over and not job.error)
        self.bar.clear()
        with self.bar:
            if job.error:
                with Tag("div", "warning", role="alert"):
                    Tag("pre", "", job.error)
            else:
                said = f"Measuring {job.run}" if job.run else "Loading the runs"
                Tag("span", "hint", said)
                Tag(
                    "span",
                    "bar",
                    role="progressbar",
                    aria_label="Comparison",
                    aria_valuenow=str(round(100 * job.done)),
                    aria_valuemin="0",
                    aria_valuemax="100",
                ).style(f"--part: {job.done:.3f}")
        if job.over:
            self.timer.active = False
            if not job.error:  # by its own name: a run that trains has other weights by now
                self._show(await asyncio.to_thread(job.file.read_text, encoding="utf-8"))

    def _show(self, html: str) -> None:
        self.bar.set(hidden=True)
        self.ask.set(hidden=True)
        self.back.set(hidden=False)
        self.out.clear()
        with self.out:
            self._differing()
            markup(html, classes="report")
            with Tag("p", "aside"):
                Tag("span", "", "Open a run: ")
                for run in self._asked():
                    Tag("a", "also", run.name, href=f"/run?name={quote(run.name)}")


def _state(run: Shelved) -> str:
    if run.progress is not None:
        return {"running": "training now", "silent": "silent"}.get(run.progress.state, run.progress.state)
    return "" if run.ready else "no weights yet"
