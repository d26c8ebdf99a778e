"""
Connections to addresses of somebody else's choosing, that must not reach what only we can reach
(spec/notifications-and-policy section 6).

A name is resolved once, every address is judged, and the connection goes to exactly an address that was judged: what
the name resolves to later does not matter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.web.client import URI, Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool
from twisted.web.iweb import IAgentEndpointFactory, IPolicyForHTTPS
from zope.interface import implementer

from identree.clients.http import Uncompressed
from identree.core.addresses import Network, forbidden

CONNECT_SECONDS = 10.0
# Addresses of one name that are tried.
MOST_ADDRESSES = 8

# Host name to addresses, as text, in the order in which they are to be tried.
Resolve = Callable[[str], Awaitable[Sequence[str]]]


class Denied(Exception):
    """No address that may be reached. The message names the host and why, not its addresses."""


class Guard:
    """
    :param resolve: of a name that is no address.
    :param allowed: special networks that may be reached all the same.
    """

    def __init__(self, resolve: Resolve, allowed: Sequence[Network] = ()) -> None:
        self._resolve = resolve
        self._allowed = tuple(allowed)

    async def addresses(self, host: str) -> tuple[str, ...]:
        """
        The addresses of a host that may be reached, judged.

        :raise Denied: there is none.
        """
        host = host.strip("[]")
        try:
            ip_address(host)
        except ValueError:
            found = list(await self._resolve(host))
        else:
            found = [host]
        if not found:
            raise Denied(f"{host} has no address")
        judged = [(address, forbidden(address, self._allowed)) for address in found]
        good = tuple(address for address, why in judged if not why)
        if not good:
            raise Denied(
                f"{host} is at a {judged[0][1]} address, which messages must not go to; "
                "see IDENTREE_NOTIFY_ALLOWED_NETWORKS"
            )
        return good[:MOST_ADDRESSES]


@implementer(IStreamClientEndpoint)
class GuardedEndpoint:
    """Connects to a host, at one of its addresses that may be reached."""

    def __init__(self, reactor: Any, guard: Guard, host: str, port: int) -> None:
        self._reactor = reactor
        self._guard = guard
        self._host = host
        self._port = port

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> Any:
        failure: Exception | None = None
        for address in await self._guard.addresses(self._host):
            kind = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
            try:
                return await kind(self._reactor, address, self._port, timeout=CONNECT_SECONDS).connect(factory)
            except Exception as e:
                failure = e
        assert failure is not None
        raise failure


@implementer(IAgentEndpointFactory)
class _Endpoints:
    def __init__(self, reactor: Any, guard: Guard, policy: IPolicyForHTTPS) -> None:
        self._reactor = reactor
        self._guard = guard
        self._policy = policy

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        host = uri.host.decode("ascii")
        endpoint = GuardedEndpoint(self._reactor, self._guard, host, uri.port)
        if uri.scheme == b"https":
            return wrapClientTLS(self._policy.creatorForNetloc(uri.host, uri.port), endpoint)
        return endpoint


def build_guarded_client(
    reactor: Any, guard: Guard, *, pool: HTTPConnectionPool | None = None, policy: IPolicyForHTTPS | None = None
) -> HTTPClient:
    """
    A treq client that goes through the guard. It reads no proxy variables, unpacks nothing, and its callers follow no
    redirect.

    :param policy: verifies certificates by the system's authorities when None.
    """
    factory = _Endpoints(reactor, guard, policy or BrowserLikePolicyForHTTPS())
    return HTTPClient(Uncompressed(Agent.usingEndpointFactory(reactor, factory, pool=pool)))
