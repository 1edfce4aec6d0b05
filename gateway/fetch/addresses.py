"""Which addresses are public, and the lists that open or close more."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network

from gateway.fetch.urls import Address, Host, parse_authority

Network = IPv4Network | IPv6Network


# Networks that are not public, and why: what they are for, and the document that says so. Narrow rows come first, so
# that a reason is as exact as possible. The standard library's is_global and is_private differ from this, and between
# patch releases of Python.
# Source: IANA IPv4 and IPv6 Special-Purpose Address Registries as of August 2026. Not in those registries: multicast,
# the deprecated IPv6 forms, and Azure's host address. Networks that they mark as globally reachable inside a refused
# one (192.0.0.9, ORCHIDv2 ...) stay refused: no image is there.
REFUSED = {
    ip_network(network): f"{name} ({network}, {source})"
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
}
# Where clouds hand out credentials, and the rest of link-local: nobody is asked to open these. Sources: the clouds'
# pages on metadata, of AWS (fd00:ec2::), Google (fd20:ce::254), Oracle (192.0.0.192, fd00:c1::a9fe:a9fe), Alibaba
# (100.100.100.200) and Azure (168.63.129.16).
_METADATA = tuple(
    ip_network(network)
    for network in (
        *("169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32"),
        *("fe80::/10", "fd00:ec2::/32", "fd20:ce::254/128", "fd00:c1::a9fe:a9fe/128"),
    )
)
# Source: IANA Internet Protocol Version 6 Address Space; all the rest is reserved or special.
_GLOBAL_UNICAST = IPv6Network("2000::/3")

# IPv6 networks whose addresses end in an IPv4 address.
_ENDS_IN_IPV4 = tuple(
    IPv6Network(network) for network in ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
)
# ISATAP interface identifiers: 0000:5efe and an IPv4 address; the mask leaves out the u and g bits. Source: RFC 5214.
_ISATAP, _ISATAP_MASK = 0x0000_5EFE, 0xFCFF_FFFF


def refusal(address: Address) -> str | None:
    """Return why an address is not public, or None if it is."""
    for network, reason in REFUSED.items():
        if address in network:
            return reason
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return f"outside global unicast ({_GLOBAL_UNICAST}, RFC 4291)"
    for inner in embedded_ipv4(address):
        if why := refusal(inner):
            return f"a carrier of {inner}, {why}"
    return None


def is_metadata(address: Address) -> bool:
    """Tell whether an address is link-local, or one of those where clouds hand out credentials."""
    return any(address in network for network in _METADATA)


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
class AllowList:
    """A list of destinations, by `host:port` or by network; a deny list is written the same way.

    Attributes:
        hosts: Hosts with a port, as in a URL, whatever they resolve to.
        networks: Networks, on any port.
    """

    hosts: frozenset[tuple[Host, int]] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> AllowList:
        """Read entries separated by commas, such as `localhost:8000, [::1]:8080, 10.1.0.0/16`.

        Raises:
            ValueError: Some entries are neither; the message lists them all.
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
        """Tell whether this host and port is an entry."""
        return (host, port) in self.hosts

    def has_address(self, address: Address) -> bool:
        """Tell whether one of the networks contains the address."""
        return any(address in network for network in self.networks)

    def refusal(self, address: Address) -> str | None:
        """Return why an address is closed, or None if it is public or this list opens it.

        If a network is as wide as all of IPv4, as NAT64's is, the address inside must be open itself.
        """
        networks = [network for network in self.networks if address in network]
        if not networks:
            return refusal(address)
        if any(network.prefixlen > 96 for network in networks):
            return None
        reasons = (refusal(inner) for inner in self.inside(address) if not self.has_address(inner))
        return next(filter(None, reasons), None)

    def inside(self, address: Address) -> list[IPv4Address]:
        """Return the IPv4 addresses that one leads to; a /96 of this list may be NAT64's (RFC 6052)."""
        found = embedded_ipv4(address)
        if any(address in network and network.prefixlen == 96 for network in self.networks):
            found.append(IPv4Address(int(address) & 0xFFFF_FFFF))
        return found
