"""Image hosts on loopback: what they answer, by path or to all, how often they are asked, and with which requests."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

Answer = bytes | Callable[[socket.socket], None]


def http_answer(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    """Write a whole answer; underscores in header names stand for hyphens, Content-Length is added if not given."""
    lines = {"Content-Length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


NOT_FOUND = http_answer(status="404 Not Found")


class Origin:
    """A server on a free port of a loopback address, which closes a connection after one answer, unless it keeps it.

    Attributes:
        answers: What it answers, by path.
        answer: What it answers to any other request.
        connections: How many clients connected, whether or not they sent anything.
        names: The server names that TLS clients asked for.
    """

    def __init__(
        self,
        answer: Answer = NOT_FOUND,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        keeps: bool = False,
    ) -> None:
        self.answers: dict[str, Answer] = {}
        self.answer = answer
        self.connections = 0
        self._requests: list[str] = []
        self.names: list[str | None] = []
        self.stopped = threading.Event()
        self._tls = tls
        self._keeps = keeps
        if tls is not None:
            tls.sni_callback = lambda sock, name, context: self.names.append(name)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self.authority = f"{host}:{self.port}"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    @property
    def requests(self) -> list[str]:
        """What clients have asked so far, each up to the end of its headers."""
        return list(self._requests)

    def add(self, path: str, image: bytes) -> str:
        """Serve an image at `/path` and return its URL."""
        self.answers[f"/{path}"] = http_answer(image)
        return f"http://{self.authority}/{path}"

    def drip(self, data: bytes, every_s: float) -> Callable[[socket.socket], None]:
        """Return an answer that sends one byte at a time."""

        def send(sock: socket.socket) -> None:
            for position in range(len(data)):
                sock.sendall(data[position : position + 1])
                if self.stopped.wait(every_s):
                    return

        return send

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, suppress(OSError):
            stream = sock if self._tls is None else self._tls.wrap_socket(sock, server_side=True)
            with stream:
                while self._answer(stream) and self._keeps:
                    pass

    def _answer(self, stream: socket.socket) -> bool:
        """Answer one request; return whether the client sent anything."""
        request = b""
        # 0x16 begins a TLS handshake, which only a client of a server without TLS gets to show here.
        while b"\r\n\r\n" not in request and request[:1] != b"\x16" and (data := stream.recv(4096)):
            request += data
        if not request and self._keeps:
            return False
        self._requests.append(request.decode("latin-1"))
        path = request.partition(b" ")[2].partition(b" ")[0]
        answer = self.answers.get(path.decode("latin-1"), self.answer)
        if callable(answer):
            answer(stream)
        else:
            stream.sendall(answer)
        return True


def endless(start: bytes, piece: bytes) -> Callable[[socket.socket], None]:
    """Return an answer that goes on until the client closes."""

    def send(sock: socket.socket) -> None:
        sock.sendall(start)
        while True:
            sock.sendall(piece)

    return send
