"""The run folder: all that is needed to evaluate, serve and resume; read without the training data and
without pickle.

RUN/
  config.yaml          resolved and complete
  card.json            data + protocol + environment
  model.safetensors    the best weights on validation
  metrics.jsonl        one line per epoch ("train") and per validation ("valid")
  items.parquet        the item table of the dataset
  codes/               the codes of its items, where the run made them itself
  last.safetensors     the newest checkpoint: weights, optimiser state, counters
  search.safetensors   how its items are searched, where `ensuite index` has built it
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ensuite.config import read_yaml
from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.models.base import Model
from ensuite.training.config import RunConfig, resolve

FORMAT_VERSION = 1
CODES = "codes"
"""The folder, inside a run, of the table of codes that was made for it."""


@dataclass(frozen=True)
class Run:
    """A trained run: the model with its best weights, its configuration and its card."""

    path: Path
    model: Model
    config: RunConfig
    card: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @cached_property
    def items(self) -> pl.DataFrame:
        """The item table; row i is item_idx i + 1."""
        path = self.path / "items.parquet"
        try:
            return pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise EnsuiteError(f"{path}: damaged, or not there: {error}") from None

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def dataset(self, path: str | os.PathLike[str] | None = None) -> Dataset:
        """Open the dataset of this run, or the one at ``path`` when it is the same data elsewhere.

        Raises
        ------
        EnsuiteError
            When the folder is not there, or holds other data than the run was trained on.
        """
        dataset = Dataset.open(path or self.card["data"]["path"])
        if dataset.fingerprint != self.card["data"]["fingerprint"]:
            raise EnsuiteError(
                f"{dataset.path}: not the data of {self.path}: its fingerprint is {dataset.fingerprint}, the "
                f"run was trained on {self.card['data']['fingerprint']}; give the right folder with --data, "
                "or train anew"
            )
        return dataset


def load_run(path: str | os.PathLike[str]) -> Run:
    """Load a finished (or stopped) run with its best weights, in evaluation mode.

    Raises
    ------
    EnsuiteError
        When the folder is no run, has no weights yet, is damaged, or is of another format version.
    """
    path = Path(path)
    card = read_card(path)
    config_path = path / "config.yaml"
    values = read_yaml(config_path)
    try:
        name = values["model"]["name"]
    except (KeyError, TypeError):
        raise EnsuiteError(f"{config_path}: no model is named there; the file is damaged") from None
    cls, config = resolve(name, values, where=str(config_path))
    model = cls(config.model, card["n_items"])
    tensors, _ = read_tensors(
        path / "model.safetensors", missing="no weights yet: training has not reached a validation"
    )
    load_weights(model, tensors, path / "model.safetensors")
    return Run(path, model.eval(), config, card)


def read_card(path: Path) -> dict[str, Any]:
    """Read and check a run's card.json."""
    if not path.is_dir():
        raise EnsuiteError(
            f"{path}: no such run; train one with `ensuite train MODEL --data DATA --out {path}`"
        )
    try:
        card = json.loads((path / "card.json").read_text())
        version, _ = card["format_version"], card["n_items"]
    except FileNotFoundError:
        raise EnsuiteError(f"{path}: no run: card.json is missing") from None
    except (ValueError, KeyError, TypeError):
        raise EnsuiteError(f"{path / 'card.json'}: damaged, or not a run's card") from None
    if version != FORMAT_VERSION:
        raise EnsuiteError(
            f"{path}: run format {version}, this version of ensuite reads {FORMAT_VERSION}; train it again"
        )
    return card


def load_weights(model: Model, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Load ``tensors`` into ``model``; what does not fit is named, what only a training reads may be
    missing."""
    fresh = {name: buffer for name, buffer in model.named_buffers() if name in model.training_only}
    try:
        model.load_state_dict(fresh | dict(tensors))
    except RuntimeError as error:
        raise EnsuiteError(f"{where}: does not fit the model of config.yaml: {error}") from None


def finished_weights(model: Model) -> dict[str, Tensor]:
    """Return the weights and buffers of ``model`` but those that only its training reads."""
    return {name: value for name, value in model.state_dict().items() if name not in model.training_only}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file aside and rename it: a killed write leaves the file before it untouched."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        text = {"format_version": str(FORMAT_VERSION), "ensuite": json.dumps(dict(metadata))}
        save_file(
            {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()},
            aside,
            metadata=text,
        )
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:
        raise EnsuiteError(f"{path}: cannot be written ({error}); the file before it is untouched") from None
    finally:
        aside.unlink(missing_ok=True)


def read_tensors(path: Path, missing: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `write_tensors`: tensors and metadata; ``missing`` explains a file that is not there."""
    if not path.exists():
        raise EnsuiteError(f"{path}: {missing}")
    try:
        with safe_open(path, framework="pt") as file:
            text = file.metadata() or {}
            version = text.get("format_version")
            if version != str(FORMAT_VERSION):
                raise EnsuiteError(
                    f"{path}: checkpoint format {version}, this version of ensuite reads {FORMAT_VERSION}"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(text["ensuite"])  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise EnsuiteError(f"{path}: damaged, or not a checkpoint of ensuite: {error}") from None


def write_text(path: Path, text: str) -> None:
    """Write a small file aside and rename it."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        aside.write_text(text)
        os.replace(aside, path)
    except OSError as error:
        raise EnsuiteError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        aside.unlink(missing_ok=True)


def claim(out: Path, overwrite: bool) -> None:
    """Make the folder ``out`` for a run, or empty it; what is there is replaced only if it is a run, or the
    beginning of one, and may be overwritten."""
    if out.exists() and any(out.iterdir()):
        ours = (out / "config.yaml").exists() and (
            (out / "card.json").exists() or {path.name for path in out.iterdir()} <= {"config.yaml", CODES}
        )
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


def build_card(model: Model, config: RunConfig, dataset: Dataset) -> dict[str, Any]:
    """Say what the run's numbers will mean."""
    from ensuite import __version__

    data = dataset.card
    return {
        "format_version": FORMAT_VERSION,
        "model": config.name,
        "state": model.state,
        "n_items": dataset.n_items,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": config.seed,
        "data": {
            "path": str(dataset.path),
            "name": data.get("name", dataset.path.name),
            "fingerprint": dataset.fingerprint,
            **{key: data.get(key) for key in ("source", "split", "order", "ties", "filters", "time_unit")},
        },
        "protocol": {
            "candidates": "all items of the dataset",
            "exclude": dataset.exclude,
            "ranks": "1 + higher + half of the tied",
            "selection": f"best {config.training.metric} on validation",
            "request_time": model.reads_request_time(),
        },
        "environment": {
            "ensuite": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
        },
    }
