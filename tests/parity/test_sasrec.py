"""SASRec's encoder against the sheet's formulas, written out in float64 numpy, one sequence, head and
position at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ensuite.data.batches import History
from ensuite.models.sasrec import SASRec, SASRecConfig

SEQUENCE = [3, 5, 7, 2]
L, D, H = 6, 8, 2


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-8) * weight + bias


def attend(query: np.ndarray, memory: np.ndarray, w: dict[str, np.ndarray], p: str) -> np.ndarray:
    """Causal attention: position i of ``query`` [n, D] sees ``memory`` [0..i], each head on its own slice of
    D / H."""
    q = query @ w[p + "query.weight"].T + w[p + "query.bias"]
    kv = memory @ w[p + "key_value.weight"].T + w[p + "key_value.bias"]
    k, v = kv[:, :D], kv[:, D:]
    out = np.zeros_like(q)
    for i in range(len(q)):
        for h in range(H):
            part = slice(h * D // H, (h + 1) * D // H)
            scores = np.array([q[i, part] @ k[j, part] for j in range(i + 1)]) / np.sqrt(D / H)
            weights = np.exp(scores) / np.exp(scores).sum()
            out[i, part] = sum(weights[j] * v[j, part] for j in range(i + 1))
    return out


def reference(w: dict[str, np.ndarray], as_released: bool) -> np.ndarray:
    """The official code left-pads: event t of n stands in slot L - n + t."""
    n = len(SEQUENCE)
    x = np.stack(
        [np.sqrt(D) * w["items.weight"][i] + w["positions.weight"][L - n + t] for t, i in enumerate(SEQUENCE)]
    )
    for b in range(2):
        p = f"blocks.{b}."

        def norm(value: np.ndarray, name: str, p: str = p) -> np.ndarray:
            return layer_norm(value, w[f"{p}{name}.weight"], w[f"{p}{name}.bias"])

        def feed_forward(value: np.ndarray, p: str = p) -> np.ndarray:
            inner = np.maximum(0, value @ w[p + "feed_forward.up.weight"].T + w[p + "feed_forward.up.bias"])
            return inner @ w[p + "feed_forward.down.weight"].T + w[p + "feed_forward.down.bias"]

        if as_released:
            query = norm(x, "attention_norm")
            x = query + attend(query, x, w, p + "attention.")
            x = norm(x, "feed_forward_norm")
            x = x + feed_forward(x)
        else:
            normed = norm(x, "attention_norm")
            attended = attend(normed, normed, w, p + "attention.")
            x = x + attended @ w[p + "attention.output.weight"].T + w[p + "attention.output.bias"]
            x = x + feed_forward(norm(x, "feed_forward_norm"))
    return layer_norm(x, w["norm.weight"], w["norm.bias"])


@pytest.mark.parametrize("as_released", [False, True])
def test_encoder_matches_the_formulas(as_released: bool) -> None:
    torch.manual_seed(1)
    config = SASRecConfig(
        dim=D, blocks=2, heads=H, max_length=L, dropout=0.5, as_released=as_released, init_std=0.5
    )
    model = SASRec(config, 9).eval()
    for parameter in model.parameters():  # away from the zeros and ones that hide mistakes
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    with torch.no_grad():
        output = model(History(torch.tensor([[*SEQUENCE, 0, 0]])))[0, : len(SEQUENCE)]
        scores = model.scorer(History(torch.tensor([SEQUENCE])), model.catalogue())(1, 10)[0]
    wanted = reference(
        {name: value.double().numpy() for name, value in model.state_dict().items()}, as_released
    )
    np.testing.assert_allclose(output.numpy(), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        scores.numpy(), model.items.weight.detach().numpy()[1:] @ wanted[-1], rtol=1e-4, atol=1e-5
    )
