"""The LDAP server: which connections there are, how many there may be, and what concerns all of them."""

from __future__ import annotations

from itertools import count
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.logger import Logger

from identree.app.metrics import Metrics
from identree.core.addresses import throttle_key
from identree.ldap.connection import Common, LdapConnection

# Connections that registry_changed looks at before it lets others work; about 1 µs each.
RECHECKED_AT_ONCE = 2000


class _Refused(Protocol):
    """A connection too many: over before it began. Behind TLS too, where a factory must give some protocol."""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()


class LdapFactory(ServerFactory):
    """
    For both listeners, so that the bounds hold for them together; behind ``TLSMemoryBIOFactory`` for LDAPS.

    :param max_connections, max_per_address: at a time. Of IPv6 a /64 network is an address.
    """

    noisy = False
    _log = Logger()

    def __init__(self, common: Common, *, max_connections: int, max_per_address: int) -> None:
        self._common = common
        self._max_connections, self._max_per_address = max_connections, max_per_address
        self._numbers = count(1)
        self._connections: set[LdapConnection] = set()
        self._of_address: dict[str, int] = {}
        self._closing: Deferred[None] | None = None
        self._metrics: Metrics = common.metrics
        self._metrics.ldap_connections_limit.set(max_connections)
        self._metrics.ldap_connections.set_function(lambda: len(self._connections))

    def __len__(self) -> int:
        return len(self._connections)

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        address = str(getattr(addr, "host", ""))
        key = throttle_key(address)
        if self._closing is not None:
            return _Refused()
        if len(self._connections) >= self._max_connections:
            return self._too_many("connections")
        if self._of_address.get(key, 0) >= self._max_per_address:
            return self._too_many("address")
        connection = LdapConnection(self._common, next(self._numbers), address, lambda lost: self._lost(lost, key))
        connection.factory = self
        self._connections.add(connection)
        self._of_address[key] = self._of_address.get(key, 0) + 1
        return connection

    def _too_many(self, reason: str) -> Protocol:
        self._metrics.ldap_refused.labels(reason).inc()
        return _Refused()

    def _lost(self, connection: LdapConnection, key: str) -> None:
        self._connections.discard(connection)
        left = self._of_address[key] - 1
        if left:
            self._of_address[key] = left
        else:
            del self._of_address[key]
        if self._closing is not None and not self._connections and not self._closing.called:
            self._closing.callback(None)

    def snapshot_changed(self) -> None:
        """Another snapshot is served: what hosts may see is looked at anew, and old paged searches end some time."""
        self._common.epoch = object()
        self._common.searcher.renew()
        self._common.cursors.snapshot_changed()
        self._free()

    def _free(self) -> None:
        if self._common.searcher.free():
            self._common.turns.add(self._free)

    def registry_changed(self) -> None:
        """
        The host registry, or a setting about who may bind, has changed. Connections of hosts that are no longer let in
        are cut now; each would be at its next request.
        """
        self._common.epoch = object()
        self._recheck([connection for connection in self._connections if connection.hostname])

    def certificates_changed(self) -> None:
        """Time has passed, or a revocation list has changed: connections whose certificate no longer counts are cut."""
        self._recheck(list(self._connections))

    def _recheck(self, connections: list[LdapConnection]) -> None:
        for connection in connections[:RECHECKED_AT_ONCE]:
            connection.recheck()
        rest = connections[RECHECKED_AT_ONCE:]
        if rest:
            self._common.turns.add(lambda: self._recheck(rest))

    def close(self) -> Deferred[None]:
        """
        The server stops: every connection is told so and closed. Fires when all are gone, at the latest after the time
        that connections have for their last answers.
        """
        if self._closing is None:
            self._closing = Deferred()
            self._common.tally.flush()
            if not self._connections:
                self._closing.callback(None)
            for connection in list(self._connections):
                connection.shut_down()
        done: Deferred[None] = Deferred()

        def over(result: None) -> None:
            done.callback(None)

        self._closing.addCallback(over)
        return done
