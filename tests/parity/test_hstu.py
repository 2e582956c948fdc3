"""HSTU against its formulas, written again in NumPy: float64, one position and one key at a time."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from ensuite.data.batches import Batch, History
from ensuite.models.hstu import HSTU, HSTUConfig
from ensuite.objectives import ObjectiveConfig, build_objective

V = 20


def silu(x):
    return x / (1 + np.exp(-x))


def layer_norm(x, eps=1e-6):
    return (x - x.mean()) / math.sqrt(x.var() + eps)


def bucket(gap: int) -> int:
    return min(128, math.floor(math.log(max(1, abs(gap))) / 0.301))


def naive(model: HSTU, items: list[int], times: list[int], request: int) -> np.ndarray:
    """Outputs of one history, [n, D]; ``request`` is when the item after the last one is asked for."""
    c = model.config
    w = {name: value.detach().numpy() for name, value in model.named_parameters()}
    n, next_times = len(items), [*times[1:], request]
    x = w["items.weight"][items] * math.sqrt(c.dim) + w["positions.weight"][:n]
    for layer in range(c.blocks):
        p = f"blocks.{layer}."
        widths = np.cumsum([c.heads * c.dim_v] * 2 + [c.heads * c.dim_qk] * 2)[:-1]
        projected = [np.split(silu(w[p + "project_in.weight"] @ layer_norm(row)), widths) for row in x]
        out = []
        for i in range(n):
            gate, heads = projected[i][0], []
            for h in range(c.heads):
                total = np.zeros(c.dim_v)
                for j in range(i + 1):
                    query = projected[i][2].reshape(c.heads, -1)[h]
                    key = projected[j][3].reshape(c.heads, -1)[h]
                    value = projected[j][1].reshape(c.heads, -1)[h]
                    score = query @ key / (math.sqrt(c.dim_qk) if c.score_scale else 1)
                    score += w[p + "attention.position"][i - j]
                    score += w[p + "attention.time"][bucket(next_times[i] - times[j])]
                    divisor = c.max_length + 11 if c.normalizer == "constant" else i + 1
                    total += silu(score) / divisor * value
                heads.append(total)
            attended = np.concatenate(heads)
            product = layer_norm(attended) * gate
            read = np.concatenate([gate, attended, product]) if c.concat_ua else product
            out.append(w[p + "project_out.weight"] @ read + w[p + "project_out.bias"] + x[i])
        x = np.stack(out)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def make(**fields: object) -> tuple[HSTU, list[tuple[list[int], list[int], int]]]:
    torch.manual_seed(3)
    values = {"dim": 10, "dim_qk": 6, "dim_v": 5, "heads": 2, "max_length": 80, "dropout": 0.0} | fields
    objective = build_objective(ObjectiveConfig(temperature=0.05), V)
    model = HSTU(HSTUConfig(**values), V, objective).double().eval()  # type: ignore[arg-type]
    for block in model.blocks:
        block.project_in.weight.data.mul_(15)
        block.attention.time.data.normal_(0, 0.5)
        block.attention.position.data.normal_(0, 0.5)
    rng = np.random.default_rng(0)
    users = []
    for n in (1, 7, 75):  # 75: more than one block of rows
        times = (10**9 + np.exp(rng.uniform(0, 14, n + 1)).astype(int).cumsum()).tolist()
        users.append((rng.integers(1, V + 1, n).tolist(), times[:-1], times[-1]))
    return model, users


def as_history(users: list[tuple[list[int], list[int], int]]) -> History:
    longest = max(len(items) for items, _, _ in users)
    pad = [[0] * (longest - len(items)) for items, _, _ in users]
    return History(
        torch.tensor([items + p for (items, _, _), p in zip(users, pad)]),
        torch.tensor([times + p for (_, times, _), p in zip(users, pad)]),
        torch.tensor([[*times[1:], request, *p] for (_, times, request), p in zip(users, pad)]),
    )


@pytest.mark.parametrize(
    "fields", [{}, {"score_scale": True, "normalizer": "length"}, {"concat_ua": True, "heads": 1}]
)
def test_every_way_of_computing_gives_the_formulas(fields):
    model, users = make(**fields)
    history = as_history(users)
    expected = [naive(model, *user) for user in users]
    dense = torch.nn.functional.normalize(model.forward_dense(history), dim=-1)
    ways = {"forward": model(history), "dense": dense}
    for name, output in ways.items():
        for row, want in enumerate(expected):
            np.testing.assert_allclose(output[row, : len(want)].detach(), want, atol=1e-10, err_msg=name)
    last = np.stack([want[-1] for want in expected])
    np.testing.assert_allclose(model.encode(history).detach(), last, atol=1e-10)
    asked = torch.tensor([request for _, _, request in users])
    np.testing.assert_allclose(model.start_cache(history).encode(asked), last, atol=1e-10)


def test_the_loss_is_the_softmax_over_cosines_at_every_position():
    model, users = make()
    history = as_history(users)
    table = model.items.weight.detach().numpy()[1:]
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    targets, losses = torch.zeros_like(history.items), []
    for row, (items, times, request) in enumerate(users):
        wanted = [*items[1:], 5]
        targets[row, : len(items)] = torch.tensor(wanted)
        scores = naive(model, items, times, request) @ table.T / 0.05
        losses += [np.log(np.exp(s).sum()) - s[t - 1] for s, t in zip(scores, wanted)]
    loss = model.loss(Batch(history, targets, torch.arange(3)))
    assert loss.item() == pytest.approx(np.mean(losses), abs=1e-9)


def test_gradients_are_finite_differences_of_the_formulas():
    model, users = make(max_length=20)
    users = users[1:2]
    weight = np.random.default_rng(1).normal(size=(7, 10))
    (model(as_history(users))[0] * torch.from_numpy(weight)).sum().backward()
    step = 1e-6
    items, times, request = users[0]
    seen = {bucket(b - a) for a, b in pairwise([*times, request])}
    checks = [("blocks.0.attention.time", (min(seen),)), ("blocks.1.attention.time", (max(seen),)),
              ("blocks.0.attention.position", (2,)), ("blocks.1.project_in.weight", (3, 4)),
              ("blocks.0.project_out.bias", (1,)), ("items.weight", (items[2], 0))]  # fmt: skip
    parameters = dict(model.named_parameters())
    for name, at in checks:
        value = parameters[name].data
        sides = []
        for sign in (1, -1):
            value[at] += sign * step
            sides.append((naive(model, items, times, request) * weight).sum())
            value[at] -= sign * step
        expected = (sides[0] - sides[1]) / (2 * step)
        assert parameters[name].grad[at].item() == pytest.approx(expected, rel=1e-5, abs=1e-8), name
