"""Whatever a server answers and an archive holds, fetch ends with a file or with one clear error."""

import io
import re
import struct
import time
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import hostile_server as hostile_server_module
import numpy as np
import pytest
from hostile_server import ANSWERS, BEHAVIOURS, hostile_server

from pipeline.errors import UserError
from pipeline.ingest import download as module
from pipeline.ingest import reply
from pipeline.ingest.download import is_plain_name, public
from pipeline.ingest.fetch import fetch

RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
FILES: dict[str, bytes] = {}  # what the server of this file has beside its bad answers
MEMBERS = ("ratings.csv", "movies.csv")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with hostile_server(FILES) as url:
        yield url


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module, "PAUSE", 0.0)
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    monkeypatch.setattr(reply, "SLOW_SECONDS", 0.3)
    monkeypatch.setattr(reply, "SILENCE", 0.4)
    monkeypatch.setattr(hostile_server_module, "LONG", 1.5)


def refused(dataset: str, folder: Path, url: str, max_bytes: int = 50_000_000) -> str:
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        fetch(dataset, folder, [url], max_bytes)
    assert time.monotonic() - began < 3
    assert not RAW.search(str(error.value).replace("\n", ""))
    assert "\n" not in error.value.what
    left = [path.name for path in folder.rglob("*") if path.is_file() and ".partial" not in path.name]
    assert left == []
    return error.value.what


@pytest.mark.parametrize("path", [*ANSWERS, *BEHAVIOURS])
def test_no_answer_is_taken_for_a_file(path: str, address: str, tmp_path: Path) -> None:
    refused("custom", tmp_path, f"{address}{path}.csv")


def test_what_is_wrong_is_said(address: str, tmp_path: Path) -> None:
    for path, words in {
        "to-file": "Redirection to url 'file:///etc/passwd' is not allowed",
        "to-ftp": "leads to ftp://127.0.0.1/x",
        "word-length": "the server gives a length that is no number",
        "huge-length": "larger than ingest.max_file_bytes, 50,000,000",
        "endless": "larger than ingest.max_file_bytes",
        "drip-head": "no answer in 0 seconds",
        "drip-body": "which is too slow",
        "negative-chunk": "a chunk whose size is no number",
        "chunk-long": "a chunk of the server's reply is longer than its size",
        "chunk-trailers": "does not end behind its last chunk",
        "other-coding": "a coding that was not asked for",
        "cut-chunk": "the connection was dropped, and the server began the file anew 5 times",
        "drip-size": "no more bytes in 0 seconds",
        "stalled": "the server sent",
        "anew": "the server began the file anew 5 times",
        "in-turn": "the server began the file anew 5 times",
        "no-content": "the server answered 204, which is no file",
        "500": "the server answered 500",
    }.items():
        assert words in refused("custom", tmp_path, f"{address}/{path}.csv")


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://host/",
            "http://host",
            "http://host/..",
            "http://host/a/%2e%2e",
            "http://host/a%00b",
            "http://host/%0a",
        ),
        *("http://host/.gitignore", "http://host/a%5cb.csv", "http://[::1/x", "http:///x", "", "x", "HTTP:x"),
        *("data:,x", "http://host/" + "a" * 300, "http://host/C:", "http://host/a?b=1#/../c/..", "\x1b]0;x\x07"),
        *("javascript:alert(1)", "http://host/%E2%80%AE"),
    ],
)
def test_an_address_that_names_no_file_is_refused_before_anything_is_asked(url: str, tmp_path: Path) -> None:
    if url != "http://host/a?b=1#/../c/..":
        assert "names no file" in (what := refused("custom", tmp_path, url)) or "no http or https address" in what


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999/x", "http://127.0.0.1:zz/x", "http://a b/x", "http://" + "a" * 70 + "/x"]
)
def test_an_address_that_cannot_be_asked_is_an_error_of_one_line(url: str, tmp_path: Path) -> None:
    assert "could not download" in refused("custom", tmp_path, url)


@pytest.mark.parametrize("end", [b"\r\n", b"\n"], ids=["crlf", "lf"])
def test_a_file_in_chunks_is_put_together(
    end: bytes, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = np.random.default_rng(1).bytes(700_000)
    cuts = [0, 1, 17, 300_000, 300_001, 700_000]
    coded = b"".join(
        b"%0*X ; name=value" % (width, stop - start) + end + content[start:stop] + end
        for width, (start, stop) in enumerate(pairwise(cuts))
    )
    whole = hostile_server_module.CHUNKED + coded + b"00" + end + b"Digest: x" + end + end
    monkeypatch.setitem(ANSWERS, "/chunks", whole)
    assert fetch("custom", tmp_path, [f"{address}/chunks.csv"])[0].read_bytes() == content


def test_two_addresses_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"two of the addresses name a file a\.csv"):
        fetch("custom", tmp_path, ["http://host/1/a.csv", "http://host/2/a.csv"])


def test_no_key_of_an_address_is_printed(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = address.removeprefix("http://")
    FILES["/ok"] = b"fine"
    what = refused("custom", tmp_path, f"http://me:S3CRET@{host}/500.csv?token=S3CRET")
    assert "S3CRET" not in what
    assert public("https://me:S3CRET@host/x?sig=S3CRET#S3CRET") == "https://host/x?***"
    assert fetch("custom", tmp_path, [f"http://me:S3CRET@{host}/ok.csv"])[0].read_bytes() == b"fine"
    assert "S3CRET" not in "".join(capsys.readouterr())


def test_names_of_files() -> None:
    assert all(map(is_plain_name, ["log.csv.gz", "ünï.csv", "a b.csv"]))
    assert not any(map(is_plain_name, ["", ".", "..", ".a", "a/b", "a\\b", "a\0", "a\n", "c:", " ", "é" * 101]))


# ---------------------------------------------------------------------------------------------------- archives


def archive() -> bytes:
    """A zip of both files that a recipe reads."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as members:
        for name in MEMBERS:
            members.writestr(name, "userId,movieId\n" * 1000)
    return file.getvalue()


def patched(offset_local: int, offset_central: int, value: int) -> bytes:
    """The archive with a 16-bit field of each local and central header replaced."""
    content = bytearray(archive())
    for mark, offset in ((b"PK\x03\x04", offset_local), (b"PK\x01\x02", offset_central)):
        at = content.find(mark)
        while at >= 0:
            content[at + offset : at + offset + 2] = struct.pack("<H", value)
            at = content.find(mark, at + 4)
    return bytes(content)


BROKEN = {
    "encrypted": patched(6, 8, 1),
    "method": patched(8, 10, 98),
    "store": patched(8, 10, 0),
    "bz2": patched(8, 10, 12),
    "lzma": patched(8, 10, 14),
    "strong": patched(6, 8, 0x41),
    "version": patched(4, 6, 999),
    "cut": archive()[:-30],
    "half": archive()[: len(archive()) // 2],
    "empty": b"",
    "no members": b"PK\x05\x06" + bytes(18),
    "text": b"<html>not here</html>",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_archive_is_removed_with_a_clear_line(kind: str, address: str, tmp_path: Path) -> None:
    FILES["/ml-latest-small.zip"] = BROKEN[kind]
    what = refused("movielens-latest", tmp_path, f"{address}/ml-latest-small.zip")
    assert what.startswith("ml-latest-small.zip is no archive with")
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_byte_of_an_archive_gives_files_or_an_error(address: str, tmp_path: Path) -> None:
    whole = archive()
    for position in range(0, len(whole), 3):
        content = bytearray(whole)
        content[position] ^= 0xFF
        FILES["/ml-latest-small.zip"] = bytes(content)
        try:
            files = fetch("movielens-latest", tmp_path, [f"{address}/ml-latest-small.zip"])
        except UserError:
            assert list(tmp_path.iterdir()) == []
        else:
            for file in files:
                file.unlink()


def test_an_archive_that_unpacks_to_too_much_is_refused(address: str, tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as members:
        for name in MEMBERS:
            members.writestr(name, bytes(3_000_000))
    FILES["/ml-latest-small.zip"] = file.getvalue()
    what = refused("movielens-latest", tmp_path, f"{address}/ml-latest-small.zip", 1_000_000)
    assert "has 3,000,000 bytes, more than ingest.max_file_bytes, 1,000,000" in what
