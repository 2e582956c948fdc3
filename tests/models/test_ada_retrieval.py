"""What Ada-Retrieval's sheet demands beyond the contract suite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ensuite.models.ada_retrieval as module
from ensuite.config import build_config
from ensuite.data.batches import Batch, History
from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.models.ada_retrieval import AdaRetrieval
from ensuite.nn.learnable_filter import LearnableFilter
from ensuite.objectives import ObjectiveConfig, build_objective
from ensuite.training.config import resolve
from ensuite.training.loop import train

V, T, M = 40, 4, 3
ITEMS = torch.tensor([[3, 5, 7, 2, 11], [4, 1, 0, 0, 0], [9, 9, 30, 0, 0]])
ENCODER = {"dim": 8, "blocks": 1, "heads": 2, "max_length": 6, "dropout": 0.0, "init_std": 0.5}


def build(n_items: int = V, seed: int = 0, encoder: dict[str, Any] | None = None, **settings: Any) -> Any:
    values = {"rounds": T, "total": T * M, "adapter_dropout": 0.0, "init_std": 0.5} | settings
    values["encoder"] = ENCODER | (encoder or {})
    torch.manual_seed(seed)
    config = build_config(AdaRetrieval.config_for(values), values, "test")
    objective = build_objective(ObjectiveConfig(), n_items, None)
    return AdaRetrieval(config, n_items, objective).eval()


def rounds(model: AdaRetrieval, items: Tensor = ITEMS) -> tuple[list[Tensor], Tensor]:
    with torch.no_grad():
        return model.run_rounds(History(items), model.item_vectors(), items)


def scores(model: AdaRetrieval, items: Tensor = ITEMS) -> Tensor:
    with torch.no_grad():
        return model.scorer(History(items), model.catalogue())(0, model.n_items + 1)


def ranked(values: Tensor, without: Tensor) -> Tensor:
    """Item rows by descending score, the ``without`` [B, X] and padding left out (those come last)."""
    out = torch.nn.functional.pad(without, (1, 0))
    return values.scatter(1, out, -torch.inf).argsort(1, descending=True)


def batch_of(items: Tensor, targets: list[int]) -> Batch:
    at = torch.zeros_like(items)
    at[torch.arange(len(items)), (items != 0).sum(1) - 1] = torch.tensor(targets)
    return Batch(History(items), at, torch.arange(len(items)))


# -- the list ------------------------------------------------------------------------------------------


def test_one_round_is_the_encoder_alone() -> None:
    model = build(rounds=1, total=10)
    assert model.item_adapter is None
    assert model.user_adapter is None
    base = ranked(model.base.scorer(History(ITEMS), model.base.catalogue())(0, V + 1), ITEMS)
    assert torch.equal(rounds(model)[1], base[:, :10])
    assert torch.equal(ranked(scores(model), ITEMS)[:, : V - 5], base[:, : V - 5])


def test_without_adapters_the_list_is_that_of_the_encoder() -> None:
    model, plain = build(item_adapter="none", user_adapter="none"), build(rounds=1)
    assert torch.equal(rounds(model)[1], rounds(plain)[1])
    assert torch.equal(ranked(scores(model), ITEMS)[:, : V - 5], ranked(scores(plain), ITEMS)[:, : V - 5])
    assert not torch.equal(rounds(build())[1], rounds(plain)[1])


def test_a_list_holds_each_item_once_and_nothing_seen() -> None:
    _, listed = rounds(build())
    assert listed.shape == (3, T * M)
    for row, seen in zip(listed.tolist(), ITEMS.tolist()):
        assert len(set(row)) == T * M
        assert not set(row) & {0, *seen}


def test_a_small_catalogue_leaves_places_empty() -> None:
    model = build(n_items=11)
    items = ITEMS.clamp(max=11)
    _, listed = rounds(model, items)
    for row, seen in zip(listed.tolist(), items.tolist()):
        left = sorted({*range(1, 12)} - {*seen})
        assert sorted(item for item in row if item) == left  # everything that can be recommended, once
        assert row[len(left) :] == [0] * (T * M - len(left))
    assert bool(scores(model, items).isfinite().all())
    tiny = build(n_items=2)  # fewer items than a round has places, all of them seen by the first user
    _, listed = rounds(tiny, torch.tensor([[1, 2, 1], [2, 0, 0]]))
    assert listed.tolist() == [[0] * 12, [1] + [0] * 11]
    assert bool(scores(tiny, torch.tensor([[1, 2, 1], [2, 0, 0]])).isfinite().all())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_scores_rank_the_list_place_by_place_then_the_rest_as_round_0(scale: float) -> None:
    model = build()
    with torch.no_grad():
        model.base.items.weight.mul_(scale)
    _, listed = rounds(model)
    got = scores(model)
    order = ranked(got, ITEMS)
    assert torch.equal(order[:, : T * M], listed)
    base = model.base.scorer(History(ITEMS), model.base.catalogue())(0, V + 1)
    rest = ranked(base, torch.cat([ITEMS, listed], 1))
    n_rest = V - 5 - T * M
    assert torch.equal(order[:, T * M : T * M + n_rest], rest[:, :n_rest])
    places = got.gather(1, listed)
    assert bool((places.diff(dim=1) < 0).all()), "places are never tied"
    assert bool((places[:, -1] > base.amax(1)).all())
    seen = got.gather(1, ITEMS) == base.gather(1, ITEMS)  # the history keeps its scores, below the list
    assert bool(seen.all())


def test_retrieval_in_blocks_of_items_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rounds(build())[1]
    for held in (3 * 7, 3 * 2):  # 7 and 2 items at a time, the latter fewer than a round returns
        monkeypatch.setattr(module, "SCORES_HELD", held)
        assert torch.equal(rounds(build())[1], whole)


def test_a_round_depends_on_earlier_rounds_and_never_on_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    long, short = build(), build(rounds=2, total=2 * M)
    users, listed = rounds(long)
    fewer, head = rounds(short)
    assert torch.equal(torch.stack(users[:2]), torch.stack(fewer))
    assert torch.equal(listed[:, : 2 * M], head)
    retrieve, calls = AdaRetrieval.retrieve, 0

    def other(self: AdaRetrieval, *args: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return retrieve(self, *args) if calls != 2 else torch.full((3, M), 20) + torch.arange(M)

    monkeypatch.setattr(AdaRetrieval, "retrieve", other)
    moved, _ = rounds(long)
    assert torch.equal(torch.stack(moved[:2]), torch.stack(users[:2]))
    for t in (2, 3):
        assert not torch.allclose(moved[t], users[t], atol=1e-4)


# -- the adapters --------------------------------------------------------------------------------------


def test_a_filter_of_ones_is_the_identity() -> None:
    for length in (6, 7):
        layer = LearnableFilter(length, 4)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([1.0, 0.0]).expand_as(layer.weight))
        x = torch.randn(2, length, 4)
        torch.testing.assert_close(layer(x), x, rtol=1e-5, atol=1e-6)


def test_attention_ignores_the_order_of_the_context_and_the_filter_does_not() -> None:
    adapter, items, found = build().item_adapter, torch.randn(2, 5, 8), torch.randn(2, M, 8)
    swap = [1, 0, 2]  # a rotation would pass through a circular convolution
    swapped, real = found[:, swap], torch.ones(2, M, dtype=torch.bool)
    torch.testing.assert_close(adapter(items, swapped, real), adapter(items, found, real))
    assert not torch.allclose(adapter.read(swapped), adapter.read(found)[:, swap], atol=1e-3)


def test_empty_places_are_not_attended_to() -> None:
    adapter, items, context = build().item_adapter, torch.randn(1, 5, 8), torch.randn(1, 4, 8)
    real = torch.tensor([[True, True, False, True]])
    torch.testing.assert_close(
        adapter(items, context, real), adapter(items, context[:, [0, 1, 3]], real[:, [0, 1, 3]])
    )


def test_zeroed_adapters_leave_layer_norms() -> None:
    model = build()
    items, user = torch.randn(2, 5, 8), torch.randn(2, 8)

    def norm(x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, (8,), eps=1e-12)

    got = model.item_adapter(items, torch.zeros(2, 4, 8), torch.ones(2, 4, dtype=torch.bool))
    torch.testing.assert_close(got, norm(items))
    with torch.no_grad():
        model.user_adapter.mlp[-1].weight.zero_()
    state = model.user_adapter.remember(user, None)
    torch.testing.assert_close(model.user_adapter(user, state), norm(user))


@pytest.mark.parametrize(
    "settings",
    [
        {"item_adapter": "mean"},
        {"item_adapter": "none"},
        {"item_filter": False},
        {"user_adapter": "mlp"},
        {"user_adapter": "gru"},
        {"user_adapter": "none"},
    ],
    ids=str,
)
def test_every_switch_moves_the_later_rounds_and_not_the_first(settings: dict[str, str]) -> None:
    default, other = build(), build(**settings)
    other.load_state_dict(default.state_dict(), strict=False)
    users, moved = rounds(default)[0], rounds(other)[0]
    assert torch.equal(users[0], moved[0])
    assert not torch.allclose(users[2], moved[2], atol=1e-4)


def test_context_grows_by_a_round_and_the_gru_by_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    contexts, remembered = [], []
    adapt, remember = model.item_adapter.forward, model.user_adapter.remember

    def see(items: Tensor, context: Tensor, real: Tensor) -> Tensor:
        contexts.append((tuple(context.shape), tuple(real.shape)))
        return adapt(items, context, real)

    def note(user: Tensor, state: Any) -> Any:
        remembered.append(user)
        return remember(user, state)

    monkeypatch.setattr(model.item_adapter, "forward", see)
    monkeypatch.setattr(model.user_adapter, "remember", note)
    users, _ = rounds(model)
    assert contexts == [((3, M * t, 8), (3, M * t)) for t in range(1, T)]
    assert len(remembered) == T - 1
    assert all(torch.equal(a, b) for a, b in zip(remembered, users))


# -- around other encoders -----------------------------------------------------------------------------


def test_users_of_a_cosine_encoder_have_length_1_in_every_round() -> None:
    for user in rounds(build(encoder={"similarity": "cosine"}))[0]:
        torch.testing.assert_close(user.norm(dim=1), torch.ones(3))


def test_users_of_bert4rec_keep_the_one_that_meets_the_bias() -> None:
    model = build(base="bert4rec")
    assert not model.causal
    users, listed = rounds(model)
    assert all(user.shape == (3, 9) and bool((user[:, 8] == 1).all()) for user in users)
    with torch.no_grad():
        model.base.output_bias[25] = 1000.0  # item 25 is now the best whoever asks
    assert bool((rounds(model)[1][:, 0] == 25).all())
    assert listed.shape == (3, T * M)


def test_around_hstu_times_are_read() -> None:
    model = build(base="hstu", encoder={"dim_qk": 4, "dim_v": 4, "init_std": 0.5})
    assert model.needs_times()
    times = torch.arange(5).expand(3, 5) * 1000
    got = [
        model.run_rounds(History(ITEMS, times * k, times * k + 500), model.item_vectors(), ITEMS)[0][2]
        for k in (1, 900)
    ]
    assert not torch.allclose(*got, atol=1e-5)


# -- training ------------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_the_rounds() -> None:
    model, batch = build(round_decay=0.3), batch_of(ITEMS, [8, 9, 10])
    kept_out = torch.cat([ITEMS, torch.tensor([[8], [9], [10]])], 1)
    users, _ = model.run_rounds(batch.history, model.item_vectors().detach(), kept_out, last=False)
    row = torch.arange(3)
    losses = [model.objective(user, kept_out[:, -1], model.item_vectors, row) for user in users]
    assert len(losses) == T
    torch.testing.assert_close(model.loss(batch), sum(0.3**t * loss for t, loss in enumerate(losses)))


def test_lambda_0_trains_the_first_round_alone() -> None:
    model, plain = build(round_decay=0.0), build(rounds=1)
    batch = batch_of(ITEMS, [8, 9, 10])
    for one in (model, plain):
        one.loss(batch).backward()
    for name, parameter in model.named_parameters():
        if "adapter" in name:
            assert not parameter.grad.any(), name
        else:
            torch.testing.assert_close(parameter.grad, plain.get_parameter(name).grad)
    learns = build()
    learns.loss(batch).backward()
    assert [name for name, p in learns.named_parameters() if not p.grad.any()] == []


def test_training_contexts_hold_neither_history_nor_target_unless_as_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[Tensor] = []
    retrieve = AdaRetrieval.retrieve

    def see(self: AdaRetrieval, *args: Tensor) -> Tensor:
        found.append(retrieve(self, *args))
        return found[-1]

    monkeypatch.setattr(AdaRetrieval, "retrieve", see)
    best = scores(build(rounds=1, total=1)).scatter(1, ITEMS, -torch.inf).argmax(1).tolist()  # [B]
    for as_released in (False, True):
        found.clear()
        build(as_released=as_released).loss(batch_of(ITEMS, best))
        assert len(found) == T - 1  # no round reads what the last one would return
        context = torch.cat(found, 1).tolist()
        for row, seen, target in zip(context, ITEMS.tolist(), best):
            assert len(set(row)) == (T - 1) * M
            assert 0 not in row
            assert (target in row) is as_released
            if not as_released:
                assert not set(row) & set(seen)
        if as_released:
            assert any(set(row) & set(seen) - {0} for row, seen in zip(context, ITEMS.tolist()))


def test_mixed_precision_trains() -> None:
    model = build().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(batch_of(ITEMS, [8, 9, 10]))
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    exact = build().loss(batch_of(ITEMS, [8, 9, 10]))
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.0)


def test_it_learns_a_cycle_and_finds_the_next_item_in_round_0(cycle: Dataset, tmp_path: Any) -> None:
    recipe = {
        "model": {"rounds": 3, "total": 6, "encoder": {"dim": 16, "blocks": 1, "max_length": 8}},
        "training": {"epochs": 4, "batch_size": 64, "lr": 0.02, "metric": "hr@2"},
    }
    run = train("ada-retrieval", cycle, tmp_path / "run", recipe=recipe)
    assert run.card["training"]["best_hr@2"] == 1.0
    items = torch.tensor([[4, 5, 6], [18, 19, 20]])
    _, listed = rounds(run.model, items)  # type: ignore[arg-type]
    assert listed[:, 0].tolist() == [7, 1]


# -- mistakes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"rounds": 3}, "total = 100: rounds = 3 must divide it"),
        ({"rounds": 0}, "both be positive"),
        ({"round_decay": 1.5}, "round_decay = 1.5"),
        ({"adapter_dropout": 1.0}, "adapter_dropout = 1.0"),
        ({"base_lr": -1.0}, "base_lr and base_epochs at least 0"),
        ({"user_adapter": "lstm"}, "user_adapter = 'lstm'"),
        ({"base": "markov"}, "is no retriever; a base can be .*sasrec"),
        ({"base": "ada-retrieval"}, "cannot be wrapped so"),
        ({"encoder": {"heads": 3}}, "heads = 3 does not divide dim = 64"),
    ],
)
def test_mistakes_are_named(model: dict[str, Any], message: str) -> None:
    with pytest.raises(EnsuiteError, match=message):
        resolve("ada-retrieval", {"model": model})


def test_samples_with_more_than_one_target_are_refused() -> None:
    with pytest.raises(EnsuiteError, match="does not learn from 'every-position'"):
        resolve("ada-retrieval", {"samples": {"kind": "every-position"}})
