"""A small trained run, and its graph: made once, since tracing takes seconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

from ensuite.data.dataset import Dataset
from ensuite.serve.export.export import Export, export_onnx
from ensuite.serve.export.graph import trace
from ensuite.training.loop import train
from ensuite.training.run import Run, load_run

RECIPE = {
    "model": {"dim": 16, "max_length": 8, "similarity": "cosine", "dropout": 0.0},
    "objective": {"temperature": 0.1},
    "training": {"epochs": 8, "batch_size": 32, "lr": 0.01},
}


@pytest.fixture(scope="session")
def exported(cycle: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Export]:
    """A SASRec that has learnt the cycle, and what its export said; not to be written into."""
    path = tmp_path_factory.mktemp("export") / "run"
    train("sasrec", cycle, path, recipe=RECIPE)
    run = load_run(path)
    return run, export_onnx(run)


@pytest.fixture
def run(exported: tuple[Run, Export], tmp_path: Path) -> Run:
    """A copy of that run, with its graph, to be broken."""
    shutil.copytree(exported[0].path, tmp_path / "run")
    return load_run(tmp_path / "run")


@pytest.fixture(scope="session")
def graph(exported: tuple[Run, Export]) -> object:
    """The graph of that run as it is traced."""
    return trace(load_run(exported[0].path).model, "sasrec")
