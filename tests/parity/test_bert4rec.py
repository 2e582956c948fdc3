"""BERT4Rec against its formulas, written once more in NumPy: float64, one position at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ensuite.data.batches import Batch, History
from ensuite.models.bert4rec import BERT4Rec, BERT4RecConfig
from ensuite.objectives import ObjectiveConfig, build_objective

V = 15
erf = np.vectorize(math.erf)


def gelu(x):
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def naive(model: BERT4Rec, tokens: list[int]) -> np.ndarray:
    """Logits of items 1..V at every position of one sequence: [n, V]."""
    c = model.config
    w = {name: value.detach().numpy() for name, value in model.named_parameters()}

    def linear(name, x):
        return w[name + ".weight"] @ x + w[name + ".bias"]

    def norm(name, x):
        return (x - x.mean()) / math.sqrt(x.var() + 1e-12) * w[name + ".weight"] + w[name + ".bias"]

    token_type = w.get("token_type", 0)
    embedded = w["items.weight"][tokens] + w["positions.weight"][: len(tokens)] + token_type
    x = [norm("norm", row) for row in embedded]
    for layer in range(c.blocks):
        p, width = f"blocks.{layer}.", c.dim // c.heads
        queries = [linear(p + "attention.query", row).reshape(c.heads, width) for row in x]
        keys_values = [linear(p + "attention.key_value", row).reshape(2, c.heads, width) for row in x]
        out = []
        for i, row in enumerate(x):
            heads = []
            for h in range(c.heads):
                weights = np.exp([queries[i][h] @ kv[0][h] / math.sqrt(width) for kv in keys_values])
                heads.append(sum(a * kv[1][h] for a, kv in zip(weights / weights.sum(), keys_values)))
            attended = norm(p + "attention_norm", row + linear(p + "attention.output", np.concatenate(heads)))
            inner = gelu(linear(p + "feed_forward.0", attended))
            out.append(norm(p + "feed_forward_norm", attended + linear(p + "feed_forward.2", inner)))
        x = out
    head = [norm("transform.2", gelu(linear("transform.0", row))) for row in x]
    return np.stack(head) @ w["items.weight"][1 : V + 1].T + w["output_bias"][1:]


def make(**fields: object) -> tuple[BERT4Rec, list[list[int]]]:
    torch.manual_seed(2)
    config = BERT4RecConfig(dim=12, heads=3, max_length=9, init_std=0.3, **fields)  # type: ignore[arg-type]
    model = BERT4Rec(config, V, build_objective(ObjectiveConfig(), V)).double().eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    rng = np.random.default_rng(0)
    return model, [rng.integers(1, V + 1, n).tolist() for n in (8, 1, 5)]


def padded(rows: list[list[int]]) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


@pytest.mark.parametrize("as_released", [False, True])
def test_scores_of_the_next_item_are_the_formulas(as_released):
    model, users = make(as_released=as_released)
    expected = np.stack([naive(model, [*items, V + 1])[-1] for items in users])
    scores = model.scorer(History(padded(users)), model.catalogue())(1, V + 1)
    np.testing.assert_allclose(scores.detach(), expected, atol=1e-10)


def test_the_loss_and_its_gradient_are_the_formulas():
    model, users = make()
    masked = [{0, 3, 7}, {0}, {4}]
    tokens = [[V + 1 if i in at else t for i, t in enumerate(row)] for row, at in zip(users, masked)]
    targets = [[t if i in at else 0 for i, t in enumerate(row)] for row, at in zip(users, masked)]

    def loss() -> float:
        losses = []
        for row, wanted in zip(tokens, targets):
            logits = naive(model, row)
            losses += [np.log(np.exp(s).sum()) - s[t - 1] for s, t in zip(logits, wanted) if t]
        return float(np.mean(losses))

    batch = Batch(History(padded(tokens)), padded(targets), torch.arange(3))
    ours = model.loss(batch)
    assert ours.item() == pytest.approx(loss(), abs=1e-10)
    ours.backward()
    parameters, step = dict(model.named_parameters()), 1e-6
    for name, at in (("items.weight", (V + 1, 2)), ("items.weight", (users[0][1], 0)), ("output_bias", (3,)),
                     ("blocks.0.attention.key_value.weight", (4, 5)),
                     ("blocks.1.attention.query.weight", (1, 2)),
                     ("positions.weight", (3, 1)), ("transform.0.bias", (2,))):  # fmt: skip
        value, sides = parameters[name].data, []
        for sign in (1, -1):
            value[at] += sign * step
            sides.append(loss())
            value[at] -= sign * step
        expected = (sides[0] - sides[1]) / (2 * step)
        assert parameters[name].grad[at].item() == pytest.approx(expected, rel=1e-5, abs=1e-8), name
