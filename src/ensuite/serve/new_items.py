"""Items that came after the training: kept in the event store, given to each model that serves."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from ensuite.content.template import Template, as_text
from ensuite.errors import EnsuiteError
from ensuite.models.base import TakesCodes, TakesItems
from ensuite.serve.recommender import Recommender
from ensuite.serve.requests import BadRequest, ItemId

if TYPE_CHECKING:
    from ensuite.serve.store import Item


@dataclass(frozen=True)
class NewItems:
    """What became of the items of the store when a model took them."""

    added: int
    """Unknown to the model: known now by what they are, or at the mean of the items they are like."""
    known: int
    """The model has them itself; of the store only their titles are used."""
    dropped: tuple[str, ...]
    """Nothing describes them, and none of the items they are like is known to this model, or it takes none:
    not recommended."""


def take(base: Recommender, items: Sequence[Item]) -> tuple[Recommender, NewItems]:
    """Return ``base`` with the items of the store, as far as its model can take them."""
    known = [item for item in items if base.knows(item.item_id)]
    new = [item for item in items if not base.knows(item.item_id)]
    recommender = base
    if titles := {item.item_id: item.title for item in known if item.title}:
        recommender = recommender.with_titles(titles)
    taken: set[str] = set()
    with contextlib.suppress(EnsuiteError):  # a model that takes none; `check` said so when they were put
        frame = describe(base, new)
        if len(frame):
            recommender = recommender.with_described(frame, "the new items")
            taken |= set(frame["item_id"].cast(pl.String))
        near = [(item, [name for name in item.like if base.knows(name)]) for item in new]
        if able := [(item, like) for item, like in near if like and item.item_id not in taken]:
            recommender = recommender.with_items(
                [own_type(item.item_id, base) for item, _ in able],
                [like for _, like in able],
                [item.title for item, _ in able],
            )
            taken |= {item.item_id for item, _ in able}
    dropped = tuple(item.item_id for item in new if item.item_id not in taken)
    return recommender, NewItems(len(taken), len(known), dropped)


def check(base: Recommender, items: Sequence[Item]) -> None:
    """Refuse items that the model could not use at once.

    Raises
    ------
    BadRequest
        Naming the field, when an item is new, nothing describes it, and it is like no known one, or when
        only its description could make it known, and its id is of another kind than the log's.
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
    new = [item for item in items if not base.knows(item.item_id)]
    if not new:
        return
    likes = isinstance(base.model, TakesItems)
    if isinstance(base.model, TakesCodes) and not likes and base.describer.source.images is not None:
        raise EnsuiteError(
            "this model knows items by their images, files that a request cannot name; train it again with "
            "the new items"
        )
    frame = describe(base, new)
    described = set(frame["item_id"].cast(pl.String))
    for number, item in enumerate(items):
        if base.knows(item.item_id) or item.item_id in described or (likes and item.like):
            continue
        if isinstance(base.model, TakesCodes):
            if not fits(item.item_id, base):
                raise BadRequest(
                    f"item {item.item_id!r} is new to the model, whose item ids are whole numbers: give it "
                    "one",
                    f"items.{number}.item_id",
                )
            raise BadRequest(
                f"item {item.item_id!r} is new to the model, which knows items by what they are: give its "
                f"title or attributes ({', '.join(_columns(base))})",
                f"items.{number}.title",
            )
        if likes:
            raise BadRequest(
                f"item {item.item_id!r} is new to the model: say which known items it is `like`, or train "
                "again with it",
                f"items.{number}.like",
            )
    rest = [item for item in new if item.item_id not in described]
    grown = base.with_described(frame, "the new items") if len(frame) else base
    if rest:
        grown.with_items([item.item_id for item in rest], [item.like for item in rest], [None] * len(rest))


def describe(base: Recommender, items: Sequence[Item]) -> pl.DataFrame:
    """Return the table of those items that the model can be told of by a text: item_id and the columns of the
    template that its codes were made with; ids of another kind than the log's have no place in it. Images are
    files, which a request must not name."""
    columns = _columns(base)
    described = [item for item in items if any(_attribute(item, name) for name in columns)]
    able = [item for item in described if fits(item.item_id, base)]
    ids = pl.Series(
        "item_id", [own_type(item.item_id, base) for item in able], pl.Series(base.item_ids).dtype
    )
    shown = dict.fromkeys(["title", *columns])
    texts = [pl.Series(name, [_attribute(item, name) for item in able], pl.String) for name in shown]
    return pl.DataFrame([ids, *texts])


def _columns(base: Recommender) -> list[str]:
    """Return the columns that describe an item to the model; none: it cannot be told of any by a text."""
    if not isinstance(base.model, TakesCodes):
        return []
    try:
        template, images = base.describer.source.text, base.describer.source.images
    except EnsuiteError:
        return []
    return [] if template is None or images is not None else Template.parse(template).columns


def _attribute(item: Item, name: str) -> str | None:
    value = item.attributes.get(name, item.title if name in ("title", "name") else None)
    return as_text(value) or None


def fits(item_id: str, base: Recommender) -> bool:
    """Whether an id is of the kind of the log's own."""
    return type(own_type(item_id, base)) is type(base.item_ids[0])


def own_type(item_id: str, base: Recommender) -> ItemId:
    """Return an id in the type of the log's own: the store keeps text."""
    whole = isinstance(base.item_ids[0], int) and item_id.removeprefix("-").isdecimal()
    return int(item_id) if whole and str(int(item_id)) == item_id else item_id
