"""Another model in the place of the one that serves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil

import polars as pl
import pytest
from serve.http.calling import error_of

from ensuite.serve.runs import RunFolder, watch


@pytest.fixture
def own(runs, tmp_path):
    """A folder of runs of this test's own."""
    shutil.copytree(runs, tmp_path / "runs")
    return RunFolder(tmp_path / "runs")


def test_a_run_is_chosen_by_its_name(start, runs):
    call = start("markov", runs=RunFolder(runs))
    before = call("GET", "/v1/model").json()
    assert before["runs"] == ["hstu", "markov", "sasrec-1", "sasrec-2"]
    after = call("POST", "/v1/model", {"run": "sasrec-2"}).json()
    assert (before["run"], after["run"], after["system"]) == ("markov", "sasrec-2", "sasrec")
    assert after["version"] != before["version"]
    assert call.recommend(history=[30], k=1)["model"] == {"run": "sasrec-2", "version": after["version"]}
    metrics = call("GET", "/metrics").text
    assert 'ensuite_model_info{run="sasrec-2"' in metrics
    assert 'run="markov"' not in metrics
    assert 'ensuite_model_swaps_total{result="done"} 1.0' in metrics


@pytest.mark.parametrize("name", ["nothing", "../runs/markov", "/etc", ".", "..", "markov/", "MARKOV"])
def test_a_name_is_no_path(start, runs, name):
    call = start("markov", runs=RunFolder(runs))
    status, field, said = error_of(call("POST", "/v1/model", {"run": name}))
    assert (status, field) == (404, "run")
    assert str(runs) not in said


def test_without_a_folder_there_is_nothing_to_choose(start):
    assert error_of(start("markov")("POST", "/v1/model", {"run": "markov"}))[:2] == (409, "run")


def damage(path, how):
    weights = path / "model.safetensors"
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "not tensors":
        weights.write_bytes(b"\x80\x04" + b"pickled" * 100)
    elif how == "no weights":
        weights.unlink()
    elif how == "another system's":
        shutil.copy(path.parent / "hstu" / "model.safetensors", weights)
    elif how == "card":
        (path / "card.json").write_text("{}")
    elif how == "config":
        (path / "config.yaml").write_text("model: {name: sasrec, dim: -1}")
    elif how == "items":
        (path / "items.parquet").write_bytes(b"PAR1")
    elif how == "foreign":
        items = pl.DataFrame({"item_id": [f"sku-{row}" for row in range(20)]})
        items.write_parquet(path / "items.parquet")
    elif how == "nan":
        import torch
        from safetensors import safe_open
        from safetensors.torch import save_file

        with safe_open(weights, "pt") as file:
            tensors = {key: torch.full_like(file.get_tensor(key), torch.nan) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        save_file(tensors, weights, metadata)


@pytest.mark.parametrize(
    "how",
    ["cut", "not tensors", "no weights", "another system's", "card", "config", "items", "nan", "foreign"],
)
def test_a_damaged_or_foreign_run_is_refused_and_the_old_model_goes_on(start, own, how):
    call = start("markov", runs=own)
    damage(own.path / "sasrec-1", how)
    answer = call("POST", "/v1/model", {"run": "sasrec-1"})
    status, field, said = error_of(answer)
    assert (status, field) == (409, "run")
    assert str(own.path) not in answer.text
    assert "sasrec-1" in said or "catalogue" in said
    served = call.recommend(history=[30, 40], k=1)
    assert (served["model"]["run"], served["items"][0]["item_id"]) == ("markov", 50)
    assert 'ensuite_model_swaps_total{result="refused"} 1.0' in call("GET", "/metrics").text


def test_no_request_fails_while_models_change(start, runs):
    call = start("sasrec-1", runs=RunFolder(runs), timeout=30.0)  # a busy machine is no failure
    served, failed = set(), []

    async def ask(client, stop):
        while not stop.is_set():
            answer = await client.post("/v1/recommend", json={"history": [30, 40], "k": 3})
            if answer.status_code != 200 or answer.json()["fallback"] is not None:
                failed.append(answer.text)
            served.add(answer.json()["model"]["run"])

    async def load():
        stop = asyncio.Event()
        async with call.client() as client:
            asking = [asyncio.create_task(ask(client, stop)) for _ in range(8)]
            for name in ("sasrec-2", "markov", "sasrec-1", "sasrec-2"):
                done = await client.post("/v1/model", json={"run": name})
                assert done.status_code == 200
                await asyncio.sleep(0.05)
            stop.set()
            await asyncio.gather(*asking)

    call.run(load())
    assert failed == []
    assert served == {"sasrec-1", "sasrec-2", "markov"}


@contextlib.asynccontextmanager
async def watching(call, folder):
    task = asyncio.create_task(watch(call.service, folder, every=0.02))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition, seconds=5.0):
    for _ in range(int(seconds / 0.02)):
        if condition():
            return True
        await asyncio.sleep(0.02)
    return False


def touch(path, later=10):
    """Make a run the newest."""
    weights = path / "model.safetensors"
    when = max(one.stat().st_mtime_ns for one in path.parent.glob("*/model.safetensors")) + later * 10**9
    os.utime(weights, ns=(when, when))


def test_a_newer_run_of_the_same_system_takes_over(start, own):
    touch(own.path / "sasrec-1")
    call = start(own.path / "sasrec-1")

    async def walk():
        async with watching(call, own):
            touch(own.path / "markov")  # another system
            await asyncio.sleep(0.2)
            assert call.service.loaded.run.name == "sasrec-1"
            card = own.path / "sasrec-2" / "card.json"
            text = card.read_text()
            card.write_text(json.dumps(json.loads(text) | {"training": {}}))  # still being trained
            touch(own.path / "sasrec-2")
            await asyncio.sleep(0.2)
            assert call.service.loaded.run.name == "sasrec-1"
            card.write_text(text)
            assert await until(lambda: call.service.loaded.run.name == "sasrec-2")
            await call.service.swap(own.path / "sasrec-1")  # by hand, back to the older one
            await asyncio.sleep(0.2)
            assert call.service.loaded.run.name == "sasrec-1"

    call.run(walk())


def test_weights_that_change_are_taken_and_damaged_ones_are_not(start, own):
    call = start(own.path / "sasrec-1")
    before = call.service.loaded.version

    async def walk():
        async with watching(call, None):
            weights = own.path / "sasrec-1" / "model.safetensors"
            damage(own.path / "sasrec-1", "cut")
            await asyncio.sleep(0.3)
            assert call.service.loaded.version == before
            refused = call.service.metrics.swaps.labels("refused")._value.get()
            assert refused == 1  # not again and again
            shutil.copy(own.path / "sasrec-2" / "model.safetensors", weights)
            assert await until(lambda: call.service.loaded.version != before)

    call.run(walk())


def test_items_of_other_processes_are_taken(start, own):
    call, other = start("sasrec-1"), start("sasrec-1")

    async def walk():
        task = asyncio.create_task(watch(call.service, None, swap=False, every=0.02))
        async with other.client() as client:
            await client.put("/v1/items", json={"items": [{"item_id": "new", "like": [30]}]})
        assert await until(lambda: call.service.recommender.knows("new"))
        task.cancel()

    call.run(walk())
