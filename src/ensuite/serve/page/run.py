"""The page of one run: how it learned, what its card says, with which settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any
from urllib.parse import quote

from ensuite.errors import EnsuiteError
from ensuite.evaluate.report import tables
from ensuite.evaluate.report.page import pretty
from ensuite.serve.page.backend import Backend
from ensuite.serve.page.charts import VALIDATED, best_validation, curves, pairs
from ensuite.serve.page.components import Tag, frame, markup
from ensuite.serve.page.shelf import find_run, same_catalogue

SECTIONS = ("data", "protocol", "training", "environment")


def show_run(backend: Backend, name: str) -> None:
    """Build the page of the run ``name`` of the shelf."""
    with frame("/runs", name, backend.run.name):
        try:
            if backend.runs is None:
                raise EnsuiteError("the service was started without a folder of runs (--runs)")
            run = find_run(backend.runs, name)
        except EnsuiteError as error:
            with Tag("section", "panel"), Tag("div", "notice", role="alert"):
                Tag("p", "big", "There is no such run.")
                Tag("p", "", str(error))
                Tag("a", "", "All runs", href="/runs")
            return
        with Tag("p", "crumbs"):
            Tag("a", "", "Runs", href="/runs")
            Tag("span", "hint", f" / {run.card['data']['name']}")
        with Tag("div", "title"):
            Tag("h1", "", run.name)
            if run.ready and same_catalogue(run, backend.trained_ids):
                beside = run.path.resolve() != backend.run.path.resolve()
                query = f"/?beside={quote(run.name)}" if beside else "/"
                Tag(
                    "a", "button primary", "Try it" + (" beside the served one" if beside else ""), href=query
                )
        metrics = best_validation(run)
        facts = [("model", run.card["model"])]
        facts += [(pretty(key), tables.score(metrics[key])) for key in VALIDATED if key in metrics]
        facts += [
            ("training", tables.seconds(run.card.get("train_seconds"))),
            ("parameters", tables.count(run.card.get("parameters"))),
            ("memory", tables.memory(run.card.get("peak_memory_bytes"))),
        ]
        with Tag("dl", "facts"):
            for key, value in facts:
                with Tag("div"):
                    Tag("dt", "", key)
                    Tag("dd", "", value)
        charts = "".join(curves(run))
        sections = "".join(
            pairs(list(_flat(run.card[key])), key.capitalize()) for key in SECTIONS if key in run.card
        )
        settings = (run.path / "config.yaml").read_text(encoding="utf-8", errors="replace")
        markup(
            f'<div class="grid">{charts}</div><div class="sections">{sections}</div>'
            f'<details class="card"><summary>Settings</summary><pre>{escape(settings)}</pre></details>',
            classes="report",
        )


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}, {inner}".replace("_", " "), of) for inner, of in value.items())
        else:
            yield key.replace("_", " "), value
