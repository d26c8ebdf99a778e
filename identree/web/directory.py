"""
The administrators' pages about the directory, and what they decide there (spec/ldap section 3.5, spec/http-api
section 9.2, spec/web-ui section 12.6).

A refused rule comes back in its form with the reason at each field, so that nothing that was typed is lost. Items that
would not be served are asked about only when the form says that a person is there (``ask=1``); deployed scripts are
answered as ever.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from twisted.web import http
from twisted.web.iweb import IRequest

from identree.app.decisions import Decisions
from identree.app.directoryadmin import Asked, DirectoryAdmin
from identree.app.people import Caller
from identree.app.rules import Rules
from identree.app.sudorules import (
    FIELDS,
    FURTHER_FIELDS,
    RuleExists,
    RuleRefused,
    RulesUnavailable,
    SudoRule,
    SudoRules,
)
from identree.core.errors import Forbidden, SessionExpired
from identree.web.directory_views import (
    FormView,
    RulesView,
    directory_view,
    exists_form,
    messages,
    rule_fields,
    rule_form,
    rules_view,
)
from identree.web.forms import Form, Forms
from identree.web.reading import query, wants_json
from identree.web.render import AdminPage, Renderer, Shell
from identree.web.replies import json_error, see_other, send_json, text
from identree.web.router import LOGIN_PATH, CardAnswers, Router
from identree.web.sessions import BrowserSessions, Flash, flash_item
from identree.web.translations import N_

RULES_PATH = "/admin/sudo-rules"
DIRECTORY_PATH = "/admin/directory"
ADD_PATH, UPDATE_PATH, DELETE_PATH = "/api/sudo-rules/add", "/api/sudo-rules/update", "/api/sudo-rules/delete"
REFRESH_PATH = "/api/directory/refresh"
# Six fields of 4096 bytes, each byte percent-encoded, and what goes with them; other forms end at 8 KiB.
RULE_BODY_BYTES = 131_072
# Characters of a search.
SEARCH_LENGTH = 100

ADMIN_PAGES = (
    AdminPage(path=RULES_PATH, name=N_("Sudo rules"), icon="key", key="s", goes=N_("Go to the sudo rules")),
    AdminPage(path=DIRECTORY_PATH, name=N_("Directory"), icon="directory", key="d", goes=N_("Go to the directory")),
)

_LINES = re.compile(r"\s*[\r\n]+\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryDesk:
    """What administrators see and do here."""

    sudo_rules: SudoRules
    admin: DirectoryAdmin


class DirectoryRoutes:
    """
    :param ends_at: when a session that is renewed now ends (``People.session_ends_at``).
    """

    router = Router()

    def __init__(
        self,
        *,
        desk: DirectoryDesk,
        decisions: Decisions,
        forms: Forms,
        sessions: BrowserSessions,
        render: Renderer,
        rules: Callable[[], Rules],
        ends_at: Callable[[Caller], datetime],
    ) -> None:
        self.answers = CardAnswers(render)
        self._sudo_rules = desk.sudo_rules
        self._directory = desk.admin
        self._decisions = decisions
        self._forms = forms
        self._sessions = sessions
        self._render = render
        self._rules = rules
        self._ends_at = ends_at

    # -- sudo rules ---------------------------------------------------------------------------------------------------
    @router.route(RULES_PATH, methods=["GET"])
    async def sudo_rules(self, request: IRequest) -> bytes:
        """The rules and what is served of them; with ``?add=1`` or ``?edit=GROUP`` a form above them."""
        return await self._page(request, self._sudo_rules_page)

    async def _sudo_rules_page(self, request: IRequest, caller: Caller) -> bytes:
        asked = query(request)
        language = self._render.language(request)
        form = None
        if self._sudo_rules.editable:
            try:
                if asked.get("edit"):
                    found = await self._sudo_rules.rule(caller, asked["edit"])
                    form = rule_form(language, UPDATE_PATH, rule_fields(found.rule), found.verdicts, opened=True)
                elif asked.get("add"):
                    form = rule_form(language, ADD_PATH, {"group": asked.get("group", "")}, (), opened=True)
            except RulesUnavailable as problem:
                return await self._rules_page(request, caller, http.SERVICE_UNAVAILABLE, trouble=problem)
        return await self._rules_page(request, caller, http.OK, form=form, flashes=self._sessions.flashes(request))

    @router.route(ADD_PATH, methods=["POST"])
    async def add(self, request: IRequest) -> bytes:
        return await self._save(request, ADD_PATH, "sudo_added", self._sudo_rules.add)

    @router.route(UPDATE_PATH, methods=["POST"])
    async def update(self, request: IRequest) -> bytes:
        return await self._save(request, UPDATE_PATH, "sudo_updated", self._sudo_rules.update)

    @router.route(DELETE_PATH, methods=["POST"])
    async def delete(self, request: IRequest) -> bytes:
        if not self._sudo_rules.editable:
            return text(request, http.NOT_FOUND, "not available")
        sent = await self._forms.accepted(request)
        group = sent.get("group")
        try:
            await self._sudo_rules.delete(sent.caller, group, address=sent.address)
        except RulesUnavailable as problem:
            return await self._rules_page(request, sent.caller, http.SERVICE_UNAVAILABLE, trouble=problem)
        return self._done(request, ("sudo_deleted", (group.strip(),)), RULES_PATH)

    async def _save(self, request: IRequest, path: str, flash: str, save: Callable[..., Awaitable[SudoRule]]) -> bytes:
        if not self._sudo_rules.editable:
            return text(request, http.NOT_FOUND, "not available")
        sent = await self._forms.accepted(request)
        fields = _sent(sent)
        asks = sent.get("ask") == "1" and sent.get("accept") != "1"
        language = self._render.language(request)
        try:
            rule = await save(sent.caller, fields, narrowed=not asks, address=sent.address)
        except RuleRefused as refusal:
            if wants_json(request):
                told = messages(language, refusal.verdicts)
                sentence = self._render.sentence(request, refusal.key)
                return json_error(request, http.BAD_REQUEST, refusal.key, message=sentence, fields=told)
            form = rule_form(language, path, fields, refusal.verdicts)
            return await self._rules_page(request, sent.caller, http.BAD_REQUEST, form=form)
        except RuleExists as refusal:
            if wants_json(request):
                sentence = self._render.sentence(request, refusal.key)
                return json_error(request, http.CONFLICT, refusal.key, message=sentence)
            return await self._rules_page(request, sent.caller, http.CONFLICT, form=exists_form(language, path, fields))
        except RulesUnavailable as problem:
            form = rule_form(language, path, fields, ())
            return await self._rules_page(request, sent.caller, http.SERVICE_UNAVAILABLE, form=form, trouble=problem)
        return self._done(request, (flash, (rule.group,)), RULES_PATH)

    async def _rules_page(
        self,
        request: IRequest,
        caller: Caller,
        status: int,
        *,
        form: FormView | None = None,
        trouble: RulesUnavailable | None = None,
        flashes: list[Flash] | None = None,
    ) -> bytes:
        language = self._render.language(request)
        if trouble is not None and wants_json(request):
            key = "sudo_rules_unavailable"
            return json_error(request, status, key, message=self._render.sentence(request, key))
        asked = query(request) if request.method == b"GET" else {}
        search = asked.get("q", "").strip()[:SEARCH_LENGTH]
        listing = None
        try:
            listing = await self._sudo_rules.listing(caller, search=search, number=_number(asked.get("page", "")))
        except RulesUnavailable as problem:
            trouble, status = trouble or problem, http.SERVICE_UNAVAILABLE
        view: RulesView = rules_view(
            language,
            listing,
            editable=self._sudo_rules.editable,
            search=search,
            form=form,
            trouble="" if trouble is None else str(trouble),
        )
        return self._render.page(
            request,
            "sudo-rules.html",
            status=status,
            shell=await self._shell(caller, flashes or []),
            view=view,
            path=RULES_PATH,
        )

    # -- the directory ------------------------------------------------------------------------------------------------
    @router.route(DIRECTORY_PATH, methods=["GET"])
    async def directory(self, request: IRequest) -> bytes:
        """Its state, what is withheld, and with ``?name=`` everything about an account or group."""
        return await self._page(request, self._directory_page)

    async def _directory_page(self, request: IRequest, caller: Caller) -> bytes:
        name = query(request).get("name", "").strip()[:SEARCH_LENGTH]
        explained = await self._directory.explain(caller, name) if name else None
        view = directory_view(
            self._render.reading(request), self._directory.status(caller), name=name, explained=explained
        )
        shell = await self._shell(caller, self._sessions.flashes(request))
        return self._render.page(request, "directory.html", shell=shell, view=view)

    @router.route(REFRESH_PATH, methods=["POST"])
    async def refresh(self, request: IRequest) -> bytes:
        sent = await self._forms.accepted(request)
        asked = await self._directory.refresh(
            sent.caller,
            accept_shrink=sent.get("accept_shrink") == "1",
            seen=sent.get("seen"),
            address=sent.address,
        )
        return self._done(request, _REFRESH_FLASHES[asked], DIRECTORY_PATH)

    # -- inside -------------------------------------------------------------------------------------------------------
    async def _page(self, request: IRequest, show: Callable[[IRequest, Caller], Awaitable[bytes]]) -> bytes:
        switched = self._render.switched_language(request)
        if switched is not None:
            return switched
        try:
            caller = await self._sessions.caller(request)
        except SessionExpired:
            self._sessions.ended(request)
            wanted = request.uri.decode("ascii", "replace")
            return see_other(request, f"{self._rules().external_url}{LOGIN_PATH}?next={quote(wanted, safe='/')}")
        self._sessions.renew(request, caller)
        try:
            return await show(request, caller)
        except Forbidden:
            # spec/web-ui section 1: pages send others home
            return see_other(request, self._rules().external_url + "/")

    async def _shell(self, caller: Caller, flashes: list[Flash]) -> Shell:
        return Shell(
            caller=caller,
            csrf=self._sessions.csrf(caller),
            ends=int(self._ends_at(caller).astimezone(UTC).timestamp()),
            pending=len(await self._decisions.pending(caller)),
            flashes=flashes,
        )

    def _done(self, request: IRequest, flash: Flash, location: str) -> bytes:
        if wants_json(request):
            return send_json(request, http.OK, {"ok": True, "flash": flash_item(flash), "location": location})
        self._sessions.flash(request, [flash])
        return see_other(request, self._rules().external_url + location)


_REFRESH_FLASHES: Mapping[Asked, Flash] = {
    Asked.DONE: ("directory_refreshed", ("1",)),
    Asked.RUNNING: ("directory_refreshing", ("1",)),
    # the page says why
    Asked.FAILED: ("directory_not_refreshed", ("1",)),
    Asked.OTHER: ("directory_other_loss", ("1",)),
}


def _sent(form: Form) -> dict[str, str]:
    """
    The fields of a rule as they were sent. In the form of our page lists are typed over several lines, and the end of
    a line ends an item.
    """
    fields = {name: form.get(name) for name in FIELDS}
    fields |= {name: form.fields[name] for name in FURTHER_FIELDS if name in form.fields}
    if form.get("ask") == "1":
        for name in ("commands", "hosts"):
            fields[name] = re.sub(r",(\s*,)+", ",", _LINES.sub(", ", fields[name].strip()))
    return fields


def _number(digits: str) -> int:
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 6 else 1
