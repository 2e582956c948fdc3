"""``ensuite steps``: what each reasoning step of a ReaRec run is worth, and how much an oracle would win."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensuite.cli.evaluate import Bar, pick_device, write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ensuite.evaluate.steps import StepRow


@dataclass(frozen=True)
class Arguments:
    """Measure a ReaRec run after every reasoning step, by length of the history and popularity of the target.

    ensuite steps runs/rearec --out report/
    ensuite steps runs/rearec --phase valid --metrics ndcg@20 recall@20

    The oracle picks the best step for each user by looking at the target: a ceiling, no result.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, made by `ensuite train rearec`."""
    out: Path | None = None
    """Folder for steps.csv and steps.svg."""
    data: Path | None = None
    """Dataset folder, when it has moved since the training."""
    phase: Literal["valid", "test"] = "test"
    """Which part of the split is asked for."""
    metrics: tuple[str, ...] = ("ndcg@10", "hr@10", "mrr")
    """Accuracy metrics; slices are shown and drawn for the first."""
    exclude: Literal["seen", "none"] | None = None
    """Leave items of the history out of the ranking, or not; default: as the run's card says."""
    request_time: bool = True
    """Tell models that read it when the target was asked for."""
    batch_size: int = 256
    """Users scored at a time."""
    device: str | None = None
    """cpu, cuda, ...; default: a GPU when there is one."""


def main(argv: list[str]) -> None:
    """Rank after every step; print two tables, write a CSV and a plot."""
    args = tyro.cli(Arguments, args=argv, prog="ensuite steps")
    from ensuite.errors import EnsuiteError
    from ensuite.evaluate.steps import EVERYONE, compute_steps, to_csv, to_svg
    from ensuite.models.rearec import ReaRec
    from ensuite.training.run import load_run

    run = load_run(args.run)
    if not isinstance(run.model, ReaRec):
        raise EnsuiteError(
            f"{args.run}: a run of {run.config.name}, which has no reasoning steps; "
            f"train one with `ensuite train rearec --base {run.config.name} ...`"
        )
    if not run.config.model.steps:
        raise EnsuiteError(f"{args.run}: trained with model.steps = 0: there is no step to compare")
    if not args.metrics:
        raise EnsuiteError("--metrics: at least one is needed")
    dataset, device, count = run.dataset(args.data), pick_device(args.device), run.config.model.steps
    with Bar() as bar:
        rows = compute_steps(
            run.model.to(device),
            dataset,
            args.phase,
            args.metrics,
            exclude=args.exclude or run.card.get("protocol", {}).get("exclude", "seen"),
            request_time=args.request_time,
            batch_size=args.batch_size,
            device=device,
            progress=lambda k: bar.of(f"step {k}" if k <= count else "final"),
        )
    final = "mean of the steps" if run.config.model.method == "erl" else "the last step"
    console = Console()
    everyone = [row for row in rows if row.part == EVERYONE]
    console.print(_table(f"{escape(run.name)}, {args.phase}; it ranks by {final}", "metric", everyone))
    slices = [row for row in rows if row.metric == args.metrics[0] and row.part != EVERYONE]
    console.print(_table(f"{args.metrics[0]} by slice", "slice", slices))
    console.print("[dim]The oracle picks each user's best step: a ceiling, no result.[/]", highlight=False)
    if args.out is not None:
        write_text(args.out / "steps.csv", to_csv(rows))
        write_text(args.out / "steps.svg", to_svg(rows, f"{run.name}: {args.metrics[0]} by reasoning step"))
        written = f"Written: {args.out / 'steps.csv'}, {args.out / 'steps.svg'}"
        console.print(written, highlight=False, soft_wrap=True)


def _table(title: str, first: str, rows: Sequence[StepRow]) -> Table:
    from ensuite.evaluate.report.tables import score

    table = Table(first, title=title, title_justify="left")
    steps = [f"step {k}" for k in range(len(rows[0].steps))]
    for name in ("cases", *steps, "final", "oracle", "headroom"):
        table.add_column(name, justify="right")
    for row in rows:
        values = [*map(score, row.steps), f"[bold]{score(row.final)}[/]", score(row.oracle)]
        headroom = "-" if row.headroom != row.headroom else f"{row.headroom:+.1f} %"
        table.add_row(row.metric if first == "metric" else row.part, f"{row.cases:,}", *values, headroom)
    return table
