"""`ensuite recommend`, `models` and `doctor` through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ensuite.cli import main
from ensuite.data.dataset import Dataset
from ensuite.training.loop import train


@pytest.fixture(scope="module")
def run(cycle: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Markov chain fitted on the cycle of 20 items: after item row i comes i + 1; ids are ten times the
    rows."""
    return train("markov", cycle, tmp_path_factory.mktemp("runs") / "markov").path


@pytest.fixture
def shell(capsys):
    """Run the command line in this process: (status, standard output, standard error)."""

    def call(*argv: object) -> tuple[int, str, str]:
        status = 0
        try:
            main([str(word) for word in argv])
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_json_alone_on_standard_output(shell, run):
    status, out, err = shell("recommend", run, "--history", 30, 40, "--k", 2, "--json")
    answer = json.loads(out)
    assert (status, err) == (0, "")
    assert answer["items"][0]["item_id"] == 50
    assert answer["items"][0]["title"] == "item 5"
    assert len(answer["items"]) == 2
    assert answer["unknown"] == []


def test_the_command_of_the_readme_in_a_process_of_its_own(ensuite, run):
    done = ensuite("recommend", run, "--history", 30, 40, "--k", 3)
    assert "item 5" in done.stdout
    assert "the history" in done.stdout
    assert done.stderr == ""


def test_unknown_items_are_counted_on_standard_error(shell, run):
    status, out, err = shell(
        "recommend", run, "--history", 30, 31, 32, 40, "--candidates", 50, 60, 61, "--k", 2, "--json"
    )
    assert status == 0
    assert json.loads(out)["unknown"] == ["31", "32"]
    assert "warning: 2 of the 4 items of the history unknown to the model, left out: 31, 32" in err
    assert "warning: 1 of the candidates unknown" in err


def test_a_user_of_the_data_and_the_time_asked_at(shell, run, cycle):
    last = int(cycle.item_idx[cycle.offsets[4] - 1])
    status, out, _ = shell("recommend", run, "--user", "u3", "--json")
    assert status == 0
    assert json.loads(out)["items"][0]["item_id"] == (last % 20 + 1) * 10
    _, out, _ = shell("recommend", run, "--user", "u3", "--at", 1_000_061, "--json", "--data", cycle.path)
    second = int(cycle.item_idx[cycle.offsets[3] + 1])
    assert json.loads(out)["items"][0]["item_id"] == (second % 20 + 1) * 10


def test_exclude_none_or_some(shell, run):
    _, out, _ = shell("recommend", run, "--history", 50, 40, "--exclude", "none", "--k", 1, "--json")
    assert json.loads(out)["items"][0]["item_id"] == 50
    _, out, _ = shell("recommend", run, "--history", 30, 40, "--exclude", 50, 60, "--k", 18, "--json")
    ids = {item["item_id"] for item in json.loads(out)["items"]}
    assert ids == set(range(10, 201, 10)) - {50, 60}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--history", "7", "8"],
            "none of its 2 items is known to the model ('7', '8'); known ids look like 10, 20, 30",
        ),
        (["--history", "10", "--k", "20"], "k = 20: only 19 can be had"),
        (["--history", "10", "--k", "0"], "k = 0"),
        (["--user", "u999"], "no user 'u999'; user ids look like 'u0'"),
        ([], "give either --history ID ... or --user ID"),
        (["--history", "10", "--user", "u1"], "give either"),
        (["--history", "10", "20", "--times", "5"], "1 --times for 2 items"),
        (["--history", "10", "--times", "5", "--at", "4"], "1 seconds before the last event"),
        (["--history", "10", "--times", "yesterday"], "time 'yesterday': give ISO text"),
        (["--history", "10", "--candidates", "1"], "none of the 1 candidates is known"),
    ],
)
def test_what_cannot_be_answered_is_one_line_and_status_2(shell, run, argv, said):
    status, out, err = shell("recommend", run, *argv, "--json")
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_folder_that_is_no_run(shell, tmp_path, cycle):
    assert shell("recommend", tmp_path / "none", "--history", 1)[0] == 2
    status, _, err = shell("recommend", cycle.path, "--history", 1)
    assert status == 2
    assert str(cycle.path) in err


def test_models_lists_all_and_explains_one(shell):
    status, out, _ = shell("models", "--json")
    names = [system["name"] for system in json.loads(out)]
    assert status == 0
    assert {"popularity", "recency", "markov", "item-knn", "sasrec", "bert4rec", "hstu"} <= set(names)
    settings = json.loads(shell("models", "markov", "--json")[1])["settings"]
    assert [s["default"] for s in settings if s["name"] == "smoothing"] == [1.0]
    assert all(s["help"] for s in settings)
    assert "--model.smoothing" in shell("models", "markov")[1]
    assert all(word in shell("models")[1] for word in ("baseline", "attention", "Kang & McAuley"))
    assert "counted" in shell("models", "markov")[1]
    status, _, err = shell("models", "sasrek")
    assert status == 2
    assert "did you mean 'sasrec'?" in err


def test_doctor_finds_what_is_whole_and_what_is_not(shell, run, cycle, tmp_path):
    status, out, _ = shell("doctor", run, cycle.path)
    assert status == 0, out
    assert all(line[:2] in ("ok", "--") for line in out.splitlines())
    assert "no leak found" in out
    assert "loads and can serve" in out
    shutil.copytree(cycle.path, tmp_path / "data")
    items = tmp_path / "data" / "item_idx.npy"
    content = bytearray(items.read_bytes())
    content[-1] ^= 1
    items.write_bytes(content)
    shutil.copytree(run, tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    status, out, err = shell("doctor", tmp_path / "data", tmp_path / "run", tmp_path / "nothing", tmp_path)
    wrong = [line for line in out.splitlines() if line.startswith("!!")]
    assert status == 2
    assert [str(items) in wrong[0], str(weights) in wrong[1], len(wrong)] == [True, True, 4]
    assert "4 problems found" in err
