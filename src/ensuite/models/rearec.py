"""ReaRec: Think Before Recommend (Tang et al. 2025, https://arxiv.org/abs/2503.22675, v3).

"Unleashing the Latent Reasoning Power for Sequential Recommendation": the encoder's last output is fed back
into it K times as a further input, a latent thought r_k, before items are ranked. The history is read once;
a thought costs one position against what is kept of it. Two ways to teach it: ERL ranks by the mean of all
steps and pushes them apart (KL); PRL ranks by the last one, and its steps go from a soft to a sharp softmax,
each held to its noisy twin (RCL). Official code: https://github.com/TangJiakai/ReaRec.

It wraps any base that reads on after a history (`Stepwise`: SASRec, BERT4Rec, HSTU). The base keeps its own
input layer, positions and window; thoughts have positions of their own (a table of K rows), so that no window
is too long for them. Every cross-entropy goes through the objective of the run, whose temperature is tau.

Chosen where the paper and its code leave it open or differ:
- What is fed back is the vector that ranks: with cosine similarity the normalised one (the thought's layer
  norm sets its scale anyway), with BERT4Rec the head's output without its constant 1.
- The ERL vector is the plain mean over K + 1 steps, as in the code; the paper divides a sum by K.
- The KL term takes all ordered pairs and detaches one side (``pairs: upper`` is the paper's i < j).
- gamma is the noise's standard deviation (``noise: variance`` is the paper's gamma I); the noisy chain starts
  each step from the clean state with a cache of its own (``noisy_from: own`` lets it go its own way).
- RCL is the mean over steps 1..K and the batch, the noisy vector asking, the batch's clean ones answering.
- Weight of the earlier steps' cross-entropies (not found): their plain sum, as in the paper's formula.
- alpha (only a grid was found): 1.5, the middle of it; the paper finds moderate values best.

The released code stops with an error in ERL's third epoch (it reads a noise that ERL does not define) and in
PRL's first batch unless the warm-up is 0 (an unassigned loss): here ERL has no noise, and RCL is 0 before its
warm-up is over. Its softmax has padding as a class: ``as_released`` keeps that.

Published, NDCG@20 on Yelp, global time split, SASRec base: .0452; ERL .0474, PRL .0493. See results/.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.config import config
from ensuite.data.batches import Batch, History
from ensuite.errors import EnsuiteError
from ensuite.models.base import Stepwise
from ensuite.models.wrapper import Wrapper, WrapperConfig
from ensuite.nn.dropout import Dropout
from ensuite.nn.embeddings import PositionTable
from ensuite.objectives import Objective
from ensuite.objectives.cross_entropy import CrossEntropy
from ensuite.objectives.divergence import Pairs, step_divergence


@config
class ReaRecConfig(WrapperConfig):
    """The reasoning; defaults are the released code's, but for what it only has grids for."""

    method: Literal["erl", "prl", "none"] = "prl"
    """erl ranks by the mean of all steps, prl by the last; none: by the last, and trains nothing else."""
    steps: int = 2
    """Thoughts after the history, K; 0 = the base alone."""
    positions: bool = True
    """Add a learned vector to each thought, one for each step (without: the paper's naive feedback)."""
    thought_dropout: float = 0.2
    """Share of a thought's elements dropped before the encoder reads it, after its layer norm."""
    kl_weight: float = 0.05
    """ERL: lambda, weight of the divergence between steps; 0 leaves it out."""
    kl_items: int = 0
    """ERL: take the divergence over so many items drawn for each batch; 0 = over all, exact."""
    pairs: Pairs = "ordered"
    """ERL: ordered, the mean over all pairs, one side detached (code); upper, the sum over i < j (paper)."""
    alpha: float = 1.5
    """PRL: step k has temperature tau * alpha^(K - k); 1 = none is softer."""
    pl_weight: float | None = None
    """PRL: weight of the mean cross-entropy of the steps before the last; null = K, the paper's plain sum."""
    cl_weight: float = 1.0
    """PRL: weight of the contrast between clean and noisy thoughts (RCL); 0 leaves it out."""
    gamma: float = 0.01
    """PRL: the noise added to thoughts; 0 leaves RCL out."""
    noise: Literal["std", "variance"] = "std"
    """PRL: what gamma is of the noise: its standard deviation (code) or its variance (paper)."""
    noisy_from: Literal["clean", "own"] = "clean"
    """PRL: a noisy thought is made of the clean chain's state (code) or of its own chain's."""
    warmup: int = 2
    """PRL: epochs before RCL begins."""
    as_released: bool = False
    """Padding, a vector of zeros, is a class of the training softmax; needs cross-entropy and kl_items 0."""

    def __post_init__(self) -> None:
        for name in ("steps", "kl_weight", "kl_items", "cl_weight", "gamma", "warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 0 is needed")
        if self.pl_weight is not None and self.pl_weight < 0:
            raise ValueError(f"pl_weight = {self.pl_weight}: at least 0 is needed, or null")
        if self.alpha < 1:
            raise ValueError(f"alpha = {self.alpha}: below 1 the steps would go from sharp to soft")
        if not 0 <= self.thought_dropout < 1:
            raise ValueError(f"thought_dropout = {self.thought_dropout}: at least 0 and below 1 is needed")
        if self.kl_items == 1:
            raise ValueError("kl_items = 1: a softmax over one item says nothing; 0 (all), or at least 2")
        if self.as_released and self.kl_items:
            raise ValueError("as_released takes the divergence over everything: leave kl_items at 0")


class ReaRec(Wrapper):
    """K latent thoughts after the history, read by the base's own encoder."""

    Config = ReaRecConfig
    needs = Stepwise
    samples = ("prefixes", "last-position")  # type: ignore[assignment]
    summary = "Latent reasoning: a retriever reads on from its own last state, K times"
    paper = "Tang et al., 2025, arXiv:2503.22675"
    family = "wrapper"
    state = "measured"
    epoch: Tensor

    def __init__(self, config: Any, n_items: int, objective: Objective | None = None):
        super().__init__(config, n_items, objective)
        if config.as_released and objective is not None and not isinstance(objective, CrossEntropy):
            raise EnsuiteError(
                "rearec: as_released adds a class to the cross-entropy over the catalogue, and another loss "
                "is set; use objective.loss: cross-entropy, or as_released: false"
            )
        if getattr(config.encoder, "stochastic_length", 0):
            raise EnsuiteError(
                f"rearec: model.encoder.stochastic_length = {config.encoder.stochastic_length} acts in the "
                "base's own loss, which does not take part here; set it to 0"
            )
        self.dim = config.encoder.dim
        thinks = config.steps > 0
        self.positions = None
        if thinks and config.positions:
            self.positions = PositionTable(config.steps, self.dim, "start")
        self.norm = nn.LayerNorm(self.dim, eps=1e-12) if thinks else nn.Identity()  # one for all steps
        self.dropout = Dropout(config.thought_dropout)
        self.register_buffer("epoch", torch.tensor(0))
        self.step: int | None = None
        """Rank by the state after so many thoughts, 0 to K, in place of the method's own reading."""

    def start_epoch(self, epoch: int, batches: Iterable[Batch]) -> None:
        self.base.start_epoch(epoch, batches)
        self.epoch.fill_(epoch)

    def think(self, history: History, noise: float = 0.0) -> tuple[Tensor, Tensor | None]:
        """Reason after the histories.

        Parameters
        ----------
        history
            [B, L].
        noise
            Standard deviation of what is added to the thoughts of a second, noisy chain; 0 = no such chain.

        Returns
        -------
        states, noisy
            r_0 .. r_K, [B, K + 1, D], the first the base's own vector; the noisy chain's r_1 .. r_K,
            [B, K, D], or None. D is the width of vectors that rank (with BERT4Rec's output bias, one more).
        """
        state, read = self.base.begin(history)
        other, read_by_other = state, read
        states, noisy = [state], []
        for k in range(self.config.steps):
            if noise:
                source = state if self.config.noisy_from == "clean" else other
                other, read_by_other = self.base.step(self._thought(source, k, noise), read_by_other)
                noisy.append(other)
            state, read = self.base.step(self._thought(state, k), read)
            states.append(state)
        return torch.stack(states, 1), torch.stack(noisy, 1) if noisy else None

    def _thought(self, state: Tensor, k: int, noise: float = 0.0) -> Tensor:
        """Return the encoder's input for thought k + 1 (counted from 1): [B, dim]."""
        x = state[:, : self.dim]
        if self.positions is not None:
            x = x + self.positions.weight[k]
        if noise:
            x = x + noise * torch.randn_like(x)
        return self.dropout(self.norm(x))

    def read_out(self, states: Tensor) -> Tensor:
        """Return the user's vector, [B, D], of all states, [B, K + 1, D]: their mean (ERL), or the last."""
        return states.mean(1) if self.config.method == "erl" else states[:, -1]

    def encode(self, history: History) -> Tensor:
        states, _ = self.think(history)
        return self.read_out(states) if self.step is None else states[:, self.step]

    def forward(self, history: History) -> Tensor:
        """Encode every position, each as if the history ended there: [B, L, D].

        That reads B x L histories: for a look at the model, training does not come here.
        """
        rows, width = history.items.shape

        def prefixes(x: Tensor | None) -> Any:
            ends = torch.ones(width, width, dtype=torch.bool, device=history.items.device).tril()
            return None if x is None else (x[:, None] * ends).flatten(0, 1)  # [B * L, L]

        every = History(*map(prefixes, (history.items, history.times, history.request_times)))
        return self.encode(every).unflatten(0, (rows, width))

    def softness(self) -> list[float]:
        """Return alpha^(K - k) for k = 0 .. K: the temperature of each step, in multiples of tau."""
        return [self.config.alpha ** (self.config.steps - k) for k in range(self.config.steps + 1)]

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of the vector that ranks with the terms of the method: a scalar."""
        if self.objective is None:
            raise RuntimeError("this model was built to score only: no objective was given")
        c, history = self.config, batch.history
        targets = batch.targets.gather(1, history.lengths[:, None] - 1)[:, 0]  # [B]
        row = torch.arange(len(targets), device=targets.device)
        states, noisy = self.think(history, self.noise_now())
        loss = self.objective(self.read_out(states), targets, self.candidates, row)
        if c.steps and c.method == "erl" and c.kl_weight:
            loss = loss - c.kl_weight * self.divergence(states)
        if c.steps and c.method == "prl":
            weight = c.steps if c.pl_weight is None else c.pl_weight
            if weight:
                softness = states.new_tensor(self.softness()[:-1])[:, None]  # [K, 1]
                earlier = (states[:, :-1] / softness).flatten(0, 1)  # [B * K, D]; the objective has tau
                target, sequence = targets.repeat_interleave(c.steps), row.repeat_interleave(c.steps)
                loss = loss + weight * self.objective(earlier, target, self.candidates, sequence)
            if noisy is not None:
                loss = loss + c.cl_weight * self.contrast(noisy, states[:, 1:])
        return loss

    def noise_now(self) -> float:
        """Return the standard deviation of the noise in this epoch; 0 while there is no contrastive term."""
        c = self.config
        if c.method != "prl" or not c.steps or not c.cl_weight or int(self.epoch) < c.warmup:
            return 0.0
        return c.gamma if c.noise == "std" else c.gamma**0.5

    @property
    def temperature(self) -> float:
        """Tau: the temperature of the objective, 1 for one that has none."""
        return getattr(self.objective, "temperature", 1.0)

    def divergence(self, states: Tensor) -> Tensor:
        """Return how far the rankings of the steps [B, K + 1, D] are apart (ERL): a scalar."""
        items = None
        if 0 < self.config.kl_items < self.n_items:
            items = torch.randint(1, self.n_items + 1, (self.config.kl_items,), device=states.device)
        vectors = self.candidates(None)[1:] if items is None else self.item_vectors(items)
        return step_divergence(states, vectors, self.temperature, self.config.pairs)

    def contrast(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """Return the InfoNCE of noisy [B, K, D] against clean thoughts of the same step: a scalar."""
        with torch.autocast(noisy.device.type, enabled=False):  # dot products of raw states are large
            noisy, clean = (x.transpose(0, 1).float() for x in (noisy, clean))  # [K, B, D]
            scores = noisy @ clean.mT / self.temperature  # [K, B, B]
            own = torch.arange(scores.shape[1], device=scores.device).repeat(len(scores))
            return F.cross_entropy(scores.flatten(0, 1), own)

    def candidates(self, items: Tensor | None) -> Tensor:
        """Return what the training softmax is over: the item vectors, as_released with padding at the end."""
        vectors = self.item_vectors(items)
        if items is None and self.config.as_released:
            return torch.cat([vectors, vectors.new_zeros(1, vectors.shape[1])])
        return vectors
