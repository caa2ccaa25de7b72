"""A web server on the loopback that answers what no server should, one way per path of `ANSWERS`."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
DRIP = 0.02  # seconds between two bytes
LONG = 60.0  # seconds that "for ever" takes here, so that no thread works on behind the tests


def reply(head: str, body: bytes = b"", status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\n{head}\r\n\r\n".encode("latin-1") + body


def to(location: str) -> bytes:
    return reply(f"Location: {location}\r\nContent-Length: 0", status="302 Found")


# Path -> what is sent. Each is no file, and fetch has to say so in a line.
ANSWERS: dict[str, bytes] = {
    "/nothing": b"",
    "/garbage": b"\x00\xff\xfe" * 50,
    "/no-status": b"HTTP/1.1\r\n\r\n",
    "/odd-status": b"HTTP/1.1 99999 Odd\r\n\r\n",
    "/word-status": b"HTTP/1.1 abc OK\r\n\r\n",
    "/informational": b"HTTP/1.1 101 Switching\r\n\r\n",
    "/no-content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "/unasked-part": reply("Content-Length: 2\r\nContent-Range: bytes 7-8/9", b"ab", "206 Partial Content"),
    "/416": reply("Content-Length: 0", status="416 Range Not Satisfiable"),
    "/401": reply('WWW-Authenticate: Basic realm="x"\r\nContent-Length: 0', status="401 Unauthorized"),
    "/407": reply("Content-Length: 0", status="407 Proxy Authentication Required"),
    "/500": reply("Content-Length: 0", status="500 \x1b]0;owned\x07"),
    "/word-length": reply("Content-Length: zz", b"ab"),
    "/negative-length": reply("Content-Length: -5", b"ab"),
    "/two-lengths": reply("Content-Length: 2, 3", b"ab"),
    "/digits-length": reply("Content-Length: " + "9" * 5000, b"ab"),
    "/huge-length": reply("Content-Length: 999999999999999", b"ab"),
    "/bad-chunk": reply("Transfer-Encoding: chunked", b"zz\r\nab\r\n0\r\n\r\n"),
    "/negative-chunk": reply("Transfer-Encoding: chunked", b"-5\r\nab\r\n0\r\n\r\n"),
    **{
        f"/chunk-{name}": reply("Transfer-Encoding: chunked", chunk)
        for name, chunk in {
            "plus": b"+2\r\nab\r\n0\r\n\r\n",
            "minus-one": b"-1\r\nab\r\n0\r\n\r\n",
            "prefix": b"0x2\r\nab\r\n0\r\n\r\n",
            "blank": b" 2\r\nab\r\n0\r\n\r\n",
            "underscore": b"0_2\r\nab\r\n0\r\n\r\n",
            "nothing": b"\r\nab\r\n0\r\n\r\n",
            "huge": b"f" * 40 + b"\r\nab\r\n0\r\n\r\n",
            "vast": b"f" * 15 + b"\r\nab\r\n0\r\n\r\n",
            "long": b"2\r\nabcd\r\n0\r\n\r\n",
            "extension": b"2;" + b"x" * 100_000 + b"\r\nab\r\n0\r\n\r\n",
            "trailers": b"2\r\nab\r\n0\r\n" + b"X: a\r\n" * 500 + b"\r\n",
            "unended": b"2\r\nab\r\n",
            "no-end": b"2\r\nab\r\n0\r\n",
        }.items()
    },
    "/other-coding": reply("Transfer-Encoding: gzip, chunked", b"2\r\nab\r\n0\r\n\r\n"),
    "/cut-chunk": reply("Transfer-Encoding: chunked", b"ffffff\r\nab"),
    "/long-header": OK + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
    "/many-headers": OK + b"X: a\r\n" * 500 + b"\r\n",
    "/to-file": to("file:///etc/passwd"),
    "/to-ftp": to("ftp://127.0.0.1/x"),
    "/to-data": to("data:,x"),
    "/to-nowhere": to(""),
    "/to-brackets": to("http://[bad"),
    "/to-port": to("http://127.0.0.1:99999/x"),
    "/to-word-port": to("http://127.0.0.1:zz/x"),
    "/to-controls": to("http://127.0.0.1/\x00\x1b]0;owned\x07"),
    "/to-blank": to("http://127.0.0.1:1/a b"),
    "/to-latin": to("http://127.0.0.1:1/\xe9"),
    "/to-label": to("http://" + "a" * 70 + "/x"),
    "/to-itself": to("/to-itself"),
}


Behaviour = Callable[[socket.socket, str], None]


def _for_ever(begin: bytes, again: bytes, pause: float) -> Behaviour:
    def behave(connection: socket.socket, _: str) -> None:
        connection.sendall(begin)
        until = time.monotonic() + LONG
        while time.monotonic() < until:
            connection.sendall(again)
            time.sleep(pause)

    return behave


def _silent(begin: bytes) -> Behaviour:
    def behave(connection: socket.socket, _: str) -> None:
        connection.sendall(begin)
        connection.recv(1 << 16)

    return behave


def _anew(connection: socket.socket, request: str) -> None:
    """Send half of a file, of another version each time."""
    assert request
    connection.sendall(reply(f'Content-Length: 90000\r\nETag: "{time.monotonic_ns()}"', b"x" * 45_000))


def _in_turn(connection: socket.socket, request: str) -> None:
    """Send half of a file, and then none of the rest that is asked for."""
    if "Range:" in request:
        connection.sendall(reply("Content-Length: 0", status="416 Range Not Satisfiable"))
    else:
        connection.sendall(reply('Content-Length: 90000\r\nETag: "v"', b"x" * 45_000))


# Path -> what is sent first, what is sent again and again, and the seconds between.
ENDLESS: dict[str, tuple[bytes, bytes, float]] = {
    "/endless": (OK + b"\r\n", b"x" * 65536, 0),
    "/endless-headers": (OK, b"X: a\r\n" * 1000, 0),
    "/endless-continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, 0),
    "/endless-trailers": (CHUNKED + b"2\r\nab\r\n0\r\n", b"X: a\r\n" * 1000, 0),
    "/endless-size": (CHUNKED, b"0" * 65536, 0),
    "/drip-status": (b"HTTP/1.1 200 ", b"x", DRIP),
    "/drip-head": (OK + b"X: ", b"x", DRIP),
    "/drip-body": (OK + b"Content-Length: 10000000\r\n\r\n", b"x", DRIP),
    "/drip-chunks": (CHUNKED, b"1\r\nx\r\n", DRIP),
    "/drip-size": (CHUNKED, b"0", DRIP),
    "/drip-extension": (CHUNKED + b"2;", b"x", DRIP),
    "/drip-trailer": (CHUNKED + b"2\r\nab\r\n0\r\nX: ", b"x", DRIP),
}
# Path -> what is sent before nothing more comes.
SILENT: dict[str, bytes] = {
    "/silent": b"",
    "/silent-head": OK + b"X: ",
    "/silent-chunk": CHUNKED + b"5\r\nhalf",
    "/silent-end": CHUNKED + b"2\r\nab\r\n",
    "/stalled": reply("Content-Length: 10", b"half"),
}
BEHAVIOURS: dict[str, Behaviour] = {
    **{path: _for_ever(*sent) for path, sent in ENDLESS.items()},
    **{path: _silent(sent) for path, sent in SILENT.items()},
    "/anew": _anew,
    "/in-turn": _in_turn,
}


@contextmanager
def hostile_server(files: dict[str, bytes] | None = None) -> Iterator[str]:
    """Serve `ANSWERS`, `BEHAVIOURS` and whole `files` (path -> content); gives the server's address."""

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            request = connection.recv(1 << 16).decode("latin-1")
            path = request.split(" ")[1] if " " in request else ""
            path = path.removesuffix(".csv")
            if path in BEHAVIOURS:
                BEHAVIOURS[path](connection, request)
            elif path in ANSWERS:
                connection.sendall(ANSWERS[path])
            elif files and path in files:
                connection.sendall(reply(f"Content-Length: {len(files[path])}", files[path]))
            else:
                connection.sendall(reply("Content-Length: 0", status="404 Not Found"))

    def serve(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
