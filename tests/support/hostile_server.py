"""A web server on the loopback that answers what no server should, one way per path of `ANSWERS`."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

OK = b"HTTP/1.1 200 OK\r\n"


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


def endless(connection: socket.socket) -> None:
    """Send without end."""
    connection.sendall(OK + b"\r\n")
    while True:
        connection.sendall(b"x" * 65536)


def drip_head(connection: socket.socket) -> None:
    """Send a header, a byte at a time."""
    connection.sendall(OK + b"X: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def drip_body(connection: socket.socket) -> None:
    """Send a body, a byte at a time."""
    connection.sendall(OK + b"Content-Length: 10000000\r\n\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def silent(connection: socket.socket) -> None:
    """Say nothing and stay."""
    connection.recv(1 << 16)


def stalled(connection: socket.socket) -> None:
    """Send half of a body and stay."""
    connection.sendall(reply("Content-Length: 10", b"half"))
    connection.recv(1 << 16)


BEHAVIOURS: dict[str, Callable[[socket.socket], None]] = {
    "/endless": endless,
    "/drip-head": drip_head,
    "/drip-body": drip_body,
    "/silent": silent,
    "/stalled": stalled,
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
                BEHAVIOURS[path](connection)
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
