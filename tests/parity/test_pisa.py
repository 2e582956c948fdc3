"""PISA against the sheet's formulas, written out in float64 numpy, one session, track and pair at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ensuite.data.batches import Batch, read_history
from ensuite.data.dataset import Events
from ensuite.models.pisa import PISA, PISAConfig
from ensuite.objectives import ObjectiveConfig, build_objective

V, D, H, S, K = 12, 8, 2, 4, 3
START = 1_600_000_000
# One user: (when it began, tracks); longer than S, with repeats, new tracks and a session of one track.
SESSIONS = [
    (0, [1, 2, 3]), (40_000, [2, 4]), (90_000, [1]), (95_000, [5, 2, 6, 7]), (400_000, [2, 1, 8]),
    (401_000, [9, 10]), (900_000, [2, 5, 1]),
]  # fmt: skip
REQUEST = 1_000_000
Weights = dict[str, np.ndarray]


def log() -> Events:
    items = np.concatenate([tracks for _, tracks in SESSIONS]).astype(np.int32)
    time = np.concatenate([[START + begin + 30 * n for n in range(len(t))] for begin, t in SESSIONS])
    session = np.repeat(np.arange(len(SESSIONS)), [len(t) for _, t in SESSIONS])
    return Events(np.array([0]), np.array([len(items)]), items, time, 1.0, V, session)


def co_occurrence() -> np.ndarray:
    """C = D^-1/2 F D^-1/2."""
    counts = np.zeros((V + 1, V + 1))
    for _, tracks in SESSIONS:
        for a in tracks:
            for b in tracks:
                counts[a, b] += a != b
    degree = counts.sum(1)
    norm = np.sqrt(np.outer(degree, degree))
    return np.divide(counts, norm, out=np.zeros_like(counts), where=norm > 0)


def base_level(before: list[tuple[int, list[int]]], now: float) -> np.ndarray:
    """The softmax over all tracks heard of ln sum (t_ref - t_k)^-0.5."""
    level = np.zeros(V + 1)
    for begin, tracks in before:
        for track in tracks:
            level[track] += max(now - begin, 1) ** -0.5
    return level / level.sum() if level.any() else level


def session_vector(w: Weights, tracks: list[int], level: np.ndarray) -> np.ndarray:
    items, together = w["items.weight"], co_occurrence()
    activation = []
    for v in tracks:
        others = [o for o in tracks if o != v]
        parts = [level[v], sum(together[v, o] for o in others), sum(items[v] @ items[o] for o in others)]
        activation.append(sum(max(g, 0) * max(p, 0) for g, p in zip(w["gains"], parts)) + 1e-8)
    weights = np.sqrt(activation) / np.sqrt(activation).sum()
    return sum(a * items[v] for a, v in zip(weights, tracks))


def layer_norm(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-8)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def block(x: np.ndarray, w: Weights, p: str) -> np.ndarray:
    """SASRec's: normalised queries, raw keys and values, the normalised query added back."""
    query = layer_norm(x, w, p + "attention_norm")
    q = query @ w[p + "attention.query.weight"].T + w[p + "attention.query.bias"]
    kv = x @ w[p + "attention.key_value.weight"].T + w[p + "attention.key_value.bias"]
    out = np.zeros_like(x)
    for i in range(len(x)):
        for h in range(H):
            part = slice(h * D // H, (h + 1) * D // H)
            scores = np.array([q[i, part] @ kv[j, :D][part] for j in range(i + 1)]) / np.sqrt(D / H)
            share = np.exp(scores) / np.exp(scores).sum()
            out[i, part] = sum(share[j] * kv[j, D:][part] for j in range(i + 1))
    x = layer_norm(query + out, w, p + "feed_forward_norm")
    inner = np.maximum(0, x @ w[p + "feed_forward.up.weight"].T + w[p + "feed_forward.up.bias"])
    return x + inner @ w[p + "feed_forward.down.weight"].T + w[p + "feed_forward.down.bias"]


def reference(w: Weights, sessions: list[Any], request: float, legacy_time: bool) -> tuple[np.ndarray, ...]:
    """Return z, lt and the session vectors of the last S of ``sessions``, the next one asked for at
    ``request``."""
    first = max(0, len(sessions) - S)
    moments = [begin for begin, _ in sessions] + [request]
    x, long = [], []
    for k in range(first, len(sessions)):
        at = len(sessions) if legacy_time else k
        x.append(session_vector(w, sessions[k][1], base_level(sessions[:at], moments[at])))
        after = len(sessions) if legacy_time else k + 1
        level = base_level(sessions[:after], moments[after])
        best = sorted(range(1, V + 1), key=lambda v: (-np.float32(level[v]), v))[:K]
        long.append(unit(sum(level[v] * w["items.weight"][v] for v in best)))
    x, long = np.array(x), np.array(long)
    h = np.sqrt(D) * x + w["positions.weight"][S - len(x) :]
    for b in range(2):
        h = block(h, w, f"blocks.{b}.")
    short = unit(h)
    mix = np.concatenate([long, short], 1) @ w["fusion.weight"].T + w["fusion.bias"]
    share = np.exp(mix) / np.exp(mix).sum(1, keepdims=True)
    return unit(share[:, :1] * long + share[:, 1:] * short + x), long, x


def build(**settings: Any) -> tuple[PISA, Weights]:
    torch.manual_seed(3)
    loss = build_objective(ObjectiveConfig(loss="bpr", negatives=1), V)
    shape: dict[str, Any] = {"dim": D, "heads": H, "sessions": S, "long_term": K, "init": "random"}
    model = PISA(PISAConfig(**(shape | settings)), V, loss).eval()
    model.fit(log())
    for parameter in model.parameters():  # away from the zeros and ones that hide mistakes
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.items.weight.data[0] = 0
    model.gains.data = torch.tensor([0.7, 0.2, 0.4])
    return model, {name: value.double().numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("legacy_time", [False, True])
@pytest.mark.parametrize("n", [1, 3, 7])
def test_scores_match_the_formulas(n: int, legacy_time: bool) -> None:
    model, w = build(legacy_time=legacy_time)
    events = log()
    assert events.session is not None
    end = np.array([int((events.session < n).sum())])
    history = read_history(events, np.array([0]), end, np.array([START + REQUEST]))
    with torch.no_grad():
        scores = model.scorer(history, model.catalogue())(1, V + 1)[0]
    z, long, _ = reference(w, SESSIONS[:n], REQUEST, legacy_time)
    wanted = w["items.weight"][1:] @ (z[-1] + 0.5 * long[-1])
    np.testing.assert_allclose(scores.numpy(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("n", [4, 5, 7])
def test_loss_matches_the_formulas(n: int, legacy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one negative that is the same for all, each track loss is a mean of known terms."""
    model, w = build(legacy_regression=legacy, lambda_task=0.6, lambda_pos=0.3, lambda_ls=0.4)
    negative = 11
    monkeypatch.setattr(
        model.objective.sampler,
        "draw",
        lambda shape, targets: torch.full(shape, negative),  # type: ignore[union-attr]
    )
    events = log()
    assert events.session is not None
    history = read_history(events, np.array([0]), np.array([int((events.session < n).sum())]))
    targets = history.items * (history.sessions > 0)
    loss = float(model.loss(Batch(history, targets, torch.zeros(1))).detach())

    read, asked = SESSIONS[: n - 1], SESSIONS[n - 1][0]
    z, long, _ = reference(w, read, asked, False)
    first = max(0, len(read) - S)
    own = [
        session_vector(w, SESSIONS[k][1], base_level(SESSIONS[:k], SESSIONS[k][0]))
        for k in range(first + 1, n)
    ]
    items = w["items.weight"]

    def bpr(queries: Any) -> np.ndarray:
        return np.array(
            [
                np.log1p(np.exp(-(q @ items[v] - q @ items[negative])))
                for q, (_, tracks) in zip(queries, SESSIONS[first + 1 : n])
                for v in tracks
            ]
        )

    cells = len(z) * 10 if legacy else len(bpr(z))
    track = (0.3 * bpr(own) + 0.7 * bpr(z) + 0.4 * bpr(long)).sum() / cells
    cosine = [q @ y / np.linalg.norm(q) / np.linalg.norm(y) for q, y in zip(z, own)]
    regression = (1 - np.array(cosine)).mean() / (len(z) if legacy else 1)
    assert loss == pytest.approx(0.6 * track + 0.4 * regression, rel=1e-4)
