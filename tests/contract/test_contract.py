"""What every registered system must keep, whoever wrote it: run over the entry points, so other packages'
models too."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import (
    N_ITEMS,
    build_model,
    histories,
    made_up_dataset,
    materials_section,
    pick,
    score,
    small_config,
    training_batch,
)

from ensuite.data.batches import History
from ensuite.errors import EnsuiteError
from ensuite.models.base import FittedModel, FromVectors, Retriever, Stepwise
from ensuite.models.registry import load_model, model_names
from ensuite.serve.recommender import Recommender
from ensuite.training.config import resolve
from ensuite.training.loop import train

pytestmark = pytest.mark.parametrize("name", model_names())


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def trainable(name: str) -> None:
    if issubclass(load_model(name), FittedModel):
        pytest.skip("counted, not trained")


def retriever(name: str) -> Retriever:
    trainable(name)
    model = build_model(name)
    if not isinstance(model, Retriever):
        pytest.skip("no vectors")
    return model


def test_it_explains_itself(name):
    cls = load_model(name)
    assert 10 <= len(cls.summary) <= 100
    fields = cls.Config.__pydantic_fields__
    assert [field for field in fields if not fields[field].description] == []
    assert cls.__doc__


def test_its_configuration_is_frozen_and_refuses_unknown_keys(name):
    _, config = small_config(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.anything = 1
    with pytest.raises(EnsuiteError, match="unknown key 'no_such_key'"):
        resolve(name, {"model": {"no_such_key": 1}})


def test_scores_have_the_shape_asked_for_and_are_finite(name):
    model = build_model(name)
    history = histories(model)
    scores = score(model, history)
    assert scores.shape == (len(history.items), N_ITEMS)
    assert scores.dtype == torch.float32
    assert bool(torch.isfinite(scores).all())
    assert torch.equal(scores, score(model, history))  # nothing random is left, nothing was overwritten


def test_blocks_are_slices_of_the_whole(name):
    model = build_model(name)
    history = histories(model)
    scores = score(model, history, 0, N_ITEMS + 1)
    for first, last in [(0, 1), (1, 17), (17, 40), (40, N_ITEMS + 1)]:
        block = score(model, history, first, last)
        assert close(block, scores[:, first:last])
        with torch.inference_mode():
            block.zero_()  # the caller may write into it
    assert close(score(model, history, 0, N_ITEMS + 1), scores)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no GPU or other accelerator here")
def test_an_accelerator_scores_as_the_cpu_does(name):
    model = build_model(name)
    history = histories(model)
    expected = score(model, history)
    device = torch.accelerator.current_accelerator()
    found = score(model.to(device), history.to(device)).cpu()
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_vectors_have_their_shapes(name):
    model = retriever(name)
    history = histories(model)
    with torch.inference_mode():
        output, vectors = model(history), model.item_vectors()
        assert output.shape[:2] == history.items.shape
        assert vectors.shape == (N_ITEMS + 1, output.shape[2])
        some = torch.tensor([[3, 1], [N_ITEMS, 3]])
        assert torch.equal(model.item_vectors(some), vectors[some])
        assert model.encode(history).shape == (len(history.items), output.shape[2])


def test_it_reads_on_after_a_history_step_by_step(name):
    model = retriever(name)
    if not isinstance(model, Stepwise):
        pytest.skip("reads histories only")
    history = histories(model, longest=max(1, model.max_length - 4))
    tokens = torch.randn(3, len(history.items), model.config.dim)
    with torch.inference_mode():
        first, state = model.begin(history)
        assert close(first, model.encode(history))
        one, middle = model.step(tokens[0], state)
        two, _ = model.step(tokens[1], middle)
        other, _ = model.step(tokens[2], middle)
        assert one.shape == first.shape
        assert not close(two, other)
        assert close(model.step(tokens[1], middle)[0], two)  # a step leaves the state it began from as it was
        assert close(model.step(tokens[0], state)[0], one)
        for row, length in enumerate(history.lengths.tolist()):
            _, alone = model.begin(pick(history, [row], length))
            assert close(model.step(tokens[0, row : row + 1], alone)[0], one[row : row + 1])


def test_its_item_vectors_can_be_replaced(name):
    model = retriever(name)
    if not isinstance(model, FromVectors):
        pytest.skip("looks its items up itself")
    history = histories(model)
    with torch.inference_mode():
        vectors = model.input_vectors(history.items)
        assert vectors.shape == (*history.items.shape, model.config.dim)
        assert close(model.encode_vectors(vectors, history), model.encode(history))
        assert not close(model.encode_vectors(vectors.roll(1, -1), history), model.encode(history))
        padded = torch.where(history.mask[..., None], vectors, vectors.new_tensor(7.0))
        assert close(model.encode_vectors(padded, history), model.encode(history))


def test_it_learns_from_every_kind_of_sample_that_it_declares(name):
    trainable(name)
    kinds = load_model(name).samples
    assert kinds
    for kind in kinds:
        model = build_model(name).train()
        batch = training_batch(model, small_config(name, kind=kind)[1])
        loss = model.loss(batch)
        assert loss.shape == (), kind
        assert bool(torch.isfinite(loss)), kind
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients, kind
        assert all(bool(torch.isfinite(g).all()) for g in gradients), kind
        assert any(bool(g.any()) for g in gradients), kind


def test_some_steps_on_one_batch_lower_its_loss(name):
    trainable(name)
    model = build_model(name).train()
    batch = training_batch(model, small_config(name)[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


def test_a_later_event_leaves_earlier_outputs_unchanged(name):
    model = retriever(name)
    if not model.causal:
        pytest.skip("declared as reading both directions")
    history = histories(model, longest=8)
    at = 4
    moved = history.items.clone()
    later = (torch.arange(moved.shape[1])[None] >= at) & history.mask
    moved[later] = moved[later] % N_ITEMS + 1
    times, requests = (
        None if t is None else t + 90_000 * later for t in (history.times, history.request_times)
    )
    with torch.inference_mode():
        before, after = model(history), model(History(moved, times, requests))
    long = history.lengths > at
    assert bool(long.any())
    assert close(before[long, :at], after[long, :at])
    assert not close(before[long, at], after[long, at])


def test_more_padding_changes_nothing(name):
    model = build_model(name)
    history = histories(model, longest=max(1, model.max_length - 5))
    scores = score(model, history)
    assert close(
        scores, score(model, pick(history, list(range(len(history.items))), history.items.shape[1] + 5))
    )


def test_one_at_a_time_equals_all_at_once(name):
    model = build_model(name)
    history = histories(model)
    scores = score(model, history)
    for row, length in enumerate(history.lengths.tolist()):
        assert close(score(model, pick(history, [row], length)), scores[row : row + 1])


def test_saved_and_loaded_it_scores_the_same(name, tmp_path):
    model = build_model(name)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "model.safetensors"
    )
    cls, config = small_config(name)
    torch.manual_seed(99)
    fresh = cls(config.model, N_ITEMS)  # without the objective, as a run is loaded
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"))
    history = histories(model)
    assert torch.equal(score(fresh.eval(), history), score(model, history))


def test_it_says_what_it_reads_of_time(name):
    model = build_model(name)
    history = histories(model)
    if not model.needs_times():
        assert bool(torch.isfinite(score(model, History(history.items))).all())
    last = torch.arange(history.items.shape[1])[None] == history.lengths[:, None] - 1
    later = History(history.items, history.times, history.request_times + 40_000_000 * last)
    if not model.reads_request_time():
        assert torch.equal(score(model, history), score(model, later))


def test_trained_as_a_run_it_recommends_to_somebody_unseen(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ENSUITE_CACHE", str(tmp_path / "cache"))
    build_model(name)  # skips what is not installed
    began = time.process_time()
    dataset = made_up_dataset(tmp_path / "data")
    _, config = small_config(name)
    recipe = config.to_dict() | {"training": {"epochs": 1, "batch_size": 16}}
    recipe |= materials_section(config, tmp_path)
    train(name, dataset, tmp_path / "run", recipe=recipe)
    recommender = Recommender.load(tmp_path / "run")
    seen = ["i07", "i03", "i44"]
    timed = [(item, 1_600_000_000 + 1000 * n) for n, item in enumerate(seen)]
    for history in [timed] if recommender.model.needs_times() else [seen, timed]:
        answer = recommender.recommend(history, k=N_ITEMS - len(seen))
        assert sorted(answer.ids) == sorted({f"i{n:02}" for n in range(1, N_ITEMS + 1)} - set(seen))
        assert answer.scores == sorted(answer.scores, reverse=True)
        assert set(recommender.recommend([history, timed[:1]], k=5).ids[0]) == set(answer.ids[:5])
    assert time.process_time() - began < 5  # seconds of CPU, whatever else runs here
