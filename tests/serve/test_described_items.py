"""New items by what they are: a model of codes recommends and reads what was never in the log."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from content.small_encoder import write_encoder

from ensuite.data.prepare import PrepareConfig, prepare
from ensuite.errors import EnsuiteError
from ensuite.serve.new_items import check, take
from ensuite.serve.recommender import Recommender
from ensuite.serve.requests import BadRequest
from ensuite.serve.store import Item
from ensuite.training.loop import train
from ensuite.training.run import Run

pytest.importorskip("transformers")
KINDS, THINGS = ["red", "blue", "nail", "hair"], ["soap", "oil", "brush", "cream"]
TITLES = [f"{kind} {thing}" for kind in KINDS for thing in THINGS]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A TIGER on codes of titles, and a SASRec, both of a few steps."""
    folder = tmp_path_factory.mktemp("described")
    log = [(user, (user + 3 * t) % 16, t) for user in range(24) for t in range(7)]
    pl.DataFrame(log, schema=["user", "item", "time"], orient="row").write_parquet(folder / "log.parquet")
    pl.DataFrame({"item_id": range(16), "title": TITLES}).write_parquet(folder / "items.parquet")
    config = PrepareConfig(items=str(folder / "items.parquet"))
    data = prepare(folder / "log.parquet", out=folder / "data", config=config)
    encoder = str(write_encoder(folder / "encoder"))
    short = {"training": {"epochs": 1}}
    tiger = short | {
        "model": {"architecture": "decoder", "dim": 16, "blocks": 1, "heads": 2, "head_dim": 8, "inner": 16},
        "codes": {"encoder": encoder, "text": "{title}", "settings": {"levels": 2, "size": 4}},
    }
    return {
        "tiger": train("tiger", data, folder / "tiger", recipe=tiger),
        "sasrec": train("sasrec", data, folder / "sasrec", recipe=short),
    }


NEW = [Item("99", "red hair soap"), Item("100", None, {"title": "blue oil cream"})]


def test_items_that_are_described_are_recommended_and_read_at_once(runs):
    base = Recommender.of(runs["tiger"])
    check(base, NEW)
    grown, done = take(base, NEW)
    assert (done.added, done.known, done.dropped) == (2, 0, ())
    answer = grown.recommend([3, 6], k=16)
    assert {99, 100} <= set(answer.ids)  # in the log's own type
    assert grown.title(99) == "red hair soap"
    assert grown.recommend([99], k=3).ids  # a history of nothing but a new item
    assert 99 not in base.recommend([3, 6], k=14).ids
    assert not base.knows(99)
    old = dict(zip(*(lambda a: (a.ids, a.scores))(base.recommend([3, 6], k=14))))
    new = dict(zip(answer.ids, answer.scores))
    assert all(new[item] == pytest.approx(score, abs=1e-4) for item, score in old.items() if item in new)


def test_what_cannot_be_described_is_refused_or_dropped_by_name(runs):
    base = Recommender.of(runs["tiger"])
    with pytest.raises(BadRequest, match=r"'101' is new .*give its title or attributes \(title\)") as refused:
        check(base, [*NEW, Item("101", None, {"colour": "red"})])
    assert refused.value.field == "items.2.title"
    _, done = take(base, [*NEW, Item("101"), Item("3", "other title")])
    assert (done.added, done.known, done.dropped) == (2, 1, ("101",))
    other = Recommender.of(runs["sasrec"])
    with pytest.raises(BadRequest, match="say which known items it is `like`"):
        check(other, NEW)
    assert take(other, NEW)[1].dropped == ("99", "100")
    with pytest.raises(EnsuiteError, match="knows the items it was trained on one by one"):
        other.with_described(pl.DataFrame({"item_id": [99], "title": ["soap"]}), "new")


def test_an_id_of_another_kind_than_the_logs_is_refused_or_dropped_by_name(runs):
    base = Recommender.of(runs["tiger"])
    with pytest.raises(BadRequest, match="'n1' is new to the model, whose item ids are whole numbers") as no:
        check(base, [NEW[0], Item("n1", "red hair soap")])
    assert no.value.field == "items.1.item_id"
    _, done = take(base, [*NEW, Item("n1", "red hair soap")])  # of a store that an older model filled
    assert (done.added, done.dropped) == (2, ("n1",))


def test_codes_that_are_not_those_of_the_training_are_refused(runs, tmp_path: Path):
    from ensuite.codes.table import TOKENISER, SemanticIdTable
    from ensuite.codes.tokeniser import load_tokeniser
    from ensuite.training.new_items import codes_of

    folder = runs["tiger"].path / "codes"
    table, tokeniser = SemanticIdTable.load(folder), load_tokeniser(folder / TOKENISER)
    table.codes[1:3] = table.codes[2:4]
    table.save(tmp_path / "codes", tokeniser)
    with pytest.raises(EnsuiteError, match=r"not the codes that .* was trained on"):
        codes_of(runs["tiger"], tmp_path / "codes")


def test_on_the_command_line(runs, ensuite, tmp_path: Path):
    pl.DataFrame({"item_id": [99, 100], "title": ["red hair soap", "blue oil cream"]}).write_csv(
        tmp_path / "new.csv"
    )
    said = ensuite("recommend", runs["tiger"].path, "--history", 3, 6, "--k", 16, "--new-items", "new.csv")
    assert "red hair soap" in said.stdout
    refused = ensuite("recommend", runs["sasrec"].path, "--history", 3, "--new-items", "new.csv", check=False)
    assert refused.returncode == 2
    assert "one by one" in refused.stderr
