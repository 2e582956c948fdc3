"""``ensuite benchmark``: ask runs what an ordinary evaluation does not: for what users say they want."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ensuite.cli.codes.show import Working

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from ensuite.evaluate.statistics import Interval
    from ensuite.preferences.benchmark import Result

USAGE = """\
usage: ensuite benchmark preference [RUN...] --data DATASET --preferences FILE --out FOLDER [...]

How well do runs do what users say they want? Five axes, any system; more by
`ensuite benchmark preference --help`.

  ensuite preferences data/ml --out preferences.parquet
  ensuite benchmark preference runs/mender --data data/ml --preferences preferences.parquet --out report/
"""

SHOWN = ("recall@5", "recall@10", "ndcg@10", "mrr")
BASELINE = "dot product"


@dataclass(frozen=True)
class Arguments:
    """Ask runs for what users say they want, along five axes:

    recommendation (history and the preference that fits the next item; beside it the last preference,
    without that oracle), fine and coarse steering (a preference that goes against somebody else's history),
    sentiment (come for "find", stay away for "avoid"; needs ratings), consolidation (all preferences of a
    step at once).

    A run that reads no preferences is asked with the history alone. The dot product of texts is a baseline
    that needs no run.

    ensuite benchmark preference runs/mender runs/sasrec --data data/ml --preferences FILE --out report/
    """

    data: Path
    """The dataset folder that the runs were trained on."""
    preferences: Path
    """The file of preferences, made by `ensuite preferences`."""
    out: Path
    """Folder for preference.csv and preference.svg."""
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")] = ()
    """Run folders, made by `ensuite train`."""
    phase: Literal["valid", "test"] = "test"
    """Which part of the split is asked for."""
    encoder: str = "minilm"
    """What says which preference fits which item: minilm, a folder or a Hugging Face name of a sentence
    encoder."""
    text: str = ""
    """What describes an item, with columns of the item table in braces; empty: those of title, name, brand,
    categories, genres that it has."""
    cache: Path | None = None
    """Folder of known vectors; default: the user's cache folder."""
    device: str | None = None
    """cpu, cuda, ...; default: a GPU when there is one."""
    quiet: bool = False
    """No progress bar."""


def main(argv: list[str]) -> None:
    """Run `ensuite benchmark` with the arguments after its name."""
    from ensuite.errors import EnsuiteError, did_you_mean

    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return
    if argv[0] != "preference":
        raise EnsuiteError(f"unknown benchmark '{argv[0]}'; {did_you_mean(argv[0], ['preference'])}")
    args = tyro.cli(
        Arguments, args=argv[1:], prog="ensuite benchmark preference", config=(tyro.conf.FlagCreatePairsOff,)
    )
    _preference(args)


def _preference(args: Arguments) -> None:
    from rich.console import Console

    from ensuite.cli.compare import load_runs, named_entries
    from ensuite.cli.evaluate import pick_device, write_text
    from ensuite.content.encoders import load_encoder
    from ensuite.data.dataset import Dataset
    from ensuite.preferences.axes import Axes
    from ensuite.preferences.benchmark import run_benchmark, to_csv, to_svg
    from ensuite.preferences.dot_product import DotProduct
    from ensuite.preferences.matching import build_space
    from ensuite.preferences.schema import read_preferences
    from ensuite.training.config import CodesConfig
    from ensuite.training.materials import describing

    runs = load_runs(args.runs) if args.runs else []
    dataset = Dataset.open(args.data)
    for run in runs:
        run.dataset(args.data)  # refuses other data
    preferences = read_preferences(args.preferences, dataset)
    device = pick_device(args.device)
    entries: list[tuple[str, Any]] = [(one.name, one.model.to(device)) for one in named_entries(runs)]
    with Working(not args.quiet) as working:
        working.busy(f"loading {args.encoder}")
        encoder = load_encoder(args.encoder, device)
        text = describing(CodesConfig(text=args.text), dataset.items, str(args.data))
        space = build_space(
            dataset,
            preferences,
            text,
            encoder,
            cache=args.cache,
            progress=lambda done, total: working.update("texts", done, total),
        )
        working.busy("making the questions")
        axes = list(Axes(dataset, preferences, space, args.phase).every())
        entries.append((BASELINE, DotProduct(space)))
        results = run_benchmark(entries, dataset, preferences, axes, working.update)
    table, plot = args.out / "preference.csv", args.out / "preference.svg"
    write_text(table, to_csv(results))
    write_text(plot, to_svg(results, f"Preferences of {dataset.path.name}, {args.phase}"))
    console = Console()
    _show(console, results, without=[name for name, model in entries if not model.reads_preferences()])
    console.print(f"Written: {table}, {plot}", highlight=False, soft_wrap=True)
    steered = next((shlex.quote(str(run.path)) for run in runs if run.model.reads_preferences()), None)
    data, file = shlex.quote(str(args.data)), shlex.quote(str(args.preferences))
    following = (
        f"ensuite recommend {steered} --history ID ... --preference 'Find ...'"
        if steered
        else f"ensuite train mender --data {data} --preferences.file {file} --out RUN"
    )
    console.print(f"Next: {following}", highlight=False, soft_wrap=True, markup=False)


def _show(console: Console, results: Sequence[Result], without: Sequence[str]) -> None:
    """Print a table for each axis, and what must be known to read them."""
    from rich.markup import escape
    from rich.table import Table

    from ensuite.evaluate.report.tables import interval, p_value, score
    from ensuite.preferences.benchmark import headline

    def shown(value: Interval) -> str:
        return f"{score(value.mean)}\n{interval(value)}"

    for axis in dict.fromkeys(one.axis for one in results):
        rows = [one for one in results if one.axis == axis]
        names = [name for name in rows[0].metrics if name in SHOWN or name.startswith("combined")]
        table = Table("run", title=f"{axis}, {rows[0].questions:,} questions", title_justify="left")
        for name in names:
            table.add_column(name, justify="right")
        table.add_column("against best", justify="right")
        for one in rows:
            p = ("best" if one.questions else "-") if one.p is None else f"p {p_value(one.p)}"
            table.add_row(escape(one.name), *(shown(one.metrics[name]) for name in names), p)
        console.print(table, highlight=False)
    console.print(
        f"Against best: a paired test of {headline('recommendation')} (sentiment: {headline('sentiment')}), "
        "Holm-corrected within the axis.",
        highlight=False,
    )
    if without:
        console.print(
            f"Asked with the history alone, since they read no preference: {', '.join(without)}.",
            highlight=False,
            markup=False,
        )
    if not any(one.axis == "sentiment" for one in results):
        console.print("No axis sentiment: the dataset has no ratings, which say what was disliked.")
    console.print(
        "The preference of `recommendation` is chosen by the target itself, an oracle; `last preference` and "
        "`consolidation` are without one.",
        highlight=False,
        markup=False,
    )
