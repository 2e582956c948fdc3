"""ReaRec against the formulas of its sheet, in float64 numpy, one user, step, position and pair at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ensuite.data.batches import Batch, History
from ensuite.models.rearec import ReaRec
from ensuite.models.sasrec import SASRecConfig
from ensuite.objectives import ObjectiveConfig, build_objective

V, D, H, L, TAU = 9, 8, 2, 6, 0.7
ITEMS = [[3, 5, 7, 2], [4, 1], [9, 2, 6]]
TARGETS = [1, 6, 8]
BATCH = Batch(
    History(torch.tensor([[3, 5, 7, 2], [4, 1, 0, 0], [9, 2, 6, 0]])),
    torch.tensor([[0, 0, 0, 1], [0, 6, 0, 0], [0, 0, 8, 0]]),
    torch.arange(3),
)


def build(**settings: Any) -> ReaRec:
    torch.manual_seed(1)
    encoder = SASRecConfig(dim=D, blocks=2, heads=H, max_length=L, dropout=0.5, norm="post", init_std=0.5)
    config = ReaRec.config_for({"base": "sasrec"})(encoder=encoder, **settings)
    model = ReaRec(config, V, build_objective(ObjectiveConfig(temperature=TAU), V))
    for parameter in model.parameters():  # away from the zeros and ones that hide mistakes
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


def layer_norm(x: np.ndarray, w: dict[str, np.ndarray], name: str, eps: float) -> np.ndarray:
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return normed * w[name + ".weight"] + w[name + ".bias"]


def encoder(x: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    """Post-norm Transformer, causal, over the first layer's inputs [n, D]: the output at the last one."""
    for b in range(2):
        p = f"base.blocks.{b}."
        q = x @ w[p + "attention.query.weight"].T + w[p + "attention.query.bias"]
        kv = x @ w[p + "attention.key_value.weight"].T + w[p + "attention.key_value.bias"]
        k, v = kv[:, :D], kv[:, D:]
        attended = np.zeros_like(x)
        for i in range(len(x)):
            for h in range(H):
                part = slice(h * D // H, (h + 1) * D // H)
                weights = np.exp([q[i, part] @ k[j, part] / np.sqrt(D / H) for j in range(i + 1)])
                attended[i, part] = sum(a * v[j, part] for j, a in enumerate(weights / weights.sum()))
        attended = attended @ w[p + "attention.output.weight"].T + w[p + "attention.output.bias"]
        x = layer_norm(x + attended, w, p + "attention_norm", 1e-8)
        inner = np.maximum(0, x @ w[p + "feed_forward.up.weight"].T + w[p + "feed_forward.up.bias"])
        out = inner @ w[p + "feed_forward.down.weight"].T + w[p + "feed_forward.down.bias"]
        x = layer_norm(x + out, w, p + "feed_forward_norm", 1e-8)
    return layer_norm(x[-1], w, "base.norm", 1e-8)


def embed(items: list[int], w: dict[str, np.ndarray]) -> list[np.ndarray]:
    first = L - len(items)  # the newest event stands in the last slot
    return [
        np.sqrt(D) * w["base.items.weight"][item] + w["base.positions.weight"][first + t]
        for t, item in enumerate(items)
    ]


def reference(model: ReaRec) -> np.ndarray:
    """r_0 .. r_K of every user: the whole sequence is encoded anew for each thought: [B, K + 1, D]."""
    w = {name: value.numpy() for name, value in model.state_dict().items()}
    states = []
    for items in ITEMS:
        inputs = embed(items, w)
        r = [encoder(np.stack(inputs), w)]
        for k in range(model.config.steps):
            inputs.append(layer_norm(r[-1] + w["positions.weight"][k], w, "norm", 1e-12))
            r.append(encoder(np.stack(inputs), w))
        states.append(r)
    return np.array(states)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    return scores - np.log(np.exp(scores).sum())


def cross_entropy(vectors: np.ndarray, table: np.ndarray, temperature: float) -> float:
    """Mean over users of -log softmax over items 1..V."""
    logs = [log_softmax(u @ table[1:].T / temperature)[t - 1] for u, t in zip(vectors, TARGETS)]
    return -float(np.mean(logs))


@pytest.mark.parametrize("steps", [1, 3])
def test_states_match_the_whole_computation(steps: int) -> None:
    model = build(steps=steps)
    with torch.no_grad():
        found = model.think(BATCH.history)[0].numpy()
    np.testing.assert_allclose(found, reference(model), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pairs", ["ordered", "upper"])
def test_erl_loss(pairs: str) -> None:
    model = build(method="erl", steps=2, kl_weight=0.3, pairs=pairs)
    r, table = reference(model), model.item_vectors().detach().numpy()
    divergences = []
    for user in r:
        p = [log_softmax(state @ table[1:].T / TAU) for state in user]
        kl = {(j, i): np.sum(np.exp(p[j]) * (p[j] - p[i])) for i in range(3) for j in range(3)}
        if pairs == "ordered":
            divergences.append(np.mean([kl[j, i] for i in range(3) for j in range(3) if i != j]))
        else:
            divergences.append(kl[1, 0] + kl[2, 0] + kl[2, 1])
    wanted = cross_entropy(r.mean(1), table, TAU) - 0.3 * np.mean(divergences)
    assert model.loss(BATCH).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("pl_weight", [None, 0.25])
@pytest.mark.parametrize("noisy_from", ["clean", "own"])
def test_prl_loss(pl_weight: float | None, noisy_from: str) -> None:
    settings: dict[str, Any] = {"pl_weight": pl_weight, "noisy_from": noisy_from, "cl_weight": 0.6}
    model = build(method="prl", steps=2, alpha=1.5, gamma=0.04, noise="variance", warmup=0, **settings)
    r, table = reference(model), model.item_vectors().detach().numpy()
    torch.manual_seed(7)
    noisy = model.think(BATCH.history, 0.2)[1]  # std = sqrt(gamma)
    assert noisy is not None
    twin = noisy.detach().numpy()
    earlier = [cross_entropy(r[:, k], table, TAU * 1.5 ** (2 - k)) for k in (0, 1)]
    contrast = []
    for k in (1, 2):
        for b in range(3):
            logits = np.array([twin[b, k - 1] @ r[other, k] / TAU for other in range(3)])
            contrast.append(-log_softmax(logits)[b])
    wanted = cross_entropy(r[:, 2], table, TAU) + 0.6 * np.mean(contrast)
    wanted += sum(earlier) if pl_weight is None else pl_weight * np.mean(earlier)
    torch.manual_seed(7)
    assert model.loss(BATCH).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("noisy_from", ["clean", "own"])
def test_noisy_thoughts(noisy_from: str) -> None:
    """Noise enters before the norm; the noisy chain has a memory of its own, whatever it starts from."""
    model = build(steps=2, noisy_from=noisy_from)
    torch.manual_seed(7)
    noisy = model.think(BATCH.history, 0.5)[1]
    assert noisy is not None
    torch.manual_seed(7)
    noise = [0.5 * torch.randn(3, D, dtype=torch.float64).numpy() for _ in range(2)]
    w = {name: value.numpy() for name, value in model.state_dict().items()}
    for b, (items, clean) in enumerate(zip(ITEMS, reference(model))):
        inputs, own = embed(items, w), clean[0]
        for k in range(2):
            source = clean[k] if noisy_from == "clean" else own
            inputs.append(layer_norm(source + w["positions.weight"][k] + noise[k][b], w, "norm", 1e-12))
            own = encoder(np.stack(inputs), w)
            np.testing.assert_allclose(noisy[b, k].detach().numpy(), own, rtol=1e-8, atol=1e-8)
