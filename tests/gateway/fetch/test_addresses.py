"""The table of addresses that are not public, and the lists that open and close more."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from ssrfguard import DEFAULT_DENIED

from gateway.fetch.addresses import REFUSED, Address, AllowList, Network, embedded_ipv4, refusal

# The rows, each with the addresses just outside of it, and whether those are public. Written by hand, so that a slip
# in a row of the table shows.
NEIGHBOURS = {
    "0.0.0.0/8": [("1.0.0.0", True)],
    "10.0.0.0/8": [("9.255.255.255", True), ("11.0.0.0", True)],
    "100.64.0.0/10": [("100.63.255.255", True), ("100.128.0.0", True)],
    "127.0.0.0/8": [("126.255.255.255", True), ("128.0.0.0", True)],
    "168.63.129.16/32": [("168.63.129.15", True), ("168.63.129.17", True)],
    "169.254.0.0/16": [("169.253.255.255", True), ("169.255.0.0", True)],
    "172.16.0.0/12": [("172.15.255.255", True), ("172.32.0.0", True)],
    "192.0.0.0/24": [("191.255.255.255", True), ("192.0.1.0", True)],
    "192.0.2.0/24": [("192.0.1.255", True), ("192.0.3.0", True)],
    "192.88.99.0/24": [("192.88.98.255", True), ("192.88.100.0", True)],
    "192.168.0.0/16": [("192.167.255.255", True), ("192.169.0.0", True)],
    "198.18.0.0/15": [("198.17.255.255", True), ("198.20.0.0", True)],
    "198.51.100.0/24": [("198.51.99.255", True), ("198.51.101.0", True)],
    "203.0.113.0/24": [("203.0.112.255", True), ("203.0.114.0", True)],
    "224.0.0.0/4": [("223.255.255.255", True), ("240.0.0.0", False)],
    "240.0.0.0/4": [("239.255.255.255", False)],
    "255.255.255.255/32": [("255.255.255.254", False)],
    "::/128": [("::1", False)],
    "::1/128": [("::", False), ("::2", False)],
    "::/96": [("::1:0:0", False)],
    "::ffff:0:0/96": [("::fffe:ffff:ffff", False), ("::1:0:0:0", False)],
    "::ffff:0:0:0/96": [("::fffe:ffff:ffff:ffff", False), ("::ffff:1:0:0", False)],
    "64:ff9b::/96": [("64:ff9a:ffff::", False), ("64:ff9b::1:0:0", False)],
    "64:ff9b:1::/48": [("64:ff9b:0:ffff::", False), ("64:ff9b:2::", False)],
    "100::/64": [("ff:ffff::", False), ("100:0:0:2::", False)],
    "100:0:0:1::/64": [("100:0:0:2::", False)],
    "2001::/32": [("2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", True), ("2001:1::", False)],
    "2001::/23": [("2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", True), ("2001:200::", True)],
    "2001:db8::/32": [("2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", True), ("2001:db9::", True)],
    "2002::/16": [("2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", True), ("2003::", True)],
    "3fff::/20": [("3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", True), ("3fff:1000::", True)],
    "5f00::/16": [("5eff:ffff::", False), ("5f01::", False)],
    "fc00::/7": [("fbff:ffff::", False), ("fe00::", False)],
    "fe80::/10": [("fe7f:ffff::", False), ("fec0::", False)],
    "fec0::/10": [("febf:ffff::", False), ("ff00::", False)],
    "ff00::/8": [("feff:ffff::", False)],
}

PUBLIC_V4, PRIVATE_V4 = "8.8.8.8", "10.0.0.1"
CARRIERS = {
    "mapped": "::ffff:{v4}",
    "compatible": "::{v4}",
    "translated": "::ffff:0:{v4}",
    "NAT64": "64:ff9b::{v4}",
    "local NAT64": "64:ff9b:1::{v4}",
    "6to4": "2002:{high:x}:{low:x}::1",
    "Teredo server": "2001:0:{high:x}:{low:x}::",
    "Teredo client": "2001:0:808:808::{inverted_high:x}:{inverted_low:x}",
    "ISATAP": "2a00::5efe:{v4}",
    "ISATAP, universal": "2a00::200:5efe:{v4}",
}


def carrier(form: str, v4: str) -> IPv6Address:
    high, low = divmod(int(IPv4Address(v4)), 1 << 16)
    inverted = {"inverted_high": high ^ 0xFFFF, "inverted_low": low ^ 0xFFFF}
    return IPv6Address(form.format(v4=v4, high=high, low=low, **inverted))


def test_neighbours_are_complete() -> None:
    """Hold the list above to one entry for each row."""
    assert {ip_network(name) for name in NEIGHBOURS} == set(REFUSED)


@pytest.mark.parametrize("network", REFUSED, ids=str)
def test_row_is_refused_as_a_whole(network: Network) -> None:
    """Refuse the first, the last and an inner address of each row (S1)."""
    inside = network[network.num_addresses // 2]
    assert all(refusal(address) for address in (network[0], inside, network[-1]))


@pytest.mark.parametrize(
    ("address", "is_public"), [neighbour for neighbours in NEIGHBOURS.values() for neighbour in neighbours]
)
def test_row_ends_where_it_should(address: str, is_public: bool) -> None:
    """Leave the addresses just outside of each row to the other rows (S1)."""
    assert (refusal(ip_address(address)) is None) == is_public


@pytest.mark.parametrize("form", CARRIERS.values(), ids=CARRIERS)
def test_embedded_ipv4_is_found_and_refused(form: str) -> None:
    """Find the IPv4 address in every form that carries one, and refuse a private one (S2)."""
    address = carrier(form, PRIVATE_V4)
    assert IPv4Address(PRIVATE_V4) in embedded_ipv4(address)
    assert refusal(address)


@pytest.mark.parametrize(("name", "is_public"), [(name, name.startswith("ISATAP")) for name in CARRIERS])
def test_carriers_of_public_ipv4_are_refused_too(name: str, is_public: bool) -> None:
    """Refuse translated forms whatever they carry; only ISATAP's lie within global unicast (S2)."""
    assert (refusal(carrier(CARRIERS[name], PUBLIC_V4)) is None) == is_public


def test_zone_does_not_hide_an_address() -> None:
    """Judge an address with a zone as the one without."""
    assert refusal(ip_address("fe80::1%eth0"))
    assert refusal(ip_address("::1%lo"))


# Where ssrfguard 0.4.1 opens what we refuse, and why we do.
STRICTER = {
    "global unicast": "It knows rows only; we open IPv6 within 2000::/3 alone, as nothing else is assigned.",
    "translated": "It opens IPv6 forms of public IPv4 addresses; we refuse the forms, as images have plain addresses.",
    "anycast": "It opens what IANA marks as reachable inside 192.0.0.0/24 and 2001::/23; no image lives there.",
    "Azure": "It does not know Azure's host address.",
}


def stricter(address: Address) -> str | None:
    """Name the reason for which only we refuse an address, as a key of the table above."""
    reason = refusal(address) or ""
    if address.version == 6 and "outside global unicast" in reason:
        return "global unicast"
    forms = ("IPv4-mapped", "IPv4-compatible", "IPv4-translated", "NAT64", "6to4 (", "Teredo")
    if reason.startswith(forms) and address.version == 6:
        return "translated"
    if reason.startswith("IETF protocol assignments"):
        return "anycast"
    return "Azure" if str(address) == "168.63.129.16" else None


def test_table_agrees_with_ssrfguard() -> None:
    """Never open what a second, independent table refuses, and refuse more only for the reasons above."""
    generator = random.Random(7)
    networks = [*REFUSED, *(block.network for block in DEFAULT_DENIED.blocks)]
    addresses: set[Address] = {IPv4Address(generator.getrandbits(32)) for _ in range(5000)}
    addresses |= {IPv6Address(generator.getrandbits(128)) for _ in range(2000)}
    addresses |= {IPv6Address(1 << 125 | generator.getrandbits(125)) for _ in range(5000)}
    for network in networks:
        first, last = int(network[0]), int(network[-1])
        for value in (first - 1, first, last, last + 1, *(generator.randint(first, last) for _ in range(20))):
            if 0 <= value < 1 << network.max_prefixlen:
                addresses.add(type(network[0])(value))
    looser = [address for address in addresses if DEFAULT_DENIED.classify(address).blocked and not refusal(address)]
    only_ours = [address for address in addresses if refusal(address) and not DEFAULT_DENIED.classify(address).blocked]
    assert looser == []
    assert {stricter(address) for address in only_ours} == set(STRICTER)


def test_allow_list_reads_hosts_and_networks() -> None:
    """Read entries of both kinds in one canonical form."""
    listed = AllowList.parse(" LocalHost.:8000 ,[0::1]:8080, bücher.test:81,10.1.0.0/16,, fd00::/8,10.9.9.9/32")
    assert listed.hosts == {("localhost", 8000), (IPv6Address("::1"), 8080), ("xn--bcher-kva.test", 81)}
    assert [str(network) for network in listed.networks] == ["10.1.0.0/16", "fd00::/8", "10.9.9.9/32"]


@pytest.mark.parametrize(
    "entry",
    [
        *("localhost", "10.1.2.3", "::1", "::1:8080", "[::1]", "localhost:", "localhost:0", "localhost:65536"),
        *("localhost:http", "http://localhost:80", "*.test:80", "127.1:80", "me@photos.test:80", "[fe80::1%lo]:80"),
        *("10.1.2.3/16", "10.0.0.0/33", "fd00::1/8"),
    ],
)
def test_bad_entries_are_named(entry: str) -> None:
    """Refuse other entries and say what was expected."""
    with pytest.raises(ValueError, match=r"Expected host:port .* or a network .* Received: ") as refused:
        AllowList.parse(f"localhost:80,{entry}")
    assert str(refused.value).endswith(f"Received: {entry!r}.")


def test_all_bad_entries_are_named_at_once() -> None:
    """Name every bad entry, so that one start shows them all."""
    with pytest.raises(ValueError, match=r"Received: 'a', 'b/c'\."):
        AllowList.parse("a, localhost:80, b/c")


def test_allow_list_matches_exactly() -> None:
    """Match a host with its port only, and a network by its addresses only."""
    listed = AllowList.parse("photos.test:80, 10.1.0.0/16")
    assert listed.has_host("photos.test", 80)
    assert not listed.has_host("photos.test", 81)
    assert not listed.has_host("a.photos.test", 80)
    assert listed.has_address(IPv4Address("10.1.255.255"))
    assert not listed.has_address(IPv4Address("10.2.0.0"))
    assert not listed.has_address(IPv6Address("::ffff:10.1.0.1"))


@pytest.mark.parametrize("prefix", ["64:ff9b::", "fd64:ff9b::"])
@pytest.mark.parametrize(
    ("inside", "is_open"), [("808:808", True), ("a9fe:a9fe", False), ("7f00:1", False), ("a00:1", True)]
)
def test_what_an_allowed_network_carries_must_be_open(prefix: str, inside: str, is_open: bool) -> None:
    """Open NAT64, which leads to all of IPv4, no further than the rules for IPv4, also under a prefix of one's own."""
    rules = AllowList.parse(f"{prefix}/96, 10.0.0.0/8")
    assert (rules.refusal(IPv6Address(prefix + inside)) is None) is is_open
