"""The losses over drawn negatives: invariants, the three ways to compute their scores, and the logQ
correction."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ensuite.objectives import ObjectiveConfig, build_objective, fused
from ensuite.objectives.fused import Drawn, fused_loss
from ensuite.objectives.sampled import Sampled, bce_loss, bpr_loss, choose_way, gbce_loss, softmax_loss

HEADS = {"softmax": softmax_loss, "bce": bce_loss, "bpr": bpr_loss, "gbce": gbce_loss(40, 5, 0.75)}


def problem(t=21, v=40, d=6, dtype=torch.float64):
    g = torch.Generator().manual_seed(2)
    output = torch.randn(t, d, generator=g, dtype=dtype).requires_grad_()
    table = torch.randn(v + 1, d, generator=g, dtype=dtype).requires_grad_()
    return output, table, torch.randint(1, v + 1, (t,), generator=g), torch.arange(t) // 6


def draws(targets, row, v, n, share):
    g = torch.Generator().manual_seed(9)
    shape = {"position": (len(targets), n), "sequence": (int(row[-1]) + 1, n), "batch": (n,)}[share]
    items = torch.randint(1, v + 1, shape, generator=g)
    items.view(-1)[0] = targets[0]  # one negative is its position's positive
    return Drawn(items, row if share == "sequence" else None)


def naive(output, table, targets, drawn, head, bias):
    items = drawn.at(0, len(targets))
    positive = (output * table[targets]).sum(1)
    negative = torch.einsum("td,tnd->tn", output, table[items]) + (0 if bias is None else bias[items])
    return head(positive, negative.masked_fill(items == targets[:, None], -torch.inf)).mean()


@pytest.mark.parametrize("chunk", [64, 1 << 20])
@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("share", "way"),
    [
        ("position", "gather"), ("position", "dense"), ("sequence", "gather"), ("sequence", "dense"),
        ("sequence", "shared"), ("batch", "shared"), ("batch", "dense"),
    ],
)  # fmt: skip
def test_every_way_equals_the_naive_one(monkeypatch, share, way, head, n, chunk):
    monkeypatch.setattr(fused, "CHUNK_BYTES", chunk)
    output, table, targets, row = problem()
    drawn = draws(targets, row, 40, n, share)
    bias = torch.linspace(-1, 1, 41, dtype=torch.float64)
    want = naive(output, table, targets, drawn, HEADS[head], bias)
    want_grads = torch.autograd.grad(want, (output, table))
    full = fused_loss(output, table, targets, drawn, HEADS[head], way, bias)
    torch.testing.assert_close(full, want)
    for a, b in zip(torch.autograd.grad(full, (output, table)), want_grads):
        torch.testing.assert_close(a, b)
    if way != "dense":
        part = table[torch.cat([targets, drawn.items.flatten()])]
        compact = fused_loss(output, part, targets, drawn, HEADS[head], way, bias, compact=True)
        torch.testing.assert_close(compact, want)
        for a, b in zip(torch.autograd.grad(compact, (output, table)), want_grads):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("way", ["gather", "dense", "shared"])
def test_gradcheck(way):
    output, table, targets, row = problem(t=5, v=7, d=3)
    drawn = draws(targets, row, 7, 3, "batch" if way == "shared" else "position")
    assert torch.autograd.gradcheck(
        lambda h, e: fused_loss(h, e, targets, drawn, softmax_loss, way), (output, table)
    )
    with torch.no_grad():
        assert not fused_loss(output, table, targets, drawn, bce_loss, way).requires_grad


@pytest.mark.parametrize("share", ["position", "sequence", "batch"])
@pytest.mark.parametrize("v", [40, 5000])  # few and many items beside the draws
@pytest.mark.parametrize("autocast", [False, True])
def test_objective_equals_the_naive_loss(share, v, autocast):
    output, table, targets, row = problem(v=v, dtype=torch.float32)
    objective = build_objective(
        ObjectiveConfig(loss="sampled-softmax", negatives=9, share=share, temperature=0.5), v
    )
    asked = []

    def vectors(items):
        asked.append(items)
        return table if items is None else table[items]

    torch.manual_seed(0)
    drawn = Drawn(*objective.sampler(targets, row))
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = objective(output, targets, vectors, row)
    want = naive(output / 0.5, table, targets, drawn, softmax_loss, None)
    close = {"rtol": 0.05, "atol": 0.02} if autocast else {"rtol": 1e-5, "atol": 1e-6}
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, want, **close)
    for a, b in zip(torch.autograd.grad(loss, (output, table)), torch.autograd.grad(want, (output, table))):
        torch.testing.assert_close(a, b, **close)
    assert [items is None for items in asked] == [v == 40]


@pytest.mark.parametrize("share", ["position", "sequence", "batch"])
@pytest.mark.parametrize("head", HEADS)
def test_a_negative_that_is_the_positive_has_no_gradient(head, share):
    """All draws hit: BPR is 0, and the others are left with the positive's own term."""
    output, table, _, row = problem()
    targets = torch.full((21,), 3)
    items = torch.full({"position": (21, 5), "sequence": (4, 5), "batch": (5,)}[share], 3)
    drawn = Drawn(items, row if share == "sequence" else None)
    way = choose_way(drawn, targets, None)
    loss = fused_loss(output, table, targets, drawn, HEADS[head], way)
    positive = (output * table[3]).sum(1)
    alone = {"softmax": 0 * positive, "bpr": 0 * positive, "bce": F.softplus(-positive)}
    alone["gbce"] = (1 - 0.75 * (1 - 5 / 39)) * F.softplus(-positive) / 6
    torch.testing.assert_close(loss, alone[head].mean())
    got, want = (torch.autograd.grad(x, (output, table)) for x in (loss, alone[head].mean()))
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("head", HEADS)
def test_losses_are_finite_at_fifty(head, dtype):
    positive = torch.tensor([50.0, -50.0, 50.0, -50.0], dtype=dtype, requires_grad=True)
    negative = torch.tensor([50.0, 50.0, -50.0, -50.0], dtype=dtype)[:, None].repeat(1, 5).requires_grad_()
    loss = HEADS[head](positive, negative)
    assert loss.isfinite().all()
    for g in torch.autograd.grad(loss.sum(), (positive, negative)):
        assert g.isfinite().all()
    assert loss[2] < 1e-6 < 1 < loss[1]


def test_gbce_calibration():
    g = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(8, generator=g).double(), torch.randn(8, 5, generator=g).double()
    torch.testing.assert_close(gbce_loss(101, 5, 0.0)(positive, negative), bce_loss(positive, negative) / 6)
    beta = 5 / 100  # fully calibrated
    want = (beta * F.softplus(-positive) + F.softplus(negative).sum(1)) / 6
    torch.testing.assert_close(gbce_loss(101, 5, 1.0)(positive, negative), want)
    # The released form: the positive's logit replaced by log(1 / (sigmoid(s)^-beta - 1)), then plain BCE.
    beta = 0.05 * (0.75 * (1 - 1 / 0.05) + 1 / 0.05)
    changed = (1 / (torch.sigmoid(positive) ** -beta - 1)).log()
    torch.testing.assert_close(gbce_loss(101, 5, 0.75)(positive, negative), bce_loss(changed, negative) / 6)


def estimate(kind, logq, draws_=4000, n=20):
    """Average, over many draws, of the estimate of Z = sum over all items of exp(score) that the loss
    makes."""
    g = torch.Generator().manual_seed(1)
    output, table = torch.randn(1, 4, generator=g), torch.randn(31, 4, generator=g)
    counts = torch.randint(1, 30, (31,), generator=g)
    config = ObjectiveConfig(loss="sampled-softmax", negatives=n, sampler=kind, logq=logq)
    objective = build_objective(config, 30, counts)
    assert isinstance(objective, Sampled)
    losses = []
    objective.head = lambda positive, negative: losses.append(softmax_loss(positive, negative)) or losses[-1]
    target = torch.full((draws_,), 7)
    torch.manual_seed(0)
    repeated = output.expand(draws_, -1)
    objective(repeated, target, lambda items: table if items is None else table[items], torch.arange(draws_))
    z = (torch.cat(losses) + output[0] @ table[7]).exp().double()
    return z.mean(), z.std() / draws_**0.5, (table[1:] @ output[0]).exp().sum()


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_logq_makes_the_partition_function_unbiased(kind):
    mean, error, true = estimate(kind, logq=True)
    assert abs(mean - true) < 4 * error
    mean, error, true = estimate(kind, logq=False)
    assert abs(mean - true) > 10 * error


def test_logq_gradient_is_the_corrected_one():
    """(1 - P(+)) times the gradient of ``-s+ + log sum exp(s - log q)`` over the negatives alone (RecSys
    2025)."""
    g = torch.Generator().manual_seed(3)
    positive = torch.randn(6, generator=g).double().requires_grad_()
    negative = torch.randn(6, 9, generator=g).double().requires_grad_()  # corrected already
    ours = torch.autograd.grad(softmax_loss(positive, negative).sum(), (positive, negative))
    rest = negative.logsumexp(1)
    p = torch.sigmoid(positive - rest).detach()
    theirs = torch.autograd.grad(((1 - p) * (rest - positive)).sum(), (positive, negative))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["in-batch", "mixed"])
def test_logq_of_the_batch_reads_the_counts(kind):
    counts = torch.tensor([0, 6, 3, 1])
    sampler = build_objective(
        ObjectiveConfig(loss="sampled-softmax", negatives=5, sampler=kind, logq=True), 3, counts
    ).sampler
    share = 1.0 if kind == "in-batch" else 2 / 5
    want = 5 * (share * torch.tensor([0.6, 0.3, 0.1]) + (1 - share) / 3)
    torch.testing.assert_close(sampler.log_expected(torch.tensor([1, 2, 3])).exp(), want)


def test_no_position():
    output, table, targets, row = problem()
    for share in ("position", "sequence", "batch"):
        objective = build_objective(ObjectiveConfig(loss="bce", share=share), 40)
        assert objective(output[:0], targets[:0], lambda items: table, row[:0]) == 0
