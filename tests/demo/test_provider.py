"""The demo's identity provider: by itself, and with our own OIDC client."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

from treq.testing import StubTreq
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from identree.clients.oidc import OIDCProvider
from identree.core.errors import LoginFailed
from identree.demo.provider import DemoProvider

ISSUER = "http://127.0.0.1:8091"
REDIRECT = "http://127.0.0.1:8090/callback"
VERIFIER = "v" * 43
CHALLENGE = base64.urlsafe_b64encode(sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
NONCE = "0123456789abcdef0123456789abcdef"
SECRET = "the: demo/sécret"
START = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.provider = self.build()
        self.http = StubTreq(self.provider.resource())
        self.client = OIDCProvider(
            http=self.http,
            clock=self.clock,
            now=self.now,
            monotonic=self.clock.seconds,
            issuer_url=ISSUER,
            client_id="demo",
            client_secret=SECRET,
            redirect_uri=REDIRECT,
        )

    def now(self) -> datetime:
        return START + timedelta(seconds=self.clock.seconds())

    def build(self, **changes: Any) -> DemoProvider:
        values: dict[str, Any] = {
            "issuer": ISSUER,
            "client_id": "demo",
            "client_secret": SECRET,
            "redirect_uris": [REDIRECT],
            "auto": True,
        }
        return DemoProvider(self.clock, now=self.now, **{**values, **changes})

    def request(self, method: str, url: str, **more: Any) -> tuple[Any, str]:
        response = self.successResultOf(self.http.request(method, url, allow_redirects=False, **more))
        return response, self.successResultOf(self.http.text_content(response))

    def url(self) -> str:
        return self.successResultOf(
            Deferred.fromCoroutine(self.client.authorization_url(state="st", nonce=NONCE, code_challenge=CHALLENGE))
        )

    def location(self, response: Any) -> dict[str, str]:
        """The parameters that the browser brings back to identree."""
        self.assertEqual(response.code, 302)
        [location] = response.headers.getRawHeaders("location")
        self.assertTrue(location.startswith(f"{REDIRECT}?"), location)
        return {name: value for name, [value] in parse_qs(urlsplit(location).query).items()}

    def code(self, name: str = "alice") -> str:
        response, _ = self.request("GET", f"{self.url()}&login_hint={name}&auto=1")
        return self.location(response)["code"]

    def redeem(self, code: str, verifier: str = VERIFIER) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.client.redeem(code=code, verifier=verifier, nonce=NONCE))


class SigningInTests(Base):
    def test_by_click(self) -> None:
        """Clicking a name posts the request again with the name, and leads back with code and state."""
        _, page = self.request("GET", self.url())
        self.assertEqual(re.findall(r'name="user" value="(\w*)"', page), ["alice", "bob", "carol", ""])
        form = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page))
        response, _ = self.request("POST", f"{ISSUER}/authorize", data={**form, "user": "bob"})
        back = self.location(response)
        self.assertEqual(back["state"], "st")
        self.assertEqual(self.successResultOf(self.redeem(back["code"])).username, "bob")

    def test_identity(self) -> None:
        """Carol is in the admins' group, and everybody's time of sign-in is told."""
        identity = self.successResultOf(self.redeem(self.code("carol")))
        self.assertEqual((identity.username, identity.groups), ("carol", ("users", "admins")))
        self.assertEqual(identity.authenticated_at, START)
        self.assertEqual(self.successResultOf(self.redeem(self.code("alice"))).groups, ("users",))

    def test_cancel(self) -> None:
        """Cancel leads back with an error."""
        form = dict(parse_qsl(urlsplit(self.url()).query))
        response, _ = self.request("POST", f"{ISSUER}/authorize", data={**form, "user": ""})
        self.assertEqual(self.location(response)["error"], "access_denied")

    def test_auto_is_off(self) -> None:
        """Without the switch in code the hint is ignored."""
        self.http = StubTreq(self.build(auto=False).resource())
        response, _ = self.request("GET", f"{self.url()}&login_hint=alice&auto=1")
        self.assertEqual(response.code, 200)

    def test_unknown_name(self) -> None:
        """Nobody else can be clicked."""
        form = dict(parse_qsl(urlsplit(self.url()).query))
        response, _ = self.request("POST", f"{ISSUER}/authorize", data={**form, "user": "root"})
        self.assertEqual(response.code, 400)

    def test_page(self) -> None:
        """What the request brings is escaped, and the page's policy allows the way back."""
        url = self.url().replace("state=st", "state=%22%3E%3Cscript%3E")
        response, page = self.request("GET", url)
        self.assertNotIn("<script", page)
        [policy] = response.headers.getRawHeaders("content-security-policy")
        self.assertIn("form-action 'self' http://127.0.0.1:8090;", policy)


class RefusalTests(Base):
    def test_foreign_client(self) -> None:
        """An unknown client or address is told to the person, never sent anywhere."""
        for old, new in (
            ("client_id=demo", "client_id=x"),
            ("8090", "9999"),
            ("redirect_uri=http", "redirect_uri=https"),
        ):
            response, _ = self.request("GET", self.url().replace(old, new))
            self.assertEqual(response.code, 400)

    def test_bad_requests(self) -> None:
        """Other flows, a missing scope and a missing or plain challenge go back as errors."""
        for old, new, error in (
            ("response_type=code", "response_type=token", "unsupported_response_type"),
            ("scope=openid", "scope=x", "invalid_scope"),
            ("code_challenge=", "x=", "invalid_request"),
            ("S256", "plain", "invalid_request"),
        ):
            response, _ = self.request("GET", self.url().replace(old, new))
            self.assertEqual(self.location(response)["error"], error)

    def refused(self, code: str, verifier: str = VERIFIER, error: str = "invalid_grant") -> None:
        failed = self.failureResultOf(self.redeem(code, verifier), LoginFailed).value
        self.assertIn(error, failed.detail)

    def test_once(self) -> None:
        """A code works once."""
        code = self.code()
        self.successResultOf(self.redeem(code))
        self.refused(code)

    def test_verifier(self) -> None:
        """A wrong verifier is refused, and spends the code."""
        code = self.code()
        self.refused(code, "w" * 43)
        self.refused(code)

    def test_late(self) -> None:
        """A code works for a minute."""
        code = self.code()
        self.clock.advance(61)
        self.refused(code)

    def test_unknown_code(self) -> None:
        """A code that was never given."""
        self.refused("x")

    def token(self, **changes: str) -> int:
        form = {"grant_type": "authorization_code", "code": self.code(), "code_verifier": VERIFIER}
        form |= {"redirect_uri": REDIRECT, "client_id": "demo", "client_secret": SECRET}
        return int(self.request("POST", f"{ISSUER}/token", data={**form, **changes})[0].code)

    def test_token_endpoint(self) -> None:
        """The secret may be in the body; secret, redirect URI and kind of grant must be right."""
        self.assertEqual(self.token(), 200)
        self.assertEqual(self.token(client_secret="x"), 401)
        self.assertEqual(self.token(redirect_uri="http://127.0.0.1:8090/other"), 400)
        self.assertEqual(self.token(grant_type="password"), 400)

    def test_broken_header(self) -> None:
        """A broken Authorization header is a wrong secret."""
        for value in ("Basic !!", "Basic /w==", "Basic", "Bearer x", ""):
            response, _ = self.request("POST", f"{ISSUER}/token", headers={"authorization": value})
            self.assertEqual(response.code, 401)

    def test_bounded(self) -> None:
        """Codes that nobody redeems do not pile up."""
        first = self.code()
        for _ in range(1000):
            self.provider.grant("alice", {"redirect_uri": REDIRECT, "code_challenge": CHALLENGE, "scope": "openid"})
        self.refused(first)

    def test_huge_form(self) -> None:
        """A form beyond its limit counts as empty."""
        response, _ = self.request("POST", f"{ISSUER}/token", data={"code": "x" * 20_000})
        self.assertEqual(response.code, 401)


class OtherEndpointTests(Base):
    def test_userinfo(self) -> None:
        """The access token gives the same claims; anything else is refused."""
        form = {"grant_type": "authorization_code", "code": self.code(), "code_verifier": VERIFIER}
        form |= {"redirect_uri": REDIRECT, "client_id": "demo", "client_secret": SECRET}
        response = self.successResultOf(self.http.post(f"{ISSUER}/token", data=form))
        access = self.successResultOf(self.http.json_content(response))["access_token"]
        headers = {"authorization": f"Bearer {access}"}
        response = self.successResultOf(self.http.get(f"{ISSUER}/userinfo", headers=headers))
        told = self.successResultOf(self.http.json_content(response))
        self.assertEqual((told["preferred_username"], told["groups"]), ("alice", ["users"]))
        self.assertEqual(self.request("GET", f"{ISSUER}/userinfo")[0].code, 401)

    def test_end_session(self) -> None:
        """Signing out leads back to identree, and nowhere else."""
        back = "http://127.0.0.1:8090/"
        response, _ = self.request("GET", f"{ISSUER}/end_session?post_logout_redirect_uri={back}")
        self.assertEqual(response.headers.getRawHeaders("location"), [back])
        response, _ = self.request("GET", f"{ISSUER}/end_session?post_logout_redirect_uri=https://evil.example/")
        self.assertEqual(response.code, 200)

    def test_foreign_name(self) -> None:
        """A request under a name that is not this machine's gets nothing."""
        response, _ = self.request("GET", "http://evil.example:8091/.well-known/openid-configuration")
        self.assertEqual(response.code, 403)

    def test_unknown_page(self) -> None:
        """An unknown page is a short 404."""
        self.assertEqual(self.request("GET", f"{ISSUER}/x")[0].code, 404)


class LoopbackTests(Base):
    def test_redirect_uri(self) -> None:
        """A redirect URI elsewhere is refused."""
        for uri in (
            "https://sudo.example/callback",
            "http://10.0.0.1/",
            "javascript:x",
            "http://127.0.0.1.evil.example/",
        ):
            self.assertRaises(ValueError, self.build, redirect_uris=[REDIRECT, uri])

    def test_issuer(self) -> None:
        """An issuer elsewhere is refused."""
        self.assertRaises(ValueError, self.build, issuer="http://192.168.1.5:8091")

    def test_listening(self) -> None:
        """It listens on loopback and refuses everything else."""
        for interface in ("", "0.0.0.0", "::", "192.168.1.5", "example.org"):
            self.assertRaises(ValueError, self.provider.listen, 8091, interface)
        self.assertEqual(self.clock.tcpServers, [])
        self.provider.listen(8091)
        [(port, _, _, interface)] = self.clock.tcpServers
        self.assertEqual((port, interface), (8091, "127.0.0.1"))
