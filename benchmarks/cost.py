"""What a system costs beside SASRec: seconds per epoch and per scoring of all test users, in one run.

    python benchmarks/cost.py --data data/beauty --recipes recipes/{sasrec,sigma}/beauty.yaml

The first recipe is the yardstick. Steps of all systems are timed in turn, round after round, so that a slow
minute of the machine falls on all; an epoch is the median step times the number of steps, and what is done
once an epoch (clustering) is added. A recipe's system is its folder's name.
"""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from ensuite.data.dataset import Dataset
from ensuite.data.samples import Samples
from ensuite.evaluate.ranks import compute_ranks
from ensuite.objectives import build_objective
from ensuite.training.config import read_recipe, resolve
from ensuite.training.optimizer import build_optimizer


@dataclass
class Options:
    """What is timed, and how long."""

    data: Path
    """A prepared dataset."""
    recipes: tuple[Path, ...]
    """Recipes, the yardstick first."""
    rounds: int = 3
    """Times that every system gets its turn."""
    steps: int = 8
    """Steps in a turn; the first of each turn is not counted."""
    threads: int = 2
    """Threads of each system."""
    out: Path = Path(__file__).parents[1] / "results" / "cost.csv"
    """The table."""


class Contestant:
    """One recipe's model with its samples and optimiser."""

    def __init__(self, recipe: Path, dataset: Dataset):
        self.name = recipe.parent.name + ("" if recipe.stem == dataset.path.name else f" {recipe.stem}")
        values, where = read_recipe(recipe)
        cls, config = resolve(recipe.parent.name, values, where=where)
        torch.manual_seed(1)
        objective = build_objective(config.objective, dataset.n_items)
        self.model: Any = cls(config.model, dataset.n_items, objective)  # type: ignore[call-arg]
        self.events = dataset.events("train")
        self.model.fit(self.events)
        training = config.training
        self.samples = Samples(
            self.events,
            config.samples,
            max_length=self.model.max_length,
            batch_size=training.batch_size,
            seed=1,
        )
        self.bf16 = training.precision == "bf16"
        self.optimizer = build_optimizer(self.model, training)
        began = time.perf_counter()
        self.model.train().start_epoch(0, self.samples.everything())
        self.between = time.perf_counter() - began
        self.spent: list[float] = []
        self.scored: list[float] = []
        self.at = 0

    def train(self, steps: int) -> None:
        """Time ``steps`` optimiser steps; the first warms the caches."""
        self.model.train()
        for number in range(steps):
            began = time.perf_counter()
            batch = self.samples.batch(0, self.at % len(self.samples))
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                loss = self.model.loss(batch)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.at += 1
            if number:
                self.spent.append(time.perf_counter() - began)

    def score(self, dataset: Dataset) -> None:
        """Time the ranking of all test cases."""
        self.model.eval()
        began = time.perf_counter()
        compute_ranks(self.model, dataset.events("all"), dataset.cases("test"))
        self.scored.append(time.perf_counter() - began)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    dataset = Dataset.open(options.data)
    contestants = [Contestant(recipe, dataset) for recipe in options.recipes]
    for _ in range(options.rounds):
        for contestant in contestants:
            contestant.train(options.steps)
            contestant.score(dataset)
    rows: list[dict[str, Any]] = []
    for c in contestants:
        epoch, score = median(c.spent) * len(c.samples) + c.between, min(c.scored)
        rows.append(
            {
                "system": c.name,
                "data": dataset.path.name,
                "threads": options.threads,
                "seconds per epoch": round(epoch, 2),
                "of that between epochs": round(c.between, 2),
                "seconds scoring": round(score, 2),
                "parameters": sum(p.numel() for p in c.model.parameters()),
            }
        )
    for row in rows:
        for column in ("seconds per epoch", "seconds scoring"):
            row[f"{column} / {rows[0]['system']}"] = round(row[column] / rows[0][column], 2)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
