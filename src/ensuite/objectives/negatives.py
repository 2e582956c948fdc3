"""Where negatives come from: a position, a sequence or a batch draws them by popularity, say."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ensuite.errors import EnsuiteError

ROUNDS = 4  # redraws of forbidden negatives before the exact draw
TABLE_BYTES = 1 << 26  # largest table of forbidden (sequence, item) cells


class NegativeSampler(nn.Module):
    """Draws item rows 1..V with replacement; never 0, the padding.

    Parameters
    ----------
    n_items
        V, the number of items.
    negatives
        N, negatives for each position, sequence or batch.
    kind
        ``uniform``; ``popularity``, in proportion to ``counts ** power``; ``in-batch``, targets of the
        batch's positions drawn at random; ``mixed``, the first half in-batch and the rest uniform.
    share
        Whether a draw belongs to one position, to all positions of a sequence, or to the whole batch.
    counts
        How often each row 0..V occurs in training: [V + 1]. Needed by ``popularity``, and by `log_expected`
        of the samplers that read the batch.
    power
        Exponent of the counts; 0 is uniform over the items that occur.
    exclude_history
        Never return an item that is a target of the same sequence.
    generator
        Source of randomness, on the device of the targets; torch's own by default.
    """

    weight: Tensor | None
    keep: Tensor | None
    alias: Tensor | None

    def __init__(
        self,
        n_items: int,
        negatives: int = 1,
        kind: Literal["uniform", "popularity", "in-batch", "mixed"] = "uniform",
        share: Literal["position", "sequence", "batch"] = "position",
        *,
        counts: Tensor | None = None,
        power: float = 1.0,
        exclude_history: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.n_items = n_items
        self.negatives = negatives
        self.kind = kind
        self.share = share
        self.exclude_history = exclude_history
        self.generator = generator
        weight = None
        if counts is not None:
            weight = counts[1:].to(torch.float64)
            # Popularity never draws an item of count 0. A batch may hold one that the counts have not seen.
            weight = (
                torch.where(weight > 0, weight**power, 0.0) if kind == "popularity" else weight.clamp(min=1.0)
            )
            weight = weight / weight.sum()
        # Not in the state dict: a model is loaded for scoring without its objective.
        self.register_buffer("weight", weight, persistent=False)  # [V], sums to 1
        keep, alias = (None, None) if weight is None or kind != "popularity" else alias_table(weight)
        self.register_buffer("keep", keep, persistent=False)  # [V] float32
        self.register_buffer("alias", alias, persistent=False)  # [V] int64

    def forward(self, targets: Tensor, row: Tensor) -> tuple[Tensor, Tensor | None]:
        """Draw negatives for the positions of a batch.

        Parameters
        ----------
        targets, row
            The positions' targets, 1..V, and their sequences, ascending: [T] int64 each.

        Returns
        -------
        negatives
            [T, N] for each position, [S, N] for each of the S sequences, or [N].
        group
            With a share of ``sequence``, which row of ``negatives`` each position reads: [T]; otherwise None.
        """
        group = None
        if self.share == "batch":
            return self.draw((1, self.negatives), targets)[0], None
        sequence = row.unique_consecutive(return_inverse=True)[1] if len(row) else row  # [T], 0..S-1
        if self.share == "sequence":
            group = sequence
            owner = torch.arange(int(sequence[-1]) + 1 if len(row) else 0, device=row.device)
        else:
            owner = sequence
        drawn = self.draw((len(owner), self.negatives), targets)
        if self.exclude_history:
            drawn = self._without_history(drawn, owner, targets, sequence)
        return drawn, group

    def draw(self, shape: tuple[int, int], targets: Tensor) -> Tensor:
        """Draw rows 1..V of the given shape, whatever the history; ``targets`` [T] is the batch."""
        if self.kind == "in-batch":
            return self._in_batch(shape, targets)
        if self.kind == "mixed":
            half = (shape[0], self._from_batch())
            rest = (shape[0], shape[1] - half[1])
            return torch.cat([self._in_batch(half, targets), self._uniform(rest, targets)], 1)
        return self._popular(shape, targets) if self.kind == "popularity" else self._uniform(shape, targets)

    def log_expected(self, items: Tensor) -> Tensor:
        """Return the log of how often each of ``items`` is expected among N negatives: same shape."""
        uniform = 1.0 / self.n_items
        if self.kind == "uniform":
            return torch.full(items.shape, self.negatives * uniform, device=items.device).log_()
        assert self.weight is not None
        share = {"popularity": 1.0, "in-batch": 1.0, "mixed": self._from_batch() / self.negatives}[self.kind]
        expected = self.negatives * (share * self.weight + (1.0 - share) * uniform)
        return expected.log().float()[items - 1]

    def _from_batch(self) -> int:
        return self.negatives // 2

    def _uniform(self, shape: tuple[int, int], targets: Tensor) -> Tensor:
        return torch.randint(1, self.n_items + 1, shape, generator=self.generator, device=targets.device)

    def _in_batch(self, shape: tuple[int, int], targets: Tensor) -> Tensor:
        return targets[torch.randint(len(targets), shape, generator=self.generator, device=targets.device)]

    def _popular(self, shape: tuple[int, int], targets: Tensor) -> Tensor:
        assert self.keep is not None
        assert self.alias is not None
        index = torch.randint(self.n_items, shape, generator=self.generator, device=targets.device)
        draw = torch.rand(shape, generator=self.generator, device=targets.device)
        return torch.where(draw < self.keep[index], index, self.alias[index]).add_(1)

    def _without_history(self, drawn: Tensor, owner: Tensor, targets: Tensor, sequence: Tensor) -> Tensor:
        """Redraw the forbidden cells a few times, then draw the rest from what is allowed."""
        flat, owners = drawn.view(-1), owner[:, None].expand_as(drawn).reshape(-1)
        history = _History(targets, sequence, self.n_items)
        bad = history.holds(owners, flat).nonzero()[:, 0]
        for _ in range(ROUNDS):
            if not len(bad):
                return drawn
            flat[bad] = (
                self.draw((1, len(bad)), targets)[0] if self.kind != "mixed" else self._redraw(bad, targets)
            )
            bad = bad[history.holds(owners[bad], flat[bad])]
        for owner_of in owners[bad].unique().tolist():
            cells = bad[owners[bad] == owner_of]
            flat[cells] = self._allowed(len(cells), targets, targets[sequence == owner_of])
        return drawn

    def _redraw(self, cells: Tensor, targets: Tensor) -> Tensor:
        """Mixed: each cell is redrawn from the half that it belongs to."""
        shape = (1, len(cells))
        in_batch = cells % self.negatives < self._from_batch()
        return torch.where(in_batch, self._in_batch(shape, targets)[0], self._uniform(shape, targets)[0])

    def _allowed(self, n: int, targets: Tensor, forbidden: Tensor) -> Tensor:
        """Draw ``n`` items outside ``forbidden`` by the sampler's weights; uniformly, if those are all 0."""
        uniform = torch.full((self.n_items,), 1.0 / self.n_items, dtype=torch.float64, device=targets.device)
        weight = uniform
        if self.kind == "popularity":
            assert self.weight is not None
            weight = self.weight
        elif self.kind != "uniform":
            weight = torch.bincount(targets - 1, minlength=self.n_items) / len(targets)
            if self.kind == "mixed":
                weight = (weight + uniform) / 2
        for candidate in (weight, uniform):
            left = candidate.to(torch.float64).index_fill(0, forbidden - 1, 0.0)
            if left.sum() > 0:
                return _inverse(left.cumsum(0), (1, n), self.generator)[0]
        raise EnsuiteError(
            f"no negative can be drawn: a sequence's own targets are all {self.n_items} items of the "
            "catalogue; set exclude_history to false"
        )


def alias_table(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return (keep, alias), [V] each, so that two random numbers draw index i in proportion to ``weight[i]``.

    Draw i uniformly; keep it with probability ``keep[i]``, else take ``alias[i]`` (Walker, 1977). The items
    of less than average weight, in ascending order, are topped up by those of more, one after the other;
    where in this row each stands follows from cumulative sums, so that no loop is needed.

    >>> alias_table(torch.tensor([1.0, 3.0]))
    (tensor([0.5000, 1.0000]), tensor([1, 1]))
    """
    scaled = weight.double() * (len(weight) / weight.double().sum())
    order = scaled.argsort(stable=True)
    n_small = int((scaled < 1).sum())
    small, large = order[:n_small], order[n_small:]
    if not len(large):  # all alike, but for rounding
        return torch.ones_like(scaled).float(), order
    lack, excess = (1 - scaled[small]).cumsum(0), (scaled[large] - 1).cumsum(0)
    keep, alias = torch.ones_like(scaled), torch.arange(len(weight), device=weight.device)
    # A small item is topped up by the first large one that the small ones before it have not used up.
    before = torch.cat([lack.new_zeros(1), lack])[:n_small]
    keep[small] = scaled[small]
    alias[small] = large[torch.searchsorted(excess, before).clamp_(max=len(large) - 1)]
    # A large item, once overdrawn, is itself topped up by the next.
    by = torch.searchsorted(lack, excess, right=True)  # the small item that overdraws it
    over = (by[:-1] < n_small).nonzero()[:, 0]  # the last has no next, and is overdrawn by rounding alone
    keep[large[over]] = 1 - (lack[by[over]] - excess[over])
    alias[large[over]] = large[over + 1]
    return keep.clamp_(0, 1).float(), alias


def _inverse(cumulative: Tensor, shape: tuple[int, int], generator: torch.Generator | None) -> Tensor:
    """Draw rows 1..V by inverting cumulative weights [V]; an item of weight 0 is never drawn."""
    draw = torch.rand(shape, generator=generator, dtype=torch.float64, device=cumulative.device)
    # right=True finds the first index whose cumulative weight is above the draw: past items of weight 0.
    index = torch.searchsorted(cumulative, draw * cumulative[-1], right=True)
    last = torch.searchsorted(
        cumulative, cumulative[-1:]
    )  # the last index with weight, should rounding go beyond
    return torch.minimum(index, last) + 1


class _History:
    """Is (sequence, item) a target of the batch? By a table when that is small, else by binary search."""

    def __init__(self, targets: Tensor, sequence: Tensor, n_items: int):
        self.width = n_items + 1
        keys = sequence * self.width + targets  # [T]
        n_cells = (int(sequence.max()) + 1 if len(sequence) else 0) * self.width
        self.table: Tensor | None = None
        if n_cells <= TABLE_BYTES:
            self.table = torch.zeros(n_cells, dtype=torch.bool, device=targets.device)
            self.table[keys] = True
        else:
            self.keys = keys.unique()

    def holds(self, sequence: Tensor, items: Tensor) -> Tensor:
        keys = sequence * self.width + items
        if self.table is not None:
            return self.table[keys]
        at = torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)
        return self.keys[at] == keys
