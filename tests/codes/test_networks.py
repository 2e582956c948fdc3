"""RQ-VAE, MPQ and FSQ beside their formulas; what keeps codebooks alive."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from codes.vectors import fitted, mixture

from ensuite.codes import rq_vae
from ensuite.codes.fsq import FSQ, FSQConfig
from ensuite.codes.learning import Codebook, CodebooksConfig, draw_batches, quantiser_loss
from ensuite.codes.mpq import MPQ, MPQConfig
from ensuite.codes.rq_k_means import RQKMeansConfig
from ensuite.codes.rq_vae import RQVAE
from ensuite.errors import EnsuiteError

# -- RQ-VAE --


def small_vae(**settings: object) -> RQVAE:
    torch.manual_seed(0)
    model = RQVAE(
        CodebooksConfig(**({"levels": 3, "size": 5, "hidden": (7,), "latent": 4} | settings)), 6
    ).double()
    for book in model.books:
        torch.nn.init.normal_(book.vectors)
    return model


def test_the_loss_is_the_papers() -> None:
    model, x = small_vae(beta=0.3), torch.randn(9, 6, dtype=torch.float64)
    z = model.encoder(x)
    expected = torch.zeros(())
    for n in range(9):
        residual, total = z[n], torch.zeros(4)
        for book in model.books:
            e = book.vectors[int(((residual - book.vectors) ** 2).sum(1).argmin())]
            expected = expected + ((residual - e) ** 2).sum() * (1 + 0.3)
            residual, total = residual - e, total + e
        expected = expected + ((x[n] - model.decoder(total)) ** 2).sum()
    torch.testing.assert_close(model.loss(x), expected / 9)


def test_gradients_go_where_stop_gradients_let_them() -> None:
    """Codes learn from the quantiser's term alone; the encoder from commitment and, straight through, from
    the reconstruction."""
    model, x = small_vae(levels=1), torch.randn(9, 6, dtype=torch.float64)
    z = model.encoder(x).detach().requires_grad_()
    book = model.books[0]
    code = book.nearest(z)
    model.loss(x).backward()
    pull = torch.zeros_like(book.vectors).index_add_(0, code, 2 * (book.vectors[code] - z).detach() / 9)
    torch.testing.assert_close(book.vectors.grad, pull)

    e = book.vectors[code].detach()
    through = (z + (e - z).detach()).requires_grad_()
    (x - model.decoder(through)).square().sum(1).mean().backward()
    into_z = z.grad + 0.25 * 2 * (z - e).detach() / 9
    grads = torch.autograd.grad(model.encoder(x), list(model.encoder.parameters()), into_z)
    for parameter, expected in zip(model.encoder.parameters(), grads):
        torch.testing.assert_close(parameter.grad, expected)


def test_codebooks_start_at_clusters_of_the_residuals() -> None:
    model, points = small_vae(), mixture(300, 6)
    model = model.float()
    model.start(points, torch.Generator().manual_seed(0))
    residual = model.encoder(points).detach()
    for book in model.books:
        which = book.nearest(residual)
        assert len(which.unique()) == 5
        before = residual.square().sum()
        residual = residual - book.vectors[which]
        assert residual.square().sum() < before
        assert (book.uses == 0).all()


def test_dead_codes_come_back_where_points_are() -> None:
    book = Codebook(4, 2)
    book.vectors.data = torch.tensor([[0.0, 0.0], [1.0, 1.0], [90.0, 90.0], [99.0, 99.0]])
    optimizer = torch.optim.AdamW(book.parameters())
    points = torch.tensor([[0.1, 0.0], [1.1, 1.0]])
    quantiser_loss(points, book(points)[1], 0.25).backward()
    optimizer.step()
    optimizer.state[book.vectors]["exp_avg"].fill_(1.0)
    assert book.usage() == 0.5
    book.revive(points, torch.Generator().manual_seed(0), optimizer)
    assert all(any(torch.equal(v, p) for p in points) for v in book.vectors[2:])
    assert not any(torch.equal(v, p) for v in book.vectors[:2] for p in points)
    assert optimizer.state[book.vectors]["exp_avg"].tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]
    assert (book.uses == 0).all()
    book.eval()(points)
    assert (book.uses == 0).all()  # only training counts


def test_revived_codes_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun on few points, most of 32 codes are dead; only where they are revived do they live."""
    points = mixture(600, clouds=60, spread=0.3)
    kept = {"size": 32, "start_points": 2, "steps": 120, "batch_size": 200, "least_usage": 0.0, "lr": 1e-3}
    monkeypatch.setattr(Codebook, "begin", lambda self, p, g: self.vectors.data.normal_(generator=g).mul_(50))
    dead, alive = (fitted("rq-vae", points, revive_every=every, **kept) for every in (0, 10))
    used = [len(m.encode(points)[:, 0].unique()) for m in (dead, alive)]
    assert used[0] < 10
    assert used[1] > 20


def test_a_collapse_stops_the_training_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rq_vae, "WATCHED", 10)
    monkeypatch.setattr(Codebook, "begin", lambda self, p, g: self.vectors.data.zero_())  # all are equal
    with pytest.raises(EnsuiteError, match=r"level \d used [0-3] of 8 codes in the 10 steps before step 10"):
        fitted("rq-vae", revive_every=0)
    with pytest.raises(EnsuiteError, match=r"the vectors, revive codes \(revive_every = 100\)"):
        fitted("rq-vae", revive_every=0, steps=9)  # seen at the end at the latest


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    with pytest.raises(EnsuiteError, match=r"not finite; lower lr \(1e\+30\)"):
        fitted("rq-vae", lr=1e30)


def test_the_papers_preset() -> None:
    paper = CodebooksConfig(**RQVAE.presets["paper"])
    assert (paper.optimizer, paper.lr, paper.batch_size) == ("adagrad", 0.4, 1024)
    assert (paper.levels, paper.size, paper.hidden, paper.latent) == (3, 256, (512, 256, 128), 32)
    assert (paper.standardise, paper.revive_every) == (False, 0)


def test_batches_read_every_item_before_any_again() -> None:
    rows = torch.cat(draw_batches(10, 4, 5, torch.Generator().manual_seed(0)))
    assert len(rows) == 20
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert [len(b) for b in draw_batches(3, 8, 4, torch.Generator().manual_seed(0))] == [3, 3, 3, 3]


# -- RQ-k-means --


@pytest.mark.parametrize("n", [400, 407])
def test_balanced_levels_hold_as_many_items_each(n: int) -> None:
    points = mixture(n, clouds=5)
    codes = fitted("rq-k-means", points, balance="exact").encode(points)
    plain = fitted("rq-k-means", points).encode(points)
    for level in range(3):
        sizes = torch.bincount(codes[:, level], minlength=8)
        assert set(sizes.tolist()) <= {n // 8, -(-n // 8)}
    assert torch.bincount(plain[:, 0]).max() > n // 8 + 1
    assert RQKMeansConfig().balance == "none"


def test_normalised_residuals_have_length_one() -> None:
    points = mixture()
    made = fitted("rq-k-means", points, normalise=True)
    assert (made.codebooks.norm(dim=2) <= 1 + 1e-9).all()
    error = [float((points - made.decode(made.encode(points), n)).square().mean()) for n in (0, 1, 2, 3)]
    assert error[3] < error[1] < error[0]


# -- FSQ --


def fsq(**settings: object) -> FSQ:
    return FSQ(FSQConfig(**settings), 32)


def test_every_token_comes_back_from_its_digits() -> None:
    made = fsq()
    every = torch.arange(15_360)
    digits = made.digits(every)
    assert torch.equal(made.index(digits), every)
    assert (digits.amax(0) + 1).tolist() == [8, 8, 8, 6, 5]
    assert made.digits(torch.tensor(1 + 2 * 8 + 3 * 64 + 4 * 512 + 2 * 3072)).tolist() == [1, 2, 3, 4, 2]
    assert made.level_sizes == (15_360,) * 4


@pytest.mark.parametrize("rounding", ["tan", "atanh", "sigmoid"])
def test_bounded_numbers_reach_the_whole_grid_and_no_more(rounding: str) -> None:
    made = fsq(rounding=rounding, grid=(8, 6, 5))
    wide = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None].expand(-1, 3)
    digits = made.bound(wide).round()
    for axis, size in enumerate((8, 6, 5)):
        assert digits[:, axis].unique().tolist() == list(range(size))
    zero = made.bound(torch.zeros(3, dtype=torch.float64))
    if rounding == "sigmoid":
        assert zero.tolist() == [3.5, 2.5, 2.0]
    elif rounding == "atanh":  # 0 is kept: it is the grid's middle
        assert zero.tolist() == pytest.approx([4.0, 3.0, 2.0])
    else:  # the tangent overshoots a little
        assert zero[0] != 4.0
        assert zero.tolist() == pytest.approx([4.0, 3.0, 2.0], abs=0.01)


def test_gradients_pass_the_rounding_straight_through() -> None:
    made, points = fsq(layers=0, dropout=0.0).double(), torch.randn(20, 32, dtype=torch.float64)
    made._start()
    torch.nn.init.normal_(made.project_in.weight)
    made.loss(points).backward()
    bounded = made.bound(made.project_in(made._parts(points)))
    digits = bounded.detach().round().requires_grad_()
    (points - made._rebuild(made.values(digits))).abs().mean().backward()
    (expected,) = torch.autograd.grad(bounded, made.project_in.weight, digits.grad)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(made.project_in.weight.grad, expected)


def test_a_token_depends_on_its_part_alone() -> None:
    made, points = fitted("fsq"), mixture()
    changed = points.clone()
    changed[:, 4:8] += 1.0
    moved = (made.encode(changed) != made.encode(points)).any(0)
    assert moved.tolist() == [False, True, False, False]


# -- MPQ --


def test_the_mixtures_loss_by_hand() -> None:
    torch.manual_seed(0)
    settings = {"levels": 2, "size": 5, "hidden": (7,), "latent": 4, "orthogonal_weight": 0.7}
    model, x = MPQ(MPQConfig(**settings), 6).double(), torch.randn(9, 6, dtype=torch.float64)
    for book in model.books:
        torch.nn.init.normal_(book.vectors)
    gates, expected = model.router(x).softmax(1), torch.zeros(())
    for n in range(9):
        es = [expert(x[n]) for expert in model.experts]
        zs = [b.vectors[int(((e - b.vectors) ** 2).sum(1).argmin())] for e, b in zip(es, model.books)]
        mixed = sum(gates[n, r] * zs[r] for r in range(2))
        expected = expected + ((x[n] - model.decoder(mixed)) ** 2).sum()
        expected = expected + sum(((e - z) ** 2).sum() * 1.25 for e, z in zip(es, zs))
        expected = expected + 0.7 * 2 * F.cosine_similarity(es[0], es[1], 0) ** 2
    torch.testing.assert_close(model.loss(x), expected / 9)


def test_orthogonality_sets_experts_apart() -> None:
    points = mixture()

    def likeness(how: str) -> float:
        made = fitted("mpq", points, orthogonal=how, orthogonal_weight=20.0, steps=120)
        unit = F.normalize(made.outputs(made._points(points)), dim=2)
        pairs = itertools.combinations(unit, 2)
        return float(torch.stack([(a * b).sum(1).abs().mean() for a, b in pairs]).mean())

    apart, free = likeness("outputs"), likeness("none")
    assert apart < 0.6 * free


def test_orthogonal_weights_have_no_cost() -> None:
    made = MPQ(MPQConfig(levels=2, hidden=(), latent=2, size=3, orthogonal="parameters"), 3)
    for expert, row in zip(made.experts, torch.eye(2)):
        expert[0].weight.data = row[:, None] * torch.ones(1, 3)
        expert[0].bias.data.zero_()
    assert made.orthogonality(torch.zeros(0)).item() == pytest.approx(0, abs=1e-6)
    made.experts[1][0].weight.data = made.experts[0][0].weight.data
    assert made.orthogonality(torch.zeros(0)).item() == pytest.approx(2)


def test_experts_of_a_part_read_nothing_else() -> None:
    made, points = fitted("mpq", levels=5, split=6, specific=1), mixture()
    codes = made.encode(points)
    for part, unmoved in ((slice(0, 6), [4]), (slice(6, 16), [3])):
        changed = points.clone()
        changed[:, part] += torch.randn_like(changed[:, part]) * 3
        same = (made.encode(changed) == codes).all(0)
        assert same.nonzero()[:, 0].tolist() == unmoved
    apart = MPQ(MPQConfig(levels=4, hidden=(), latent=2, size=3, orthogonal="parameters", split=2), 5)
    for expert in apart.experts:
        expert[0].weight.data.fill_(1.0)
        expert[0].bias.data.zero_()
    assert apart.orthogonality(torch.zeros(0)).item() == pytest.approx(2)  # of the two that read both
    with pytest.raises(EnsuiteError, match="split = 16 leaves nothing of 16"):
        fitted("mpq", split=16)
