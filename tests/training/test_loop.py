"""The training loop: it learns, resumes exactly, and stops cleanly when something is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_dataset
from torch import Tensor

from ensuite.config import merge
from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.models.sasrec import SASRec
from ensuite.training.config import TrainingConfig
from ensuite.training.loop import StopTraining, train
from ensuite.training.optimizer import learning_rate
from ensuite.training.run import load_run, read_tensors

RECIPE: dict[str, Any] = {
    "model": {"dim": 16, "blocks": 1, "max_length": 8, "dropout": 0.1},
    "training": {"epochs": 4, "batch_size": 16, "lr": 0.01},
}


def weights(run_folder: Path, name: str = "last.safetensors") -> dict[str, Tensor]:
    return read_tensors(run_folder / name, "")[0]


def changed(**training: Any) -> dict[str, Any]:
    return RECIPE | {"training": RECIPE["training"] | training}


def test_it_learns_a_cycle(cycle: Dataset, tmp_path: Path) -> None:
    run = train("sasrec", cycle, tmp_path / "run", recipe=changed(epochs=25))
    assert run.card["training"]["best_ndcg@10"] > 0.97
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < 0.2 * losses[0]
    assert losses[0] < 1.5 * math.log(20)


def test_best_weights_are_kept_and_loaded(cycle: Dataset, tmp_path: Path) -> None:
    seen: list[float] = []
    run = train(
        "sasrec", cycle, tmp_path / "run", recipe=RECIPE, on_validation=lambda _, m: seen.append(m["ndcg@10"])
    )
    assert run.card["training"]["best_epoch"] == seen.index(max(seen)) + 1
    again = load_run(tmp_path / "run")
    assert not again.model.training
    for name, value in weights(tmp_path / "run", "model.safetensors").items():
        assert torch.equal(again.model.state_dict()[name], value)


@pytest.mark.parametrize("stop_after", [1, 9, 20])
def test_resumed_weights_equal_uninterrupted_ones(
    cycle: Dataset, tmp_path: Path, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after a step (8 steps an epoch; a checkpoint after each), the resumed run ends with the very
    same weights."""
    recipe = changed(checkpoint_minutes=0)
    train("sasrec", cycle, tmp_path / "whole", recipe=recipe)
    calls = 0
    loss = SASRec.loss

    def dies(self: SASRec, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > stop_after:
            raise RuntimeError("killed")
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SASRec, "loss", dies)
        with pytest.raises(RuntimeError, match="killed"):
            train("sasrec", cycle, tmp_path / "broken", recipe=recipe)
    train("sasrec", cycle, tmp_path / "broken", resume=True)
    for name in ("last.safetensors", "model.safetensors"):
        whole, resumed = weights(tmp_path / "whole", name), weights(tmp_path / "broken", name)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), name
    logs = [
        [
            (line["kind"], line["epoch"], line.get("loss"), line.get("metrics"))
            for line in load_run(tmp_path / r).history
        ]
        for r in ("whole", "broken")
    ]
    assert logs[0] == logs[1]


def test_accumulated_batches_are_one_larger_batch(cycle: Dataset, tmp_path: Path) -> None:
    recipe = RECIPE | {"model": RECIPE["model"] | {"dropout": 0.0}, "samples": {"bucket": False}}
    train("sasrec", cycle, tmp_path / "large", recipe=recipe | {"training": {"epochs": 1, "batch_size": 120}})
    train(
        "sasrec",
        cycle,
        tmp_path / "small",
        recipe=recipe | {"training": {"epochs": 1, "batch_size": 30, "accumulate": 4}},
    )
    large, small = weights(tmp_path / "large"), weights(tmp_path / "small")
    moments = [
        key for key in large if key.endswith("exp_avg")
    ]  # Adam's first step hides a gradient's scale; its moment does not
    assert moments
    for key in moments:
        torch.testing.assert_close(large[key], small[key], rtol=1e-3, atol=1e-7)


def test_patience_and_callback_stop(cycle: Dataset, tmp_path: Path) -> None:
    run = train("sasrec", cycle, tmp_path / "patience", recipe=changed(epochs=50, lr=1e-9, patience=2))
    assert run.card["training"]["epochs"] < 10
    assert "no better ndcg@10" in run.card["training"]["ended"]

    def enough(epoch: int, metrics: dict[str, float]) -> None:
        raise StopTraining("enough")

    run = train("sasrec", cycle, tmp_path / "callback", recipe=RECIPE, on_validation=enough)
    assert (run.card["training"]["ended"], run.card["training"]["epochs"]) == ("enough", 1)


def test_a_time_limit_ends_inside_an_epoch_with_a_validation(cycle: Dataset, tmp_path: Path) -> None:
    run = train("sasrec", cycle, tmp_path / "run", recipe=changed(max_minutes=1e-6))
    assert run.card["training"]["ended"] == "time is up"
    assert run.card["training"]["steps"] == 1
    assert run.card["training"]["best_ndcg@10"] > 0


def test_nan_loss_names_the_step_and_keeps_the_last_good_weights(
    cycle: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, calls = SASRec.loss, 0

    def goes_bad(self: SASRec, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return loss(self, batch) * (math.nan if calls == 11 else 1.0)

    monkeypatch.setattr(SASRec, "loss", goes_bad)
    with pytest.raises(EnsuiteError, match=r"epoch 2, step 3.*users.*best weights so far stay.*training\.lr"):
        train("sasrec", cycle, tmp_path / "run", recipe=RECIPE)
    assert all(value.isfinite().all() for value in load_run(tmp_path / "run").model.state_dict().values())


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules(schedule: Any) -> None:
    config = TrainingConfig(lr=1.0, warmup_steps=10, schedule=schedule)
    rates = [learning_rate(config, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx({"constant": 1.0, "linear": 0.5, "cosine": 0.5}[schedule])
    assert rates[-1] == pytest.approx({"constant": 1.0, "linear": 0.01, "cosine": 0.0}[schedule], abs=1e-3)


def test_bf16_and_clipping_train(cycle: Dataset, tmp_path: Path) -> None:
    run = train("sasrec", cycle, tmp_path / "run", recipe=changed(precision="bf16", clip_norm=0.5, epochs=12))
    assert run.card["training"]["best_ndcg@10"] > 0.6
    assert all(value.dtype == torch.float32 for value in run.model.state_dict().values())


def test_a_finished_run_can_be_trained_longer(cycle: Dataset, tmp_path: Path) -> None:
    train("sasrec", cycle, tmp_path / "whole", recipe=changed(epochs=3))
    train("sasrec", cycle, tmp_path / "parts", recipe=changed(epochs=1))
    run = train("sasrec", cycle, tmp_path / "parts", recipe=changed(epochs=3), resume=True)
    assert run.config.training.epochs == load_run(tmp_path / "parts").config.training.epochs == 3
    whole, parts = weights(tmp_path / "whole", "last.safetensors"), weights(run.path, "last.safetensors")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    train("sasrec", cycle, tmp_path / "cosine", recipe=changed(epochs=1, schedule="cosine"))
    with pytest.raises(EnsuiteError, match="falls to 0 at epoch 1"):
        train("sasrec", cycle, tmp_path / "cosine", recipe=changed(epochs=3, schedule="cosine"), resume=True)


def test_a_run_out_of_patience_trains_on_only_with_more_of_it(cycle: Dataset, tmp_path: Path) -> None:
    recipe = changed(epochs=9, lr=1e-12, patience=2)
    assert train("sasrec", cycle, tmp_path / "run", recipe=recipe).card["training"]["epochs"] == 3
    assert train("sasrec", cycle, tmp_path / "run", resume=True).card["training"]["epochs"] == 3
    more = merge(recipe, {"training": {"patience": 4}})
    assert train("sasrec", cycle, tmp_path / "run", recipe=more, resume=True).card["training"]["epochs"] == 5


def test_what_is_there_is_not_overwritten(cycle: Dataset, tmp_path: Path) -> None:
    train("sasrec", cycle, tmp_path / "run", recipe=changed(epochs=1))
    with pytest.raises(EnsuiteError, match="--resume to go on, --overwrite"):
        train("sasrec", cycle, tmp_path / "run", recipe=RECIPE)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(EnsuiteError, match="another --out"):
        train("sasrec", cycle, tmp_path / "letters", recipe=RECIPE, overwrite=True)
    assert (tmp_path / "letters" / "a.txt").read_text() == "dear"


def test_what_is_refused_leaves_the_run_before_it(cycle: Dataset, tmp_path: Path) -> None:
    """With overwrite, and with resume: the old weights are still there after the error."""
    short = make_dataset(tmp_path / "short", [[1, 2], [2, 3]])
    untimed = make_dataset(tmp_path / "untimed", [[1, 2, 3, 1], [2, 3, 1, 2]])
    train("sasrec", cycle, tmp_path / "run", recipe=changed(epochs=1))
    before = weights(tmp_path / "run")
    with pytest.raises(EnsuiteError, match="nobody to validate on"):
        train("sasrec", short, tmp_path / "run", recipe=RECIPE, overwrite=True)
    with pytest.raises(EnsuiteError, match="no event times"):
        train("hstu", untimed, tmp_path / "run", overwrite=True)
    with pytest.raises(EnsuiteError, match="settings it began with"):
        train("sasrec", cycle, tmp_path / "run", recipe=changed(lr=0.5), resume=True)
    after = weights(tmp_path / "run")
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"modle": {}}, "unknown key 'modle'; did you mean 'model'"),
        ({"model": {"dimm": 3}}, "unknown key 'dimm'; did you mean 'dim'"),
        ({"training": {"batchsize": 3}}, "unknown key 'batchsize'; did you mean 'batch_size'"),
        ({"training": {"lr": "fast"}}, "lr = 'fast'"),
        ({"training": {"metric": "ndgc@10"}}, "ndcg"),
        ({"model": {"dim": 10, "heads": 3}}, "heads = 3 does not divide dim = 10"),
        ({"samples": {"kind": "cloze"}}, "sasrec does not learn from 'cloze'"),
        ({"model": {"name": "hstu"}}, "is for model 'hstu', not 'sasrec'"),
    ],
)
def test_mistakes_in_a_recipe(cycle: Dataset, tmp_path: Path, recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(EnsuiteError, match=message):
        train("sasrec", cycle, tmp_path / "run", recipe=recipe)
    assert not (tmp_path / "run").exists()


def test_trackers_log_what_the_json_lines_say(cycle: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra ensuite[track]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train("sasrec", cycle, tmp_path / "run", recipe=changed(epochs=2), trackers=["tensorboard"])
    boards = [EventAccumulator(str(path)).Reload() for path in tmp_path.glob("run/**/events*")]
    curves = [b.Scalars("valid/ndcg@10") for b in boards if "valid/ndcg@10" in b.Tags()["scalars"]]
    logged = [scalar.value for curve in curves for scalar in curve]
    said = [line["metrics"]["ndcg@10"] for line in run.history if line["kind"] == "valid"]
    assert logged == pytest.approx(said, rel=1e-5)
