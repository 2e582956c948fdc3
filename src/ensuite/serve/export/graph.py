"""The graph: histories and filters in, the best items out; encoder, scores, filters and top-k in one."""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ensuite
from ensuite.data.batches import History
from ensuite.errors import EnsuiteError
from ensuite.models.base import FittedModel, Model, Retriever

OPSET = 20
"""What onnxruntime 1.20 and newer run."""
INPUTS = ("items", "excluded", "allowed", "k")
TIMES = ("times", "request_times")
OUTPUTS = ("scores", "rows")
TRACED = 3, 6, 4
"""Histories, events and excluded items of the example that is traced: different numbers are different
dimensions of the graph, which takes any."""


class Graph(nn.Module):
    """`Engine.top_k` of a model as one function of tensors; the item vectors are computed before, once."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model
        with torch.no_grad():
            self.register_buffer("catalogue", model.catalogue().detach())

    def forward(
        self,
        items: Tensor,
        excluded: Tensor,
        allowed: Tensor,
        k: Tensor,
        times: Tensor | None = None,
        request_times: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return scores and item rows of the best k, best first; of equal scores the lower row: [B, k] each.

        Parameters
        ----------
        items, times, request_times
            As in `History`: [B, L] int64, padded on the right with 0; times of models that read them.
        excluded
            Rows that must not be recommended to each history: [B, X] int64, filled up with 0.
        allowed
            True at the rows that may be recommended, False at row 0: [V + 1] bool.
        k
            How many: a scalar, int64.
        """
        scores = self.model.scorer(History(items, times, request_times), self.catalogue)(
            0, self.model.n_items + 1
        )
        scores = scores.masked_fill(~allowed, -torch.inf).scatter(1, excluded, -torch.inf)  # [B, V + 1]
        count: Any = k.item()
        torch._check(count >= 1)
        torch._check(count <= self.model.n_items)
        values, rows = scores.topk(count)  # type: ignore[misc]  # ONNX's TopK has the tie rule, PyTorch's none
        return values, rows


def trace(model: Model, name: str) -> Any:
    """Return the graph of a model on the CPU, in evaluation mode, as `onnx.ModelProto`.

    Raises
    ------
    EnsuiteError
        When the model is no retriever, or does what has no fixed form in a graph: the place is named.
    """
    try:
        from onnx_ir.passes import Sequential
        from onnx_ir.passes import common as passes
    except ImportError:
        raise missing("onnx, onnxscript") from None
    if not isinstance(model, Retriever):
        counted = isinstance(model, FittedModel)
        why = "it is counted, and has no encoder" if counted else "its scores are no dot products of vectors"
        raise EnsuiteError(f"{name} cannot be exported: {why}; serve it with --engine torch")
    shape = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    rows, events, out = TRACED
    items, excluded = (torch.ones(rows, width, dtype=torch.int64) for width in (events, out))
    arguments = [items, excluded, torch.ones(model.n_items + 1, dtype=torch.bool), torch.tensor(1)]
    shapes: list[Any] = [shape, shape, None, None]
    names = list(INPUTS)
    if model.needs_times():
        arguments += [items.clone(), items.clone()]  # one tensor twice would be one input
        shapes += [shape, shape]
        names += TIMES
    with torch.no_grad(), silence():
        try:
            program = torch.export.export(
                Graph(model), tuple(arguments), dynamic_shapes=tuple(shapes), strict=False
            )
            exported: Any = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=names, output_names=OUTPUTS,
                verbose=False,
            )  # fmt: skip
        except Exception as error:
            raise EnsuiteError(
                f"{name} cannot be exported: {_reason(error)}; serve it with --engine torch"
            ) from error
        # A tied table stands there twice; stack traces name files of this machine.
        tidy = Sequential(
            passes.DeduplicateInitializersPass(size_limit=1 << 40), passes.ClearMetadataAndDocStringPass()
        )
        tidy(exported.model)
        try:
            return exported.model_proto
        except ValueError:
            raise EnsuiteError(
                f"{name} cannot be exported: its weights pass 2 GiB, the most that one ONNX file holds; "
                "serve it with --engine torch"
            ) from None


def missing(packages: str) -> EnsuiteError:
    """Say which extra holds packages that are not installed."""
    return EnsuiteError(f"{packages}: not installed; pip install 'ensuite[onnx]'")


def _reason(error: BaseException) -> str:
    """Name the line of a model that has no fixed form, or else say what the exporter says."""
    home = Path(ensuite.__file__).parent
    cause: BaseException | None = error
    while cause is not None:
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            file = Path(frame.filename)
            if any(file.is_relative_to(home / room) for room in ("models", "nn", "data")):
                place = f"{file.relative_to(home.parent)}, line {frame.lineno}"
                return f"what `{frame.line}` does ({place}) depends on the data, and a graph is fixed"
        cause = cause.__cause__
    return str(error).strip().split("\n")[0].split(" For more")[0] or type(error).__name__


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep the exporter's progress, warnings and dumps of half-made graphs off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    nowhere = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
