"""
Routes with the error table: refusals of the domain become answers here and nowhere else (style guide, web adapters).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import quote

from klein import Klein
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from identree.core import durations, errors, names
from identree.core.errors import Refused
from identree.core.requests import current
from identree.web.reading import form, wants_json
from identree.web.replies import RETRY_UNAVAILABLE_SECONDS, json_error, retry_after, text

# The status of each refusal that a person can meet; the first that fits. What is not listed is a 403.
STATUSES: tuple[tuple[type[Refused], int], ...] = (
    (errors.Invalid, 400),
    (errors.JustificationRequired, 400),
    (errors.Unauthorized, 401),
    (errors.Throttled, 429),
    (errors.TooManyPending, 429),
    (errors.NotFound, 404),
    (errors.DuplicateApproval, 409),
    (errors.Superseded, 409),
    (errors.PoliciesChanged, 409),
    (errors.OneTapUsed, 409),
    (errors.OneTapExpired, 410),
)

LOGIN_PATH = "/sessions/login"

# Message keys of cards that are no refusals of the domain.
STORAGE_UNAVAILABLE = "storage_unavailable"
PROVIDER_UNAVAILABLE = "provider_unavailable"
SIGNED_OUT = "signed_out"

UNAVAILABLE_TEXT = "the server cannot reach its database, please try again"
UNRECORDED_TEXT = "the server cannot record this, its disk is full or read-only; please tell its administrator"


def unavailable_text(error: Exception) -> str:
    """What people are told when the database or the audit log cannot take it."""
    return UNRECORDED_TEXT if getattr(error, "reason", "") == "full" else UNAVAILABLE_TEXT


_log = Logger()


class Cards(Protocol):
    """Draws card pages in the reader's language; the page templates fulfil it."""

    def card(self, request: IRequest, status: int, key: str, *, retry: str | None = None, detail: str = "") -> bytes:
        """
        Set status and headers and return the page.

        :param key: message key of title and sentence.
        :param retry: where "Try again" leads.
        :param detail: shown beside the sentence; text, not markup.
        """

    def sentence(self, request: IRequest, key: str) -> str:
        """The sentence of a key, for scripts."""


class Answers(Protocol):
    """How a class of routes says no."""

    def refused(self, request: IRequest, refusal: Refused) -> bytes: ...

    def unavailable(self, request: IRequest, error: Exception) -> bytes:
        """Nothing was done; trying again may help."""

    def wrong_method(self, request: IRequest) -> bytes: ...


def status_of(refusal: Refused) -> int:
    """The HTTP status of a refusal."""
    if isinstance(refusal, errors.LoginFailed):
        return refusal.status
    for kind, status in STATUSES:
        if isinstance(refusal, kind):
            return status
    return 403


def way_back(request: IRequest, refusal: Refused) -> str | None:
    """
    To the page of a form that was refused for want of a session or a fresh token: through the sign-in where that is
    what helps, else straight. The form names its page in the field ``page``, or ``from``.
    """
    signs_in = isinstance(refusal, errors.SessionExpired | errors.FreshLoginRequired)
    if not signs_in and not isinstance(refusal, errors.FormExpired | errors.BadCsrfToken):
        return None
    try:
        fields = form(request)
    except errors.Invalid:
        fields = {}
    page = names.local_path(fields.get("page") or fields.get("from", ""))
    if isinstance(refusal, errors.FreshLoginRequired):
        return step_up(page, refusal)
    return f"{LOGIN_PATH}?next={quote(page, safe='/')}" if signs_in else page


def step_up(page: str, refusal: errors.FreshLoginRequired) -> str:
    """
    The sign-in that satisfies the refusal and comes back to the page.

    :param page: a local path.
    """
    try:
        seconds = int(durations.parse(refusal.detail).total_seconds())
    except ValueError:
        seconds = 0
    return f"{LOGIN_PATH}?next={quote(page, safe='/')}&fresh={seconds}"


def hint(request: IRequest, refusal: Refused) -> None:
    """``Retry-After``, where waiting helps."""
    if isinstance(refusal, errors.Throttled):
        retry_after(request, refusal.retry_after)


class TextAnswers:
    """``T(...)``: plain text."""

    def refused(self, request: IRequest, refusal: Refused) -> bytes:
        hint(request, refusal)
        return text(request, status_of(refusal), refusal.key.replace("_", " "))

    def unavailable(self, request: IRequest, error: Exception) -> bytes:
        retry_after(request, RETRY_UNAVAILABLE_SECONDS)
        return text(request, 503, unavailable_text(error))

    def wrong_method(self, request: IRequest) -> bytes:
        return text(request, 405, "method not allowed")


class CardAnswers(TextAnswers):
    """``CARD(...)``: a page for people; for our own scripts the same as JSON with the sentence, and the way on."""

    def __init__(self, cards: Cards) -> None:
        self._cards = cards

    def refused(self, request: IRequest, refusal: Refused) -> bytes:
        hint(request, refusal)
        return self.say(request, status_of(refusal), refusal.key, retry=way_back(request, refusal))

    def unavailable(self, request: IRequest, error: Exception) -> bytes:
        retry_after(request, RETRY_UNAVAILABLE_SECONDS)
        key = PROVIDER_UNAVAILABLE if isinstance(error, errors.ProviderUnavailable) else STORAGE_UNAVAILABLE
        return self.say(request, 503, key)

    def say(self, request: IRequest, status: int, key: str, *, retry: str | None = None) -> bytes:
        if wants_json(request):
            more = {} if retry is None else {"retry": retry}
            return json_error(request, status, key, message=self._cards.sentence(request, key), **more)
        return self._cards.card(request, status, key, retry=retry)


class Router(Klein):
    """
    A Klein born with the error table; every class of routes makes its own, and has ``answers: Answers``.

    Paths are exact: no redirects to or from a trailing slash, no automatic HEAD.
    """

    def __init__(self) -> None:
        super().__init__()
        self.url_map.strict_slashes = False
        self.url_map.merge_slashes = False
        # Klein's types know only handlers without an instance
        unroutable: Any = _unroutable
        failed: Any = _failed
        self.handle_errors(HTTPException)(unroutable)
        self.handle_errors(Exception)(failed)


class Routes(Protocol):
    """A class of routes."""

    @property
    def router(self) -> Router: ...

    @property
    def answers(self) -> Answers: ...


def _failed(routes: Any, request: IRequest, failure: Failure) -> bytes:
    return answer(routes.answers, request, failure)


def _unroutable(routes: Any, request: IRequest, failure: Failure) -> bytes:
    if isinstance(failure.value, MethodNotAllowed):
        allow(request, *(failure.value.valid_methods or ()))
        body: bytes = routes.answers.wrong_method(request)
        return body
    return not_found(request)


def allow(request: IRequest, *methods: str) -> None:
    """The header of a 405. HEAD, which frameworks add, is not among what we allow."""
    names = sorted({method for method in methods if method not in ("HEAD", "OPTIONS")})
    request.responseHeaders.setRawHeaders(b"Allow", [", ".join(names).encode("ascii")])


def not_found(request: IRequest) -> bytes:
    return text(request, 404, "404 page not found")


def log_crash(request: Any, failure: Failure) -> None:
    """
    The line of a bug. The path stands in it as its template, since what stands in the place of a variable part is
    somebody's code or the id of a challenge.
    """
    client = request.getClientAddress()
    attributes = {
        "request_id": getattr(request, "request_id", None) or "",
        "remote": getattr(client, "host", ""),
        "method": request.method.decode("latin-1"),
        "path": getattr(request, "route", ""),
        "value": f"{getattr(failure.type, '__name__', failure.type)}: {failure.getErrorMessage()}",
        "stack": failure.getTraceback(),
    }
    _log.failure("panic in handler", failure, attributes=attributes)


def internal_error(request: IRequest, failure: Failure) -> bytes:
    """A bug: all of it to the log, nothing to the client but what names the line in the log (its headers)."""
    log_crash(request, failure)
    return text(request, 500, "internal error")


@contextmanager
def _on_behalf_of(request: IRequest) -> Iterator[None]:
    """Log lines are the request's again: what is called when a coroutine has ended does not run in its context."""
    before = current.set(getattr(request, "request_id", None) or "")
    try:
        yield
    finally:
        current.reset(before)


def answer(answers: Answers, request: IRequest, failure: Failure) -> bytes:
    """The error table."""
    with _on_behalf_of(request):
        return _answer(answers, request, failure)


def _answer(answers: Answers, request: IRequest, failure: Failure) -> bytes:
    error = failure.value
    if isinstance(error, Refused):
        return answers.refused(request, error)
    if isinstance(error, errors.StorageUnavailable | errors.ProviderUnavailable):
        # the store tells the log once; thousands of requests need not
        _log.debug("unavailable: {error}", error=error)
        return answers.unavailable(request, error)
    return internal_error(request, failure)


Handler = Callable[[IRequest], Awaitable[bytes | None]]


class Direct(Resource):
    """
    One handler without a router, for what is asked thousands of times per second.

    :param handler: returns the body, or None when it has finished the answer itself. It is cancelled when the client
        hangs up.
    """

    isLeaf = True

    def __init__(self, handler: Handler, answers: Answers, methods: frozenset[bytes]) -> None:
        super().__init__()
        self._handler = handler
        self._answers = answers
        self._methods = methods

    def render(self, request: Any) -> Any:
        if request.method not in self._methods:
            allow(request, *(method.decode("ascii") for method in self._methods))
            return self._answers.wrong_method(request)
        working: Deferred[bytes | None] = Deferred.fromCoroutine(self._handler(request))  # type: ignore[arg-type]
        if working.called and isinstance(working.result, bytes):
            return working.result
        gone = False

        def over(failure: Failure) -> None:
            nonlocal gone
            gone = True
            working.cancel()

        def finish(result: bytes | Failure | None) -> None:
            if isinstance(result, Failure):
                if gone:
                    return
                result = answer(self._answers, request, result)
            if result is not None and not gone:
                request.write(result)
                request.finish()

        request.notifyFinish().addErrback(over)
        working.addBoth(finish)
        working.addErrback(lambda failure: _log.failure("an answer could not be written", failure))
        return NOT_DONE_YET
