"""Reads a URL, strictly and once: its scheme, host, port and target."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import quote

import idna

from gateway.errors import BadRequest, UrlNotAllowed

Address = IPv4Address | IPv6Address
Host = str | Address
"""A host in a URL or a list: a lower-case ASCII name, or an address."""

MAX_URL_CHARACTERS = 2048
DEFAULT_PORTS = {"http": 80, "https": 443}

# A backslash before the path is refused: parsers see different hosts then.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#\\]*)((?:[/?][^#]*)?)(?:#.*)?")
_FORBIDDEN = re.compile("[\0-\x1f\x7f\ud800-\udfff]")  # control characters, and halves of others
# What stays as it is, beside letters and digits; the rest is percent-encoded. Source: WHATWG URL, percent-encode sets.
_IN_PATH, _IN_QUERY = "!$%&'()*+,-./:;=@[]_|~", "!$%&()*+,-./:;=?@[\\]^_`{|}~"
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]+)(?::([0-9]{1,5}))?")
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
# What resolvers read as a number, as a whole or in the last part. Source: WHATWG URL, "ends in a number".
_ENDS_IN_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")


@dataclass(frozen=True)
class Url:
    """The parts of an http or https URL; the target is its path and query, in ASCII."""

    scheme: str
    host: Host
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and port, as an entry of the lists."""
        return f"[{self.host}]:{self.port}" if isinstance(self.host, IPv6Address) else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def parse_url(text: str) -> Url:
    """Read a URL strictly, and only here: a second parser could see another host in it.

    As in a browser, spaces around it do not count, and paths, queries and host names may have any characters. Unlike in
    a browser, tabs and line breaks inside, user info, and addresses in disguise are refused.

    Raises:
        BadRequest: The text is not a URL.
        UrlNotAllowed: It has another scheme or user info, or its host is an address in disguise.
    """
    text = checked_characters(text)
    shown = re.split("[?#]", text)[0][:100]  # the rest may be a signature, which no log should have
    match = _URL.fullmatch(text)
    if match is None:
        raise BadRequest(f"Expected an http or https URL. Received: {shown!r}.")
    scheme, authority, target = match[1].lower(), match[2], match[3]
    if scheme not in DEFAULT_PORTS:
        raise UrlNotAllowed(f"Expected an http or https URL. Received: {shown!r}.")
    if "@" in authority:
        raise UrlNotAllowed("Expected a URL without user name and password. Received: one that has them.")
    try:
        host, port = parse_authority(authority, DEFAULT_PORTS[scheme])
    except ValueError as exc:
        raise UrlNotAllowed(
            "Expected a host name, a dotted quad or an IPv6 address in brackets, and a port from 1 to 65535 if any. "
            f"Received: {authority[:100]!r}."
        ) from exc
    path, mark, query = target.partition("?")
    path = quote(path.replace("\\", "/") or "/", safe=_IN_PATH)
    return Url(scheme, host, port, path + mark + quote(query, safe=_IN_QUERY))


def checked_characters(text: str) -> str:
    """Return the text without spaces around it; raise BadRequest if it is too long, or has control characters."""
    text = text.strip(" \t\r\n\f")
    if len(text) > MAX_URL_CHARACTERS:
        raise BadRequest(f"Expected a URL of at most {MAX_URL_CHARACTERS} characters. Received: {len(text)}.")
    if found := _FORBIDDEN.search(text):
        raise BadRequest(
            f"Expected a URL without tabs, line breaks and control characters. Received: one with {found[0]!r}."
        )
    return text


def parse_authority(text: str, default_port: int | None = None) -> tuple[Host, int]:
    """Read `host:port`, strictly and in one canonical form.

    Args:
        text: A host name (converted by IDNA), a dotted quad or an IPv6 address in brackets, with a port.
        default_port: The port if the text names none; None if it must name one.

    Raises:
        ValueError: The text does not have that form, or is an address in disguise.
    """
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise ValueError("Expected a host name or an address, and a port from 1 to 65535")
    port = int(match[2]) if match[2] else default_port
    if port is None or not 1 <= port <= 65535:
        raise ValueError("Expected a port from 1 to 65535")
    return _parse_host(match[1]), port


def _parse_host(text: str) -> Host:
    if text.startswith("["):
        if "%" in text:
            raise ValueError("Expected an IPv6 address without a zone")
        return IPv6Address(text[1:-1])
    labels = idna.uts46_remap(text, std3_rules=False).removesuffix(".").split(".")
    name = ".".join(each if each.isascii() else f"xn--{each.encode('punycode').decode()}" for each in labels)
    if not _NAME.fullmatch(name):
        raise ValueError("Expected a host name of letters, digits, hyphens and dots")
    if not _ENDS_IN_NUMBER.fullmatch(name):
        return name
    # 127.1, 0177.0.0.1, 2130706433 and full-width digits all mean 127.0.0.1 to some resolver: one form is enough.
    if text.isascii():
        return IPv4Address(name)
    raise ValueError("Expected ASCII digits in an address")
