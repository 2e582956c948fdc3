"""The index beside a run: written and read again, refused where it does not belong, and used."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ensuite.codes.product import ProductConfig
from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.models.registry import load_model
from ensuite.serve.engine import ModelEngine
from ensuite.serve.recommender import Recommender
from ensuite.serve.search.engine import VectorEngine, check_dot_product, item_table
from ensuite.serve.search.index import (
    FILE,
    KINDS,
    IndexConfig,
    build_index,
    load_engine,
    read_index,
    write_index,
)
from ensuite.training.loop import train
from ensuite.training.run import Run, load_run

SMALL = {"model": {"dim": 8, "blocks": 1, "heads": 1, "max_length": 8}, "training": {"epochs": 1}}
SETTINGS = IndexConfig(pq=ProductConfig(splits=4))


@pytest.fixture(scope="module")
def trained(cycle: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("sasrec", cycle, tmp_path_factory.mktemp("runs") / "sasrec", recipe=SMALL).path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    return load_run(shutil.copytree(trained, tmp_path / "run"))


def kinds() -> list[object]:
    return [
        pytest.param(kind, marks=pytest.mark.skipif(not _has_faiss(), reason="faiss is not installed"))
        if kind == "hnsw"
        else kind
        for kind in KINDS
    ]


def _has_faiss() -> bool:
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("kind", kinds())
def test_written_and_read_again_answers_alike(run, kind):
    """With 20 items each part has its own sub-item: even the quantised kinds answer as the model does."""
    table = item_table(run.model)
    index = build_index(kind, table, SETTINGS)
    path = write_index(run, index)
    assert sorted(p.name for p in path.parent.iterdir() if "search" in p.name) == [FILE]
    again = read_index(load_run(run.path))
    assert (again.kind, again.settings) == (kind, SETTINGS)
    users, none = torch.randn(4, 8), [np.zeros(0, np.int64)] * 4
    expected = index.searcher(table).search(users, 5, None, none)
    found = again.searcher(table).search(users, 5, None, none)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])

    histories = [[10, 20, 30], [150]]
    by_model = Recommender.load(run.path, engine="torch").recommend(histories, k=6)
    indexed = Recommender.load(run.path, engine="index")
    assert isinstance(indexed.engine, ModelEngine if kind == "exact" else VectorEngine)
    by_index = indexed.recommend(histories, k=6)
    assert by_index.ids == by_model.ids
    np.testing.assert_allclose(by_index.scores, by_model.scores, rtol=1e-4, atol=1e-5)
    few = indexed.recommend([10, 20], k=2, candidates=[10, 50, 60, 70], exclude=[50])
    assert set(few.ids) <= {10, 60, 70}


def test_auto_uses_the_index_only_where_there_is_one(run):
    assert isinstance(Recommender.of(run).engine, ModelEngine)
    write_index(run, build_index("pq", item_table(run.model), SETTINGS))
    assert isinstance(Recommender.of(run).engine, VectorEngine)
    assert isinstance(Recommender.of(run, engine="torch").engine, ModelEngine)


def test_an_index_that_is_asked_for_and_missing(run):
    with pytest.raises(EnsuiteError, match="no search index; build one with `ensuite index"):
        Recommender.of(run, engine="index")
    with pytest.raises(EnsuiteError, match=r"engine = 'indx'.*'index'"):
        Recommender.of(run, engine="indx")


@pytest.mark.parametrize("engine", ["auto", "index"])
def test_other_weights_are_refused(run, engine):
    write_index(run, build_index("pq", item_table(run.model), SETTINGS))
    with torch.no_grad():
        next(run.model.parameters()).view(-1)[0] += 1
    with pytest.raises(EnsuiteError, match=r"search\.safetensors: stale: .*other weights"):
        Recommender.of(run, engine=engine)
    assert isinstance(Recommender.of(run, engine="torch").engine, ModelEngine)


def test_a_flipped_byte_is_found(run):
    path = write_index(run, build_index("pq", item_table(run.model), SETTINGS))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(EnsuiteError, match=r"search\.safetensors: damaged"):
        load_engine(run)


def test_a_file_cut_short_is_found(run):
    path = write_index(run, build_index("pq", item_table(run.model), SETTINGS))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(EnsuiteError, match=r"search\.safetensors: damaged"):
        load_engine(run)


@pytest.mark.parametrize(("old", "new"), [('"search": 1', '"search": 9'), ('"pq"', '"qp"')])
def test_another_format_or_kind_is_refused(run, old, new):
    path = write_index(run, build_index("pq", item_table(run.model), SETTINGS))
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about["ensuite"] = about["ensuite"].replace(f'"kind": {old}', f'"kind": {new}').replace(old, new, 1)
    save_file(tensors, path, metadata=about)
    with pytest.raises(EnsuiteError, match=r"search\.safetensors: search index of format .* and kind"):
        load_engine(run)


def test_a_checkpoint_in_its_place_is_refused(run):
    shutil.copy(run.path / "model.safetensors", run.path / FILE)
    with pytest.raises(EnsuiteError, match=r"search\.safetensors: search index of format None"):
        load_engine(run)


def test_codes_of_other_items_are_refused(run):
    """A right check sum does not make codes of 12 items fit a model of 20."""
    index = build_index("pq", item_table(run.model)[:13], SETTINGS)
    write_index(run, index)
    with pytest.raises(EnsuiteError, match="12 items"):
        load_engine(run)


@pytest.mark.parametrize("name", ["popularity", "markov", "item-knn", "ada-retrieval", "icsrec"])
def test_systems_whose_scores_are_no_dot_products(name):
    cls = load_model(name)
    model = cls(cls.config_for({})(), 20)
    with pytest.raises(EnsuiteError, match=cls.__name__):
        check_dot_product(model)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "hstu", "rearec"])
def test_systems_whose_scores_are(name):
    cls = load_model(name)
    model = cls(cls.config_for({})(), 20)
    assert check_dot_product(model) is model


def test_weights_that_are_not_numbers(run):
    write_index(run, build_index("pq", item_table(run.model), SETTINGS))
    engine = load_engine(run)
    with torch.no_grad():
        for weight in run.model.parameters():
            weight.fill_(torch.nan)
    with pytest.raises(EnsuiteError, match="NaN"):
        Recommender(run.model, run.items["item_id"].to_list(), engine=engine).recommend([10], k=2)
    with pytest.raises(EnsuiteError, match="NaN"):
        item_table(run.model)
