"""The engine: shapes, ties, filters, and which files it takes."""

from __future__ import annotations

import builtins
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from serve.export.weights import with_items

from ensuite.data.batches import History
from ensuite.errors import EnsuiteError
from ensuite.serve.engine import ModelEngine
from ensuite.serve.export import engine as module
from ensuite.serve.export.artefact import GraphCard, read_sealed, seal
from ensuite.serve.export.engine import OnnxEngine
from ensuite.serve.recommender import Recommender

NONE = np.zeros(0, np.int64)
CARD = GraphCard("0", "sasrec", 20, 8, False, "", "float32", {})


def history(*rows: list[int]) -> History:
    width = max(map(len, rows))
    return History(torch.tensor([row + [0] * (width - len(row)) for row in rows]))


def write(graph, path: Path, vectors: np.ndarray) -> Path:
    """Write the graph with other item vectors."""
    path.write_bytes(seal(with_items(graph, vectors).SerializeToString(), CARD))
    return path


def both(exported, *request):
    run, export = exported
    return ModelEngine(run.model).top_k(*request), OnnxEngine(export.path, threads=1).top_k(*request)


def same(exported, *request) -> torch.Tensor:
    """Ask the model and the graph; return the rows, which must be the same."""
    (scores, rows), (own_scores, own_rows) = both(exported, *request)
    assert torch.equal(rows, own_rows)
    assert torch.allclose(scores, own_scores, atol=1e-5)
    assert own_scores.dtype == torch.float32
    assert own_rows.dtype == torch.int64
    return own_rows


@pytest.mark.parametrize("k", [1, 7, 20])
@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_any_batch_length_and_k(exported, k, rows, length):
    items = torch.randint(1, 21, (rows, length), generator=torch.Generator().manual_seed(k))
    found = same(exported, History(items), k, None, [NONE] * rows)
    assert found.shape == (rows, k)


def test_it_has_learnt_and_the_graph_knows_it(exported):
    assert same(exported, history([3, 4, 5]), 1, None, [NONE]).tolist() == [[6]]


def test_padding_and_neighbours_in_a_batch_change_nothing(exported):
    engine = OnnxEngine(exported[1].path, threads=1)
    rows = [[3], [4, 5, 6, 7, 8, 9, 10, 11], [12, 13]]
    scores, found = engine.top_k(history(*rows), 20, None, [NONE] * 3)
    for number, row in enumerate(rows):
        alone, alone_rows = engine.top_k(history(row), 20, None, [NONE])
        assert torch.equal(found[number], alone_rows[0])
        assert torch.allclose(scores[number], alone[0], atol=1e-6)


def test_excluded_rows_are_left_out_for_each_history(exported):
    excluded = [np.array([6, 7]), NONE, np.array([1])]
    found = same(exported, history([3, 4, 5], [3, 4, 5], [9]), 18, None, excluded)
    for row, out in zip(found.tolist(), excluded):
        assert not set(row) & {0, *out.tolist()}
    assert found[1, 0] == 6


def test_only_allowed_rows_are_found(exported):
    allowed = torch.zeros(21, dtype=torch.bool)
    allowed[[2, 6, 20]] = True
    found = same(exported, history([3, 4, 5], [1]), 2, allowed, [np.array([6]), NONE])
    assert set(found[0].tolist()) == {2, 20}


def test_of_equal_scores_the_lower_row_comes_first_and_is_the_one_kept(exported, graph, tmp_path):
    vectors = np.eye(16, dtype=np.float32)[np.arange(21) % 3]  # one-hot: equal scores are equal bits
    path = write(graph, tmp_path / "ties.onnx", vectors)
    model = ModelEngine(exported[0].model)
    model._catalogue = torch.from_numpy(vectors)
    for k in (1, 4, 9, 20):
        request = history([3, 4, 5], [1]), k, None, [NONE] * 2
        scores, rows = OnnxEngine(path, threads=1).top_k(*request)
        assert torch.equal(rows, model.top_k(*request)[1])
        for values, found in zip(scores.tolist(), rows.tolist()):
            for (a, i), (b, j) in pairwise(zip(values, found)):
                assert (-a, i) < (-b, j)
    assert len(scores.unique()) == 6  # 3 scores for each of two histories: the rest are ties


def test_runs_of_few_histories_give_the_same(exported, monkeypatch):
    request = (
        history([3, 4, 5], [1], [2, 3], [9, 8, 7, 6]),
        5,
        None,
        [NONE, np.array([2]), NONE, np.array([1])],
    )
    whole = OnnxEngine(exported[1].path, threads=1).top_k(*request)
    monkeypatch.setattr(module, "POSITIONS", 8)
    parts = OnnxEngine(exported[1].path, threads=1).top_k(*request)
    assert torch.equal(whole[1], parts[1])


def test_a_recommender_answers_the_same_with_either_engine(exported):
    run, _ = exported
    torch_engine, onnx_engine = Recommender.load(run.path), Recommender.load(run.path, engine="onnx")
    assert isinstance(onnx_engine.engine, OnnxEngine)
    for request in (
        {"history": [30, 40, 50], "k": 10},
        {"history": [[30], [40, 50, 60]], "k": 5, "exclude": "none"},
        {"history": [30], "k": 2, "candidates": [20, 30, 60]},
    ):
        one, two = torch_engine.recommend(**request), onnx_engine.recommend(**request)
        assert one.ids == two.ids
        assert np.allclose(one.scores, two.scores, atol=1e-5)
    with pytest.raises(EnsuiteError, match="engine = 'onx': did you mean 'onnx'"):
        Recommender.load(run.path, engine="onx")


# -- files ------------------------------------------------------------------------------------------


def test_the_card_says_what_the_graph_is_of(exported):
    run, export = exported
    card = OnnxEngine(export.path).card
    assert (card.model, card.n_items, card.max_length, card.needs_times) == ("sasrec", 20, 8, False)
    assert card.check["lists"] == export.check.lists
    model = onnx.load(export.path)  # any ONNX tool reads it
    onnx.checker.check_model(model, full_check=True)
    assert (
        json.loads(next(p.value for p in model.metadata_props if p.key == "ensuite"))["weights"]
        == card.weights
    )
    assert str(run.path.parent).encode() not in export.path.read_bytes()


def test_no_file_says_how_to_make_it(run):
    (run.path / "model.onnx").unlink()
    with pytest.raises(
        EnsuiteError, match=r"model.onnx: no such file; make it with `ensuite export .*run --onnx`"
    ):
        OnnxEngine.of(run)


def test_other_weights_make_it_stale(run):
    path = run.path / "model.safetensors"
    tensors = load_file(path)
    tensors["norm.bias"][0] += 1e-3
    text = {"format_version": "1", "ensuite": "{}"}
    save_file(tensors, path, metadata=text)
    with pytest.raises(EnsuiteError, match=r"model.onnx: of weights \w+, the run has \w+; make it anew"):
        Recommender.load(run.path, engine="onnx")


def test_the_graph_of_another_run_is_refused(run, graph):
    for name, items, match in (
        ("hstu", 20, "a graph of the model hstu"),
        ("sasrec", 7, "of so many items: 7"),
    ):
        card = replace(CARD, model=name, n_items=items)
        (run.path / "model.onnx").write_bytes(seal(graph.SerializeToString(), card))
        with pytest.raises(EnsuiteError, match=match):
            OnnxEngine.of(run)


def test_another_format_version_is_refused(run, graph):
    card = replace(CARD, format_version=99)
    (run.path / "model.onnx").write_bytes(seal(graph.SerializeToString(), card))
    with pytest.raises(EnsuiteError, match="export format 99, this version of ensuite reads 1"):
        OnnxEngine.of(run)


@pytest.mark.parametrize("place", [0, 1000, 5000, -200, -3])
def test_one_flipped_bit_is_found(run, place):
    path = run.path / "model.onnx"
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(EnsuiteError, match=r"model.onnx: (damaged|not an export)"):
        OnnxEngine(path)


@pytest.mark.parametrize("kept", [0, 10, 2000, -1])
def test_a_file_cut_off_is_refused(run, kept):
    path = run.path / "model.onnx"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(EnsuiteError, match=r"model.onnx: (damaged|not an export of ensuite, or cut off)"):
        OnnxEngine(path)


def test_a_foreign_graph_and_no_graph_are_refused(run, graph):
    path = run.path / "model.onnx"
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(EnsuiteError, match="not an export of ensuite"):
        OnnxEngine(path)
    path.write_bytes(seal(b"no graph", CARD))
    with pytest.raises(EnsuiteError, match=r"onnxruntime .* cannot load it"):
        OnnxEngine(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(EnsuiteError, match="cannot be read"):
        read_sealed(path)


def test_without_onnxruntime_the_extra_is_named(exported, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EnsuiteError, match=r"onnxruntime: not installed; pip install 'ensuite\[onnx\]'"):
        OnnxEngine(exported[1].path)


def test_scores_that_are_not_numbers_are_an_error(graph, tmp_path):
    path = write(graph, tmp_path / "nan.onnx", np.full((21, 16), np.nan, np.float32))
    with pytest.raises(EnsuiteError, match="not numbers"):
        OnnxEngine(path).top_k(history([1, 2]), 3, None, [NONE])
