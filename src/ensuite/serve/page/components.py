"""The parts that all pages are built of: native HTML elements, the frame around a page, a search box."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nicegui import Client, ui
from nicegui.elements.mixins.sortable_element import SortableElement
from nicegui.elements.mixins.text_element import TextElement

from ensuite.serve.page.theme import HEAD, LOGO, icon

LONGEST = 200
"""Characters that are read of what is searched."""
PLACES = (("/", "Try it"), ("/runs", "Runs"), ("/training", "Training"))


class Tag(TextElement):
    """One native HTML element: ``Tag("button", "quiet", "Clear", aria_label="...")``.

    The text is shown as it is, never read as HTML. Attributes are given with underscores for dashes; None and
    False leave one out.
    """

    def __init__(self, tag: str, classes: str = "", text: str = "", **attributes: Any):
        super().__init__(tag=tag, text=text)
        self.classes(classes)
        self.set(**attributes)

    def set(self, **attributes: Any) -> Tag:
        """Change attributes."""
        for name, value in attributes.items():
            name = name.rstrip("_").replace("_", "-")
            if value is None or value is False:
                self.props.pop(name, None)
            else:
                self.props[name] = value
        self.update()
        return self


class SortableTag(Tag, SortableElement):
    """An element whose children can be dragged into another order: see `make_sortable`."""


def button(text: str, click: Callable[[], Any], classes: str = "", **attributes: Any) -> Tag:
    """Return a button; ``click`` may be a coroutine function."""
    tag = Tag("button", classes, text, type="button", **attributes)
    tag.on("click", lambda _: click(), args=[])
    return tag


def icon_button(name: str, label: str, click: Callable[[], Any], **attributes: Any) -> Tag:
    """Return a square button that shows a sign; ``label`` says what it does, to the mouse and the ear."""
    with button("", click, "icon", aria_label=label, title=label, **attributes) as tag:
        markup(icon(name), "span")
    return tag


def markup(text: str, tag: str = "div", classes: str = "") -> ui.html:
    """Return HTML that this package made itself, and escaped where it holds anything else."""
    return ui.html(text, sanitize=False, tag=tag).classes(classes)


@contextmanager
def frame(place: str, title: str, status: str) -> Iterator[Tag]:
    """Lay the frame of a page, its head and its navigation; what is built inside stands in <main>. Gives the
    element that holds ``status``.

    Parameters
    ----------
    place
        The path of the entry of `PLACES` that is lit.
    title
        Of the browser's window.
    status
        What stands at the right of the head: which model is served.
    """
    ui.add_head_html(HEAD)
    ui.page_title(f"{title} · ensuite")
    Tag("a", "skip", "Skip to the content", href="#main")
    with Tag("header", "top"), Tag("div", "inner"):
        with Tag("a", "brand", href="/", aria_label="ensuite, first page"):
            markup(LOGO, "span")
            Tag("span", "", "ensuite")
        with Tag("nav", "", aria_label="Pages"):
            for path, name in PLACES:
                Tag("a", "", name, href=path, aria_current="page" if path == place else None)
        served = Tag("span", "served", status, title="The model that is served")
        with Tag("button", "icon theme", type="button", aria_label="Colours: as the system") as toggle:
            for name in ("system", "sun", "moon"):
                markup(icon(name), "span", name)
        toggle.on("click", js_handler="() => ensuite.nextTheme()")
    ui.run_javascript("ensuite.ready()")
    with Tag("main", "", id="main", tabindex="-1"):
        yield served
    Tag("div", "toasts", id="toasts", role="status", aria_live="polite")


def toast(client: Client, text: str) -> None:
    """Say something in passing, at the lower edge."""
    client.run_javascript(f"ensuite.toast({json.dumps(text)})")


def refocus(client: Client) -> None:
    """Give the focus back to what had it before it was built anew."""
    client.run_javascript("ensuite.refocus()")


@dataclass(frozen=True)
class Option:
    """A line of a search box's list."""

    text: str
    hint: str
    value: Any


class SearchBox:
    """A field with a list under it: type, go with the arrow keys, take with Enter or a click, leave with
    Escape.

    Parameters
    ----------
    name
        Of the field in HTML, unique in the page.
    label, placeholder
        What it is, and what it says while it is empty.
    find
        Returns the options for a text; also for none, when something is to be shown at once.
    pick
        Is called with the value of the option that was taken.
    """

    def __init__(
        self,
        name: str,
        label: str,
        placeholder: str,
        find: Callable[[str], Awaitable[Sequence[Option]]],
        pick: Callable[[Any], Any],
    ):
        self.name, self.find, self.pick = name, find, pick
        self.options: Sequence[Option] = ()
        self.at = -1
        self._asked = 0
        self._text = ""
        with Tag("div", "search"):
            Tag("label", "unseen", label, for_=name)
            markup(icon("search"), "span", "lens")
            self.field = Tag(
                "input",
                "",
                id=name,
                type="text",
                placeholder=placeholder,
                autocomplete="off",
                spellcheck="false",
                role="combobox",
                aria_expanded="false",
                aria_autocomplete="list",
                aria_controls=f"{name}-list",
            )
            self.list = Tag("ul", "found", id=f"{name}-list", role="listbox", aria_label=label, hidden=True)
        self.field.on("input", self._typed, js_handler="(e) => emit(e.target.value)")
        self.field.on("focus", self._typed, js_handler="(e) => emit(e.target.value)")
        self.field.on("blur", lambda _: self._close(), args=[])
        self.field.on(
            "keydown",
            self._key,
            js_handler="(e) => ensuite.searchKey(e, emit)",
        )

    async def _typed(self, event: Any) -> None:
        self._asked += 1
        mine, text = self._asked, str(event.args)[:LONGEST]
        options = await self.find(text)
        if mine != self._asked:
            return  # more was typed meanwhile
        self._text, self.options, self.at = text, options, 0 if options and text.strip() else -1
        self.list.clear()
        with self.list:
            for number, option in enumerate(options):
                row = Tag("li", "", id=f"{self.name}-{number}", role="option")
                with row:
                    Tag("span", "what", option.text)
                    Tag("span", "hint", option.hint)
                # Not "click": that comes after the field has lost the focus, which closes the list.
                row.on(
                    "mousedown",
                    lambda _, option=option: self._take(option),
                    js_handler=f"(e) => {{ e.preventDefault(); ensuite.empty('{self.name}'); emit() }}",
                )
            if not options and text.strip():
                Tag("li", "none", f"Nothing is called “{text.strip()}”")
        self._show(bool(options) or bool(text.strip()))

    async def _key(self, event: Any) -> None:
        key, text = str(event.args[0]), str(event.args[1])[:LONGEST]
        if key == "Escape":
            self._close()
        elif key == "Enter":
            await self._enter(text)
        elif self.options:
            if key == "ArrowDown":
                self.at = (self.at + 1) % len(self.options)
            else:
                self.at = (max(self.at, 0) - 1) % len(self.options)
            self._show(True)

    async def _enter(self, text: str) -> None:
        """Take the option that is lit, or the first for ``text``, which may not have been looked for yet."""
        if text == self._text and 0 <= self.at < len(self.options):
            await self._take(self.options[self.at])
            return
        options = await self.find(text) if text.strip() else ()
        if options:
            await self._take(options[0])
        else:
            self.field.client.run_javascript(f"ensuite.refill({json.dumps([self.name, text])})")

    async def _take(self, option: Option) -> None:
        self._close()
        result = self.pick(option.value)
        if isinstance(result, Awaitable):
            await result

    def _close(self) -> None:
        self._asked += 1
        self.options, self.at = (), -1
        self._show(False)

    def _show(self, shown: bool) -> None:
        self.list.set(hidden=not shown)
        active = f"{self.name}-{self.at}" if shown and self.at >= 0 else None
        self.field.set(aria_expanded=str(shown).lower(), aria_activedescendant=active)
        for number, row in enumerate(self.list.default_slot.children):
            if isinstance(row, Tag) and self.options:
                row.set(aria_selected=str(number == self.at).lower())
        if active:
            self.field.client.run_javascript(
                f"document.getElementById('{active}')?.scrollIntoView({{block: 'nearest'}})"
            )
