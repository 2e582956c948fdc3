"""The pages of a service that asks for keys: nothing is shown without one, and each opens what it may."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

import pytest

from ensuite.serve.store import EventStore

expect = pytest.importorskip("playwright.sync_api", reason="pip install 'ensuite[dev]'").expect


def enter(page: Any, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Look").click()


def test_keys_open_the_pages(films, serving, tmp_path, look):
    runs, _ = films
    store = EventStore.open(tmp_path / "events.sqlite")
    reads, writes = (store.add_key(name, frozenset(name.split())) for name in ("read", "read write"))
    with serving(runs, tmp_path, "--require-keys") as url:
        for path in ("/", "/runs", "/run?name=sasrec", "/training"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(url + path)
            assert refused.value.code == 401
            assert b"sasrec" not in refused.value.read().replace(b"/run?name=sasrec", b"")

        page = look(f"{url}/run?name=sasrec")
        enter(page, "no key at all")
        expect(page.get_by_role("alert")).to_contain_text("unknown, or was revoked")
        enter(page, reads)
        expect(page.locator("h1")).to_have_text("sasrec")  # where one wanted to go
        (cookie,) = page.context.cookies()
        assert cookie["httpOnly"]
        assert cookie["sameSite"] == "Strict"
        assert reads not in cookie["value"]
        page.goto(url)
        page.locator("#users").fill("ann")
        page.get_by_role("option", name="ann new user").click()
        page.locator("#items").fill("heat")
        page.get_by_role("option", name="Heat").click()
        expect(page.locator(".event")).to_have_count(1)
        expect(page.locator("#record")).to_have_count(0)  # this key may not write

        other = look(url)  # another browser has no key yet
        enter(other, writes)
        other.locator("#users").fill("ann")
        other.get_by_role("option", name="ann new user").click()
        other.locator("#items").fill("heat")
        other.get_by_role("option", name="Heat").click()
        other.locator("#record").click()
        expect(other.locator("#record")).to_have_count(0)
        assert len(store.history("ann", 10)) == 1
        others = []
        for path in ("/runs", "/run?name=sasrec", "/training"):
            others.append(other.context.new_page())
            others[-1].goto(url + path)
            expect(others[-1].locator("h1")).to_be_visible()
        store.revoke_key("read write")
        expect(other.get_by_label("API key")).to_be_visible(timeout=12_000)  # within seconds
        for one in others:
            expect(one.get_by_label("API key")).to_be_visible(timeout=3_000)
        expect(page.locator(".past")).to_be_visible()
    store.close()
