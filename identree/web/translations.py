"""
Languages: choosing one for a request, gettext catalogues, and the sentences that belong to message keys.

Message ids are the English texts. A catalogue (``templates/locale/LANGUAGE/LC_MESSAGES/identree.po``) is complete or
the tests fail. Placeholders are named, as in ``%(host)s``; a literal percent sign is written ``%%``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from functools import cached_property, lru_cache
from gettext import GNUTranslations, NullTranslations
from pathlib import Path
from zoneinfo import ZoneInfo

from babel import Locale
from babel.dates import format_datetime, format_time
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

from identree.core import durations

DOMAIN = "identree"
DEFAULT = "en"
# Code and the language's own name for itself, in the order of the menu.
LANGUAGES: Mapping[str, str] = {"en": "English", "de": "Deutsch"}

# Of an Accept-Language header, characters and ranges that are looked at; people's browsers send a tenth of it.
ACCEPT_LENGTH = 1000
ACCEPT_RANGES = 20
ZONE_LENGTH = 64

_QUALITY = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}")


def N_(message: str) -> str:
    """Mark a message for extraction where it is not yet translated."""
    return message


class Language:
    """
    One language: its messages, and how it writes times.

    :ivar code: as in ``html lang`` and the cookie ``identree_lang``.
    """

    def __init__(self, code: str, translations: NullTranslations) -> None:
        self.code = code
        self.translations = translations

    @property
    def name(self) -> str:
        return LANGUAGES[self.code]

    @cached_property
    def _locale(self) -> Locale:
        return Locale.parse(self.code)

    def gettext(self, message: str, /, **values: object) -> str:
        """The message with its placeholders filled in; plain text, not escaped."""
        return self.translations.gettext(message) % values

    def ngettext(self, singular: str, plural: str, num: int, /, **values: object) -> str:
        """As :meth:`gettext`, in the form for ``num``, which is also the placeholder ``num``."""
        return self.translations.ngettext(singular, plural, num) % {"num": num, **values}

    def exact(self, at: datetime, zone: tzinfo) -> str:
        """Date and time to the second in the person's zone, and in UTC where that is another one."""
        local = format_datetime(at, "medium", tzinfo=zone, locale=self._locale)
        if zone is UTC or at.astimezone(zone).utcoffset() == UTC.utcoffset(None):
            return f"{local} UTC"
        utc = format_time(at.astimezone(UTC), "medium", tzinfo=UTC, locale=self._locale)
        return f"{local} {at.astimezone(zone).tzname()} ({utc} UTC)"

    def clock(self, at: datetime, zone: tzinfo, now: datetime) -> str:
        """Hours and minutes in the person's zone; with the weekday when it is another day than now."""
        same_day = at.astimezone(zone).date() == now.astimezone(zone).date()
        if same_day:
            return str(format_time(at.astimezone(zone), "short", tzinfo=zone, locale=self._locale))
        return str(format_datetime(at, "EEE HH:mm" if self.code != "en" else "EEE h:mm a", zone, locale=self._locale))

    def ago(self, at: datetime, now: datetime) -> str:
        """``2 min ago``: one unit, rounded down."""
        seconds = int((now - at).total_seconds())
        if seconds < 60:
            return self.gettext("just now")
        if seconds < 3600:
            return self.gettext("%(num)s min ago", num=seconds // 60)
        if seconds < 86400:
            return self.gettext("%(num)s h ago", num=seconds // 3600)
        return self.ngettext("%(num)s day ago", "%(num)s days ago", seconds // 86400)

    def lasting(self, seconds: int) -> str:
        """``23 h 59 min``, ``4 d 2 h``, ``45 s``: the two largest units, rounded down, never negative."""
        seconds = max(0, seconds)
        return " ".join(self._units(seconds if seconds < 60 else seconds - seconds % 60)[:2])

    def duration(self, text: str) -> str:
        """A policy's ``5m0s`` as ``5 min``; what is no number of seconds stays as it is written."""
        try:
            seconds = durations.parse(text).total_seconds()
        except ValueError:
            return text
        return " ".join(self._units(int(seconds))) if seconds >= 0 and seconds.is_integer() else text

    def _units(self, seconds: int) -> list[str]:
        parts = (
            (seconds // 86400, N_("%(num)s d")),
            (seconds // 3600 % 24, N_("%(num)s h")),
            (seconds // 60 % 60, N_("%(num)s min")),
            (seconds % 60, N_("%(num)s s")),
        )
        return [self.gettext(unit, num=count) for count, unit in parts if count] or [self.gettext("%(num)s s", num=0)]


class Catalogues:
    """
    The languages, read once at start.

    :param directory: has ``LANGUAGE/LC_MESSAGES/identree.po``, and ``.mo`` beside it when compiled; a compiled one that
        is older than its source is not used.
    """

    def __init__(self, directory: Path) -> None:
        self._languages = {code: Language(code, _load(directory, code)) for code in LANGUAGES}

    def __getitem__(self, code: str) -> Language:
        return self._languages[code]

    def __iter__(self) -> Iterator[Language]:
        return iter(self._languages.values())

    def negotiate(self, cookie: str, accept_language: str) -> Language:
        """The cookie's language, else the best one of the header (RFC 9110 section 12.5.4), else English."""
        if cookie in self._languages:
            return self._languages[cookie]
        best, best_quality = DEFAULT, 0.0
        for entry in accept_language[:ACCEPT_LENGTH].split(",")[:ACCEPT_RANGES]:
            tag, _, parameter = entry.partition(";")
            name, _, value = parameter.partition("=")
            value = value.strip()
            if parameter.strip() and (name.strip().lower() != "q" or not _QUALITY.fullmatch(value)):
                continue
            quality = float(value) if value else 1.0
            code = tag.strip().lower().partition("-")[0]
            if code in self._languages and quality > best_quality:
                best, best_quality = code, quality
        return self._languages[best]


def _load(directory: Path, code: str) -> NullTranslations:
    source = directory / code / "LC_MESSAGES" / f"{DOMAIN}.po"
    compiled = source.with_suffix(".mo")
    if compiled.exists() and compiled.stat().st_mtime >= source.stat().st_mtime:
        with compiled.open("rb") as stream:
            return GNUTranslations(stream)
    with source.open("rb") as stream:
        catalogue = read_po(stream, locale=code)
    out = io.BytesIO()
    write_mo(out, catalogue)
    out.seek(0)
    return GNUTranslations(out)


@lru_cache(maxsize=1024)
def zone(name: str) -> tzinfo:
    """The IANA time zone of this name as a browser sends it; UTC for anything else."""
    if not name or len(name) > ZONE_LENGTH or not _ZONE.fullmatch(name):
        return UTC
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        return UTC


@dataclass(frozen=True, slots=True)
class Message:
    """What a card says: what happened, and what to do."""

    title: str
    text: str


# For every key that the application or the web adapter refuses with.
SENTENCES: Mapping[str, Message] = {
    "refused": Message(
        N_("This is not possible"),
        N_("identree refused this. Go back to the requests and look at the present state."),
    ),
    "invalid_form": Message(
        N_("The form was incomplete"),
        N_("identree could not read what was sent. Go back, reload the page and try again."),
    ),
    "missing_fields": Message(
        N_("The form was incomplete"),
        N_("Something that belongs to this form was missing. Go back, reload the page and try again."),
    ),
    "invalid_username_format": Message(
        N_("Not a user name"),
        N_("User names have 1 to 64 letters, digits, dots, underscores and hyphens. Go back and correct it."),
    ),
    "invalid_format": Message(
        N_("Not the right form"),
        N_("One of the values was not of the right form. Go back and correct it."),
    ),
    "invalid_timestamp": Message(
        N_("The form was incomplete"),
        N_("The form carried no valid time. Go back, reload the page and try again."),
    ),
    "unauthorized": Message(
        N_("Sign in first"),
        N_("This needs a valid sign-in. Sign in and try again."),
    ),
    "hostname_mismatch": Message(
        N_("Another host's request"),
        N_("The request belongs to another host. Run sudo again on the host that you mean."),
    ),
    "credential_mismatch": Message(
        N_("Another host's secret"),
        N_("The secret that was used belongs to another host. Set up the host again with its own secret."),
    ),
    "too_many_requests": Message(
        N_("Too many attempts"),
        N_("There were too many attempts in a short time. Wait a minute, then try again."),
    ),
    "rate_limit_exceeded": Message(
        N_("Too many open requests"),
        N_("There are too many open requests. Approve or reject some of them, then run sudo again."),
    ),
    "justification_required": Message(
        N_("A reason is needed"),
        N_("Approvals need a reason here. Choose or write one, then approve again."),
    ),
    "challenge_expired_or_resolved": Message(
        N_("This request is over"),
        N_("It was decided, or its time ran out. If sudo still waits in your terminal, run it again for a new code."),
    ),
    "expired": Message(
        N_("This request is over"),
        N_("It was decided, or its time ran out. If sudo still waits in your terminal, run it again for a new code."),
    ),
    "approval_failed_message": Message(
        N_("Not approved"),
        N_("The approval could not be recorded, and nothing was changed. Go back and try again."),
    ),
    "rejection_failed_message": Message(
        N_("Not rejected"),
        N_("The rejection could not be recorded, and nothing was changed. Go back and try again."),
    ),
    "superseded_by_revocation": Message(
        N_("Overtaken by a revocation"),
        N_("Sudo sessions of this person were revoked after the request was made. Run sudo again for a new request."),
    ),
    "already_approved_by_you": Message(
        N_("You approved this already"),
        N_("Your approval is counted. Another person has to approve it too."),
    ),
    "not_authorized_message": Message(
        N_("Not permitted"),
        N_("Your account is not permitted to do this. Ask an administrator."),
    ),
    "registry_off": Message(
        N_("The host registry is off"),
        N_("Registered hosts have no meaning while IDENTREE_HOST_REGISTRY is off. Change that setting first."),
    ),
    "first_host": Message(
        N_("The first registered host"),
        N_("With the first registered host, all others are refused. Say that this is meant, or register them all."),
    ),
    "too_many_hosts": Message(
        N_("Too many hosts"),
        N_("The registry takes no more hosts. Remove those that are gone."),
    ),
    "host_exists": Message(
        N_("The host is registered"),
        N_("There is a host of this name already. Remove it first, or give it a new secret."),
    ),
    "unknown_host": Message(
        N_("No such host"),
        N_("The registry has no host of this name. Check the spelling."),
    ),
    "too_many_deploys": Message(
        N_("As many jobs as may run"),
        N_("As many deployments run as may. Try again when one has ended."),
    ),
    "server_stopping": Message(
        N_("The server is stopping"),
        N_("Nothing was begun. Try again in a minute."),
    ),
    "host_unreachable": Message(
        N_("The host does not answer"),
        N_("Its SSH server could not be reached. Check name, port and firewall."),
    ),
    "no_script": Message(
        N_("There is no script"),
        N_("The script for hosts cannot be served. The server's log says why."),
    ),
    "job_not_found": Message(
        N_("No such job"),
        N_("It has ended long ago, or runs on another server."),
    ),
    "not_initiator": Message(
        N_("Somebody else's job"),
        N_("Only who started it may see and stop it."),
    ),
    "too_many_connections": Message(
        N_("Too many readers"),
        N_("Too many pages follow this job. Close some of them."),
    ),
    "host_key_unknown": Message(
        N_("The host is not known yet"),
        N_("Compare the fingerprint of its SSH key with the one on the host, then confirm it."),
    ),
    "host_key_changed": Message(
        N_("The host's key has changed"),
        N_(
            "It is not the host that was confirmed, or somebody stands in between. Nothing was sent. Ask who runs the "
            "host, then have the old key forgotten."
        ),
    ),
    "signing_not_configured": Message(
        N_("Nothing can be signed"),
        N_("There is no key for install scripts. See IDENTREE_INSTALL_SIGNING_KEY."),
    ),
    "no_custom_script": Message(
        N_("No script of your own"),
        N_("The built-in install script is served."),
    ),
    "account_disabled": Message(
        N_("The account is disabled"),
        N_("The directory says that this person's account is disabled. Enable it at the identity provider first."),
    ),
    "invalid_duration": Message(
        N_("Not a duration"),
        N_("A duration is a whole number of seconds, at least 1. Go back and correct it."),
    ),
    "admin_approval_required": Message(
        N_("An administrator must approve"),
        N_("The policy of this host asks for an administrator. Ask one to open the same link or the code."),
    ),
    "outside_approval_window": Message(
        N_("Outside the permitted hours"),
        N_("The policy of this host permits approvals only at certain times. Try again then, or ask an administrator."),
    ),
    "oidc_reauth_required": Message(
        N_("Sign in once more"),
        N_("The policy of this host asks for a recent sign-in. Sign in again, then approve."),
    ),
    "break_glass_override_not_allowed": Message(
        N_("Override not permitted"),
        N_("The policy of this host does not permit an override. Approve the request in the usual way."),
    ),
    "self_approval_forbidden": Message(
        N_("Somebody else has to approve"),
        N_("The policy of this host does not let people approve their own requests. Ask somebody else to approve it."),
    ),
    "not_an_approver": Message(
        N_("You are not one of the approvers"),
        N_("The policy of this host names the groups whose members may approve, and you are in none of them."),
    ),
    "policies_from_file": Message(
        N_("The policies come from a file"),
        N_("Change the policy file on the server; it is read again within seconds. Nothing was changed here."),
    ),
    "policies_changed": Message(
        N_("Somebody else has changed the policies"),
        N_("Nothing was changed. Load the page again, look at the policies as they are now, then repeat it."),
    ),
    "login_not_fresh": Message(
        N_("The sign-in was not a new one"),
        N_("The identity provider did not confirm that you signed in just now. Sign out there, then try again."),
    ),
    "one_tap_used": Message(
        N_("This link was used already"),
        N_("It approves once. If sudo still waits, approve on the dashboard."),
    ),
    "one_tap_invalid": Message(
        N_("This link is not valid"),
        N_("Open it again from the notification, or approve on the dashboard."),
    ),
    "one_tap_expired": Message(
        N_("This link has expired"),
        N_("The request is over. Run sudo again for a new one."),
    ),
    "session_expired_sign_in": Message(
        N_("Your sign-in has ended"),
        N_("You were signed out, or away for more than 30 minutes. Sign in again; nothing was changed."),
    ),
    "form_expired_message": Message(
        N_("The page was open too long"),
        N_("For safety a page is good for 30 minutes. Go back, reload it and try again; nothing was changed."),
    ),
    "invalid_csrf": Message(
        N_("The form could not be trusted"),
        N_("It was not made for your present sign-in. Go back, reload the page and try again; nothing was changed."),
    ),
    "storage_unavailable": Message(
        N_("The database does not answer"),
        N_("Nothing was changed. Wait a moment and try again; if it stays so, tell your administrator."),
    ),
    "provider_unavailable": Message(
        N_("The sign-in service does not answer"),
        N_("identree could not reach your identity provider. Wait a moment and try again."),
    ),
    "login_state_invalid": Message(
        N_("Sign-in not recognised"),
        N_("The answer of the identity provider does not belong to a sign-in that began here. Sign in again."),
    ),
    "login_other_browser": Message(
        N_("Begun in another browser"),
        N_("This sign-in was begun in another browser, or cookies are blocked. Sign in again in this one."),
    ),
    "login_session_expired": Message(
        N_("The sign-in took too long"),
        N_("A sign-in is good for 15 minutes and for one use. Sign in again."),
    ),
    "ip_binding_mismatch": Message(
        N_("Your address changed"),
        N_("Your network address changed during the sign-in. Stay in one network and sign in again."),
    ),
    "login_provider_error": Message(
        N_("The identity provider refused"),
        N_("It did not complete the sign-in. Try again; if it stays so, ask whether your account may use identree."),
    ),
    "login_code_missing": Message(
        N_("The sign-in was incomplete"),
        N_("The identity provider sent no code. Sign in again."),
    ),
    "login_exchange_failed": Message(
        N_("The sign-in could not be completed"),
        N_(
            "The identity provider did not accept identree's request. "
            "Sign in again; if it stays so, tell your administrator."
        ),
    ),
    "login_no_id_token": Message(
        N_("The sign-in could not be completed"),
        N_("The identity provider sent no ID token. Tell your administrator to check the client's settings there."),
    ),
    "login_token_invalid": Message(
        N_("The sign-in could not be verified"),
        N_(
            "The identity provider's answer did not pass the checks. "
            "Sign in again; if it stays so, tell your administrator."
        ),
    ),
    "login_nonce_mismatch": Message(
        N_("The sign-in could not be verified"),
        N_("The answer belongs to another sign-in. Close other sign-in tabs and sign in again."),
    ),
    "login_claims_invalid": Message(
        N_("Your account cannot be used"),
        N_("The identity provider sent account data that identree cannot read. Tell your administrator."),
    ),
    "login_username_invalid": Message(
        N_("Your user name cannot be used"),
        N_(
            "The user name from the identity provider must have 1 to 64 letters, digits, dots, underscores and "
            "hyphens. Ask your administrator to change it there."
        ),
    ),
    "not_found": Message(
        N_("Not found"),
        N_("There is nothing at this address. Check the link, or go back to the dashboard."),
    ),
    "hostname_not_registered": Message(
        N_("The host is not registered"),
        N_("Register it in the host registry, then try again."),
    ),
    "certificate_still_valid": Message(
        N_("The host has a valid certificate"),
        N_("It gets a new one when it shows that certificate or its own secret, or after an administrator's reset."),
    ),
    "sudo_rule_refused": Message(
        N_("The rule was not saved"),
        N_("Something in it cannot be served. Go back, correct what is marked, and save it again."),
    ),
    "sudo_rule_exists": Message(
        N_("There is a rule for this group"),
        N_("A group has one rule. Go back and edit that one."),
    ),
    "sudo_rule_missing": Message(
        N_("No rule for this group"),
        N_("Somebody may have deleted it. Go back to the sudo rules and look at the present ones."),
    ),
    "sudo_rules_unavailable": Message(
        N_("The rules file cannot be used"),
        N_("Nothing was changed. Look at the server's log, put the file right, and try again."),
    ),
    "signed_out": Message(
        N_("You are signed out"),
        N_("Your sudo sessions have ended too. Close the browser if others use this computer."),
    ),
}
