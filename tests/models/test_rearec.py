"""What ReaRec's sheet demands beyond the contract suite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ensuite.config import read_yaml
from ensuite.data.batches import Batch, History
from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.evaluate.evaluate import evaluate
from ensuite.models.base import Stepwise
from ensuite.models.bert4rec import BERT4RecConfig
from ensuite.models.hstu import HSTU, HSTUConfig
from ensuite.models.rearec import ReaRec
from ensuite.models.registry import load_model
from ensuite.models.sasrec import SASRecConfig
from ensuite.nn.time_bias import time_buckets
from ensuite.objectives import ObjectiveConfig, build_objective
from ensuite.objectives.divergence import step_divergence
from ensuite.training.config import resolve
from ensuite.training.loop import train

V = 19
ITEMS = torch.tensor([[3, 5, 7, 2], [4, 1, 0, 0], [9, 0, 0, 0]])
HISTORY = History(
    ITEMS,
    torch.where(ITEMS > 0, 1_000 * torch.arange(1, 5), 0),
    torch.where(ITEMS > 0, 1_000 * torch.arange(2, 6) + 70, 0),
)
BATCH = Batch(HISTORY, torch.tensor([[0, 0, 0, 1], [0, 6, 0, 0], [11, 0, 0, 0]]), torch.arange(3))
SMALL: dict[str, Any] = {
    "sasrec": SASRecConfig(dim=8, blocks=2, heads=2, max_length=6, dropout=0.1, init_std=0.5),
    "bert4rec": BERT4RecConfig(dim=8, blocks=2, heads=2, inner=12, max_length=6, init_std=0.3),
    "hstu": HSTUConfig(dim=8, blocks=2, heads=2, dim_qk=4, dim_v=4, max_length=6, init_std=0.5),
}


def build(
    base: str = "sasrec", encoder: Any = None, objective: dict[str, Any] | None = None, **settings: Any
) -> ReaRec:
    torch.manual_seed(0)
    cls = ReaRec.config_for({"base": base})
    loss = build_objective(ObjectiveConfig(**(objective or {})), V, torch.ones(V + 1))
    return ReaRec(cls(base=base, encoder=encoder or SMALL[base], **settings), V, loss).eval()


def scores(model: Any, history: History = HISTORY) -> Tensor:
    with torch.inference_mode():
        return model.scorer(history, model.catalogue())(1, V + 1)


# -- the base and its thoughts --


@pytest.mark.parametrize("method", ["erl", "prl", "none"])
@pytest.mark.parametrize("base", SMALL)
def test_without_steps_it_is_the_base(base: str, method: str) -> None:
    model = build(base, steps=0, method=method)
    alone = load_model(base)(SMALL[base], V, model.objective).eval()  # type: ignore[call-arg]
    alone.load_state_dict(model.base.state_dict())
    torch.testing.assert_close(scores(model), scores(alone), rtol=1e-5, atol=1e-6)
    if base != "bert4rec":  # it learns from masked items by itself
        torch.testing.assert_close(model.loss(BATCH), alone.loss(BATCH))
    assert not list(model.norm.parameters())
    assert model.positions is None


ENCODERS = [
    ("sasrec", SMALL["sasrec"]),
    ("sasrec", SASRecConfig(dim=8, heads=2, max_length=6, norm="post", init_std=0.5)),
    ("sasrec", SASRecConfig(dim=8, max_length=6, as_released=True, init_std=0.5)),
    ("sasrec", SASRecConfig(dim=8, max_length=6, residual="gated", activation="swiglu", similarity="cosine")),
    ("sasrec", SASRecConfig(dim=8, blocks=1, max_length=6, positions="start", init_std=0.5)),
    ("sasrec", SASRecConfig(dim=8, blocks=0, max_length=6, init_std=0.5)),
    ("hstu", SMALL["hstu"]),
    ("hstu", HSTUConfig(dim=8, dim_qk=4, dim_v=4, max_length=6, time_mode="last_event", init_std=0.5)),
    ("hstu", HSTUConfig(dim=8, blocks=1, dim_qk=4, dim_v=4, max_length=6, activation="softmax")),
    ("hstu", HSTUConfig(dim=8, dim_qk=4, dim_v=4, max_length=6, normalizer="length", init_std=0.5)),
    ("hstu", HSTUConfig(dim=8, dim_qk=4, dim_v=4, max_length=6, time_bias=False, init_std=0.5)),
]


@pytest.mark.parametrize(("base", "encoder"), ENCODERS, ids=lambda x: str(x)[:60])
def test_cached_reasoning_equals_reading_the_longer_sequence(base: str, encoder: Any) -> None:
    """One row at a time, the thoughts appended to the embedded history and everything computed anew: the
    cached states are the same, and no thought moves an event or an earlier thought."""
    model = build(base, encoder, steps=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        cached, _ = model.think(HISTORY)
        for row, length in enumerate(HISTORY.lengths.tolist()):
            one = History(*(x[row : row + 1, :length] for x in (ITEMS, HISTORY.times, HISTORY.request_times)))
            x = model.base.embed(one)
            earlier = None
            for k in range(4):
                output = whole(model, one, x)  # [1, length + k, D]
                torch.testing.assert_close(output[0, -1], cached[row, k], rtol=1e-4, atol=1e-5)
                if earlier is not None:
                    torch.testing.assert_close(output[:, :-1], earlier, rtol=1e-4, atol=1e-5)
                earlier = output
                if k < 3:
                    assert model.positions is not None
                    token = model.norm(output[:, -1] + model.positions.weight[k])
                    x = torch.cat([x, token[:, None]], 1)


def whole(model: ReaRec, history: History, x: Tensor) -> Tensor:
    """All outputs of a base for a row's first-layer inputs ``x``, computed at once: [1, n, D]."""
    base = model.base
    if not isinstance(base, HSTU):
        for block in base.blocks:
            x = block(x)
        x = base.norm(x)
        return torch.nn.functional.normalize(x, dim=-1) if base.config.similarity == "cosine" else x
    steps = torch.arange(x.shape[1])[None]
    offsets, buckets = steps[:, :, None] - steps[:, None], None
    times, queries = base.query_times(history)
    if times is not None and queries is not None:
        more = queries[:, -1:].expand(1, x.shape[1] - times.shape[1])  # thoughts stand at the request's time
        buckets = time_buckets(torch.cat([queries, more], 1), torch.cat([times, more], 1))
    for layer in base.stack:
        x = layer.dense(x, offsets >= 0, offsets, buckets)
    return torch.nn.functional.normalize(x, dim=-1)


def test_bert4rec_thinks_after_its_mask_and_no_event_sees_a_thought() -> None:
    """Both ways among events and mask, one way among thoughts, against a full computation with that mask."""
    model = build("bert4rec", steps=2)
    with torch.no_grad():
        cached, _ = model.think(HISTORY)
        base, one = model.base, model.base.with_mask(History(ITEMS[:1]))
        x, n = base.embed(one), one.items.shape[1]
        for k in range(3):
            width = n + k
            causal = torch.ones(width, width, dtype=torch.bool).tril()
            causal[:n, :n] = True
            y = x
            for block in base.blocks:
                y = block(y, y, causal[None])
            output = base._head(y[:, -1])
            torch.testing.assert_close(output[0], cached[0, k], rtol=1e-4, atol=1e-5)
            if k < 2:
                assert model.positions is not None
                x = torch.cat([x, model.norm(output[:, :8] + model.positions.weight[k])[:, None]], 1)


@pytest.mark.parametrize("base", SMALL)
def test_a_full_window_leaves_room_for_any_number_of_thoughts(base: str) -> None:
    model = build(base, steps=20)
    items = torch.randint(1, V + 1, (2, 6))
    times = 1000 * torch.arange(6).expand(2, 6)
    assert bool(torch.isfinite(scores(model, History(items, times, times + 5))).all())


def test_padding_and_its_amount_change_no_state() -> None:
    for base in SMALL:
        model = build(base)
        wide = History(
            *(torch.nn.functional.pad(x, (0, 1)) for x in (ITEMS, HISTORY.times, HISTORY.request_times))
        )
        with torch.no_grad():
            torch.testing.assert_close(model.think(wide)[0], model.think(HISTORY)[0], rtol=1e-4, atol=1e-5)


def test_the_base_and_the_catalogue_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(steps=5)
    calls: dict[str, int] = {}

    def counted(name: str) -> None:
        inner = getattr(model.base, name)

        def call(*args: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return inner(*args)

        monkeypatch.setattr(model.base, name, call)

    for name in ("begin", "step", "item_vectors", "embed"):
        counted(name)
    scores(model)
    assert calls == {"begin": 1, "embed": 1, "step": 5, "item_vectors": 1}


# -- what ranks --


@pytest.mark.parametrize("base", SMALL)
def test_erl_ranks_by_the_mean_and_prl_by_the_last(base: str) -> None:
    mean, last = build(base, method="erl", steps=3), build(base, method="prl", steps=3)
    with torch.no_grad():
        states, _ = mean.think(HISTORY)
        torch.testing.assert_close(mean.encode(HISTORY), states.mean(1))
        torch.testing.assert_close(mean.read_out(states[:, [2, 0, 3, 1]]), mean.read_out(states))
        torch.testing.assert_close(last.encode(HISTORY), states[:, -1])
        assert not torch.allclose(states[:, 0], states[:, 3], atol=1e-3)
        for k in range(4):
            mean.step = k
            torch.testing.assert_close(mean.encode(HISTORY), states[:, k])


def test_forward_reasons_after_every_prefix() -> None:
    model = build("hstu")
    with torch.no_grad():
        every = model(HISTORY)
        for length in (1, 2, 3):
            part = History(*(x[:1, :length] for x in (ITEMS, HISTORY.times, HISTORY.request_times)))
            torch.testing.assert_close(every[0, length - 1], model.encode(part)[0], rtol=1e-4, atol=1e-5)


def test_positions_tell_the_steps_apart_and_the_naive_form_has_none() -> None:
    model, naive = build(steps=2), build(steps=2, positions=False)
    assert naive.positions is None
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in naive.parameters()) == 2 * 8
    model.loss(BATCH).backward()
    assert model.positions is not None
    gradient = model.positions.weight.grad
    assert gradient is not None
    assert bool((gradient.abs().sum(1) > 0).all())
    assert model.positions.weight.shape == (2, 8)


# -- losses --


def test_softness_falls_to_one() -> None:
    assert build(alpha=2.0, steps=3).softness() == [8.0, 4.0, 2.0, 1.0]
    assert build(alpha=1.0, steps=3).softness() == [1.0] * 4
    falling = build(alpha=1.2, steps=4).softness()
    assert falling == sorted(set(falling), reverse=True)


def test_loss_at_the_start_is_near_that_of_chance() -> None:
    for method in ("erl", "none"):
        model = build(encoder=SASRecConfig(dim=8, max_length=6, init_std=0.001), method=method, kl_weight=0.0)
        assert model.loss(BATCH).item() == pytest.approx(math.log(V), abs=0.1)
    model = build(encoder=SASRecConfig(dim=8, max_length=6, init_std=0.001), cl_weight=0.0, pl_weight=1.0)
    assert model.loss(BATCH).item() == pytest.approx(2 * math.log(V), abs=0.1)


@pytest.mark.parametrize("objective", ["cross-entropy", "sampled-softmax", "bce", "gbce", "bpr"])
@pytest.mark.parametrize("base", SMALL)
def test_every_objective_of_the_toolkit_teaches_every_step(base: str, objective: str) -> None:
    for method in ("erl", "prl"):
        model = build(base, objective={"loss": objective, "negatives": 3}, method=method, warmup=0).train()
        model.loss(BATCH).backward()
        assert model.positions is not None
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool((model.positions.weight.grad.abs().sum(1) > 0).all())  # type: ignore[union-attr]


def test_contrast_waits_for_its_epoch_and_for_noise() -> None:
    def began(epoch: int, **settings: Any) -> float:
        model = build(**settings)
        model.start_epoch(epoch, [])
        return model.noise_now()

    assert [began(epoch) for epoch in range(4)] == [0.0, 0.0, 0.01, 0.01]  # warm-up 2: from the third
    assert began(2, noise="variance") == pytest.approx(0.1)
    assert began(0, warmup=0) == 0.01
    for off in ({"gamma": 0.0}, {"cl_weight": 0.0}, {"method": "erl"}, {"method": "none"}, {"steps": 0}):
        assert began(9, **off) == 0.0
    plain, waiting, contrasting = build(cl_weight=0.0), build(warmup=3), build(warmup=3)
    contrasting.start_epoch(3, [])
    losses = [m.loss(BATCH) for m in (plain, waiting, contrasting)]
    torch.testing.assert_close(losses[0], losses[1])
    assert losses[2] > losses[1] + 0.1
    assert "epoch" in contrasting.state_dict()  # a training resumed in mid-epoch goes on with its noise


def test_noisy_chain_follows_the_clean_one_or_itself() -> None:
    torch.manual_seed(3)
    states = {}
    for source in ("clean", "own"):
        model = build(steps=3, noisy_from=source)
        with torch.no_grad():
            torch.manual_seed(5)
            clean, noisy = model.think(HISTORY, 0.3)
        assert noisy is not None
        assert noisy.shape == (3, 3, 8)
        torch.testing.assert_close(clean, model.think(HISTORY)[0])  # noise does not reach the clean chain
        states[source] = noisy
    torch.testing.assert_close(states["clean"][:, 0], states["own"][:, 0])  # both start at r_0
    assert not torch.allclose(states["clean"][:, 1], states["own"][:, 1], atol=1e-3)


def test_divergence_is_zero_for_equal_steps_and_spares_the_detached_side() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(V, 8)
    same = torch.randn(4, 1, 8).expand(4, 3, 8)
    for pairs in ("ordered", "upper"):
        assert step_divergence(same, vectors, 0.5, pairs).abs() < 1e-5  # type: ignore[arg-type]
    states = torch.randn(4, 2, 8, requires_grad=True)
    step_divergence(states, vectors).backward()
    assert states.grad is not None
    found, states.grad = states.grad.clone(), None
    p, q = ((states[:, k] @ vectors.T).log_softmax(-1) for k in (0, 1))
    both = (p.exp() * (p - q.detach())).sum(-1) + (q.exp() * (q - p.detach())).sum(-1)
    (both.mean() / 2).backward()
    torch.testing.assert_close(found, states.grad)


def test_divergence_in_parts_equals_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def value_and_gradients(held: int) -> list[Tensor]:
        monkeypatch.setattr("ensuite.objectives.divergence.HELD", held)
        torch.manual_seed(0)
        states, vectors = torch.randn(7, 3, 8, requires_grad=True), torch.randn(V, 8, requires_grad=True)
        value = step_divergence(states, vectors, 0.7)
        value.backward()
        return [value, states.grad, vectors.grad]  # type: ignore[list-item]

    for some, all_at_once in zip(value_and_gradients(2 * 3 * V), value_and_gradients(1 << 20)):
        torch.testing.assert_close(some, all_at_once)


def test_divergence_over_drawn_items() -> None:
    torch.manual_seed(0)
    model, exact = build(method="erl", kl_items=5), build(method="erl", kl_items=V)
    states = torch.randn(4, 3, 8)
    drawn = {round(model.divergence(states).item(), 6) for _ in range(4)}
    assert len(drawn) == 4  # other items each time
    torch.testing.assert_close(exact.divergence(states), build(method="erl").divergence(states))


def test_padding_as_a_class_adds_one_to_the_catalogue() -> None:
    right, released = build(cl_weight=0.0), build(cl_weight=0.0, as_released=True)
    assert released.candidates(None).shape == (V + 2, 8)
    assert bool((released.candidates(None)[-1] == 0).all())
    assert released.loss(BATCH) > right.loss(BATCH) + 1e-3
    assert scores(released).shape == scores(right).shape == (3, V)


def test_a_training_in_bfloat16_stays_finite() -> None:
    for method in ("erl", "prl"):
        model = build(method=method, warmup=0).train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(BATCH)
        loss.backward()
        assert bool(torch.isfinite(loss))


# -- learning --


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "prl", "steps": 2, "warmup": 1},
        {"method": "erl", "steps": 1},
        {"method": "prl", "steps": 2, "base": "hstu", "encoder": {"dim": 32, "dim_qk": 16, "dim_v": 16}},
    ],
    ids=str,
)
def test_it_learns_a_cycle(settings: dict[str, Any], cycle: Dataset, tmp_path: Path) -> None:
    encoder = {"dim": 32, "max_length": 10, "dropout": 0.1} | settings.get("encoder", {})
    recipe = {
        "model": settings | {"encoder": encoder},
        "objective": {"temperature": 0.05 if settings.get("base") == "hstu" else 1.0},
        "training": {
            "epochs": 12,
            "batch_size": 64,
            "lr": 0.01,
            "schedule": "cosine",
            "validate_every": 12,
        },
    }
    run = train("rearec", cycle, tmp_path / "run", recipe=recipe, seed=1)
    assert evaluate(run.model, cycle, "test", ["hr@1"], exclude="none").metrics["hr@1"] > 0.97


# -- mistakes --


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": -1}, "steps = -1: at least 0"),
        ({"alpha": 0.5}, "alpha = 0.5: below 1"),
        ({"thought_dropout": 1.0}, "thought_dropout = 1.0"),
        ({"pl_weight": -1.0}, "pl_weight = -1.0"),
        ({"gamma": -0.1}, "gamma = -0.1"),
        ({"kl_items": 1}, "kl_items = 1"),
        ({"as_released": True, "kl_items": 50}, "leave kl_items at 0"),
        ({"base": "popularity"}, "is no retriever; a base can be .*sasrec"),
        ({"base": "sasrex"}, "unknown model 'sasrex'"),
        ({"base": "rearec"}, "'rearec': cannot be wrapped so"),
        ({"method": "pearl"}, "method"),
        ({"encoder": {"max_length": 0}}, "max_length"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(EnsuiteError, match=message):
        resolve("rearec", {"model": values})


def test_samples_with_many_targets_are_refused() -> None:
    with pytest.raises(EnsuiteError, match="does not learn from 'every-position'"):
        resolve("rearec", {"samples": {"kind": "every-position"}})


def test_what_would_be_ignored_is_refused() -> None:
    with pytest.raises(EnsuiteError, match=r"stochastic_length = 1\.5 acts in the base's own loss"):
        build("hstu", HSTUConfig(max_length=6, stochastic_length=1.5))
    with pytest.raises(EnsuiteError, match="as_released adds a class"):
        build(objective={"loss": "bce"}, as_released=True)


def test_all_bases_are_stepwise() -> None:
    assert all(issubclass(load_model(name), Stepwise) for name in SMALL)


def test_recipes_resolve() -> None:
    recipes = sorted((Path(__file__).parents[2] / "recipes" / "rearec").glob("*.yaml"))
    assert len(recipes) >= 4
    for path in recipes:
        cls, config = resolve("rearec", read_yaml(path), where=str(path))
        cls(config.model, V, build_objective(config.objective, V, torch.ones(V + 1)))  # type: ignore[call-arg]
