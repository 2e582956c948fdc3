"""The index beside a run, ``RUN/search.safetensors``: how the run's items are searched when it is served.

Its tensors are, by kind: of "pq" and "pq-pruned" ``codes`` [V, M] and ``sub_vectors`` [M, K, D / M]; of
"hnsw" ``graph``, faiss's own bytes; of "exact" none. Its metadata name the kind, the settings, a fingerprint
of the weights that it was built from and a check sum of the tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from ensuite.codes.product import ProductCodes, ProductConfig, quantise
from ensuite.config import build_config, config, config_dict
from ensuite.errors import EnsuiteError
from ensuite.serve.engine import Engine, ModelEngine
from ensuite.serve.search.engine import VectorEngine, check_dot_product, item_table
from ensuite.serve.search.hnsw import HNSWConfig, HNSWSearch, build_graph, read_graph, write_graph
from ensuite.serve.search.pq import PQTopK
from ensuite.serve.search.pruned import PrunedPQTopK
from ensuite.serve.search.searcher import ExactSearch, Searcher
from ensuite.training.run import Run, read_tensors, write_tensors

FILE = "search.safetensors"
FORMAT = 1
Kind = Literal["exact", "pq", "pq-pruned", "hnsw"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@config
class IndexConfig:
    """The settings of each kind of index."""

    pq: ProductConfig = ProductConfig()
    """The codes of pq and pq-pruned."""
    hnsw: HNSWConfig = HNSWConfig()
    """The graph of hnsw."""


@dataclass(frozen=True)
class Index:
    """What is needed to search a model's items in one way."""

    kind: Kind
    settings: IndexConfig
    tensors: Mapping[str, Tensor]

    @property
    def megabytes(self) -> float:
        """Size of the file."""
        return sum(tensor.nbytes for tensor in self.tensors.values()) / 1e6

    def searcher(self, vectors: Tensor) -> Searcher:
        """Return the searcher; ``vectors`` [V + 1, D] are read by exact and hnsw."""
        if self.kind == "exact":
            return ExactSearch(vectors)
        if self.kind == "hnsw":
            return HNSWSearch(vectors, read_graph(self.tensors["graph"]), self.settings.hnsw)
        codes = ProductCodes(self.tensors["codes"], self.tensors["sub_vectors"])
        if (codes.n_items + 1, codes.dim) != tuple(vectors.shape):
            raise ValueError(
                f"codes of {codes.n_items} items in {codes.dim} dimensions, for {len(vectors) - 1} in "
                f"{vectors.shape[1]}"
            )
        return PQTopK(codes) if self.kind == "pq" else PrunedPQTopK(codes)


def build_index(
    kind: Kind,
    vectors: Tensor,
    settings: IndexConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Build an index of ``vectors`` [V + 1, D], as `item_table` gives them.

    Raises
    ------
    EnsuiteError
        When the splits do not divide D, or hnsw is asked for and faiss is missing.
    """
    settings, tensors = settings or IndexConfig(), {}
    if kind == "hnsw":
        tensors = {"graph": write_graph(build_graph(vectors, settings.hnsw, progress))}
    elif kind != "exact":
        codes = quantise(vectors[1:], settings.pq, progress)
        tensors = {"codes": codes.codes, "sub_vectors": codes.sub_vectors}
    return Index(kind, settings, tensors)


def write_index(run: Run, index: Index) -> Path:
    """Write ``index`` into the folder of the run it was built from, in place of one that is there."""
    path = run.path / FILE
    about = {
        "search": FORMAT,
        "kind": index.kind,
        "settings": config_dict(index.settings),
        "weights": fingerprint(run.model.state_dict()),
        "sum": fingerprint(index.tensors),
    }
    write_tensors(path, index.tensors, about)
    return path


def read_index(run: Run) -> Index:
    """Read the index of a run.

    Raises
    ------
    EnsuiteError
        When there is none, or it is damaged, of another format or of other weights than the run's.
    """
    path = run.path / FILE
    again = f"build it again with `ensuite index {run.path}`"
    tensors, about = read_tensors(path, missing=f"no search index; build one with `ensuite index {run.path}`")
    if about.get("search") != FORMAT or about.get("kind") not in KINDS:
        raise EnsuiteError(
            f"{path}: search index of format {about.get('search')} and kind {about.get('kind')!r}, this "
            f"version of ensuite reads format {FORMAT} of {', '.join(KINDS)}; {again}"
        )
    if about.get("sum") != fingerprint(tensors):
        raise EnsuiteError(f"{path}: damaged: its check sum is not that of its tensors; {again}")
    if about.get("weights") != fingerprint(run.model.state_dict()):
        raise EnsuiteError(
            f"{path}: stale: it was built from other weights than {run.path / 'model.safetensors'}; {again}, "
            "or search without it (search = exact)"
        )
    return Index(about["kind"], build_config(IndexConfig, about.get("settings", {}), str(path)), tensors)


def has_index(run: Path) -> bool:
    """Whether there is an index in a run folder."""
    return (run / FILE).exists()


def load_engine(run: Run) -> Engine:
    """Return the engine of the index beside a run; it computes where the run's model lies.

    The scores of a quantised index are those of the quantised items, not the model's.

    Raises
    ------
    EnsuiteError
        When there is no index, it cannot be used, or does not belong to the run's weights.
    """
    index = read_index(run)
    if index.kind == "exact":
        return ModelEngine(run.model)
    model = check_dot_product(run.model)
    try:
        searcher = index.searcher(item_table(model))
    except (KeyError, ValueError, RuntimeError) as error:
        raise EnsuiteError(f"{run.path / FILE}: damaged: {error}; build it again") from None
    return VectorEngine(model, searcher)


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, types, shapes and values: 32 hexadecimal digits.

    >>> fingerprint({"a": torch.zeros(2)}) == fingerprint({"a": torch.zeros(2, 1)})
    False
    """
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
