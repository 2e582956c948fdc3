"""Transition-aware embedding distillation (TED; Zhu et al., WSDM 2024, https://arxiv.org/abs/2311.01056).

A term that teaches item vectors which item follows which in the whole training data. For an item i with the
normalised transition counts T_i,

    teacher  p_i = softmax(T_i / tau)              over the catalogue; T_ij = 0 where j never followed i
    student  q_i = softmax(s_i . e_j / tau)        s_i the item's vector as the encoder reads it
    loss     mean of -sum_j p_ij log q_ij          the teacher learns nothing

It belongs to no encoder: any model with an item table can add it. Neither p nor q is ever held. Of a row of p
all entries are one constant, but for the few items that did follow, so that

    -sum_j p_ij log q_ij = log sum_j exp(s_i . e_j / tau) - s_i . t_i / tau,
    t_i = sum_j p_ij e_j = constant_i sum_j e_j + sum over edges (p_ij - constant_i) e_j,

and the log-sum-exp is computed in chunks (`ensuite.objectives.cross_entropy`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.objectives.cross_entropy import chunked_log_sum_exp

RowNorm = Literal["max", "sum"]
Support = Literal["all", "edges"]


class TransitionDistillation(nn.Module):
    """Cross-entropy of the students' distributions against the transition counts' (formulas above).

    Parameters
    ----------
    n_items
        V, the number of items; rows 1..V.
    tau
        Temperature of teacher and student; above 0.
    row_norm
        Divide an item's counts by their largest (released code) or by their sum (as "row-normalised" reads).
    support
        all: items that never followed keep their exp(0) in the teacher's softmax (released code). edges: they
        have no mass. An item that nothing ever followed has a uniform teacher either way.

    Notes
    -----
    The teacher lives in buffers that are not saved: `fit` makes them again, and only the loss reads them.
    """

    first: Tensor  # [V + 2] int64, where the edges of each item row begin
    after: Tensor  # [N] int64, the items that followed
    excess: Tensor  # [N] float32, p_ij - constant_i
    constant: Tensor  # [V + 1] float32, the teacher's mass on each item that never followed

    def __init__(self, n_items: int, tau: float = 0.1, row_norm: RowNorm = "max", support: Support = "all"):
        super().__init__()
        if tau <= 0:
            raise ValueError(f"tau = {tau}: it divides scores, so it must be above 0")
        self.n_items, self.tau, self.row_norm, self.support = n_items, tau, row_norm, support
        self.register_buffer("first", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_buffer("after", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_buffer("excess", torch.zeros(0), persistent=False)
        self.register_buffer("constant", torch.zeros(0), persistent=False)

    def fit(self, counts: sp.csr_matrix) -> None:
        """Make the teacher of transition counts, `ensuite.data.transitions.count_transitions`: [V + 1, V +
        1]."""
        counts = counts.tocsr()
        edges = np.diff(counts.indptr)  # [V + 1]
        row = np.repeat(np.arange(len(edges)), edges)  # [N]
        whole = counts.max(1).toarray() if self.row_norm == "max" else np.asarray(counts.sum(1))
        score = counts.data / whole.ravel()[row] / self.tau  # [N], T_ij / tau
        most = np.zeros(len(edges))
        np.maximum.at(most, row, score)  # subtracted, so that exp is at most 1 however small tau is
        weight = np.exp(score - most[row])
        absent = np.exp(-most)  # of one item that never followed
        if self.support == "edges":
            absent[edges > 0] = 0.0
        z = np.bincount(row, weight, len(edges)) + (self.n_items - edges) * absent
        self.first = torch.from_numpy(counts.indptr.astype(np.int64))
        self.after = torch.from_numpy(counts.indices.astype(np.int64))
        self.excess = torch.from_numpy(((weight - absent[row]) / z[row]).astype(np.float32))
        self.constant = torch.from_numpy((absent / z).astype(np.float32))

    def teacher(self, items: Tensor) -> Tensor:
        """Return the teacher's rows of ``items`` [T], dense, to look at: [T, V], columns for items 1..V."""
        edge, owner = self._edges(items)
        rows = self.constant[items][:, None].repeat(1, self.n_items)
        return rows.index_put_((owner, self.after[edge] - 1), self.excess[edge], accumulate=True)

    def expected_vectors(self, items: Tensor, table: Tensor) -> Tensor:
        """Return ``sum_j p_ij e_j`` of ``items`` [T]: [T, D]; ``table`` [V + 1, D] holds item vectors."""
        edge, owner = self._edges(items)
        starts = F.pad(owner.bincount(minlength=len(items)).cumsum(0)[:-1], (1, 0))  # [T]
        excess = self.excess[edge].to(table.dtype)
        followed = F.embedding_bag(self.after[edge], table, starts, mode="sum", per_sample_weights=excess)
        return followed + self.constant[items].to(table.dtype)[:, None] * table[1:].sum(0)

    def forward(self, students: Tensor, items: Tensor, table: Tensor, counts: Tensor | None = None) -> Tensor:
        """Compute the mean loss over T items.

        Parameters
        ----------
        students
            The items' vectors as the encoder reads them, dropped out or not: [T, D].
        items
            Whose vectors they are, 1..V, in any order, any number of times: [T] int64.
        table
            Item vectors of rows 0..V, the output side: [V + 1, D].
        counts
            How often each of the T counts in the mean; default once: [T].
        """
        if len(self.first) != self.n_items + 2:
            raise RuntimeError("the transitions have not been counted: call fit(events) first")
        if len(items) == 0:
            return students.sum() * 0.0
        weight = torch.ones_like(items) if counts is None else counts
        weight = weight.to(students.dtype) / weight.sum()
        unique, place = items.unique(return_inverse=True)
        # s . t is linear in s: the students of one item are added up, and meet its expected vector once
        pooled = students.new_zeros(len(unique), students.shape[1])
        pooled = pooled.index_add(0, place, students * weight[:, None])
        agreement = (pooled * self.expected_vectors(unique, table)).sum() / self.tau
        return chunked_log_sum_exp(students / self.tau, table, counts) - agreement

    def _edges(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Return the edges of ``items`` [T], item by item, and whose they are, 0..T-1: [E] int64 each."""
        first = self.first[items]
        sizes = self.first[items + 1] - first  # [T]
        owner = torch.arange(len(items), device=items.device).repeat_interleave(sizes)
        before = sizes.cumsum(0) - sizes
        return torch.arange(len(owner), device=items.device) + (first - before)[owner], owner
