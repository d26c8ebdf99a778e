"""
A small HTTP/1.1 client (RFC 9112) for one server: no proxies, no redirects, every size and time bounded.

It keeps apart what the rest must keep apart (spec/host-agent section 4): *unreachable*, when no connection came about,
and everything else. An attacker on the path can cause the second, never the first, by stalling or by a bad certificate.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from identree.agent.config import Config
    from identree.agent.watch import Watch

CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 10.0

# How many more descriptors there must be for a failed connection to say anything about the server: a resolver needs
# several, and a caller with a low limit must not be able to make a server unreachable.
SPARE_DESCRIPTORS = 8

# What runs out here, not there.
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)

# Of a file with certificates; a bundle of all public authorities has a quarter of a megabyte.
MAX_CERTIFICATES_BYTES = 4 << 20

# The head of an answer, and its body by status (section 4); what is longer is cut and no longer believed.
MAX_HEAD_BYTES = 16384
MAX_BODY_BYTES = 65536
MAX_CHOICES_BYTES = 4096
MAX_ERROR_BYTES = 1024
MAX_INTERIM_ANSWERS = 8

_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
)
_PARTIAL_CHAIN = 0x80000  # X509_V_FLAG_PARTIAL_CHAIN, named by Python from 3.10 on


class Unreachable(Exception):
    """No connection: the name has no address, or nobody answers there."""


class WireError(Exception):
    """A connection, but no usable answer."""


class Untrusted(WireError):
    """TLS could not be agreed on, or the server's certificate is not the right one."""


class _Stale(Exception):
    """The kept connection had been closed before our request arrived; it may be sent again."""


class Response:
    """:ivar headers: names in lower case. :ivar cut: the body was longer than allowed."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes, cut: bool) -> None:
        self.status, self.headers, self.body, self.cut = status, headers, body, cut


class Client:
    """
    Requests to the configured server over one kept connection.

    :raise ConfigError: certificates that are configured but cannot be used; before anything is sent.
    """

    def __init__(self, config: Config, watch: Watch) -> None:
        self._config, self._watch = config, watch
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self._tls = _tls_context(config) if config.scheme == "https" else None
        host = f"[{config.host}]" if ":" in config.host else config.host
        standard = config.port == (443 if self._tls else 80)
        self._host_header = host if standard else f"{host}:{config.port}"

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        timeout: float = REQUEST_SECONDS,
        connect_timeout: float = CONNECT_SECONDS,
        sent: Callable[[], None] | None = None,
    ) -> Response:
        """
        :param timeout: seconds for everything after the connection stands.
        :param sent: called when the request is on its way, to use the time that the server needs.
        :raise Unreachable: before anything was sent.
        :raise WireError: afterwards.
        """
        lines = [
            f"{method} {self._config.base}{path} HTTP/1.1",
            f"Host: {self._host_header}",
            "User-Agent: identree-agent",
            "Accept: application/json",
        ]
        if self._config.secret:
            lines.append(f"X-Shared-Secret: {self._config.secret}")
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        request = "\r\n".join([*lines, "", ""]).encode("ascii") + (body or b"")
        if method == "POST":
            self.close()  # what must not happen twice is sent on a fresh connection only
        if self._socket is not None:
            try:
                return self._exchange(request, time.monotonic() + timeout, sent, kept=True)
            except _Stale:
                self.close()
        self._connect(time.monotonic() + min(connect_timeout, timeout))
        until = time.monotonic() + timeout
        self._secure(until)
        return self._exchange(request, until, sent, kept=False)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._buffer.clear()

    def _connect(self, until: float) -> None:
        addresses = self._resolve(until)
        problem = "no address"
        for index, (family, kind, protocol, _, address) in enumerate(addresses):
            now = time.monotonic()
            share = now + max(until - now, 0.1) / (len(addresses) - index)  # one budget for all addresses
            try:
                attempt = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
            except OSError as e:
                if e.errno in _OURS:
                    raise WireError(_reason(e)) from None
                problem = e.strerror or "no socket"
                continue
            try:
                code = attempt.connect_ex(address)
                if code == errno.EINPROGRESS:
                    if self._watch.wait(attempt.fileno(), writing=True, until=share):
                        code = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    else:
                        code = errno.ETIMEDOUT
                if code == 0:
                    attempt.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._socket = attempt
                    return
                problem = os.strerror(code).lower()
            except OSError as e:
                problem = (e.strerror or str(e)).lower()
            finally:
                if self._socket is not attempt:
                    attempt.close()
        raise Unreachable(problem)

    def _resolve(self, until: float) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
        # The name is passed as bytes: for text the resolver would import the whole IDNA codec.
        name, port = self._config.host.encode("ascii"), self._config.port
        try:
            return _addresses(name, port, socket.AI_NUMERICHOST)
        except socket.gaierror:
            pass
        # getaddrinfo knows neither a time limit nor Ctrl-C. A thread waits for it; nobody waits for the thread.
        import _thread

        os.environ["RES_OPTIONS"] = "timeout:2 attempts:2"
        found: list[list[tuple[int, int, int, str, tuple[object, ...]]]] = []
        errors: list[str] = []
        failed_here: list[bool] = []
        _spare_descriptors()
        readable, writable = os.pipe()

        def look_up() -> None:
            try:
                found.append(_addresses(name, port, 0))
            except OSError as e:
                errors.append(e.strerror or "")
                if e.errno in _OURS or e.errno == socket.EAI_MEMORY:
                    failed_here.append(True)
            except MemoryError:
                failed_here.append(True)
            finally:
                os.close(writable)

        try:
            _thread.start_new_thread(look_up, ())
        except RuntimeError:  # a limit on processes or memory
            os.close(readable)
            os.close(writable)
            raise WireError("no thread to look up the server's name") from None
        try:
            done = self._watch.wait(readable, writing=False, until=until)
        finally:
            os.close(readable)
        if found:
            return found[0][:8]
        if failed_here:
            raise WireError(f"the server's name cannot be looked up: {(errors or ['out of memory'])[0].lower()}")
        raise Unreachable((errors[0].lower() if errors else "") if done else "the name server does not answer")

    def _secure(self, until: float) -> None:
        if self._tls is None or self._socket is None:
            return
        import ssl

        # bytes, again to stay clear of the IDNA codec, which ASCII names do not need
        name = self._config.host.encode("ascii")
        try:
            wrapped = self._tls.wrap_socket(self._socket, do_handshake_on_connect=False, server_hostname=name)
        except (OSError, ValueError) as e:
            self.close()
            raise WireError(str(e)) from None
        self._socket = wrapped
        try:
            self._retry(wrapped.do_handshake, until)
        except ssl.SSLCertVerificationError as e:
            self.close()
            raise Untrusted(e.verify_message or "certificate not accepted") from None
        except ssl.SSLError as e:
            self.close()
            raise Untrusted((e.reason or "no common TLS version or cipher").replace("_", " ").lower()) from None
        except OSError as e:
            self.close()
            raise WireError(_reason(e)) from None

    def _retry(self, step: Callable[[], object], until: float) -> object:
        """Run a non-blocking ``step`` until it is done."""
        assert self._socket is not None
        while True:
            try:
                return step()
            except BlockingIOError:
                writing = True
            except OSError as e:
                name = type(e).__name__  # the ssl module may not be loaded
                if name not in ("SSLWantReadError", "SSLWantWriteError"):
                    raise
                writing = name == "SSLWantWriteError"
            if not self._watch.wait(self._socket.fileno(), writing=writing, until=until):
                self.close()
                raise WireError("the answer takes too long")

    def _exchange(self, request: bytes, until: float, sent: Callable[[], None] | None, *, kept: bool) -> Response:
        connection = self._socket
        assert connection is not None
        received = False

        def fill() -> bytes:
            nonlocal received
            while True:
                if time.monotonic() > until:  # a trickle does not prolong the limit
                    raise WireError("the answer takes too long")
                try:
                    data = connection.recv(16384)
                    received = received or bool(data)
                    return data
                except BlockingIOError:
                    pass
                except OSError as e:
                    name = type(e).__name__
                    if name == "SSLEOFError" or name == "SSLZeroReturnError":
                        return b""
                    if name != "SSLWantReadError":
                        raise
                if not self._watch.wait(connection.fileno(), writing=False, until=until):
                    raise WireError("the answer takes too long")

        try:
            view = request
            while view:
                count = self._retry(lambda: connection.send(view), until)
                assert isinstance(count, int)
                view = view[count:]
            if sent is not None:
                sent()
            response, keep = read_response(self._buffer, fill)
        except OSError as e:
            self.close()
            if kept and not received:
                raise _Stale from None
            raise WireError(_reason(e)) from None
        except WireError:
            self.close()
            if kept and not received and time.monotonic() < until:
                raise _Stale from None
            raise
        except BaseException:
            self.close()
            raise
        if not keep:
            self.close()
        return response


def read_response(buffer: bytearray, fill: Callable[[], bytes]) -> tuple[Response, bool]:
    """
    One final answer, and whether the connection can be used again.

    :param fill: more bytes, empty at the end of the stream.
    :raise WireError: not HTTP, too long a head, contradictory lengths, or cut off.
    """
    for _ in range(MAX_INTERIM_ANSWERS):
        status, version, headers = _read_head(buffer, fill)
        if status >= 200:
            break
    else:
        raise WireError("too many interim answers")
    cap = MAX_BODY_BYTES if status < 300 else MAX_CHOICES_BYTES if status == 422 else MAX_ERROR_BYTES
    keep = version == "HTTP/1.1" and "close" not in headers.get("connection", "").lower()
    if status in (204, 304):
        return Response(status, headers, b"", False), keep
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if coding.strip().lower() != "chunked" or length is not None:
            raise WireError("a transfer coding that is not supported")
        body, cut = _read_chunks(buffer, fill, cap)
    elif length is not None:
        if not length.isdigit() or len(length) > 15:
            raise WireError("a bad content length")
        wanted = int(length)
        cut = wanted > cap
        body = _take(buffer, fill, min(wanted, cap))
    else:
        keep = False
        while len(buffer) <= cap:
            data = fill()
            if not data:
                break
            buffer += data
        cut = len(buffer) > cap
        body = bytes(buffer[:cap])
        buffer.clear()
    return Response(status, headers, body, cut), keep and not cut


def _read_head(buffer: bytearray, fill: Callable[[], bytes]) -> tuple[int, str, dict[str, str]]:
    while True:
        end = buffer.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
        if end >= 0:
            break
        if len(buffer) >= MAX_HEAD_BYTES:
            raise WireError("too long a header")
        if len(buffer) >= 5 and not buffer.startswith(b"HTTP/"):
            raise WireError("what answers is not an HTTP server")
        data = fill()
        if not data:
            raise WireError("the connection was closed before an answer" if not buffer else "the answer was cut off")
        buffer += data
    lines = buffer[:end].decode("latin-1").split("\r\n")
    del buffer[: end + 4]
    version, _, rest = lines[0].partition(" ")
    code = rest[:3]
    if version not in ("HTTP/1.1", "HTTP/1.0") or not (code.isascii() and code.isdigit()) or rest[3:4] not in ("", " "):
        raise WireError("what answers is not an HTTP server")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if not colon or not name or name != name.strip():
            raise WireError("a bad header")
        if name in headers and name in ("content-length", "transfer-encoding") and headers[name] != value:
            raise WireError("contradictory headers")
        headers[name] = value
    return int(code), version, headers


def _take(buffer: bytearray, fill: Callable[[], bytes], count: int) -> bytes:
    while len(buffer) < count:
        data = fill()
        if not data:
            raise WireError("the answer was cut off")
        buffer += data
    taken = bytes(buffer[:count])
    del buffer[:count]
    return taken


def _read_chunks(buffer: bytearray, fill: Callable[[], bytes], cap: int) -> tuple[bytes, bool]:
    body = b""
    while True:
        size_text = _line(buffer, fill).split(b";")[0].strip()
        if not size_text or len(size_text) > 8 or size_text.strip(b"0123456789abcdefABCDEF"):
            raise WireError("a bad chunk")
        size = int(size_text, 16)
        if size == 0:
            break
        if len(body) + size > cap:
            return body + _take(buffer, fill, cap - len(body)), True
        body += _take(buffer, fill, size)
        if _take(buffer, fill, 2) != b"\r\n":
            raise WireError("a bad chunk")
    for _ in range(64):  # trailer fields
        if not _line(buffer, fill):
            return body, False
    raise WireError("too long a trailer")


def _line(buffer: bytearray, fill: Callable[[], bytes]) -> bytes:
    while (end := buffer.find(b"\r\n", 0, 1024)) < 0:
        if len(buffer) >= 1024:
            raise WireError("too long a line")
        data = fill()
        if not data:
            raise WireError("the answer was cut off")
        buffer += data
    return _take(buffer, fill, end + 2)[:-2]


def _addresses(name: bytes, port: int, flags: int) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
    return list(socket.getaddrinfo(name, port, 0, socket.SOCK_STREAM, 0, flags))


def _spare_descriptors() -> None:
    """:raise WireError: there are fewer than :data:`SPARE_DESCRIPTORS` left."""
    opened: list[int] = []
    try:
        for _ in range(SPARE_DESCRIPTORS // 2):
            opened += os.pipe()
    except OSError as e:
        raise WireError(_reason(e)) from None
    finally:
        for each in opened:
            os.close(each)


def _check_certificates(key: str, path: str) -> None:
    """:raise ConfigError: OpenSSL would wait for ever, or read for ever, from what is there."""
    from identree.agent.config import ConfigError

    try:
        info = os.stat(path)
    except OSError as e:
        raise ConfigError(f"{key} {path} cannot be used: {e.strerror}") from None
    if not stat.S_ISREG(info.st_mode):
        raise ConfigError(f"{key} {path} cannot be used: it is not a regular file")
    if info.st_size > MAX_CERTIFICATES_BYTES:
        raise ConfigError(f"{key} {path} cannot be used: it is larger than {MAX_CERTIFICATES_BYTES} bytes")


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _tls_context(config: Config) -> ssl.SSLContext:
    import ssl

    from identree.agent.config import ConfigError

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the bare context: no parsing of the whole bundle (18.1)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    context.verify_flags |= ssl.VerifyFlags(_PARTIAL_CHAIN)
    if config.ca_cert:
        _check_certificates("IDENTREE_CA_CERT", config.ca_cert)
        try:
            context.load_verify_locations(cafile=config.ca_cert)
        except (OSError, ValueError) as e:
            reason = (getattr(e, "reason", None) or e.strerror or str(e)) if isinstance(e, OSError) else str(e)
            raise ConfigError(f"IDENTREE_CA_CERT {config.ca_cert} cannot be used: {reason}") from None
    elif _hashed("/etc/ssl/certs"):
        context.load_verify_locations(capath="/etc/ssl/certs")
    else:
        for bundle in _BUNDLES:
            if os.path.exists(bundle):
                context.load_verify_locations(cafile=bundle)
                break
        else:
            raise ConfigError(
                "this host has no certificate authorities; install ca-certificates or set IDENTREE_CA_CERT"
            )
    if config.client_cert and config.client_key:
        _check_certificates("IDENTREE_CLIENT_CERT", config.client_cert)
        _check_certificates("IDENTREE_CLIENT_KEY", config.client_key)
        try:
            try:
                # the password callback keeps OpenSSL from asking at a terminal
                context.load_cert_chain(config.client_cert, config.client_key, password=lambda: "")
            except ssl.SSLError:
                # renew-cert may have changed both after the first was read
                context.load_cert_chain(config.client_cert, config.client_key, password=lambda: "")
        except (OSError, ValueError) as e:
            reason = (getattr(e, "reason", None) or e.strerror or str(e)) if isinstance(e, OSError) else str(e)
            raise ConfigError(
                f"IDENTREE_CLIENT_CERT {config.client_cert} with its key cannot be used: {reason}"
            ) from None
    return context


def _hashed(directory: str) -> bool:
    """Whether OpenSSL can look certificates up there one by one, by the hash in their link's name."""
    try:
        with os.scandir(directory) as entries:
            return any(entry.name.endswith(".0") for entry in entries)
    except OSError:
        return False
