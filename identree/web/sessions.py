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
FLASH_SECONDS = 10
AVATAR_SECONDS = 30 * 86_400
# Items in one flash cookie, and characters of a picture's address; more is nothing that we wrote.
MAX_FLASHES = 16
MAX_PICTURE = 1024

# A message code and its arguments, as in ``approved:host:user:unix``.
Flash = tuple[str, Sequence[str]]


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

    def forget(self, request: IRequest) -> None:
        """Delete the session cookie."""
        set_cookie(request, SESSION_COOKIE, "", max_age=0, secure=self._rules().secure, same_site="Strict")

    def flash(self, request: IRequest, items: Sequence[Flash]) -> None:
        """Leave messages for the next page."""
        if items:
            value = ",".join(flash_item(item) for item in items[:MAX_FLASHES])
            self._set_flash(request, value, FLASH_SECONDS)

    def flashes(self, request: IRequest) -> list[Flash]:
        """The messages left for this page; they are cleared."""
        raw = cookie(request, FLASH_COOKIE)
        if not raw:
            return []
        self._set_flash(request, "", 0)
        found: list[Flash] = []
        for item in raw.split(",")[:MAX_FLASHES]:
            code, *arguments = item.strip(" ").split(":")
            if code:
                found.append((code, tuple(arguments) if arguments != [""] else ()))
        return found

    def _set_flash(self, request: IRequest, value: str, max_age: int) -> None:
        set_cookie(request, FLASH_COOKIE, value, max_age=max_age, secure=self._rules().secure, same_site="Strict")

    def _set_session(self, request: IRequest, value: str) -> None:
        set_cookie(
            request,
            SESSION_COOKIE,
            value,
            max_age=int(SESSION_LIFE.total_seconds()),
            secure=self._rules().secure,
        )
