"""
A TLS server and a client certificate, one step after the other: files, name, connection, the server's certificate,
ours. Each way in which it can go wrong is a finding of its own, for HTTPS and LDAPS alike.
"""

from __future__ import annotations

import os
import select
import socket
import ssl

from identree.agent import certificates
from identree.agent.certificates import NotACertificate, day
from identree.agent.config import ConfigError
from identree.agent.findings import FAIL
from identree.agent.text import clean
from identree.agent.wire import _tls_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from identree.agent.certificates import Certificate
    from identree.agent.findings import Findings

NAME_SECONDS = 6.0
CONNECT_SECONDS = 5.0
HANDSHAKE_SECONDS = 8.0
# A server that is not content says so at once.
ALERT_SECONDS = 3.0

# Watched certificates: so long before the end it is time to ask why nobody has renewed it.
SOON_SECONDS = 30 * 86400

MAX_ADDRESSES = 8

# OpenSSL's verification codes (x509_vfy.h).
_NOT_YET_VALID, _EXPIRED, _HOST_MISMATCH, _ADDRESS_MISMATCH = 9, 10, 62, 64
_SELF_SIGNED, _SELF_SIGNED_IN_CHAIN, _NO_ISSUER, _NO_ISSUER_AT_ALL, _BAD_SIGNATURE = 18, 19, 20, 21, 7


class Party:
    """
    Whom to speak to, and as whom.

    :ivar part: with which the names of the findings begin. :ivar host, port: where.
    :ivar ca: path of the CAs that are believed; empty for the system's. :ivar ca_key: the setting that names it.
    :ivar cert, key: paths of our certificate; empty for none. :ivar cert_keys: the settings that name them.
    :ivar server_ca: the setting of the server that names the CA of its clients.
    :ivar renew: the command that makes certificate and CA anew.
    """

    def __init__(
        self,
        part: str,
        host: str,
        port: int,
        *,
        ca: str,
        ca_key: str,
        cert: str,
        key: str,
        cert_keys: str,
        server_ca: str,
        renew: str,
    ) -> None:
        self.part, self.host, self.port = part, host, port
        self.ca, self.ca_key, self.cert, self.key, self.cert_keys = ca, ca_key, cert, key, cert_keys
        self.server_ca, self.renew = server_ca, renew

    @property
    def where(self) -> str:
        return f"{self.host}:{self.port}"


def resolve(findings: Findings, party: Party) -> list[tuple[int, str]]:
    """Family and address of the host's name; empty, with a finding, when it has none."""
    import _thread

    os.environ["RES_OPTIONS"] = "timeout:2 attempts:2"
    found: list[tuple[int, str]] = []
    errors: list[str] = []
    readable, writable = os.pipe()

    def look_up() -> None:
        try:
            for family, _, _, _, address in socket.getaddrinfo(party.host, party.port, 0, socket.SOCK_STREAM):
                found.append((family, str(address[0])))
        except (OSError, UnicodeError) as e:
            errors.append(getattr(e, "strerror", "") or "no name")
        finally:
            os.close(writable)

    _thread.start_new_thread(look_up, ())  # getaddrinfo knows no time limit
    try:
        done = bool(select.select([readable], [], [], NAME_SECONDS)[0])
    finally:
        os.close(readable)
    if done and found:
        findings.ok(f"{party.part}.dns", f"{party.host} is {', '.join(dict.fromkeys(a for _, a in found[:4]))}")
        return found[:MAX_ADDRESSES]
    problem = errors[0] if errors else "the name server does not answer"
    findings.fail(
        f"{party.part}.dns",
        f"{party.host} has no address: {problem}",
        "check the name, /etc/resolv.conf and the name server; or add the name to /etc/hosts",
    )
    return []


def connect(findings: Findings, party: Party, addresses: list[tuple[int, str]]) -> tuple[int, str] | None:
    """The first address that takes a connection; None, with a finding, when none does."""
    problems = []
    for family, address in addresses:
        try:
            open_at(family, address, party.port).close()
        except OSError as e:
            problems.append(f"{address}: {(e.strerror or str(e) or 'no answer').lower()}")
            continue
        if problems:
            findings.warn(
                f"{party.part}.tcp",
                f"{party.where} answers at {address}, but not at {'; '.join(problems)}",
                "take the dead address out of the name service, or repair it: every sudo tries it first",
            )
        else:
            findings.ok(f"{party.part}.tcp", f"{party.where} answers at {address}")
        return family, address
    findings.fail(
        f"{party.part}.tcp",
        f"{party.where} does not take connections ({'; '.join(problems)})",
        "check that the server runs and listens there, and the firewalls between",
    )
    return None


def open_at(family: int, address: str, port: int) -> socket.socket:
    """:raise OSError: nobody answers there."""
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(CONNECT_SECONDS)
        connection.connect((address, port))
        connection.settimeout(HANDSHAKE_SECONDS)
        return connection
    except BaseException:
        connection.close()
        raise


# Files


def examine_files(findings: Findings, party: Party, now: float) -> bool:
    """Our certificate, its key and the CA, as far as this host can judge them; whether a handshake can use them."""
    usable = _examine_ca(findings, party, now)
    if not (party.cert and party.key):
        if party.cert or party.key:
            findings.fail(
                f"{party.part}.files",
                f"only one of {party.cert_keys} is set; certificate and key go together",
                f"set both, or run: {party.renew}",
            )
            return False
        return usable
    try:
        own = certificates.read_file(party.cert)[0]
        _load(party)
    except (OSError, ValueError) as e:
        findings.fail(
            f"{party.part}.files",
            f"the client certificate {party.cert} with its key {party.key} cannot be used: {reason(e)}",
            f"check {party.cert_keys}, and that both files belong together; or run: {party.renew}",
        )
        return False
    examine_dates(
        findings, f"{party.part}.client-expired", f"the client certificate {party.cert}", own, now, party.renew
    )
    _examine_issuer(findings, party, own)
    return usable


def examine_dates(findings: Findings, id_: str, what: str, own: Certificate, now: float, renew: str) -> None:
    if own.not_after <= now:
        findings.fail(id_, f"{what} ended on {day(own.not_after)}: servers reject it in the handshake", f"run: {renew}")
    elif own.not_before > now:
        findings.fail(id_, f"{what} begins on {day(own.not_before)}", "set this host's clock right (NTP)")
    elif own.not_after - now < min(SOON_SECONDS, (own.not_after - own.not_before) / 3):
        findings.warn(id_, f"{what} ends soon, on {day(own.not_after)}", f"run: {renew}")
    else:
        findings.ok(id_, f"{what} is good until {day(own.not_after)}")


def _examine_ca(findings: Findings, party: Party, now: float) -> bool:
    if not party.ca:
        return True
    try:
        found = certificates.read_file(party.ca)
    except (OSError, NotACertificate) as e:
        findings.fail(
            f"{party.part}.ca-file",
            f"the CA file {party.ca} cannot be used: {reason(e)}",
            f"check {party.ca_key}; or run: {party.renew}",
        )
        return False
    ended = [each for each in found if each.not_after <= now]
    if len(ended) == len(found):
        findings.fail(
            f"{party.part}.ca-file",
            f"the CA in {party.ca} ended on {day(max(each.not_after for each in ended))}",
            f"get the server's present CA; then run: {party.renew}",
        )
    elif min(each.not_after for each in found if each not in ended) - now < SOON_SECONDS:
        findings.warn(
            f"{party.part}.ca-file",
            f"a CA in {party.ca} ends soon",
            f"plan the change of the CA at the server; afterwards, on every host: {party.renew}",
        )
    return True


def _examine_issuer(findings: Findings, party: Party, own: Certificate) -> None:
    """Whether our certificate comes from the CA beside it (``openssl verify -CAfile ca.crt client.crt``)."""
    # the CA of clients is the server's own; the one beside our certificate is the only one that this host knows
    ca = os.path.join(os.path.dirname(party.cert), "ca.crt")
    if not os.path.exists(ca):
        ca = party.ca
    if not ca:
        return
    try:
        wrong = certificates.refusal(party.cert, party.key, ca)
        issuers = certificates.read_file(ca)
    except (OSError, ValueError):
        return  # said elsewhere
    if not wrong or "expired" in wrong or "not yet valid" in wrong:
        if not wrong:
            findings.ok(f"{party.part}.client-ca", f"the client certificate was issued by the CA in {ca}")
        return
    if any(each.subject == own.issuer for each in issuers):
        findings.fail(
            f"{party.part}.ca-rotated",
            f"the client certificate was issued by an earlier CA than the one in {ca}, of the same name: {wrong}",
            f"after a change of the CA every host needs a new certificate; run: {party.renew}",
        )
    else:
        findings.fail(
            f"{party.part}.client-ca",
            f"the client certificate was not issued by the CA in {ca}: {wrong}",
            f"it must come from the very CA that the server names in {party.server_ca}; run: {party.renew}",
        )


def _load(party: Party) -> None:
    for path in (party.cert, party.key):
        certificates.check_usable(path)  # OpenSSL would wait for a pipe
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(party.cert, party.key, password=lambda: "")


# Handshakes


def examine_server(findings: Findings, party: Party, connected: Callable[[], socket.socket], now: float) -> bool:
    """
    The server's certificate, seen first without believing it, then as this host believes.

    :param connected: a new connection, ready for TLS.
    :return: whether it is believed.
    """
    seen, said = _look(party, connected)
    if seen is None and said == "not TLS":
        findings.fail(
            f"{party.part}.tls",
            f"{party.where} does not speak TLS",
            "check the port: an http:// or ldap:// service listens there; or switch TLS on at the server",
        )
        return False
    try:
        context = context_for(party)
    except ConfigError as e:
        findings.fail(f"{party.part}.tls", str(e), f"check {party.ca_key} and {party.cert_keys}")
        return False
    try:
        with context.wrap_socket(connected(), server_hostname=party.host) as secure:
            version = secure.version()
        findings.ok(f"{party.part}.server-certificate", f"the server proves to be {party.host} ({version})")
        if seen is not None:
            examine_dates(
                findings,
                f"{party.part}.server-expiry",
                "the server's certificate",
                seen,
                now,
                "the renewal of certificates at the server",
            )
        return True
    except ssl.SSLCertVerificationError as e:
        _untrusted(findings, party, e, seen)
    except ssl.SSLError as e:
        refused(findings, party, reason(e))
    except OSError as e:
        findings.fail(
            f"{party.part}.tls",
            f"the TLS handshake with {party.where} was cut off: {reason(e)}",
            "look into the server's log; a proxy or firewall between may do that, too",
        )
    return False


class _Files:
    """What of a configuration makes a TLS context."""

    def __init__(self, party: Party) -> None:
        self.ca_cert, self.client_cert, self.client_key = party.ca, party.cert, party.key


def context_for(party: Party) -> ssl.SSLContext:
    """As the agent itself makes it. :raise ConfigError: the files cannot be used."""
    return _tls_context(_Files(party))  # type: ignore[arg-type]


def _look(party: Party, connected: Callable[[], socket.socket]) -> tuple[Certificate | None, str]:
    """The server's certificate, believed or not; or what is there instead."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if party.cert and party.key:
        try:
            context.load_cert_chain(party.cert, party.key, password=lambda: "")
        except (OSError, ValueError):
            pass
    try:
        with context.wrap_socket(connected(), server_hostname=party.host) as secure:
            raw = secure.getpeercert(binary_form=True)
        return (certificates.Certificate(raw) if raw else None), ""
    except ssl.SSLError as e:
        plain = (e.reason or "") in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL")
        return None, "not TLS" if plain else reason(e)
    except (OSError, ValueError) as e:
        return None, reason(e)


def _untrusted(findings: Findings, party: Party, error: ssl.SSLCertVerificationError, seen: Certificate | None) -> None:
    part, code = party.part, error.verify_code
    believed = f"the CA in {party.ca}" if party.ca else "the system's authorities"
    if code in (_HOST_MISMATCH, _ADDRESS_MISMATCH):
        names = seen.whose() if seen is not None else "another"
        findings.fail(
            f"{part}.server-name",
            f"the server's certificate is for {names}, and not for {party.host}",
            f"use a name that is in the certificate, or issue one for {party.host} (as subjectAltName) at the server",
        )
    elif code == _EXPIRED:
        ended = f" on {day(seen.not_after)}" if seen is not None else ""
        findings.fail(
            f"{part}.server-expired",
            f"the server's certificate, or one above it, has ended{ended}",
            "renew it at the server; if it is good there, set this host's clock right",
        )
    elif code == _NOT_YET_VALID:
        findings.fail(
            f"{part}.server-expired",
            "the server's certificate is not valid yet by this host's clock",
            "set this host's clock right (NTP)",
        )
    else:
        own = " It is self-signed." if code in (_SELF_SIGNED, _SELF_SIGNED_IN_CHAIN) else ""
        rotated = (
            " A CA of that name is known here, but with another key: the CA was changed."
            if (code == _BAD_SIGNATURE or _known_issuer(party, seen))
            else ""
        )
        findings.fail(
            f"{part}.server-ca",
            f"the server's certificate does not come from {believed}: {error.verify_message}.{own}{rotated}",
            f"{party.ca_key} must name the CA that issued the server's certificate; or run: {party.renew}",
        )


def _known_issuer(party: Party, seen: Certificate | None) -> bool:
    if not party.ca or seen is None or seen.self_issued:
        return False
    try:
        return any(each.subject == seen.issuer for each in certificates.read_file(party.ca))
    except (OSError, NotACertificate):
        return False


def parting_word(party: Party, connected: Callable[[], socket.socket]) -> str:
    """
    The alert with which a server ends a connection whose handshake succeeded: in TLS 1.3 it judges our certificate
    only afterwards. Who writes meanwhile may get a reset in place of the alert, so here nothing is written.
    """
    try:
        with context_for(party).wrap_socket(connected(), server_hostname=party.host) as secure:
            secure.settimeout(ALERT_SECONDS)
            secure.recv(1)
    except ssl.SSLError as e:
        text = reason(e)
        return text if "alert" in text else ""
    except (OSError, ConfigError):
        pass
    return ""


# What servers say of client certificates they do not want; OpenSSL's names of the alerts (RFC 8446 section 6.2).
_REQUIRED = ("certificate required", "handshake failure", "peer did not return a certificate")
_UNKNOWN_CA = ("unknown ca",)
_ENDED = ("certificate expired",)
_BAD = ("bad certificate", "certificate unknown", "unsupported certificate", "certificate revoked", "access denied")


def refused(findings: Findings, party: Party, said: str) -> None:
    """The server has ended the connection with an alert. :param said: its name."""
    part, shown = party.part, bool(party.cert and party.key)
    text = said.lower()
    known = {each.id for each in findings.all if each.level == FAIL}
    if any(each in text for each in _UNKNOWN_CA):
        if {f"{part}.client-ca", f"{part}.ca-rotated"} & known:
            return  # found here already, with the same remedy
        findings.fail(
            f"{part}.client-ca",
            f"{party.where} does not know the CA of the client certificate",
            f"it must come from the very CA that the server names in {party.server_ca}, and after a change of the CA "
            f"every host needs a new one; run: {party.renew}",
        )
    elif any(each in text for each in _ENDED):
        if f"{part}.client-expired" in known:
            return
        findings.fail(
            f"{part}.client-expired",
            f"{party.where} says that the client certificate has ended",
            f"run: {party.renew}; if it is good by this host's clock, compare the clocks",
        )
    elif any(each in text for each in _BAD):
        findings.fail(
            f"{part}.client-refused",
            f"{party.where} does not take the client certificate ({clean(said, 80)})",
            f"run: {party.renew}; the server's log says more",
        )
    elif any(each in text for each in _REQUIRED) and not shown:
        findings.fail(
            f"{part}.client-certificate",
            f"{party.where} wants a client certificate, and none was presented",
            f"set {party.cert_keys}; or run: {party.renew}",
        )
    elif "version" in text or "unsupported protocol" in text:
        findings.fail(
            f"{part}.tls",
            f"{party.where} offers no TLS version from 1.2 on ({clean(said, 80)})",
            "switch TLS 1.2 or 1.3 on at the server, or at the proxy before it",
        )
    else:
        findings.fail(
            f"{part}.tls",
            f"the TLS handshake with {party.where} failed: {clean(said, 120)}",
            "the server's log says more; openssl s_client -connect shows the handshake",
        )


def reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    if isinstance(error, socket.timeout):
        return "no answer in time"
    if isinstance(error, OSError):
        return (error.strerror or str(error) or type(error).__name__).lower()
    return str(error) or type(error).__name__
