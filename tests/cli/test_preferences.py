"""`ensuite preferences`, `ensuite benchmark preference`, and a preference in a request, as they are typed."""

from __future__ import annotations

import asyncio
import csv
import json
from pathlib import Path

import pytest
from preferences.wishes import TITLE, World, make_world

from ensuite.cli import main
from ensuite.preferences.schema import read_preferences
from ensuite.training.run import load_run

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENSUITE_CACHE", str(tmp_path / "cache"))


def test_from_a_dataset_to_a_report(ensuite, world, tmp_path):
    data = world.dataset.path
    said = ensuite("preferences", data, "--out", "wishes.parquet", "--quiet").stdout
    assert "900 steps with preferences, 0 without" in said
    assert f"Next: ensuite train mender --data {data} --preferences.file wishes.parquet" in said
    found = read_preferences(tmp_path / "wishes.parquet", world.dataset)
    assert (found.members > 0).all()
    again = ensuite("preferences", data, "--out", "wishes.parquet", check=False)
    assert "wishes.parquet: exists already; choose another --out, or --overwrite" in again.stderr
    flags = ("--model.dim", 16, "--model.blocks", 1, "--model.heads", 2, "--model.head-dim", 8)
    ensuite(
        *("train", "mender", "--data", data, "--out", "mender", "--codes.table", world.codes, *flags),
        *("--preferences.file", "wishes.parquet", "--training.epochs", 1, "--quiet"),
    )
    ensuite("train", "popularity", "--data", data, "--out", "popular", "--quiet")
    asked = ("--data", data, "--preferences", "wishes.parquet", "--encoder", world.encoder, "--text", TITLE)
    said = ensuite(
        "benchmark", "preference", "mender", "popular", *asked, "--out", "report", "--quiet"
    ).stdout
    axes = ("recommendation", "last preference", "fine steering", "coarse steering", "sentiment")
    for axis in (*axes, "consolidation"):
        assert f"{axis}, " in said
    assert "Asked with the history alone, since they read no preference: popular." in said
    assert "Next: ensuite recommend mender --history ID ... --preference 'Find ...'" in said
    rows = list(csv.DictReader((tmp_path / "report" / "preference.csv").open()))
    assert {row["run"] for row in rows} == {"mender", "popular", "dot product"}
    assert (tmp_path / "report" / "preference.svg").read_text().startswith("<svg")
    said = ensuite("benchmark", "preference", *asked, "--out", "alone", "--quiet").stdout
    assert "Next: ensuite train mender" in said
    card = load_run(tmp_path / "mender").config.preferences
    assert card is not None
    assert card.choice == "matched"
    ask = ("recommend", "mender", "--history", "i03", "i14", "--k", 4, "--json")
    one = json.loads(ensuite(*ask, "--preference", "find soap").stdout)["items"]
    other = json.loads(ensuite(*ask, "--preference", "find hair").stdout)["items"]
    assert one != other
    refused = ensuite("recommend", "popular", "--history", "i03", "--preference", "find soap", check=False)
    assert "this Popularity reads no preference; leave it out" in refused.stderr
    _over_http(tmp_path, [row["item_id"] for row in one])


def _over_http(folder: Path, expected: list[str]) -> None:
    """The service gives the same items, and refuses for the other model with a reason."""
    pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'ensuite[serve]'")
    from serve.http.calling import Caller, error_of

    from ensuite.serve.service import Service
    from ensuite.serve.store import EventStore

    for run in ("mender", "popular"):
        store, runner = EventStore.open(folder / f"{run}.sqlite"), asyncio.Runner()
        service = Service(folder / run, store)
        call = Caller(service, runner)
        body = {"history": ["i03", "i14"], "k": 4, "preference": "find soap"}
        if run == "mender":
            answer = call.recommend(**body)
            assert [item["item_id"] for item in answer["items"]] == expected
            assert answer["fallback"] is None
            plain = call.recommend(**(body | {"preference": None}))
            assert len(plain["items"]) == 4
            assert error_of(call("POST", "/v1/recommend", body | {"preference": ""}))[1] == "preference"
        else:
            status, field, why = error_of(call("POST", "/v1/recommend", body))
            assert (status, field) == (422, "preference")
            assert "reads no preference" in why
        for one in (service, store, runner):
            one.close()


def test_what_is_asked_for_wrongly_is_said(ensuite, world, tmp_path):
    data = world.dataset.path
    for words, why in (
        (("benchmark", "preferences"), "unknown benchmark 'preferences'; did you mean 'preference'"),
        (("preferences", data, "--out", "p", "--kinds", "genre"), "item column 'genre' is not there"),
        (("preferences", data, "--out", "p", "--sentiment", "x"), "rule, or the folder of a text classifier"),
        (("preferences", data, "--out", "p", "--generator", "llm", "--model", "x"), "--model x: smollm2, or"),
        (("train", "mender", "--data", data, "--out", "r"), "mender reads preferences: give a file"),
        (
            ("benchmark", "preference", "--data", data, "--preferences", "p", "--out", "r"),
            "p: no such file; make one with",
        ),
    ):
        said = ensuite(*words, check=False)
        assert said.returncode == 2
        assert why in said.stderr
    assert not list(tmp_path.glob("[pr]"))
    assert "usage: ensuite benchmark preference" in ensuite("benchmark").stdout


def test_interrupted_it_says_how_to_go_on(world, tmp_path, monkeypatch, capsys):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ensuite.preferences.generate.write_file", stop)
    with pytest.raises(SystemExit) as ended:
        main(["preferences", str(world.dataset.path), "--out", str(tmp_path / "p.parquet"), "--quiet"])
    assert ended.value.code == 130
    assert "the same command goes on there" in capsys.readouterr().err
