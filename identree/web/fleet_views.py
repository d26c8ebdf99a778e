"""View models of the administrators' page about hosts. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlencode

from identree.app.fleet import LONGEST_ELEVATION, SHORTEST_ELEVATION, FleetPage, HostState, Kept, Seen, Wanted
from identree.web.directory_views import StateWord
from identree.web.translations import N_, Language
from identree.web.views import JUSTIFICATIONS, Banner, Flash, Reading, When, when

# Lengths of sudo sessions that can be opened, in seconds, as far as the grace period allows.
ELEVATIONS = (3600, 2 * 3600, 4 * 3600, 8 * 3600, 86400)
# Fewer hosts need no search.
SEARCHABLE_HOSTS = 10
# A revealed password is taken off the page after this.
SHOWN_SECONDS = 30

# Icon, tone, word: of each host, and of the counts above the table.
_SEEN: Mapping[Seen, tuple[str, str, str]] = {
    Seen.ONLINE: ("check", "good", N_("Online")),
    Seen.STALE: ("clock", "doubtful", N_("Stale")),
    Seen.OFFLINE: ("warning", "bad", N_("Offline")),
    Seen.NEVER: ("info", "calm", N_("No heartbeat")),
}
_KEPT: Mapping[Kept, tuple[str, str, str]] = {
    Kept.ESCROWED: ("check", "good", N_("Escrowed")),
    Kept.EXPIRED: ("warning", "bad", N_("Too old")),
    Kept.NONE: ("info", "calm", N_("Not escrowed")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """
    One host.

    :ivar facts: label and value of what its agent told.
    :ivar escrowed: None: nothing is. :ivar rotation: asked for, and not done yet as far as is known.
    :ivar revealable: its password can be shown here.
    """

    name: str
    group: str
    seen: StateWord
    seen_at: When | None
    facts: tuple[tuple[str, str], ...]
    first_seen: When | None
    kept: StateWord
    escrowed: When | None
    rotation: When | None
    link: str
    sessions: int
    revealable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """:ivar value: of a form's field; empty for all."""

    value: str
    label: str
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """
    A column that the table can be sorted by.

    :ivar query: sorts by it, or turns its order round. :ivar order: ``ascending``, ``descending`` or ``none``.
    """

    label: str
    query: str
    order: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CountView:
    """:ivar query: shows only these."""

    state: StateWord
    number: int
    query: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetView:
    """
    The page of the hosts.

    :ivar filters: the filters in force, as fields for a form that acts on what is listed.
    :ivar rotate_all: what the button does, in words; empty without it.
    :ivar elevations: seconds and label of sudo sessions that can be opened; none while identree opens none at all.
    :ivar previous, next: queries of the pages beside this one.
    """

    heading: str
    hosts: tuple[HostView, ...]
    counts: tuple[CountView, ...]
    search: str
    searchable: bool
    narrowed: bool
    groups: tuple[Choice, ...]
    seen: tuple[Choice, ...]
    kept: tuple[Choice, ...]
    heads: Mapping[str, Head]
    filters: tuple[tuple[str, str], ...]
    order: tuple[tuple[str, str], ...]
    rotate_all: str
    elevations: tuple[tuple[str, str], ...]
    reasons: tuple[str, ...]
    shown_seconds: int
    number: int
    pages: int
    previous: str
    next: str


def fleet_view(
    reading: Reading,
    page: FleetPage,
    wanted: Wanted,
    *,
    revealable: bool,
    grace_period: timedelta,
    choices: Sequence[str],
) -> FleetView:
    """
    :param revealable: the escrow back end gives passwords back.
    :param choices: offered reasons.
    """
    language = reading.language
    _, many = language.gettext, language.ngettext
    heading = many("%(num)s host", "%(num)s hosts", page.total)
    if wanted.narrows:
        heading = _("%(found)s of %(total)s hosts", found=page.found, total=page.total)
    filters = _filters(wanted)
    order = _order(wanted)

    def beside(step: int) -> str:
        number = page.number + step
        return urlencode([("page", number), *filters, *order]) if 1 <= number <= page.pages else ""

    rotate_all = ""
    if page.escrowed and page.found:
        rotate_all = many(
            "%(num)s host is asked to replace its break-glass password at its next contact.",
            "%(num)s hosts are asked to replace their break-glass passwords at their next contact.",
            page.found,
        )
    return FleetView(
        heading=heading,
        hosts=tuple(_host_view(reading, host, revealable) for host in page.hosts),
        counts=tuple(
            CountView(
                state=_seen_word(language, state), number=page.seen[state], query=urlencode({"seen": state.value})
            )
            for state in Seen
            if page.seen[state]
        ),
        search=wanted.search,
        searchable=wanted.narrows or page.total >= SEARCHABLE_HOSTS,
        narrowed=wanted.narrows,
        groups=(
            _choice("", _("All groups"), wanted.group),
            *(_choice(group, group, wanted.group) for group in page.groups),
        )
        if page.groups
        else (),
        seen=(
            _choice("", _("Seen at any time"), wanted.seen.value if wanted.seen else ""),
            *(_choice(state.value, _(_SEEN[state][2]), wanted.seen.value if wanted.seen else "") for state in Seen),
        ),
        kept=(
            _choice("", _("Any break-glass state"), wanted.kept.value if wanted.kept else ""),
            *(_choice(state.value, _(_KEPT[state][2]), wanted.kept.value if wanted.kept else "") for state in Kept),
        ),
        heads={
            name: _head(_(label), name, wanted, filters)
            for name, label in (("hostname", N_("Host")), ("seen", N_("Last seen")), ("sessions", N_("Sudo sessions")))
        },
        filters=filters,
        order=order,
        rotate_all=rotate_all,
        elevations=_elevations(language, grace_period),
        reasons=tuple(_(choice) if choice in JUSTIFICATIONS else choice for choice in choices),
        shown_seconds=SHOWN_SECONDS,
        number=page.number,
        pages=page.pages,
        previous=beside(-1),
        next=beside(1),
    )


def _host_view(reading: Reading, host: HostState, revealable: bool) -> HostView:
    _ = reading.language.gettext
    agent = host.agent
    facts: tuple[tuple[str, str], ...] = ()
    if agent is not None:
        facts = ((_("Agent"), agent.version), (_("System"), agent.os_info), (_("Address"), agent.address))
    return HostView(
        name=host.name,
        group=host.group,
        seen=_seen_word(reading.language, host.seen),
        seen_at=None if agent is None else when(agent.last_seen, reading),
        facts=tuple((label, value) for label, value in facts if value),
        first_seen=None if agent is None else when(agent.first_seen, reading),
        kept=_word(reading.language, host.kept.value, _KEPT[host.kept]),
        escrowed=None if host.escrow is None else when(host.escrow.escrowed_at, reading),
        rotation=None if host.rotation is None else when(host.rotation, reading),
        link=host.link,
        sessions=host.sessions,
        revealable=revealable and host.escrow is not None,
    )


def _seen_word(language: Language, state: Seen) -> StateWord:
    return _word(language, state.name.lower(), _SEEN[state])


def _word(language: Language, name: str, said: tuple[str, str, str]) -> StateWord:
    icon, tone, word = said
    return StateWord(name=name, word=language.gettext(word), icon=icon, tone=tone)


def _choice(value: str, label: str, chosen: str) -> Choice:
    return Choice(value=value, label=label, chosen=value == chosen)


def _filters(wanted: Wanted) -> tuple[tuple[str, str], ...]:
    fields = (
        ("q", wanted.search),
        ("group", wanted.group),
        ("seen", wanted.seen.value if wanted.seen else ""),
        ("kept", wanted.kept.value if wanted.kept else ""),
    )
    return tuple((name, value) for name, value in fields if value)


def _order(wanted: Wanted) -> tuple[tuple[str, str], ...]:
    fields = (
        ("sort", "" if wanted.sort == "hostname" else wanted.sort),
        ("dir", "desc" if wanted.descending else ""),
    )
    return tuple((name, value) for name, value in fields if value)


def _head(label: str, name: str, wanted: Wanted, filters: tuple[tuple[str, str], ...]) -> Head:
    sorted_by = wanted.sort == name
    # what one looks for stands at the other end of these columns: the latest, the most
    descending = not wanted.descending if sorted_by else name != "hostname"
    query = urlencode([("sort", name), ("dir", "desc" if descending else "asc"), *filters])
    order = "none"
    if sorted_by:
        order = "descending" if wanted.descending else "ascending"
    return Head(label=label, query=query, order=order)


def _elevations(language: Language, grace_period: timedelta) -> tuple[tuple[str, str], ...]:
    """What ``Fleet.elevate`` grants whole."""
    if grace_period <= timedelta(0):
        return ()
    longest = int(min(grace_period, LONGEST_ELEVATION).total_seconds())
    lengths = [seconds for seconds in ELEVATIONS if SHORTEST_ELEVATION.total_seconds() <= seconds < longest]
    return tuple((str(seconds), language.lasting(seconds)) for seconds in (*lengths, longest))


def fleet_banners(flashes: Sequence[Flash], reading: Reading) -> tuple[Banner, ...]:
    """The flashes of this page alone, as sentences."""
    made = []
    for code, arguments in flashes:
        first = arguments[0] if arguments else ""
        text = ""
        if code == "rotated" and first:
            text = reading.language.gettext("%(host)s was asked to replace its break-glass password.", host=first)
        elif code == "rotated_all" and first.isascii() and first.isdigit() and len(first) <= 9:
            text = reading.language.ngettext(
                "%(num)s host was asked to replace its break-glass password.",
                "%(num)s hosts were asked to replace their break-glass passwords.",
                int(first),
            )
        if text:
            made.append(Banner(kind="good", icon="check", text=text))
    return tuple(made)
