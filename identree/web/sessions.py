"""
What a browser carries for us: the session cookie and the messages for the next page (spec/web-ui sections 4, 7, 10).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.web.iweb import IRequest

from identree.app.people import SESSION_LIFE, Caller, People, SignedIn
from identree.app.rules import Rules
from identree.web.reading import cookie
from identree.web.replies import set_cookie

SESSION_COOKIE = "pam_session"
FLASH_COOKIE = "pam_flash"
AVATAR_COOKIE = "identree_avatar"
# That this browser was signed in: the session cookie is gone from the browser when it ends, and the flash is Strict,
# so neither can say after a sign-in at another site why it was asked for.
SIGN_IN_COOKIE = "identree_signin"
KNOWN, ENDED, AGAIN = "known", "ended", "again"
# Later nobody wonders.
SIGN_IN_SECONDS = 86_400
FLASH_SECONDS = 10
AVATAR_SECONDS = 30 * 86_400
# Items in one flash cookie, and characters of a picture's address; more is nothing that we wrote.
MAX_FLASHES = 16
MAX_PICTURE = 1024

# A message code and its arguments, as in ``approved:host:user:unix``.
Flash = tuple[str, Sequence[str]]
EXPIRED: Flash = ("expired", ())


def flash_item(flash: Flash) -> str:
    code, arguments = flash
    return ":".join((code, *arguments)) if arguments else f"{code}:"


class BrowserSessions:
    """The session of a request, and the cookies that go with it."""

    def __init__(self, people: People, rules: Callable[[], Rules]) -> None:
        self._people = people
        self._rules = rules

    async def caller(self, request: IRequest) -> Caller:
        """
        Who is signed in.

        :raise SessionExpired: nobody.
        """
        return await self._people.caller(cookie(request, SESSION_COOKIE))

    def renew(self, request: IRequest, caller: Caller) -> None:
        """Slide the session: once per page load and accepted form."""
        self._set_session(request, self._people.renewed(caller))

    def csrf(self, caller: Caller) -> tuple[str, str]:
        """Token and timestamp for forms and scripts."""
        return self._people.csrf(caller)

    def signed_in(self, request: IRequest, signed_in: SignedIn) -> None:
        """The cookies of a completed sign-in."""
        self._set_session(request, signed_in.cookie)
        self._set_sign_in(request, AGAIN if cookie(request, SIGN_IN_COOKIE) == ENDED else KNOWN)
        picture = signed_in.picture
        if picture.startswith(("https://", "http://")) and len(picture) <= MAX_PICTURE:
            set_cookie(
                request,
                AVATAR_COOKIE,
                picture,
                max_age=AVATAR_SECONDS,
                secure=self._rules().secure,
                http_only=False,
                same_site="Strict",
            )
        elif cookie(request, AVATAR_COOKIE):
            # of whoever was signed in before
            set_cookie(
                request,
                AVATAR_COOKIE,
                "",
                max_age=0,
                secure=self._rules().secure,
                http_only=False,
                same_site="Strict",
            )

    def forget(self, request: IRequest) -> None:
        """Delete the session cookie, and what reminds of a session."""
        if cookie(request, SIGN_IN_COOKIE):
            set_cookie(request, SIGN_IN_COOKIE, "", max_age=0, secure=self._rules().secure)
        set_cookie(request, SESSION_COOKIE, "", max_age=0, secure=self._rules().secure, same_site="Strict")

    def ended(self, request: IRequest) -> None:
        """Somebody without a session is sent to sign in: where there was one, the next page says so."""
        if cookie(request, SESSION_COOKIE) or cookie(request, SIGN_IN_COOKIE):
            self.flash(request, [EXPIRED])
            self._set_sign_in(request, ENDED)

    def flash(self, request: IRequest, items: Sequence[Flash]) -> None:
        """Leave messages for the next page."""
        if items:
            value = ",".join(flash_item(item) for item in items[:MAX_FLASHES])
            self._set_flash(request, value, FLASH_SECONDS)

    def flashes(self, request: IRequest) -> list[Flash]:
        """The messages left for this page; they are cleared."""
        found: list[Flash] = []
        if cookie(request, SIGN_IN_COOKIE) == AGAIN:
            self._set_sign_in(request, KNOWN)
            found.append(EXPIRED)
        raw = cookie(request, FLASH_COOKIE)
        if raw:
            self._set_flash(request, "", 0)
        for item in raw.split(",")[:MAX_FLASHES]:
            code, *arguments = item.strip(" ").split(":")
            flash: Flash = (code, tuple(arguments) if arguments != [""] else ())
            if code and not (flash == EXPIRED and EXPIRED in found):
                found.append(flash)
        return found

    def _set_flash(self, request: IRequest, value: str, max_age: int) -> None:
        set_cookie(request, FLASH_COOKIE, value, max_age=max_age, secure=self._rules().secure, same_site="Strict")

    def _set_sign_in(self, request: IRequest, value: str) -> None:
        set_cookie(request, SIGN_IN_COOKIE, value, max_age=SIGN_IN_SECONDS, secure=self._rules().secure)

    def _set_session(self, request: IRequest, value: str) -> None:
        set_cookie(
            request,
            SESSION_COOKIE,
            value,
            max_age=int(SESSION_LIFE.total_seconds()),
            secure=self._rules().secure,
        )
