"""MQSA-TED against the paper's formulas, written out in float64 numpy: one left-padded sequence, head and
position at a time; the distillation with dense teachers and students, one occurrence at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from ensuite.data.batches import Batch, History
from ensuite.data.dataset import Events
from ensuite.models.mqsa_ted import MQSATED, MQSATEDConfig
from ensuite.objectives import ObjectiveConfig, build_objective

N, D, H, V, WINDOW, ALPHA, TAU, LAMBDA, L2 = 6, 8, 2, 9, 3, 0.3, 0.2, 0.4, 0.01
USERS = [[3, 5, 7, 2, 5], [4, 1, 5], [9, 9]]  # the last of each is a target only
LOG = [[3, 5, 7, 2, 5], [4, 1, 5, 3, 5, 7, 5, 3], [9, 9, 1]]

Weights = dict[str, np.ndarray]


def layer_norm(x: np.ndarray, w: Weights, name: str, eps: float) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def branch(x: np.ndarray, mask: np.ndarray, w: Weights, name: str, window: int, eps: float) -> np.ndarray:
    """Slots 0..N-1 as the authors have them: ``x`` [N, D] is zero where ``mask`` [N] is."""
    for b in range(2):
        p = f"{name}.blocks.{b}"
        mean = np.zeros_like(x)
        for t in range(N):
            inside = [s for s in range(t - window + 1, t + 1) if s >= 0]
            mean[t] = sum(x[s] for s in inside) / (sum(mask[s] for s in inside) + 1e-24)
        query = layer_norm(mean, w, f"{p}.query_norm", eps)
        a = f"{p}.attention"
        q = query @ w[f"{a}.query.weight"].T + w[f"{a}.query.bias"]
        kv = x @ w[f"{a}.key_value.weight"].T + w[f"{a}.key_value.bias"]
        k, v = kv[:, :D], kv[:, D:]
        attended = np.zeros_like(x)
        for t in range(N):
            for h in range(H):
                part = slice(h * D // H, (h + 1) * D // H)
                seen = [s for s in range(t + 1) if mask[s]]
                if not seen:
                    continue
                scores = np.array([q[t, part] @ k[s, part] for s in seen]) / np.sqrt(D / H)
                weights = np.exp(scores) / np.exp(scores).sum()
                attended[t, part] = sum(weight * v[s, part] for weight, s in zip(weights, seen))
        x = layer_norm(query + attended, w, f"{p}.feed_forward_norm", eps)
        f = f"{p}.feed_forward"
        inner = np.maximum(0, x @ w[f"{f}.up.weight"].T + w[f"{f}.up.bias"])
        x = (x + inner @ w[f"{f}.down.weight"].T + w[f"{f}.down.bias"]) * mask[:, None]
    return layer_norm(x, w, f"{name}.norm", eps)


def encode(items: list[int], w: Weights, eps: float) -> np.ndarray:
    """Return the mix of both branches at the real slots: [len(items), D]."""
    slots = np.array([0] * (N - len(items)) + items)
    mask = (slots != 0).astype(float)
    x = (w["items.weight"][slots] * np.sqrt(D) + w["positions.weight"]) * mask[:, None]
    short, long = (branch(x, mask, w, name, n, eps) for name, n in (("short", 1), ("long", WINDOW)))
    return (ALPHA * short + (1 - ALPHA) * long)[N - len(items) :]


def distillation(w: Weights) -> float:
    table = w["items.weight"]
    counts = np.zeros((V + 1, V + 1))
    for sequence in LOG:
        cut = sequence[-N:]
        for a, b in pairwise(cut):
            counts[a, b] += 1
    losses = []
    for items in USERS:
        for i in items[:-1]:
            row = counts[i, 1:]
            teacher = np.exp(row / max(row.max(), 1) / TAU)
            student = np.array([np.sqrt(D) * table[i] @ table[j] / TAU for j in range(1, V + 1)])
            losses.append(-(teacher / teacher.sum()) @ (student - np.log(np.exp(student).sum())))
    return float(np.mean(losses))


@pytest.mark.parametrize("as_released", [False, True])
def test_loss_and_scores_match_the_formulas(as_released: bool) -> None:
    torch.manual_seed(1)
    shape = {"dim": D, "blocks": 2, "heads": H, "max_length": N, "dropout": 0.5, "init_std": 0.5}
    method = {"window": WINDOW, "alpha": ALPHA, "tau": TAU, "lambda_kd": LAMBDA, "l2": L2}
    config = MQSATEDConfig(**shape, **method, as_released=as_released)  # type: ignore[arg-type]
    model = MQSATED(config, V, build_objective(ObjectiveConfig(), V)).eval()
    for name, parameter in model.named_parameters():  # away from the zeros and ones that hide mistakes
        noise = 0.1 * torch.randn_like(parameter)
        noise[0] = 0.0 if name == "items.weight" else noise[0]
        parameter.data.add_(noise)
    ends = np.cumsum([len(s) for s in LOG])
    items = np.concatenate(LOG).astype(np.int32)
    model.fit(Events(ends - [len(s) for s in LOG], ends, items, None, 1.0, V))
    w = {name: value.double().numpy() for name, value in model.state_dict().items()}
    eps = 1e-24 if as_released else 1e-8

    padded = np.array([sequence + [0] * (5 - len(sequence)) for sequence in USERS])
    targets = torch.from_numpy(padded[:, 1:])
    history = History(torch.from_numpy(np.where(padded[:, 1:] > 0, padded[:, :-1], 0)))
    losses = []
    for user, sequence in enumerate(USERS):
        outputs = encode(sequence[:-1], w, eps)
        with torch.no_grad():
            got = model(history)[user, : len(outputs)].numpy()
            scores = model.scorer(History(history.items[user : user + 1]), model.catalogue())(0, V + 1)[0]
        np.testing.assert_allclose(got, outputs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scores.numpy(), w["items.weight"] @ outputs[-1], rtol=1e-4, atol=1e-5)
        for output, target in zip(outputs, sequence[1:]):
            logits = w["items.weight"] @ output  # that of padding is 0
            candidates = logits if as_released else logits[1:]
            losses.append(np.log(np.exp(candidates).sum()) - logits[target])
    squares = sum((p.detach().double() ** 2).sum().item() for p in model.parameters())
    wanted = np.mean(losses) + LAMBDA * distillation(w) + L2 / 2 * squares
    loss = model.loss(Batch(history, targets, torch.arange(3)))
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
