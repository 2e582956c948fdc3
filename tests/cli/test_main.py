"""The entry point: fast, helpful, and without tracebacks for a user's mistake."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from ensuite.cli import COMMANDS

Cli = Callable[..., subprocess.CompletedProcess[str]]


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; sys.stderr.write(' '.join(sys.modules))"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize("code", ["import ensuite", "from ensuite.cli import main; main(['--help'])"])
def test_nothing_heavy_is_imported_for_help(code: str) -> None:
    heavy = {"torch", "numpy", "polars", "accelerate", "tyro", "rich", "pydantic", "yaml"}
    assert not heavy & modules_after(code)


def test_every_public_name_can_be_had() -> None:
    import ensuite

    for name in ensuite.__all__:
        assert getattr(ensuite, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ensuite.nothing  # noqa: B018


def test_help_names_every_command(ensuite: Cli) -> None:
    began = time.perf_counter()
    text = ensuite("--help").stdout
    assert all(command in text for command in COMMANDS)
    assert time.perf_counter() - began < 30


def test_mistakes_are_one_line_and_status_2(ensuite: Cli) -> None:
    for argv, words in [
        (["trian"], "did you mean 'train'?"),
        (["train", "sasrek", "--data", "x", "--out", "y"], "did you mean 'sasrec'?"),
        (["train", "sasrec", "--data", "nowhere", "--out", "y"], "nowhere: no such dataset folder"),
        (
            ["train", "sasrec", "--data", "x", "--out", "y", "--recipe", "none.yaml"],
            "none.yaml: no such file",
        ),
        (
            ["train", "sasrec", "--data", "x", "--out", "y", "--model.dim", "0"],
            "dim, max_length and init_std are positive",
        ),
    ]:
        done = ensuite(*argv, check=False)
        assert done.returncode == 2, done
        assert words in done.stderr
        assert "Traceback" not in done.stderr
