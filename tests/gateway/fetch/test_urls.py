"""gateway/fetch/urls.py: which texts are a URL, and what is sent for one."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from gateway.errors import BadRequest, UrlNotAllowed
from tests.gateway.fetch.conftest import PHOTO, Listen, Names, fetch, make_fetcher, server_tls
from tests.programs.origins import http_answer


def words(text: str) -> list[str]:
    return text.split()


# S3: encodings of 127.0.0.1 and other numbers that are not a canonical dotted quad.
DISGUISES = words("""
    0177.0.0.1 0177.0.0.01 127.0.0.01 00000177.0.0.1 2130706433 017700000001 127.1 127.0.1 1 1.2.3.4.5 256.256.256.256
    0x7f.0.0.1 0X7F.0.0.1 0x7f000001 0x7f.1 0x 127.0.0.0x1 １２７.０.０.１ 127。0。0。1 ①②⑦.0.0.1 ₁₂₇.₀.₀.₁
    %31%32%37.0.0.1 127%2e0%2e0%2e1 127.0.0.1%00 127\u00ad.0.0.1 127.0.0.1\u200b 0x7f\u2060.1
""")
# S4 and S10: the cases of WHATWG's URL tests in which parsers disagree.
NOT_URLS = [
    *words("""
        a.jpg photos.test/a.jpg //photos.test/a.jpg http:photos.test http:/photos.test ://photos.test 1http://photos.test
        http:\\\\photos.test\\ http://photos.test\\@inside.test/ http://inside.test\\.photos.test/ javascript:alert(1)
        data:image/png;base64,AAAA
    """),
    *(
        "",
        " ",
        "\ufeffhttp://photos.test/",
        "ht\ntp://photos.test/",
        "http://pho\ttos.test/",
        "http://photos.test/a\tb",
    ),
    *("http://photos\0.test/", "http://photos.test/\r\nX-Evil: 1", "http://photos.test/\nX-Evil:1"),
    *("http://photos.test/\ud800", "http://photos.test/\x7f", "http://photos.test/?\x01", "\0http://photos.test/"),
    *("http:/\\photos.test/", "\\\\photos.test/"),
    "http://a.test/" + "a" * 2035,
]
FORBIDDEN_URLS = [
    *words("""
        ftp://photos.test/a.jpg file:///etc/passwd gopher://photos.test/_x httpx://photos.test/ ws://photos.test/
        http://me@photos.test/ http://me:pw@photos.test/ http://@photos.test/ http://photos.test@inside.test/
        http://photos.test:80@inside.test/ http://a@b@photos.test/ http:// http:///a.jpg http:////a.jpg http://:80/ http://?
        http://photos.test:/ http://photos.test:0/ http://photos.test:65536/ http://photos.test:-80/ http://a.test:80:80/
        http://photos.test:８０/ http://photos.test：80/ http://a＠photos.test/ http://a.test:0x50/ http://a.test:8_0/
        http://[::1/ http://::1/ http://[::1]a/ http://[::1].test/ http://[127.0.0.1]/ http://[v1.a]/ http://[]/
        http://[fe80::1%eth0]/ http://[fe80::1%25eth0]/ http://[::1%]/ http://[photos.test]/ http://photos%2etest/
        http://pho..tos.test/ http://.photos.test/ http://photos.test../ http://./ http://pho$tos.test/ http://*.test/
        http://pho|tos.test/ http://pho,tos.test/ http://a<b>.test/ http://℀.test/ http://a／b.test/
    """),
    *("http://" + "a" * 64 + ".test/", "http://" + "a." * 127 + "test/", "http://" + "☕" * 64 + ".test/"),
    *("http://photos .test/", "http://photos.test :80/", "http://pho\u3000tos.test/", "http://pho\u00a0tos.test/"),
    *("http://\u00ad/", "http://photos.\u200b.test/", "http://ü／x.test/", "http://☕\u3000.test/"),
]


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        *((f"http://{host}/a.jpg", UrlNotAllowed, "Expected a host name, a dotted quad") for host in DISGUISES),
        *((url, BadRequest, "Expected ") for url in NOT_URLS),
        *((url, UrlNotAllowed, "Expected ") for url in FORBIDDEN_URLS),
    ],
)
def test_texts_are_refused_by_their_shape(url: str, error: type[Exception], message: str) -> None:
    """Refuse, without a look-up, what is not a URL, addresses in disguise, and forbidden parts (S3, S4, S10)."""
    names = Names()
    with pytest.raises(error, match=message):
        make_fetcher(names, allow="0.0.0.0/0").fetch(url)
    assert names.look_ups == []


@pytest.mark.parametrize(
    ("url", "target", "host"),
    [
        ("http://photos.test:PORT", "/", "photos.test"),
        ("HTTP://PHOTOS.Test:PORT/A.JPG", "/A.JPG", "photos.test"),
        ("http://photos.test.:PORT/", "/", "photos.test"),
        ("http://photos.test:PORT?a=b", "/?a=b", "photos.test"),
        ("http://photos.test:PORT/a?b#c", "/a?b", "photos.test"),
        ("http://photos.test:PORT#@inside.test/", "/", "photos.test"),
        ("http://photos.test:PORT/a%20b/%2e%2E/c", "/a%20b/%2e%2E/c", "photos.test"),
        ("http://photos.test:PORT/../a/./b", "/../a/./b", "photos.test"),
        ("http://photos.test:PORT//inside.test/a", "//inside.test/a", "photos.test"),
        ("http://photos.test:PORT/@inside.test:80/", "/@inside.test:80/", "photos.test"),
        ("http://photos.test:PORT/?u=http://inside.test/", "/?u=http://inside.test/", "photos.test"),
        ("http://photos.test:PORT/grün%zz", "/gr%C3%BCn%zz", "photos.test"),
        (" \thttp://photos.test:PORT/a b.jpg?c d=e\r\n", "/a%20b.jpg?c%20d=e", "photos.test"),
        ("http://photos.test:PORT/\u200d\u200c\u00ad\u3000", "/%E2%80%8D%E2%80%8C%C2%AD%E3%80%80", "photos.test"),
        ("http://photos.test:PORT/\u2028\u00a0\u202e\x85", "/%E2%80%A8%C2%A0%E2%80%AE%C2%85", "photos.test"),
        ("http://photos.test:PORT/☕?☕=ü#☕", "/%E2%98%95?%E2%98%95=%C3%BC", "photos.test"),
        (
            """http://photos.test:PORT/"<>^`{|}'?"<>^`{|}'""",
            "/%22%3C%3E%5E%60%7B|%7D'?%22%3C%3E^`{|}%27",
            "photos.test",
        ),
        ("http://photos.test:PORT/a\\b\\..\\c?d\\e", "/a/b/../c?d\\e", "photos.test"),
        ("http://photos.test:PORT/\\inside.test/", "//inside.test/", "photos.test"),
        ("http://☕.test:PORT/", "/", "xn--53h.test"),
        ("http://☕\ufe0f.test:PORT/", "/", "xn--53h.test"),
        ("http://نامه\u200cای.test:PORT/", "/", "xn--mgba3gch31f060k.test"),
        ("http://pho\u00adt\u200bos.te\u2060st:PORT/", "/", "photos.test"),
        ("http://ｐｈｏｔｏｓ.ｔｅｓｔ:PORT/", "/", "photos.test"),
        ("http://bücher.test:PORT/", "/", "xn--bcher-kva.test"),
        ("http://BÜCHER。test:PORT/", "/", "xn--bcher-kva.test"),
        ("http://127.0.0.1:PORT/", "/", "127.0.0.1"),
    ],
)
def test_url_becomes_one_request(listen: Listen, url: str, target: str, host: str) -> None:
    """Ask the right host for the right target (S4)."""
    origin = listen(http_answer(PHOTO))
    fetch(origin, url=url)
    assert origin.requests[0].startswith(f"GET {target} HTTP/1.1\r\nHost: {host}:{origin.port}\r\n")


def test_fetch_sends_a_plain_request(listen: Listen) -> None:
    """Send the host's name, a User-Agent that can be set, identity encoding, and nothing that identifies anyone."""
    origin = listen(http_answer(PHOTO))
    fetch(origin, url="http://photos.test:PORT/a.jpg", fetch_user_agent="classifier (admin@photos.test)")
    assert set(origin.requests[0].strip().split("\r\n")) == {
        "GET /a.jpg HTTP/1.1",
        f"Host: photos.test:{origin.port}",
        "User-Agent: classifier (admin@photos.test)",
        "Accept: image/*, */*;q=0.1",
        "Accept-Encoding: identity",
    }


def test_environment_is_ignored(
    listen: Listen, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use no proxy and no credentials from the environment (S9)."""
    proxy = listen(host="127.0.0.2")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.2:{proxy.port}")
        monkeypatch.setenv(name.upper(), f"http://127.0.0.2:{proxy.port}")
    (tmp_path / ".netrc").write_text("machine photos.test login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for scheme, tls in (("http", None), ("https", server_tls(authority, "photos.test"))):
        origin = listen(http_answer(PHOTO), tls=tls)
        assert fetch(origin, url=f"{scheme}://photos.test:PORT/") == PHOTO
        assert "authorization" not in origin.requests[0].lower()
    assert proxy.connections == 0
