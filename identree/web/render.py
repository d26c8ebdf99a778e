"""
Pages from templates: language, theme and time zone of the request, the frame around every page, cards.

Templates are laid out in ``templates/pages``; they get view models and decide nothing. Everything that varies is
escaped, an unknown name is an error, and no page carries inline script or style, so that the Content-Security-Policy
can forbid both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from twisted.web import http
from twisted.web.iweb import IRequest

import identree
from identree.app.health import InThread
from identree.app.people import Caller
from identree.app.ports import Now
from identree.app.rules import Rules
from identree.web.reading import cookie, query
from identree.web.replies import html, see_other, set_cookie
from identree.web.static import Assets
from identree.web.translations import LANGUAGES, SENTENCES, Catalogues, Language, zone
from identree.web.views import Banner, Flash, Reading, banners

ONE_YEAR_SECONDS = 31_536_000
# Pages warn this long before a browser session ends.
WARNING_SECONDS = 180

_THEMES = ("dark", "light")
# Cards that report no mistake have their own icon; all others warn.
_ICONS: Mapping[str, str] = {"challenge_expired_or_resolved": "clock", "expired": "clock", "signed_out": "check"}


def templates_directory() -> Path:
    """Where ``identree.templates`` lies: the installed package, or ``templates/`` of a checkout."""
    try:
        return Path(str(resources.files("identree.templates")))
    except ModuleNotFoundError:
        return Path(identree.__file__).resolve().parent.parent / "templates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """
    What the frame of a signed-in page needs.

    :ivar csrf: token and timestamp of ``sessions.csrf``.
    :ivar ends: unix seconds at which the browser session ends without another page load.
    :ivar pending: requests that wait for this person.
    """

    caller: Caller
    csrf: tuple[str, str]
    ends: int
    pending: int
    flashes: Sequence[Flash] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminPage:
    """
    A page in the menu of administrators.

    :ivar name: message id of its word. :ivar icon: in ``icons.svg``.
    :ivar key: leads there after ``g``. :ivar goes: message id of what that key does.
    """

    path: str
    name: str
    icon: str
    key: str
    goes: str


class Renderer:
    """
    :param directory: has ``pages/``, ``static/`` and ``locale/``; by default the packaged one.
    :param admin_pages: those that this server has, in the order of the menu.
    """

    def __init__(
        self,
        *,
        now: Now,
        rules: Callable[[], Rules],
        directory: Path | None = None,
        admin_pages: Sequence[AdminPage] = (),
    ) -> None:
        self._now = now
        self._rules = rules
        self._admin_pages = tuple(admin_pages)
        directory = templates_directory() if directory is None else directory
        self.assets = Assets(directory / "static")
        self.catalogues = Catalogues(directory / "locale")
        # One environment per language, because compiled templates share the environment's gettext.
        self._environments = {
            language.code: _environment(directory / "pages", language, url=self.url, asset=self._asset)
            for language in self.catalogues
        }

    # -- addresses ----------------------------------------------------------------------------------------------------
    def url(self, path: str) -> str:
        """A path of this server as browsers have to ask for it, behind a proxy with that proxy's prefix."""
        return self._rules().prefix + path

    def _asset(self, name: str) -> str:
        return self.url(self.assets.path(name))

    # -- who reads ----------------------------------------------------------------------------------------------------
    def language(self, request: IRequest) -> Language:
        return self.catalogues.negotiate(cookie(request, "identree_lang"), request.getHeader("accept-language") or "")

    def reading(self, request: IRequest) -> Reading:
        return Reading(language=self.language(request), zone=zone(unquote(cookie(request, "pam_tz"))), now=self._now())

    def switched_language(self, request: IRequest) -> bytes | None:
        """
        The answer to ``?lang=xx`` on any page: the choice is kept, and the page is asked for again without it. None
        when nothing was asked for; an unknown language changes nothing.
        """
        fields = query(request)
        chosen = fields.pop("lang", None)
        if chosen is None:
            return None
        if chosen in LANGUAGES:
            secure = self._rules().secure
            set_cookie(request, "identree_lang", chosen, max_age=ONE_YEAR_SECONDS, secure=secure, http_only=False)
        # one leading slash only: `//host/` would lead elsewhere
        path = quote("/" + request.path.decode("utf-8", "replace").lstrip("/\\"), safe="/%-._~!$&'()*+,;=:@")
        return see_other(request, self.url(f"{path}?{urlencode(fields)}" if fields else path))

    # -- pages --------------------------------------------------------------------------------------------------------
    def page(
        self, request: IRequest, template: str, *, shell: Shell, status: int = http.OK, **context: object
    ) -> bytes:
        """A page of a signed-in person, in its frame."""
        return self._send(request, template, status, shell=shell, **context)

    async def page_in_thread(
        self,
        request: IRequest,
        template: str,
        in_thread: InThread,
        make: Callable[[], Mapping[str, object]],
        *,
        shell: Shell,
    ) -> bytes:
        """
        A page that may be long.

        :param make: what the template is given beside the shell; it runs in the thread, and leaves the request alone.
        """
        values = self._values(request, shell=shell)
        compiled = self._environments[values["language"].code].get_template(template)
        rendered = await in_thread(lambda: compiled.render({**values, **make()}).encode())
        return html(request, http.OK, rendered)

    def fragment(self, request: IRequest, template: str, *, status: int = http.OK, **context: object) -> bytes:
        """A piece of a page for a script that puts it in place."""
        return self._send(request, template, status, **context)

    def card(self, request: IRequest, status: int, key: str, *, retry: str | None = None, detail: str = "") -> bytes:
        """
        A page that says one thing: what happened and what to do.

        :param key: of :data:`~identree.web.translations.SENTENCES`; an unknown one gets the general sentence.
        :param retry: local path of a "Try again" link.
        :param detail: technical addition, shown as it is.
        """
        message = SENTENCES.get(key, SENTENCES["refused"])
        gettext = self.language(request).gettext
        return self._send(
            request,
            "card.html",
            status,
            key=key if key in SENTENCES else "refused",
            icon_name=_ICONS.get(key, "warning"),
            title=gettext(message.title),
            text=gettext(message.text),
            retry=retry,
            detail=detail,
        )

    def sentence(self, request: IRequest, key: str) -> str:
        """What happened and what to do, in the reader's language, as plain text."""
        message = SENTENCES.get(key, SENTENCES["refused"])
        return self.language(request).gettext(message.text)

    def signed_out(self, request: IRequest) -> bytes:
        """The page after signing out."""
        return self.card(request, http.OK, "signed_out", retry="/sessions/login")

    def banners(self, request: IRequest, flashes: Sequence[Flash]) -> tuple[Banner, ...]:
        return banners(flashes, self.reading(request))

    def _send(self, request: IRequest, template: str, status: int, **context: object) -> bytes:
        values = self._values(request, **context)
        text = self._environments[values["language"].code].get_template(template).render(values)
        return html(request, status, text.encode("utf-8"))

    def _values(self, request: IRequest, **context: object) -> dict[str, Any]:
        reading = self.reading(request)
        theme = cookie(request, "identree_theme")
        shell = context.get("shell")
        return {
            "shell": None,
            "banners": banners(shell.flashes, reading) if isinstance(shell, Shell) else (),
            "language": reading.language,
            "languages": LANGUAGES,
            "admin_pages": self._admin_pages,
            "theme": theme if theme in _THEMES else "",
            "path": quote(request.path.decode("ascii", "replace"), safe="/"),
            "now": int(reading.now.timestamp()),
            "warning_seconds": WARNING_SECONDS,
            **context,
        }


def _environment(directory: Path, language: Language, **functions: Callable[[str], str]) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(directory),
        autoescape=True,
        undefined=StrictUndefined,
        extensions=["jinja2.ext.i18n"],
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.install_gettext_translations(language.translations, newstyle=True)  # type: ignore[attr-defined]
    environment.globals.update(functions)
    return environment
