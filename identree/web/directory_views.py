"""
View models of the administrators' pages about the directory: sudo rules, and what hosts are told. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from urllib.parse import urlencode

from identree.app.directoryadmin import (
    OK,
    AccountExplained,
    Explanation,
    GroupExplained,
    Kind,
    Mode,
    RuleExplained,
    Status,
    Withheld,
)
from identree.app.sudorules import FIELDS, FURTHER_FIELDS, Judged, Listing, State, SudoRule, Verdict, split
from identree.web.translations import N_, Language
from identree.web.views import Reading, When, when

# Items of a list that stand in a table; the rest is behind a press.
SHOWN_ITEMS = 6
# Reasons of one rule or field that are shown.
SHOWN_REMARKS = 12
# Lines of the table of what is withheld.
SHOWN_WITHHELD = 200
# Groups, rules or people of one part of an explanation; names of one list in it.
SHOWN_LINES = 100
SHOWN_NAMES = 50
# Fewer rules need no search.
SEARCHABLE_RULES = 10
# Rows of a field in which lists are typed.
LIST_LINES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StateWord:
    """:ivar tone: ``good``, ``doubtful``, ``bad`` or ``calm``; icon and word say it too."""

    name: str
    word: str
    icon: str
    tone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """:ivar refuses: nothing is served for it; otherwise an item is left out."""

    text: str
    refuses: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """
    A list as a table shows it.

    :ivar rest: the whole list as one text, when not all of it is shown. :ivar more: words that lead to it.
    :ivar default: what an empty list means.
    """

    shown: tuple[str, ...]
    rest: str = ""
    more: str = ""
    default: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleView:
    group: str
    description: str
    commands: Items
    hosts: Items
    run_as: Items
    options: Items
    times: str
    state: StateWord
    remarks: tuple[Remark, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldView:
    """
    One field of the form.

    :ivar lines: above 0 of a field for lists. :ivar fixed: shown, not to be changed.
    :ivar focused: where the cursor stands when the page opens.
    """

    name: str
    label: str
    hint: str
    value: str
    problems: tuple[Remark, ...] = ()
    lines: int = 0
    required: bool = False
    fixed: bool = False
    focused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FormView:
    """
    :ivar action: path that it is sent to. :ivar summary: what is wrong with what was sent; empty before.
    :ivar asks: it can be saved as it is, if the person wants that.
    """

    title: str
    action: str
    summary: str
    asks: bool
    fields: tuple[FieldView, ...]
    further: tuple[FieldView, ...]

    @property
    def further_open(self) -> bool:
        return any(field.value or field.problems for field in self.further)


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesView:
    """
    The page of the sudo rules.

    :ivar trouble: why the rules cannot be shown or saved. :ivar previous, next: queries of the pages beside this one.
    """

    editable: bool
    heading: str
    rules: tuple[RuleView, ...]
    search: str
    searchable: bool
    number: int
    pages: int
    previous: str
    next: str
    form: FormView | None = None
    trouble: str = ""


_LABELS: Mapping[str, str] = {
    "group": N_("Group"),
    "commands": N_("Commands"),
    "hosts": N_("Hosts"),
    "run_as_user": N_("Run as user"),
    "run_as_group": N_("Run as group"),
    "options": N_("Options"),
    "order": N_("Order"),
    "not_before": N_("Not before"),
    "not_after": N_("Not after"),
    "description": N_("Description"),
    "more_commands": N_("Commands with commas"),
}

_HINTS: Mapping[str, str] = {
    "group": N_("The group whose members get the rule: lower-case letters, digits, dot, underscore, hyphen."),
    "commands": N_("Absolute paths with arguments, one on each line or separated by commas; ALL for every command."),
    "hosts": N_("Names, addresses, networks or +netgroups, one on each line or separated by commas; empty for all."),
    "run_as_user": N_("User names, separated by commas; empty for root."),
    "run_as_group": N_("Group names, separated by commas; may be empty."),
    "options": N_("Options of sudo, separated by commas; may be empty."),
    "order": N_("Of several rules that apply, the one with the highest number counts; empty for its place here."),
    "not_before": N_("From when on the rule counts, as in 2026-03-04T09:30:00Z; may be empty."),
    "not_after": N_("Until when the rule counts, as in 2026-03-04T09:30:00Z; may be empty."),
    "description": N_("For whoever reads the rule; may be empty."),
    "more_commands": N_("Further commands, one on each line; a comma does not end them."),
}
# Fields in which lists are typed, an item on each line.
_LISTS = frozenset({"commands", "hosts", "more_commands"})
# Keys of identree.directory.sudo.VERDICT_MESSAGES, then those of the form alone.
_VERDICTS: Mapping[str, str] = {
    "sudo_negated": N_("%(item)s: a negation cannot be served, and leaving it out would allow what it forbids."),
    "sudo_no_commands": N_("There is no valid command."),
    "sudo_no_hosts": N_("No host is valid; without hosts the rule would hold everywhere."),
    "sudo_no_run_as_users": N_("No user to run as is valid; without one the rule would mean root."),
    "sudo_group_withheld": N_("The group itself is not served."),
    "sudo_no_members": N_("Nobody in the group can have the rule."),
    "sudo_bad_group": N_(
        "A rule's group has at most 32 of a-z, 0-9, dot, underscore and hyphen, and begins with a letter or underscore."
    ),
    "sudo_reserved_group": N_("The name belongs to the operating system."),
    "sudo_defaults_group": N_("sudo reads a rule of this name as global options."),
    "sudo_bad_host": N_("%(item)s is no host name, address, network or +netgroup."),
    "sudo_bad_user": N_("%(item)s is no user name."),
    "sudo_bad_run_as_group": N_("%(item)s is no group name."),
    "sudo_relative_command": N_("%(item)s must be ALL or begin with a slash."),
    "sudo_dotdot_command": N_("%(item)s must not have two dots in a row."),
    "sudo_control_character": N_("%(item)s has a control character."),
    "sudo_sudoedit": N_("%(item)s: sudoedit cannot be granted."),
    "sudo_split_command": N_(
        "%(item)s may belong to the command before the comma, which would allow more without it. "
        "A command with a comma goes to the further commands, or into a claim such as sudoCommands1."
    ),
    "sudo_option_mode": N_("%(item)s is left to the setting LDAP_SUDO_NO_AUTHENTICATE."),
    "sudo_option_not_allowed": N_("%(item)s is not among the options that a rule may have."),
    "sudo_option_confines": N_("%(item)s may not be set here, and without it the command would be less confined."),
    "sudo_option_tag": N_(
        "%(item)s has no effect as an option, so that the command would be less confined. "
        "Write noexec, intercept, !setenv or !sudoedit_follow."
    ),
    "sudo_bad_order": N_("%(item)s must be a whole number from 0 to 999999999."),
    "sudo_bad_time": N_("%(item)s must be a time such as 2026-01-31T18:00:00Z."),
    "sudo_never_valid": N_("The rule ends before it begins."),
    "sudo_bad_description": N_("The description must be one line of at most 1024 characters."),
    "sudo_too_many": N_("%(item)s and what follows is over the limit of 500 items."),
    "sudo_too_long": N_("%(item)s is longer than 4096 characters."),
    "sudo_unknown_claim": N_(
        "%(item)s looks like a claim for sudo but is none, and without it the rule could allow more."
    ),
    "required": N_("Fill this in."),
    "bad_group": N_("A group begins with a-z or underscore; then come a-z, 0-9, dot, underscore and hyphen."),
    "too_long": N_("This is longer than %(item)s bytes."),
    "more_lines": N_("Line breaks and NUL characters cannot stand here."),
    "repeated": N_("An earlier rule is for the same group."),
    "exists": N_("There is a rule for %(item)s already. Edit that one instead."),
    "too_many_rules": N_("There are %(item)s rules, and there cannot be more. Delete one first."),
}


# -- sudo rules --------------------------------------------------------------------------------------------------------
def rules_view(
    language: Language,
    listing: Listing | None,
    *,
    editable: bool,
    search: str = "",
    form: FormView | None = None,
    trouble: str = "",
) -> RulesView:
    """
    :param listing: None when the rules could not be read.
    :param trouble: why not, or why they could not be saved.
    """
    _, many = language.gettext, language.ngettext
    if listing is None:
        listing = Listing(rules=(), found=0, total=0, number=1, pages=1)
    heading = many("%(num)s rule", "%(num)s rules", listing.total)
    if search:
        heading = _("%(found)s of %(total)s rules", found=listing.found, total=listing.total)
    if trouble:
        trouble = _("The rules file cannot be used: %(problem)s", problem=trouble)

    def beside(step: int) -> str:
        number = listing.number + step
        if not 1 <= number <= listing.pages:
            return ""
        return urlencode({"page": number, **({"q": search} if search else {})})

    return RulesView(
        editable=editable,
        heading=heading,
        rules=tuple(rule_view(language, judged) for judged in listing.rules),
        search=search,
        searchable=bool(search) or listing.total >= SEARCHABLE_RULES,
        number=listing.number,
        pages=listing.pages,
        previous=beside(-1),
        next=beside(1),
        form=form,
        trouble=trouble,
    )


def rule_view(language: Language, judged: Judged) -> RuleView:
    _ = language.gettext
    rule = judged.rule
    run_as = _list(language, split(rule.run_as_user), "root")
    if rule.run_as_group:
        groups = _list(language, split(rule.run_as_group), "")
        run_as = Items(
            shown=(*(run_as.shown or ("root",)), *(f":{name}" for name in groups.shown)),
            rest=", ".join(text for text in (run_as.rest, groups.rest) if text),
            more=run_as.more or groups.more,
        )
    times = ""
    if rule.not_before and rule.not_after:
        times = _("from %(start)s until %(end)s", start=rule.not_before, end=rule.not_after)
    elif rule.not_before:
        times = _("from %(start)s", start=rule.not_before)
    elif rule.not_after:
        times = _("until %(time)s", time=rule.not_after)
    return RuleView(
        group=rule.group,
        description=rule.description,
        commands=_list(language, [*split(rule.commands), *rule.more_commands], _("none")),
        hosts=_list(language, split(rule.hosts), _("all hosts")),
        run_as=run_as,
        options=_list(language, split(rule.options), ""),
        times=times,
        state=state_word(language, judged.state),
        remarks=_remarks(language, judged.verdicts),
    )


def rule_fields(rule: SudoRule) -> dict[str, str]:
    """What the form is filled in with."""
    fields: dict[str, str] = {
        name: getattr(rule, name) for name in (*FIELDS, *FURTHER_FIELDS) if name != "more_commands"
    }
    return {**fields, "more_commands": "\n".join(rule.more_commands)}


def state_word(language: Language, state: State) -> StateWord:
    _ = language.gettext
    if state is State.SERVED:
        return StateWord(name="served", word=_("Served"), icon="check", tone="good")
    if state is State.IN_PART:
        return StateWord(name="in_part", word=_("Served in part"), icon="warning", tone="doubtful")
    return StateWord(name="withheld", word=_("Not served"), icon="cross", tone="bad")


def _remarks(language: Language, verdicts: Sequence[Verdict]) -> tuple[Remark, ...]:
    """Those that refuse the rule first; with many, the rest is only counted."""
    first = [*islice((verdict for verdict in verdicts if verdict.refuses), SHOWN_REMARKS)]
    first += islice((verdict for verdict in verdicts if not verdict.refuses), SHOWN_REMARKS - len(first))
    shown = [_remark(language, verdict) for verdict in first]
    if len(verdicts) > SHOWN_REMARKS:
        shown.append(Remark(text=_and_more(language, len(verdicts) - SHOWN_REMARKS), refuses=first[-1].refuses))
    return tuple(shown)


def _remark(language: Language, verdict: Verdict) -> Remark:
    words = _VERDICTS.get(verdict.key)
    text = verdict.text() if words is None else language.gettext(words, item=verdict.item)
    return Remark(text=text, refuses=verdict.refuses)


def _list(language: Language, items: Sequence[str], default: str) -> Items:
    if len(items) <= SHOWN_ITEMS:
        return Items(shown=tuple(items), default=default)
    more = _and_more(language, len(items) - SHOWN_ITEMS)
    return Items(shown=tuple(items[:SHOWN_ITEMS]), rest=", ".join(items[SHOWN_ITEMS:]), more=more)


def rule_form(
    language: Language, action: str, values: Mapping[str, str], verdicts: Sequence[Verdict], *, opened: bool = False
) -> FormView:
    """
    :param action: path of adding or updating.
    :param verdicts: about ``values``.
    :param opened: nothing was sent yet; the verdicts are about what is stored.
    """
    _ = language.gettext
    updates = action.endswith("/update")
    refused = any(verdict.refuses for verdict in verdicts)
    summary = ""
    if refused and not opened:
        summary = _("The rule was not saved. What is wrong stands at each field.")
    elif verdicts and not opened:
        summary = _("The rule is not saved yet: what is named below would not be served.")
    bad = [verdict.field for verdict in verdicts]
    first = next((name for name in (*FIELDS, *FURTHER_FIELDS) if name in bad), "commands" if updates else "group")

    def field(name: str) -> FieldView:
        about = [verdict for verdict in verdicts if verdict.field == name]
        return FieldView(
            name=name,
            label=_(_LABELS[name]),
            hint=_(_HINTS[name]),
            value="\n".join(split(values.get(name, ""))) if name in ("commands", "hosts") else values.get(name, ""),
            problems=_remarks(language, about),
            lines=LIST_LINES if name in _LISTS else 0,
            required=name in ("group", "commands"),
            fixed=updates and name == "group",
            focused=name == first,
        )

    return FormView(
        title=_("Edit the rule of %(group)s", group=values.get("group", "")) if updates else _("Add a rule"),
        action=action,
        summary=summary,
        asks=bool(verdicts) and not refused and not opened,
        fields=tuple(field(name) for name in FIELDS),
        further=tuple(field(name) for name in FURTHER_FIELDS),
    )


def exists_form(language: Language, action: str, values: Mapping[str, str]) -> FormView:
    """What was sent for a group that has a rule."""
    verdict = Verdict(field="group", item=values.get("group", "").strip(), key="exists", refuses=True)
    return rule_form(language, action, values, (verdict,))


def messages(language: Language, verdicts: Sequence[Verdict]) -> dict[str, list[str]]:
    """For scripts: sentences by field."""
    fields: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        fields.setdefault(verdict.field, []).append(verdict)
    return {field: [remark.text for remark in _remarks(language, about)] for field, about in fields.items()}


# -- the directory -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class FactView:
    """:ivar at: shown behind ``text``; None without."""

    name: str
    label: str
    text: str = ""
    at: When | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CountView:
    name: str
    label: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TroubleView:
    text: str
    at: When


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalView:
    """:ivar seen: sent along with the acceptance, which counts for nothing else."""

    text: str
    at: When
    seen: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WithheldView:
    kind: str
    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryView:
    """
    The page of the directory.

    :ivar withheld_rest: how many more there are; empty when all are shown.
    :ivar name: that was asked about. :ivar explained: None when it was not found.
    """

    health: StateWord
    facts: tuple[FactView, ...]
    counts: tuple[CountView, ...]
    failure: TroubleView | None
    refusal: RefusalView | None
    withheld_heading: str
    withheld: tuple[WithheldView, ...]
    withheld_rest: str
    name: str
    explained: ExplainedView | None


_KINDS: Mapping[Kind, str] = {
    Kind.PERSON: N_("person"),
    Kind.GROUP: N_("group"),
    Kind.PRIVATE_GROUP: N_("private group"),
    Kind.ROLE: N_("sudo rule"),
}
# Keys of identree.directory.eligibility.WITHHELD_MESSAGES
_WITHHELD: Mapping[str, str] = {
    "invalid_username": N_("User names have 1 to 64 ASCII letters, digits, dots, underscores and hyphens."),
    "reserved_username": N_("The user name belongs to the operating system."),
    "username_taken": N_("An older account has this user name, perhaps in other case (%(other)s)."),
    "name_taken_by_group": N_("An older group has this name (%(other)s)."),
    "invalid_group_name": N_(
        "Group names have at most 32 of a-z, 0-9, dot, underscore and hyphen, and begin with a letter or underscore."
    ),
    "reserved_group_name": N_("The group name belongs to the operating system."),
    "group_name_taken": N_("An older group has this name (%(other)s)."),
    "name_taken_by_person": N_("An older account has this name for its private group (%(other)s)."),
    "private_group_reserved": N_("Only the private group is left out: its name belongs to the operating system."),
    "no_number": N_("No POSIX number could be assigned."),
    "rule_name_taken": N_("An earlier rule is for the same group."),
    "rule_not_served": N_("The rule is not served; the page of the sudo rules says why."),
}
# What a refused refresh would lose, by ``Loss.what``.
_LOSSES: Mapping[str, str] = {
    "people": N_("%(lost)s of %(before)s people would vanish."),
    "enabled people": N_("%(lost)s of %(before)s enabled people would be disabled."),
    "sudo rules": N_("%(lost)s of %(before)s sudo rules would vanish."),
    "groups": N_("%(lost)s of %(before)s groups would vanish."),
    "memberships": N_("%(lost)s of %(before)s memberships would vanish."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LineView:
    """A membership, a rule, or something withheld, and what becomes of it."""

    name: str
    text: str
    state: StateWord
    facts: tuple[tuple[str, str], ...] = ()
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartView:
    """:ivar none: what to say where there are no lines."""

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    lines: tuple[LineView, ...] = ()
    none: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedView:
    parts: tuple[PartView, ...]


def directory_view(
    reading: Reading, status: Status, *, name: str = "", explained: Explanation | None = None
) -> DirectoryView:
    language = reading.language
    _ = language.gettext
    full = status.mode is Mode.FULL
    facts = [
        FactView(
            name="mode",
            label=_("Source"),
            text=_("PocketID: people, groups and sudo rules") if full else _("The rules file: sudo rules only"),
        )
    ]
    if status.confirmed_at is not None:
        facts.append(FactView(name="confirmed", label=_("Last refresh"), at=when(status.confirmed_at, reading)))
    elif full:
        facts.append(FactView(name="confirmed", label=_("Last refresh"), text=_("none yet")))
    if status.age_seconds is not None:
        facts.append(FactView(name="age", label=_("Age"), text=language.lasting(int(status.age_seconds))))
    if status.ready:
        facts.append(FactView(name="usn", label=_("Change number"), text=str(status.usn)))
    counts = [CountView(name="roles", label=_("sudo rules"), number=status.roles)]
    if full:
        counts = [
            CountView(name="people", label=_("people"), number=status.people),
            CountView(name="groups", label=_("groups"), number=status.groups),
            *counts,
        ]
    failure = refusal = None
    if status.trouble is not None:
        failure = TroubleView(text=status.trouble.reason, at=when(status.trouble.at, reading))
    if status.refusal is not None:
        losses = " ".join(
            _(_LOSSES[loss.what], lost=loss.lost, before=loss.before)
            if loss.what in _LOSSES
            else f"{loss.what}: {loss.lost} / {loss.before}"
            for loss in status.refusal.losses
        )
        refusal = RefusalView(text=losses, at=when(status.refusal.at, reading), seen=str(status.refusal))
    withheld = status.withheld
    rest = len(withheld) - SHOWN_WITHHELD
    return DirectoryView(
        health=_health(language, status),
        facts=tuple(facts),
        counts=tuple(counts),
        failure=failure,
        refusal=refusal,
        withheld_heading=_("Withheld (%(num)s)", num=len(withheld)) if withheld else _("Withheld"),
        withheld=tuple(_withheld(language, item) for item in withheld[:SHOWN_WITHHELD]),
        withheld_rest=_and_more(language, rest),
        name=name,
        explained=None if explained is None else explained_view(language, explained),
    )


def _health(language: Language, status: Status) -> StateWord:
    _ = language.gettext
    if not status.ready:
        return StateWord(name="empty", word=_("Nothing to serve yet"), icon="cross", tone="bad")
    if status.health != OK:
        return StateWord(name="stale", word=_("Out of date"), icon="warning", tone="doubtful")
    if status.refusal is not None:
        return StateWord(name="refused", word=_("Waiting for you"), icon="warning", tone="doubtful")
    if status.trouble is not None:
        return StateWord(
            name="trouble", word=_("Up to date, but the last refresh failed"), icon="warning", tone="doubtful"
        )
    return StateWord(name="ok", word=_("Up to date"), icon="check", tone="good")


def _withheld(language: Language, item: Withheld) -> WithheldView:
    words = _WITHHELD.get(item.key)
    return WithheldView(
        kind=language.gettext(_KINDS[item.kind]) if item.kind in _KINDS else item.kind.value,
        name=item.name,
        text=item.text() if words is None else language.gettext(words, other=item.other),
    )


# Why a sudo rule applies to a name or not: keys of identree.directory.explain.REASONS.
_REASONS: Mapping[str, str] = {
    "member": N_("The account is a member of the group."),
    "nested_member": N_("The account is a member of a group in the group."),
    "group": N_("It is the group's rule."),
    "host_group": N_("It holds for whoever is in the group on the host."),
    "not_member": N_("The account is not a member of the group."),
    "other_group": N_("It is another group's rule."),
    "disabled": N_("The account is disabled."),
    "no_account": N_("There is no such account."),
    "not_served": N_("The rule is not served."),
}


def explained_view(language: Language, explained: Explanation) -> ExplainedView:
    """Account, group, what is withheld, then every sudo rule: those that apply first."""
    _ = language.gettext
    parts = []
    if explained.account is not None:
        parts.append(_account_part(language, explained.account))
    if explained.group is not None:
        parts.append(_group_part(language, explained.group))
    if explained.withheld:
        withheld = StateWord(name="withheld", word=_("Not served"), icon="cross", tone="bad")
        lines = [
            LineView(name=item.name, text=f"{shown.kind}: {shown.text}", state=withheld)
            for item in explained.withheld[:SHOWN_LINES]
            for shown in (_withheld(language, item),)
        ]
        parts.append(PartView(title=_("Withheld"), lines=tuple(lines)))
    rules = sorted(explained.rules, key=lambda rule: not rule.applies)
    more = len(rules) - SHOWN_LINES
    parts.append(
        PartView(
            title=_("sudo rules"),
            lines=tuple(_rule_line(language, rule) for rule in rules[:SHOWN_LINES]),
            none=_and_more(language, more) if rules else _("There are no sudo rules."),
        )
    )
    return ExplainedView(parts=tuple(parts))


def _account_part(language: Language, account: AccountExplained) -> PartView:
    _ = language.gettext
    facts = [
        (_("Name"), account.full_name),
        (_("State"), _("disabled: hosts deny it") if account.disabled else _("active")),
        ("uid", str(account.uid)),
        ("gid", str(account.gid)),
        (_("Private group"), _("yes") if account.private_group else _("not served")),
        (_("Home"), account.home),
        (_("Shell"), account.shell),
        (_("Hosts"), _joined(language, account.hosts) or _("none named")),
        *((_("SSH key"), fingerprint) for fingerprint in account.key_fingerprints),
    ]
    member = StateWord(name="member", word=_("Member"), icon="check", tone="good")
    lines = [
        LineView(
            name=one.group,
            text=", ".join(filter(None, (f"gid {one.gid}", _through(language, one.via)))),
            state=member,
        )
        for one in account.groups[:SHOWN_LINES]
    ]
    more = len(account.groups) - SHOWN_LINES
    return PartView(
        title=_("Account %(name)s", name=account.username),
        facts=tuple(facts),
        lines=tuple(lines),
        none=_and_more(language, more) if account.groups else _("In no group."),
    )


def _group_part(language: Language, group: GroupExplained) -> PartView:
    _ = language.gettext
    facts = (
        ("gid", str(group.gid)),
        (_("Hosts"), _joined(language, group.hosts) or _("none named")),
        (_("Members"), _joined(language, group.members) or _("none")),
    )
    left_out = StateWord(name="withheld", word=_("No member"), icon="cross", tone="bad")
    lines = [
        LineView(
            name=name,
            text=_({**_WITHHELD, **_REASONS}.get(why, why), other=""),
            state=left_out,
        )
        for name, why in group.not_members[:SHOWN_LINES]
    ]
    return PartView(
        title=_("Group %(name)s", name=group.name),
        facts=facts,
        lines=tuple(lines),
        none=_and_more(language, len(group.not_members) - SHOWN_LINES),
    )


def _rule_line(language: Language, rule: RuleExplained) -> LineView:
    _ = language.gettext
    if rule.applies:
        state = StateWord(name="applies", word=_("Applies"), icon="check", tone="good")
    elif rule.why == "not_served":
        state = StateWord(name="withheld", word=_("Not served"), icon="cross", tone="bad")
    else:
        state = StateWord(name="other", word=_("Does not apply"), icon="info", tone="calm")
    text = _(_REASONS[rule.why]) if rule.why in _REASONS else rule.why
    text = " ".join(filter(None, (text, _through(language, rule.via))))
    facts: tuple[tuple[str, str], ...] = ()
    grant = rule.report.checked.grant
    if rule.applies and grant is not None:
        facts = tuple(
            (label, _joined(language, values))
            for label, values in (
                (_("Commands"), grant.commands),
                (_("Hosts"), grant.hosts),
                (_("Run as user"), grant.run_as_users),
                (_("Run as group"), grant.run_as_groups),
                (_("Options"), grant.options),
            )
            if values
        )
    return LineView(name=rule.name, text=text, state=state, facts=facts, remarks=_remarks(language, rule.verdicts))


def _joined(language: Language, values: Sequence[str]) -> str:
    shown = ", ".join(values[:SHOWN_NAMES])
    more = _and_more(language, len(values) - SHOWN_NAMES)
    return f"{shown} {more}" if more else shown


def _through(language: Language, groups: Sequence[str]) -> str:
    """The way to a nested group, outermost first."""
    return language.gettext("through %(groups)s", groups=", ".join(groups)) if groups else ""


def _and_more(language: Language, count: int) -> str:
    return language.ngettext("and %(num)s more", "and %(num)s more", count) if count > 0 else ""
