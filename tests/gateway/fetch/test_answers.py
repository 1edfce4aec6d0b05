"""gateway/fetch/fetcher.py: which answers of an image's host are an image's bytes, and what others mean."""

from __future__ import annotations

import gzip
import logging
import random
import socket
import struct
from contextlib import suppress

import pytest

from gateway.errors import FetchFailed, GatewayError
from tests.gateway.fetch.conftest import CHUNKED, INFORMING, PHOTO, Listen, Names, fetch, make_fetcher, takes
from tests.programs.origins import Origin, http_answer

CODINGS = ("gzip", "X-GZIP", "br", "deflate", "zstd", "compress", "gzip, identity", "aws-chunked,gzip", "utf-8 , br")
LABELS = ("identity", "base64", "aws-chunked", "UTF-8", "none", "binary", "x-unknown", "aws-chunked, utf-8", "", ",")


@pytest.mark.parametrize(
    "answer",
    [
        http_answer(PHOTO),
        CHUNKED + b"5\r\n\xff\xd8pho\r\n2;ext=1\r\nto\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n" + PHOTO,
        http_answer(PHOTO + b"more", Content_Length=str(len(PHOTO))),
        INFORMING + http_answer(PHOTO),
    ],
    ids=["length", "chunks", "until close", "more than announced", "after others that inform"],
)
def test_the_body_is_returned(listen: Listen, answer: bytes) -> None:
    """Return exactly the body of a 200 answer, however its end is marked (S11)."""
    assert fetch(listen(answer)) == PHOTO


@pytest.mark.parametrize(
    "headers", ["Content-Length: 7, 7", "Content-Length: 7\r\nContent-Length: 7", "Content-Length: 7\r\nno colon"]
)
def test_an_odd_length_is_not_waited_for(listen: Listen, headers: str) -> None:
    """Once the body is there, though the host keeps the connection."""
    with takes(0, 5):
        assert fetch(listen(f"HTTP/1.1 200 OK\r\n{headers}\r\n\r\n".encode() + PHOTO, keeps=True)) == PHOTO


@pytest.mark.parametrize("label", LABELS)
def test_a_coding_that_changes_no_bytes_is_ignored(listen: Listen, label: str) -> None:
    """Stores write such words beside plain images; what the bytes are, the decoder judges."""
    assert fetch(listen(http_answer(PHOTO, Content_Encoding=label))) == PHOTO


def reset(sock: socket.socket) -> None:
    sock.sendall(http_answer(PHOTO, Content_Length="100"))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


BROKEN = [
    http_answer(PHOTO, Content_Length="100"),
    CHUNKED + b"64\r\nshort",
    CHUNKED + b"4\r\nfour\r\n",
    CHUNKED + b"-1\r\n",
    CHUNKED + b"-2\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"",
    b"HTTP/1.1 200",
    b"HTTP/1.1 200 OK\r\nContent-Length: 7",
    http_answer(b""),
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"HTTP/2.0 200 OK\r\n\r\n",
    b"\x15\x03\x01\x00\x02\x02\x46",
    b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 101 + b"\r\n",
    INFORMING,
    http_answer(PHOTO, "103 Early Hints"),
    reset,
]
STATUSES = (101, 201, 204, 206, 300, 304, 305, 400, 401, 404, 407, 500, 502, 503, 999)
PACKED = gzip.compress(b"a" * 1_000_000)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        *((answer, "sent") for answer in BROKEN),
        *((http_answer(PACKED, Content_Encoding=each), "sent a compressed body") for each in CODINGS),
        (http_answer(PACKED, Content_Encoding="utf-8\r\nContent-Encoding: gzip"), "sent a compressed body"),
        *((http_answer(PHOTO, f"{each} Any", Location="/"), rf"answered with status {each}\.$") for each in STATUSES),
        *(
            (
                http_answer(PHOTO, f"{each} Any"),
                rf"answered with status {each}\. It may want a contact in GATEWAY_FETCH",
            )
            for each in (403, 429)
        ),
        (http_answer(status="302 Found"), "answered with status 302."),
    ],
)
def test_other_answers_fail(listen: Listen, answer: bytes, message: str) -> None:
    """Fail on broken answers (S11, F7), unpack nothing (S11), and name a status that is not 200 (S12, F7)."""
    with takes(0, 3), pytest.raises(FetchFailed, match=f"^The image's host {message}"):
        fetch(listen(answer))


@pytest.mark.parametrize("line", ["X Powered By: x", "no colon"])
def test_a_malformed_header_is_named_if_the_image_does_not_end(listen: Listen, line: str) -> None:
    """The length that follows it is lost; most such hosts close, which ends the image too."""
    answer = f"HTTP/1.1 200 OK\r\n{line}\r\nContent-Length: 7\r\n\r\n".encode() + PHOTO
    assert fetch(listen(answer)) == PHOTO
    with pytest.raises(FetchFailed, match="sent a malformed header"):
        fetch(listen(answer, keeps=True), fetch_timeout_s=2.0)


def test_refused_connection_fails() -> None:
    """Fail at once if nobody listens (F7)."""
    with Origin() as origin:
        pass
    with takes(0, 0.5), pytest.raises(FetchFailed, match="refused the connection"):
        fetch(origin)


@pytest.mark.parametrize(
    "answer",
    [
        http_answer(b"secret", status="500 secret", X_Secret="secret"),
        http_answer(status="302 Found", Location="http://secret.test/secret"),
        http_answer(status="302 Found", Location="http://127.0.0.2/secret"),
        http_answer(b"secret", status="403 secret", X_Secret="secret"),
        http_answer(b"secret", Content_Encoding="secret, gzip"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: secret\r\n\r\n",
        b"secret 127.0.0.1\r\n",
    ],
)
def test_messages_contain_nothing_of_the_origin(listen: Listen, answer: bytes) -> None:
    """Never repeat the body, headers or addresses of an image's host to the client."""
    with pytest.raises(GatewayError) as failed:
        fetch(listen(answer), Names(secret=[["10.0.0.1"]]))
    assert not any(word in str(failed.value) for word in ("secret", "127.0.0", "10.0.0.1"))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 7\r\n\r\n" + PHOTO,
        b"HTTP/1.1 200 OK\r\n: no name\r\n folded\r\n\r\n" + PHOTO,
        b"HTTP/1.1 200 OK\r\nContent-Type: multipart/mixed; boundary=a\r\nno colon\r\n\r\n" + PHOTO,
        CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n") + b"7\r\n" + PHOTO + b"\r\n0\r\n\r\n",
        http_answer(status="302 Found", Location="ftp://photos.test/a?signature=secret"),
        http_answer(status="302 Found", Location="http://[photos/?signature=secret"),
        http_answer(status="302 Found", Location="http://inside.test/?signature=secret"),
    ],
    ids=["no colon", "no name", "multipart", "two lengths", "other scheme", "no URL", "not public"],
)
def test_no_log_line_has_a_query(listen: Listen, caplog: pytest.LogCaptureFixture, answer: bytes) -> None:
    """Keep signed URLs out of the log, whatever the image's host sends."""
    with caplog.at_level(logging.DEBUG), suppress(GatewayError):
        assert fetch(listen(answer), url="http://photos.test:PORT/a.jpg?signature=secret")
    assert "secret" not in caplog.text and "Traceback" not in caplog.text


def test_garbled_answers_have_a_name(listen: Listen) -> None:
    """Raise one of the named errors, or none, for answers with random bytes changed (F17)."""
    generator = random.Random(7)
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nLocation: /a\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n" + PHOTO
    origin = listen()
    fetcher = make_fetcher(fetch_timeout_s=1)
    for _ in range(100):
        garbled = bytearray(whole + b"\r\n0\r\n\r\n")
        for _ in range(generator.randrange(1, 8)):
            garbled[generator.randrange(len(garbled))] = generator.randrange(256)
        origin.answer = bytes(garbled[: generator.choice((len(garbled), generator.randrange(len(garbled))))])
        try:
            fetcher.fetch(f"http://photos.test:{origin.port}/")
        except GatewayError as error:
            assert str(error).startswith("The ")
