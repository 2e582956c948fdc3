"""``ensuite evaluate``: measure a run by full ranking, on validation or test."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from ensuite.evaluate.evaluate import Evaluation

PATIENCE = 2.0  # seconds until a bar is shown


@dataclass(frozen=True)
class Arguments:
    """Measure a run: ranks among all items, metrics with 95 % intervals.

    ensuite evaluate runs/sasrec
    ensuite evaluate runs/sasrec --phase valid --metrics ndcg@10 hr@10 coverage@10 --json out.json
    torchrun --nproc-per-node 2 -m ensuite evaluate runs/sasrec
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, made by `ensuite train`."""
    data: Path | None = None
    """Dataset folder, when it has moved since the training."""
    phase: Literal["valid", "test"] = "test"
    """Which part of the split is asked for."""
    metrics: tuple[str, ...] = ()
    """ndcg, hr, recall, precision, map, mrr, coverage, gini, novelty, arp, popularity-lift, diversity;
    ndcg-rep, ndcg-exp, recall-rep, recall-exp, rep-ratio, rep-bias; @ a cut-off. Default: ndcg@10 hr@10 mrr,
    of a sessions split those of repeats too.
    """
    sampled: tuple[str, ...] = ()
    """Also among sampled candidates, to repeat published numbers: uniform-100, popularity-100."""
    cohorts: int = 0
    """Also over 5 random cohorts of so many users: mean and deviation between them."""
    slices: bool = False
    """Also for head and tail items, five bins of popularity, short and long histories, cold items and users.
    """
    exclude: Literal["seen", "none"] | None = None
    """Leave items of the history out of the ranking, or not; default: as the run's card says."""
    request_time: bool = True
    """Tell models that read it when the target was asked for."""
    category_column: str | None = None
    """Column of the item table that diversity looks at; default: genres, genre, categories, category or
    tags.
    """
    seed: int = 0
    """Of sampled candidates and of the bootstrap."""
    batch_size: int = 256
    """Users scored at a time."""
    device: str | None = None
    """cpu, cuda, ...; default: a GPU when there is one."""
    json: Path | None = None
    """Write {"metrics": ..., "card": ...} there."""


def main(argv: list[str]) -> None:
    """Evaluate one run and print its table; under torchrun the processes share the users."""
    args = tyro.cli(Arguments, args=argv, prog="ensuite evaluate")
    from ensuite.evaluate.evaluate import default_metrics, evaluate
    from ensuite.evaluate.metrics import ACCURACY, parse_metric
    from ensuite.training.run import load_run

    for name in args.metrics:
        parse_metric(name)
    run = load_run(args.run)
    dataset = run.dataset(args.data)
    metrics = args.metrics or default_metrics(dataset)
    plain = [m for m in metrics if parse_metric(m).base in ACCURACY]
    wanted = [*metrics, *(f"{m}/{s}" for s in args.sampled for m in plain)]
    exclude = args.exclude or run.card.get("protocol", {}).get("exclude", dataset.exclude)
    with Processes() as rank:
        device = pick_device(args.device)
        with Bar(shown=rank == 0) as bar:
            result = evaluate(
                run.model.to(device),
                dataset,
                args.phase,
                wanted,
                exclude=exclude,
                request_time=args.request_time,
                batch_size=args.batch_size,
                seed=args.seed,
                category_column=args.category_column,
                device=device,
                progress=bar.of(run.name),
            )
    if rank:
        return
    card = describe(run.card, result, dataset, exclude, args)
    console = Console()
    _print(console, run.name, result, args.seed)
    cohorts = result.cohorts(args.cohorts) if args.cohorts else {}
    if cohorts:
        _print_cohorts(console, cohorts, args.cohorts)
    if args.slices:
        accuracy = [name for name in wanted if not parse_metric(name).beyond]
        _print_slices(console, result.slices(dataset, accuracy))
    if args.json is not None:
        write_text(
            args.json,
            json.dumps(
                {"metrics": known(result.metrics), "card": card}
                | ({"cohorts": {name: list(pair) for name, pair in cohorts.items()}} if cohorts else {}),
                indent=2,
                default=str,
            )
            + "\n",
        )
        console.print(f"Written: {args.json}", highlight=False)
    beside = args.run.parent
    console.print(f"Next: ensuite compare {beside}/* --out report/", highlight=False, soft_wrap=True)


def describe(
    card: dict[str, Any], result: Evaluation, dataset: Any, exclude: str, args: Arguments
) -> dict[str, Any]:
    """Return the run's card with what this evaluation did."""
    protocol = {
        "exclude": exclude,
        "phase": args.phase,
        "cases": len(result.ranks),
        "tie_rate": result.ranks.tie_rate,
        "unreachable_targets": result.ranks.unreachable,
        "request_time_given": args.request_time,
        "sampling_seed": args.seed if result.sampled else None,
    }
    return card | {
        "protocol": card.get("protocol", {}) | protocol,
        "evaluated_on": {"path": str(dataset.path), "fingerprint": dataset.fingerprint},
        "scoring_seconds": round(result.seconds, 4),
    }


def _print(console: Console, name: str, result: Evaluation, seed: int) -> None:
    from ensuite.evaluate.metrics import parse_metric
    from ensuite.evaluate.report.tables import interval, score, seconds
    from ensuite.evaluate.statistics import intervals, user_means

    table = Table("metric", title=f"{escape(name)}, {result.phase}", title_justify="left")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right", style="dim")
    for metric, value in result.metrics.items():
        between = ""
        if not parse_metric(metric).beyond:
            users = user_means(result.per_case(metric), result.ranks.user)
            between = interval(intervals(users[:, None], seed=seed)[0])
        table.add_row(metric, f"[bold]{score(value)}[/]", between)
    console.print(table)
    ranks = result.ranks
    parts = [f"{len(ranks):,} cases ranked among {ranks.n_items:,} items in {seconds(result.seconds)}"]
    parts.append(f"{ranks.tie_rate:.1%} of the targets tied")
    if ranks.unreachable:
        parts.append(f"{ranks.unreachable:,} targets left out by the rule (seen before, or never scored)")
    console.print(f"[dim]{'; '.join(parts)}[/]", highlight=False, soft_wrap=True)


def known(metrics: dict[str, float]) -> dict[str, float | None]:
    """Return the metrics with None, which JSON has, for NaN, which it has not."""
    return {name: None if value != value else value for name, value in metrics.items()}


def _print_cohorts(console: Console, cohorts: dict[str, tuple[float, float]], users: int) -> None:
    from ensuite.evaluate.report.tables import score

    table = Table("metric", title=f"Random cohorts of {users:,} users", title_justify="left")
    table.add_column("mean", justify="right")
    table.add_column("deviation", justify="right")
    for name, (mean, deviation) in cohorts.items():
        table.add_row(name, score(mean), score(deviation))
    console.print(table)


def _print_slices(console: Console, slices: dict[str, dict[str, float]]) -> None:
    from ensuite.evaluate.report.tables import score

    names = list(next(iter(slices.values())))
    table = Table("slice", title="Slices", title_justify="left")
    for name in names:
        table.add_column(name, justify="right")
    for part, values in slices.items():
        table.add_row(part, *(f"{v:,.0f}" if n == "cases" else score(v) for n, v in values.items()))
    console.print(table)


class Processes:
    """The process group of a torchrun launch, or nothing; entering gives this process's rank."""

    def __enter__(self) -> int:
        self.made = False
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return 0
        import torch.distributed

        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group(
                "gloo"
            )  # results travel through the CPU whatever scored them
            self.made = True
        return torch.distributed.get_rank()

    def __exit__(self, *_: object) -> None:
        if self.made:
            import torch.distributed

            torch.distributed.destroy_process_group()


class Bar:
    """A progress bar on standard error that appears once the work has taken `PATIENCE` seconds."""

    def __init__(self, shown: bool = True, unit: str = "users"):
        self.shown = shown
        self.began = time.perf_counter()
        self.tasks: dict[str, Any] = {}
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn(f"{unit}, left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            refresh_per_second=4,
        )

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def of(self, name: str) -> Any:
        """Return the function that takes news of one run."""
        return lambda done, total: self.update(name, done, total)

    def update(self, name: str, done: int, total: int) -> None:
        """Take news: so many of so many users of the run ``name`` are done."""
        if not self.shown or time.perf_counter() - self.began < PATIENCE:
            return
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(escape(name), total=total)
        self.progress.update(self.tasks[name], completed=done)
        self.progress.start()
        if done == total:
            self.progress.remove_task(self.tasks.pop(name))


def pick_device(name: str | None) -> str:
    """Return ``name``, or a GPU of this process when there is one, or the CPU."""
    import torch

    from ensuite.errors import EnsuiteError

    if name is None:
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise EnsuiteError(f"--device {name}: cannot be used: {str(error).splitlines()[0]}") from None
    return name


def write_text(path: Path, text: str) -> None:
    """Write a file, making its folder."""
    from ensuite.errors import EnsuiteError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise EnsuiteError(f"{path}: cannot be written: {error.strerror or error}") from None
