"""The two identities of an item in H2Rec: a vector of its own (HID), and what its codes stand for (SID)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.errors import EnsuiteError
from ensuite.models._h2rec_layers import linear
from ensuite.models.materials import Materials
from ensuite.nn.embeddings import ItemTable

if TYPE_CHECKING:
    from ensuite.models.h2rec import H2RecConfig


class Identities(nn.Module):
    """Item and code tables, and the maps from the width of codes to D.

    Tables start from content: HIDs as principal components of the content vectors, codes as the vectors of
    the tokeniser's codebooks, both scaled to the deviation `init_std`.
    """

    codes: Tensor  # [V + 1, C] int64, 0 at row 0
    code_vectors: Tensor  # [sum of K, W], level after level
    offsets: Tensor  # [C] int64, where each level's begin
    center: Tensor  # [E], the mean content vector
    axes: Tensor  # [E, D or fewer], what makes a first HID of a content vector

    def __init__(self, config: H2RecConfig, n_items: int):
        super().__init__()
        self.config, c, levels = config, config, len(config.level_sizes)
        self.items = None if c.branches == "sid" else ItemTable(n_items + 1, c.dim, c.init_std)
        sizes = torch.tensor(c.level_sizes)
        self.register_buffer("codes", torch.zeros(n_items + 1, levels, dtype=torch.int64))
        self.register_buffer("offsets", sizes.cumsum(0) - sizes, persistent=False)
        vectors = nn.init.normal_(torch.empty(int(sizes.sum()), c.code_dim), std=c.init_std)
        if c.learn_codes:
            self.code_vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("code_vectors", vectors)
        self.register_buffer("center", torch.zeros(c.content_dim))
        self.register_buffer("axes", torch.zeros(c.content_dim, min(c.content_dim, c.dim)))
        width = c.code_dim * (levels if c.pool == "concat" else 1)
        middle = max(width // 2, c.dim)
        maps = width != c.dim and c.branches != "hid"
        self.to_sid = nn.Sequential(linear(width, middle), linear(middle, c.dim)) if maps else None
        self.to_view = linear(c.code_dim, c.dim) if c.fuses and c.code_dim != c.dim else None
        self.to_pooled = linear(2 * c.dim, c.dim) if c.branches == "concat" else None
        self.taken = False

    # -- what they start from --

    @torch.no_grad()
    def take(self, materials: Materials) -> None:
        """Take codes and start the tables; called again, keep what may have been learned since."""
        assert materials.codes is not None
        assert materials.vectors is not None
        rows, levels = self.codes.shape
        codes = torch.from_numpy(materials.codes.codes[:rows, :levels].astype(np.int64))
        self.codes = codes.clamp(min=0).to(self.codes.device)
        books = start_of_codes(self.config, materials)
        if books is not None and not (self.taken and self.config.learn_codes):
            self.code_vectors.copy_(torch.cat(books))
            self.code_vectors.mul_(self.config.init_std / rms(self._pooled()[1:]))
        if self.items is not None and self.config.hid_start == "pca" and not self.taken:
            self._find_axes(materials.vectors[1:].to(self.center))
            start = self.first_hids(materials.vectors[1:rows])
            self.items.weight[1:, : start.shape[1]] = start
        self.taken = True

    def first_hids(self, vectors: Tensor) -> Tensor:
        """Return what HIDs start as for content ``vectors`` [N, E]: [N, D or fewer]."""
        return (vectors.to(self.center) - self.center) @ self.axes

    def _find_axes(self, vectors: Tensor) -> None:
        """Find the principal axes of ``vectors`` [V, E]; all components together get the deviation
        `init_std`."""
        points = vectors.double()
        self.center = points.mean(0).to(vectors)
        points = points - points.mean(0)
        axes = torch.linalg.eigh(points.T @ points)[1].flip(1)[:, : self.config.dim]  # the largest first
        axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # of two directions, one
        self.axes = (axes * self.config.init_std / rms(points @ axes)).to(vectors)

    # -- vectors --

    def hid(self, items: Tensor | None = None) -> Tensor:
        """Return the HIDs of ``items`` [...] (default: of all rows): [..., D]."""
        assert self.items is not None
        return self.items.weight if items is None else self.items(items)

    def sid(self, items: Tensor | None = None) -> Tensor:
        """Return the SIDs of ``items`` [...] (default: of all rows), zero for padding: [..., D].

        The maps are linear, so they map the vectors of codes, which are few, instead of those of items.
        """
        parts, bias = self._parts(), None
        if self.to_sid is not None:
            first, second = cast("list[nn.Linear]", list(self.to_sid))
            pieces = [first.weight] * len(parts)
            if self.config.pool == "concat":
                pieces = list(first.weight.split(self.config.code_dim, 1))
            parts = [part @ piece.T @ second.weight.T for part, piece in zip(parts, pieces)]
            bias = second(first.bias)
        codes = self.codes if items is None else self.codes[items]  # [..., C]
        total = torch.stack([F.embedding(codes[..., n], part) for n, part in enumerate(parts)]).sum(0)
        total = total if bias is None else total + bias
        rows = torch.arange(len(self.codes), device=codes.device) if items is None else items
        return total * (rows != 0)[..., None]

    def views(self, items: Tensor) -> list[Tensor]:
        """Return what ``items`` [...] are by each code alone, zero for padding: C times [..., D]."""
        table = self.code_vectors if self.to_view is None else self.to_view(self.code_vectors)
        found = F.embedding(self.codes[items] + self.offsets, table) * (items != 0)[..., None, None]
        return list(found.unbind(-2))

    def forward(self, items: Tensor | None = None) -> list[Tensor]:
        """Return the vectors by which ``items`` [...] (default: all rows) are read and scored, [..., D] for
        each branch."""
        which = self.config.branches
        if which in ("hid", "sid"):
            return [self.hid(items) if which == "hid" else self.sid(items)]
        hid, sid = self.hid(items), self.sid(items)
        if which == "both":
            return [hid, sid]
        if self.to_pooled is not None:
            return [self.to_pooled(torch.cat([hid, sid], -1))]
        return [hid + sid if which == "sum" else (hid + sid) / 2]

    def _parts(self) -> list[Tensor]:
        """Return what the codes of each level add to an item's pooled codes: [K, W] each."""
        parts = list(self.code_vectors.split(list(self.config.level_sizes)))
        return [part / len(parts) for part in parts] if self.config.pool == "mean" else parts

    def _pooled(self) -> Tensor:
        """Return the pooled codes of all rows, before they are mapped: [V + 1, W]."""
        found = [F.embedding(self.codes[:, n], part) for n, part in enumerate(self._parts())]
        return torch.cat(found, 1) if self.config.pool == "concat" else torch.stack(found).sum(0)

    # -- new items --

    def extended(self, codes: Tensor, hids: Tensor) -> Self:
        """Return these tables with items more, by their ``codes`` [N, C] and ``hids`` [N, D]; they share all
        else.

        Raises
        ------
        EnsuiteError
            When a code is outside its level: there is no vector for it.
        """
        codes = codes.to(self.codes)
        bad = ((codes < 0) | (codes >= codes.new_tensor(self.config.level_sizes))).nonzero()
        if len(bad):
            item, level = bad[0].tolist()
            raise EnsuiteError(
                f"new item {item + 1}: code {int(codes[item, level])} at level {level}, which has "
                f"{self.config.level_sizes[level]}; the model has no vector for it: train it again on a "
                "table with room"
            )
        grown = copy.copy(self)
        if self.items is not None:
            grown._modules = {**self._modules, "items": self.items.extended(hids.to(self.items.weight))}
        grown._buffers = {**self._buffers, "codes": torch.cat([self.codes, codes])}
        return grown


def start_of_codes(config: H2RecConfig, materials: Materials) -> list[Tensor] | None:
    """Return what the codes of each level start as, [K, W] each; None: at random.

    Raises
    ------
    EnsuiteError
        When they are to be what they stand for, and stand for nothing.
    """
    if config.code_start == "random":
        return None
    books = materials.codebooks
    if books is None or len({book.shape[1] for book in books}) > 1:
        why = "stand for nothing" if books is None else "have vectors of different widths"
        raise EnsuiteError(
            f"code_start = codebooks: the codes of this table {why}; give --model.code-start random and "
            "--model.learn-codes, so that they learn what they mean, or another tokeniser"
        )
    return books


def rms(values: Tensor) -> Tensor:
    """Return the root of the mean square of all elements; 1 where they are all 0."""
    found = values.square().mean().sqrt()
    return torch.where(found > 0, found, torch.ones_like(found))
