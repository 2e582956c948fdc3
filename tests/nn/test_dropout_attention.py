"""Dropout's rate and repeatability; attention with dropout equals the fused kernel where nothing is
dropped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ensuite.nn.attention as attention
from ensuite.nn.attention import SelfAttention
from ensuite.nn.dropout import dropout, keep_mask


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_mask_has_the_rate_and_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    mask = keep_mask(torch.Size([1000, 301]), rate)
    assert (mask == 0).float().mean().item() == pytest.approx(rate, abs=0.004)
    assert mask.mean().item() == pytest.approx(1, abs=0.02)
    pairs = ((mask[:, :-1] == 0) & (mask[:, 1:] == 0)).float().mean().item()
    assert pairs == pytest.approx(rate**2, abs=0.005), "neighbours, cut from one draw, are independent"


def test_the_seed_repeats_a_mask_and_moves_on() -> None:
    torch.manual_seed(7)
    first, second = keep_mask(torch.Size([64]), 0.5), keep_mask(torch.Size([64]), 0.5)
    torch.manual_seed(7)
    assert torch.equal(keep_mask(torch.Size([64]), 0.5), first)
    assert not torch.equal(first, second)


def test_gradient_goes_where_the_value_went() -> None:
    x = torch.ones(50, requires_grad=True)
    y = dropout(x, 0.5, True)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    assert torch.equal(dropout(x, 0.5, False), x)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_dropout_is_the_fused_kernel_when_nothing_is_dropped(
    masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(8, 2, 0.5, causal=not masked), torch.randn(3, 5, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]).bool() if masked else None
    wanted = layer.eval()(x, mask=mask)
    dropped = layer.train()(x, mask=mask)
    assert not torch.allclose(dropped, wanted, atol=1e-3), "attention dropout fires"

    def keep_all(value: Tensor, rate: float, training: bool) -> Tensor:
        return value

    monkeypatch.setattr(attention, "dropout", keep_all)
    torch.testing.assert_close(layer(x, mask=mask), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [1, 5, 64, 150])
def test_causal_blocks_of_queries_are_the_fused_kernel(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(8, 2, 0.5, causal=True), torch.randn(3, length, 8, requires_grad=True)
    monkeypatch.setattr(attention, "dropout", lambda value, rate, training: value)
    seen = []
    for training in (False, True):  # blocks are for dropout, which the kernel has not
        output = layer.train(training)(x)
        seen.append((output, *torch.autograd.grad(output.square().sum(), (x, layer.key_value.weight))))
    for fused, blocks in zip(*seen):
        torch.testing.assert_close(blocks, fused, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_one_position_attends_as_it_does_among_all(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short cut without projecting the memory, with weights dropped that would be dropped either way."""

    def drop_second(value: Tensor, rate: float, training: bool) -> Tensor:
        kept = torch.full_like(value, 2.0)
        kept[..., 1] = 0.0
        return value * kept

    monkeypatch.setattr(attention, "dropout", drop_second)
    torch.manual_seed(0)
    layer, x = SelfAttention(8, heads, 0.5, causal=False), torch.randn(3, 5, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]).bool()
    whole = layer(x, mask=mask)[:, :1]
    torch.testing.assert_close(layer(x[:, :1], x, mask), whole, rtol=1e-5, atol=1e-6)
    one_more = layer(torch.cat([x[:, :1]] * 2, 1), x, mask)[:, :1]  # two queries: the ordinary way
    torch.testing.assert_close(layer(x[:, :1], x, mask), one_more, rtol=1e-5, atol=1e-6)
