"""Epochs, steps, validation in passing, early stopping: what happens between the first and the last step of a
training."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ensuite.data.batches import Batch
from ensuite.data.dataset import Dataset
from ensuite.data.samples import Samples
from ensuite.errors import EnsuiteError
from ensuite.evaluate.metrics import compute_metrics, parse_metric
from ensuite.evaluate.ranks import compute_ranks, gather
from ensuite.evaluate.repeats import PARTED, mark_repeats
from ensuite.models.base import Model
from ensuite.training.checkpoint import State, cut_log, load_checkpoint, save_checkpoint
from ensuite.training.config import RunConfig
from ensuite.training.heartbeat import Heartbeat
from ensuite.training.optimizer import build_optimizer, learning_rate
from ensuite.training.preferences import Known
from ensuite.training.progress import Display
from ensuite.training.run import finished_weights, read_card, write_tensors, write_text
from ensuite.training.signals import StopFlag
from ensuite.training.users import training_view, validation_cases

VALIDATION_METRICS = ("ndcg@10", "hr@10", "mrr")


class StopTraining(Exception):
    """Raised by an `on_validation` callback to end the training; the best weights are kept."""


class Interrupted(EnsuiteError):
    """A signal ended the training; a checkpoint was written, and it can be resumed."""


class _Step(nn.Module):
    """The loss as a module's forward, so that distributed wrappers see it."""

    def __init__(self, model: Model, alone: bool):
        super().__init__()
        self.model, self.alone = model, alone

    def forward(self, batch: Batch) -> Tensor:
        # Another process may hold all targets of this batch; alone, a GPU is not asked and waited for.
        if not self.alone and not bool((batch.targets > 0).any()):
            return sum(p.sum() * 0.0 for p in self.model.parameters())  # type: ignore[return-value]
        return self.model.loss(batch)  # type: ignore[operator]


class Trainer:
    """Trains one model; all it keeps between steps is in `state`, the weights and the optimiser."""

    def __init__(
        self,
        model: Model,
        config: RunConfig,
        dataset: Dataset,
        out: Path,
        accelerator: Accelerator,
        display: Display,
        on_validation: Callable[[int, dict[str, float]], None] | None,
        known: Known,
    ):
        self.model, self.config, self.dataset, self.out = model, config, dataset, out
        self.accelerator, self.display, self.on_validation = accelerator, display, on_validation
        self.known = known
        self.part = (accelerator.process_index, accelerator.num_processes)
        self.heartbeat = Heartbeat(out, accelerator.is_main_process)
        self.state = State()
        self.cases = validation_cases(dataset, config)
        if not model.samples:
            return  # it is counted: there are no batches, and without validation it is fitted all the same
        if not len(self.cases):
            raise EnsuiteError(
                f"{dataset.path}: nobody to validate on: "
                "all users are shorter than the split needs, or all are cold"
            )
        events = training_view(dataset, config)
        self.samples = Samples(
            known.beside(events),
            config.samples,
            max_length=model.max_length,
            batch_size=config.training.batch_size,
            seed=config.seed,
            extra=known.extra,
        )
        model.fit(events)  # what it refuses, it refuses before a run folder is touched

    # -- models that are counted --

    def fit(self) -> None:
        began = time.perf_counter()
        with self.heartbeat, self.display.busy("counting"):
            self.model.fit(training_view(self.dataset, self.config))
        self.model.to(self.accelerator.device)  # what was counted lies on the CPU
        self.state.seconds = time.perf_counter() - began
        self.model.eval()
        if self.accelerator.is_main_process:
            self._save_weights({})
        if len(self.cases):
            self.state.best = self._validate().get(self.config.training.metric, -math.inf)
        self._finish("fitted")

    # -- models that learn --

    def train(self, resume: bool) -> None:
        training, accelerator = self.config.training, self.accelerator
        self.steps = -(-len(self.samples) // training.accumulate)
        self.optimizer = build_optimizer(self.model, training)
        if resume:
            self.state = load_checkpoint(self.out, self.model, self.optimizer)
            if self.accelerator.is_main_process:
                cut_log(self.out / "metrics.jsonl", self.state.total_steps)
        if training.compile:
            self.model.compile(dynamic=True)
        step = _Step(self.model, alone=self.part[1] == 1)
        self.module, self.optimizer = accelerator.prepare(step, self.optimizer)
        stop = self._out_of_patience()
        with StopFlag() as self.flag, self.heartbeat:
            try:
                while stop is None and self.state.epoch < training.epochs:
                    stop = self._epoch()
            except StopTraining as why:
                stop = str(why) or "stopped by the callback"
        self._finish(stop or "all epochs done")

    def _epoch(self) -> str | None:
        """Train and validate one epoch; return why training ends, or None."""
        state, training = self.state, self.config.training
        self.model.train()
        session = time.perf_counter() - state.seconds
        saved = time.perf_counter()
        if state.step == 0:
            self._start_epoch()
        for watched in (self.display, self.heartbeat):
            watched.start_epoch(state.epoch, training.epochs, self.steps, state.step)
        over = False
        while state.step < self.steps and not over:
            loss = self._step()
            state.loss_sum += loss
            state.step += 1
            state.total_steps += 1
            state.seconds = time.perf_counter() - session
            self.display.advance(loss)
            self.heartbeat.advance(self.display.loss)
            over = bool(training.max_minutes) and state.seconds > 60 * training.max_minutes
            if self.flag.is_set(self.accelerator):
                self._save_checkpoint()
                self._complete_card(f"stopped by {self.flag.name}")
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

    def _start_epoch(self) -> None:
        """Let the model do what it does between epochs; its random numbers depend on (seed, epoch) alone."""
        torch.default_generator.manual_seed((self.config.seed * 1_000_003 + self.state.epoch) % 2**62)
        device = self.accelerator.device
        self.model.start_epoch(self.state.epoch, self.samples.everything(device))

    def _step(self) -> float:
        """Do one optimiser step over `accumulate` batches; return its mean loss."""
        state, training = self.state, self.config.training
        seed = (self.config.seed * 1_000_003 + state.total_steps) * self.part[1] + self.part[0]
        torch.default_generator.manual_seed(seed % 2**62)  # torch.manual_seed also asks every absent device
        if self.accelerator.device.type == "cuda":
            torch.cuda.manual_seed(seed % 2**62)
        first = state.step * training.accumulate
        numbers = range(first, min(first + training.accumulate, len(self.samples)))
        began = time.perf_counter()
        batches = [self.samples.batch(state.epoch, i, self.part).to(self.accelerator.device) for i in numbers]
        shares = self._shares(batches)
        began = self._spend("batch", began)
        value = 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(training, state.total_steps, self.steps * training.epochs)
        self.module.zero_grad()
        began = self._spend("optimizer", began)
        for i, batch in enumerate(batches):
            waits = i < len(batches) - 1
            with (
                self.accelerator.no_sync(self.module) if waits else nullcontext(),
                self.accelerator.autocast(),
            ):
                loss = self.module(batch) * shares[i]
                began = self._spend("forward", began)
                self.accelerator.backward(loss)
                value += float(loss.detach())  # only now: a GPU has its work queued before it is waited for
                if not math.isfinite(value):
                    raise EnsuiteError(self._not_finite(batch))
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

    def _shares(self, batches: list[Batch]) -> list[float]:
        """Return each batch's weight, so that the step's loss is the mean over all its targets."""
        if len(batches) == 1 and self.part[1] == 1:
            return [1.0]
        asked = torch.tensor(
            [float(torch.count_nonzero(b.targets)) for b in batches], device=self.accelerator.device
        )
        total = float(self.accelerator.reduce(asked, "sum").sum()) if self.part[1] > 1 else float(asked.sum())
        return [float(count) * self.part[1] / total for count in asked]

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

    # -- validation --

    def _validate(self) -> dict[str, float]:
        self.model.eval()
        began = time.perf_counter()
        ranks = compute_ranks(
            self.model,
            self.known.beside(self.dataset.events("all")),
            self.cases,
            exclude=self.dataset.exclude,
            device=self.accelerator.device,
            part=self.part,
        )
        ranks = gather(ranks) if self.part[1] > 1 else ranks
        names = dict.fromkeys((self.config.training.metric, *VALIDATION_METRICS))
        if any(parse_metric(name).base in PARTED for name in names):
            ranks = mark_repeats(ranks, self.dataset.events("train"))
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
                self._save_weights({"epoch": state.epoch})
        else:
            state.bad += 1
        self.display.validated(state.epoch, metrics, training.metric, best=state.bad == 0)
        return self._out_of_patience()

    def _out_of_patience(self) -> str | None:
        training, bad = self.config.training, self.state.bad
        if training.patience and bad >= training.patience:
            return f"no better {training.metric} in {bad} validations"
        return None

    # -- what is written --

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
        if self.accelerator.is_main_process:
            save_checkpoint(self.out, self.model, self.optimizer, self.state)

    def _save_weights(self, about: dict[str, Any]) -> None:
        write_tensors(self.out / "model.safetensors", finished_weights(self.model), about)

    def _finish(self, why: str) -> None:
        state = self.state
        if self.accelerator.is_main_process and not (self.out / "model.safetensors").exists():
            self._save_weights({"epoch": state.epoch})
        self._complete_card(why)
        self.display.finished(why, state.epoch, state.best_epoch, state.seconds)

    def _complete_card(self, why: str) -> None:
        """Add to the run's card what only the training knows."""
        if not self.accelerator.is_main_process:
            return
        state, card = self.state, read_card(self.out)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        card["training"] = {
            "ended": why,
            "epochs": state.epoch,
            "best_epoch": state.best_epoch,
            "steps": state.total_steps,
            f"best_{self.config.training.metric}": state.best if math.isfinite(state.best) else None,
        }
        first_stage = card.get("start", {}).get("train_seconds", 0.0)
        card["train_seconds"] = round(first_stage + state.seconds, 3)
        card["peak_memory_bytes"] = memory * (1 if sys.platform == "darwin" else 1024)
        card["processes"] = self.part[1]
        write_text(self.out / "card.json", json.dumps(card, indent=2, default=str) + "\n")
