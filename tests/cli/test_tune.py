"""`ensuite tune` for real: a small search, gone on with, and a training from the recipe that it wrote."""

from __future__ import annotations

import pytest

from ensuite.cli import main

pytest.importorskip("optuna")

SPACE = """\
training.lr: {low: 0.001, high: 0.02, log: true}
model:
  dim: [8, 16]
"""


def test_search_resume_and_train_the_best(cycle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "base.yaml").write_text("model: {blocks: 1, max_length: 6}\n")
    command = [
        "tune",
        "sasrec",
        "--data",
        str(cycle.path),
        "--epochs",
        "2",
        "--space",
        "space.yaml",
        "--recipe",
        "base.yaml",
    ]
    main([*command, "--trials", "2"])
    shown = capsys.readouterr()
    assert "The best of 2 trials" in shown.out
    assert shown.err.count("trial ") == 2
    main([*command, "--trials", "3"])
    shown = capsys.readouterr()
    assert "The best of 3 trials" in shown.out
    assert shown.err.startswith("trial 2: ")
    *_, following = shown.out.splitlines()
    words = following.split()
    assert words[:3] == ["ensuite", "train", "sasrec"]
    main([*words[1:], "--quiet"])
    main(["recommend", "runs/sasrec-tuned", "--history", "30", "40", "--k", "1", "--json"])
    main(["recommend", "runs/tune-sasrec/best", "--history", "30", "40", "--k", "1", "--json"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["sasrek"], "did you mean 'sasrec'?"),
        (["sasrec", "--metric", "ndgc@10"], "unknown metric 'ndgc@10'"),
        (["sasrec", "--trials", "0"], "--trials 0: at least 1"),
        (["recency"], "nothing to search"),
        (["sasrec", "--space", "none.yaml"], "none.yaml: no such file"),
    ],
)
def test_bad_input_is_one_line_and_status_2(cycle, tmp_path, monkeypatch, capsys, argv, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["tune", *argv, "--data", str(cycle.path)])
    assert end.value.code == 2
    assert said in capsys.readouterr().err
