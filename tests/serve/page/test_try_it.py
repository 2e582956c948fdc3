"""The page "Try it" in a real Chromium: a history is built, the list follows it, weights say why."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import Any

import pytest

expect = pytest.importorskip("playwright.sync_api", reason="pip install 'ensuite[dev]'").expect


def add(page: Any, text: str) -> None:
    """Search and take the first that is found."""
    before = page.locator(".event").count()
    page.locator("#items").fill(text)
    expect(page.locator("#items-0")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator(".event")).to_have_count(before + 1)


def titles(page: Any, of: str) -> list[str]:
    return page.locator(f"{of} .name").all_text_contents()


def settled(page: Any) -> None:
    """Wait for the list, and for the weights that come after it."""
    expect(page.locator(".out")).to_have_attribute("aria-busy", "false")


def post(url: str, body: dict[str, Any]) -> None:
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as answer:
        assert answer.status < 300


def send(url: str, **event: Any) -> None:
    """Append an event over HTTP."""
    post(f"{url}/v1/events", {"events": [event]})


def swap(url: str, run: str) -> None:
    """Serve another run."""
    post(f"{url}/v1/model", {"run": run})


def test_an_empty_page_says_what_to_do_and_shows_an_example(served, look):
    page = look(served.url)
    expect(page.locator(".past")).to_contain_text(
        "Search a few titles above, pick a user, or look at an example"
    )
    page.get_by_role("button", name="Show me an example").click()
    expect(page.locator(".event")).to_have_count(5)
    expect(page.locator(".answer")).to_have_count(10)


def test_the_list_follows_the_history(served, look):
    page = look(served.url)
    add(page, "amelie")  # without its accent
    add(page, "MATRIX")
    settled(page)
    assert titles(page, ".event") == ["The Matrix", "Amélie"]  # the newest first
    assert titles(page, ".answer")[0] == "Star Wars: A New Hope"
    page.locator("#take-a-1").click()  # what is recommended is taken
    expect(page.locator(".event")).to_have_count(3)
    settled(page)
    assert titles(page, ".answer")[0] == "The Empire Strikes Back"
    page.get_by_role("button", name="Remove Star Wars: A New Hope").click()
    expect(page.locator(".event")).to_have_count(2)
    settled(page)
    assert titles(page, ".answer")[0] == "Star Wars: A New Hope"
    score = page.locator(".answer .number").first.text_content()
    page.get_by_role("button", name="Move Amélie later").click()
    expect(page.locator(".event .name").first).to_have_text("Amélie")
    settled(page)
    expect(page.locator(".answer .number").first).not_to_have_text(score)
    add(page, "alien")
    settled(page)
    assert titles(page, ".event") == ["Alien", "Amélie", "The Matrix"]
    names = page.locator(".event .name")
    names.nth(0).drag_to(names.nth(2))
    expect(names).to_have_text(["Amélie", "The Matrix", "Alien"])
    settled(page)
    names.nth(1).drag_to(names.nth(0))
    expect(names).to_have_text(["The Matrix", "Amélie", "Alien"])
    settled(page)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".event")).to_have_count(0)


def test_options(served, look):
    page = look(served.url)
    add(page, "Alien")
    expect(page.locator(".answer")).to_have_count(10)
    page.select_option("#depth", "50")
    expect(page.locator(".answer")).to_have_count(19)  # all but the one that was seen
    page.get_by_text("Options").click()
    page.get_by_label("Leave out what is in the history").uncheck()
    expect(page.locator(".answer")).to_have_count(20)
    page.get_by_label("Choose among these ids only").fill("20, 30 999")
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_count(2)
    page.get_by_label("Choose among these ids only").fill("999")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("none of the 1 candidates is known")


def test_weights_of_the_events(served, look):
    page = look(served.url)
    for title in ("Vertigo", "Toy Story", "The Matrix"):
        add(page, title)
    settled(page)
    first = page.locator(".answer").first
    expect(first).to_have_class(re.compile("lit"))  # the first is explained before one asks
    expect(page.locator(".event.for, .event.against")).not_to_have_count(0)
    values = page.locator(".event .value").all_text_contents()
    assert re.fullmatch(r"[+−]\d+\.?\d*", values[0]), values
    page.mouse.move(0, 0)
    page.locator("#take-a-4").hover()
    expect(page.locator(".answer").nth(3)).to_have_class(re.compile("lit"))
    expect(page.locator(".event .value").first).not_to_have_text(values[0])
    page.locator("#why-a-2").click()  # pinned: pointing elsewhere changes nothing
    expect(page.locator("#why-a-2")).to_have_attribute("aria-pressed", "true")
    page.locator("#take-a-6").hover()
    page.wait_for_timeout(200)
    expect(page.locator(".answer").nth(1)).to_have_class(re.compile("lit"))


def test_two_models_side_by_side(served, look):
    page = look(f"{served.url}/?beside=popularity")
    add(page, "The Matrix")
    expect(page.locator(".answers")).to_have_count(2)
    names = page.locator(".list h3").all_text_contents()
    assert names == ["sasrec", "popularity"]
    settled(page)
    left, right = (titles(page, f".list:nth-child({n})") for n in (1, 2))
    for n, title in enumerate(left):
        tag = page.locator(".list:nth-child(1) .tag").nth(n).text_content()
        moved = right.index(title) - n if title in right else None
        assert tag == (
            "only here" if moved is None else "=" if not moved else f"{'↑↓'[moved < 0]}{abs(moved)}"
        )
    page.locator("#take-b-1").hover()  # the same film is lit in both lists
    shared = 2 if right[0] in left else 1
    expect(page.locator(".answer.lit")).to_have_count(shared)
    page.select_option("#beside", "")
    expect(page.locator(".answers")).to_have_count(1)


def test_a_user_and_what_happens_elsewhere(served, look):
    page, other = look(served.url), look(served.url)
    page.locator("#users").fill("ann")
    page.get_by_role("option", name="ann new user").click()
    expect(page.locator(".past")).to_contain_text("User ann has no events yet")
    add(page, "Amélie")
    expect(page.locator(".past")).to_contain_text("1 event, 1 not recorded")
    page.get_by_role("button", name="Record 1 event").click()
    expect(page.locator("#record")).to_have_count(0)
    send(served.url, user_id="ann", item_id=20)  # from elsewhere
    expect(page.locator(".event .name").first).to_have_text("The Matrix")
    expect(page.locator(".answer .name").first).to_have_text("Star Wars: A New Hope")
    expect(page.locator(".toasts")).to_contain_text("New: The Matrix")
    expect(other.locator(".event")).to_have_count(0)  # another reader looks at their own history
    other.locator("#users").fill("an")
    other.get_by_role("option", name="ann 2 events, in the store").click()
    expect(other.locator(".event")).to_have_count(2)


def test_a_user_of_the_dataset(served, look):
    page = look(served.url)
    page.locator("#users").fill("u7")
    page.get_by_role("option", name=re.compile("^u7 .*dataset")).click()
    events = served.data.offsets[8] - served.data.offsets[7]
    expect(page.locator(".event")).to_have_count(int(events))
    expect(page.locator(".event .hint").first).to_contain_text("2023-11-14")
    expect(page.locator("#record")).to_have_count(0)  # what is long over is not recorded


def test_an_unknown_item_and_a_user_whose_items_are_unknown(served, look):
    page = look(served.url)
    send(served.url, user_id="lost", item_id="nothing-we-know")
    page.locator("#users").fill("lost")
    page.get_by_role("option", name="lost 1 event, in the store").click()
    expect(page.locator(".event .hint")).to_contain_text("unknown to the model")
    expect(page.locator(".next")).to_contain_text("not the model's answer: unknown items")


def test_titles_are_text(served, look):
    page = look(served.url)
    add(page, "<script>")
    add(page, "ran & co")
    settled(page)
    assert titles(page, ".event") == [
        "Ran & Co. \"quoted\" 'title'",
        "<script>document.title = 'taken'</script>",
    ]
    assert page.title() == "Try it · ensuite"
    expect(
        page.get_by_role("button", name="Remove <script>document.title = 'taken'</script>")
    ).to_be_visible()


def test_with_the_keyboard_alone(served, look):
    page = look(served.url)
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("#items")).to_be_focused()
    page.keyboard.type("star")
    expect(page.locator("#items-0")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#items-list")).to_be_hidden()
    page.keyboard.type(" ")
    page.keyboard.press("Backspace")
    page.locator("#items").fill("a")
    expect(page.locator("#items-1")).to_be_visible()
    second = page.locator("#items-1 .what").text_content()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#items")).to_have_attribute("aria-activedescendant", "items-1")
    page.keyboard.press("Enter")
    expect(page.locator(".event .name")).to_have_text(second)
    expect(page.locator("#items")).to_be_focused()
    settled(page)
    for _ in range(20):  # past the user field, the history and the options
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "take-a-1":
            break
    expect(page.locator("#take-a-1")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.locator(".event")).to_have_count(2)
    expect(page.locator("#take-a-1")).to_be_focused()  # the list was built anew, the place is kept


@pytest.mark.parametrize("path", ["/?beside=popularity", "/runs", "/run?name=sasrec", "/training"])
def test_a_phone_never_scrolls_sideways(served, look, path):
    page = look(served.url + path, width=360, height=740)
    if path.startswith("/?"):
        for title in ("A title that goes on", "<script>"):
            add(page, title)
        settled(page)
        left = [page.locator(part).bounding_box()["x"] for part in (".past", ".next")]
        assert left[0] == left[1]  # one under the other
    else:
        expect(page.locator("h1")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_dark_and_light(served, look):
    dark, light = look(served.url, dark=True), look(served.url)
    ground = "getComputedStyle(document.body).backgroundColor"
    assert dark.evaluate(ground) == "rgb(16, 19, 26)"
    assert light.evaluate(ground) == "rgb(246, 247, 249)"
    light.get_by_role("button", name="Colours: as the system").click()
    light.get_by_role("button", name="Colours: light").click()
    assert light.evaluate(ground) == "rgb(16, 19, 26)"
    light.reload()
    expect(light.get_by_role("button", name="Colours: dark")).to_be_visible()  # remembered
    assert light.evaluate(ground) == "rgb(16, 19, 26)"


def test_another_model_is_swapped_in(served, look):
    page = look(served.url)
    add(page, "Alien")
    settled(page)
    score = page.locator(".answer .number").first.text_content()
    swap(served.url, "popularity")
    try:
        expect(page.locator(".served")).to_have_text("popularity")
        expect(page.locator(".answer .number").first).not_to_have_text(score)
    finally:
        swap(served.url, "sasrec")
    expect(page.locator(".answer .number").first).to_have_text(score)


def test_hurried_typing(served, look):
    page = look(served.url)
    page.locator("#items").focus()
    for title in ("heat", "ran &", "leon"):
        page.keyboard.type(title)
        page.keyboard.press("Enter")
    expect(page.locator(".event .name")).to_have_text(["Léon", "Ran & Co. \"quoted\" 'title'", "Heat"])
    page.locator("#users").focus()
    page.keyboard.type("u77")
    page.keyboard.press("Enter")
    expect(page.locator(".whose")).to_have_text("user u77")
    expect(page.locator("#users")).to_have_value("")


def test_the_api_is_described_without_the_network(served, look):
    page = look(served.url)
    page.goto(f"{served.url}/docs")
    page.get_by_role("button", name="POST /v1/recommend Recommend").click()
    expect(page.get_by_text("Recommend items for a user, a history, or both")).to_be_visible()
