"""
What all escrow back ends behind HTTP have in common: bounded requests with the one rule that only 2xx is success,
tokens that are kept for as long as they are lent, and messages without secrets.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus, urlsplit

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.defer import TimeoutError as Late

from identree.app.escrow import SHOWN_BYTES, EscrowFailed
from identree.clients.http import Answer, Fetch, Nonsense, Unanswered
from identree.core.escrow import LONGEST_ID, OPERATION_SECONDS, checked_password

T = TypeVar("T")

REQUEST_SECONDS = 30.0
ANSWER_BYTES = 1 << 20
# Of what a back end says about a failure: taken from it, before secrets are struck out.
LOOKED_AT_BYTES = 16_384
# A token is not used in the last seconds of its life: the request that it goes with takes some.
TOKEN_MARGIN_SECONDS = 10.0
# A password is no longer than this; an answer with a longer one is of something else.
LONGEST_ANSWERED_PASSWORD = 4096

_HINTS = {
    401: "; the credentials are wrong or have ended",
    403: "; the credentials are wrong, have ended, or may not do this",
    404: "; there is no such thing, check IDENTREE_ESCROW_URL, IDENTREE_ESCROW_PATH and IDENTREE_ESCROW_VAULT_MAP",
    429: "; too many requests, it asks to wait",
    503: "; it is sealed, overloaded or in maintenance",
}


def base_url(url: str) -> str:
    """
    ``IDENTREE_ESCROW_URL`` without the slashes at its end.

    :raise ValueError: it cannot be used; says what to do.
    """
    plain = url.rstrip("/")
    try:
        parts = urlsplit(plain)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("IDENTREE_ESCROW_URL: an http(s) address without ? and # is needed for this back end")
    if "@" in parts.netloc:
        # it would stand in item ids, and so in the database and on pages
        raise ValueError(
            "IDENTREE_ESCROW_URL: no user name or password may stand in it; use IDENTREE_ESCROW_AUTH_ID and "
            "IDENTREE_ESCROW_AUTH_SECRET"
        )
    return plain


def needed(value: str, variable: str, backend: str) -> str:
    """:raise ValueError: the setting is empty; says which one."""
    if not value:
        raise ValueError(f"{variable} is needed for the escrow back end {backend}")
    return value


def header_value(value: str, variable: str) -> str:
    """A secret that goes into a header. :raise ValueError: it cannot; says which setting, not its value."""
    if not value.isascii() or not value.isprintable():
        raise ValueError(f"{variable}: only printable ASCII characters can be sent to the escrow back end")
    return value


class Refusal(EscrowFailed):
    """The back end has answered, but not with 2xx. :ivar status: what it answered instead."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


class _WithBody:
    """The client, sending ``body`` as it is; requests of :class:`Fetch` have forms or nothing."""

    def __init__(self, http: Any, body: bytes) -> None:
        self._http, self._body = http, body

    def request(self, method: str, url: str, **options: Any) -> Any:
        return self._http.request(method, url, **{**options, "data": self._body})


class Calls:
    """
    Requests to one back end.

    :param http: anything with treq's ``request``.
    :param clock: an ``IReactorTime``; measures the time limits.
    :param product: what people call the back end.
    :param secrets: that no message may quote, whatever the back end says.
    """

    def __init__(self, http: Any, clock: Any, product: str, secrets: Sequence[str]) -> None:
        self._http, self.clock, self.product = http, clock, product
        self._secrets = tuple(secrets)

    def check_password(self, password: str) -> None:
        """:raise EscrowFailed: it cannot be stored; nothing was sent."""
        try:
            checked_password(password)
        except ValueError as problem:
            raise EscrowFailed(f"{self.product}: {problem}") from None

    async def whole(self, work: Awaitable[T]) -> T:
        """
        An operation, with all its requests, in :data:`OPERATION_SECONDS`.

        :raise EscrowFailed: it took longer; or what ``work`` raises.
        """
        done: Deferred[T] = Deferred.fromCoroutine(work)  # type: ignore[arg-type]
        done.addTimeout(OPERATION_SECONDS, self.clock)
        try:
            return await done
        except Late:
            raise EscrowFailed(f"{self.product}: not done within {OPERATION_SECONDS:g} s") from None

    async def __call__(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        document: Mapping[str, object] | None = None,
        form: Mapping[str, str] | None = None,
        secrets: Sequence[str] = (),
    ) -> dict[str, Any]:
        """
        One request.

        :param document: sent as JSON.
        :param form: sent as a form.
        :param secrets: of this request, that no message may quote.
        :returns: the object that it answers; empty when there is no body or another value in it.
        :raise Refusal: any status but 2xx. A redirection is none: whoever redirects has stored nothing.
        :raise EscrowFailed: no answer.
        """
        answer = await self._answer(method, url, dict(headers or {}), document, form)
        if not 200 <= answer.status < 300:
            raise Refusal(self._complaint(answer, (*self._secrets, *secrets)), answer.status)
        return json_object(answer.body)

    async def listed(self, url: str, headers: Mapping[str, str]) -> list[dict[str, Any]]:
        """A ``GET`` whose answer is an array; its objects. Raises as a call does."""
        answer = await self._answer("GET", url, dict(headers), None, None)
        if not 200 <= answer.status < 300:
            raise Refusal(self._complaint(answer, self._secrets), answer.status)
        return objects(parsed(answer.body))

    async def _answer(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        document: Mapping[str, object] | None,
        form: Mapping[str, str] | None,
    ) -> Answer:
        http = self._http
        if document is not None:
            headers["Content-Type"] = "application/json"
            http = _WithBody(http, json.dumps(document).encode())
        try:
            return await Fetch(http, self.clock)(
                method, url, limit=ANSWER_BYTES, seconds=REQUEST_SECONDS, headers=headers, data=form
            )
        except (Unanswered, Nonsense) as problem:
            raise EscrowFailed(f"{self.product}: {problem}") from None

    def _complaint(self, answer: Answer, secrets: Sequence[str]) -> str:
        hint = _HINTS.get(answer.status, "")
        if 300 <= answer.status < 400:
            hint = "; redirects are not followed, give IDENTREE_ESCROW_URL as it is after them"
        said = shown(answer.body, secrets)
        return f"{self.product}: HTTP {answer.status}{f': {said}' if said else ''}{hint}"


def shown(raw: bytes, secrets: Sequence[str]) -> str:
    """
    The beginning of what somebody else said, in one line of at most :data:`SHOWN_BYTES` bytes, without the secrets, in
    whatever form they are said back.
    """
    forms: set[str] = set()
    for secret in filter(None, secrets):
        forms |= {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
        forms |= {quote(secret, safe=""), quote_plus(secret)}
    text = raw[:LOOKED_AT_BYTES].decode("utf-8", "replace")
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "***")
    if len(raw) > LOOKED_AT_BYTES and forms:
        # it may end in a part of a secret
        text = text[: -max(map(len, forms))]
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain.encode()[:SHOWN_BYTES].decode("utf-8", "ignore")


# -- answers ----------------------------------------------------------------------------------------------------------
def parsed(raw: bytes) -> object:
    """The JSON value; None when it is none."""
    try:
        value: object = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value


def json_object(raw: bytes) -> dict[str, Any]:
    return part(parsed(raw))


def part(value: object, *keys: str) -> dict[str, Any]:
    """The object inside; empty where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def number(value: object) -> float:
    """A positive number of seconds; 0 for everything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else 0.0


def identifier(value: object, product: str) -> str:
    """An id that can be stored. :raise EscrowFailed: the answer has none."""
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_ID or not value.isprintable():
        raise EscrowFailed(f"{product}: the answer has no usable id, so the password may not be found again")
    return value


def password_in(value: object, product: str) -> str:
    """:raise EscrowFailed: the answer has no password."""
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_ANSWERED_PASSWORD:
        raise EscrowFailed(f"{product}: the answer has no password")
    return value


# -- tokens -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """
    What a login gives.

    :ivar seconds: how long it is good for; 0: nobody says, so it is used for one operation only.
    :ivar extra: what else came with it, for the back end itself.
    """

    token: str = field(repr=False)
    seconds: float
    renewable: bool = False
    extra: bytes = field(default=b"", repr=False)


class Lease:
    """
    A token that is asked for once and used for as long as it is lent.

    :param monotonic: seconds on a clock that never steps; the token's life runs on it.
    :param login: asks for one. :raise EscrowFailed: it was not given.
    :param renew: asks for more time, at half of it; without it, or when it fails, the login is repeated.
    """

    def __init__(
        self,
        monotonic: Callable[[], float],
        login: Callable[[], Awaitable[Grant]],
        renew: Callable[[str], Awaitable[Grant]] | None = None,
    ) -> None:
        self._monotonic, self._login, self._renew = monotonic, login, renew
        self._grant: Grant | None = None
        self._renew_at = self._ends_at = 0.0
        # many hosts that come at once need one login between them
        self._lock = DeferredLock()

    async def with_token(self, work: Callable[[Grant], Awaitable[T]], refused: Sequence[int] = (401, 403)) -> T:
        """
        :param work: may be called a second time, with a new token, when the kept one is not accepted any more.
        :param refused: the statuses that say so.
        """
        grant, kept = await self._current()
        try:
            return await work(grant)
        except Refusal as refusal:
            if not kept or refusal.status not in refused:
                raise
        self._drop(grant)
        grant, _ = await self._current()
        return await work(grant)

    async def current(self) -> Grant:
        return (await self._current())[0]

    def _drop(self, grant: Grant) -> None:
        if self._grant is grant:
            self._grant = None

    async def _current(self) -> tuple[Grant, bool]:
        """The token, and whether it was there already."""
        await self._lock.acquire()
        try:
            now = self._monotonic()
            if self._grant is not None and now < self._renew_at:
                return self._grant, True
            if self._grant is not None and now < self._ends_at and self._grant.renewable and self._renew is not None:
                try:
                    return self._kept(await self._renew(self._grant.token)), True
                except EscrowFailed:
                    # a new one is as good
                    self._grant = None
            return self._kept(await self._login()), False
        finally:
            self._lock.release()

    def _kept(self, grant: Grant) -> Grant:
        now = self._monotonic()
        self._ends_at = now + grant.seconds - TOKEN_MARGIN_SECONDS
        half = grant.seconds / 2 if grant.renewable and self._renew is not None else grant.seconds
        self._renew_at = min(now + half, self._ends_at)
        self._grant = grant if grant.seconds > TOKEN_MARGIN_SECONDS else None
        return grant
