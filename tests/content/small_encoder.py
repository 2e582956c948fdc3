"""A sentence encoder of two tiny layers with random weights, on disk in the forms that real ones have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = """
[PAD] [UNK] [CLS] [SEP] [MASK] soap red blue hair nail oil brush for the of cream . , a b c d e
""".split()  # noqa: SIM905


def write_encoder(folder: Path, *, seed: int = 0, pooling: str | None = None, **more: Any) -> Path:
    """Write a plain Transformer, or with ``pooling`` (mean, cls, max) a sentence-transformers folder.

    ``more``: `dense` (width of a projection, with a tanh), `normalize`, `length`, `positions` (most tokens),
    `steps` (further step kinds).
    """
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True)
    (folder / "words.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(folder / "words.txt")).save_pretrained(folder)
    (folder / "words.txt").unlink()
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=more.get("positions", 20),
        initializer_range=0.5,
    )
    BertModel(config).eval().save_pretrained(folder)
    if pooling is None:
        return folder
    steps = [("Transformer", ""), ("Pooling", "1_Pooling")]
    if more.get("length"):
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": more["length"]}))
    (folder / "1_Pooling").mkdir()
    named = {
        "mean": "mean_tokens",
        "cls": "cls_token",
        "max": "max_tokens",
        "weighted": "weightedmean_tokens",
    }
    switches = {f"pooling_mode_{n}": n == named[pooling] for n in named.values()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8} | switches))
    if more.get("dense"):
        from safetensors.torch import save_file

        steps.append(("Dense", "2_Dense"))
        (folder / "2_Dense").mkdir()
        about = {"activation_function": more.get("activation", "torch.nn.modules.activation.Tanh")}
        (folder / "2_Dense" / "config.json").write_text(json.dumps(about))
        tensors = {"linear.weight": torch.randn(more["dense"], 8), "linear.bias": torch.randn(more["dense"])}
        save_file(tensors, folder / "2_Dense" / "model.safetensors")
    steps += [(kind, "") for kind in more.get("steps", ())]
    if more.get("normalize"):
        steps.append(("Normalize", "3_Normalize"))
    listed = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in steps]
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder
