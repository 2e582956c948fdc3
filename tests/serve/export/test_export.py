"""Writing: what is kept when something goes wrong, what int8 costs."""

from __future__ import annotations

import os
import resource
import signal

import numpy as np
import pytest
import torch
from serve.export.weights import with_items

from ensuite.data.batches import History
from ensuite.errors import EnsuiteError
from ensuite.evaluate.evaluate import evaluate
from ensuite.serve.engine import ModelEngine
from ensuite.serve.export import export as module
from ensuite.serve.export.cost import measure_accuracy
from ensuite.serve.export.engine import OnnxEngine
from ensuite.serve.export.export import export_onnx

OLD = b"the file before"


@pytest.fixture
def old(run, graph, monkeypatch):
    """A run whose folder holds an older file; tracing, which takes seconds, is done."""
    (run.path / "model.onnx").write_bytes(OLD)
    monkeypatch.setattr(module, "trace", lambda model, name: graph)
    return run


def untouched(run) -> bool:
    names = {path.name for path in run.path.iterdir()}
    return (run.path / "model.onnx").read_bytes() == OLD and not [n for n in names if n.startswith(".model")]


def test_a_good_one_replaces_it(old):
    export = export_onnx(old)
    assert export.path == old.path / "model.onnx"
    assert OnnxEngine.of(old).card.check["difference"] == export.check.difference < 1e-5
    assert [cost.engine for cost in export.costs] == ["torch", "onnx"]
    assert not [path for path in old.path.iterdir() if path.name.startswith(".")]


def test_a_graph_that_fails_its_check_is_not_kept(old):
    with torch.no_grad():  # the graph is that of the weights before
        old.model.norm.bias[0] += 0.01
    with pytest.raises(EnsuiteError, match=r"sasrec: the graph does not score as the model does: .* may be"):
        export_onnx(old)
    assert untouched(old)


def test_no_room_leaves_the_file_before(old):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(EnsuiteError, match=r"model.onnx: cannot be written: .*untouched"):
            export_onnx(old)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert untouched(old)


def test_a_folder_that_is_not_there_is_named(old, tmp_path):
    with pytest.raises(EnsuiteError, match=r"nowhere/model.onnx: cannot be written: No such file"):
        export_onnx(old, tmp_path / "nowhere" / "model.onnx")


def test_killed_before_the_last_step_it_leaves_the_file_before(old):
    child = os.fork()
    if not child:
        module.os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
        try:
            export_onnx(old)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert (old.path / "model.onnx").read_bytes() == OLD


def test_int8_costs_little_and_says_what(old, cycle):
    export = export_onnx(old, int8=True, dataset=cycle)
    plain, whole, small = export.costs
    assert (plain.engine, whole.engine, small.engine) == ("torch", "onnx", "onnx int8")
    assert export.cases == 120
    assert plain.metrics["ndcg@10"] > 0.9
    assert whole.metrics == plain.metrics
    assert small.metrics["ndcg@10"] == pytest.approx(plain.metrics["ndcg@10"], abs=0.02)
    assert export.check.shared > 0.9
    assert OnnxEngine.of(old).card.precision == "int8"
    rows = OnnxEngine.of(old).top_k(History(torch.tensor([[3, 4, 5]])), 18, None, [np.array([6, 7])])[1]
    assert not set(rows[0].tolist()) & {0, 6, 7}


def test_accuracy_is_that_of_the_evaluation(exported, cycle):
    run, _ = exported
    found, cases = measure_accuracy(ModelEngine(run.model), cycle, run.model.max_length, exclude="seen")
    ranked = evaluate(run.model, cycle, "valid", ["ndcg@10", "hr@10"]).metrics
    assert cases == 120
    assert found == pytest.approx(ranked, abs=1e-9)


def test_int8_that_loses_too_much_is_not_kept(old, graph, monkeypatch):
    worse = with_items(graph, np.random.default_rng(0).normal(size=(21, 16)).astype(np.float32))
    monkeypatch.setattr(module, "quantise", lambda graph: worse)
    with pytest.raises(EnsuiteError, match=r"keeps \d+% of the model's best 10 items.*without --int8"):
        export_onnx(old, int8=True)
    assert untouched(old)
