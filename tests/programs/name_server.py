"""A DNS server for one name; a test changes its addresses while it runs."""

from __future__ import annotations

from typing import Self

from dnslib import QTYPE, RCODE, RR, A, DNSRecord
from dnslib.server import DNSHandler, DNSLogger, DNSServer

TTL_S = 5  # as a cluster's DNS has for a Service. Source: CoreDNS, plugin kubernetes


class NameServer:
    """Answers for any name with the same addresses, on a free port of the loopback address."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.asked = 0
        self._server = DNSServer(self, address="127.0.0.1", port=0, logger=DNSLogger("-request,-reply,-truncated"))

    def __enter__(self) -> Self:
        self._server.start_thread()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.server.shutdown()
        self._server.server.server_close()

    def target(self, port: int) -> str:
        """Return what makes gRPC ask this server, and connect to that port of each address."""
        return f"dns://127.0.0.1:{self._server.server.server_address[1]}/model.test:{port}"

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:
        """Answer one question; without addresses there is no such name, as for a Service while no Pod is ready."""
        reply = request.reply()
        if not self.addresses:
            reply.header.rcode = RCODE.NXDOMAIN
        if request.q.qtype == QTYPE.A:
            self.asked += 1
            for address in self.addresses:
                reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(address), ttl=TTL_S))
        return reply
