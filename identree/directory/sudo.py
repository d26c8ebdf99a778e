"""
Sudo rules: what of a group's claims, or of a rule in the file, is served (spec/ldap section 3).

Whatever is left out must make the rule narrower. An item that only fails to be valid is dropped; one whose loss would
widen the grant, such as a negation or a time limit, refuses the whole rule. Both are told, item by item.

What is dropped is not asked how it is written: with an exclamation mark anywhere in it, it counts as a negation. Only
what is served as it stands may have the sign, as a command's arguments do.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice

from identree.directory.draft import Draft, Kind
from identree.directory.eligibility import RESERVED_RULE_NAME, group_name_problem, valid_group_name
from identree.directory.layout import Layout, NoAuthenticate
from identree.directory.source import Claims

# Items of one claim; more are dropped. The deployed limit; files have none but their size.
ITEMS_PER_CLAIM = 500
# Characters of one item: a command with its arguments on one line, as long as a path may be. Longer ones are dropped.
ITEM_LENGTH = 4096
# Of a longer item, what is repeated in pages and logs.
SHOWN_LENGTH = 64
# Characters; a description is read by people, the messages of sudo are one line of a terminal.
DESCRIPTION_LENGTH = 1024
MESSAGE_LENGTH = 200
# The highest sudoOrder; it fits every client's 32-bit integer.
MAX_ORDER = 999_999_999

# Why an item, or with ``refuses`` the rule, is not served. ``{item}`` is what was written.
VERDICT_MESSAGES: Mapping[str, str] = {
    "sudo_negated": "a negation cannot be served: leaving out only {item} would allow what it forbids",
    "sudo_no_commands": "there is no valid command",
    "sudo_no_hosts": "no host is valid; without hosts the rule would hold everywhere",
    "sudo_no_run_as_users": "no user to run as is valid; without one the rule would mean root",
    "sudo_group_withheld": "the group itself is not served",
    "sudo_no_members": "nobody in the group can have the rule",
    "sudo_bad_group": "a rule's group has at most 32 of a-z, 0-9, dot, underscore and hyphen, and begins with a letter "
    "or underscore",
    "sudo_reserved_group": "the name belongs to the operating system",
    "sudo_defaults_group": "sudo reads a rule of this name as global options",
    "sudo_bad_host": "{item} is no host name, address, network or +netgroup",
    "sudo_bad_user": "{item} is no user name",
    "sudo_bad_run_as_group": "{item} is no group name",
    "sudo_relative_command": "{item} must be ALL or begin with a slash",
    "sudo_dotdot_command": "{item} must not have two dots in a row",
    "sudo_control_character": "{item} has a control character",
    "sudo_sudoedit": "{item}: sudoedit cannot be granted",
    "sudo_split_command": "{item} may belong to the command before the comma, which would allow more without it; a "
    "command with a comma needs an entry of its own, such as sudoCommands1",
    "sudo_option_mode": "{item} is left to the setting LDAP_SUDO_NO_AUTHENTICATE",
    "sudo_option_not_allowed": "{item} is not among the options that a rule may have",
    "sudo_option_confines": "{item} may not be set here, and without it the command would be less confined",
    "sudo_option_tag": "{item} has no effect as an option, so that the command would be less confined; write noexec, "
    "intercept, !setenv or !sudoedit_follow",
    "sudo_bad_order": "{item} must be a whole number from 0 to 999999999",
    "sudo_bad_time": "{item} must be a time such as 2026-01-31T18:00:00Z",
    "sudo_never_valid": "the rule ends before it begins",
    "sudo_bad_description": "the description must be one line of at most 1024 characters",
    "sudo_too_many": "{item} and what follows is over the limit of 500 items",
    "sudo_too_long": "{item} is longer than 4096 characters",
    "sudo_unknown_claim": "{item} looks like a claim for sudo but is none, and without it the rule could allow more",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SudoRule:
    """
    A rule as it was written; lists are separated by commas.

    :ivar more_commands: one command each, commas included.
    :ivar unknown_claims: keys that look like those of sudo rules and are none; a file has none.
    """

    group: str
    commands: str = ""
    hosts: str = ""
    run_as_user: str = ""
    run_as_group: str = ""
    options: str = ""
    order: str = ""
    not_before: str = ""
    not_after: str = ""
    description: str = ""
    more_commands: tuple[str, ...] = ()
    unknown_claims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """
    What is not served of a rule.

    :ivar field: name of the field of :class:`SudoRule`.
    :ivar item: what was written there; empty when the whole field or rule is meant.
    :ivar key: of :data:`VERDICT_MESSAGES`.
    :ivar refuses: the whole rule is not served, not only the item.
    """

    field: str
    item: str
    key: str
    refuses: bool = False

    def text(self) -> str:
        """One English sentence part."""
        return VERDICT_MESSAGES[self.key].format(item=self.item)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """
    The valid part of a rule, as it is served.

    :ivar order: None for the position in the listing.
    :ivar not_before: GeneralizedTime in UTC, or empty.
    :ivar not_after: likewise.
    """

    hosts: tuple[str, ...]
    commands: tuple[str, ...]
    run_as_users: tuple[str, ...]
    run_as_groups: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    order: int | None = None
    not_before: str = ""
    not_after: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """:ivar grant: None when the rule is not served."""

    grant: Grant | None
    verdicts: tuple[Verdict, ...] = ()


# Claim of a group, field of a rule.
CLAIM_FIELDS: Mapping[str, str] = {
    "sudoCommands": "commands",
    "sudoHosts": "hosts",
    "sudoRunAsUser": "run_as_user",
    "sudoRunAsGroup": "run_as_group",
    "sudoOptions": "options",
    "sudoOrder": "order",
    "sudoNotBefore": "not_before",
    "sudoNotAfter": "not_after",
    "sudoDescription": "description",
}
# The claims that make a group one with a rule; the others only refine it.
_FOUNDING_CLAIMS = ("sudoCommands", "sudoHosts", "sudoRunAsUser", "sudoRunAsGroup", "sudoOptions")
_NUMBERED_CLAIM = re.compile(r"sudoCommands([0-9]+)", re.ASCII)
_NUMBERED_FIELD = re.compile(r"commands([0-9]+)", re.ASCII)


def numbered(pattern: re.Pattern[str], fields: Mapping[str, str]) -> tuple[str, ...]:
    """Values that are not blank of the keys that match, by the number in the key, which may have any length."""
    found = []
    for key in fields:
        match = pattern.fullmatch(key)
        if match is not None and fields[key].strip():
            # as a number, which Python would not make of thousands of digits
            digits = match[1].lstrip("0")
            found.append((len(digits), digits, key))
    return tuple(fields[key] for _, _, key in sorted(found))


def _resembles_claim(key: str) -> bool:
    """Whether somebody who wrote this key meant a claim of ours, in other case or with something invisible in it."""
    # four letters are looked at, and what letters may expand to is bounded
    letters = "".join(islice(filter(str.isalnum, key), 4))
    return unicodedata.normalize("NFKC", letters).casefold().startswith("sudo")


def rule_of_claims(group: str, claims: Claims) -> SudoRule | None:
    """
    A group's claims as a rule, or None when it has no sudo claim. NUL is removed from keys and values, and the last of
    several values of one key counts, as the deployed servers had it.

    Claims that only look like ours, such as ``SudoHosts`` or ``sudonotafter``, are kept by their name: what they were
    to narrow would be lost with them.
    """
    values = {key.replace("\0", ""): value.replace("\0", "") for key, value in claims}
    more = numbered(_NUMBERED_CLAIM, values)
    if not more and not any(values.get(claim, "").strip() for claim in _FOUNDING_CLAIMS):
        return None
    fields = {field: values[claim] for claim, field in CLAIM_FIELDS.items() if claim in values}
    unknown = tuple(
        key
        for key, value in values.items()
        if key not in CLAIM_FIELDS and value.strip() and _resembles_claim(key) and not _NUMBERED_CLAIM.fullmatch(key)
    )
    return SudoRule(group=group, more_commands=more, unknown_claims=unknown, **fields)


def rule_of_fields(fields: Mapping[str, str]) -> SudoRule:
    """A form's fields, named as those of :class:`SudoRule`, with further commands as ``commands1`` and so on."""
    known = {field: fields[field].strip() for field in CLAIM_FIELDS.values() if field in fields}
    return SudoRule(
        group=fields.get("group", "").strip(),
        more_commands=tuple(command.strip() for command in numbered(_NUMBERED_FIELD, fields)),
        unknown_claims=(),
        **known,
    )


def check_rule(fields: Mapping[str, str], no_authenticate: NoAuthenticate = "false") -> list[Verdict]:
    """
    What would not be served of a form's rule; empty when all of it would.

    :param fields: as :func:`rule_of_fields` takes them.
    """
    rule = rule_of_fields(fields)
    return [*group_verdicts(rule.group), *check(rule, no_authenticate).verdicts]


def group_verdicts(group: str) -> tuple[Verdict, ...]:
    """Whether a rule may have this name."""
    problem = group_name_problem(group)
    if problem:
        key = "sudo_bad_group" if problem == "invalid_group_name" else "sudo_reserved_group"
    elif group == RESERVED_RULE_NAME:
        key = "sudo_defaults_group"
    else:
        return ()
    return (Verdict(field="group", item=group, key=key, refuses=True),)


def split(text: str) -> list[str]:
    """Items between commas, trimmed, without empty ones."""
    return [item for part in text.split(",") if (item := part.strip())]


# The exclamation mark, every character that NFKC (Unicode Standard Annex 15) turns into one or more of it, and those
# that people take for it: a click letter, ornaments, a raised one.
_SIGN = re.compile("[!\u203c\u2048\u2049\ufe15\ufe57\uff01\u01c3\u2755\u2757\u2762\u2763\ua71d]")
# within a command that is taken as one, a negated path after a comma was meant as an item of a list
_NEGATED_PATH = re.compile(rf"{_SIGN.pattern}\s*+(?:/|ALL\b)")
_SPACE = re.compile(r"\s")
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_HOST_OR_USER = re.compile(r"[a-zA-Z0-9._-]{1,253}", re.ASCII)
_NETGROUP = re.compile(r"\+[a-zA-Z0-9._-]{1,253}", re.ASCII)
_SUDOEDIT = re.compile(r"(?:\S*/)?sudoedit(?:\s.*)?", re.IGNORECASE | re.DOTALL)


def negates(item: str) -> bool:
    """
    Whether an item that is not served may have been meant to forbid something: it has an exclamation mark, or what
    people take for one, wherever. Sudoers files allow users, digests and tags before the sign.
    """
    return _SIGN.search(item) is not None


def rest_of_command(text: str) -> str:
    """
    The first item of a list of commands that may be the rest of the command before it, or empty: it begins neither with
    a slash nor is ``ALL``, and directly before it stands a command with white space in it or behind it.

    ``/bin/kill ,x`` and ``/bin/cat /srv/*,x`` would allow more without their ends. ``/bin/ls,x`` is a command and a
    mistake, as a command without arguments ends where its path does.
    """
    spaced = False
    for part in text.split(","):
        item = part.strip()
        if not item:
            continue
        begins = item.startswith("/")
        if spaced and not begins and item != "ALL":
            return item
        spaced = begins and _SPACE.search(part.lstrip()) is not None
    return ""


class _Notes:
    """The verdicts on one field."""

    def __init__(self, field: str, into: list[Verdict]) -> None:
        self._field, self._into = field, into

    def drop(self, item: str, key: str) -> None:
        self._into.append(Verdict(field=self._field, item=_shown(item), key=key))

    def refuse(self, item: str, key: str) -> None:
        self._into.append(Verdict(field=self._field, item=_shown(item), key=key, refuses=True))


def _shown(item: str) -> str:
    return item if len(item) <= ITEM_LENGTH else f"{item[:SHOWN_LENGTH]}..."


def check(rule: SudoRule, no_authenticate: NoAuthenticate, max_items: int | None = None) -> Checked:
    """
    The valid part of a rule, and what is not valid. The rule's name is not looked at (:func:`group_verdicts`).

    :param max_items: of each list; None for any number.
    """
    verdicts: list[Verdict] = []

    def valid(field: str, text: str, problem: Callable[[str], str]) -> list[str]:
        kept = []
        notes = _Notes(field, verdicts)
        for count, item in enumerate(split(text)):
            key = problem(item) if len(item) <= ITEM_LENGTH else "sudo_too_long"
            # before the limit is looked at: a negation must not be lost by it
            if key and negates(item):
                notes.refuse(item, "sudo_negated")
            elif max_items is not None and count >= max_items:
                if count == max_items:
                    notes.drop(item, "sudo_too_many")
            elif key:
                notes.drop(item, key)
            else:
                kept.append(item)
        return kept

    for claim in rule.unknown_claims:
        _Notes("unknown_claims", verdicts).refuse(claim, "sudo_unknown_claim")
    commands = valid("commands", rule.commands, command_problem)
    notes = _Notes("commands", verdicts)
    rest = rest_of_command(rule.commands)
    if rest and not negates(rest):
        notes.refuse(rest, "sudo_split_command")
    full = False
    for written in rule.more_commands:
        command = written.strip()
        key = command_problem(command) if len(command) <= ITEM_LENGTH else "sudo_too_long"
        if (key and negates(command)) or _NEGATED_PATH.search(command.partition(",")[2]):
            notes.refuse(command, "sudo_negated")
        elif max_items is not None and len(commands) >= max_items:
            if not full:
                notes.drop(command, "sudo_too_many")
            full = True
        elif key:
            notes.drop(command, key)
        else:
            commands.append(command)
    if not commands:
        notes.refuse("", "sudo_no_commands")

    hosts = ["ALL"]
    if rule.hosts.strip():
        hosts = [_canonical_host(item) for item in valid("hosts", rule.hosts, host_problem)]
        if not hosts:
            _Notes("hosts", verdicts).refuse("", "sudo_no_hosts")
    users = ["root"]
    if rule.run_as_user.strip():
        users = valid("run_as_user", rule.run_as_user, user_problem)
        if not users:
            _Notes("run_as_user", verdicts).refuse("", "sudo_no_run_as_users")
    groups = valid("run_as_group", rule.run_as_group, run_as_group_problem)
    options = _options(rule.options, no_authenticate, max_items, _Notes("options", verdicts))
    order = _order(rule.order.strip(), _Notes("order", verdicts))
    not_before = _time(rule.not_before.strip(), _Notes("not_before", verdicts))
    not_after = _time(rule.not_after.strip(), _Notes("not_after", verdicts))
    if not_before and not_after and not_after < not_before:
        _Notes("not_after", verdicts).refuse(rule.not_after.strip(), "sudo_never_valid")
    description = rule.description.strip()
    if len(description) > DESCRIPTION_LENGTH or _CONTROL.search(description):
        _Notes("description", verdicts).drop("", "sudo_bad_description")
        description = ""
    grant = None
    if not any(verdict.refuses for verdict in verdicts):
        grant = Grant(
            hosts=_once(hosts),
            commands=_once(commands),
            run_as_users=_once(users),
            run_as_groups=_once(groups),
            options=_once(options),
            order=order,
            not_before=not_before,
            not_after=not_after,
            description=description,
        )
    return Checked(grant=grant, verdicts=tuple(verdicts))


def _once(items: Sequence[str]) -> tuple[str, ...]:
    # an attribute's values are a set
    return tuple(dict.fromkeys(items))


def command_problem(item: str) -> str:
    """Key of :data:`VERDICT_MESSAGES`, or empty when the command may be served."""
    if _CONTROL.search(item):
        return "sudo_control_character"
    if item == "ALL":
        return ""
    if _SUDOEDIT.fullmatch(item):
        # with a path too: sudo reads /usr/bin/sudoedit as sudoedit
        return "sudo_sudoedit"
    if not item.startswith("/"):
        return "sudo_relative_command"
    return "sudo_dotdot_command" if ".." in item else ""


def host_problem(item: str) -> str:
    """Key of :data:`VERDICT_MESSAGES`, or empty when the host may be served."""
    if _HOST_OR_USER.fullmatch(item) or _NETGROUP.fullmatch(item) or _network(item):
        return ""
    return "sudo_bad_host"


def _network(item: str) -> str:
    """An address or network as clients ask for it, or empty."""
    # the module takes scopes and unusual spaces too
    if not item.isascii() or "%" in item or len(item) > 64 or ("/" not in item and ":" not in item):
        return ""
    try:
        if "/" in item:
            # sssd asks for the network's own address, so 10.0.0.5/24 is served as 10.0.0.0/24: the same to sudo
            return str(ipaddress.ip_network(item, strict=False))
        return str(ipaddress.ip_address(item))
    except ValueError:
        return ""


def _canonical_host(item: str) -> str:
    return _network(item) or item


def user_problem(item: str) -> str:
    """Key of :data:`VERDICT_MESSAGES`, or empty when commands may be run as this user."""
    return "" if _HOST_OR_USER.fullmatch(item) else "sudo_bad_user"


def run_as_group_problem(item: str) -> str:
    """Key of :data:`VERDICT_MESSAGES`, or empty when commands may be run as this group."""
    return "" if item == "ALL" or valid_group_name(item) else "sudo_bad_run_as_group"


# ---- options ----
#
# sudo has some 120 options and gains new ones, so these are the ones that are allowed: each of them leaves the grant
# and the approval as they are, or makes them stricter. Not among them is whatever chooses who authenticates, how, by
# which PAM service or for how long (exempt_group, rootpw, pam_service, timestamp_type, verifypw ...), changes the
# environment (setenv, env_keep, env_file, secure_path ...), the command's place (runchroot, runcwd), its matching
# (fast_glob, sudoedit_follow ...), or where records go (logfile, log_servers, mailto, iolog_dir ...).

_SAFE_FLAGS = frozenset(
    # records of what is done
    "log_input log_output log_stdin log_stdout log_stderr log_ttyin log_ttyout log_subcmds log_allowed log_denied "
    "log_exit_status log_host log_year syslog_pid iolog_flush compress_io set_utmp utmp_runas "
    "mail_always mail_badpass mail_no_user mail_no_host mail_no_perms mail_all_cmnds "
    # the command is confined more
    "noexec use_pty requiretty env_reset ignore_dot set_home always_set_home runas_check_shell sudoedit_checkdir "
    "intercept intercept_authenticate intercept_verify set_logname "
    # what PAM does, all of it; a ticket for each terminal
    "pam_acct_mgmt pam_session pam_setcred pam_ruser pam_rhost tty_tickets "
    # what the person sees
    "insults pwfeedback long_otp_prompt path_info passprompt_override lecture".split()
)
# Flags whose absence is the stricter side; they appear only negated.
_SAFE_NEGATIONS = frozenset(
    "setenv rootpw targetpw runaspw visiblepw shell_noargs exempt_group closefrom_override user_command_timeouts "
    "umask_override preserve_groups stay_setuid fast_glob sudoedit_follow runas_allow_unknown_id "
    "intercept_allow_setid ignore_audit_errors ignore_iolog_errors ignore_logfile_errors noninteractive_auth "
    "log_passwords timestamp_timeout insults pwfeedback path_info passprompt_override lecture".split()
)
# The tags of a sudoers file. As options they mean nothing to sudo, whose own names are lower case; deployed rules have
# them. SETENV is not among them, as it never was served.
_INERT_TAGS = frozenset(
    "EXEC FOLLOW LOG_INPUT NOLOG_INPUT LOG_OUTPUT NOLOG_OUTPUT MAIL NOMAIL NOINTERCEPT PASSWD NOPASSWD".split()
)
# The tags of whoever wanted the command confined, and would not get it.
_LOST_TAGS = frozenset("NOEXEC NOFOLLOW INTERCEPT NOSETENV".split())
# Options that confine the command in a way we cannot judge: to serve the rule without them would widen it.
_CONFINING = frozenset(
    "runchroot runcwd role type apparmor_profile privs limitprivs command_timeout umask noexec requiretty use_pty "
    "intercept nofollow nosetenv".split()
)
_MESSAGE = re.compile(rf'"?[ !#-~]{{1,{MESSAGE_LENGTH}}}"?', re.ASCII)
_SAFE_VALUES: Mapping[str, re.Pattern[str]] = {
    # the command is ended after a time, which must not be none
    "command_timeout": re.compile(r"(?=.*[1-9])(?:[0-9]{1,6}|(?:[0-9]{1,5}[dhms]){1,4})", re.ASCII | re.IGNORECASE),
    # neither group nor others may write to new files; 0777 stands for the caller's own
    "umask": re.compile(r"(?!0?777)0?[0-7][2367][2367]", re.ASCII),
    "passwd_tries": re.compile(r"[1-9]", re.ASCII),
    "passwd_timeout": re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,2})?", re.ASCII),
    "lecture": re.compile(r"never|once|always", re.ASCII),
    "log_format": re.compile(r"sudo|json", re.ASCII),
    "badpass_message": _MESSAGE,
    "authfail_message": _MESSAGE,
    "passprompt": _MESSAGE,
}
_OPTION = re.compile(r"(!?)([a-z_]+)(?:(=)(.*))?", re.ASCII)
# what stands before a name, and the name; applied to lower case without white space and quotes
_OPTION_NAME = re.compile(r"[^a-z_]*+([a-z_]*+)", re.ASCII)
_OPTION_DRESS = re.compile(r"[\s\"']")


def is_authentication_option(item: str) -> bool:
    """Whether it is ``authenticate`` or its negation, however spelled; which of both may be served is the mode's."""
    if any(c in item for c in "\0\n\r\t"):
        return False
    return item.lower().strip().replace(" ", "") in ("authenticate", "!authenticate")


def option_allowed(item: str) -> bool:
    """Whether an option, trimmed, may be served whatever the mode; those of authentication never are."""
    if item in _INERT_TAGS:
        return True
    match = _OPTION.fullmatch(item)
    if match is None:
        return False
    negated, name, assigned, value = match.groups()
    if assigned:
        pattern = _SAFE_VALUES.get(name)
        return not negated and pattern is not None and pattern.fullmatch(value) is not None
    return name in (_SAFE_NEGATIONS if negated else _SAFE_FLAGS)


def _options(text: str, no_authenticate: NoAuthenticate, max_items: int | None, notes: _Notes) -> list[str]:
    found = split(text)
    kept = ["!authenticate"] if no_authenticate == "true" else []
    for count, item in enumerate(found):
        if max_items is not None and count >= max_items:
            # an option past the limit may be the one that confines
            notes.refuse(item, "sudo_too_many")
            break
        if is_authentication_option(item):
            if no_authenticate == "claims":
                kept.append(item)
            else:
                notes.drop(item, "sudo_option_mode")
        elif option_allowed(item):
            kept.append(item)
        elif _confines(item):
            notes.refuse(item, "sudo_option_tag" if item in _LOST_TAGS else "sudo_option_confines")
        else:
            notes.drop(item, "sudo_option_not_allowed")
    return kept


def _confines(item: str) -> bool:
    match = _OPTION_NAME.match(_OPTION_DRESS.sub("", item.lower()))
    # a negation takes confinement away, so that its loss does not
    return match is not None and match[1] in _CONFINING and "!" not in match[0]


# ---- order and time ----


def _order(text: str, notes: _Notes) -> int | None:
    if not text:
        return None
    if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        return int(text)
    # the order decides whose options hold, so a guess could lift another rule's
    notes.refuse(text, "sudo_bad_order")
    return None


_GENERALIZED = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(?:(\d\d)(?:[.,]0+)?)?(Z|[+-]\d{4})", re.ASCII)
_RFC3339 = re.compile(r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d)(?::(\d\d)(?:\.0+)?)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def generalized_time(text: str) -> str:
    """
    GeneralizedTime (RFC 4517 section 3.3.13) or RFC 3339 with minutes, and whole seconds if any, as GeneralizedTime in
    UTC with seconds.

    :raise ValueError: another form, without time zone, or no such time.
    """
    match = _GENERALIZED.fullmatch(text) or _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError("neither GeneralizedTime nor RFC 3339")
    year, month, day, hour, minute, second, zone = match.groups()
    offset = timedelta()
    if zone not in "Zz":
        digits = zone[1:].replace(":", "")
        hours, minutes = int(digits[:2]), int(digits[2:])
        if hours > 14 or minutes > 59:
            raise ValueError("no such time zone")
        offset = timedelta(hours=hours, minutes=minutes) * (-1 if zone[0] == "-" else 1)
    local = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second or 0), tzinfo=UTC)
    try:
        instant = local - offset
    except OverflowError:
        raise ValueError("out of range") from None
    # strftime has no four digits for years below 1000
    return f"{instant.year:04}{instant:%m%d%H%M%S}Z"


def _time(text: str, notes: _Notes) -> str:
    if not text:
        return ""
    try:
        return generalized_time(text)
    except ValueError:
        notes.refuse(text, "sudo_bad_time")
        return ""


# ---- entries ----

_ROLE_CLASSES = ("objectClass", (b"top", b"sudoRole"))
# Most rules have these.
_EVERY_HOST = ("sudoHost", (b"ALL",))
_AS_ROOT = ("sudoRunAsUser", (b"root",))


# What sudo takes for another thing than one account's name: everybody, a group, a number, a netgroup, a negation.
_NO_NAMES = (b"\n%", b"\n#", b"\n+", b"\n!")


def _accounts(users: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """The users that are accounts to sudo; the very same object when all are."""
    # found in one text: a group may have tens of thousands of members, and this is asked at each build
    text = b"\n" + b"\n".join(users) + b"\n"
    if not any(begin in text for begin in _NO_NAMES) and b"\nall\n" not in text.lower():
        return users
    return tuple(user for user in users if user.lower() != b"all" and user[:1] not in (b"%", b"#", b"+", b"!"))


def role_draft(
    layout: Layout, key: str, name: str, users: tuple[bytes, ...], grant: Grant, position: int
) -> Draft | None:
    """
    The entry of a rule; None when it would be for nobody. Users that are no account's name to sudo are left out: those
    who are served have no such names (:func:`identree.directory.eligibility.username_problem`), and here it would
    matter most.

    :param key: the draft's.
    :param users: values of ``sudoUser``, or alone the group of the rule's own name.
    :param position: from 1, among the rules of the unfiltered listing; the order of a rule that has none of its own.
    """

    if users != (b"%" + name.encode(),):
        users = _accounts(users)
    if not users:
        return None

    def values(name: str, texts: Iterable[str]) -> tuple[str, tuple[bytes, ...]]:
        return name, tuple(text.encode() for text in texts)

    attributes = [
        _ROLE_CLASSES,
        values("cn", (name,)),
        ("sudoUser", users),
        _EVERY_HOST if grant.hosts == ("ALL",) else values("sudoHost", grant.hosts),
        values("sudoCommand", grant.commands),
        _AS_ROOT if grant.run_as_users == ("root",) else values("sudoRunAsUser", grant.run_as_users),
    ]
    if grant.run_as_groups:
        attributes.append(values("sudoRunAsGroup", grant.run_as_groups))
    if grant.options:
        attributes.append(values("sudoOption", grant.options))
    attributes.append(values("sudoOrder", (str(position if grant.order is None else grant.order),)))
    if grant.not_before:
        attributes.append(values("sudoNotBefore", (grant.not_before,)))
    if grant.not_after:
        attributes.append(values("sudoNotAfter", (grant.not_after,)))
    if grant.description:
        attributes.append(values("description", (grant.description,)))
    return Draft(Kind.ROLE, key, f"cn={name},{layout.sudoers_dn}", tuple(attributes))
