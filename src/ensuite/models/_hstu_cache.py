"""The cached one-step update of HSTU, as a server keeps it for its users."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ensuite.data.batches import History
from ensuite.errors import EnsuiteError
from ensuite.nn.embeddings import similar
from ensuite.nn.hstu_cache import KeysValues, LayerCache

if TYPE_CHECKING:
    from ensuite.models.hstu import HSTU


class HSTUCache:
    """The state of B users to which events are appended one by one; each costs one position, not a history.

    The output at the newest event depends on the time of the request: it is read anew by each `encode`, and
    becomes part of the cache when the next event is appended, whose time is the one it was asked for at. A
    user who has max_length events loses the oldest with the next one, which moves all positions: the window
    is then read again.

    Parameters
    ----------
    model
        In evaluation mode.
    history
        Histories of at least one event.
    """

    def __init__(self, model: HSTU, history: History):
        self.model = model
        self._read(history)

    @torch.no_grad()
    def _read(self, history: History) -> None:
        model = self.model
        self.history = history.last(model.max_length)
        times, queries = model.query_times(self.history)
        x = model.embed(self.history)
        self.layers = LayerCache(model.stack, x, self.history.lengths - 1, times, queries, model.max_length)

    @torch.no_grad()
    def encode(self, request_times: Tensor | None = None) -> Tensor:
        """Return the users' vectors [B, D]; in time_mode request, for requests at ``request_times`` [B]."""
        output, _ = self._newest(request_times)
        return similar(output[:, 0], self.model.config.similarity)

    @torch.no_grad()
    def append(self, items: Tensor, times: Tensor | None = None) -> None:
        """Add one event to each user: ``items`` [B] int64, and with the time bias ``times`` [B] int64."""
        full = self.history.lengths >= self.model.max_length
        settled = None if bool(full.any()) else self._newest(times)[1]
        old = self.history
        end = old.lengths[:, None]  # [B, 1]

        def grown(column: Tensor | None, value: Tensor | None) -> Tensor | None:
            if column is None or value is None:
                return None
            return F.pad(column, (0, 1)).scatter(1, end, value[:, None])

        asked = old.request_times
        if asked is not None and times is not None:
            asked = F.pad(asked.scatter(1, end - 1, times[:, None]), (0, 1)).scatter(1, end, times[:, None])
        new = History(grown(old.items, items), grown(old.times, times), asked)  # type: ignore[arg-type]
        if settled is None:
            self._read(new)
        else:
            self.layers.write(settled, None if old.times is None else old.times.gather(1, end - 1))
            self.history = new

    def _newest(self, request_times: Tensor | None) -> tuple[Tensor, KeysValues]:
        """Read each user's newest event against those before it."""
        model, history = self.model, self.history
        last = history.lengths[:, None] - 1  # [B, 1]
        own = None
        asked = None
        if model.config.time_bias and history.times is not None:
            own = asked = history.times.gather(1, last)  # [B, 1]
            if model.reads_request_time():
                if request_times is None:
                    raise EnsuiteError("hstu: with time_mode request, a request and an event need their time")
                asked = request_times[:, None]
        return self.layers.read(model.embed_at(history.items.gather(1, last), last), last, own, asked)
