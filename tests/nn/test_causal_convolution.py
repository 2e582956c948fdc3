from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ensuite.nn.causal_convolution import causal_convolution


@pytest.mark.parametrize("length", [1, 3, 9])
def test_is_the_grouped_convolution_of_torch(length: int) -> None:
    u, weight, bias = torch.randn(2, length, 5), torch.randn(5, 4), torch.randn(5)
    wanted = F.conv1d(F.pad(u.mT, (3, 0)), weight[:, None], bias, groups=5).mT
    torch.testing.assert_close(causal_convolution(u, weight, bias), wanted)


@pytest.mark.parametrize("length", [1, 3, 9])
def test_gradients_are_those_of_finite_differences(length: int) -> None:
    shapes = (2, length, 3), (3, 4), (3,)
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(causal_convolution, tensors)


def test_half_precision_input_gets_a_gradient_of_its_kind() -> None:
    u = torch.randn(2, 6, 5).bfloat16().requires_grad_()
    y = causal_convolution(u, torch.randn(5, 4), torch.randn(5))
    y.sum().backward()
    assert y.dtype == torch.float32
    assert u.grad is not None
    assert u.grad.dtype == torch.bfloat16
