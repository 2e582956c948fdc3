"""``ensuite export``: write a run as a file that serves without its model's code."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from ensuite.data.dataset import Dataset
    from ensuite.serve.export.export import Export
    from ensuite.training.run import Run


DESCRIPTION = """\
Write a run as one ONNX graph, from item ids to the best k, and check it against the model.

  ensuite export runs/sasrec --onnx
  ensuite export runs/sasrec --onnx --int8        # and what that costs in accuracy
  ensuite recommend runs/sasrec --history 4311 587 --engine onnx
"""


@dataclass(frozen=True)
class Arguments:
    """The flags of `ensuite export`."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder, made by `ensuite train`."""
    onnx: bool = False
    """Write an ONNX graph: the one format there is."""
    out: Path | None = None
    """The file to write; default: model.onnx in the run folder, where `--engine onnx` looks for it."""
    int8: bool = False
    """Eight-bit weights and item table: smaller, faster, less exact."""
    data: Path | None = None
    """With --int8: the dataset whose validation tells what it costs; default: the one of the run."""
    threads: int | None = None
    """Threads that the graph is measured with; default: as many as PyTorch uses."""


def main(argv: list[str]) -> None:
    """Run `ensuite export` with the arguments after its name."""
    arguments = tyro.cli(
        Arguments,
        args=argv,
        prog="ensuite export",
        description=DESCRIPTION,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    from ensuite.errors import EnsuiteError
    from ensuite.serve.export.export import export_onnx
    from ensuite.training.run import load_run

    if not arguments.onnx:
        raise EnsuiteError(f"say what to write: `ensuite export {arguments.run} --onnx`")
    if arguments.data is not None and not arguments.int8:
        raise EnsuiteError("--data: only --int8 changes the accuracy, so only with it is it measured")
    if arguments.threads is not None and arguments.threads < 1:
        raise EnsuiteError(f"--threads {arguments.threads}: at least 1 is needed")
    run = load_run(arguments.run)
    dataset = _dataset(run, arguments.data) if arguments.int8 else None
    export = export_onnx(run, arguments.out, int8=arguments.int8, dataset=dataset, threads=arguments.threads)
    _show(export, arguments)


def _dataset(run: Run, path: Path | None) -> Dataset | None:
    """Open the run's dataset; without --data it may be missing."""
    from ensuite.errors import EnsuiteError

    try:
        return run.dataset(path)
    except EnsuiteError as error:
        if path is not None:
            raise
        sys.stderr.write(f"warning: what int8 costs in accuracy is not measured: {error}\n")
        return None


def _show(export: Export, arguments: Arguments) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table, names = Table("engine"), list(export.costs[0].metrics)
    for name in ("MB", "ms a request", *names):
        table.add_column(name, justify="right")
    for cost in export.costs:
        size = "-" if cost.megabytes is None else f"{cost.megabytes:,.2f}"
        table.add_row(
            cost.engine, size, f"{cost.milliseconds:.2f}", *(f"{cost.metrics[n]:.4f}" for n in names)
        )
    console = Console()
    console.print(table)
    check = export.check
    said = (
        f"{check.lists} lists against the model's: scores differ by at most {check.difference:.1g} of the "
        f"largest, {check.moved:,} places hold another item of as good as equal score"
    )
    if arguments.int8:
        said = f"{check.lists} lists against the model's: {check.shared:.1%} of the best ten are the same"
    measured = f"Accuracy on {export.cases:,} validation cases.\n" if export.cases else ""
    next_step = f"ensuite recommend {arguments.run} --history ITEM ... --engine onnx"
    if arguments.out is not None:
        next_step = f"OnnxEngine('{export.path}') of ensuite.serve.export.engine, as a Recommender's engine"
    text = f"{export.path}: checked, {said}.\n{measured}Next: {next_step}"
    console.print(escape(text), highlight=False, soft_wrap=True)
