"""``ensuite export``: what it prints, and the engine on the command line."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")


@pytest.fixture
def trained(ensuite, cycle):
    flags = ("--model.dim", 8, "--model.max-length", 8, "--training.epochs", 1, "--quiet")
    ensuite("train", "sasrec", "--data", cycle.path, "--out", "run", *flags)
    return ensuite


def test_from_a_run_to_an_answer(trained, tmp_path):
    said = trained("export", "run", "--onnx", "--threads", 1).stdout
    assert "run/model.onnx: checked, 54 lists against the model's: scores differ by at most" in said
    assert "Next: ensuite recommend run --history ITEM ... --engine onnx" in said
    ask = ("recommend", "run", "--history", 30, 40, "--k", 5, "--json")
    one, two = (json.loads(trained(*ask, *engine).stdout) for engine in ((), ("--engine", "onnx")))
    assert [item["item_id"] for item in one["items"]] == [item["item_id"] for item in two["items"]]

    said = trained("export", "run", "--onnx", "--int8", "--out", "small.onnx").stdout
    assert "onnx int8" in said
    assert "of the best ten are the same" in said
    assert "Accuracy on 120 validation cases" in said
    assert (tmp_path / "small.onnx").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "small.onnx"}


def test_int8_without_the_data_says_that_nothing_is_measured(trained, tmp_path):
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    card["data"]["path"] = "gone"
    (tmp_path / "run" / "card.json").write_text(json.dumps(card))
    done = trained("export", "run", "--onnx", "--int8")
    assert "warning: what int8 costs in accuracy is not measured: gone" in done.stderr
    assert "ndcg" not in done.stdout
    assert "gone" in trained("export", "run", "--onnx", "--int8", "--data", "gone", check=False).stderr


def test_what_cannot_be_done_says_what_can(trained, cycle, monkeypatch):
    def fails(*argv: object) -> str:
        done = trained(*argv, check=False)
        assert done.returncode == 2
        return done.stderr

    assert "say what to write: `ensuite export run --onnx`" in fails("export", "run")
    assert "nowhere: no such run" in fails("export", "nowhere", "--onnx")
    assert "--data: only --int8" in fails("export", "run", "--onnx", "--data", cycle.path)
    assert "--threads 0: at least 1" in fails("export", "run", "--onnx", "--threads", 0)
    assert "make it with `ensuite export run --onnx`" in fails(
        "recommend", "run", "--history", 30, "--engine", "onnx"
    )
    trained("train", "popularity", "--data", cycle.path, "--out", "popular", "--quiet")
    assert "popularity cannot be exported: it is counted" in fails("export", "popular", "--onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "onnx: not installed; pip install 'ensuite[onnx]'" in fails("export", "run", "--onnx")
