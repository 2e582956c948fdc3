"""The one training call: every system that learns by gradient learns through it, in one process or many.

An epoch's batches and a step's random numbers are pure functions of (seed, epoch, step), so that a checkpoint
needs no state of a random generator and a resumed run on CPU ends with the very weights of an uninterrupted
one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ensuite.config import merge
from ensuite.data.dataset import Dataset
from ensuite.data.leakage import audit
from ensuite.errors import EnsuiteError
from ensuite.evaluate.metrics import parse_metric
from ensuite.models.base import FittedModel, Model
from ensuite.models.materials import Materials
from ensuite.objectives import build_objective
from ensuite.training import checkpoint
from ensuite.training.config import RunConfig, read_recipe, resolve
from ensuite.training.materials import check_codes, gather_materials, make_codes, makes_codes
from ensuite.training.preferences import check_preferences, gather_preferences
from ensuite.training.progress import Display
from ensuite.training.run import CODES, Run, build_card, claim, load_run, read_card, write_text
from ensuite.training.start import FIRST_STAGE, start, start_values
from ensuite.training.trainer import StopTraining, Trainer
from ensuite.training.users import training_view

__all__ = ["StopTraining", "train"]

STOPPING = ("epochs", "patience", "max_minutes", "checkpoint_minutes")
"""The settings of `TrainingConfig` that a resumed run may change."""


def train(
    model: str,
    data: Dataset | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    recipe: Mapping[str, Any] | str | Path | None = None,
    seed: int = 1,
    start_from: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    trackers: Sequence[str] = (),
    on_validation: Callable[[int, dict[str, float]], None] | None = None,
    progress: bool | str = False,
) -> Run:
    """Train a registered system on a dataset; return the run with its best weights.

    A system that is trained in two stages (`Model.first_stage`) has the first one's run in the folder
    ``out``/base; one that reads codes and is given no table of them (section `codes`) has its table made
    first, in ``out``/codes. Resumed, a run goes on in the stage that was interrupted.

    Parameters
    ----------
    model
        Registered name, see ``ensuite models``.
    data
        A dataset or its folder. The leakage audit runs first and stops the training when it finds anything.
    out
        The run folder to write.
    recipe
        Sections `model`, `objective`, `samples`, `training` (and `codes`, `preferences`), as a mapping or a
        YAML file; what it leaves out is default.
    start_from
        A run of the same system, or of a wrapper's base, from whose best weights training starts; its model's
        settings hold where the ``recipe`` says nothing. There is then no first stage.
    resume
        Continue a run in ``out`` with the configuration saved there; of a ``recipe`` that differs from it,
        only what says when to stop is taken (`STOPPING`), the rest is refused.
    overwrite
        Replace a run in ``out``.
    trackers
        Names of Accelerate's trackers ("tensorboard", "mlflow", "wandb"), beside metrics.jsonl.
    on_validation
        Called with (epoch, metrics) after each validation (of a last stage only); may raise `StopTraining`,
        or another exception to abort.
    progress
        Show a progress bar and a line for each validation on the terminal; a text stands before them.

    Raises
    ------
    EnsuiteError
        For a mistake in the configuration, a leak in the data, a loss that is not finite, or a full disk.
    """
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    out = Path(out)
    source = None if start_from is None else Path(start_from)
    begun = resume and (out / checkpoint.NAME).exists()
    card: dict[str, Any] = {}
    if resume:
        if source is not None:
            raise EnsuiteError(f"{out}: has begun, and does not start from {source} (--from) when resumed")
        values, where = read_recipe(out / "config.yaml" if (out / "config.yaml").exists() else None)
        values = _resumed(values, read_recipe(recipe)[0], where)
        if (out / "card.json").exists():
            card = read_card(out)
        own_codes = "codes" in values and not values["codes"]["table"]  # they may be all that is there yet
        if "transfer" in card:
            raise EnsuiteError(
                f"{out}: has the weights of {card['transfer']['run']} and was not trained; to train on, "
                f"start another run from it: --from {out}"
            )
        if not begun and "start" not in card and not own_codes:
            raise EnsuiteError(f"{out}: {checkpoint.NO_CHECKPOINT}")
        if card and card["data"]["fingerprint"] != dataset.fingerprint:
            raise EnsuiteError(
                f"{out}: was trained on other data than {dataset.path}; resume with the same dataset"
            )
    else:
        values, where = read_recipe(recipe)
        if source is not None:
            values = merge(start_values(model, source, values), values)
    cls, config = resolve(model, values, seed, where)
    first, source = _plan_start(cls, config, out, source, card)
    if first is not None and first.codes is not None and makes_codes(config, cls.reads):  # both know the same
        first = dataclasses.replace(first, codes=dataclasses.replace(first.codes, table=str(out / CODES)))
    if first is not None and not isinstance(progress, str):
        progress = progress and f"stage 2 of 2 ({model}): "
    parse_metric(config.training.metric)
    audit(dataset)
    check_preferences(config, dataset)
    AcceleratorState._reset_state()  # a second training in this process may have another precision
    many_on_cpu = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()
    accelerator = Accelerator(
        cpu=many_on_cpu,  # without it Accelerate would leave each process on a CPU alone
        mixed_precision="bf16" if config.training.precision == "bf16" else "no",
        log_with=list(trackers) or None,
        project_dir=str(out),
    )
    torch.backends.cuda.matmul.allow_tf32 = config.training.precision == "tf32"
    main = accelerator.is_main_process
    display = Display(bool(progress) and main, progress if isinstance(progress, str) else "")
    materials, claimed = Materials(), resume
    if not begun:  # else the checkpoint holds what was taken of them
        if makes_codes(config, cls.reads):
            check_codes(config, dataset)
            if main and not claimed:
                claim(out, overwrite)
                write_text(out / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
            claimed = True
            if main:
                make_codes(config, dataset, out / CODES, accelerator.device, display)
            accelerator.wait_for_everyone()
        materials = gather_materials(config, cls.reads, dataset, out, accelerator.device, display)
        config = dataclasses.replace(config, model=cls.sized_for(config.model, materials))
    torch.manual_seed(config.seed)
    built = _build(cls, config, dataset)
    if not begun:
        built.take(materials)
    if built.needs_times() and dataset.time is None:
        raise EnsuiteError(
            f"{dataset.path}: has no event times, which {model} reads; prepare it with a time column, or see "
            f"`ensuite models {model}` for the setting that turns them off"
        )
    known = gather_preferences(config, dataset, built.to(accelerator.device), display)
    trainer = Trainer(built, cls.last_stage(config), dataset, out, accelerator, display, on_validation, known)
    origin: dict[str, Any] = {"run": FIRST_STAGE}
    if source is not None and first is None and not begun:
        origin = start(built, config, source, dataset)
    if main and not card:
        if not claimed:  # only now: whatever was refused above has left the run before it untouched
            claim(out, overwrite)
        write_text(out / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
        shutil.copyfile(dataset.path / "items.parquet", out / "items.parquet")
        card = build_card(built, config, dataset) | ({} if source is None else {"start": origin})
        write_text(out / "card.json", json.dumps(card, indent=2, default=str) + "\n")
    elif main:
        write_text(out / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
        if not begun:
            (out / "metrics.jsonl").unlink(missing_ok=True)  # of steps that no checkpoint holds
    if first is not None and not begun:
        accelerator.wait_for_everyone()
        run = _first_stage(first, dataset, out / FIRST_STAGE, resume, trackers, bool(progress))
        origin = start(built, config, run.path, dataset) | {
            "run": FIRST_STAGE,
            "train_seconds": run.card["train_seconds"],
        }
        if main:
            card = read_card(out) | {"start": origin}
            write_text(out / "card.json", json.dumps(card, indent=2, default=str) + "\n")
    if not begun:
        built.take(materials)  # again: weights that training starts from bring their own run's
    if trackers:
        accelerator.init_trackers("ensuite", config={"run": str(out)})
    accelerator.wait_for_everyone()
    with trainer.display:
        if isinstance(built, FittedModel):
            trainer.fit()
        else:
            trainer.train(begun)
    if trackers:
        accelerator.end_training()
    accelerator.wait_for_everyone()
    return load_run(out)


def _plan_start(
    cls: type[Model], config: RunConfig, out: Path, source: Path | None, card: Mapping[str, Any]
) -> tuple[RunConfig | None, Path | None]:
    """Return the first stage, if there is one, and the run from whose weights training starts, if any.

    ``source`` was asked for; ``card`` is that of a run to be resumed, which says how it began.
    """
    began = card.get("start", {}).get("run", FIRST_STAGE)
    source = source if began == FIRST_STAGE else Path(began)
    first = cls.first_stage(config) if source is None else None
    return first, source if first is None else out / FIRST_STAGE


def _first_stage(
    config: RunConfig, dataset: Dataset, out: Path, resume: bool, trackers: Sequence[str], shown: bool
) -> Run:
    """Train the first stage, or what is left of it."""
    if resume and (out / "card.json").exists():
        ended = read_card(out).get("training", {}).get("ended", "stopped by SIG")
        if not ended.startswith("stopped by SIG"):
            return load_run(out)
    begun = resume and (out / checkpoint.NAME).exists()
    return train(
        config.name,
        dataset,
        out,
        recipe=None if begun else config.to_dict(),
        resume=begun,
        overwrite=resume,
        trackers=trackers,
        progress=shown and f"stage 1 of 2 ({config.name}): ",
    )


def _resumed(saved: Mapping[str, Any], asked: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the ``saved`` settings of a run with those of ``asked`` that say when to stop."""
    before, after = saved.get("training", {}), merge(saved, asked).get("training", {})
    moved = {key: after[key] for key in STOPPING if key in after and after[key] != before.get(key)}
    if merge(merge(saved, asked), {"training": {key: before[key] for key in moved}}) != saved:
        raise EnsuiteError(
            f"{where}: a run goes on with the settings it began with, but for {', '.join(STOPPING)} of "
            "training; leave the others out, or train anew in another --out"
        )
    if "epochs" in moved and before["schedule"] != "constant":
        raise EnsuiteError(
            f"{where}: the learning rate falls to 0 at epoch {before['epochs']} (schedule "
            f"{before['schedule']}), so training.epochs cannot become {moved['epochs']}; train anew in "
            "another --out"
        )
    return merge(saved, {"training": moved})


def _build(cls: type[Model], config: RunConfig, dataset: Dataset) -> Model:
    if issubclass(cls, FittedModel):
        return cls(config.model, dataset.n_items)
    events = training_view(dataset, config)
    counts = np.bincount(events.item_idx[events.rows()], minlength=dataset.n_items + 1)
    objective = build_objective(config.objective, dataset.n_items, torch.from_numpy(counts))
    return cls(config.model, dataset.n_items, objective)  # type: ignore[call-arg]
