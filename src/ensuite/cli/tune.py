"""``ensuite tune``: search for better settings of a system."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

SHOWN = 10
"""How many trials the table holds."""
FIXED = 5
"""How many columns of `Search.trials` come before the settings."""

DESCRIPTION = """\
Search for better settings of a system with Optuna, judged on validation.

  ensuite tune sasrec --data data/ml --trials 20
  ensuite tune sasrec --data data/ml --trials 50 --space space.yaml --epochs 30 --timeout 3600
  ensuite tune sasrec --data data/ml --trials 100 --storage postgresql://host/db   # from many machines

The same command goes on where an interrupted one stopped: --trials counts those done before.
A space is YAML, keys as in a recipe, each a range or a list of choices:

  training.lr: {low: 0.0003, high: 0.01, log: true}
  model.dim: [32, 64, 128]
  model.dropout: {low: 0.0, high: 0.6, step: 0.1}
"""


@dataclass(frozen=True)
class Arguments:
    """The flags of `ensuite tune`."""

    model: Annotated[str, tyro.conf.Positional]
    """A registered system; `ensuite models` lists them."""
    data: Path
    """The dataset folder, made by `ensuite prepare`."""
    trials: int = 20
    """How many trials in all, those of earlier calls counted."""
    out: Path | None = None
    """Folder for the database, best.yaml, trials.csv and the best run; default: runs/tune-MODEL."""
    recipe: Path | None = None
    """YAML recipe that every trial starts from."""
    space: Path | None = None
    """YAML of what to search; default: a built-in space for the model."""
    storage: str | None = None
    """URL of a database; default: SQLite in the out folder."""
    timeout: float | None = None
    """Seconds after which the search ends."""
    epochs: int | None = None
    """Most epochs of a trial, in place of the recipe's."""
    metric: str | None = None
    """Validation metric to maximise, in place of the recipe's (ndcg@10)."""
    no_prune: bool = False
    """Let every trial run to its end; else those below the median of the others at the same epoch are
    stopped."""
    seed: int = 1
    """Of the proposals and of every training."""


def main(argv: list[str]) -> None:
    """Run `ensuite tune` with the arguments after its name."""
    arguments = tyro.cli(
        Arguments,
        args=argv,
        prog="ensuite tune",
        description=DESCRIPTION,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    from ensuite.config import merge, read_yaml
    from ensuite.errors import EnsuiteError
    from ensuite.models.registry import load_model
    from ensuite.training.config import read_recipe

    load_model(arguments.model)
    if arguments.trials < 1:
        raise EnsuiteError(f"--trials {arguments.trials}: at least 1")
    given = {"epochs": arguments.epochs, "metric": arguments.metric}
    recipe = merge(
        read_recipe(arguments.recipe)[0], {"training": {k: v for k, v in given.items() if v is not None}}
    )
    space = None if arguments.space is None else read_yaml(arguments.space)
    out = arguments.out or Path("runs") / f"tune-{arguments.model}"

    from ensuite.tune.search import tune

    search = tune(
        arguments.model,
        arguments.data,
        out,
        trials=arguments.trials,
        recipe=recipe,
        space=space,
        storage=arguments.storage,
        timeout=arguments.timeout,
        prune=not arguments.no_prune,
        seed=arguments.seed,
        on_trial=_say,
    )
    _show(search)
    name, run = search.model, search.out / "best"
    sys.stdout.write(
        f"\n{search.recipe}: validation {search.metric} {search.best:.4f}; its run is {run}. Next:\n"
        f"  ensuite evaluate {run}\n"
        f"  ensuite train {name} --data {arguments.data} --out runs/{name}-tuned --recipe {search.recipe}\n"
    )


def _say(number: int, state: str, value: float | None, parameters: dict[str, Any]) -> None:
    score = "-" if value is None else f"{value:.4f}"
    sys.stderr.write(f"trial {number}: {state} {score}  ({_settings(parameters)})\n")


def _settings(parameters: dict[str, Any]) -> str:
    return ", ".join(
        f"{key.rpartition('.')[2]} {_short(value)}" for key, value in parameters.items() if value is not None
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _show(search: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    trials = search.trials()
    settings = trials.columns[FIXED:]
    table = Table("trial", "state", search.metric, "epochs", "seconds", "settings", title_justify="left")
    table.title = f"The best of {trials.height} trials"
    for row in trials.head(SHOWN).iter_rows(named=True):
        score = "" if row[search.metric] is None else f"{row[search.metric]:.4f}"
        cells = ["" if row[key] is None else _short(row[key]) for key in ("epochs", "seconds")]
        table.add_row(
            str(row["trial"]), row["state"], score, *cells, _settings({key: row[key] for key in settings})
        )
    Console().print(table, highlight=False)
