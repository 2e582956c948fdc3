"""A GRU over sequences of any length that can also be exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ensuite.exporting import is_exporting


class GRULayer(nn.GRU):
    """One layer of `nn.GRU`, batch first: [B, L, D] gives the states at all positions, [B, L, H].

    An exported graph holds ONNX's own operator: PyTorch's is traced as a loop over one length.
    """

    def __init__(self, dim: int, hidden: int, *, bias: bool = True):
        super().__init__(dim, hidden, bias=bias, batch_first=True)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Read ``x`` from ``state`` [1, B, H], zero by default: all states, and the last one [1, B, H]."""
        if not is_exporting():
            return super().forward(x, state)
        parameters = dict(self.named_parameters())
        weights = [_for_onnx(parameters[f"weight_{of}_l0"])[None] for of in ("ih", "hh")]  # [1, 3 H, D or H]
        bias = None
        if self.bias:
            bias = torch.cat([_for_onnx(parameters[f"bias_{of}_l0"]) for of in ("ih", "hh")])[
                None
            ]  # [1, 6 H]
        rows, length, hidden = x.shape[0], x.shape[1], self.hidden_size
        states, last = torch.onnx.ops.symbolic_multi_out(
            "GRU",
            (x.transpose(0, 1), *weights, bias, None, state),
            {"hidden_size": hidden, "linear_before_reset": 1},
            dtypes=(x.dtype, x.dtype),
            shapes=((length, 1, rows, hidden), (1, rows, hidden)),
        )
        return states[:, 0].transpose(0, 1), last


def _for_onnx(weights: Tensor) -> Tensor:
    """Put the gates [3 H, ...] into ONNX's order: from reset, update, new to update, reset, new."""
    reset, update, new = weights.chunk(3)
    return torch.cat([update, reset, new])
