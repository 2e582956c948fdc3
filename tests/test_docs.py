"""Every command that the pages show is understood: its options exist, its values are of their kind."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, NoReturn

import pytest
import tyro

from ensuite.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


class Understood(Exception):
    pass


def commands(page: Path) -> list[list[str]]:
    """Return the words of each `$ ensuite ...` line, without comments and other programs' parts."""
    lines = re.findall(r"^\$ ensuite (.*)$", page.read_text(), re.M)
    words = [shlex.split(line.replace("SYSTEM", "sasrec"), comments=True) for line in lines]
    return [w[: w.index("&&")] if "&&" in w else w for w in words]


def test_pages_show_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 40


@pytest.mark.parametrize(
    ("page", "words"), [(page.name, words) for page in PAGES for words in commands(page)], ids=str
)
def test_command_is_understood(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parse = tyro.cli

    def parse_only(*args: Any, **kwargs: Any) -> NoReturn:
        parse(*args, **kwargs)
        raise Understood

    monkeypatch.chdir(ROOT)  # recipes are named from here
    monkeypatch.setattr(tyro, "cli", parse_only)
    with pytest.raises(Understood):
        main(words)
