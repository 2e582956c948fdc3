"""ICSRec's encoders and its whole loss against the sheet's formulas, in float64 numpy, one vector at a
time."""

from __future__ import annotations

from math import erf, log, sqrt

import numpy as np
import pytest
import torch

from ensuite.data.batches import Batch, History
from ensuite.models.icsrec import ICSRec, ICSRecConfig
from ensuite.objectives import ObjectiveConfig, build_objective

V, D, H, L, K = 9, 8, 2, 6, 3
FIRST = [[3, 5, 7, 2], [4, 1], [6], [9, 8, 7]]
PAIR = [[1, 2], [4, 1, 6, 6, 2], [6], [5]]
TARGETS = [4, 4, 2, 7]
Weights = dict[str, np.ndarray]


def layer_norm(x: np.ndarray, w: Weights, p: str) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-12) * w[p + ".weight"] + w[p + ".bias"]


def linear(x: np.ndarray, w: Weights, p: str) -> np.ndarray:
    return w[p + ".weight"] @ x + w[p + ".bias"]


def transformer(sequence: list[int], w: Weights) -> np.ndarray:
    """Post-norm blocks; event t of n stands in slot L - n + t, as with left padding: [n, D]."""
    slots = range(L - len(sequence), L)
    x = [w["items.weight"][i] + w["encoder.positions.weight"][slot] for i, slot in zip(sequence, slots)]
    x = [layer_norm(v, w, "encoder.norm") for v in x]
    for b in range(2):
        p = f"encoder.blocks.{b}."
        query = [linear(v, w, p + "attention.query") for v in x]
        both = [linear(v, w, p + "attention.key_value") for v in x]
        after = []
        for i in range(len(x)):
            heads = []
            for h in range(H):
                part = slice(h * D // H, (h + 1) * D // H)
                scores = np.array([query[i][part] @ both[j][:D][part] for j in range(i + 1)])
                weights = np.exp(scores / sqrt(D / H))
                weights /= weights.sum()
                heads.append(sum(weights[j] * both[j][D:][part] for j in range(i + 1)))
            attended = linear(np.concatenate(heads), w, p + "attention.output")
            v = layer_norm(x[i] + attended, w, p + "attention_norm")
            inner = linear(v, w, p + "feed_forward.0")
            inner = np.array([a * (1 + erf(a / sqrt(2))) / 2 for a in inner])  # GELU
            v = layer_norm(v + linear(inner, w, p + "feed_forward.2"), w, p + "feed_forward_norm")
            after.append(v)
        x = after
    return np.stack(x)


def gru(sequence: list[int], w: Weights) -> np.ndarray:
    """One layer, then a linear one: [n, D]."""

    def sigmoid(a: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-a))

    p, state, out = "encoder.gru.", np.zeros(2 * D), []
    for item in sequence:
        inward = w[p + "weight_ih_l0"] @ w["items.weight"][item] + w[p + "bias_ih_l0"]
        inner = w[p + "weight_hh_l0"] @ state + w[p + "bias_hh_l0"]
        (ri, zi, ni), (rh, zh, nh) = np.split(inward, 3), np.split(inner, 3)
        z = sigmoid(zi + zh)
        state = (1 - z) * np.tanh(ni + sigmoid(ri + rh) * nh) + z * state
        out.append(linear(state, w, "encoder.output"))
    return np.stack(out)


def info_nce(one: np.ndarray, two: np.ndarray, labels: list[int]) -> float:
    vectors, n, total = [*one, *two], len(one), 0.0
    for i in range(2 * n):
        positive = np.exp(vectors[i] @ vectors[(i + n) % (2 * n)])
        negative = sum(
            np.exp(vectors[i] @ vectors[j]) for j in range(2 * n) if labels[i % n] != labels[j % n]
        )
        total -= log(positive / (positive + negative))
    return total / (2 * n)


def padded(rows: list[list[int]]) -> History:
    width = max(map(len, rows))
    return History(torch.tensor([row + [0] * (width - len(row)) for row in rows]))


def build(encoder: str) -> tuple[ICSRec, Weights]:
    torch.manual_seed(1)
    config = ICSRecConfig(
        encoder=encoder, dim=D, heads=H, max_length=L, intent_num=K, init_std=0.4, lambda0=0.3, beta0=0.1
    )  # type: ignore[arg-type]
    model = ICSRec(config, V, build_objective(ObjectiveConfig(), V)).double().eval()
    for parameter in model.parameters():  # away from the zeros and ones that hide mistakes
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.items.weight.data[0] = 0
    with torch.no_grad():  # each cluster near one of the histories, so that several are in use
        model.intents.copy_(model.hidden(padded(FIRST))[[0, 1, 3]] + 0.3 * torch.randn(K, D))
    return model, {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("name", "reference"), [("transformer", transformer), ("gru", gru)])
def test_encoder_matches_the_formulas(name: str, reference: object) -> None:
    model, w = build(name)
    with torch.no_grad():
        output, last = model(padded(FIRST)).numpy(), model.encode(padded(FIRST)).numpy()
    for row, sequence in enumerate(FIRST):
        wanted = reference(sequence, w)  # type: ignore[operator]
        np.testing.assert_allclose(output[row, : len(sequence)], wanted, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(last[row], wanted[-1], rtol=1e-9, atol=1e-12)


def test_the_loss_is_the_weighted_sum_of_its_three_terms() -> None:
    model, w = build("transformer")
    targets = torch.zeros_like(padded(FIRST).items)
    for row, target in enumerate(TARGETS):
        targets[row, len(FIRST[row]) - 1] = target
    batch = Batch(padded(FIRST), targets, torch.arange(4), padded(PAIR))
    with torch.no_grad():
        found = model.loss(batch).item()
    one, two = (np.stack([transformer(s, w)[-1] for s in rows]) for rows in (FIRST, PAIR))
    next_item = 0.0
    for h, target in zip(one, TARGETS):
        scores = np.exp(w["items.weight"][1:] @ h)
        next_item -= log(scores[target - 1] / scores.sum()) / len(one)
    coarse = info_nce(one, two, TARGETS)
    fine = 0.0
    for view in (one, two):
        cluster = [int(((w["intents"] - h) ** 2).sum(1).argmin()) for h in view]  # raw, squared L2
        unit = w["intents"] / np.linalg.norm(w["intents"], axis=1, keepdims=True)
        fine += info_nce(view, unit[cluster], cluster)
    assert fine > 0.1
    assert found == pytest.approx(next_item + 0.3 * coarse + 0.1 * fine, rel=1e-9)
