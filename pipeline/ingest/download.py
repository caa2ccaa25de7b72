"""Download one file over HTTP from a server that is not trusted, and resume where a connection was dropped.

A download grows in NAME.partial. NAME.partial.tag holds the server's name of that version of the file, so that both
parts of a resumed download are of one version. Whatever a server answers, the end is a file or a UserError: its size,
its speed, its redirects and the name of the file are bounded.
"""

import base64
import http.client
import re
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pipeline.errors import UserError
from pipeline.ingest.reply import Pace, Reply, SlowError
from pipeline.printing import shown
from pipeline.progress import Progress

TIMEOUT = 12.0  # seconds without a byte, and seconds until a server has answered
ATTEMPTS = 5  # attempts in a row that bring no new byte, or begin the file anew, after which a download fails
PAUSE = 0.5  # seconds before the second attempt; it doubles with each further one
DROPPED = (ConnectionError, TimeoutError, http.client.HTTPException, URLError, ssl.SSLError)
NAME_BYTES = 200
VERSION = re.compile(r"[\x20-\x7e]{1,200}")  # an ETag or a date that can be sent back
LENGTH = re.compile(r"[0-9]{1,18}")


def download(url: str, folder: Path, urls: Sequence[str], max_bytes: int) -> Path:
    """Download `url` into `folder`; continue a partial download, and survive dropped connections.

    Args:
        urls: all addresses of the dataset, which the message lists where there is no connection.
        max_bytes: size above which the file is refused.

    Returns:
        The file, which has the last part of the address as its name.

    Raises:
        UserError: the address is not http or https or names no file, the server cannot be reached, refuses, is too slow
            or sends what is no file, or the file is too large.
    """
    target = folder / file_name(url)
    partial = target.with_name(target.name + ".partial")
    course = _Course()
    failures = 0  # attempts in a row that brought no new byte
    while not target.exists():
        # Each attempt goes on after the bytes of those before. A connection that drops again and again but brings
        # bytes each time is tried without end, as long as they are not too few for the time of all attempts.
        before = _size(partial)
        try:
            _continue(url, partial, max_bytes, course)
            partial.replace(target)
            _tag(partial).unlink(missing_ok=True)
        except HTTPError as error:
            reason = f"the server answered {error.code} {error.reason}"
            if error.code != 416 or not before:  # 416: the partial file is longer than the server's; begin again
                raise _unreachable(url, partial, urls, reason) from None
            partial.unlink()
        except DROPPED as error:
            failures = 0 if _size(partial) > before else failures + 1
            reason = str(getattr(error, "reason", error))
            if failures >= ATTEMPTS or not _size(partial):
                raise _unreachable(url, partial, urls, reason) from None
            time.sleep(PAUSE * 2**failures)
            try:
                course.pace.check()
            except SlowError as slow:
                raise _unreachable(url, partial, urls, f"{reason}; {slow}") from None
        except (ValueError, OverflowError, LookupError) as error:  # an address or an answer that is against the rules
            raise _unreachable(url, partial, urls, str(error)) from None
    return target


@dataclass
class _Course:
    """The course of a download over all attempts: how fast bytes come, and how often the file was begun."""

    pace: Pace = field(default_factory=Pace)
    begun: int = 0

    def begin(self) -> None:
        """Count a beginning. Raises ValueError where there were `ATTEMPTS` before."""
        if self.begun == ATTEMPTS:
            raise ValueError(f"the connection was dropped, and the server began the file anew {ATTEMPTS} times")
        self.begun += 1


def file_name(url: str) -> str:
    """Return the name of the file that an address names.

    Raises:
        UserError: the address is not http or https, or its last part is no name for a file.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = SplitResult("", "", "", "", "")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(
            f"{shown(url)} is no http or https address",
            "fetch downloads over http and https only",
            "download the file by other means into the folder of ingest.path",
        )
    name = PurePosixPath(unquote(parts.path)).name
    if not is_plain_name(name):
        raise UserError(
            f"{public(url)} names no file",
            "the last part of an address becomes the name of the file; "
            + (f"{shown(name[:80])!r} cannot be one" if name else "this address has none"),
            "give the address of the file itself, such as https://example.org/interactions.csv.gz",
        )
    return name


def is_plain_name(name: str) -> bool:
    """Tell whether a name from outside names a visible file of one folder on any system, and no other."""
    usual = name.isprintable() and not name.startswith(".") and not set(name) & set('/\\:*?"<>|')
    return bool(name.strip()) and usual and len(name.encode("utf-8", "replace")) <= NAME_BYTES


def public(url: str) -> str:
    """Return an address as it may be printed: without user, password and query, which can hold a key."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the address"
    query = "***" if parts.query else ""
    return shown(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, "")))


class _Redirects(HTTPRedirectHandler):
    """Follow a redirect within a scheme or from http to https, and no other."""

    max_redirections = 5

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> Request | None:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new != old and (old, new) != ("http", "https"):
            raise UserError(
                f"{public(req.full_url)} leads to {public(newurl)}",
                f"a server may not send fetch from {old} to {shown(new)}",
                "check the address, or download the file by other means",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _request(url: str) -> Request:
    """Return the request; a user and password of the address go into a header, to that server alone."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    request = Request(urlunsplit(parts._replace(netloc=host, fragment="")), headers={"User-Agent": "sidpipe"})
    if at:
        token = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _continue(url: str, partial: Path, max_bytes: int, course: _Course) -> None:
    """Request the bytes that `partial` still lacks, and append them.

    Raises:
        ConnectionError: the connection ended before the file did; `partial` holds the bytes that came.
        TimeoutError: nothing came for `TIMEOUT` seconds.
        ValueError: the answer is against the rules of HTTP, too slow, or the first part of the file once too often.
    """
    have = _size(partial)
    request = _request(url)
    version = _version(partial) if have else ""
    if version:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)
    with Reply(lambda: build_opener(_Redirects).open(request, timeout=TIMEOUT), TIMEOUT) as reply:
        response = reply.head()
        resumed = response.status == 206
        if response.status not in (200, 206) or (resumed and not version):
            raise ValueError(f"the server answered {response.status}, which is no file")
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            partial.unlink()
            raise ValueError("the server sent another part of the file than was asked for; the next fetch begins anew")
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        if length is not None and not LENGTH.fullmatch(length.strip()):
            raise ValueError("the server gives a length that is no number")
        total = have + int(length) if length else 0
        if total > max_bytes:
            raise _too_large(url, max_bytes)
        if not resumed:
            course.begin()
            _remember(partial, response.headers)
        with (
            partial.open("ab" if resumed else "wb") as file,
            Progress(f"fetch {partial.stem}", total, "bytes", start=have) as progress,
        ):
            size = have
            for block in reply.blocks():
                size += len(block)
                if size > max_bytes:
                    file.close()
                    partial.unlink()
                    raise _too_large(url, max_bytes)
                file.write(block)
                progress.update(len(block))
                course.pace.add(len(block))
    if total and _size(partial) < total:
        raise ConnectionError(f"the connection was dropped after {_size(partial):,} of {total:,} bytes")


def _remember(partial: Path, headers: http.client.HTTPMessage) -> None:
    """Write down the server's name of this version; without a name, or with a weak ETag, no download is resumed."""
    etag = headers.get("ETag", "")
    version = headers.get("Last-Modified", "") if etag.startswith("W/") or not etag else etag
    if VERSION.fullmatch(version):
        _tag(partial).write_text(version)
    else:
        _tag(partial).unlink(missing_ok=True)


def _version(partial: Path) -> str:
    tag = _tag(partial)
    version = tag.read_text(errors="replace") if tag.exists() else ""
    return version if VERSION.fullmatch(version) else ""


def _tag(partial: Path) -> Path:
    return partial.with_name(partial.name + ".tag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _too_large(url: str, max_bytes: int) -> UserError:
    return UserError(
        f"{public(url)} is larger than ingest.max_file_bytes, {max_bytes:,}",
        "a server that sends without end would fill the disk",
        "check the address, or raise ingest.max_file_bytes",
    )


def _unreachable(url: str, partial: Path, urls: Sequence[str], reason: str) -> UserError:
    return UserError(
        f"could not download {public(url)}: {shown(reason)}",
        "the next fetch goes on after the part that came" if _size(partial) else "this machine may be offline",
        "\n".join(
            [
                "run `python -m pipeline fetch` again, or download the files elsewhere and put them here:",
                *(f"  {partial.parent / file_name(each)}  from {public(each)}" for each in urls),
            ]
        ),
    )
