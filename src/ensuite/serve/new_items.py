"""Items that came after the training: kept in the event store, given to each model that serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ensuite.errors import EnsuiteError
from ensuite.serve.recommender import Recommender
from ensuite.serve.requests import BadRequest, ItemId

if TYPE_CHECKING:
    from ensuite.serve.store import Item


@dataclass(frozen=True)
class NewItems:
    """What became of the items of the store when a model took them."""

    added: int
    """Unknown to the model: at the mean of the items they are like."""
    known: int
    """The model has them itself; of the store only their titles are used."""
    dropped: tuple[str, ...]
    """None of the items they are like is known to this model, or it takes none: not recommended."""


def take(base: Recommender, items: Sequence[Item]) -> tuple[Recommender, NewItems]:
    """Return ``base`` with the items of the store, as far as its model can take them."""
    known = [item for item in items if base.knows(item.item_id)]
    new = [item for item in items if not base.knows(item.item_id)]
    near = [(item, [name for name in item.like if base.knows(name)]) for item in new]
    able = [(item, like) for item, like in near if like]
    recommender, added = base, 0
    if titles := {item.item_id: item.title for item in known if item.title}:
        recommender = recommender.with_titles(titles)
    try:
        if able:
            recommender = recommender.with_items(
                [own_type(item.item_id, base) for item, _ in able],
                [like for _, like in able],
                [item.title for item, _ in able],
            )
            added = len(able)
    except EnsuiteError:
        able = []  # a model that takes none; `check` said so to whoever put items while it served
    taken = {item.item_id for item, _ in able}
    dropped = tuple(item.item_id for item in new if item.item_id not in taken)
    return recommender, NewItems(added, len(known), dropped)


def check(base: Recommender, items: Sequence[Item]) -> None:
    """Refuse items that the model could not use at once.

    Raises
    ------
    BadRequest
        Naming the field, when an item is new and not like any known one.
    EnsuiteError
        When the model takes no items at all.
    """
    for number, item in enumerate(items):
        for place, name in enumerate(item.like):
            if not base.knows(name):
                raise BadRequest(
                    f"item {name!r} is unknown to the model, so nothing can be like it; name items that it "
                    "was trained on",
                    f"items.{number}.like.{place}",
                )
        if not base.knows(item.item_id) and not item.like:
            raise BadRequest(
                f"item {item.item_id!r} is new to the model: say which known items it is `like`, or train "
                "again with it",
                f"items.{number}.like",
            )
    new = [item for item in items if not base.knows(item.item_id)]
    if new:
        base.with_items([item.item_id for item in new], [item.like for item in new], [None] * len(new))


def own_type(item_id: str, base: Recommender) -> ItemId:
    """Return an id in the type of the log's own: the store keeps text."""
    whole = isinstance(base.item_ids[0], int) and item_id.removeprefix("-").isdecimal()
    return int(item_id) if whole and str(int(item_id)) == item_id else item_id
