"""The contracts that every system keeps; the trainer, the evaluator and the recommender know nothing else of
it.

A model is built from typed numbers and parts: ``Model(config, n_items, objective)``. It never sees a dataset,
a path, the command line or a device. Item rows run from 1 to V; row 0 is padding and is never recommended.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ensuite.data.batches import Batch, History
from ensuite.data.dataset import Events
from ensuite.objectives import Objective

if TYPE_CHECKING:
    from ensuite.models.materials import Materials
    from ensuite.training.config import RunConfig

BlockScorer = Callable[[int, int], Tensor]
"""``scores(first, last)`` gives the scores of item rows first..last-1 for every history: [B, last -
first]."""


class Model(nn.Module):
    """What all systems share: they score items for histories, block by block.

    Class attributes
    ----------------
    Config
        The frozen configuration dataclass (made with `ensuite.config.config`).
    samples
        The kinds of samples that `loss` understands, the default first; empty for models that are fitted, not
        trained.
    defaults
        A recipe (sections model, objective, samples, training) laid under the user's.
    summary, paper, family, state
        For ``ensuite models``: what it is in a line, where it is from, which kind of system it is (baseline,
        attention, state space, wrapper, sessions, ...), and how far it is tried ("measured": in results/).
    reads
        What it must know of the items beside their numbers: names of the fields of `Materials`. With
        "preferences" the training reads a file of them; whether they are used, the configuration says in a
        property `reads_preferences`.
    training_only
        Names of buffers that only the training reads: checkpoints hold them, finished weights do not.
    causal
        Whether the output at a position depends on that position and those before it alone (the contract
        suite checks).
    """

    Config: ClassVar[type]
    defaults: ClassVar[Mapping[str, Any]] = {}
    samples: ClassVar[tuple[str, ...]] = ()
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    family: ClassVar[str] = ""
    state: ClassVar[str] = ""
    reads: ClassVar[tuple[str, ...]] = ()
    training_only: ClassVar[tuple[str, ...]] = ()
    causal: ClassVar[bool] = True

    def __init__(self, config: Any, n_items: int):
        super().__init__()
        self.config = config
        self.n_items = n_items

    @classmethod
    def config_for(cls, values: Mapping[str, Any]) -> type:
        """Return the configuration class for ``values``, the plain keys given for the section `model`.

        A wrapper's class holds that of the system it wraps, which only ``values`` name.
        """
        return cls.Config

    @classmethod
    def defaults_for(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the recipe that is laid under the user's; ``values`` as for `config_for`."""
        return cls.defaults

    @classmethod
    def first_stage(cls, config: RunConfig) -> RunConfig | None:
        """Return the run that is trained before the one of ``config``, which starts from its best weights;
        None: there is none.

        It is of the same system, or of one for which `part_from` gives a part.
        """
        return None

    @classmethod
    def last_stage(cls, config: RunConfig) -> RunConfig:
        """Return the settings by which the run of ``config`` itself is trained, where they are not those of
        its sections `samples` and `training`."""
        return config

    @classmethod
    def settings_from(cls, model: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the settings that go with the weights of another system, whose settings (and `name`)
        ``model`` holds; None: this one cannot start from them."""
        return None

    def part_from(self, name: str) -> Model | None:
        """Return the part that takes the weights of a run of system ``name``, another one; None: no part
        does."""
        return None

    @classmethod
    def sized_for(cls, config: Any, materials: Materials) -> Any:
        """Return ``config`` with the sizes that only the ``materials`` know; the run's configuration is then
        complete without them."""
        return config

    def take(self, materials: Materials) -> None:
        """Keep what is needed of the materials that `reads` names, in buffers: a run is loaded without
        them."""

    @property
    def max_length(self) -> int:
        """How many of the most recent events the model reads."""
        return self.config.max_length

    def needs_times(self) -> bool:
        """Whether `History.times` must be there."""
        return False

    def reads_preferences(self) -> bool:
        """Whether `History.preferences` moves the scores."""
        return False

    def encode_preferences(self, texts: Sequence[str]) -> Tensor:
        """Return each text as `History.preferences` holds it: [N, W], no row of it all 0."""
        raise NotImplementedError

    def reads_request_time(self) -> bool:
        """Whether `History.request_times` moves the scores: said in every results table."""
        return False

    def fit(self, events: Events) -> None:
        """Count what can be counted, once, before the first epoch (transitions, popularity, ...).

        ``events`` is the training view of a dataset, and nothing later than it. What serving needs is kept in
        buffers, whose sizes may change here; what only the loss reads, in buffers that are not persistent.
        """

    def start_epoch(self, epoch: int, batches: Iterable[Batch]) -> None:
        """Do what is done between epochs: cluster, refresh memories, move a schedule on.

        ``epoch`` counts from 0; ``batches`` reads every training sample once, in a fixed order, at each
        iteration. Called when an epoch begins, not when one is resumed in its middle: what is changed here
        is kept in buffers. The model is in training mode.
        """

    @abstractmethod
    def catalogue(self) -> Any:
        """Return what `scorer` needs of the items; computed once for many batches of histories."""

    @abstractmethod
    def scorer(self, history: History, catalogue: Any) -> BlockScorer:
        """Read the histories once; return the function that scores blocks of items for them."""

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Give each buffer the size it was saved with: how much there was to count is not known before
        `fit`."""
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if buffer is not None and saved is not None and saved.shape != buffer.shape:
                self._buffers[name] = torch.empty_like(saved, device=buffer.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Retriever(Model):
    """A model whose score is a dot product of a user's and an item's vector.

    A subclass gives `forward` (the encoder's output at each position), `item_vectors`, and where its training
    differs from "predict `targets` from the output at their positions", `loss`.
    """

    samples: ClassVar[tuple[str, ...]] = ("every-position", "last-position", "sliding", "prefixes")

    def __init__(self, config: Any, n_items: int, objective: Objective | None = None):
        super().__init__(config, n_items)
        self.objective = objective

    @abstractmethod
    def forward(self, history: History) -> Tensor:
        """Encode every position: [B, L, D]; what stands at padded positions is not defined."""

    def encode(self, history: History) -> Tensor:
        """Return the user's vector after the last event: [B, D]."""
        output = self(history)  # [B, L, D]
        return output[torch.arange(output.shape[0], device=output.device), history.lengths - 1]

    @abstractmethod
    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        """Return the vectors of all rows 0..V, [V + 1, D], or of the rows ``items``, [*items.shape, D]."""

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean of the objective over all positions with a target: a scalar."""
        if self.objective is None:
            raise RuntimeError("this model was built to score only: no objective was given")
        row, position = batch.targets.nonzero(as_tuple=True)  # [T], [T]
        targets = batch.targets[row, position]
        if len(row) == len(batch.targets) and bool((position == batch.history.lengths - 1).all()):
            output = self.encode(batch.history)  # only the last position is asked for: [B, D]
        else:
            output = self(batch.history)[row, position]  # [T, D]
        return self.objective(output, targets, self.item_vectors, row)

    def catalogue(self) -> Tensor:
        return self.item_vectors()

    def scorer(self, history: History, catalogue: Tensor) -> BlockScorer:
        user = self.encode(history)  # [B, D]
        return lambda first, last: user @ catalogue[first:last].T


class FittedModel(Model):
    """A baseline that is counted, not trained: `fit` reads the training events once and keeps what it needs
    in buffers, so that saving and loading are those of any other model."""

    @abstractmethod
    def fit(self, events: Events) -> None: ...


@runtime_checkable
class Stepwise(Protocol):
    """A retriever that reads input vectors one after another, after a history (what ReaRec needs of it)."""

    def begin(self, history: History) -> tuple[Tensor, Any]:
        """Read the histories: the users' vectors [B, D], equal to those of `encode`, and a state to go on
        from."""
        ...

    def step(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read ``token`` [B, D] as the next position's input: the output there, [B, D], and the new state.

        The old state stays as it was, and nothing read before changes. The token is taken as the first
        layer's input: positions and the like are the caller's.
        """
        ...


@runtime_checkable
class FromVectors(Protocol):
    """A retriever whose item vectors can be replaced before it reads them (what Ada-Retrieval needs)."""

    def input_vectors(self, items: Tensor) -> Tensor:
        """Look up ``items`` [...] as they enter the encoder, before positions are added: [..., D]."""
        ...

    def encode_vectors(self, vectors: Tensor, history: History) -> Tensor:
        """Return the users' vectors [B, D], with ``vectors`` [B, L, D] in place of
        ``input_vectors(history.items)``."""
        ...


@runtime_checkable
class TakesItems(Protocol):
    """A retriever whose catalogue grows without training (what new items in a running service need)."""

    def with_items(self, like: Sequence[Sequence[int]]) -> Model:
        """Return this model with items V + 1, V + 2, ... more, each with the mean vector of the rows that its
        part of ``like`` names, in scoring and in histories alike.

        This model stays as it is; the new one shares all other weights with it.

        Raises
        ------
        EnsuiteError
            When the model's settings leave no place for them.
        """
        ...


@runtime_checkable
class TakesCodes(Protocol):
    """A system whose catalogue grows by what items are."""

    def with_codes(self, codes: Tensor, vectors: Tensor | None = None) -> Model:
        """Return this model with items V + 1, V + 2, ... more, by their codes [N, L] and, for a system that
        reads them, their content ``vectors`` [N, D]: they are found, and read in histories, like any other.

        Nothing that was learned changes. This model stays as it is; the new one shares all weights with it.

        Raises
        ------
        EnsuiteError
            When a code is outside its level: the model has no weights for it.
        """
        ...
