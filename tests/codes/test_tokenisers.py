"""What every tokeniser keeps: the same codes for the same vector, seed and settings."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from codes.vectors import SMALL, fitted, mixture
from safetensors.torch import load_file, save_file

from ensuite.codes import tokeniser as module
from ensuite.codes.kinds import KINDS, tokeniser_class
from ensuite.codes.tokeniser import load_tokeniser
from ensuite.config import build_config
from ensuite.errors import EnsuiteError

LEARNED = ["rq-vae", "rq-k-means", "opq", "fsq", "mpq"]

SWITCHES: dict[str, dict[str, Any]] = {
    "network": {"steps": 31, "batch_size": 32, "optimizer": "adagrad", "lr": 1e-3, "weight_decay": 0.3},
    "rq-vae": {
        "levels": 2,
        "size": 9,
        "hidden": (8,),
        "latent": 5,
        "beta": 1.0,
        "start_points": 4,
        "revive_every": 0,
    },
    "rq-k-means": {
        "levels": 2,
        "size": 9,
        "balance": "exact",
        "epsilon": ({"balance": "sinkhorn"}, 0.5),
        "normalise": True,
        "iterations": 1,
        "points": 4,
    },
    "opq": {"levels": 2, "size": 7, "rotations": 0, "points": 4},
    "fsq": {
        "levels": 2,
        "grid": (5, 3),
        "rounding": "sigmoid",
        "layers": 0,
        "heads": 1,
        "dropout": 0.0,
    },
    "mpq": {
        "levels": 2,
        "size": 9,
        "hidden": (8,),
        "latent": 5,
        "beta": 1.0,
        "orthogonal": "parameters",
        "orthogonal_weight": 9.0,
        "distance": "cosine",
        "split": 8,
        "specific": ({"split": 8, "levels": 5}, 2),
        "start_points": 4,
        "revive_every": 0,
    },
    "lsh": {"levels": 2, "planes": 2},
    "random": {"levels": 2, "size": 7},
}  # fmt: skip
ALL = [
    (kind, name, value)
    for kind in KINDS
    for name, value in (
        SWITCHES[kind]
        | (SWITCHES["network"] if kind in ("rq-vae", "fsq", "mpq") else {})
        | {"standardise": kind == "random"}
    ).items()
]


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_settings_alone_decide(kind: str) -> None:
    torch.manual_seed(5)
    first = fitted(kind)
    torch.manual_seed(6)  # what others draw does not matter
    second, other = fitted(kind), fitted(kind, seed=2)
    assert first.hash() == second.hash() != other.hash()
    assert torch.equal(first.encode(mixture()), second.encode(mixture()))
    state = torch.get_rng_state()
    other.fit(mixture(), torch.Generator().manual_seed(1))  # once more
    assert torch.equal(torch.get_rng_state(), state)  # nor does fitting touch it
    assert other.hash() == first.hash()


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_depends_on_its_vector_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, points = fitted(kind), mixture(seed=3)
    codes = made.encode(points)
    assert codes.shape == (400, len(made.level_sizes))
    assert codes.dtype == torch.int64
    assert all(codes[:, i].min() >= 0 and codes[:, i].max() < size for i, size in enumerate(made.level_sizes))
    order = torch.randperm(400)
    assert torch.equal(made.encode(points[order]), codes[order])
    monkeypatch.setattr(module, "BLOCK", 7)
    assert torch.equal(made.encode(points), codes)
    assert torch.equal(torch.cat([made.encode(points[i : i + 1]) for i in range(20)]), codes[:20])
    assert torch.equal(torch.from_numpy(made.encode_array(points.numpy())), codes.int())
    assert made.encode(points[:0]).shape == (0, len(made.level_sizes))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_gives_the_same_codes(kind: str, tmp_path: Path) -> None:
    made = fitted(kind)
    made.save(tmp_path / "t.safetensors")
    back = load_tokeniser(tmp_path / "t.safetensors")
    assert back.hash() == made.hash()
    assert back.config == made.config
    assert torch.equal(back.encode(mixture(seed=3)), made.encode(mixture(seed=3)))
    assert back.seed == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_cheapest_move_is_to_stay(kind: str) -> None:
    made, points = fitted(kind), mixture(seed=3)[:50]
    costs = made.moves(points.numpy())
    assert costs.shape == (50, made.level_sizes[-1])
    if kind == "random":
        assert (costs == 0).all()
    else:
        assert (costs.argmin(1) == made.encode(points)[:, -1].numpy()).all()


@pytest.mark.parametrize(("kind", "name", "value"), ALL)
def test_every_setting_does_something(kind: str, name: str, value: Any) -> None:
    with_it, value = value if isinstance(value, tuple) and isinstance(value[0], dict) else ({}, value)
    plain, changed = (fitted(kind, least_usage=0.0, **(with_it | more)) for more in ({}, {name: value}))
    if plain.level_sizes != changed.level_sizes:
        return
    differ = [
        a.shape != b.shape or not torch.equal(a, b)
        for a, b in zip(plain.state_dict().values(), changed.state_dict().values())
    ]
    assert any(differ) or len(plain.state_dict()) != len(changed.state_dict()) or name == "rounding"
    a, b = (made.encode(mixture(seed=3)) for made in (plain, changed))
    assert not torch.equal(a, b) or kind == "fsq"  # a few steps move its decoder only


def test_no_setting_is_forgotten_above() -> None:
    tested = {(kind, name) for kind, name, _ in ALL}
    for kind in KINDS:
        names = {field.name for field in dataclasses.fields(tokeniser_class(kind).Config)}
        assert {name for k, name in tested if k == kind} == names - {"least_usage"}


@pytest.mark.parametrize("kind", ["rq-vae", "rq-k-means", "opq", "mpq"])
def test_on_a_mixture_of_gaussians_more_than_four_fifths_of_the_codes_are_used(kind: str) -> None:
    settings = {"steps": 150, "batch_size": 256} if kind in ("rq-vae", "mpq") else {}
    points = mixture(1500, clouds=40, spread=1.0)
    codes = fitted(kind, points, size=32, **settings).encode(points)
    for level in range(codes.shape[1]):
        assert len(codes[:, level].unique()) >= 0.8 * 32


@pytest.mark.parametrize("kind", ["rq-k-means", "opq"])
def test_each_level_brings_the_vectors_nearer(kind: str) -> None:
    points = mixture(spread=1.0)
    made = fitted(kind, points)
    codes = made.encode(points)
    errors = [float((points - made.decode(codes, n)).square().sum()) for n in range(codes.shape[1] + 1)]
    assert all(after < before for before, after in pairwise(errors))
    assert torch.equal(made.decode(codes), made.decode(codes, codes.shape[1]))


@pytest.mark.parametrize("kind", ["rq-vae", "rq-k-means", "opq", "mpq", "lsh"])
def test_items_of_a_kind_share_their_first_code_more_often_than_others(kind: str) -> None:
    points = mixture()
    first = fitted(kind, points).encode(points)[:, 0]
    cloud = torch.arange(400) % 12
    same, pair = first[:, None] == first, cloud[:, None] == cloud
    assert same[pair].float().mean() > 2 * same[~pair].float().mean()


@pytest.mark.parametrize("kind", LEARNED)
def test_standardised_units_and_origin_do_not_matter(kind: str) -> None:
    points = mixture()
    moved = points * torch.linspace(0.25, 4, 16).exp2() * 4 + 3
    assert (fitted(kind, points).encode(points) == fitted(kind, moved).encode(moved)).float().mean() > 0.97


def test_a_constant_dimension_is_left_alone() -> None:
    points = torch.cat([mixture(), torch.full((400, 1), 7.0)], 1)
    made = fitted("rq-k-means", points)
    assert torch.isfinite(made.decode(made.encode(points))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_bad_vectors_are_refused(kind: str) -> None:
    bad = mixture()
    bad[7, 2] = float("nan")
    for points, said in ((bad, "vector 7 is not finite"), (mixture(0), "no vectors to learn from")):
        with pytest.raises(EnsuiteError, match=said):
            fitted(kind, points)
    with pytest.raises(EnsuiteError, match=r"made for \[N, 16\]; were they made by another encoder"):
        fitted(kind).encode(torch.zeros(3, 5))


def test_collapsed_codes_are_refused() -> None:
    points = mixture(clouds=2, spread=0.0)
    with pytest.raises(EnsuiteError, match=r"collapsed: level 0 uses 2 of 8 possible codes \(25.0%"):
        fitted("rq-k-means", points)
    fitted("rq-k-means", points, least_usage=0.1)


def test_too_few_items_are_refused() -> None:
    for kind in ("rq-k-means", "opq", "rq-vae"):
        with pytest.raises(EnsuiteError, match=r"5 (points|items) cannot make 8"):
            fitted(kind, mixture(5))


@pytest.mark.parametrize("kind", ["opq", "fsq"])
def test_parts_divide_the_dimension(kind: str) -> None:
    with pytest.raises(EnsuiteError, match="16 dimensions"):
        fitted(kind, levels=3)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (kind, {name: 0})
        for kind, names in {
            "rq-vae": ("levels", "size", "latent", "steps", "lr", "start_points"),
            "rq-k-means": ("levels", "size", "iterations", "points", "epsilon"),
            "opq": ("levels", "size", "points"),
            "fsq": ("levels", "heads"),
            "mpq": ("levels", "size", "latent", "batch_size"),
            "lsh": ("levels", "planes"),
            "random": ("levels", "size"),
        }.items()
        for name in names
    ]
    + [
        ("fsq", {"grid": (8, 1)}),
        ("opq", {"size": 300}),
        ("lsh", {"least_usage": 2.0}),
        ("mpq", {"beta": -1}),
        ("rq-vae", {"hidden": (8, 0)}),
        ("mpq", {"distance": "hamming"}),
        ("mpq", {"split": 8, "specific": 2}),
    ],
)
def test_settings_out_of_range_are_refused(kind: str, values: dict[str, Any]) -> None:
    with pytest.raises(EnsuiteError, match="recipe"):
        build_config(tokeniser_class(kind).Config, values, "recipe")


def test_a_file_that_is_no_tokeniser_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(EnsuiteError, match="no such tokeniser"):
        load_tokeniser(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(EnsuiteError, match="damaged, or no tokeniser"):
        load_tokeniser(path)
    fitted("lsh").save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(EnsuiteError, match="damaged, or no tokeniser"):
        load_tokeniser(path)
    path.write_bytes(whole.replace(b'\\"format_version\\": 1', b'\\"format_version\\": 9'))
    with pytest.raises(EnsuiteError, match="tokeniser format 9, this version reads 1"):
        load_tokeniser(path)
    path.write_bytes(whole.replace(b'\\"planes\\": 3', b'\\"planes\\": 4'))
    with pytest.raises(EnsuiteError, match="does not fit the settings"):
        load_tokeniser(path)
    path.write_bytes(whole)
    assert set(load_file(path)) == {"mean", "scale", "normals"}


def test_an_unknown_kind_is_refused_with_the_nearest() -> None:
    with pytest.raises(EnsuiteError, match="did you mean 'rq-k-means'"):
        tokeniser_class("rq-kmeans")
    assert set(SMALL) == set(KINDS)
