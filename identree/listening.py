"""
Where the servers listen: plain, or TLS from certificate and key files (spec/http-api section 2.1, spec/ldap section
8.1), and what to tell an operator when one cannot.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.application import strports
from twisted.application.service import IService
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.error import CannotListenError
from twisted.protocols.tls import TLSMemoryBIOFactory

from identree.app.authority import Authority, InThread, trusted
from identree.app.ports import Monotonic, Now
from identree.app.provision import serves_ldaps
from identree.core.errors import StorageUnavailable
from identree.ldap.tls import ClientAuth, ServerTLS, TLSFiles
from identree.settings.values import Settings


def listener(settings: Settings, site: Any, reactor: Any, tls: ServerTLS | None = None) -> IService:
    """
    A service that accepts connections for ``site``; a busy port stops its start.

    :param tls: what :func:`web_tls` returns; None serves plain HTTP.
    """
    if settings.serves_tls and tls is None:
        raise ValueError("there are certificate files, but nothing to make TLS connections from")
    return listening(settings.listen_addr, settings.listen_backlog, site, reactor, tls)


def listening(address: str, backlog: int, factory: Any, reactor: Any, tls: ServerTLS | None = None) -> IService:
    """
    A service that accepts connections for ``factory``, of LDAP as of HTTP; a busy port stops its start.

    :param address: ``host:port``, where the host may be empty.
    """
    wrapped = factory if tls is None else TLSMemoryBIOFactory(tls, False, factory, reactor)
    service: IService = strports.service(endpoint(address, backlog), wrapped, reactor)
    return service


def web_tls(
    settings: Settings, authority: Authority | None, *, in_thread: InThread, now: Now, monotonic: Monotonic
) -> ServerTLS | None:
    """
    What HTTPS connections are made from; None when identree does not serve TLS itself. With mTLS, hosts may show a
    certificate of our CA: browsers need none, but a bad one is refused.

    :raise ValueError: certificate or key cannot be used; the text names the setting and what to do.
    """
    if not settings.serves_tls:
        return None
    return ServerTLS(
        "HTTPS",
        TLSFiles(
            certificate=settings.tls_cert_file,
            key=settings.tls_key_file,
            crl=settings.mtls_crl_file if authority else "",
        ),
        client_auth=ClientAuth.OPTIONAL if authority else ClientAuth.NONE,
        authorities=(lambda: authority.certificates) if authority else tuple,
        protocols=(b"http/1.1",),
        in_thread=in_thread,
        now=now,
        monotonic=monotonic,
    )


def ldap_tls(
    settings: Settings,
    authority: Authority | None,
    *,
    refused: Callable[[str], None],
    in_thread: InThread,
    now: Now,
    monotonic: Monotonic,
) -> ServerTLS | None:
    """
    What LDAPS and StartTLS connections are made from; None when there is no certificate, or no CA while clients must
    show a certificate: then there is neither LDAPS nor StartTLS. Clients' certificates must be of the CA that
    ``IDENTREE_LDAP_TLS_CA_CERT`` names, or of our own.

    With a CA of our own only its certificates say which host it is: the named one is then what hosts trust the server
    by, perhaps a public one, and everybody it certifies could otherwise be any host.

    :param refused: told the reason of each refused handshake.
    :raise ValueError: a file or text cannot be used; it names the setting and what to do.
    """
    named = trusted(settings.ldap_tls_ca_cert) if settings.ldap_tls_ca_cert else None
    if not serves_ldaps(settings):
        return None
    text = named.certificates if named and not named.path else ()
    return ServerTLS(
        "LDAPS",
        TLSFiles(
            certificate=settings.tls_cert_file,
            key=settings.tls_key_file,
            ca=named.path if named else "",
            crl=settings.mtls_crl_file if authority or named else "",
        ),
        client_auth=ClientAuth(settings.ldap_tls_client_auth),
        authorities=lambda: (*(authority.certificates if authority else ()), *text),
        identifying=(lambda: authority.certificates) if authority else None,
        refused=refused,
        in_thread=in_thread,
        now=now,
        monotonic=monotonic,
    )


def endpoint(address: str, backlog: int) -> str:
    """A listen address as a Twisted endpoint description."""
    host, _, port = address.rpartition(":")
    interface = quoteStringArgument(host.strip("[]") or every_address())
    return f"tcp:{port}:backlog={backlog}:interface={interface}"


def every_address() -> str:
    """IPv6 with IPv4 in it; only IPv4 where the system has no IPv6."""
    try:
        with socket.socket(socket.AF_INET6):
            return "::"
    except OSError:
        return "0.0.0.0"  # noqa: S104 - an empty host in the setting asks for it


def remedy(problem: BaseException | None, setting: str = "IDENTREE_LISTEN_ADDR") -> str:
    """
    A start that failed, in words that say what to do.

    :param setting: the one that names the address.
    """
    if isinstance(problem, CannotListenError):
        advice = (
            "A port below 1024 needs the capability CAP_NET_BIND_SERVICE; give it,"
            if isinstance(problem.socketError, PermissionError)
            else "End what uses the address,"
        )
        address = f"{problem.interface or '*'}:{problem.port}"
        return f"cannot listen on {address}: {_cause(problem)}. {advice} or set {setting}"
    if isinstance(problem, StorageUnavailable):
        return (
            f"the database cannot be used ({problem}). Check IDENTREE_DATABASE_DSN: the server or directory that it "
            "names must exist, and the user that identree runs as must be allowed to read and write there"
        )
    return str(problem) or type(problem).__name__


def _cause(problem: CannotListenError) -> str:
    error = problem.socketError
    return getattr(error, "strerror", None) or str(error)
