"""A learned filter over a sequence, applied in the frequency domain (Zhou et al., WWW 2022,
https://arxiv.org/abs/2202.13556, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LearnableFilter(nn.Module):
    """A circular convolution over the positions of a sequence, with a kernel of its length per dimension.

    Parameters
    ----------
    length
        Positions of a sequence, m.
    dim
        Width D.
    std
        Standard deviation of the initial weights, real and imaginary part alike.
    """

    def __init__(self, length: int, dim: int, std: float = 0.02):
        super().__init__()
        self.length = length
        self.weight = nn.Parameter(torch.randn(length // 2 + 1, dim, 2) * std)  # complex numbers as pairs

    def forward(self, x: Tensor) -> Tensor:
        """Filter ``x`` [B, m, D]: [B, m, D] float32."""
        spectrum = torch.fft.rfft(x.float(), dim=1, norm="ortho")  # [B, m // 2 + 1, D]
        return torch.fft.irfft(
            spectrum * torch.view_as_complex(self.weight), n=self.length, dim=1, norm="ortho"
        )
