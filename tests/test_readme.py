"""The README's and the quick start's lines work as they stand, on a small log."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """80 users who walk round a cycle of 20 items, an event an hour, each user starting at another hour."""
    rng, lines = np.random.default_rng(0), ["uid,sku,ts"]
    for user in range(80):
        start, at = int(rng.integers(20)), int(rng.integers(200))
        lines += [f"u{user},sku-{(start + i) % 20},{1_700_000_000 + 3600 * (at + i)}" for i in range(12)]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/quick-start.md"])
def test_python(
    page: str, log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    assert len(code) == 1
    monkeypatch.chdir(log)
    exec(compile(code[0], page, "exec"), {})
    text = capsys.readouterr().out
    assert "sasrec" in text
    assert "popularity" in text or "pop" in text
    assert "sku-" in text


def test_own_data_in_five_lines(log: Path, ensuite: Cli) -> None:
    text = (ROOT / "README.md").read_text().split("## Your own data in five lines")[1]
    lines = re.findall(r"^\$ ensuite (.*)$", text.split("```")[1], re.M)
    assert len(lines) == 5
    for line in lines:
        words = [str(p) for w in shlex.split(line) for p in (sorted(log.glob(w)) if "*" in w else [w])]
        last = ensuite(*words).stdout
    assert "sku-" in last
