"""Ada-Retrieval's rounds against the sheet's formulas, written out in float64 numpy for one user at a time.

The encoder is the smallest that there is, LN(e_last + p_last): what is compared are the rounds around it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ensuite.config import build_config
from ensuite.data.batches import Batch, History
from ensuite.models.ada_retrieval import AdaRetrieval
from ensuite.objectives import ObjectiveConfig, build_objective

V, D, L, T, M, LAMBDA = 30, 6, 5, 4, 5, 0.3
HISTORIES, TARGETS = [[3, 5, 7], [12, 4]], [9, 21]


def norm(x: np.ndarray, w: dict[str, np.ndarray], name: str, eps: float = 1e-12) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return scaled * w[name + ".weight"] + w[name + ".bias"]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def encode(vectors: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    return norm(vectors[-1] + w["base.positions.weight"][L - 1], w, "base.norm", 1e-8)


def filtered(x: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    """LFT: a circular convolution of the m items, dimension by dimension, then linear, residual, norm."""
    weight = w["item_adapter.filter.0.weight"]
    out = np.zeros_like(x)
    for d in range(D):
        kernel = np.fft.irfft(weight[:, d, 0] + 1j * weight[:, d, 1], n=M)
        for n in range(M):
            out[n, d] = sum(kernel[(n - j) % M] * x[j, d] for j in range(M))
    out = out @ w["item_adapter.filter.1.weight"].T + w["item_adapter.filter.1.bias"]
    return norm(x + out, w, "item_adapter.filter_norm")


def attend(items: np.ndarray, context: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    out = np.zeros_like(items)
    for i, e in enumerate(items):
        weights = np.exp([e @ c / np.sqrt(D) for c in context])
        out[i] = (weights / weights.sum()) @ context
    return norm(items + out, w, "item_adapter.norm")


def gru(users: list[np.ndarray], w: dict[str, np.ndarray]) -> np.ndarray:
    """The last state of a GRU that begins at 0 (Cho et al. 2014, in PyTorch's form)."""
    state, p = np.zeros(D), "user_adapter.gru."
    for u in users:
        x = np.split(w[p + "weight_ih"] @ u + w[p + "bias_ih"], 3)
        h = np.split(w[p + "weight_hh"] @ state + w[p + "bias_hh"], 3)
        reset, update = sigmoid(x[0] + h[0]), sigmoid(x[1] + h[1])
        state = (1 - update) * np.tanh(x[2] + reset * h[2]) + update * state
    return state


def reference(
    history: list[int], kept_out: set[int], w: dict[str, np.ndarray]
) -> tuple[list[np.ndarray], list[int]]:
    table = w["base.items.weight"]
    inputs = np.sqrt(D) * table
    items = inputs[history]
    users, listed, context = [encode(items, w)], [], []
    for t in range(T):
        if t:
            context.append(filtered(inputs[listed[-M:]], w))
            u = encode(attend(items, np.concatenate(context), w), w)
            both = np.concatenate([u, gru(users, w)])
            hidden = np.maximum(0, w["user_adapter.mlp.0.weight"] @ both + w["user_adapter.mlp.0.bias"])
            change = w["user_adapter.mlp.2.weight"] @ hidden + w["user_adapter.mlp.2.bias"]
            users.append(norm(u + change, w, "user_adapter.norm"))
        order = np.argsort(-(table @ users[-1]))
        listed += [int(i) for i in order if i != 0 and i not in kept_out | set(listed)][:M]
    return users, listed


def build(as_released: bool = False) -> tuple[AdaRetrieval, dict[str, np.ndarray]]:
    values = {
        "rounds": T, "total": T * M, "round_decay": LAMBDA, "adapter_dropout": 0.0, "init_std": 0.4,
        "as_released": as_released,
        "encoder": {"dim": D, "blocks": 0, "max_length": L, "dropout": 0.0, "init_std": 0.4},
    }  # fmt: skip
    torch.manual_seed(3)
    config = build_config(AdaRetrieval.config_for(values), values, "test")
    model = AdaRetrieval(config, V, build_objective(ObjectiveConfig(), V, None)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adapter" in name and "bias" in name:  # they start at 0
                parameter.normal_(std=0.3)
    return model, {name: p.detach().double().numpy() for name, p in model.named_parameters()}


def padded() -> History:
    width = max(map(len, HISTORIES))
    return History(torch.tensor([h + [0] * (width - len(h)) for h in HISTORIES]))


def test_users_and_lists_of_all_rounds() -> None:
    model, w = build()
    history = padded()
    with torch.no_grad():
        users, listed = model.run_rounds(history, model.item_vectors(), history.items)
    for row, items in enumerate(HISTORIES):
        expected, order = reference(items, set(items), w)
        assert listed[row].tolist() == order
        for t in range(T):
            np.testing.assert_allclose(users[t][row].numpy(), expected[t], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("as_released", [False, True])
def test_training_loss(as_released: bool) -> None:
    model, w = build(as_released)
    history = padded()
    targets = torch.zeros_like(history.items)
    targets[[0, 1], history.lengths - 1] = torch.tensor(TARGETS)
    expected = 0.0
    for items, target in zip(HISTORIES, TARGETS):
        users, _ = reference(items, set() if as_released else {*items, target}, w)
        for t, u in enumerate(users):
            scores = w["base.items.weight"][1:] @ u
            expected += LAMBDA**t * (np.log(np.exp(scores).sum()) - scores[target - 1]) / len(TARGETS)
    got = model.loss(Batch(history, targets, torch.arange(2)))
    assert got.item() == pytest.approx(expected, rel=1e-5)
