"""Training from another run's weights, and systems trained in two stages: the right weights, resumed in the
right stage."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import make_dataset
from torch import Tensor

from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.models.ada_retrieval import AdaRetrieval
from ensuite.models.sasrec import SASRec
from ensuite.training.loop import train
from ensuite.training.run import load_run, read_tensors

STILL = 1e-12  # a learning rate at which weights stay where they start
ENCODER: dict[str, Any] = {"dim": 16, "blocks": 1, "max_length": 8, "dropout": 0.1}
TRAINING: dict[str, Any] = {"epochs": 2, "batch_size": 256, "lr": 0.01, "checkpoint_minutes": 0}
ADA: dict[str, Any] = {
    "model": {"rounds": 2, "total": 4, "encoder": ENCODER, "base_lr": 0.01},
    "training": TRAINING,
}
Cli = Callable[..., subprocess.CompletedProcess[str]]


def still(**model: Any) -> dict[str, Any]:
    return {"model": ADA["model"] | model, "training": TRAINING | {"lr": STILL, "epochs": 1}}


def weights(run: Path, name: str = "model.safetensors") -> dict[str, Tensor]:
    return read_tensors(run / name, "")[0]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.allclose(a[name], b[name], rtol=0, atol=1e-7) for name in b)


def base_of(run: Path) -> dict[str, Tensor]:
    return {name.removeprefix("base."): t for name, t in weights(run).items() if name.startswith("base.")}


@pytest.fixture(scope="module")
def sasrec(cycle: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of SASRec with settings of its own."""
    recipe = {"model": ENCODER | {"dim": 12, "heads": 2, "similarity": "cosine"}, "training": TRAINING}
    return train("sasrec", cycle, tmp_path_factory.mktemp("runs") / "sasrec", recipe=recipe).path


# -- two stages ----------------------------------------------------------------------------------------


def test_the_second_stage_starts_from_the_best_weights_of_the_first(cycle: Dataset, tmp_path: Path) -> None:
    run = train("ada-retrieval", cycle, tmp_path / "run", recipe=still(base_epochs=3))
    base = load_run(tmp_path / "run" / "base")
    assert (base.config.name, base.config.training.epochs, base.config.training.lr) == ("sasrec", 3, 0.01)
    assert base.config.samples.kind == "prefixes"
    assert base.config.model == run.config.model.encoder
    assert base.card["training"]["epochs"] == 3
    assert same(base_of(run.path), weights(base.path))
    start = run.card["start"]
    assert (start["run"], start["model"], start["fresh"]) == ("base", "sasrec", [])
    assert run.card["train_seconds"] > start["train_seconds"] == base.card["train_seconds"] > 0


def test_an_encoder_learns_from_the_samples_that_it_knows(cycle: Dataset, tmp_path: Path) -> None:
    encoder = {"dim": 16, "blocks": 1, "max_length": 8}
    recipe = still(base="bert4rec", encoder=encoder)
    train("ada-retrieval", cycle, tmp_path / "run", recipe=recipe)
    assert load_run(tmp_path / "run" / "base").config.samples.kind == "cloze"
    recipe = still(base_samples="sliding")
    train("ada-retrieval", cycle, tmp_path / "other", recipe=recipe)
    assert load_run(tmp_path / "other" / "base").config.samples.kind == "sliding"
    with pytest.raises(EnsuiteError, match="base_samples = 'cloze': sasrec does not learn from them"):
        train("ada-retrieval", cycle, tmp_path / "wrong", recipe=still(base_samples="cloze"))
    assert not (tmp_path / "wrong").exists()


def test_one_stage_when_asked_for(cycle: Dataset, tmp_path: Path) -> None:
    run = train("ada-retrieval", cycle, tmp_path / "run", recipe=still(two_stage=False))
    assert not (run.path / "base").exists()
    assert "start" not in run.card


def log_of(run: Path) -> list[Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["kind"], line["epoch"], line.get("loss"), line.get("metrics")) for line in lines]


@pytest.fixture(scope="module")
def whole(cycle: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("ada-retrieval", cycle, tmp_path_factory.mktemp("runs") / "whole", recipe=ADA).path


@pytest.mark.parametrize(
    ("stage", "after", "resumed_by"),
    [
        (SASRec, 0, "python"),  # no checkpoint yet
        (SASRec, 4, "command line"),
        (AdaRetrieval, 0, "command line"),
        (AdaRetrieval, 2, "python"),
    ],
)
def test_killed_in_either_stage_it_goes_on_there(
    cycle: Dataset, tmp_path: Path, whole: Path, stage: type, after: int, resumed_by: str,
    monkeypatch: pytest.MonkeyPatch, ensuite: Cli,
) -> None:  # fmt: skip
    """Resumed, it ends with the very weights and logs of an uninterrupted training, in both stages."""
    steps: dict[type, int] = {SASRec: 0, AdaRetrieval: 0}
    losses = {SASRec: SASRec.loss, AdaRetrieval: AdaRetrieval.loss}
    dies = True

    def counted(cls: type) -> Any:
        def loss(self: Any, batch: Any) -> Tensor:
            if dies and cls is stage and steps[cls] == after:
                raise RuntimeError("killed")
            steps[cls] += 1
            return losses[cls](self, batch)

        return loss

    for cls in steps:
        monkeypatch.setattr(cls, "loss", counted(cls))
    broken = tmp_path / "broken"
    with pytest.raises(RuntimeError, match="killed"):
        train("ada-retrieval", cycle, broken, recipe=ADA)
    with pytest.raises(EnsuiteError, match="no weights yet"):
        load_run(broken)
    if stage is AdaRetrieval and not after:  # killed after the epoch's line and before its checkpoint
        (broken / "metrics.jsonl").write_text('{"kind": "train", "epoch": 1, "step": 3}\n')
    dies = False
    if resumed_by == "python":
        train("ada-retrieval", cycle, broken, resume=True)
    else:
        ensuite("train", "ada-retrieval", "--data", cycle.path, "--out", broken, "--resume", "--quiet")
    steps_of_a_stage = load_run(whole).card["training"]["steps"]
    assert steps == {SASRec: steps_of_a_stage, AdaRetrieval: steps_of_a_stage}, "no step was done twice"
    for part in ("", "base"):
        for name in ("last.safetensors", "model.safetensors"):
            before, now = weights(whole / part, name), weights(broken / part, name)
            assert before.keys() == now.keys()
            assert all(torch.equal(before[key], now[key]) for key in before), (part, name)
        assert log_of(whole / part) == log_of(broken / part)
    card = load_run(broken).card
    assert card["start"]["run"] == "base"
    assert "train_seconds" in card["start"]


def test_a_first_stage_that_has_ended_is_not_trained_on(
    cycle: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ADA | {"training": TRAINING | {"max_minutes": 1e-6}}
    with monkeypatch.context() as patch:
        patch.setattr(AdaRetrieval, "loss", lambda self, batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train("ada-retrieval", cycle, tmp_path / "run", recipe=recipe)
    train("ada-retrieval", cycle, tmp_path / "run", resume=True)
    assert load_run(tmp_path / "run" / "base").card["training"]["steps"] == 1


def test_more_epochs_are_for_the_last_stage(
    cycle: Dataset, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, steps = SASRec.loss, 0

    def dies(self: SASRec, batch: Any) -> Tensor:
        nonlocal steps
        steps += 1
        return loss(self, batch) if steps < 3 else 1 / 0  # type: ignore[return-value]

    with monkeypatch.context() as patch:
        patch.setattr(SASRec, "loss", dies)
        with pytest.raises(ZeroDivisionError):
            train("ada-retrieval", cycle, tmp_path / "run", recipe=ADA)
    run = train("ada-retrieval", cycle, tmp_path / "run", recipe={"training": {"epochs": 3}}, resume=True)
    assert run.card["training"]["epochs"] == 3
    assert load_run(run.path / "base").card["training"]["epochs"] == 2


# -- from another run ----------------------------------------------------------------------------------


def test_a_wrapper_takes_its_base_and_the_settings_that_go_with_it(
    cycle: Dataset, tmp_path: Path, sasrec: Path
) -> None:
    recipe = {"model": {"rounds": 2, "total": 4}, "training": still()["training"]}
    run = train("ada-retrieval", cycle, tmp_path / "run", recipe=recipe, start_from=sasrec)
    assert (run.config.model.encoder.dim, run.config.model.encoder.similarity) == (12, "cosine")
    assert same(base_of(run.path), weights(sasrec))
    assert not (run.path / "base").exists()
    assert run.card["start"] == {"run": str(sasrec), "model": "sasrec", "fresh": []}


def test_killed_at_once_it_starts_from_the_same_run_again(
    cycle: Dataset, tmp_path: Path, sasrec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"model": {"rounds": 2, "total": 4}, "training": still()["training"]}
    with monkeypatch.context() as patch:
        patch.setattr(AdaRetrieval, "loss", lambda self, batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train("ada-retrieval", cycle, tmp_path / "run", recipe=recipe, start_from=sasrec)
    run = train("ada-retrieval", cycle, tmp_path / "run", resume=True)
    assert same(base_of(run.path), weights(sasrec))
    assert not (run.path / "base").exists()


def test_the_same_system_takes_what_fits(
    cycle: Dataset, tmp_path: Path, sasrec: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = {"model": {"blocks": 2, "dropout": 0.3, "inner": 20}, "training": still()["training"]}
    run = train("sasrec", cycle, tmp_path / "run", recipe=recipe, start_from=sasrec)
    assert (run.config.model.dim, run.config.model.blocks, run.config.model.dropout) == (12, 2, 0.3)
    fresh = run.card["start"]["fresh"]
    assert "blocks.1.attention.query.weight" in fresh
    assert "blocks.0.feed_forward.up.weight" in fresh  # of another width
    assert "items.weight" not in fresh
    assert "start fresh: blocks.0.feed_forward" in caplog.text
    before = weights(sasrec)
    assert same(weights(run.path), {name: t for name, t in before.items() if name not in fresh})


def test_what_does_not_fit_is_refused_and_nothing_is_written(
    cycle: Dataset, tmp_path: Path, sasrec: Path
) -> None:
    other = make_dataset(tmp_path / "other", [[1, 2, 3, 1], [2, 3, 1, 2]])
    empty, odd = tmp_path / "empty", tmp_path / "odd"
    shutil.copytree(sasrec, empty)
    (empty / "model.safetensors").unlink()
    shutil.copytree(sasrec, odd)
    (odd / "config.yaml").write_text("training: {}\n")
    ada = {"model": {"rounds": 2, "total": 4}}

    def refused(message: str, model: str, source: Path, recipe: Any = None, data: Dataset = cycle) -> None:
        with pytest.raises(EnsuiteError, match=message):
            train(model, data, tmp_path / "run", recipe=recipe, start_from=source)
        assert not (tmp_path / "run").exists()

    refused("other data", "sasrec", sasrec, data=other)
    refused("is a run of sasrec, from which hstu cannot start", "hstu", sasrec)
    refused("no such run", "sasrec", tmp_path / "nowhere")
    refused("no weights yet", "ada-retrieval", empty, ada)
    refused("no model is named there", "ada-retrieval", odd, ada)
    refused(
        "is a run of sasrec, but base = 'hstu' was asked for", "ada-retrieval", sasrec,
        {"model": ada["model"] | {"base": "hstu"}},
    )  # fmt: skip
    refused(
        r"do not fit: items.weight is \(21, 12\) there and \(21, 16\) here", "ada-retrieval", sasrec,
        {"model": ada["model"] | {"encoder": {"dim": 16}}},
    )  # fmt: skip
    refused(
        "do not fit: blocks.1.*is missing there", "ada-retrieval", sasrec,
        {"model": ada["model"] | {"encoder": {"blocks": 2}}},
    )  # fmt: skip
    refused("do not fit", "sasrec", sasrec, {"model": {"dim": 16, "inner": 20}})
    fitted = train("popularity", cycle, tmp_path / "popularity").path
    refused("is no retriever", "ada-retrieval", fitted, ada)


def test_a_resumed_run_has_begun(cycle: Dataset, tmp_path: Path, sasrec: Path) -> None:
    train("sasrec", cycle, tmp_path / "run", recipe={"model": ENCODER, "training": TRAINING})
    with pytest.raises(EnsuiteError, match=r"has begun, and does not start from .*--from"):
        train("sasrec", cycle, tmp_path / "run", resume=True, start_from=sasrec)


# -- the command line ----------------------------------------------------------------------------------


def test_from_on_the_command_line(ensuite: Cli, cycle: Dataset, tmp_path: Path, sasrec: Path) -> None:
    flags = ["--model.rounds", 2, "--model.total", 4, "--training.epochs", 1, "--training.lr", STILL]
    ensuite("train", "ada-retrieval", "--from", sasrec, "--data", cycle.path, "--out", "run", *flags)
    values = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]
    assert (values["base"], values["encoder"]["dim"], values["rounds"]) == ("sasrec", 12, 2)
    assert same(base_of(tmp_path / "run"), weights(sasrec))
    refused = ensuite("train", "hstu", "--from", sasrec, "--data", cycle.path, "--out", "no", check=False)
    assert refused.returncode == 2
    assert "from which hstu cannot start" in refused.stderr
    assert "--from" in ensuite("train", "sasrec", "--help").stdout


def test_both_stages_are_shown_and_the_run_is_evaluated_as_one(ensuite: Cli, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", [[(7 * u + i) % 120 + 1 for i in range(8)] for u in range(80)])
    flags = ["--model.encoder.dim", 8, "--training.epochs", 1, "--training.metric", "hr@50"]
    done = ensuite("train", "ada-retrieval", "--base", "sasrec", "--data", data.path, "--out", "run", *flags)
    stages = ["stage 1 of 2 (sasrec): epoch   1", "stage 2 of 2 (ada-retrieval): epoch   1"]
    assert all(stage in done.stderr for stage in stages)
    assert done.stderr.index(stages[0]) < done.stderr.index(stages[1])
    metrics = ["hr@50", "hr@100", "ndcg@50", "ndcg@100"]
    ensuite("evaluate", "run", "--metrics", *metrics, "--json", "run.json")
    ensuite("evaluate", "run/base", "--metrics", *metrics, "--json", "base.json")
    both = [json.loads((tmp_path / name).read_text()) for name in ("run.json", "base.json")]
    assert [one["card"]["model"] for one in both] == ["ada-retrieval", "sasrec"]
    assert all(set(metrics) <= set(one["metrics"]) for one in both)
    ensuite("compare", "run", "run/base", "--out", "report")
