"""Every form of the selective scan against the recurrence, position by position, gradients too."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import ensuite.nn.selective_scan as scans
from ensuite.nn.mamba import Mamba
from ensuite.nn.selective_scan import associate, scan_last, selective_scan, sequential_scan


def inputs(b: int = 3, length: int = 37, e: int = 6, n: int = 5, dtype: torch.dtype = torch.float32) -> list:
    """Draw u, dt, a, b, c and a state; the last row has a step of zero from its third position on."""
    torch.manual_seed(0)
    dt = torch.rand(b, length, e, dtype=dtype)
    dt[-1, 3:] = 0
    tensors = [torch.randn(b, length, e, dtype=dtype), dt, -torch.rand(e, n, dtype=dtype) * 2 - 0.05]
    tensors += [torch.randn(b, length, n, dtype=dtype) for _ in range(2)]
    tensors += [torch.randn(b, e, n, dtype=dtype)]
    return [x.requires_grad_() for x in tensors]


def gradients(outputs: tuple[Tensor, ...], by: list[Tensor], tensors: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(sum((y * g).sum() for y, g in zip(outputs, by)), tensors)


@pytest.mark.parametrize("elements", [1, 700, 1 << 19], ids=["a row a piece", "some rows", "all in one"])
@pytest.mark.parametrize("with_state", [True, False])
def test_chunked_scan_is_the_recurrence(
    elements: int, with_state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "CPU_ELEMENTS", elements)
    tensors = inputs() if with_state else inputs()[:-1]
    by = [torch.randn(3, 37, 6), torch.randn(3, 6, 5)]
    wanted, found = sequential_scan(*tensors), selective_scan(*tensors)
    for a, b in zip(wanted, found):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients(wanted, by, tensors), gradients(found, by, tensors)):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("elements", [1, 1 << 19])
def test_the_last_position_alone_is_that_of_the_recurrence(
    elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "CPU_ELEMENTS", elements)
    u, dt, a, b, c, _ = inputs()
    lengths = torch.tensor([37, 12, 3])
    c = c[:, 0].detach().requires_grad_()  # of the last position
    by, tensors = [torch.randn(3, 6)], [u, dt, a, b, c]
    every = sequential_scan(u, dt, a, b, c[:, None].expand_as(b))[0]
    real = (torch.arange(37) < lengths[:, None])[..., None]
    wanted, found = every[torch.arange(3), lengths - 1], scan_last(u, dt * real, a, b, c)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for x, y in zip(gradients((wanted,), by, tensors), gradients((found,), by, tensors)):
        torch.testing.assert_close(y, x, rtol=1e-5, atol=1e-5)


def test_gradients_in_float64_are_those_of_finite_differences() -> None:
    tensors = inputs(2, 5, 3, 2, torch.float64)
    assert torch.autograd.gradcheck(selective_scan, tensors)
    tensors[1].data[-1, 3:] = torch.rand(2, 3)  # no padding, which has no gradient there
    tensors[4] = tensors[4][:, 0].detach().requires_grad_()
    assert torch.autograd.gradcheck(scan_last, tensors[:5])


def test_padding_alone_gives_nothing() -> None:
    u, dt, a, b, c = inputs()[:5]
    y = scan_last(u, dt * 0, a, b, c[:, 0])
    assert not y.any()
    assert not torch.autograd.grad(y.sum(), u)[0].any()


def test_padding_brings_nothing_to_the_last_position() -> None:
    tensors = inputs()[:5]
    tensors[4] = tensors[4][:, 0].detach().requires_grad_()
    u, _, _, b, _ = torch.autograd.grad(scan_last(*tensors)[-1].sum(), tensors)
    assert all(x[-1, :3].all() and not x[-1, 3:].any() for x in (u, b))


def test_the_associative_scan_is_the_recurrence_forwards_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU runs on few rows; CUDA is pretended, so that the path itself is walked."""
    decay, x = torch.rand(13, 2, 3), torch.randn(13, 2, 3)
    start, done = torch.randn(2, 3), []
    h = start
    for t in range(13):
        h = decay[t] * h + x[t]
        done.append(h)
    joined = x.clone()
    joined[0].addcmul_(decay[0], start)
    associate(decay, joined)
    torch.testing.assert_close(joined, torch.stack(done), rtol=1e-5, atol=1e-6)

    tensors, by = inputs(), [torch.randn(3, 37, 6), torch.randn(3, 6, 5)]
    wanted = gradients(selective_scan(*tensors), by, tensors)
    calls = []

    def counted(decay: Tensor, x: Tensor) -> None:
        calls.append(len(x))
        associate(decay, x)

    monkeypatch.setattr(scans, "_waits_for_launches", lambda x: True)
    monkeypatch.setattr(scans, "associate", counted)
    for a, b in zip(wanted, gradients(selective_scan(*tensors), by, tensors)):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)
    assert len(calls) == 3  # forward, again for the gradient, and back


def test_half_precision_is_scanned_in_single() -> None:
    tensors = [x.detach() for x in inputs(dtype=torch.float32)]
    halves = [x.bfloat16() for x in tensors]
    y, state = selective_scan(*halves)
    assert y.dtype == torch.bfloat16
    assert state is not None
    assert state.dtype == torch.float32
    torch.testing.assert_close(y, sequential_scan(*[x.float() for x in halves])[0].bfloat16())


@pytest.mark.parametrize("lengths", [[9, 4, 1], [9, 9, 9]])
def test_mamba_reads_the_last_position_and_goes_on_as_if_it_read_all(lengths: list[int]) -> None:
    torch.manual_seed(0)
    mamba, n = Mamba(8, 4, 4, 2), torch.tensor(lengths)
    x = torch.randn(3, 9, 8)
    every = mamba(x)
    at = torch.arange(3), n - 1
    torch.testing.assert_close(mamba.last(x, n), every[at], rtol=1e-5, atol=1e-6)
    read, state = mamba.read(x, n)
    torch.testing.assert_close(read[at], every[at], rtol=1e-5, atol=1e-6)
    more = torch.randn(3, 2, 8)
    for row, length in enumerate(lengths):
        whole = mamba(torch.cat([x[row, :length], more[row]])[None])[0, length:]
        one, after = mamba.step(more[:, 0], state)
        two, _ = mamba.step(more[:, 1], after)
        torch.testing.assert_close(torch.stack([one[row], two[row]]), whole, rtol=1e-5, atol=1e-6)


def test_steps_begin_where_mamba_wants_them() -> None:
    torch.manual_seed(0)
    mamba = Mamba(256, 4, 4, 2)
    dt = torch.nn.functional.softplus(mamba.step_size.bias.detach())
    assert 0.0009 < dt.min() < 0.002
    assert 0.05 < dt.max() < 0.11
    assert dt.log().std() == pytest.approx((torch.log(torch.tensor(100.0)) / 12**0.5).item(), rel=0.1)


def test_operations_grow_with_the_length_and_not_its_square() -> None:
    """Counted, not timed: operations times the elements that each reads."""
    torch.manual_seed(0)
    mamba = Mamba(8, 4, 4, 2)

    def work(length: int) -> float:
        class Count(torch.utils._python_dispatch.TorchDispatchMode):
            total = 0

            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                out = func(*args, **(kwargs or {}))
                self.total += out.numel() if isinstance(out, Tensor) else 0
                return out

        with Count() as count:
            x = torch.randn(2, length, 8)
            (mamba(x).sum() + mamba.last(x, torch.tensor([length, 5])).sum()).backward()
        return count.total

    small, middle, large = (work(length) for length in (64, 128, 256))
    for a, b in pairwise((small, middle, large)):
        assert 1.8 < b / a < 2.1
