"""
What the agent says to the person, in their language (spec/host-agent section 5, spec/web-ui section 15).

One table per language with the same keys and the same named places. A key that a language lacks is said in English.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

LANGUAGES = ("en", "es", "fr", "de", "ja", "zh", "pt", "ko")

ENGLISH = {
    "requires_approval": "sudo requires approval",
    "approve_at": "approve at: {url}",
    "code": "code: {code}",
    "notification_sent": "notification sent",
    "waiting": "waiting for approval",
    "time_left": "{left} left",
    "approvals": "{count} of {required} approvals",
    "approved": "sudo approved",
    "approved_for": "sudo approved (session expires in {left})",
    "denied": "sudo denied",
    "denied_reason": "sudo denied (reason: {reason})",
    "expired": "nobody approved in time; the request has expired",
    "cancelled": "cancelled; the request was withdrawn",
    "hour": "h",
    "minute": "m",
    "retrying": "{server} cannot be reached ({detail}); trying again for {seconds} s",
    "server_silent": "{server} does not answer; still trying",
    "unreachable": "{server} cannot be reached ({detail}). Check this host's network and name service, or tell whoever "
    "runs identree; then run sudo again.",
    "untrusted": "{server} could not prove who it is ({detail}). Check this host's clock, and IDENTREE_SERVER_URL and "
    "IDENTREE_CA_CERT in {conf}.",
    "refused": "{server} refuses this host (HTTP {status}). Check IDENTREE_SHARED_SECRET in {conf}, and that {user} "
    "may use {host}.",
    "too_many_pending": "too many requests of {user} are waiting. Answer them or let them expire, then run sudo again.",
    "throttled": "{server} has refused this host too often. Check IDENTREE_SHARED_SECRET in {conf}.",
    "try_in": "Try again in {seconds} s.",
    "bad_request": "{server} did not accept the request: {detail}",
    "server_error": "{server} failed (HTTP {status}). Run sudo again; if it lasts, tell whoever runs identree.",
    "redirected": "{server} redirects to {detail}, which is never followed. Set IDENTREE_SERVER_URL in {conf} to the "
    "final address.",
    "other_status": "{server} answered with HTTP {status}. Check IDENTREE_SERVER_URL in {conf}.",
    "no_answer": "{server} gave no usable answer ({detail}). Run sudo again; if it lasts, check IDENTREE_SERVER_URL in "
    "{conf}.",
    "forged_approval": "the approval does not carry this host's signature, so it does not count. Either somebody is "
    "tampering with the connection, or IDENTREE_SHARED_SECRET in {conf} is not the server's.",
    "unexpected_status": "{server} answered with an unknown status ({detail})",
    "non_interactive": "approval by a person is needed, and sudo -n does not wait for one",
    "justification_heading": "a reason is required; choose one:",
    "justification_other": "other",
    "justification_choice": "choice [{default}]: ",
    "justification_text": "reason: ",
    "justification_required": "a reason is required; give one with SUDO_REASON='...' sudo ...",
    "server_vanished": "{server} became unreachable while the request was waiting",
    "breakglass_banner": "*** BREAK-GLASS: {server} cannot be reached ***",
    "breakglass_explain": "Enter the break-glass password of {host}. Its use is recorded, and reported later.",
    "breakglass_prompt": "break-glass password: ",
    "breakglass_opened": "break-glass password accepted; this use is on record",
    "breakglass_failed": "authentication failed",
    "breakglass_limited": "too many failed attempts; try again in {seconds} s",
    "breakglass_interrupted": "interrupted",
    "breakglass_no_terminal": "the server cannot be reached, and there is no terminal to ask for the break-glass "
    "password at. Run sudo in a terminal.",
    "breakglass_unusable": "the server cannot be reached, and break-glass is impossible on this host: {detail}",
}

GERMAN = {
    "requires_approval": "sudo muss genehmigt werden",
    "approve_at": "Genehmigen unter: {url}",
    "code": "Code: {code}",
    "notification_sent": "Benachrichtigung gesendet",
    "waiting": "warte auf Genehmigung",
    "time_left": "noch {left}",
    "approvals": "{count} von {required} Genehmigungen",
    "approved": "sudo genehmigt",
    "approved_for": "sudo genehmigt (Sitzung endet in {left})",
    "denied": "sudo abgelehnt",
    "denied_reason": "sudo abgelehnt (Grund: {reason})",
    "expired": "niemand hat rechtzeitig genehmigt; die Anfrage ist abgelaufen",
    "cancelled": "abgebrochen; die Anfrage wurde zurückgezogen",
    "hour": "h",
    "minute": "min",
    "retrying": "{server} ist nicht erreichbar ({detail}); weitere Versuche für {seconds} s",
    "server_silent": "{server} antwortet nicht; es wird weiter versucht",
    "unreachable": "{server} ist nicht erreichbar ({detail}). Prüfen Sie Netz und Namensauflösung dieses Rechners, "
    "oder wenden Sie sich an den Betreiber von identree; rufen Sie sudo danach erneut auf.",
    "untrusted": "{server} konnte sich nicht ausweisen ({detail}). Prüfen Sie die Uhr dieses Rechners sowie "
    "IDENTREE_SERVER_URL und IDENTREE_CA_CERT in {conf}.",
    "refused": "{server} weist diesen Rechner ab (HTTP {status}). Prüfen Sie IDENTREE_SHARED_SECRET in {conf}, und "
    "ob {user} {host} nutzen darf.",
    "too_many_pending": "zu viele Anfragen von {user} sind offen. Beantworten Sie sie oder lassen Sie sie ablaufen; "
    "rufen Sie sudo danach erneut auf.",
    "throttled": "{server} hat diesen Rechner zu oft abgewiesen. Prüfen Sie IDENTREE_SHARED_SECRET in {conf}.",
    "try_in": "Versuchen Sie es in {seconds} s erneut.",
    "bad_request": "{server} hat die Anfrage nicht angenommen: {detail}",
    "server_error": "{server} ist gestört (HTTP {status}). Rufen Sie sudo erneut auf; hält es an, wenden Sie sich an "
    "den Betreiber von identree.",
    "redirected": "{server} leitet um auf {detail}; Umleitungen wird nie gefolgt. Tragen Sie in {conf} die endgültige "
    "Adresse als IDENTREE_SERVER_URL ein.",
    "other_status": "{server} antwortet mit HTTP {status}. Prüfen Sie IDENTREE_SERVER_URL in {conf}.",
    "no_answer": "{server} hat nicht brauchbar geantwortet ({detail}). Rufen Sie sudo erneut auf; hält es an, prüfen "
    "Sie IDENTREE_SERVER_URL in {conf}.",
    "forged_approval": "die Genehmigung trägt nicht die Signatur dieses Rechners und zählt daher nicht. Entweder "
    "greift jemand in die Verbindung ein, oder IDENTREE_SHARED_SECRET in {conf} ist nicht das des Servers.",
    "unexpected_status": "{server} antwortet mit einem unbekannten Status ({detail})",
    "non_interactive": "eine Person muss genehmigen, und sudo -n wartet nicht darauf",
    "justification_heading": "eine Begründung ist nötig; wählen Sie:",
    "justification_other": "andere",
    "justification_choice": "Auswahl [{default}]: ",
    "justification_text": "Begründung: ",
    "justification_required": "eine Begründung ist nötig; geben Sie sie mit SUDO_REASON='...' sudo ... an",
    "server_vanished": "{server} ist nicht mehr erreichbar, während die Anfrage wartet",
    "breakglass_banner": "*** NOTZUGANG: {server} ist nicht erreichbar ***",
    "breakglass_explain": "Geben Sie das Notfallpasswort von {host} ein. Die Nutzung wird festgehalten und später "
    "gemeldet.",
    "breakglass_prompt": "Notfallpasswort: ",
    "breakglass_opened": "Notfallpasswort angenommen; die Nutzung ist festgehalten",
    "breakglass_failed": "Anmeldung fehlgeschlagen",
    "breakglass_limited": "zu viele Fehlversuche; versuchen Sie es in {seconds} s erneut",
    "breakglass_interrupted": "abgebrochen",
    "breakglass_no_terminal": "der Server ist nicht erreichbar, und es gibt kein Terminal, um nach dem Notfallpasswort "
    "zu fragen. Rufen Sie sudo in einem Terminal auf.",
    "breakglass_unusable": "der Server ist nicht erreichbar, und ein Notzugang ist auf diesem Rechner nicht möglich: "
    "{detail}",
}

# The other languages of LANGUAGES join here; until then they are spoken to in English, but for what is said while the
# server cannot be reached (identree.agent.outage).
CATALOGUES = {"en": ENGLISH, "de": GERMAN}


def language(environ: Mapping[str, str]) -> str:
    """
    One of :data:`LANGUAGES`, from the first of LC_ALL, LC_MESSAGES, LANG that names one of them.

    A locale in another encoding than UTF-8 gets English, which every terminal can show.
    """
    if not utf8(environ) and any(environ.get(key) for key in ("LC_ALL", "LC_CTYPE", "LANG")):
        return "en"
    for key in ("LC_ALL", "LC_MESSAGES", "LANG"):
        value = environ.get(key, "")
        if value and value not in ("C", "POSIX"):
            primary = value.split(".")[0].split("@")[0].split("_")[0].lower()
            if primary in LANGUAGES:
                return primary
    return "en"


def utf8(environ: Mapping[str, str]) -> bool:
    """Whether the caller's terminal shows UTF-8, by the first of LC_ALL, LC_CTYPE, LANG that is set."""
    for key in ("LC_ALL", "LC_CTYPE", "LANG"):
        if environ.get(key):
            return environ[key].upper().split("@")[0].replace("-", "").endswith("UTF8")
    return False


def say(lang: str, key: str, **values: object) -> str:
    if lang in CATALOGUES:
        text = CATALOGUES[lang].get(key)
    else:
        from identree.agent import outage  # not for everybody's every sudo

        text = outage.CATALOGUES.get(lang, ENGLISH).get(key)
    return (text or ENGLISH[key]).format(**values)


def remaining(lang: str, seconds: int) -> str:
    """``3h 12m``, ``3h``, ``47m``; below a minute ``12s``; never negative."""
    if seconds < 60:
        return f"{max(seconds, 0)}s"
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    parts = []
    if hours:
        parts.append(f"{hours}{say(lang, 'hour')}")
    if minutes:
        parts.append(f"{minutes}{say(lang, 'minute')}")
    return " ".join(parts)
