"""Which systems can be exported, and that their graphs answer as they do; the others say why they cannot."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from small_models import N_ITEMS, build_model, small_values

from ensuite.config import config_dict
from ensuite.errors import EnsuiteError
from ensuite.models.base import Model
from ensuite.models.registry import load_model, model_names
from ensuite.serve.export.artefact import GraphCard, seal
from ensuite.serve.export.check import Check, compute_check
from ensuite.serve.export.engine import OnnxEngine
from ensuite.serve.export.graph import trace
from ensuite.training.config import resolve

REFUSED = {
    **dict.fromkeys(
        ["popularity", "recency", "markov", "item-knn", "personal-repeat", "content-knn"],
        "it is counted, and has no encoder",
    ),
    **dict.fromkeys(["tiger", "mender", "recgpt", "reg4rec"], "its scores are no dot products of vectors"),
    "pisa": r"`slots = min\(slots, int\(count.max\(\)\)\)` .*models/pisa.py.* depends on the data",
}
VARIANTS = {
    "ada-retrieval": {"rounds": 2, "total": 10},
    "sigma": {"d_state": 2, "d_conv": 2},
    "rearec": {"steps": 1},
}
"""Smaller than the contract tests have them: each operation of a graph takes its time."""


def small(name: str, **values: object) -> Model:
    cls = load_model(name)
    given = {**small_values(cls.config_for(values)), **values}
    cls, config = resolve(name, {"model": given})
    torch.manual_seed(0)
    return cls(config.model, N_ITEMS).eval()  # type: ignore[call-arg]


def checked(model: Model, name: str, folder: Path) -> Check:
    """Trace and check a model as `export_onnx` does."""
    graph = trace(model, name)
    onnx.checker.check_model(graph, full_check=True)
    card = GraphCard("0", name, N_ITEMS, model.max_length, model.needs_times(), "", "float32", {})
    (folder / "model.onnx").write_bytes(seal(graph.SerializeToString(), card))
    return compute_check(OnnxEngine(folder / "model.onnx", threads=1), model, name)


@pytest.mark.parametrize("name", model_names())
def test_a_system_is_exported_with_its_own_scores_or_refused_with_the_reason(name, tmp_path):
    if name in REFUSED:
        with pytest.raises(EnsuiteError, match=f"{name} cannot be exported: .*{REFUSED[name]}"):
            trace(build_model(name, with_objective=False), name)
        return
    model = small(name, **VARIANTS[name]) if name in VARIANTS else build_model(name, with_objective=False)
    check = checked(model, name, tmp_path)
    assert check.lists == 54  # 18 histories, 3 requests each
    assert check.difference < 1e-5
    assert check.shared == 1


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sasrec", {"as_released": True, "positions": "start", "tied": False}),
        ("sasrec", {"norm": "post", "residual": "gated", "activation": "swiglu", "similarity": "cosine"}),
        ("icsrec", {"encoder": "gru"}),
        ("hstu", {"blocks": 1, "time_mode": "last_event", "activation": "softmax", "normalizer": "length"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_variants(name, values, tmp_path):
    assert config_dict(small(name, **values).config) | values == config_dict(small(name, **values).config)
    assert checked(small(name, **values), name, tmp_path).difference < 1e-5


def test_a_wrapper_around_a_system_that_reads_times(tmp_path):
    encoder = {"dim": 8, "blocks": 1, "heads": 1, "dim_qk": 8, "dim_v": 8, "max_length": 8}
    model = small("rearec", base="hstu", steps=1, encoder=encoder)
    assert model.needs_times()
    assert checked(model, "rearec", tmp_path).difference < 1e-5


def test_what_depends_on_the_data_is_named():
    with pytest.raises(
        EnsuiteError, match=r"icsrec cannot be exported: .*data/noise.py.*--engine torch"
    ) as said:
        trace(small("icsrec", noise=0.3), "icsrec")
    assert "\n" not in str(said.value)
