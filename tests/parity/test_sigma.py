"""SIGMA against the sheet's formulas, written out in float64 numpy, one user and one position at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ensuite.data.batches import History
from ensuite.models.sigma import SIGMA, SIGMAConfig

SEQUENCES = [[3, 5, 7, 2, 9, 1, 4], [6, 8, 3], [2], [4, 9, 1, 6]]  # with 2 kept: 5, 1, 0 and 2 are turned
L, D, N, KERNEL = 9, 6, 3, 4
Weights = dict[str, np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def gelu(x: np.ndarray) -> np.ndarray:
    return torch.nn.functional.gelu(torch.from_numpy(x)).numpy()


def linear(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    bias = w.get(f"{name}.bias")
    return x @ w[f"{name}.weight"].T + (0 if bias is None else bias)


def norm(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def mamba(x: np.ndarray, w: Weights, p: str) -> np.ndarray:
    """Read x [n, D]; a state of [E, N] numbers."""
    inner = 2 * D
    both = linear(x, w, p + "input")
    raw, z = both[:, :inner], both[:, inner:]
    rank = w[p + "step_size.weight"].shape[1]
    a = -np.exp(w[p + "log_decay"])
    h, out = np.zeros((inner, N)), []
    for t in range(len(x)):
        u = w[p + "conv_bias"].copy()
        for k in range(KERNEL):
            if t - KERNEL + 1 + k >= 0:
                u += w[p + "conv_weight"][:, k] * raw[t - KERNEL + 1 + k]
        u = silu(u)
        selected = linear(u, w, p + "select")
        dt = np.log1p(np.exp(linear(selected[:rank], w, p + "step_size")))
        b, c = selected[rank : rank + N], selected[rank + N :]
        h = np.exp(dt[:, None] * a) * h + dt[:, None] * b[None] * u[:, None]
        out.append(linear((h @ c + w[p + "skip"] * u) * silu(z[t]), w, p + "output"))
    return np.stack(out)


def gru(x: np.ndarray, w: Weights, p: str) -> np.ndarray:
    h, out = np.zeros(D), []
    for row in x:
        i, j = w[p + "weight_ih_l0"] @ row, w[p + "weight_hh_l0"] @ h
        reset, update = sigmoid(i[:D] + j[:D]), sigmoid(i[D : 2 * D] + j[D : 2 * D])
        new = np.tanh(i[2 * D :] + reset * j[2 * D :])
        h = (1 - update) * new + update * h
        out.append(h)
    return np.stack(out)


def convolve(x: np.ndarray, w: Weights, p: str, ahead: int) -> np.ndarray:
    padded = np.concatenate([np.zeros((2 - ahead, D)), x, np.zeros((ahead, D))])
    taps, bias = w[p + "conv"], w[p + "conv_bias"]
    return np.stack([bias + sum(padded[t + k] @ taps[k] for k in range(3)) for t in range(len(x))])


def reference(sequence: list[int], w: Weights, c: SIGMAConfig) -> np.ndarray:
    """The user's vector. As released there are `max_length` slots and padding is read like an event."""
    slots = c.as_released or c.flip == "released"
    read = sequence + [0] * (L - len(sequence)) if slots else sequence
    x = norm(w["items.weight"][read], w, "norm")
    turned = c.flipped_slots if slots else max(0, len(sequence) - c.kept)
    for n in range(c.blocks):
        p = f"blocks.{n}."
        q = p + "mamba."
        m = mamba(x, w, q + "mamba.")
        other = np.concatenate([x[:turned][::-1], x[turned:]])
        other_m = mamba(other, w, q + "mamba.")
        if c.gate != "none":
            u = linear(x, w, q + "gate.main") + x
            g = linear(silu(u), w, q + "gate.silu") + linear(sigmoid(u), w, q + "gate.sigmoid")
            m = m * g + m
            if c.flip != "none":
                v = linear(other, w, q + "gate.flipped") + other
                second = g if c.as_released or c.gate == "released" else v
                g = linear(silu(v), w, q + "gate.silu") + linear(sigmoid(second), w, q + "gate.sigmoid")
                other_m = other_m * g + other_m
        if c.flip != "none" or c.fe_gru:
            main, flip, short = w[q + "weights"]
            total = main * m
            if c.flip != "none":
                total = total + flip * other_m
            if c.fe_gru:
                features = x
                if c.fe_conv != "none":
                    features = convolve(x, w, q + "short_term.", 1 if c.fe_conv == "centred" else 0)
                total = total + short * gru(features, w, q + "short_term.gru.")
            m = linear(total, w, q + "projection")
        h = norm(m if c.blocks == 1 else m + x, w, p + "norm")
        x = norm(linear(gelu(linear(h, w, p + "up")), w, p + "down") + h, w, p + "feed_forward_norm")
    return x[len(sequence) - 1]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"blocks": 2},
        {"kept": 0},
        {"gate": "released"},
        {"gate": "none"},
        {"fe_conv": "causal"},
        {"fe_conv": "none"},
        {"fe_gru": False},
        {"flip": "none"},
        {"flip": "none", "gate": "none", "fe_gru": False},
        {"flip": "released", "flipped_slots": 7},
        {"as_released": True, "flipped_slots": 7, "blocks": 2},
    ],
    ids=str,
)
def test_user_vectors_match_the_formulas(settings: dict[str, Any]) -> None:
    torch.manual_seed(1)
    defaults = {"dim": D, "max_length": L, "d_state": N, "kept": 2, "dropout": 0.5}
    config = SIGMAConfig(**(defaults | settings))
    model = SIGMA(config, 9).eval()
    for parameter in model.parameters():  # away from the zeros and ones that hide mistakes
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    model.items.weight.data[0] = 0
    items = torch.tensor([s + [0] * (7 - len(s)) for s in SEQUENCES])
    with torch.no_grad():
        found = model.encode(History(items))
        every = model(History(items))
    w = {name: value.double().numpy() for name, value in model.state_dict().items()}
    wanted = np.stack([reference(s, w, config) for s in SEQUENCES])
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5)
    last = every[torch.arange(4), torch.tensor([len(s) - 1 for s in SEQUENCES])]
    np.testing.assert_allclose(last.numpy(), wanted, rtol=1e-4, atol=1e-5)
