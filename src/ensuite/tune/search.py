"""The search: Optuna proposes a recipe, the one training loop tries it, validation in passing stops the
hopeless ones.

A search lives in a database (SQLite in the output folder, or any that SQLAlchemy reaches), trial by trial:
the same call goes on where an interrupted one stopped, and several may work on one database at once."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from ensuite.config import merge
from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.evaluate.metrics import parse_metric
from ensuite.training.config import read_recipe, resolve
from ensuite.training.loop import train
from ensuite.training.run import write_text
from ensuite.training.trainer import Interrupted, StopTraining
from ensuite.tune.space import Range, Space, built_in_space, defaults_inside, nest, read_space

log = logging.getLogger(__name__)

STARTUP = 5
"""Trials that run to their end before any is stopped for being worse than the median."""
HEARTBEAT = 30
"""Seconds between signs of life; a trial without any for three times that long is taken for dead."""

OnTrial = Callable[[int, str, float | None, dict[str, Any]], None]
"""Called after each trial with (number, state, value, parameters)."""


@dataclass(frozen=True)
class Search:
    """A finished (or interrupted) search; ``study`` is Optuna's own object, for its plots."""

    study: Any
    model: str
    metric: str
    out: Path

    @property
    def best_trial(self) -> Any:
        """Optuna's record of the best trial; of equal ones the first."""
        done = [trial for trial in self.study.trials if trial.state.name == "COMPLETE"]
        return max(done, key=lambda trial: (trial.value, -trial.number))

    @property
    def best(self) -> float:
        """The best validation metric."""
        return float(self.best_trial.value)

    @property
    def recipe(self) -> Path:
        """The recipe of the best trial, complete."""
        return self.out / "best.yaml"

    def trials(self) -> pl.DataFrame:
        """Return one row per trial, best first: number, state, the metric, epochs, seconds, then every
        parameter."""
        keys = sorted({key for trial in self.study.trials for key in trial.params})
        rows = [
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                self.metric: trial.value if trial.state.name == "COMPLETE" else _last(trial),
                "epochs": max(trial.intermediate_values, default=None),
                "seconds": None if trial.duration is None else round(trial.duration.total_seconds(), 1),
                **{key: trial.params.get(key) for key in keys},
            }
            for trial in self.study.trials
        ]
        table = pl.DataFrame(rows, infer_schema_length=None, strict=False)
        done = (pl.col("state") == "complete").alias("done")
        return table.sort([done, pl.col(self.metric)], descending=True, nulls_last=True)


def tune(
    model: str,
    data: Dataset | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    trials: int = 20,
    recipe: Mapping[str, Any] | str | Path | None = None,
    space: Mapping[str, Any] | None = None,
    storage: str | None = None,
    timeout: float | None = None,
    prune: bool = True,
    seed: int = 1,
    on_trial: OnTrial | None = None,
) -> Search:
    """Search for better settings of a system; selection looks at validation only.

    Parameters
    ----------
    model
        Registered name.
    data
        A dataset or its folder.
    out
        Folder of the database, `best.yaml`, `trials.csv` and `best/` (the best trial's run).
    trials
        How many trials in all, those of earlier calls counted.
    recipe
        What every trial starts from; the space's keys are laid over it.
    space
        What to search, as `read_space` takes it; default: `built_in_space`.
    storage
        URL of the database; default: SQLite in ``out``.
    timeout
        Seconds after which the running trial is ended with what it has, and no other begun.
    prune
        Stop trials that are worse than the median of the others at the same epoch.
    seed
        Of the proposals, and of every training.
    on_trial
        Called after each trial.

    Raises
    ------
    EnsuiteError
        When no trial could be finished, or the database holds a search over another space.
    """
    optuna = _optuna()
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    out = Path(out)
    values, where = read_recipe(recipe)
    cls, config = resolve(model, values, seed, where)
    metric = config.training.metric
    parse_metric(metric)
    ranges = built_in_space(cls, config) if space is None else read_space(space, config, "space")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnsuiteError(f"{out}: cannot be created: {error.strerror}") from None
    study = _open(
        optuna,
        storage or f"sqlite:///{out / 'study.db'}",
        f"{model} {dataset.fingerprint} {metric}",
        prune,
        seed,
    )
    _check_same(study, {"space": _plain(ranges), "recipe": values})
    if not study.trials:
        study.enqueue_trial(defaults_inside(ranges, config))
    search = Search(study, model, metric, out)
    ends = None if timeout is None else time.monotonic() + timeout

    def objective(trial: Any) -> float:
        folder = out / "trials" / f"{trial.number:04}"
        proposed = merge(values, nest({key: _draw(trial, key, value) for key, value in ranges.items()}))

        def watch(epoch: int, metrics: dict[str, float]) -> None:
            trial.report(metrics[metric], epoch)
            if prune and trial.should_prune():
                raise optuna.TrialPruned
            if ends is not None and time.monotonic() > ends:
                raise StopTraining("the time of the search is up")

        try:
            run = train(
                model, dataset, folder, recipe=proposed, seed=seed, overwrite=True, on_validation=watch
            )
            value = run.card["training"][f"best_{metric}"]
            if value is None:
                raise EnsuiteError(f"{dataset.path}: nobody to validate on: a search needs a validation part")
            trial.set_user_attr("config", run.config.to_dict())
            _keep_best(study, value, folder, out / "best")
            return value
        except Interrupted as signal:
            raise _Stopped(str(signal)) from None
        except EnsuiteError as error:
            trial.set_user_attr("error", str(error))
            log.warning("trial %d failed: %s", trial.number, error)
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def tell(study: Any, trial: Any) -> None:
        if trial.state.name == "COMPLETE" and search.best_trial.number == trial.number:
            _write_best(search, dataset)
        if on_trial is not None:
            value = trial.value if trial.state.name == "COMPLETE" else _last(trial)
            on_trial(trial.number, trial.state.name.lower(), value, trial.params)

    left = trials - _finished(study)
    if left > 0:
        try:
            study.optimize(objective, n_trials=left, timeout=timeout, catch=(EnsuiteError,), callbacks=[tell])
        except _Stopped:
            raise EnsuiteError(
                f"stopped; {_finished(study)} trials are kept: the same command goes on with the rest"
            ) from None
        finally:
            with suppress(OSError):
                (out / "trials").rmdir()  # left when other workers are busy there
    if not any(trial.state.name == "COMPLETE" for trial in study.trials):
        errors = [trial.user_attrs["error"] for trial in study.trials if "error" in trial.user_attrs]
        raise EnsuiteError(f"no trial was finished: {errors[0] if errors else 'the time was too short'}")
    _write_best(search, dataset)
    write_text(out / "trials.csv", search.trials().write_csv())
    return search


class _Stopped(Exception):
    """A signal came while a trial was training: the search ends, and is not told that the trial failed by
    itself."""


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise EnsuiteError(
            f"a search needs the package `optuna` ({error}); pip install 'ensuite[tune]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _open(optuna: Any, url: str, name: str, prune: bool, seed: int) -> Any:
    """Open or create the study; a second call draws other proposals than the first did."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna calls signs of life experimental
        try:
            storage = optuna.storages.RDBStorage(
                url, heartbeat_interval=HEARTBEAT, grace_period=3 * HEARTBEAT
            )
        except Exception as error:  # whatever the database's driver raises
            raise EnsuiteError(f"storage '{url}' cannot be opened: {str(error).splitlines()[0]}") from None
        pruner = (
            optuna.pruners.MedianPruner(n_startup_trials=STARTUP) if prune else optuna.pruners.NopPruner()
        )
        study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True, pruner=pruner
        )
        study.sampler = optuna.samplers.TPESampler(seed=seed + 1000 * len(study.trials))
    return study


def _check_same(study: Any, asked: dict[str, Any]) -> None:
    asked = json.loads(json.dumps(asked, default=str))
    before = study.user_attrs.get("asked")
    if before is None:
        study.set_user_attr("asked", asked)
    elif before != asked:
        what = "space" if before["space"] != asked["space"] else "recipe"
        raise EnsuiteError(
            f"the database holds {len(study.trials)} trials of '{study.study_name}' with another {what}; "
            "choose another --out or --storage"
        )


def _plain(space: Space) -> dict[str, Any]:
    return {
        key: [value.low, value.high, value.log, value.step] if isinstance(value, Range) else list(value)
        for key, value in space.items()
    }


def _draw(trial: Any, key: str, values: Any) -> Any:
    if not isinstance(values, Range):
        return trial.suggest_categorical(key, values)
    if values.whole:
        return trial.suggest_int(key, values.low, values.high, step=values.step or 1, log=values.log)
    return trial.suggest_float(key, values.low, values.high, step=values.step, log=values.log)


def _finished(study: Any) -> int:
    return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.trials)


def _last(trial: Any) -> float | None:
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None


def _keep_best(study: Any, value: float, folder: Path, best: Path) -> None:
    """Move a trial's run to ``best`` when no finished trial is better."""
    if (
        all(value > trial.value for trial in study.trials if trial.state.name == "COMPLETE")
        or not best.exists()
    ):
        shutil.rmtree(best, ignore_errors=True)
        os.replace(folder, best)


def _write_best(search: Search, dataset: Dataset) -> None:
    best = search.best_trial
    head = (
        f"# {search.model} on {dataset.card.get('name', dataset.path.name)}: validation {search.metric} "
        f"{best.value:.4f}, trial {best.number} of {len(search.study.trials)}\n"
    )
    write_text(search.recipe, head + yaml.safe_dump(best.user_attrs["config"], sort_keys=False))
