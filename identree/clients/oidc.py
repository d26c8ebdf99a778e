"""
The OpenID Connect provider as identree sees it: discovery, the authorization code flow with PKCE, the ID token
(spec/web-ui section 3; OpenID Connect Core 1.0 and Discovery 1.0; RFC 6749, 7636).

The provider may be reached under two names: an internal one for the server's own requests and a public one for
browsers, which is also the ``iss`` of its tokens.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Generic, TypeVar
from urllib.parse import SplitResult, quote_plus, urlencode, urlsplit, urlunsplit

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from identree.app.ports import Identity, Monotonic, Now
from identree.clients import idtoken
from identree.clients.http import Answer, Fetch, Nonsense, Unanswered, build_http_client
from identree.core.errors import LoginFailed, ProviderUnavailable

__all__ = ["OIDCProvider", "build_http_client"]

T = TypeVar("T")

SCOPES = "openid profile email groups"

DISCOVERY_SECONDS = 10.0
# A person who wants to sign in waits at most so long for discovery, which itself goes on.
SIGN_IN_PATIENCE_SECONDS = 3.0
DISCOVERY_LIMIT = 512 << 10
KEYS_SECONDS = 10.0
KEYS_LIMIT = 512 << 10
EXCHANGE_SECONDS = 15.0
TOKEN_LIMIT = 64 << 10
PROBE_SECONDS = 2.0

# Pauses between tries while there is no metadata; the last one repeats.
BACK_OFF_SECONDS = (2.0, 4.0, 8.0, 16.0, 32.0)
# Metadata that is in use is read again so often.
REFRESH_SECONDS = 3600.0
# Metadata under suspicion (a request to one of its addresses failed) is read again, at most so often.
SUSPICION_SECONDS = 30.0
# Keys are fetched again for an unknown or failing key at most so often: tokens with invented keys cost nothing.
KEYS_PAUSE_SECONDS = 30.0
# A try on behalf of a person who wants to sign in, after one that failed.
EAGER_PAUSE_SECONDS = 1.0

_ERROR_CODE = re.compile(r"[a-z_]{1,40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """
    What discovery told, with server-side addresses as the server must call them.

    :ivar secret_in_body: the provider does not take the client's secret in the Authorization header.
    """

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    secret_in_body: bool


class OIDCProvider(Service):
    """
    An :class:`~identree.app.ports.IdentityProvider`. Running as a service it discovers the provider by itself, keeps
    trying, and reads its metadata again from time to time; nothing else waits for that.

    :param http: anything with treq's ``request``; see :func:`build_http_client`.
    :param clock: an ``IReactorTime``.
    :param issuer_url: where the server finds the provider; empty: there is none, and nobody can sign in.
    :param public_url: where browsers find it, and the ``iss`` of its tokens; empty when it is the same.
    :param leeway: by which the provider's clock may differ from ours.
    :param observe_exchange: told how long each code exchange took, failed ones too, in seconds.
    :raise ValueError: one of the addresses is no http or https URL.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        http: Any,
        clock: Any,
        now: Now,
        issuer_url: str,
        client_id: str,
        client_secret: str,
        redirect_uri: str,
        public_url: str = "",
        leeway: timedelta = timedelta(seconds=60),
        observe_exchange: Callable[[float], object] = lambda seconds: None,
        monotonic: Monotonic = time.monotonic,
    ) -> None:
        self._issuer_url, self._public_url = issuer_url, public_url
        self._client_id, self._client_secret, self._redirect_uri = client_id, client_secret, redirect_uri
        self._leeway = leeway
        self._names = Names(issuer_url, public_url) if issuer_url else None
        self._fetch = Fetch(http, clock)
        self._clock, self._now, self._monotonic = clock, now, monotonic
        self._observe_exchange = observe_exchange
        self._metadata: Metadata | None = None
        self._trouble = ""
        self._discovered_at = float("-inf")
        self._suspected = False
        self._discovery: Shared[Metadata] = Shared(self._discover)
        self._keys: idtoken.Keys | None = None
        self._keys_at = float("-inf")
        self._key_fetch: Shared[idtoken.Keys] = Shared(self._fetch_keys)
        self._secret_in_body: bool | None = None
        self._work: Deferred[None] | None = None

    # -- the service --------------------------------------------------------------------------------------------------
    def startService(self) -> None:
        super().startService()
        if self._public_url:
            self._log.info(
                "identity provider: requests go to {internal}, browsers and tokens say {public}",
                internal=self._issuer_url,
                public=self._public_url,
            )
        if self._names is not None:
            self._work = Deferred.fromCoroutine(self._keep_discovering())

    def stopService(self) -> Deferred[None] | None:
        super().stopService()
        self._discovery.cancel()
        self._key_fetch.cancel()
        work, self._work = self._work, None
        if work is not None:
            work.cancel()
        return work

    async def _keep_discovering(self) -> None:
        failures = 0
        with suppress(CancelledError):
            while True:
                try:
                    await self._discovery.result()
                except ProviderUnavailable:
                    pause = BACK_OFF_SECONDS[min(failures, len(BACK_OFF_SECONDS) - 1)]
                    failures += 1
                except CancelledError:
                    raise
                except Exception:  # logged where the work ended
                    pause = BACK_OFF_SECONDS[-1]
                else:
                    pause, failures = REFRESH_SECONDS, 0
                await deferLater(self._clock, pause)

    # -- discovery ----------------------------------------------------------------------------------------------------
    async def _discover(self) -> Metadata:
        """:raise ProviderUnavailable: there is no metadata; what was known before stays in use."""
        if self._names is None:
            raise ProviderUnavailable("no identity provider is configured: set IDENTREE_OIDC_ISSUER_URL")
        self._discovered_at = self._monotonic()
        url = self._names.discovery_url
        try:
            answer = await self._fetch("GET", url, limit=DISCOVERY_LIMIT, seconds=DISCOVERY_SECONDS)
            metadata = self._read_metadata(self._names, answer)
        except (Unanswered, Nonsense) as e:
            if str(e) != self._trouble:
                self._log.warn("identity provider: no usable discovery: {reason}", reason=str(e))
            self._trouble = str(e)
            raise ProviderUnavailable(f"discovery: {e}") from None
        if self._trouble or self._metadata is None:
            self._log.info("identity provider: discovered {issuer}", issuer=self._issuer_url)
        self._trouble, self._suspected = "", False
        if self._metadata is None or metadata.jwks_uri != self._metadata.jwks_uri:
            self._keys, self._keys_at = None, float("-inf")
        self._metadata = metadata
        return metadata

    def _read_metadata(self, names: Names, answer: Answer) -> Metadata:
        """OpenID Connect Discovery 1.0 section 4.3. :raise Nonsense: with what is wrong."""
        document = _json_object(answer)
        issuer = document.get("issuer")
        if not self._public_url and issuer != self._issuer_url:
            raise Nonsense(
                f"it calls itself {str(issuer)[:200]!r}; IDENTREE_OIDC_ISSUER_URL must be exactly that "
                "(or set IDENTREE_OIDC_ISSUER_PUBLIC_URL)"
            )
        try:
            methods = document.get("token_endpoint_auth_methods_supported")
            return Metadata(
                authorization_endpoint=names.for_browsers(document.get("authorization_endpoint")),
                token_endpoint=names.for_server(document.get("token_endpoint")),
                jwks_uri=names.for_server(document.get("jwks_uri")),
                secret_in_body=isinstance(methods, list)
                and "client_secret_post" in methods
                and "client_secret_basic" not in methods,
            )
        except ValueError as e:
            raise Nonsense(f"an endpoint of the discovery document is unusable: {e}") from None

    async def _known(self, patience: float = DISCOVERY_SECONDS) -> Metadata:
        """
        The metadata; without any, or with some under suspicion, a try is made at once, shared by all who wait.

        :param patience: seconds.
        :raise ProviderUnavailable: there is none, or none yet.
        """
        since = self._monotonic() - self._discovered_at
        if self._metadata is not None:
            if self._suspected and since >= SUSPICION_SECONDS:
                self._discovery.start()
            return self._metadata
        if self._trouble and since < EAGER_PAUSE_SECONDS:
            raise ProviderUnavailable(f"discovery: {self._trouble}")
        discovered = self._discovery.result()
        if patience < DISCOVERY_SECONDS:
            discovered.addTimeout(patience, self._clock)
        try:
            return await discovered
        except TimedOut:
            raise ProviderUnavailable(f"discovery: no answer within {patience:g} s") from None

    # -- IdentityProvider ---------------------------------------------------------------------------------------------
    async def authorization_url(
        self, *, state: str, nonce: str, code_challenge: str, max_age: int | None = None
    ) -> str:
        """See :class:`~identree.app.ports.IdentityProvider`."""
        endpoint = urlsplit((await self._known(SIGN_IN_PATIENCE_SECONDS)).authorization_endpoint)
        query = urlencode(
            {
                "response_type": "code",
                "client_id": self._client_id,
                "redirect_uri": self._redirect_uri,
                "scope": SCOPES,
                "state": state,
                "nonce": nonce,
                "code_challenge": code_challenge,
                "code_challenge_method": "S256",
                **({} if max_age is None else {"max_age": str(max_age), "prompt": "login"}),
            },
            quote_via=quote_plus,
        )
        return urlunsplit(endpoint._replace(query=f"{endpoint.query}&{query}" if endpoint.query else query))

    async def redeem(self, *, code: str, verifier: str, nonce: str) -> Identity:
        """See :class:`~identree.app.ports.IdentityProvider`."""
        metadata = await self._known()
        began = self._monotonic()
        try:
            token = await self._exchange(metadata, code, verifier, began + EXCHANGE_SECONDS)
        finally:
            self._observe_exchange(self._monotonic() - began)
        claims = await self._verified(token)
        idtoken.check(
            claims,
            issuer=self._public_url or self._issuer_url,
            client_id=self._client_id,
            nonce=nonce,
            now=self._now(),
            leeway_seconds=self._leeway.total_seconds(),
        )
        return replace(idtoken.identity(claims), id_token=token)

    async def probe(self) -> bool:
        """Whether the provider answers its discovery address within 2 s; for ``/healthz``. Never raises."""
        if self._names is None:
            return False
        try:
            answer = await self._fetch("GET", self._names.discovery_url, limit=0, seconds=PROBE_SECONDS)
        except (Unanswered, Nonsense):
            return False
        return answer.status < 500

    # -- the exchange (RFC 6749 section 4.1.3) ------------------------------------------------------------------------
    async def _exchange(self, metadata: Metadata, code: str, verifier: str, deadline: float) -> str:
        """The ID token for the code. :raise LoginFailed: refused. :raise ProviderUnavailable: no answer."""
        grant = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": verifier,
        }
        in_body = metadata.secret_in_body if self._secret_in_body is None else self._secret_in_body
        answer = await self._token_request(metadata, grant, deadline, in_body=in_body)
        if _refuses_client(answer):
            # The other way of showing the secret; a code that was not looked at is still good.
            second = await self._token_request(metadata, grant, deadline, in_body=not in_body)
            if not _refuses_client(second):
                answer = second
            if second.status == 200:
                self._secret_in_body = not in_body
        if answer.status != 200:
            if answer.status >= 500 or answer.status == 404:
                self._suspected = True
            raise LoginFailed("login_exchange_failed", 500, f"the token endpoint answered {_described(answer)}")
        try:
            token = _json_object(answer).get("id_token")
        except Nonsense as e:
            raise LoginFailed("login_exchange_failed", 500, f"the token endpoint's answer: {e}") from None
        if not isinstance(token, str) or not token:
            raise LoginFailed(
                "login_no_id_token", 500, "the token endpoint sent no ID token; is the scope openid allowed?"
            )
        return token

    async def _token_request(
        self, metadata: Metadata, grant: dict[str, str], deadline: float, *, in_body: bool
    ) -> Answer:
        client_id, secret = self._client_id, self._client_secret
        headers = {}
        if in_body:
            grant = {**grant, "client_id": client_id, "client_secret": secret}
        else:  # each part form-encoded first: RFC 6749 section 2.3.1
            pair = f"{quote_plus(client_id)}:{quote_plus(secret)}"
            headers = {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
        seconds = max(0.001, deadline - self._monotonic())
        try:
            return await self._fetch(
                "POST", metadata.token_endpoint, limit=TOKEN_LIMIT, seconds=seconds, headers=headers, data=grant
            )
        except Unanswered as e:
            self._suspected = True
            raise ProviderUnavailable(f"token endpoint: {e}") from None
        except Nonsense as e:
            raise LoginFailed("login_exchange_failed", 500, f"the token endpoint: {e}") from None

    # -- keys ---------------------------------------------------------------------------------------------------------
    async def _verified(self, token: str) -> idtoken.Claims:
        """The token's claims, after fetching the keys anew if the known ones do not do."""
        if self._keys is not None:
            try:
                return idtoken.signed_claims(token, self._keys)
            except idtoken.UnknownKey as e:
                if self._monotonic() - self._keys_at < KEYS_PAUSE_SECONDS and not self._key_fetch.running:
                    raise idtoken.invalid(str(e)) from None
        keys = await self._key_fetch.result()
        try:
            return idtoken.signed_claims(token, keys)
        except idtoken.UnknownKey as e:
            self._suspected = True
            raise idtoken.invalid(str(e)) from None

    async def _fetch_keys(self) -> idtoken.Keys:
        metadata = await self._known()
        self._keys_at = self._monotonic()
        try:
            document = _json_object(await self._fetch("GET", metadata.jwks_uri, limit=KEYS_LIMIT, seconds=KEYS_SECONDS))
            self._keys = idtoken.usable_keys(document)
        except Unanswered as e:
            self._suspected = True
            raise ProviderUnavailable(f"the provider's keys: {e}") from None
        except (Nonsense, ValueError) as e:
            self._suspected = True
            raise idtoken.invalid(f"the provider's keys: {e}") from None
        return self._keys


class Names:
    """
    The provider's internal and public address, and which of them stands in an endpoint.

    :raise ValueError: one of them is no http or https URL.
    """

    def __init__(self, issuer_url: str, public_url: str) -> None:
        self._internal = _split(issuer_url)
        self._public = _split(public_url) if public_url else None
        self.discovery_url = issuer_url.rstrip("/") + "/.well-known/openid-configuration"

    def for_server(self, endpoint: object) -> str:
        """
        An endpoint as the server must call it: at the internal address when it is at the public one.

        :raise ValueError: no usable URL, or one that would send secrets unencrypted where the issuer is encrypted.
        """
        url = _split(endpoint)
        if self._public is not None and _origin(url) == _origin(self._public):
            url = _moved(url, self._public, self._internal)
        if self._internal.scheme == "https" and url.scheme != "https":
            raise ValueError(f"{urlunsplit(url)[:200]!r} is not https, but the issuer is")
        return urlunsplit(url)

    def for_browsers(self, endpoint: object) -> str:
        """An endpoint as browsers must call it: always at the public address, when there is one."""
        url = _split(endpoint)
        if self._public is not None and _origin(url) == _origin(self._internal):
            url = _moved(url, self._internal, self._public)
        elif self._public is not None:
            url = url._replace(scheme=self._public.scheme, netloc=self._public.netloc)
        return urlunsplit(url)


def _split(url: object) -> SplitResult:
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url or len(url) > 2048:
        raise ValueError(f"{url!r:.200} is no URL")
    parts = urlsplit(url)
    _origin(parts)  # reads the port, which raises ValueError when it is none
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or parts.fragment:
        raise ValueError(f"{url[:200]!r} is no plain http or https URL")
    return parts


def _origin(url: SplitResult) -> tuple[str, str, int]:
    return url.scheme, url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def _moved(url: SplitResult, source: SplitResult, target: SplitResult) -> SplitResult:
    """The URL at the other address, the path prefix of the one replaced by that of the other where they differ."""
    old, new = source.path.rstrip("/"), target.path.rstrip("/")
    path = url.path
    if path.startswith(old + "/") and not (new and path.startswith(new + "/")):
        path = new + path[len(old) :]
    return url._replace(scheme=target.scheme, netloc=target.netloc, path=path)


def _json_object(answer: Answer) -> dict[str, Any]:
    """:raise Nonsense: the answer is no success, or no JSON object."""
    if answer.status != 200:
        raise Nonsense(f"it answered {_described(answer)}")
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Nonsense("its answer is no JSON object")
    return document


def _described(answer: Answer) -> str:
    """The status, and the error code of RFC 6749 section 5.2 if there is one; no free text, which may quote secrets."""
    if 300 <= answer.status < 400:
        return f"{answer.status} (a redirect; write the final address into the settings)"
    code = _error_code(answer)
    return f"{answer.status} {code}" if code else str(answer.status)


def _error_code(answer: Answer) -> str:
    try:
        code = json.loads(answer.body)["error"]
    except (ValueError, RecursionError, KeyError, TypeError, IndexError):
        return ""
    return code if isinstance(code, str) and _ERROR_CODE.fullmatch(code) else ""


def _refuses_client(answer: Answer) -> bool:
    return answer.status == 401 or (answer.status == 400 and _error_code(answer) == "invalid_client")


class Shared(Generic[T]):
    """
    One piece of work under way at a time, whose result all who ask meanwhile get. It goes on when one of them leaves.
    """

    _log = Logger()

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._running: Deferred[T] | None = None
        self._waiting: list[Deferred[T]] = []

    @property
    def running(self) -> bool:
        return self._running is not None

    def result(self) -> Deferred[T]:
        """The result of the work under way, or of new work."""
        waiter: Deferred[T] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        self.start()
        return waiter

    def start(self) -> None:
        """Begin, if it is not under way; whoever is not waiting does not learn of a failure."""
        if self._running is None:
            running: Deferred[T] = Deferred.fromCoroutine(self._work())
            self._running = running
            running.addBoth(self._done)

    def cancel(self) -> None:
        if self._running is not None:
            self._running.cancel()

    def _done(self, result: T | Failure) -> None:
        self._running = None
        if isinstance(result, Failure) and not result.check(ProviderUnavailable, LoginFailed, CancelledError):
            self._log.failure("identity provider", failure=result)  # a bug, even if nobody waits
        waiting, self._waiting[:] = list(self._waiting), []
        for waiter in waiting:
            waiter.callback(result)  # a Failure makes it an errback
