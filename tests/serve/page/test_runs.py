"""The pages about runs in a real Chromium: the shelf, a comparison, a run, trainings under way or killed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time

import pytest

from ensuite.training.heartbeat import Heartbeat

expect = pytest.importorskip("playwright.sync_api", reason="pip install 'ensuite[dev]'").expect


def test_validation_at_once_then_a_comparison_that_is_kept(served, look):
    page = look(f"{served.url}/runs")
    table = page.locator("table.shelf")
    expect(table.locator(".run")).to_have_text(["markov", "sasrec", "popularity"])  # the best first
    expect(table).to_contain_text("NDCG@10")
    page.get_by_role("checkbox", name="Compare markov").uncheck()
    page.get_by_role("button", name="Compare on test").click()
    expect(page.get_by_text(re.compile("leads with NDCG@10"))).to_be_visible(timeout=60_000)
    expect(page.get_by_role("img", name="NDCG against the cut-off")).to_be_visible()
    expect(page.get_by_role("img", name="Popular and rare targets")).to_be_visible()
    page.get_by_role("button", name="Choose other runs").click()
    again = look(f"{served.url}/runs")
    again.get_by_role("checkbox", name="Compare markov").uncheck()
    again.get_by_role("button", name="Compare on test").click()
    expect(again.get_by_text(re.compile("leads with NDCG@10"))).to_be_visible(timeout=2_000)  # from the disk


def test_a_run_and_its_data(served, look):
    page = look(f"{served.url}/runs")
    page.get_by_text("The data", exact=True).click()
    expect(page.locator(".stack")).to_contain_text("120 users, 20 items")
    page.get_by_role("link", name="markov").first.click()
    expect(page.locator("h1")).to_have_text("markov")
    expect(page.locator(".report")).to_contain_text(served.data.fingerprint)
    page.get_by_role("link", name="Try it beside the served one").click()
    expect(page.locator("#beside")).to_have_value("markov")
    page.goto(f"{served.url}/run?name=sasrec")
    expect(page.get_by_role("img", name="Learning curves")).to_be_visible()
    page.goto(f"{served.url}/run?name=../../etc")
    expect(page.get_by_role("alert")).to_contain_text("no run '../../etc'")


def test_cards_that_differ_are_not_put_in_one_table(served, look):
    other = served.runs / "elsewhere"
    shutil.copytree(served.runs / "popularity", other)
    card = json.loads((other / "card.json").read_text())
    try:
        card["protocol"]["exclude"] = "none"
        (other / "card.json").write_text(json.dumps(card))
        page = look(f"{served.url}/runs")
        expect(page.get_by_role("alert")).to_contain_text("protocol.exclude")
        card["data"] |= {"fingerprint": "0" * 16, "name": "other films"}
        (other / "card.json").write_text(json.dumps(card))
        page.reload()
        expect(page.locator("section.dataset")).to_have_count(2)
        expect(page.locator(".lead")).to_contain_text("on 2 datasets")
    finally:
        shutil.rmtree(other)


def test_a_training_that_runs_and_one_that_was_killed(served, look):
    page = look(f"{served.url}/training")
    expect(page.get_by_text("No training runs now.")).to_be_visible()
    out = served.runs / "slow"
    shutil.copytree(served.runs / "sasrec", out)
    beat = Heartbeat(out)
    stand_in = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    beat.about["pid"] = stand_in.pid
    try:
        beat.start_epoch(3, 30, 20, 0)
        expect(page.locator(".training .pill")).to_have_text("running")
        for _ in range(8):
            time.sleep(0.15)
            beat.advance(2.5)
        facts = page.locator(".training .facts")
        expect(facts).to_contain_text(re.compile(r"epoch\s*4 of 30"))
        expect(facts).to_contain_text("2.5000")
        expect(facts).to_contain_text("steps/s")
        expect(page.get_by_role("img", name="Loss")).to_be_visible()
    finally:
        stand_in.kill()
        stand_in.wait()
    expect(page.locator(".training .pill")).to_have_text("interrupted")
    command = f"ensuite train sasrec --data {served.data.path} --out {out} --resume"
    expect(page.locator(".training code.command")).to_have_text(command)
    shutil.rmtree(out)
    expect(page.get_by_text("No training runs now.")).to_be_visible()
