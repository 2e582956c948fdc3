"""Changing the item vectors of a traced graph, which is quicker than tracing another."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper


def with_items(graph: Any, vectors: np.ndarray) -> Any:
    """Return a copy of a ModelProto that scores ``vectors`` [V + 1, D]; it holds them transposed."""
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    (tensor,) = (t for t in other.graph.initializer if tuple(t.dims) == vectors.T.shape)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(vectors.T), tensor.name))
    return other
