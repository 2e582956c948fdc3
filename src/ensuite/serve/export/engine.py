"""The engine that runs an exported graph with ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ensuite.data.batches import History
from ensuite.errors import EnsuiteError
from ensuite.serve.engine import SCORES_HELD
from ensuite.serve.export.artefact import FILE, fingerprint, read_graph_card, read_sealed
from ensuite.serve.export.graph import missing
from ensuite.training.run import Run

POSITIONS = 1600
"""Padded positions of a run of the graph: more histories at once leave a core's cache (measured)."""


class OnnxEngine:
    """Finds the best items with the graph of a file that `export_onnx` wrote; needs onnxruntime alone.

    Parameters
    ----------
    path
        The file.
    threads
        Threads that share one operation; by default as many as PyTorch uses.

    Raises
    ------
    EnsuiteError
        When onnxruntime is missing, or the file is, or is damaged, foreign, or of another format version.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None):
        try:
            import onnxruntime
        except ImportError:
            raise missing("onnxruntime") from None
        self.path = Path(path)
        data = read_sealed(self.path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 4  # what is wrong is raised
        # Threads that wait by spinning double a request's processor time and save none of its own (measured).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise EnsuiteError(
                f"{self.path}: onnxruntime {onnxruntime.__version__} cannot load it: {error}"
            ) from None
        self.card = read_graph_card(self._session.get_modelmeta().custom_metadata_map, self.path)
        self._all = np.arange(self.card.n_items + 1) > 0  # [V + 1]

    @classmethod
    def of(cls, run: Run, *, threads: int | None = None) -> OnnxEngine:
        """Open the export in a run's folder; refuse one that was made from other weights or another model."""
        engine = cls(run.path / FILE, threads=threads)
        card = engine.card
        for what, own, wanted in (
            ("a graph of the model", card.model, run.config.name),
            ("of so many items:", card.n_items, run.model.n_items),
            ("of weights", card.weights, fingerprint(run)),
        ):
            if own != wanted:
                raise EnsuiteError(
                    f"{engine.path}: {what} {own}, the run has {wanted}; make it anew with "
                    f"`ensuite export {run.path} --onnx`"
                )
        return engine

    def top_k(
        self, history: History, k: int, allowed: Tensor | None, excluded: Sequence[np.ndarray]
    ) -> tuple[Tensor, Tensor]:
        rows, width = history.items.shape
        step = max(1, min(POSITIONS // width, SCORES_HELD // (self.card.n_items + 1)))
        mask = self._all if allowed is None else allowed.numpy() & self._all
        parts = [
            self._run(history, slice(at, at + step), k, mask, excluded[at : at + step])
            for at in range(0, rows, step)
        ]
        scores, found = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts))
        if bool(torch.isnan(scores).any()):
            raise EnsuiteError(f"{self.path}: its scores are not numbers (NaN); train the run again")
        if bool(torch.isneginf(scores).any()):
            raise EnsuiteError(f"the model gives fewer than k = {k} items a finite score; ask for fewer")
        return scores, found

    def _run(
        self, history: History, part: slice, k: int, allowed: np.ndarray, excluded: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Run the graph on some of the histories, no wider than the longest of them."""
        items = history.items[part].numpy()
        width = int(np.flatnonzero(items.any(0))[-1]) + 1
        out = np.zeros((len(items), max(map(len, excluded), default=0) or 1), np.int64)
        for row, these in zip(out, excluded):
            row[: len(these)] = these
        feeds = {"items": items[:, :width], "excluded": out, "allowed": allowed, "k": np.array(k)}
        if self.card.needs_times:
            if history.times is None or history.request_times is None:
                raise EnsuiteError(f"{self.path}: {self.card.model} reads times, and the history has none")
            feeds["times"] = history.times[part, :width].numpy()
            feeds["request_times"] = history.request_times[part, :width].numpy()
        return self._session.run(None, feeds)
