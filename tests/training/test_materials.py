"""What a training hands a system of its items: codes, the vectors they were made of, what codes stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import made_up_dataset

from ensuite.codes.build import build_table
from ensuite.codes.kinds import KINDS, tokeniser_class
from ensuite.config import build_config
from ensuite.errors import EnsuiteError
from ensuite.models.base import Retriever
from ensuite.training.config import resolve
from ensuite.training.loop import train
from ensuite.training.materials import gather_materials, make_codes
from ensuite.training.progress import Display
from ensuite.training.run import CODES

READS = ("codes", "vectors", "codebooks")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """A dataset, a trained SASRec on it, and codes of its item vectors in the folder of a run."""
    folder = tmp_path_factory.mktemp("materials")
    dataset = made_up_dataset(folder / "data")
    run = train("sasrec", dataset, folder / "sasrec", recipe={"training": {"epochs": 1}})
    codes = {"encoder": f"run:{folder / 'sasrec'}", "settings": {"levels": 2, "size": 6}}
    _, config = resolve("tiger", {"codes": codes})
    make_codes(config, dataset, folder / CODES, "cpu", Display(False))
    return dataset, run, config, folder


def test_a_system_gets_what_it_reads(made):
    dataset, run, config, folder = made
    nothing = gather_materials(config, (), dataset, folder, "cpu", Display(False))
    assert nothing.codes is nothing.vectors is nothing.codebooks is None
    found = gather_materials(config, READS, dataset, folder, "cpu", Display(False))
    assert found.codes.n_items == dataset.n_items
    assert isinstance(run.model, Retriever)
    assert torch.equal(found.vectors[1:], run.model.item_vectors()[1:])
    assert not found.vectors[0].any()
    assert [list(book.shape) for book in found.codebooks] == [[6, run.model.config.dim]] * 2
    alone = gather_materials(config, ("vectors",), dataset, folder / "no codes here", "cpu", Display(False))
    assert alone.codes is None
    assert torch.equal(alone.vectors, found.vectors)


def test_vectors_of_another_encoder_are_refused(made, tmp_path: Path):
    dataset, _, config, folder = made
    other = {"training": {"epochs": 1}, "model": {"dim": 8}}
    train("sasrec", dataset, folder / "sasrec", recipe=other, overwrite=True)
    with pytest.raises(EnsuiteError, match=r"not what the codes were made by: .* build the codes again"):
        gather_materials(config, READS, dataset, folder, "cpu", Display(False))


@pytest.mark.parametrize("kind", KINDS)
def test_what_codes_stand_for_rebuilds_the_vectors_or_is_said_not_to_be_there(kind: str):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(64, 16)).astype(np.float32)
    settings = {"levels": 2, "least_usage": 0.0}
    if kind not in ("fsq", "lsh"):
        settings["size"] = 8
    if kind in ("rq-vae", "mpq", "fsq"):
        settings["steps"] = 2
    cls = tokeniser_class(kind)
    tokeniser = cls(build_config(cls.Config, settings, kind), 16)
    table = build_table(vectors, range(64), tokeniser, encoder={"hash": "e"}, duplicates="shared")
    books = tokeniser.code_vectors()
    if kind in ("lsh", "random"):
        assert books is None
        return
    assert [len(book) for book in books] == list(table.level_sizes)
    codes = torch.from_numpy(table.codes[1:]).long()
    parts = [book[codes[:, level]] for level, book in enumerate(books)]
    rebuilt = {
        "rq-k-means": lambda: sum(parts),
        "opq": lambda: torch.cat(parts, 1) @ tokeniser.rotation.T,
        "rq-vae": lambda: tokeniser.decoder(sum(parts)),
        "mpq": lambda: tokeniser.decoder(torch.stack(parts).mean(0)),
        "fsq": lambda: _fsq(tokeniser, parts),
    }[kind]()
    expected = tokeniser.decode(codes)
    assert torch.allclose(rebuilt * tokeniser.scale + tokeniser.mean, expected, atol=1e-8)


def _fsq(tokeniser, parts):
    x = torch.stack(parts, 1) + tokeniser.positions
    for layer in tokeniser.layers:
        x = layer(x)
    return tokeniser.head(x[:, -1])
