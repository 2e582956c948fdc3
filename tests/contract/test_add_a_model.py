"""docs/add-a-model.md, done for real: its files are installed as a package, found, trained, served and
checked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import ensuite as package
from ensuite.data.dataset import Dataset

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "add-a-model.md"
NAME = "decayed-mean"


def files_of_the_page() -> dict[str, str]:
    """Return what the page puts under each file name: the first code block after "`NAME`" and some words."""
    found = re.findall(r"^`([\w.]+)`[^`]*?:\n+```\w+\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return dict(found)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the page's package into a folder of its own."""
    project, site = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site")
    files = files_of_the_page()
    assert set(files) == {"decayed_mean.py", "pyproject.toml"}
    for name, text in files.items():
        (project / name).write_text(text)
    if not find_spec("pip") or not find_spec("setuptools"):
        pytest.skip("pip and setuptools are needed to install a package")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--quiet",
    ]
    done = subprocess.run(
        [*command, "--target", str(site), str(project)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture
def python(site: Path, tmp_path: Path):
    """Run a Python module where the new package is installed: ``python("ensuite", "models")``."""

    def run(*argv: object, cwd: Path = tmp_path) -> str:
        source = str(Path(package.__file__).parents[1])
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(site), source]),
            "COLUMNS": "150",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [sys.executable, "-m", *map(str, argv)],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_it_stands_among_the_systems(python):
    listed = python("ensuite", "models")
    assert NAME in listed
    assert "sasrec" in listed
    assert "package decayed_mean" in listed
    assert "Weight of an event relative to the one after it." in python("ensuite", "models", NAME)


def test_it_trains_and_recommends_through_the_command_line(python, cycle: Dataset, tmp_path):
    flags = [
        "--training.epochs",
        12,
        "--training.lr",
        0.02,
        "--training.batch-size",
        16,
        "--model.dim",
        32,
        "--quiet",
    ]
    python("ensuite", "train", NAME, "--data", cycle.path, "--out", "runs/mean", *flags, "--model.decay", 0.3)
    answer = json.loads(
        python("ensuite", "recommend", "runs/mean", "--history", 30, 40, 50, "--k", 3, "--json")
    )
    assert 60 in [item["item_id"] for item in answer["items"]]  # in this data item n + 1 follows item n
    card = json.loads((tmp_path / "runs/mean/card.json").read_text())
    assert card["model"] == NAME
    assert card["training"]["best_ndcg@10"] > 0.4  # by chance: 0.23


def test_it_passes_the_contract(python):
    said = python(
        "pytest", "tests/contract/test_contract.py", "-k", NAME, "-p", "no:cacheprovider", cwd=REPOSITORY
    )
    assert re.search(r"\d\d passed", said)
    assert "failed" not in said


def test_the_page_names_commands_that_exist():
    from ensuite.cli import COMMANDS

    named = re.findall(r"^ensuite (\w+)", PAGE.read_text(), re.MULTILINE)
    assert named
    assert set(named) <= set(COMMANDS)
