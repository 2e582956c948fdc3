"""The one training loop: every system that learns by gradient learns here, in one process or many.

An epoch's batches and a step's random numbers are pure functions of (seed, epoch, step), so that a checkpoint
needs no state of a random generator and a resumed run on CPU ends with the very weights of an uninterrupted
one.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from ensuite.data.batches import Batch
from ensuite.data.dataset import Cases, Dataset
from ensuite.data.leakage import audit
from ensuite.data.samples import Samples
from ensuite.errors import EnsuiteError
from ensuite.evaluate.metrics import compute_metrics, parse_metric
from ensuite.evaluate.ranks import compute_ranks, gather
from ensuite.models.base import FittedModel, Model
from ensuite.objectives import build_objective
from ensuite.train.config import RunConfig, read_recipe, resolve
from ensuite.train.optimizer import build_optimizer, learning_rate, load_optimizer, optimizer_tensors
from ensuite.train.progress import Display
from ensuite.train.run import (
    Run,
    build_card,
    load_run,
    load_weights,
    read_card,
    read_tensors,
    write_tensors,
    write_text,
)
from ensuite.train.signals import StopFlag

VALIDATION_METRICS = ("ndcg@10", "hr@10", "mrr")
NO_CHECKPOINT = "no checkpoint to resume from; start without --resume"


class StopTraining(Exception):
    """Raised by an `on_validation` callback to end the training; the best weights are kept."""


class Interrupted(EnsuiteError):
    """A signal ended the training; a checkpoint was written, and it can be resumed."""


@dataclass
class State:
    """The counters of a run; with the weights and the optimiser's state, all that a checkpoint holds."""

    epoch: int = 0
    """The epoch in progress, from 0."""
    step: int = 0
    """Steps done in this epoch."""
    total_steps: int = 0
    best: float = -math.inf
    best_epoch: int = 0
    bad: int = 0
    """Validations since the best."""
    seconds: float = 0.0
    """Seconds of training and validation in passing, over all sessions."""
    loss_sum: float = 0.0
    """Sum of this epoch's losses so far."""
    spent: dict[str, float] = field(default_factory=dict)
    """This epoch's seconds by activity: batch, forward, backward, optimizer."""


def train(
    model: str,
    data: Dataset | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    recipe: Mapping[str, Any] | str | Path | None = None,
    seed: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    trackers: Sequence[str] = (),
    on_validation: Callable[[int, dict[str, float]], None] | None = None,
    progress: bool = False,
) -> Run:
    """Train a registered system on a dataset; return the run with its best weights.

    Parameters
    ----------
    model
        Registered name, see ``ensuite models``.
    data
        A dataset or its folder. The leakage audit runs first and stops the training when it finds anything.
    out
        The run folder to write.
    recipe
        Sections `model`, `objective`, `samples`, `training`, as a mapping or a YAML file; what it leaves out
        is default.
    resume
        Continue an interrupted run in ``out`` with the configuration saved there.
    overwrite
        Replace a run in ``out``.
    trackers
        Names of Accelerate's trackers ("tensorboard", "mlflow", "wandb"), beside metrics.jsonl.
    on_validation
        Called with (epoch, metrics) after each validation; may raise `StopTraining`, or another exception to
        abort.
    progress
        Show a progress bar and a line for each validation on the terminal.

    Raises
    ------
    EnsuiteError
        For a mistake in the configuration, a leak in the data, a loss that is not finite, or a full disk.
    """
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    out = Path(out)
    if resume:
        values, where = read_recipe(out / "config.yaml" if (out / "config.yaml").exists() else None)
        if not (out / "last.safetensors").exists():
            raise EnsuiteError(f"{out}: {NO_CHECKPOINT}")
        if read_card(out)["data"]["fingerprint"] != dataset.fingerprint:
            raise EnsuiteError(
                f"{out}: was trained on other data than {dataset.path}; resume with the same dataset"
            )
    else:
        values, where = read_recipe(recipe)
    cls, config = resolve(model, values, seed, where)
    parse_metric(config.training.metric)
    audit(dataset)
    AcceleratorState._reset_state()  # a second training in this process may have another precision
    accelerator = Accelerator(
        mixed_precision="bf16" if config.training.precision == "bf16" else "no",
        log_with=list(trackers) or None,
        project_dir=str(out),
    )
    main = accelerator.is_main_process
    if main and not resume:
        _claim(out, overwrite)
    accelerator.wait_for_everyone()
    torch.manual_seed(config.seed)
    built = _build(cls, config, dataset)
    if built.needs_times() and dataset.time is None:
        raise EnsuiteError(
            f"{dataset.path}: has no event times, which {model} reads; prepare it with a time column, or see "
            f"`ensuite models {model}` for the setting that turns them off"
        )
    if main and not resume:
        write_text(out / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
        shutil.copyfile(dataset.path / "items.parquet", out / "items.parquet")
        write_text(
            out / "card.json", json.dumps(build_card(built, config, dataset), indent=2, default=str) + "\n"
        )
    if trackers:
        accelerator.init_trackers("ensuite", config={"run": str(out)})
    trainer = _Trainer(
        built, config, dataset, out, accelerator, Display(progress and main, out.name), on_validation
    )
    with trainer.display:
        if isinstance(built, FittedModel):
            trainer.fit()
        else:
            trainer.train(resume)
    if trackers:
        accelerator.end_training()
    accelerator.wait_for_everyone()
    return load_run(out)


def _claim(out: Path, overwrite: bool) -> None:
    if out.exists() and any(out.iterdir()):
        ours = (out / "card.json").exists() and (out / "config.yaml").exists()
        if not (overwrite and ours):
            remedy = (
                "--resume to go on, --overwrite to start again, or another --out"
                if ours
                else "choose another --out"
            )
            raise EnsuiteError(f"{out}: exists already; {remedy}")
        shutil.rmtree(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnsuiteError(f"{out}: cannot be created: {error.strerror}") from None


def _build(cls: type[Model], config: RunConfig, dataset: Dataset) -> Model:
    if issubclass(cls, FittedModel):
        return cls(config.model, dataset.n_items)
    events = dataset.events("train")
    counts = np.bincount(events.item_idx[events.rows()], minlength=dataset.n_items + 1)
    objective = build_objective(config.objective, dataset.n_items, torch.from_numpy(counts))
    return cls(config.model, dataset.n_items, objective)  # type: ignore[call-arg]


class _Step(nn.Module):
    """The loss as a module's forward, so that distributed wrappers see it."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        if not bool((batch.targets > 0).any()):  # another process holds this batch's targets
            return sum(p.sum() * 0.0 for p in self.model.parameters())  # type: ignore[return-value]
        return self.model.loss(batch)  # type: ignore[operator]


class _Trainer:
    def __init__(
        self,
        model: Model,
        config: RunConfig,
        dataset: Dataset,
        out: Path,
        accelerator: Accelerator,
        display: Display,
        on_validation: Callable[[int, dict[str, float]], None] | None,
    ):
        self.model, self.config, self.dataset, self.out = model, config, dataset, out
        self.accelerator, self.display, self.on_validation = accelerator, display, on_validation
        self.part = (accelerator.process_index, accelerator.num_processes)
        self.state = State()
        self.cases = _validation_cases(dataset, config)

    # -- models that are counted
    # ---------------------------------------------------------------------------------------

    def fit(self) -> None:
        began = time.perf_counter()
        with self.display.busy("counting"):
            self.model.fit(self.dataset.events("train"))  # type: ignore[operator]
        self.state.seconds = time.perf_counter() - began
        self.model.eval()
        if self.accelerator.is_main_process:
            write_tensors(self.out / "model.safetensors", self.model.state_dict(), {})
        if len(self.cases):
            self.state.best = self._validate().get(self.config.training.metric, -math.inf)
        self._finish("fitted")

    # -- models that learn
    # ---------------------------------------------------------------------------------------------

    def train(self, resume: bool) -> None:
        training, accelerator = self.config.training, self.accelerator
        self.samples = Samples(
            self.dataset.events("train"),
            self.config.samples,
            max_length=self.model.max_length,
            batch_size=training.batch_size,
            seed=self.config.seed,
        )
        self.steps = -(-len(self.samples) // training.accumulate)
        self.optimizer = build_optimizer(self.model, training)
        if resume:
            self._load_checkpoint()
        if training.compile:
            self.model.compile(dynamic=True)
        self.module, self.optimizer = accelerator.prepare(_Step(self.model), self.optimizer)
        stop = "all epochs done"
        with StopFlag() as self.flag:
            try:
                while self.state.epoch < training.epochs:
                    stop = self._epoch() or stop
                    if stop != "all epochs done":
                        break
            except StopTraining as why:
                stop = str(why) or "stopped by the callback"
        self._finish(stop)

    def _epoch(self) -> str | None:
        """Train and validate one epoch; return why training ends, or None."""
        state, training = self.state, self.config.training
        self.model.train()
        session = time.perf_counter() - state.seconds
        saved = time.perf_counter()
        self.display.start_epoch(state.epoch, training.epochs, self.steps, state.step)
        over = False
        while state.step < self.steps and not over:
            loss = self._step()
            state.loss_sum += loss
            state.step += 1
            state.total_steps += 1
            state.seconds = time.perf_counter() - session
            self.display.advance(loss)
            over = bool(training.max_minutes) and state.seconds > 60 * training.max_minutes
            if self.flag.is_set(self.accelerator):
                self._save_checkpoint()
                raise Interrupted(
                    f"stopped by {self.flag.name} in epoch {state.epoch + 1}; everything is saved: "
                    "go on with --resume"
                )
            if time.perf_counter() - saved > 60 * training.checkpoint_minutes:
                self._save_checkpoint()
                saved = time.perf_counter()
        self._log_epoch()
        state.epoch, state.step, state.loss_sum, state.spent = state.epoch + 1, 0, 0.0, {}
        stop = "time is up" if over else None
        last = stop is not None or state.epoch == training.epochs
        if last or state.epoch % training.validate_every == 0:
            metrics = self._validate()
            state.seconds = time.perf_counter() - session
            stop = self._judge(metrics) or stop
            if self.on_validation is not None:
                self._save_checkpoint()
                self.on_validation(state.epoch, metrics)
        self._save_checkpoint()
        return stop

    def _step(self) -> float:
        """Do one optimiser step over `accumulate` batches; return its mean loss."""
        state, training = self.state, self.config.training
        seed = (self.config.seed * 1_000_003 + state.total_steps) * self.part[1] + self.part[0]
        torch.manual_seed(seed % 2**62)
        first = state.step * training.accumulate
        numbers = range(first, min(first + training.accumulate, len(self.samples)))
        began = time.perf_counter()
        batches = [self.samples.batch(state.epoch, i, self.part).to(self.accelerator.device) for i in numbers]
        asked = torch.tensor([float((b.targets > 0).sum()) for b in batches], device=self.accelerator.device)
        total = float(self.accelerator.reduce(asked, "sum").sum()) if self.part[1] > 1 else float(asked.sum())
        began = self._spend("batch", began)
        value = 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(training, state.total_steps, self.steps * training.epochs)
        self.optimizer.zero_grad(set_to_none=True)
        for i, batch in enumerate(batches):
            share = (
                float(asked[i]) * self.part[1] / total
            )  # so that the sum is the mean over all targets of the step
            waits = i < len(batches) - 1
            with (
                self.accelerator.no_sync(self.module) if waits else nullcontext(),
                self.accelerator.autocast(),
            ):
                loss = self.module(batch) * share
                began = self._spend("forward", began)
                value += float(loss.detach())
                if not math.isfinite(value):
                    raise EnsuiteError(self._not_finite(batch))
                self.accelerator.backward(loss)
                began = self._spend("backward", began)
        if training.clip_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), training.clip_norm)
        self.optimizer.step()
        self._spend("optimizer", began)
        if self.part[1] > 1:
            value = float(
                self.accelerator.reduce(torch.tensor(value, device=self.accelerator.device), "mean")
            )
        return value

    def _spend(self, activity: str, began: float) -> float:
        now = time.perf_counter()
        self.state.spent[activity] = self.state.spent.get(activity, 0.0) + now - began
        return now

    def _not_finite(self, batch: Batch) -> str:
        users = self.dataset.users["user_id"].gather(batch.user[:3].cpu().numpy()).to_list()
        best = (
            "the best weights so far stay in model.safetensors"
            if self.state.best_epoch
            else "no weights were saved yet"
        )
        return (
            f"the loss is not a finite number in epoch {self.state.epoch + 1}, step {self.state.step + 1} "
            f"(first users of the batch: {', '.join(map(str, users))}); {best}. Try a smaller --training.lr, "
            "--training.clip-norm 1, or --training.precision fp32"
        )

    # -- validation
    # ----------------------------------------------------------------------------------------------------

    def _validate(self) -> dict[str, float]:
        if not len(self.cases):
            raise EnsuiteError(
                f"{self.dataset.path}: nobody to validate on: "
                "all users are shorter than the split needs, or all are cold"
            )
        self.model.eval()
        began = time.perf_counter()
        ranks = compute_ranks(
            self.model, self.dataset.events("all"), self.cases, device=self.accelerator.device, part=self.part
        )
        ranks = gather(ranks) if self.part[1] > 1 else ranks
        names = dict.fromkeys((self.config.training.metric, *VALIDATION_METRICS))
        metrics = compute_metrics(ranks, tuple(names))
        self._log(
            {
                "kind": "valid",
                "epoch": self.state.epoch,
                "step": self.state.total_steps,
                "metrics": metrics,
                "seconds": round(time.perf_counter() - began, 3),
                "elapsed": round(self.state.seconds, 3),
            }
        )
        return metrics

    def _judge(self, metrics: dict[str, float]) -> str | None:
        """Keep the weights when they are the best so far; say whether patience is spent."""
        state, training = self.state, self.config.training
        value = metrics[training.metric]
        if value > state.best:
            state.best, state.best_epoch, state.bad = value, state.epoch, 0
            if self.accelerator.is_main_process:
                write_tensors(self.out / "model.safetensors", self.model.state_dict(), {"epoch": state.epoch})
        else:
            state.bad += 1
        self.display.validated(state.epoch, metrics, training.metric, best=state.bad == 0)
        if training.patience and state.bad >= training.patience:
            return f"no better {training.metric} in {state.bad} validations"
        return None

    # -- what is written
    # -----------------------------------------------------------------------------------------------

    def _log_epoch(self) -> None:
        state = self.state
        self._log(
            {
                "kind": "train",
                "epoch": state.epoch + 1,
                "step": state.total_steps,
                "loss": state.loss_sum / max(1, state.step),
                "seconds": {name: round(value, 3) for name, value in state.spent.items()},
                "elapsed": round(state.seconds, 3),
                "sequences": self.samples.n_samples,
            }
        )

    def _log(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with (self.out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        values = line.get("metrics") or {"loss": line["loss"]}
        self.accelerator.log(
            {f"{line['kind']}/{name}": value for name, value in values.items()}, step=line["step"]
        )

    def _save_checkpoint(self) -> None:
        if not self.accelerator.is_main_process:
            return
        weights = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state = asdict(self.state) | {"best": self.state.best if math.isfinite(self.state.best) else None}
        write_tensors(self.out / "last.safetensors", weights | optimizer_tensors(self.optimizer), state)

    def _load_checkpoint(self) -> None:
        path = self.out / "last.safetensors"
        tensors, state = read_tensors(path, NO_CHECKPOINT)
        weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        load_weights(self.model, weights, path)
        load_optimizer(self.optimizer, tensors)
        self.state = State(**(state | {"best": -math.inf if state["best"] is None else state["best"]}))
        log = self.out / "metrics.jsonl"
        if (
            log.exists() and self.accelerator.is_main_process
        ):  # lines after the checkpoint will be written again
            lines = [
                line
                for line in log.read_text().splitlines()
                if json.loads(line)["step"] <= self.state.total_steps
            ]
            write_text(log, "".join(line + "\n" for line in lines))

    def _finish(self, why: str) -> None:
        state = self.state
        if self.accelerator.is_main_process:
            if not (self.out / "model.safetensors").exists():
                write_tensors(self.out / "model.safetensors", self.model.state_dict(), {"epoch": state.epoch})
            card = read_card(self.out)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
                1 if sys.platform == "darwin" else 1024
            )
            card["training"] = {
                "ended": why,
                "epochs": state.epoch,
                "best_epoch": state.best_epoch,
                "steps": state.total_steps,
                f"best_{self.config.training.metric}": state.best if math.isfinite(state.best) else None,
            }
            card["train_seconds"] = round(state.seconds, 3)
            card["peak_memory_bytes"] = memory
            card["processes"] = self.part[1]
            write_text(self.out / "card.json", json.dumps(card, indent=2, default=str) + "\n")
        self.display.finished(why, state.epoch, state.best_epoch, state.seconds)


def _validation_cases(dataset: Dataset, config: RunConfig) -> Cases:
    cases = dataset.cases("valid")
    n = config.training.validation_users
    if 0 < n < len(cases):
        cases = cases.take(np.sort(np.random.default_rng(config.seed).choice(len(cases), n, replace=False)))
    return cases
