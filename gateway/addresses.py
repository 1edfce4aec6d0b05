"""Which URLs a fetch may follow: how one is read, which addresses are public, and the lists that change it."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import NamedTuple
from urllib.parse import quote

import idna

from gateway.errors import BadRequest, UrlNotAllowed

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Host = str | Address
"""A host as a URL or a list names it: a lower-case ASCII name, or an address written as such."""

MAX_URL_CHARACTERS = 2048
DEFAULT_PORTS = {"http": 80, "https": 443}


class Row(NamedTuple):
    """One refused network, what it is for and who says so."""

    network: Network
    name: str
    source: str


# Networks that are not public, narrow rows first so that a reason is as exact as it can be. The standard library's
# is_global and is_private differ from this, and between patch releases of Python.
# Source: IANA IPv4 and IPv6 Special-Purpose Address Registries as of August 2026, and beside them multicast, the
# deprecated IPv6 forms and Azure's host address, which those registries do not hold. Networks that they mark as
# globally reachable inside a refused one (192.0.0.9, ORCHIDv2 ...) stay refused: no image lives there.
REFUSED = tuple(
    Row(ip_network(network), name, source)
    for network, name, source in (
        ("0.0.0.0/8", "this network", "RFC 791"),
        ("10.0.0.0/8", "private", "RFC 1918"),
        ("100.64.0.0/10", "shared address space", "RFC 6598"),
        ("127.0.0.0/8", "loopback", "RFC 1122"),
        ("168.63.129.16/32", "the Azure host", "Microsoft Learn: What is IP address 168.63.129.16?"),
        ("169.254.0.0/16", "link-local and cloud metadata", "RFC 3927"),
        ("172.16.0.0/12", "private", "RFC 1918"),
        ("192.0.0.0/24", "IETF protocol assignments", "RFC 6890"),
        ("192.0.2.0/24", "documentation", "RFC 5737"),
        ("192.88.99.0/24", "6to4 relay anycast", "RFC 7526"),
        ("192.168.0.0/16", "private", "RFC 1918"),
        ("198.18.0.0/15", "benchmarking", "RFC 2544"),
        ("198.51.100.0/24", "documentation", "RFC 5737"),
        ("203.0.113.0/24", "documentation", "RFC 5737"),
        ("224.0.0.0/4", "multicast", "RFC 5771"),
        ("255.255.255.255/32", "broadcast", "RFC 919"),
        ("240.0.0.0/4", "reserved", "RFC 1112"),
        ("::/128", "unspecified", "RFC 4291"),
        ("::1/128", "loopback", "RFC 4291"),
        ("::/96", "IPv4-compatible", "RFC 4291"),
        ("::ffff:0:0/96", "IPv4-mapped", "RFC 4291"),
        ("::ffff:0:0:0/96", "IPv4-translated", "RFC 2765"),
        ("64:ff9b::/96", "NAT64", "RFC 6052"),
        ("64:ff9b:1::/48", "local NAT64", "RFC 8215"),
        ("100::/64", "discard-only", "RFC 6666"),
        ("100:0:0:1::/64", "dummy prefix", "RFC 9780"),
        ("2001::/32", "Teredo", "RFC 4380"),
        ("2001::/23", "IETF protocol assignments", "RFC 2928"),
        ("2001:db8::/32", "documentation", "RFC 3849"),
        ("2002::/16", "6to4", "RFC 3056"),
        ("3fff::/20", "documentation", "RFC 9637"),
        ("5f00::/16", "segment routing", "RFC 9602"),
        ("fc00::/7", "unique local", "RFC 4193"),
        ("fe80::/10", "link-local", "RFC 4291"),
        ("fec0::/10", "site-local", "RFC 3879"),
        ("ff00::/8", "multicast", "RFC 4291"),
    )
)
# Source: IANA Internet Protocol Version 6 Address Space; everything outside is reserved or special.
_GLOBAL_UNICAST = IPv6Network("2000::/3")

# IPv6 networks whose addresses end in an IPv4 address.
_ENDS_IN_IPV4 = tuple(
    IPv6Network(network) for network in ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
)
# ISATAP interface identifiers: 0000:5efe and an IPv4 address; the mask leaves out the u and g bits. Source: RFC 5214.
_ISATAP, _ISATAP_MASK = 0x0000_5EFE, 0xFCFF_FFFF

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)(?:#.*)?")
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]+)(?::([0-9]{1,5}))?")
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
# What resolvers read as a number, in whole or in its last part. Source: WHATWG URL, "ends in a number".
_ENDS_IN_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")


def refusal(address: Address) -> str | None:
    """Say why an address is not public, or return None if it is."""
    for row in REFUSED:
        if address in row.network:
            return f"{row.name} ({row.network}, {row.source})"
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return f"outside global unicast ({_GLOBAL_UNICAST}, RFC 4291)"
    for inner in embedded_ipv4(address):
        if reason := refusal(inner):
            return f"a carrier of {inner}, {reason}"
    return None


def embedded_ipv4(address: Address) -> list[IPv4Address]:
    """Return the IPv4 addresses that an IPv6 address carries, where packets for it may end up."""
    if isinstance(address, IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    is_isatap = (int(address) >> 32) & _ISATAP_MASK == _ISATAP
    if is_isatap or any(address in network for network in _ENDS_IN_IPV4):
        found.append(IPv4Address(int(address) & 0xFFFF_FFFF))
    return [inner for inner in found if inner is not None]


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
    """Read a URL strictly, the only time that it is read: a second parser could see another host in it.

    Raises:
        BadRequest: The text is not a URL.
        UrlNotAllowed: Its scheme is another, it holds user info, or its host is an address in disguise.
    """
    match = _URL.fullmatch(checked_characters(text))
    if match is None:
        raise BadRequest(f"Expected an http or https URL. Received: {text[:100]!r}.")
    scheme, authority, target = match[1].lower(), match[2], match[3]
    if scheme not in DEFAULT_PORTS:
        raise UrlNotAllowed(f"Expected an http or https URL. Received: {text[:100]!r}.")
    if "@" in authority:
        raise UrlNotAllowed("Expected a URL without user name and password. Received: one with.")
    try:
        host, port = parse_authority(authority, DEFAULT_PORTS[scheme])
    except ValueError as exc:
        raise UrlNotAllowed(
            "Expected a host name, a dotted quad or an IPv6 address in brackets, and a port from 1 to 65535 if any. "
            f"Received: {authority[:100]!r}."
        ) from exc
    if not target.startswith("/"):
        target = f"/{target}"
    return Url(scheme, host, port, quote(target, safe=string.punctuation))


def checked_characters(text: str) -> str:
    """Return the text if it has the length and the characters of a URL, or raise BadRequest."""
    if len(text) > MAX_URL_CHARACTERS:
        raise BadRequest(f"Expected a URL of at most {MAX_URL_CHARACTERS} characters. Received: {len(text)}.")
    if not text.isprintable() or " " in text or "\\" in text:
        raise BadRequest("Expected a URL without white space, control characters and backslashes. Received: one with.")
    return text


def parse_authority(text: str, default_port: int | None = None) -> tuple[Host, int]:
    """Read `host:port`, strictly and in one canonical form.

    Args:
        text: A host name (converted by IDNA), a dotted quad or an IPv6 address in brackets, with a port.
        default_port: The port where the text names none; None where it must.

    Raises:
        ValueError: The text is not of that form, or is an address in disguise.
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
    name = text.lower() if text.isascii() else idna.encode(text, uts46=True, std3_rules=True).decode("ascii")
    name = name.removesuffix(".")
    if not _NAME.fullmatch(name):
        raise ValueError("Expected a host name of letters, digits, hyphens and dots")
    if not _ENDS_IN_NUMBER.fullmatch(name):
        return name
    # 127.1, 0177.0.0.1, 2130706433 and full-width digits all mean 127.0.0.1 to some resolver: one form is enough.
    if text.isascii():
        return IPv4Address(name)
    raise ValueError("Expected ASCII digits in an address")


@dataclass(frozen=True)
class AllowList:
    """Destinations named by `host:port` or by network; a deny list is written the same way.

    Attributes:
        hosts: Hosts with a port, as a URL names them, whatever they resolve to.
        networks: Networks, on any port.
    """

    hosts: frozenset[tuple[Host, int]] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> AllowList:
        """Read entries separated by commas, such as `localhost:8000, [::1]:8080, 10.1.0.0/16`.

        Raises:
            ValueError: Some entries are neither; the message names them all.
        """
        hosts: list[tuple[Host, int]] = []
        networks: list[Network] = []
        bad: list[str] = []
        for entry in filter(None, map(str.strip, text.split(","))):
            try:
                if "/" in entry:
                    networks.append(ip_network(entry))
                else:
                    hosts.append(parse_authority(entry))
            except ValueError:
                bad.append(repr(entry))
        if bad:
            raise ValueError(
                "Expected host:port (localhost:8000, [::1]:8080) or a network (10.1.0.0/16, fd00::/8), separated by "
                f"commas. Received: {', '.join(bad)}."
            )
        return cls(frozenset(hosts), tuple(networks))

    def has_host(self, host: Host, port: int) -> bool:
        """Tell whether this very host and port is an entry."""
        return (host, port) in self.hosts

    def has_address(self, address: Address) -> bool:
        """Tell whether one of the networks holds the address."""
        return any(address in network for network in self.networks)

    def refusal(self, address: Address) -> str | None:
        """Return why an address is closed that this list does not open, or None.

        Where a network is as wide as all of IPv4, as NAT64's is, the address inside must be open by itself.
        """
        networks = [network for network in self.networks if address in network]
        if not networks:
            return refusal(address)
        if any(network.prefixlen > 96 for network in networks):
            return None
        reasons = (refusal(inner) for inner in embedded_ipv4(address) if not self.has_address(inner))
        return next(filter(None, reasons), None)
