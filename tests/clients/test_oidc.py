"""Our OIDC client against a provider in memory that misbehaves in every way."""

from __future__ import annotations

import base64
import hmac
import json
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from treq.testing import StubTreq
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import DNSLookupError
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import Logger, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from identree.app.ports import Identity
from identree.clients.oidc import Names, OIDCProvider
from identree.core.errors import LoginFailed, ProviderUnavailable
from tests.clients.provider import (
    CLIENT_ID,
    CODE,
    EC,
    ED,
    ISSUER,
    NONCE,
    NOW,
    OTHER_RSA,
    REDIRECT,
    RSA,
    SECRET,
    Provider,
    claims,
    public_jwk,
    reply,
    token,
)

DISCOVERY = "/.well-known/openid-configuration"


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.provider = Provider()
        self.durations: list[float] = []
        self.client = self.build()

    def build(self, **changes: Any) -> OIDCProvider:
        values = {"issuer_url": ISSUER, "client_id": CLIENT_ID, "client_secret": SECRET, "redirect_uri": REDIRECT}
        return OIDCProvider(
            http=StubTreq(self.provider),
            clock=self.clock,
            now=lambda: NOW,
            monotonic=self.clock.seconds,
            observe_exchange=self.durations.append,
            **{**values, **changes},
        )

    def start(self) -> None:
        self.client.startService()
        self.addCleanup(self.client.stopService)

    def url(self) -> Deferred[str]:
        return Deferred.fromCoroutine(self.client.authorization_url(state="st", nonce=NONCE, code_challenge="cc"))

    def redeem(self) -> Deferred[Identity]:
        return Deferred.fromCoroutine(self.client.redeem(code=CODE, verifier="the-verifier", nonce=NONCE))

    def identity(self) -> Identity:
        return self.successResultOf(self.redeem())

    def refused(self, key: str, status: int, detail: str) -> LoginFailed:
        """Redeeming fails so, and neither code, secret nor token is told."""
        error = self.failureResultOf(self.redeem(), LoginFailed).value
        self.assertEqual((error.key, error.status), (key, status), error.detail)
        self.assertIn(detail, error.detail)
        for secret in (CODE, SECRET, "the-verifier", str(self.provider.token)[:20]):
            self.assertNotIn(secret, error.detail)
        return error

    def unavailable(self, result: Deferred[Any], detail: str) -> None:
        self.assertIn(detail, str(self.failureResultOf(result, ProviderUnavailable).value))


class FlowTests(Base):
    def test_authorization_url(self) -> None:
        """The browser is sent with code flow, S256, state, nonce and the four scopes."""
        parts = urlsplit(self.successResultOf(self.url()))
        self.assertEqual(f"{parts.scheme}://{parts.netloc}{parts.path}", f"{ISSUER}/authorize")
        self.assertEqual(
            {name: value for name, [value] in parse_qs(parts.query).items()},
            {
                "response_type": "code",
                "client_id": CLIENT_ID,
                "redirect_uri": REDIRECT,
                "scope": "openid profile email groups",
                "state": "st",
                "nonce": NONCE,
                "code_challenge": "cc",
                "code_challenge_method": "S256",
            },
        )

    def test_endpoint_with_query(self) -> None:
        """A query of the endpoint itself is kept."""
        self.provider.metadata["authorization_endpoint"] += "?tenant=1"
        self.assertIn("/authorize?tenant=1&response_type=code&", self.successResultOf(self.url()))

    def test_identity(self) -> None:
        """A good token gives name, groups, picture and time of sign-in, and itself."""
        at = int(NOW.timestamp()) - 60
        self.provider.token = token(claims(picture="https://x/y.png", auth_time=at))
        self.assertEqual(
            self.identity(),
            Identity(
                username="alice",
                groups=("users",),
                picture="https://x/y.png",
                authenticated_at=NOW - timedelta(seconds=60),
                id_token=self.provider.token,
            ),
        )

    def test_exchange(self) -> None:
        """The exchange carries code, redirect URI and verifier; the secret goes into the header, form-encoded."""
        self.identity()
        self.assertEqual(
            self.provider.forms,
            [
                {
                    "grant_type": "authorization_code",
                    "code": CODE,
                    "redirect_uri": REDIRECT,
                    "code_verifier": "the-verifier",
                }
            ],
        )

    def test_secret_in_body(self) -> None:
        """A provider that refuses the header gets the secret in the body, from the second time on at once."""
        self.provider.takes = ("body",)
        self.identity()
        self.identity()
        self.assertEqual(["client_secret" in form for form in self.provider.forms], [False, True, True])

    def test_announced_body(self) -> None:
        """A provider that announces only the body gets it there at once."""
        self.provider.takes = ("body",)
        self.provider.metadata["token_endpoint_auth_methods_supported"] = ["client_secret_post"]
        self.identity()
        self.assertEqual(len(self.provider.forms), 1)

    def test_algorithms(self) -> None:
        """RSA, RSA-PSS, elliptic curves and Edwards curves are accepted."""
        for algorithm, key in (
            *((name, RSA) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
            ("ES256", EC["ES256"]),
            ("ES512", EC["ES512"]),
            ("EdDSA", ED),
        ):
            self.client = self.build()
            self.provider.keys = [public_jwk(OTHER_RSA, kid="k0"), public_jwk(key, kid="k1")]
            self.provider.token = token(key=key, algorithm=algorithm)
            self.assertEqual(self.identity().username, "alice")

    def test_no_key_id(self) -> None:
        """Without a key id every fitting key is tried."""
        self.provider.keys = [public_jwk(OTHER_RSA), public_jwk(EC["ES256"]), public_jwk(RSA)]
        self.provider.token = token(kid=None)
        self.assertEqual(self.identity().username, "alice")

    def test_duration(self) -> None:
        """Each exchange is measured, failed ones too."""
        self.identity()
        self.provider.replies["/token"] = reply({"error": "invalid_grant"}, 400)
        self.failureResultOf(self.redeem(), LoginFailed)
        self.assertEqual(self.durations, [0.0, 0.0])

    def test_not_configured(self) -> None:
        """Without a provider there is no sign-in, and nothing is asked."""
        self.client = self.build(issuer_url="")
        self.start()
        self.unavailable(self.url(), "set IDENTREE_OIDC_ISSUER_URL")
        self.assertFalse(self.successResultOf(Deferred.fromCoroutine(self.client.probe())))
        self.assertEqual(self.provider.asked, [])


class DiscoveryTests(Base):
    def refused_document(self, detail: str) -> None:
        self.client = self.build()
        self.unavailable(self.url(), detail)

    def test_wrong_issuer(self) -> None:
        """A provider that calls itself otherwise is not used, and the message says which setting to correct."""
        for issuer in ("https://evil.example", f"{ISSUER}/", None, 5):
            self.provider.metadata["issuer"] = issuer
            self.refused_document("IDENTREE_OIDC_ISSUER_URL must be exactly that")

    def test_endpoints(self) -> None:
        """Missing, mistyped and unencrypted endpoints are refused."""
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            good = self.provider.metadata[name]
            for bad in (
                None,
                7,
                [],
                "",
                "/token",
                "ftp://id.example/x",
                "https://",
                "https://u:p@id.example/",
                "https://x:99999/",
            ):
                self.provider.metadata[name] = bad
                self.refused_document("an endpoint of the discovery document is unusable")
            self.provider.metadata[name] = good
        self.provider.metadata["token_endpoint"] = "http://id.example/token"
        self.refused_document("is not https")

    def test_nonsense(self) -> None:
        """HTML, broken or deep JSON, lists, wrong statuses and redirects are named."""
        html = {"content-type": "text/html"}
        for made, detail in (
            ((200, html, b"<html>sign in</html>"), "no JSON object"),
            ((200, {}, b'{"issuer":'), "no JSON object"),
            ((200, {}, b"[" * 100_000), "no JSON object"),
            ((200, {}, b"[]"), "no JSON object"),
            ((200, {}, b"\xff"), "no JSON object"),
            ((500, {}, b"oops"), "it answered 500"),
            ((404, {}, b""), "it answered 404"),
            ((302, {"location": "https://other.example/"}, b""), "302 (a redirect"),
        ):
            self.provider.replies[DISCOVERY] = made
            self.refused_document(detail)
        self.assertEqual({asked.split("/")[0] for asked in self.provider.asked}, {"GET id.example"})

    def test_huge(self) -> None:
        """An answer beyond 512 KiB is not read on."""
        self.provider.replies[DISCOVERY] = (200, {}, b" " * (1 << 20))
        self.refused_document("longer than 524288 bytes")

    def test_slow(self) -> None:
        """A provider that does not answer is given up after 10 s."""
        self.provider.replies[DISCOVERY] = None
        result = self.redeem()
        self.clock.advance(9.9)
        self.assertNoResult(result)
        self.clock.advance(0.2)
        self.unavailable(result, "no answer within 10 s")

    def test_slow_for_a_person(self) -> None:
        """Who wants to sign in waits 3 s for it at most; the one request goes on for whoever comes later."""
        self.provider.replies[DISCOVERY] = None
        first = self.url()
        self.clock.advance(2.9)
        self.assertNoResult(first)
        self.clock.advance(0.2)
        self.unavailable(first, "no answer within 3 s")
        second = self.url()
        self.clock.advance(3.1)
        self.unavailable(second, "no answer within 3 s")
        self.assertEqual(len(self.provider.asked), 1)

    def test_in_background(self) -> None:
        """The service tries again after 2, 4, 8, 16, 32, 32 s, and then rests for an hour."""
        self.provider.replies[DISCOVERY] = reply({}, 503)
        self.start()
        for pause in (2, 4, 8, 16, 32, 32):
            asked = len(self.provider.asked)
            self.clock.advance(pause - 0.5)
            self.assertEqual(len(self.provider.asked), asked)
            self.clock.advance(0.5)
            self.assertEqual(len(self.provider.asked), asked + 1)
        del self.provider.replies[DISCOVERY]
        self.clock.advance(32)
        asked = len(self.provider.asked)
        self.clock.advance(3599)
        self.assertEqual(len(self.provider.asked), asked)
        self.clock.advance(1)
        self.assertEqual(len(self.provider.asked), asked + 1)

    def test_immediate_try(self) -> None:
        """Who wants to sign in does not wait for the next try in the background."""
        self.provider.replies[DISCOVERY] = reply({}, 503)
        self.start()
        del self.provider.replies[DISCOVERY]
        self.clock.advance(1.5)
        self.assertIn("/authorize?", self.successResultOf(self.url()))

    def test_shared_try(self) -> None:
        """Many who want to sign in cause one request; one who leaves does not end it for the others."""
        self.provider.replies[DISCOVERY] = None
        results = [self.url() for _ in range(50)]
        self.assertEqual(len(self.provider.asked), 1)
        results[0].cancel()
        self.failureResultOf(results[0], CancelledError)
        self.clock.advance(10)
        for result in results[1:]:
            self.unavailable(result, "no answer")

    def test_no_stampede(self) -> None:
        """Within a second of a failure nobody causes another request."""
        self.provider.replies[DISCOVERY] = reply({}, 503)
        for _ in range(10):
            self.unavailable(self.url(), "503")
        self.assertEqual(len(self.provider.asked), 1)

    def test_last_known(self) -> None:
        """A failing refresh leaves the known metadata in use."""
        self.start()
        self.provider.replies[DISCOVERY] = reply({}, 503)
        self.clock.advance(3600)
        self.assertEqual(self.provider.count(DISCOVERY), 2)
        self.assertIn("/authorize?", self.successResultOf(self.url()))

    def test_moved_endpoint(self) -> None:
        """After a failing exchange the metadata is read again, so a moved endpoint is found."""
        self.start()
        self.provider.metadata["token_endpoint"] = f"{ISSUER}/new/token"
        self.provider.replies["/token"] = reply({}, 404)
        self.refused("login_exchange_failed", 500, "404")
        del self.provider.replies["/token"]
        self.clock.advance(30)
        self.successResultOf(self.url())
        self.identity()
        self.assertEqual(self.provider.asked[-2], "POST id.example/new/token")

    def test_stop(self) -> None:
        """Stopping ends the work under way and leaves no timer."""
        self.provider.replies[DISCOVERY] = None
        self.client.startService()
        self.successResultOf(self.client.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_while_resolving(self) -> None:
        """Stopping while the provider's name is looked up is no trouble of the provider's, and is not logged as one."""

        class Resolving:
            """A request that reports its end by cancellation as Twisted does during a look-up."""

            def request(self, *_: object, **__: object) -> Deferred[object]:
                return Deferred(lambda pending: pending.errback(DNSLookupError("Couldn't find the hostname")))

        lines: list[str] = []
        client = OIDCProvider(
            http=Resolving(),
            clock=self.clock,
            now=lambda: NOW,
            issuer_url=ISSUER,
            client_id=CLIENT_ID,
            client_secret=SECRET,
            redirect_uri=REDIRECT,
            monotonic=self.clock.seconds,
        )
        client._log = Logger(observer=lambda event: lines.append(formatEvent(event)))
        client.startService()
        self.successResultOf(client.stopService())
        self.assertEqual((lines, self.clock.getDelayedCalls()), ([], []))


class ExchangeTests(Base):
    def test_refused(self) -> None:
        """The provider's error code is told, its free text is not."""
        self.provider.replies["/token"] = reply({"error": "invalid_grant", "error_description": CODE}, 400)
        self.refused("login_exchange_failed", 500, "answered 400 invalid_grant")

    def test_strange_error_code(self) -> None:
        """An error code that is none is not told either."""
        for code in (CODE, 5, ["x"], "x" * 1000):
            self.provider.replies["/token"] = reply({"error": code}, 400)
            self.assertTrue(self.refused("login_exchange_failed", 500, "answered 400").detail.endswith("400"))

    def test_wrong_secret(self) -> None:
        """A secret that neither way accepts is a failed exchange, after one try each."""
        self.provider.takes = ()
        self.refused("login_exchange_failed", 500, "answered 401 invalid_client")
        self.assertEqual(len(self.provider.forms), 2)

    def test_server_error(self) -> None:
        """A 5xx is a failed exchange."""
        self.provider.replies["/token"] = (502, {}, b"<html>bad gateway</html>")
        self.refused("login_exchange_failed", 500, "answered 502")

    def test_redirect(self) -> None:
        """A redirect is not followed: it would carry the code elsewhere."""
        self.provider.replies["/token"] = (307, {"location": "https://evil.example/token"}, b"")
        self.refused("login_exchange_failed", 500, "307 (a redirect")
        self.assertNotIn("evil.example", " ".join(self.provider.asked))

    def test_not_json(self) -> None:
        """HTML with status 200 is a failed exchange."""
        self.provider.replies["/token"] = (200, {}, b"<html></html>")
        self.refused("login_exchange_failed", 500, "no JSON object")

    def test_huge(self) -> None:
        """An answer beyond 64 KiB is a failed exchange."""
        self.provider.replies["/token"] = (200, {}, b" " * 70_000)
        self.refused("login_exchange_failed", 500, "longer than 65536 bytes")

    def test_slow(self) -> None:
        """The exchange is given up after 15 s, and measured."""
        self.provider.replies["/token"] = None
        result = self.redeem()
        self.clock.advance(14.9)
        self.assertNoResult(result)
        self.clock.advance(0.2)
        self.unavailable(result, "no answer within 15 s")
        self.assertEqual(len(self.durations), 1)

    def test_gone(self) -> None:
        """A browser that hangs up ends the exchange."""
        self.provider.replies["/token"] = None
        result = self.redeem()
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_id_token(self) -> None:
        """An answer without an ID token, or with one that is no text, says so."""
        for nothing in (None, "", 5, {}):
            self.provider.token = nothing
            error = self.failureResultOf(self.redeem(), LoginFailed).value
            self.assertEqual((error.key, error.status), ("login_no_id_token", 500))


class TokenTests(Base):
    def invalid(self, made: str, detail: str) -> None:
        self.provider.token = made
        self.refused("login_token_invalid", 500, detail)

    def test_issuer(self) -> None:
        """Another issuer, none, or ours with a slash."""
        for issuer in ("https://evil.example", None, f"{ISSUER}/", ISSUER.upper()):
            self.invalid(token(claims(iss=issuer)), "issuer is")

    def test_audience(self) -> None:
        """A token for another client, or issued to another."""
        for audience in ("other", ["other"], [], None):
            self.invalid(token(claims(aud=audience)), "another client (aud)")
        self.invalid(token(claims(aud=[CLIENT_ID, "other"])), "(azp)")
        self.invalid(token(claims(aud=[CLIENT_ID, "other"], azp="other")), "(azp)")
        self.invalid(token(claims(azp="other")), "(azp)")

    def test_audiences(self) -> None:
        """Several audiences are fine when the token was issued to us."""
        self.provider.token = token(claims(aud=["other", CLIENT_ID], azp=CLIENT_ID))
        self.assertEqual(self.identity().username, "alice")

    def test_expired(self) -> None:
        """Past its end and the leeway; up to there it is good."""
        at = int(NOW.timestamp())
        self.invalid(token(claims(exp=at - 60)), "expired")
        self.invalid(token({name: value for name, value in claims().items() if name != "exp"}), "no end")
        self.provider.token = token(claims(exp=at - 59))
        self.assertEqual(self.identity().username, "alice")

    def test_not_yet(self) -> None:
        """Not before its time less the leeway."""
        at = int(NOW.timestamp())
        for name in ("nbf", "iat"):
            self.invalid(token(claims(**{name: at + 61})), f"from the future ({name})")
            self.provider.token = token(claims(**{name: at + 60}))
            self.assertEqual(self.identity().username, "alice")

    def test_times(self) -> None:
        """Times that are none."""
        for value in ("soon", True, [], 1e300, float("inf"), float("nan")):
            self.invalid(token(claims(exp=value)), "exp is no time")

    def test_nonce(self) -> None:
        """A nonce that is missing or of another sign-in is status 400."""
        for nonce in (None, "f" * 32, 5, NONCE.upper(), ""):
            self.provider.token = token(claims(nonce=nonce))
            self.refused("login_nonce_mismatch", 400, "nonce")

    def forged(self, algorithm: str, secret: bytes | None = None) -> str:
        """A token made by hand, as a library would refuse to."""
        head = {"alg": algorithm, "typ": "JWT", "kid": "k1"}
        signed = ".".join(base64url(json.dumps(part).encode()) for part in (head, claims()))
        return f"{signed}.{base64url(hmac.digest(secret, signed.encode(), 'sha256')) if secret else ''}"

    def test_none(self) -> None:
        """Algorithm ``none`` in any spelling."""
        for name in ("none", "None", "NONE"):
            self.invalid(self.forged(name), "not accepted")

    def test_public_key_as_secret(self) -> None:
        """HS256 keyed with the provider's public key, or with the client's secret."""
        pem = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        for secret in (pem, SECRET.encode()):
            self.invalid(self.forged("HS256", secret), "'HS256', which is not accepted")

    def test_wrong_key(self) -> None:
        """A signature by another key of the same name."""
        self.invalid(token(key=OTHER_RSA), "signature is wrong")

    def test_changed(self) -> None:
        """Claims changed after signing."""
        header, _, signature = token().split(".")
        body = base64url(json.dumps(claims(groups=["admins"])).encode())
        self.invalid(f"{header}.{body}.{signature}", "signature is wrong")

    def test_algorithm_of_the_key(self) -> None:
        """A key serves only the algorithm that it is announced for, and only its own kind."""
        self.provider.keys = [public_jwk(RSA, kid="k1", alg="RS256")]
        self.invalid(token(algorithm="PS256"), "none of the provider's keys fits")
        self.client = self.build()
        self.provider.keys = [public_jwk(EC["ES512"], kid="k1")]
        self.invalid(token(key=EC["ES256"], algorithm="ES256"), "none of the provider's keys fits")

    def test_encryption_key(self) -> None:
        """A key for encryption verifies nothing."""
        self.provider.keys = [{**public_jwk(RSA, kid="k1"), "use": "enc"}]
        self.invalid(token(), "none of the provider's keys fits")

    def test_small_key(self) -> None:
        """An RSA key below 2048 bits is refused."""
        small = rsa.generate_private_key(65537, 1024)
        self.provider.keys = [public_jwk(small, kid="k1")]
        self.invalid(token(), "fewer than 2048 bits")

    def test_critical(self) -> None:
        """Extensions that must be understood are not."""
        self.invalid(token(crit=["exp"]), "")

    def test_no_token(self) -> None:
        """What is no signed token."""
        for made in ("x", "a.b", "a.b.c", "....", "a.b.c.d.e", "é.é.é", "\ud800"):
            self.invalid(made, "no signed token")

    @settings(max_examples=100, deadline=None)
    @given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1))
    def test_any_text(self, made: str) -> None:
        """No text whatever in the place of a token is more than a refusal."""
        self.provider.token = made
        self.failureResultOf(self.redeem(), LoginFailed)


class ClaimTests(Base):
    def test_types(self) -> None:
        """Claims of impossible types are status 500."""
        for changes in (
            {"groups": "admins"},
            {"groups": {"admins": True}},
            {"groups": ["users", 5]},
            {"groups": ["x" * 257]},
            {"groups": ["g"] * 2001},
            {"preferred_username": ["alice"]},
            {"auth_time": "now"},
            {"auth_time": 9e11},
        ):
            self.provider.token = token(claims(**changes))
            self.refused("login_claims_invalid", 500, "")

    def test_no_object(self) -> None:
        """Signed claims that are no JSON object."""
        for payload in (b"[]", b"null", b"x", b"\xff", b"[" * 10_000):
            self.provider.token = jwt.PyJWS().encode(payload, RSA, algorithm="RS256", headers={"kid": "k1"})
            self.refused("login_claims_invalid", 500, "no JSON object")

    def test_username(self) -> None:
        """A user name that is missing or of bad syntax is status 400."""
        for name in (None, "", "a b", "alice\n", "älice", "x" * 65, "../etc"):
            self.provider.token = token(claims(preferred_username=name))
            self.refused("login_username_invalid", 400, "preferred_username")

    def test_no_groups(self) -> None:
        """No groups claim is no groups."""
        self.provider.token = token(claims(groups=None))
        self.assertEqual(self.identity().groups, ())

    def test_picture(self) -> None:
        """A picture that is no http URL is left out, never a reason to refuse."""
        for picture in ("javascript:alert(1)", 5, "https://x/\n", "https://" + "x" * 3000):
            self.provider.token = token(claims(picture=picture))
            self.assertEqual(self.identity().picture, "")


class KeyTests(Base):
    def test_cached(self) -> None:
        """The keys are fetched once."""
        self.identity()
        self.identity()
        self.assertEqual(self.provider.count("/keys"), 1)

    def rotate(self) -> None:
        self.provider.keys = [public_jwk(OTHER_RSA, kid="k2")]
        self.provider.token = token(key=OTHER_RSA, kid="k2")

    def test_rotated(self) -> None:
        """A token with an unknown key makes the keys be fetched anew."""
        self.identity()
        self.rotate()
        self.clock.advance(30)
        self.assertEqual(self.identity().username, "alice")
        self.assertEqual(self.provider.count("/keys"), 2)

    def test_same_name(self) -> None:
        """A new key under the old name is found, too."""
        self.identity()
        self.provider.keys = [public_jwk(OTHER_RSA, kid="k1")]
        self.provider.token = token(key=OTHER_RSA)
        self.clock.advance(30)
        self.assertEqual(self.identity().username, "alice")

    def test_invented(self) -> None:
        """Invented key ids cause one fetch in 30 s, not one each."""
        self.identity()
        self.clock.advance(30)
        for number in range(10):
            self.provider.token = token(kid=f"x{number}")
            self.refused("login_token_invalid", 500, "none of the provider's keys fits")
        self.assertEqual(self.provider.count("/keys"), 2)

    def test_shared(self) -> None:
        """Many sign-ins at once wait for one fetch."""
        self.provider.replies["/keys"] = None
        results = [self.redeem() for _ in range(5)]
        self.assertEqual(self.provider.count("/keys"), 1)
        self.clock.advance(10)
        for result in results:
            self.unavailable(result, "no answer within 10 s")

    def test_nonsense(self) -> None:
        """A key set that is none, or huge, says so."""
        for made, detail in (
            (reply({"keys": "x"}), "no list of keys"),
            (reply({}), "no list of keys"),
            (reply([]), "no JSON object"),
            ((200, {}, b"<html>"), "no JSON object"),
            ((503, {}, b""), "it answered 503"),
            ((301, {"location": "https://evil.example/"}, b""), "a redirect"),
            ((200, {}, b" " * (1 << 20)), "longer than"),
        ):
            self.provider.replies["/keys"] = made
            self.refused("login_token_invalid", 500, detail)

    def test_broken_keys(self) -> None:
        """Broken keys in the set are passed over."""
        broken = [
            5,
            {},
            {"kty": "RSA", "kid": "k1"},
            {"kty": "RSA", "kid": "k1", "n": "!", "e": 5},
            {"kty": "oct", "k": "x"},
        ]
        self.provider.keys = [*broken, public_jwk(RSA, kid="k1")]
        self.assertEqual(self.identity().username, "alice")

    def test_old_keys_serve(self) -> None:
        """While new keys cannot be fetched, tokens with the known ones still verify."""
        self.identity()
        self.provider.replies["/keys"] = reply({}, 503)
        self.clock.advance(60)
        self.assertEqual(self.identity().username, "alice")


class SplitTests(Base):
    """The provider has an internal and a public name."""

    def setUp(self) -> None:
        super().setUp()
        self.client = self.build(issuer_url="http://pocketid:1411", public_url=ISSUER)

    def test_public(self) -> None:
        """The browser goes to the public name; all else to the internal one."""
        self.assertTrue(self.successResultOf(self.url()).startswith(f"{ISSUER}/authorize?"))
        self.assertEqual(self.identity().username, "alice")
        self.assertEqual({asked.split()[1].split("/")[0] for asked in self.provider.asked}, {"pocketid:1411"})

    def test_internal_endpoints(self) -> None:
        """A provider that names itself internally works as well."""
        for name in ("issuer", "authorization_endpoint", "token_endpoint", "jwks_uri"):
            self.provider.metadata[name] = self.provider.metadata[name].replace(ISSUER, "http://pocketid:1411")
        self.assertTrue(self.successResultOf(self.url()).startswith(f"{ISSUER}/authorize?"))
        self.assertEqual(self.identity().username, "alice")

    def test_issuer_of_tokens(self) -> None:
        """The token must name the public issuer; the internal one is refused."""
        self.provider.token = token(claims(iss="http://pocketid:1411"))
        self.refused("login_token_invalid", 500, "issuer is 'http://pocketid:1411'")

    def test_third_party(self) -> None:
        """Endpoints at a third place are called there, with the host as it is."""
        self.provider.metadata["jwks_uri"] = "https://keys.example/keys"
        self.identity()
        self.assertEqual(self.provider.asked[-1], "GET keys.example/keys")

    def test_prefix(self) -> None:
        """A path prefix that only the public address has is taken off inside and put on outside."""
        names = Names("http://idp:80", "https://example.org/auth/")
        self.assertEqual(names.for_server("https://example.org:443/auth/token"), "http://idp:80/token")
        self.assertEqual(names.for_browsers("http://idp/authorize?x=1"), "https://example.org/auth/authorize?x=1")
        self.assertEqual(names.for_browsers("http://idp/auth/authorize"), "https://example.org/auth/authorize")
        self.assertEqual(names.for_browsers("https://example.org/auth/authorize"), "https://example.org/auth/authorize")

    def test_same_prefix(self) -> None:
        """A prefix that both have stays."""
        names = Names("http://kc:8080/realms/x", "https://sso.example/realms/x")
        path = "/realms/x/protocol/openid-connect/token"
        self.assertEqual(names.for_server(f"https://sso.example{path}"), f"http://kc:8080{path}")
        self.assertEqual(names.for_browsers(f"http://kc:8080{path}"), f"https://sso.example{path}")


class ProbeTests(Base):
    def probe(self) -> Deferred[bool]:
        return Deferred.fromCoroutine(self.client.probe())

    def test_up(self) -> None:
        """Any answer below 500 is up, and its body is not read."""
        self.assertTrue(self.successResultOf(self.probe()))
        self.provider.replies[DISCOVERY] = (404, {}, b"x" * (4 << 20))
        self.assertTrue(self.successResultOf(self.probe()))

    def test_down(self) -> None:
        """A 5xx is down."""
        self.provider.replies[DISCOVERY] = (500, {}, b"")
        self.assertFalse(self.successResultOf(self.probe()))

    def test_silent(self) -> None:
        """No answer within 2 s is down."""
        self.provider.replies[DISCOVERY] = None
        result = self.probe()
        self.clock.advance(1.9)
        self.assertNoResult(result)
        self.clock.advance(0.2)
        self.assertFalse(self.successResultOf(result))
