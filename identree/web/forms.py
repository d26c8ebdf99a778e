"""
Forms of signed-in people, accepted once for all routes (spec/http-api section 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from twisted.web.iweb import IRequest

from identree.app.people import Caller, People
from identree.core import names
from identree.core.challenge import UNKNOWN_HOST
from identree.core.errors import Invalid, SessionExpired
from identree.web.reading import Addresses, form
from identree.web.sessions import BrowserSessions


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """An accepted form: who sent it, its fields, where from."""

    caller: Caller
    fields: Mapping[str, str]
    address: str

    def get(self, name: str) -> str:
        return self.fields.get(name, "")

    @property
    def back(self) -> str:
        """Where the form's page is; a local path."""
        return names.local_path(self.get("from"))

    def hostname(self) -> str:
        """:raise Invalid: missing or malformed."""
        text = self.get("hostname")
        if not text:
            raise Invalid("hostname", key="missing_fields")
        return "" if text == UNKNOWN_HOST else names.hostname(text)

    def owner(self) -> str:
        """
        Whose sessions an admin means; empty for nobody in particular. Others mean themselves, whatever they sent.

        :raise Invalid: malformed; guessing whom it meant could hit everybody.
        """
        text = self.get("session_username")
        return names.username(text) if text and self.caller.is_admin else ""


class Forms:
    """Form authentication."""

    def __init__(self, *, people: People, sessions: BrowserSessions, addresses: Addresses) -> None:
        self._people = people
        self._sessions = sessions
        self._addresses = addresses

    async def accepted(self, request: IRequest) -> Form:
        """
        The checks of section 5, in their order. The session slides, also when the endpoint says no later.

        :raise Invalid, SessionExpired, FormExpired, BadCsrfToken, Throttled:
        """
        fields = form(request)
        username, token, ts = (fields.get(name, "") for name in ("username", "csrf_token", "csrf_ts"))
        if not (username and token and ts):
            raise Invalid("username, csrf_token and csrf_ts", key="missing_fields")
        names.username(username)
        caller = await self._sessions.caller(request)
        if caller.username != username:
            raise SessionExpired
        self._people.check_csrf(caller, token, ts)
        self._people.accept_form(caller)
        self._sessions.renew(request, caller)
        return Form(caller=caller, fields=fields, address=self._addresses.of(request))
