"""The chunked cross-entropy is the plain one, in value and gradients, and stays so at the edges."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ensuite.objectives import ObjectiveConfig, build_objective
from ensuite.objectives.cross_entropy import (
    chunked_cross_entropy,
    chunked_log_sum_exp,
    plain_cross_entropy,
)


def problem(t, v, d, scale=1.0, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    output = (torch.randn(t, d, generator=g, dtype=dtype) * scale).requires_grad_()
    table = (torch.randn(v + 1, d, generator=g, dtype=dtype) * scale).requires_grad_()
    return output, table, torch.randint(1, v + 1, (t,), generator=g)


def grads(loss, *leaves):
    return torch.autograd.grad(loss, leaves)


@settings(max_examples=60, deadline=None)
@given(
    t=st.integers(1, 40),
    v=st.integers(1, 60),
    d=st.integers(1, 9),
    rows=st.integers(1, 50),
    block=st.integers(1, 70),
    smoothing=st.sampled_from([0.0, 0.1]),
    temperature=st.sampled_from([1.0, 0.05]),
)
def test_chunked_equals_plain(t, v, d, rows, block, smoothing, temperature):
    output, table, targets = problem(t, v, d, dtype=torch.float64, seed=t * v)
    plain = plain_cross_entropy(output, table, targets, temperature, smoothing)
    chunked = chunked_cross_entropy(output, table, targets, temperature, smoothing, rows, block)
    torch.testing.assert_close(chunked, plain)
    for a, b in zip(grads(chunked, output, table), grads(plain, output, table)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("sizes", [(300, 3000, 50), (40, 60_000, 16)])
def test_chunks_chosen_by_size_equal_plain_in_float32(sizes):
    output, table, targets = problem(*sizes, scale=0.5)
    plain, chunked = (
        plain_cross_entropy(output, table, targets),
        chunked_cross_entropy(output, table, targets),
    )
    torch.testing.assert_close(chunked, plain)
    for a, b in zip(grads(chunked, output, table), grads(plain, output, table)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("block", [None, 3])
def test_gradcheck(block):
    output, table, targets = problem(5, 7, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, e: chunked_cross_entropy(h, e, targets, 0.7, 0.1, chunk_rows=2, block=block),
        (output, table),
    )


@pytest.mark.parametrize("block", [None, 4])
def test_padding_row_has_no_part(block):
    output, table, targets = problem(9, 11, 4)
    loss = chunked_cross_entropy(output, table, targets, block=block)
    assert grads(loss, table)[0][0].abs().max() == 0
    other = table.detach().clone()
    other[0] = 1e3
    torch.testing.assert_close(chunked_cross_entropy(output, other, targets, block=block), loss)


@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_only_what_is_asked_is_differentiated(needs, block):
    output, table, targets = problem(9, 11, 4)
    output.requires_grad_(needs[0])
    table.requires_grad_(needs[1])
    loss = chunked_cross_entropy(output, table, targets, block=block)
    torch.testing.assert_close(loss, plain_cross_entropy(output, table, targets))
    assert loss.requires_grad == any(needs)
    if any(needs):
        loss.backward()
        assert (output.grad is not None, table.grad is not None) == needs


def test_no_grad_and_no_position():
    output, table, targets = problem(9, 11, 4)
    with torch.no_grad():
        assert not chunked_cross_entropy(output, table, targets).requires_grad
    empty = chunked_cross_entropy(output[:0], table, targets[:0])
    assert empty == 0
    empty.backward()
    assert output.grad.abs().max() == 0


@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("gap", [50.0, 300.0])
def test_scores_far_apart(gap, block):
    """The target's probability underflows, the loss must not: it is the distance of the scores."""
    output = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    table = torch.zeros(12, 1)
    table[3], table[5] = gap, -gap
    loss = chunked_cross_entropy(output, table.requires_grad_(), torch.tensor([5, 3]), block=block)
    torch.testing.assert_close(loss.item(), 2 * gap)
    assert all(g.isfinite().all() for g in grads(loss, output, table))


@pytest.mark.parametrize("block", [None, 16])
def test_log_sum_exp_is_float32_under_bfloat16(block):
    output, table, targets = problem(64, 100, 16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_cross_entropy(output.bfloat16(), table, targets, block=block)
    assert loss.dtype == torch.float32
    plain = plain_cross_entropy(output, table, targets)
    torch.testing.assert_close(loss, plain, rtol=0.01, atol=0.0)
    got, want = grads(loss, output, table), grads(plain, output, table)
    for a, b in zip(got, want):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.02 * b.norm()


def test_half_precision_leaves_get_gradients_of_their_own_dtype():
    output, table, targets = problem(20, 30, 8, dtype=torch.bfloat16)
    a, b = grads(chunked_cross_entropy(output, table, targets), output, table)
    assert (a.dtype, b.dtype) == (torch.bfloat16, torch.bfloat16)


def test_full_catalogue_of_negatives_is_full_cross_entropy():
    output, table, targets = problem(30, 12, 4, dtype=torch.float64)
    row = torch.arange(30) // 4

    def vectors(items):
        return table if items is None else table[items]

    sampled = build_objective(ObjectiveConfig(loss="sampled-softmax", negatives=12, share="batch"), 12)
    sampled.sampler.forward = lambda targets, row: (torch.arange(1, 13), None)
    full = build_objective(ObjectiveConfig(), 12)
    torch.testing.assert_close(sampled(output, targets, vectors, row), full(output, targets, vectors, row))
    previous = torch.inf
    for n in range(12, 0, -1):  # never more when negatives are removed
        sampled.sampler.forward = lambda targets, row, n=n: (torch.arange(1, n + 1), None)
        loss = sampled(output, targets, vectors, row).item()
        assert loss <= previous
        previous = loss


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux to read a process's peak memory"
)
def test_memory_of_a_large_catalogue():
    """25,600 positions x 100,000 items hold under 1.5 GB: here a tenth of the positions, in a process of its
    own."""
    import subprocess
    import sys

    code = """
import torch
from ensuite.objectives.cross_entropy import chunked_cross_entropy
output, table = torch.randn(2560, 64, requires_grad=True), torch.zeros(100_001, 64, requires_grad=True)
chunked_cross_entropy(output, table, torch.ones(2560, dtype=torch.int64)).backward()
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    peak = int(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    assert peak < 1_000_000, f"{peak} KB"  # the plain form's logits alone are 1 GB


@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("counted", [False, True])
def test_log_sum_exp_of_counted_positions(block, counted):
    output, table, _ = problem(9, 11, 3, dtype=torch.float64)
    counts = torch.tensor([1, 5, 2, 1, 1, 3, 1, 1, 2]) if counted else None
    each = (output @ table[1:].T).logsumexp(1)
    plain = each.mean() if counts is None else each.repeat_interleave(counts).mean()
    chunked = chunked_log_sum_exp(output, table, counts, 4, block)
    torch.testing.assert_close(chunked, plain)
    for a, b in zip(grads(chunked, output, table), grads(plain, output, table)):
        torch.testing.assert_close(a, b)
