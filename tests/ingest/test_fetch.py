"""Downloads against a server on the loopback that drops connections, changes its files and answers errors."""

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_logs import Ingest, csv_text, interactions

from pipeline.errors import UserError
from pipeline.ingest import download as module
from pipeline.ingest.fetch import fetch

CONTENT = np.random.default_rng(0).bytes(3_000_000)


@dataclass
class Server:
    """What the fake publisher does: `drops` lists after how many bytes each of the next connections ends."""

    url: str = ""
    content: bytes = CONTENT
    etag: str = '"v1"'
    ranges: bool = True
    drops: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)  # the Range header of each request

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range", "")
        self.asked.append(asked)
        if handler.path == "/gone":
            handler.send_error(404)
            return
        start = 0
        if asked and self.ranges and handler.headers.get("If-Range") == self.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start > len(self.content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(self.content) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.etag:
            handler.send_header("ETag", self.etag)
        handler.end_headers()
        end = start + self.drops.pop(0) if self.drops else None
        handler.wfile.write(self.content[start:end])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module, "PAUSE", 0.0)
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        yield state
        http.shutdown()


def test_a_dropped_connection_is_continued_where_it_ended(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.drops = [1_000_000, 500_000]
    [file] = fetch("custom", tmp_path, [f"{server.url}/log.bin"])
    assert file == tmp_path / "log.bin"
    assert file.read_bytes() == CONTENT
    assert server.asked == ["", "bytes=1000000-", "bytes=1500000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["log.bin"]
    assert hashlib.sha256(CONTENT).hexdigest() in capsys.readouterr().out


def test_a_later_run_continues_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    server.drops = [1_000_000] + [0] * module.ATTEMPTS
    with pytest.raises(UserError, match="dropped after 1,000,000 of 3,000,000 bytes") as error:
        fetch("custom", tmp_path, [f"{server.url}/log.bin"])
    assert error.value.why == "the next fetch goes on after the part that came"
    assert fetch("custom", tmp_path, [f"{server.url}/log.bin"])[0].read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=1000000-"


def test_halves_of_different_versions_are_never_joined(server: Server, tmp_path: Path) -> None:
    server.drops = [1_000_000] + [0] * module.ATTEMPTS
    with pytest.raises(UserError):
        fetch("custom", tmp_path, [f"{server.url}/log.bin"])
    server.content, server.etag = CONTENT[::-1], '"v2"'
    assert fetch("custom", tmp_path, [f"{server.url}/log.bin"])[0].read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(
    "change", [{"ranges": False}, {"etag": ""}, {"etag": 'W/"v1"'}], ids=["no ranges", "no version", "weak version"]
)
def test_a_server_that_cannot_resume_sends_all_of_it_again(
    server: Server, tmp_path: Path, change: dict[str, Any]
) -> None:
    vars(server).update(change)
    server.drops = [1_000_000]
    assert fetch("custom", tmp_path, [f"{server.url}/log.bin"])[0].read_bytes() == CONTENT


def test_a_partial_file_longer_than_the_servers_is_begun_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "log.bin.partial").write_bytes(CONTENT + b"more")
    (tmp_path / "log.bin.partial.tag").write_text('"v1"')
    assert fetch("custom", tmp_path, [f"{server.url}/log.bin"])[0].read_bytes() == CONTENT


def test_what_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        fetch("custom", tmp_path, [f"{server.url}/log.bin"])
    assert len(server.asked) == 1


def test_of_an_archive_the_recipes_files_are_unpacked_and_ingested(
    server: Server, tmp_path: Path, ingest: Ingest
) -> None:
    rows = [(user[1:], item[1:], 4, time) for user, item, time in interactions()]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("ml-latest-small/ratings.csv", csv_text(rows, "userId,movieId,rating,timestamp"))
        movies = csv_text([(n, "T", "Drama") for n in range(6)], "movieId,title,genres")
        file.writestr("ml-latest-small/movies.csv", movies)
        file.writestr("../../evil.csv", "outside")
    server.content = archive.getvalue()
    files = fetch("movielens-latest", tmp_path / "raw", [f"{server.url}/ml-latest-small.zip"])
    assert files == [tmp_path / "raw" / "ratings.csv", tmp_path / "raw" / "movies.csv"]
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == ["movies.csv", "ratings.csv"]
    assert ingest(tmp_path / "raw", "movielens-latest").summary["interactions"] == 36
    assert fetch("movielens-latest", tmp_path / "raw", [f"{server.url}/ml-latest-small.zip"]) == files
    assert len(server.asked) == 1


def test_an_archive_that_is_none_is_removed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ml-latest-small\.zip is no archive with ratings\.csv and movies\.csv"):
        fetch("movielens-latest", tmp_path, [f"{server.url}/ml-latest-small.zip"])
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_is_not_the_publishers_is_removed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ml-1m\.zip is not the file of movielens-1m: its sha256 is"):
        fetch("movielens-1m", tmp_path, [f"{server.url}/ml-1m.zip"])
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_server_is_told(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the server answered 404"):
        fetch("custom", tmp_path, [f"{server.url}/gone"])


def test_offline_it_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    names = ["reviews_Beauty_5.json.gz", "meta_Beauty.json.gz"]
    urls = [f"http://127.0.0.1:9/{name}" for name in names]  # nobody listens there
    with pytest.raises(UserError, match="could not download") as error:
        fetch("amazon-beauty", tmp_path, urls)
    for name, url in zip(names, urls, strict=True):
        assert f"{tmp_path}/{name}  from {url}" in error.value.fix


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.com/log.csv"])
def test_only_the_web_is_fetched_from(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="no http or https address"):
        fetch("custom", tmp_path, [url])


@pytest.mark.parametrize("dataset", ["demo", "custom"])
def test_there_may_be_nothing_to_fetch(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(UserError, match=f"nothing to fetch for the dataset {dataset}"):
        fetch(dataset, tmp_path)


def test_a_category_is_named_for_a_dataset_in_categories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no category is named") as error:
        fetch("amazon-2023", tmp_path)
    assert "python -m pipeline fetch Toys_and_Games" in error.value.fix
    asked = []

    def download(url: str, folder: Path, *_: Any) -> Path:
        asked.append(url)
        target = folder / Path(url).name
        target.write_bytes(b"")
        return target

    monkeypatch.setattr("pipeline.ingest.fetch.download", download)
    files = fetch("amazon-2018", tmp_path, ["Video_Games"])
    assert [file.name for file in files] == ["Video_Games_5.json.gz", "meta_Video_Games.json.gz"]
    assert [url.rsplit("/", 3)[1:] for url in asked] == [
        ["amazon_v2", "categoryFilesSmall", "Video_Games_5.json.gz"],
        ["amazon_v2", "metaFiles2", "meta_Video_Games.json.gz"],
    ]
    assert fetch("amazon-2018", tmp_path, ["Video_Games"]) == files
    assert len(asked) == 2  # they are there already


def test_half_a_file_is_not_taken_for_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.ingest.fetch.download", lambda *_: tmp_path / "fetched")
    (tmp_path / "fetched").write_bytes(b"")
    for name in ("reviews_Beauty_5.json.gz.partial", "meta_Beauty.json.gz"):
        (tmp_path / name).write_bytes(b"")
    assert fetch("amazon-beauty", tmp_path) == [tmp_path / "fetched"] * 2
