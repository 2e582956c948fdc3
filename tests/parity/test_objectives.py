"""Each loss against its published formula, written again in float64 NumPy, one position at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ensuite.objectives import ObjectiveConfig, build_objective

V, D, T, N = 23, 6, 17, 5


@pytest.fixture
def problem():
    rng = np.random.default_rng(7)
    table, output = rng.normal(size=(V + 1, D)), rng.normal(size=(T, D))
    return table, output, rng.integers(1, V + 1, T), np.sort(rng.integers(0, 4, T))


def log_sigmoid(x: float) -> float:
    return -np.log1p(np.exp(-x)) if x > 0 else x - np.log1p(np.exp(x))


def softmax(plus: float, minus: list[float], log_expected: list[float]) -> float:
    total = np.exp(plus) + sum(np.exp(s - q) for s, q in zip(minus, log_expected))
    return -np.log(np.exp(plus) / total)


def formula(loss: str, plus: float, minus: list[float], log_expected: list[float], t: float) -> float:
    if loss == "sampled-softmax":
        return softmax(plus, minus, log_expected)
    if loss == "bce":  # SASRec, section 3.5
        return -log_sigmoid(plus) - sum(log_sigmoid(-s) for s in minus)
    if loss == "bpr":
        return -sum(log_sigmoid(plus - s) for s in minus) / N
    a = N / (V - 1)  # gSASRec, section 5
    beta = a * (t * (1 - 1 / a) + 1 / a)
    return -(beta * log_sigmoid(plus) + sum(log_sigmoid(-s) for s in minus)) / (N + 1)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("share", ["position", "sequence", "batch"])
@pytest.mark.parametrize(
    ("loss", "logq"),
    [("sampled-softmax", False), ("sampled-softmax", True), ("bce", False), ("gbce", False), ("bpr", False)],
)
def test_sampled_losses_follow_their_formulas(problem, loss, logq, share, temperature):
    table, output, targets, row = problem
    counts = np.arange(V + 1) + 1.0
    config = ObjectiveConfig(
        loss=loss,
        logq=logq,
        share=share,
        temperature=temperature,
        negatives=N,
        sampler="popularity",
        calibration=0.6,
    )
    objective = build_objective(config, V, torch.from_numpy(counts))
    torch.manual_seed(3)
    negatives, group = objective.sampler(torch.from_numpy(targets), torch.from_numpy(row))
    torch.manual_seed(3)
    vectors = torch.from_numpy(table)
    got = objective(
        torch.from_numpy(output),
        torch.from_numpy(targets),
        lambda items: vectors if items is None else vectors[items],
        torch.from_numpy(row),
    )
    q = counts[1:] / counts[1:].sum()
    losses, hits = [], 0
    for i in range(T):
        drawn = negatives if share == "batch" else negatives[i if group is None else group[i]]
        kept = [j for j in drawn.tolist() if j != targets[i]]
        hits += N - len(kept)
        scores = [output[i] @ table[j] / temperature for j in kept]
        expected = [np.log(N * q[j - 1]) if logq else 0.0 for j in kept]
        losses.append(formula(loss, output[i] @ table[targets[i]] / temperature, scores, expected, 0.6))
    assert hits > 0, "the case of a negative that equals the positive is not there"
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.item(), np.mean(losses), rtol=1e-6)  # log q is kept in float32


@pytest.mark.parametrize(("temperature", "smoothing"), [(1.0, 0.0), (0.2, 0.0), (1.0, 0.1), (0.5, 0.3)])
def test_cross_entropy_follows_its_formula(problem, temperature, smoothing):
    table, output, targets, row = problem
    vectors = torch.from_numpy(table)
    objective = build_objective(ObjectiveConfig(temperature=temperature, label_smoothing=smoothing), V)
    got = objective(
        torch.from_numpy(output), torch.from_numpy(targets), lambda items: vectors, torch.from_numpy(row)
    )
    scores = output @ table[1:].T / temperature  # [T, V]: the padding row is no candidate
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    share = np.full((T, V), smoothing / V)
    share[np.arange(T), targets - 1] += 1 - smoothing
    np.testing.assert_allclose(got.item(), -(share * log_p).sum(1).mean(), rtol=1e-12)
