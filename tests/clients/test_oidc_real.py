"""Our OIDC client over real connections: against the certified oidc-provider from npm, and against TLS servers."""

from __future__ import annotations

import base64
import gzip
import re
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet import reactor, ssl
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from identree.clients.http import Fetch, Nonsense, Unanswered
from identree.clients.oidc import OIDCProvider, build_http_client
from identree.core.errors import LoginFailed
from identree.demo.provider import DemoProvider
from tests.oidc_provider import running_provider

pytestmark = pytest.mark.e2e

REDIRECT = "http://127.0.0.1:8090/callback"
VERIFIER = "v" * 43
CHALLENGE = base64.urlsafe_b64encode(sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
NONCE = "0123456789abcdef0123456789abcdef"


def now() -> datetime:
    return datetime.now(UTC)


class Browser:
    """As much of a browser as a sign-in needs: cookies, redirects, one form."""

    def __init__(self) -> None:
        self._http = build_http_client(reactor)

    async def _request(self, method: str, url: str, data: dict[str, str] | None = None) -> tuple[Any, str]:
        response = await self._http.request(method, url, data=data, allow_redirects=False)
        return response, await response.text()

    async def sign_in(self, url: str, name: str) -> dict[str, str]:
        """Follow the redirects, fill in the name; returns the parameters that come back to the redirect URI."""
        method, data = "GET", None
        for _ in range(10):
            response, page = await self._request(method, url, data)
            method, data = "GET", None
            location = response.headers.getRawHeaders("location")
            if location:
                url = urljoin(url, location[0])
                if url.startswith(REDIRECT):
                    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
            else:
                [action] = re.findall(r'<form method="post" action="([^"]+)"', page)
                url, method, data = urljoin(url, action), "POST", {"login": name}
        raise AssertionError("the sign-in does not end")


class CertifiedProviderTests(TestCase):
    """Each test signs in by scripted requests, at a provider of its own."""

    timeout = 120

    def begin(self, **changes: Any) -> OIDCProvider:
        stack = ExitStack()
        self.addCleanup(stack.close)
        running = stack.enter_context(running_provider([REDIRECT], **changes))
        return OIDCProvider(
            http=build_http_client(reactor),
            clock=reactor,
            now=now,
            issuer_url=running.issuer,
            client_id=running.client_id,
            client_secret=running.client_secret,
            redirect_uri=REDIRECT,
        )

    async def code(self, client: OIDCProvider, name: str) -> str:
        url = await client.authorization_url(state="st", nonce=NONCE, code_challenge=CHALLENGE)
        back = await Browser().sign_in(url, name)
        self.assertEqual(back["state"], "st")
        return back["code"]

    async def redeem(self, client: OIDCProvider, code: str, **changes: str) -> Any:
        return await client.redeem(**{"code": code, "verifier": VERIFIER, "nonce": NONCE, **changes})

    async def test_sign_in(self) -> None:
        """A person signs in; name and groups are told."""
        client = self.begin()
        identity = await self.redeem(client, await self.code(client, "carol"))
        self.assertEqual((identity.username, set(identity.groups)), ("carol", {"users", "admins"}))
        self.assertTrue(await client.probe())

    async def test_algorithms(self) -> None:
        """ID tokens signed with PS256, ES256 and EdDSA verify."""
        for algorithm in ("PS256", "ES256", "EdDSA"):
            client = self.begin(algorithm=algorithm)
            identity = await self.redeem(client, await self.code(client, "alice"))
            self.assertEqual((identity.username, identity.groups), ("alice", ("users",)))

    async def test_secret_in_body(self) -> None:
        """A client registered for its secret in the body gets in by the second try, with the same code."""
        client = self.begin(auth_method="client_secret_post")
        identity = await self.redeem(client, await self.code(client, "alice"))
        self.assertEqual(identity.username, "alice")

    async def refused(self, key: str, client: OIDCProvider, code: str, **changes: str) -> None:
        try:
            await self.redeem(client, code, **changes)
        except LoginFailed as e:
            self.assertEqual(e.key, key)
        else:
            self.fail("not refused")

    async def test_refusals(self) -> None:
        """A used code, a wrong verifier and another sign-in's nonce are refused."""
        client = self.begin()
        code = await self.code(client, "alice")
        await self.refused("login_nonce_mismatch", client, code, nonce="f" * 32)
        await self.refused("login_exchange_failed", client, code)
        await self.refused("login_exchange_failed", client, await self.code(client, "bob"), verifier="w" * 43)

    async def test_background(self) -> None:
        """As a service it discovers the provider by itself, and stops cleanly."""
        client = self.begin()
        client.startService()
        self.assertIn("/auth?", await client.authorization_url(state="st", nonce=NONCE, code_challenge=CHALLENGE))
        await client.stopService()


class DemoProviderTests(TestCase):
    async def test_sign_in(self) -> None:
        """The demo's provider, over a real connection and with its one parameter for scripts."""
        listening = reactor.listenTCP(0, Site(Resource()), interface="127.0.0.1")
        port = listening.getHost().port
        await listening.stopListening()
        issuer = f"http://127.0.0.1:{port}"
        demo = DemoProvider(
            reactor,
            issuer=issuer,
            client_id="demo",
            client_secret="s",
            redirect_uris=[REDIRECT],
            now=now,
            auto=True,
        )
        self.addCleanup(demo.listen(port).stopListening)
        client = OIDCProvider(
            http=build_http_client(reactor),
            clock=reactor,
            now=now,
            issuer_url=issuer,
            client_id="demo",
            client_secret="s",
            redirect_uri=REDIRECT,
        )
        url = await client.authorization_url(state="st", nonce=NONCE, code_challenge=CHALLENGE)
        back = await Browser().sign_in(f"{url}&login_hint=carol&auto=1", "")
        identity = await client.redeem(code=back["code"], verifier=VERIFIER, nonce=NONCE)
        self.assertEqual((identity.username, identity.groups), ("carol", ("users", "admins")))


class Echo(Resource):
    """Answers with what was asked for, compressed where the path says so."""

    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        if request.path == b"/compressed":
            request.setHeader("content-encoding", "gzip")
            return gzip.compress(b" " * (64 << 20))
        return (request.getHeader("accept-encoding") or "").encode()


class Silent(Protocol):
    """Takes the request and never answers."""


def self_signed() -> ssl.CertificateOptions:
    """TLS for 127.0.0.1 that nobody trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now() - timedelta(days=1))
        .not_valid_after(now() + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return ssl.PrivateCertificate.loadPEM(pem).options()


class ConnectionTests(TestCase):
    """What :func:`build_http_client` promises."""

    def serve(self, factory: Any, tls: ssl.CertificateOptions | None = None) -> str:
        listening = (
            reactor.listenTCP(0, factory, interface="127.0.0.1")
            if tls is None
            else reactor.listenSSL(0, factory, tls, interface="127.0.0.1")
        )
        self.addCleanup(listening.stopListening)
        return f"{'http' if tls is None else 'https'}://localhost:{listening.getHost().port}"

    async def get(self, url: str, *, insecure: bool = False, seconds: float = 10) -> bytes:
        fetch = Fetch(build_http_client(reactor, insecure), reactor)
        return (await fetch("GET", url, limit=1000, seconds=seconds)).body

    async def test_uncompressed(self) -> None:
        """It asks for plain answers, and refuses a compressed one without unpacking it."""
        url = self.serve(Site(Echo()))
        self.assertEqual(await self.get(f"{url}/x"), b"identity")
        await self.assertFailure(Deferred.fromCoroutine(self.get(f"{url}/compressed")), Nonsense)

    async def test_untrusted(self) -> None:
        """A certificate that nobody vouches for is refused, and the message says that it is the certificate."""
        url = self.serve(Site(Echo()), self_signed())
        error = await self.assertFailure(Deferred.fromCoroutine(self.get(url)), Unanswered)
        self.assertIn("certificate verify failed", str(error))

    async def test_insecure(self) -> None:
        """Told not to verify, it does not."""
        url = self.serve(Site(Echo()), self_signed())
        self.assertEqual(await self.get(url, insecure=True), b"identity")

    async def test_refused(self) -> None:
        """A closed port is no answer."""
        listening = reactor.listenTCP(0, Site(Echo()), interface="127.0.0.1")
        port = listening.getHost().port
        await listening.stopListening()
        await self.assertFailure(Deferred.fromCoroutine(self.get(f"http://127.0.0.1:{port}")), Unanswered)

    async def test_silence(self) -> None:
        """A server that says nothing is left after the time, and its connection closed."""
        gone: Deferred[None] = Deferred()

        class Watched(Silent):
            def connectionLost(self, reason: Any = None) -> None:
                gone.callback(None)

        url = self.serve(Factory.forProtocol(Watched))
        await self.assertFailure(Deferred.fromCoroutine(self.get(url, seconds=0.2)), Unanswered)
        await gone
