"""ICSRec: the invariants of its paper, and what its switches do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_dataset
from torch import Tensor

from ensuite.config import build_config
from ensuite.data.batches import Batch, History
from ensuite.data.dataset import Cases, Dataset, Events
from ensuite.data.samples import Samples, SamplesConfig
from ensuite.errors import EnsuiteError
from ensuite.evaluate.ranks import compute_ranks
from ensuite.models import icsrec
from ensuite.models.icsrec import ICSRec, ICSRecConfig
from ensuite.nn.k_means import nearest
from ensuite.objectives import ObjectiveConfig, build_objective
from ensuite.training.config import read_recipe, resolve
from ensuite.training.loop import train
from ensuite.training.run import read_tensors

V, L = 12, 8
SMALL: dict[str, Any] = {"dim": 16, "max_length": L, "intent_num": 5, "init_std": 0.2, "dropout": 0.2}


def make_events(n_users: int = 40, seed: int = 0) -> Events:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 12, n_users)
    ends = lengths.cumsum()
    items = rng.integers(1, V + 1, ends[-1]).astype(np.int32)
    return Events(ends - lengths, ends, items, None, 1.0, V)


def make_samples(**config: Any) -> Samples:
    settings = SamplesConfig(**({"kind": "prefixes", "pair": "random"} | config))
    return Samples(make_events(), settings, max_length=L, batch_size=32, seed=0)


def make_model(**fields: Any) -> ICSRec:
    """A small model with its clusters, in training mode."""
    torch.manual_seed(0)
    model = ICSRec(ICSRecConfig(**(SMALL | fields)), V, build_objective(ObjectiveConfig(), V)).train()
    model.start_epoch(0, make_samples().everything())
    return model


def loss_of(model: ICSRec, batch: Batch, seed: int = 3) -> Tensor:
    torch.manual_seed(seed)
    model.zero_grad()
    return model.loss(batch)


BATCH = make_samples().batch(0, 0)

# -- samples --


@pytest.mark.parametrize("n", [3, 4, 5, 9, L + 3])
def test_prefixes_are_the_papers_dynamic_segmentation(n: int, tmp_path: Path) -> None:
    """Each prefix of at least four items gives its third last as the target of those before; nothing else
    does, and the two held-out items are in none of them."""
    sequence = list(range(1, n + 1))
    dataset = make_dataset(tmp_path / "data", [sequence, [1, 2, 3, 4, 5]], n_items=V)
    samples = Samples(
        dataset.events("train"), SamplesConfig(kind="prefixes"), max_length=L, batch_size=99, seed=0
    )
    batch, found = samples.read(np.arange(samples.n_samples), np.random.default_rng(0)), []
    for user, items, targets in zip(batch.user, batch.history.items, batch.targets):
        if user == 0:
            found.append((items[items > 0].tolist(), int(targets.max())))
    wanted = [(prefix[:-3], prefix[-3]) for prefix in (sequence[:m] for m in range(4, n + 1))]
    assert sorted(found) == sorted(wanted)


# -- losses and their switches --


@pytest.mark.parametrize("off", [{"lambda0": 0.0, "beta0": 0.0}, {"cl_mode": "none"}], ids=str)
def test_without_contrast_it_is_last_position_cross_entropy_exactly(off: dict[str, Any]) -> None:
    model = make_model(**off)
    loss = loss_of(model, BATCH)
    loss.backward()
    gradient = model.items.weight.grad.clone()  # type: ignore[union-attr]
    torch.manual_seed(3)
    model.zero_grad()
    output = model.encode(BATCH.history)
    target = BATCH.targets.sum(1)  # the only one of its row
    plain = torch.nn.functional.cross_entropy(output @ model.item_vectors()[1:].T, target - 1)
    plain.backward()
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(gradient, model.items.weight.grad)
    torch.manual_seed(3)
    assert torch.equal(loss, super(ICSRec, model).loss(replace(BATCH, pair=None)))
    assert model.intents.shape[0] == 0


@pytest.mark.parametrize(
    "switch",
    [
        {"cl_mode": "c"},
        {"cl_mode": "f"},
        {"fnm": False},
        {"lambda0": 0.0},
        {"beta0": 0.0},
        {"rec_weight": 0.5},
        {"temperature": 2.0},
        {"intent_num": 3},
        {"unit_norm": "both"},
        {"encode_twice": True},
        {"encoder": "gru"},
        {"similarity": "cosine"},
        {"blocks": 1},
        {"inner": 24},
    ],
    ids=str,
)
def test_every_switch_moves_the_loss(switch: dict[str, Any]) -> None:
    assert abs(loss_of(make_model(**switch), BATCH) - loss_of(make_model(), BATCH)) > 1e-3


def test_the_terms_add_up() -> None:
    """Without dropout: both = none + (coarse - none) + (fine - none), and so are the published names."""
    none, c, f, cf = (
        loss_of(make_model(cl_mode=mode, dropout=0.0, attention_dropout=0.0), BATCH).item()
        for mode in ("none", "c", "f", "cf")
    )
    assert c > none
    assert f > none
    assert cf - none == pytest.approx((c - none) + (f - none), rel=1e-4)
    half = make_model(rec_weight=0.5, lambda0=0.6, beta0=0.4, dropout=0.0, attention_dropout=0.0)
    assert loss_of(half, BATCH).item() == pytest.approx(
        0.5 * none + 2 * (c - none) + 4 * (f - none), rel=1e-4
    )


def test_one_target_for_all_leaves_no_negatives() -> None:
    """With FNM, samples that all have one target have a coarse loss of 0."""
    same = replace(BATCH, targets=torch.where(BATCH.targets > 0, 7, 0))
    with_c, none = make_model(cl_mode="c", dropout=0.0), make_model(cl_mode="none", dropout=0.0)
    for model in (with_c, none):
        model.eval()
    assert with_c.loss(same).item() == pytest.approx(none.loss(same).item(), rel=1e-6)
    assert with_c.loss(BATCH).item() > none.loss(BATCH).item() + 0.1
    without_mask = make_model(cl_mode="c", dropout=0.0, fnm=False).eval()
    assert without_mask.loss(same).item() > none.loss(same).item() + 0.1


def test_one_cluster_for_all_leaves_no_negatives() -> None:
    model, none = make_model(cl_mode="f", intent_num=1).eval(), make_model(cl_mode="none").eval()
    assert model.loss(BATCH).item() == pytest.approx(none.loss(BATCH).item(), rel=1e-6)


def test_centroids_carry_no_gradient_and_hidden_states_do() -> None:
    model = make_model(cl_mode="f", rec_weight=0.0)
    assert not model.intents.requires_grad
    assert "intents" not in dict(model.named_parameters())
    loss_of(model, BATCH).backward()
    assert all(bool(p.grad.any()) for name, p in model.named_parameters() if "query" in name)
    hidden = torch.randn(6, 16, dtype=torch.float64, requires_grad=True)
    model.intents = model.intents.double()
    cluster, _ = nearest(hidden.detach(), model.intents)
    intent = torch.nn.functional.normalize(model.intents[cluster], dim=-1)
    fixed = icsrec.info_nce(hidden, intent, cluster)  # as if assignment and centroids were constants
    (wanted,) = torch.autograd.grad(fixed, hidden)
    (found,) = torch.autograd.grad(model.fine_loss(hidden), hidden)
    torch.testing.assert_close(found, wanted)


def test_the_first_history_is_encoded_once_or_twice() -> None:
    passes = []
    for twice in (False, True):
        model, calls = make_model(encode_twice=twice), []
        hidden = model.hidden
        model.hidden = lambda h, hidden=hidden, calls=calls: calls.append(h) or hidden(h)  # type: ignore
        loss_of(model, BATCH)
        passes.append(sum(call is BATCH.history for call in calls))
    assert passes == [1, 2]


@pytest.mark.parametrize("encoder", ["transformer", "gru"])
def test_reading_by_length_classes_changes_nothing(encoder: str) -> None:
    model = make_model(encoder=encoder, max_length=40).double().eval()
    g = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, 40, 3, 4, 5, 17, 8, 9, 40, 2])
    items = torch.randint(1, V + 1, (10, 40), generator=g) * (torch.arange(40) < lengths[:, None])
    torch.testing.assert_close(model.hidden_by_length(History(items)), model.hidden(History(items)))
    torch.testing.assert_close(
        model.hidden_by_length(History(items[3:4, :4])), model.hidden(History(items[3:4, :4]))
    )


@pytest.mark.parametrize("encoder", ["transformer", "gru"])
def test_the_short_cut_to_the_last_position_equals_the_whole_output(encoder: str) -> None:
    model = make_model(encoder=encoder).double().eval()
    history = BATCH.history
    whole = model(history)[torch.arange(len(history.items)), history.lengths - 1]
    torch.testing.assert_close(model.encode(history), whole)


# -- clusters --


def test_clusters_are_those_of_all_hidden_states_in_evaluation_mode() -> None:
    model, samples = make_model(dropout=0.5, intent_num=4), make_samples()
    assert model.training
    model.eval()
    with torch.no_grad():
        hidden = torch.cat([model.hidden(batch.history) for batch in samples.everything()])
    assert len(hidden) == samples.n_samples
    which, _ = nearest(hidden, model.intents)
    for cluster in range(4):  # k-means in 20 iterations is near its fixed point
        torch.testing.assert_close(
            hidden[which == cluster].mean(0), model.intents[cluster], rtol=0.1, atol=0.05
        )


def test_unit_hidden_states_have_clusters_inside_the_sphere() -> None:
    assert make_model(unit_norm="both").intents.norm(dim=1).max() <= 1.0001
    assert make_model().intents.norm(dim=1).min() > 1.5


def test_clusters_are_refitted_as_often_as_asked() -> None:
    model, samples, seen = make_model(refit_every=3), make_samples(), []
    for epoch in range(7):
        for parameter in model.parameters():
            parameter.data.add_(0.05)
        before = model.intents.clone()
        model.start_epoch(epoch, samples.everything())
        seen.append(not torch.equal(before, model.intents))
        assert model.training
    assert seen == [True, False, False, True, False, False, True]


def test_no_loss_before_there_are_clusters() -> None:
    model = ICSRec(ICSRecConfig(**SMALL), V, build_objective(ObjectiveConfig(), V))
    with pytest.raises(RuntimeError, match="no clusters yet"):
        model.loss(BATCH)


# -- scores --


def negative_model(**fields: Any) -> ICSRec:
    """All scores of all items are negative for every history."""
    model = make_model(**fields).eval()
    model.scorer = lambda history, catalogue: (  # type: ignore[method-assign]
        icsrec.zero_seen(score, history) if fields.get("seen_as_zero") else score
    )

    def score(first: int, last: int) -> Tensor:
        return -torch.arange(first, last, dtype=torch.float32).repeat(2, 1)

    return model


def test_a_seen_item_scored_zero_outranks_negative_scores() -> None:
    """The released quirk in a case made for it: every score is negative, so what was seen comes first."""
    items = np.array([9, 8, 7, 1, 6, 5, 4, 2], np.int32)  # two users: three seen, then the target
    starts, targets = np.array([0, 4]), np.array([3, 7])
    events = Events(starts, starts + 4, items, None, 1.0, V)
    cases = Cases(np.arange(2), starts, targets, targets + 1)
    right = compute_ranks(negative_model(), events, cases, exclude="seen")
    assert right.rank.tolist() == [1.0, 2.0]
    plain = compute_ranks(negative_model(), events, cases, exclude="none")
    assert plain.rank.tolist() == [1.0, 2.0]
    quirk = compute_ranks(negative_model(seen_as_zero=True), events, cases, exclude="none")
    assert quirk.rank.tolist() == [4.0, 5.0]  # behind the three seen ones, which have 0


def test_seen_items_score_zero_in_every_block() -> None:
    plain, zero = make_model().eval(), make_model(seen_as_zero=True).eval()
    history = History(torch.tensor([[3, 12, 3, 0], [1, 0, 0, 0]]))
    with torch.inference_mode():
        wanted = plain.scorer(history, plain.catalogue())(0, V + 1)
        wanted[0, 3] = wanted[0, 12] = wanted[1, 1] = 0
        score = zero.scorer(history, zero.catalogue())
        assert torch.equal(score(0, V + 1), wanted)
        blocks = [score(first, last) for first, last in ((0, 1), (1, 4), (4, 12), (12, V + 1))]
    torch.testing.assert_close(torch.cat(blocks, 1), wanted)


def test_noise_changes_what_is_scored_and_not_what_is_learned() -> None:
    plain, noisy = make_model().eval(), make_model(noise=0.5).eval()
    history = make_samples().batch(0, 1).history
    with torch.inference_mode():
        scores = [m.scorer(history, m.catalogue())(1, V + 1) for m in (plain, noisy)]
        again = noisy.scorer(history, noisy.catalogue())(1, V + 1)
    moved = (scores[0] != scores[1]).any(1)
    assert torch.equal(moved, history.lengths >= 2)  # half of one event is none
    assert torch.equal(again, scores[1])
    assert torch.equal(loss_of(plain, BATCH), loss_of(noisy, BATCH))


# -- whole trainings --


RECIPE: dict[str, Any] = {
    "model": {"dim": 16, "max_length": L, "dropout": 0.1, "attention_dropout": 0.1, "intent_num": 20},
    "training": {"epochs": 6, "batch_size": 64, "lr": 0.01, "metric": "hr@1"},
}


@pytest.mark.parametrize(
    "model", [{}, {"encoder": "gru", "similarity": "cosine", "encode_twice": True}], ids=["paper", "gru"]
)
def test_it_learns_a_cycle(model: dict[str, Any], cycle: Dataset, tmp_path: Path) -> None:
    sharp = {"objective": {"temperature": 0.1}} if model else {}
    recipe = RECIPE | {"model": RECIPE["model"] | model} | sharp
    run = train("icsrec", cycle, tmp_path / "run", recipe=recipe)
    assert run.card["training"]["best_hr@1"] > 0.97


def test_resumed_in_the_middle_of_an_epoch_it_ends_with_the_same_weights_and_clusters(
    cycle: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = RECIPE["training"] | {"epochs": 3, "batch_size": 128, "checkpoint_minutes": 0}
    recipe = RECIPE | {"training": training}
    train("icsrec", cycle, tmp_path / "whole", recipe=recipe)
    calls, loss = 0, ICSRec.loss

    def dies(self: ICSRec, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 8:
            raise RuntimeError("killed")
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(ICSRec, "loss", dies)
        with pytest.raises(RuntimeError, match="killed"):
            train("icsrec", cycle, tmp_path / "broken", recipe=recipe)
    broken = read_tensors(tmp_path / "broken" / "last.safetensors", "")
    assert broken[1]["step"] > 0  # inside an epoch
    train("icsrec", cycle, tmp_path / "broken", resume=True)
    whole, resumed = (read_tensors(tmp_path / run / "last.safetensors", "")[0] for run in ("whole", "broken"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert not torch.equal(broken[0]["model.intents"], whole["model.intents"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.intent-num", 5000], "intent_num = 5000 clusters of only 637"),
        (["--samples.pair", "none"], "samples.pair is none; set samples.pair = random"),
        (["--model.kmeans.restarts", 0], "restarts = 0: at least 1"),
        (["--model.lambda0", -1], "lambda0 = -1.0: a weight is at least 0"),
        (["--model.heads", 3], "heads = 3 does not divide dim = 64"),
        (["--samples.kind", "sliding"], "pair = random pairs samples by their one target"),
    ],
)
def test_mistakes_are_refused_on_the_command_line(
    flags: list[object], message: str, ensuite: Callable[..., Any], cycle: Dataset
) -> None:
    said = ensuite("train", "icsrec", "--data", cycle.path, "--out", "run", "--quiet", *flags, check=False)
    assert said.returncode != 0
    assert message in " ".join(said.stderr.split())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", 0.0),
        ("dropout", 1.0),
        ("intent_num", 0),
        ("refit_every", 0),
        ("blocks", 0),
        ("noise", 2),
    ],
)
def test_wrong_settings_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(EnsuiteError, match=key):
        build_config(ICSRecConfig, {key: value}, "test")


def test_more_clusters_than_last_positions_are_refused_before_training(
    cycle: Dataset, tmp_path: Path
) -> None:
    """There are prefixes enough, but with DS off only one sample a user."""
    recipe = RECIPE | {
        "samples": {"kind": "last-position"},
        "model": RECIPE["model"] | {"intent_num": 150},
    }
    with pytest.raises(EnsuiteError, match="intent_num = 150 clusters of only 120 training subsequences"):
        train("icsrec", cycle, tmp_path / "run", recipe=recipe)


@pytest.mark.parametrize("recipe", sorted(Path(__file__).parents[2].glob("recipes/icsrec/*.yaml")), ids=str)
def test_recipes_resolve(recipe: Path) -> None:
    values, where = read_recipe(recipe)
    _, run = resolve("icsrec", values, where=where)
    assert run.samples.pair == ("last" if "as-released" in recipe.name else "random")
