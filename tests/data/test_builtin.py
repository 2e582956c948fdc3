"""Public datasets, read from archives laid out as their authors publish them (made-up rows)."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import polars as pl
import pytest

from ensuite.data.catalogue import PUBLIC
from ensuite.data.dataset import Dataset
from ensuite.data.prepare import PrepareConfig, prepare
from ensuite.errors import EnsuiteError


def read(name: str, archive: Path | str, tmp_path: Path) -> Dataset:
    return prepare(name, out=tmp_path / "data", config=PrepareConfig(archive=str(archive)))


def make_zip(path: Path, **members: str | bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(f"folder/{name.replace('__', '.')}", text)
    return path


def test_ml_100k(tmp_path: Path) -> None:
    flags = "|".join(["0", "1", "0"] + ["0"] * 16)
    item = "|".join(["10", "Café (1994)", "01-Jan-1994", "", "http://x", flags])
    users = "1|24|M|technician|85711\n2|53|F|other|94043\n"
    events = "1\t10\t3\t881250949\n1\t30\t4\t881250950\n1\t20\t5\t881250951\n"
    path = make_zip(tmp_path / "a.zip", u__data=events, u__item=item.encode("latin-1"), u__user=users)
    dataset = read("ml-100k", path, tmp_path)
    assert dataset.items.row(0, named=True) == {
        "item_id": 10,
        "title": "Café (1994)",
        "year": 1994,
        "genres": ["Action"],
    }
    assert dataset.users["occupation"].to_list() == ["technician"]
    assert dataset.item_idx.tolist() == [1, 3, 2]


def test_ml_csv_archives(tmp_path: Path) -> None:
    ratings = "userId,movieId,rating,timestamp\n1,5,3.5,1112486027\n1,6,4,1112484676\n1,7,4,1112484819\n"
    movies = 'movieId,title,genres\n5,"Father, Again (1995)",Comedy\n6,Heat (1995),Action|Crime\n'
    dataset = read("ml-20m", make_zip(tmp_path / "a.zip", ratings__csv=ratings, movies__csv=movies), tmp_path)
    assert dataset.items["title"].to_list() == ["Father, Again (1995)", "Heat (1995)", None]
    assert dataset.column("rating").tolist() == [4.0, 4.0, 3.5]


def test_amazon_reviews(tmp_path: Path) -> None:
    rows = [
        {"reviewerID": "A1", "asin": f"00{k}", "overall": 5.0, "unixReviewTime": 1_400_000_000 - k}
        for k in range(3)
    ]
    path = tmp_path / "reviews_Beauty_5.json.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    dataset = read("amazon-beauty", path, tmp_path)
    assert dataset.items["item_id"].to_list() == ["000", "001", "002"]
    assert dataset.item_idx.tolist() == [3, 2, 1]


def test_gowalla(tmp_path: Path) -> None:
    path = tmp_path / "loc-gowalla_totalCheckins.txt.gz"
    rows = "0\t2010-10-19T23:55:27Z\t30.2\t-97.7\t22847\n0\t2010-10-18T22:17:43Z\t30.2\t-97.7\t420315\n"
    path.write_bytes(gzip.compress((rows + "0\t2010-10-17T23:42:03Z\t30.2\t-97.7\t316637\n").encode()))
    assert read("gowalla", path, tmp_path).item_idx.tolist() == [2, 3, 1]


def test_tar_archives(tmp_path: Path) -> None:
    texts = {
        "data/log_standard_a.csv": "user_id,video_id,time_ms\n1,4,1650812741436\n1,5,1650812741437\n",
        "data/log_standard_b.csv": "user_id,video_id,time_ms\n1,6,1650812741438\n",
        "data/video_features_basic_pure.csv": "video_id,author_id\n4,9\n5,9\n6,8\n",
        "data/user_features_pure.csv": "user_id,follow_user_num\n1,3\n",
    }
    path = tmp_path / "KuaiRand-Pure.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in texts.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    dataset = read("kuairand-pure", path, tmp_path)
    assert dataset.card["time_unit"] == "ms"
    assert dataset.items["author_id"].to_list() == [9, 9, 8]


def test_folder_of_parquet_files(tmp_path: Path) -> None:
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    events = {"user_id": [1, 1, 1], "item_id": [3, 1, 2], "timestamp": [978300760] * 3, "rating": [5, 3, 4]}
    pl.DataFrame(events).write_parquet(folder / "interactions.parquet")
    items = pl.DataFrame(
        {"item_id": [1, 2, 3, 4], "title": ["a", "b", "c", "d"], "genres": [["x"], [], ["y"], []]}
    )
    items.write_parquet(folder / "items.parquet")
    dataset = read("ml-1m", folder, tmp_path)
    assert dataset.items["title"].to_list() == ["a", "b", "c"]
    assert dataset.item_idx.tolist() == [3, 1, 2]
    assert dataset.card["tie_share"] == 1


def test_from_a_url_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENSUITE_CACHE", str(tmp_path / "cache"))
    ratings = "userId,movieId,rating,timestamp\n" + "".join(f"1,{k},4,111248602{k}\n" for k in range(3))
    path = make_zip(tmp_path / "ml-32m.zip", ratings__csv=ratings)
    url = path.as_uri()
    first = prepare("ml-32m", out=tmp_path / "a", config=PrepareConfig(archive=url))
    path.unlink()
    assert (
        prepare("ml-32m", out=tmp_path / "b", config=PrepareConfig(archive=url)).fingerprint
        == first.fingerprint
    )
    with pytest.raises(EnsuiteError, match="cannot be fetched"):
        prepare("ml-32m", out=tmp_path / "c", config=PrepareConfig(archive=url + "x"))


def test_wrong_and_damaged_archives(tmp_path: Path) -> None:
    with pytest.raises(EnsuiteError, match=r"holds no ratings\.dat: is this ml-1m"):
        read("ml-1m", make_zip(tmp_path / "a.zip", other__txt="x"), tmp_path)
    whole = make_zip(tmp_path / "b.zip", ratings__dat="1::2::3::978300760\n" * 500).read_bytes()
    (tmp_path / "b.zip").write_bytes(whole[:60] + bytes(40) + whole[100:])
    with pytest.raises(EnsuiteError, match="damaged archive"):
        read("ml-1m", tmp_path / "b.zip", tmp_path)
    with pytest.raises(EnsuiteError, match="no such file or folder"):
        read("ml-1m", tmp_path / "c.zip", tmp_path)


def test_from_belongs_to_public_datasets(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\n1,2\n")
    with pytest.raises(EnsuiteError, match="--from belongs to a public dataset"):
        prepare(tmp_path / "log.csv", out=tmp_path / "d", config=PrepareConfig(archive="x.zip"))


@pytest.mark.parametrize("name", [n for n in PUBLIC if n != "ml-small"])
def test_without_archive_each_says_where_it_is(name: str, tmp_path: Path) -> None:
    with pytest.raises(EnsuiteError, match="--from FILE") as caught:
        prepare(name, out=tmp_path / "d")
    assert PUBLIC[name].url in str(caught.value)
