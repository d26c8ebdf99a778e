"""Why a request is treated as it is, in the reader's language (``identree.core.explanation``). Pure."""

from __future__ import annotations

from collections.abc import Mapping

from identree.core.explanation import Clause, Explanation
from identree.web.translations import N_, Language

_BECAUSE: Mapping[str, str] = {
    "host": N_("The host fits %(value)s."),
    "host_group": N_("The host is in the group %(value)s."),
    "user": N_("The user fits %(value)s."),
    "command": N_("The command fits %(value)s."),
    "command_unknown": N_("The host did not tell the command, and the policy applies then."),
    "everything": N_("The policy applies to everything."),
    "default": N_("No other policy applies."),
    "none": N_("No policy applies."),
    "grace_session": N_("An open sudo session stood in for the approval."),
    "overridden": N_("An administrator passed over the policy."),
}
_ASKS: Mapping[str, str] = {
    "admin": N_("Only administrators may approve."),
    "approver_groups": N_("Only members of %(value)s may approve."),
    "not_self": N_("Nobody may approve their own request."),
    "window": N_("Approvals are possible at these times only: %(value)s."),
    "window_closed": N_("Approvals are possible at these times only: %(value)s."),
    "fresh": N_("Whoever approves has signed in within the last %(value)s."),
    "grace": N_("An open sudo session stands in for an approval."),
    "no_grace": N_("Every sudo is asked for, whatever sessions are open."),
    "max_grace": N_("An approval leaves a sudo session of at most %(value)s."),
    "override": N_("Administrators may override it in an emergency."),
}
# Clauses whose value is a duration.
_DURATIONS = frozenset({"fresh", "max_grace"})


def because(explanation: Explanation, language: Language) -> tuple[str, ...]:
    """What made the policy apply."""
    return tuple(sentence for clause in explanation.because if (sentence := _said(_BECAUSE, clause, language)))


def asks(explanation: Explanation, language: Language) -> tuple[str, ...]:
    """What the policy asks for."""
    return tuple(sentence for clause in explanation.asks if (sentence := _asked(clause, language)))


def _asked(clause: Clause, language: Language) -> str:
    if clause.code == "approvals":
        count = int(clause.value) if clause.value.isdigit() else 1
        return language.ngettext("One approval is enough.", "%(num)s people have to approve.", count)
    return _said(_ASKS, clause, language)


def _said(table: Mapping[str, str], clause: Clause, language: Language) -> str:
    """Empty for a code of a newer version."""
    message = table.get(clause.code, "")
    if not message:
        return ""
    if "%(" not in message:
        return language.gettext(message)
    value = language.duration(clause.value) if clause.code in _DURATIONS else clause.value
    return language.gettext(message, value=value)
