"""
What the kinds of events mean in the terms of OCSF 1.3.0 (Open Cybersecurity Schema Framework, schema.ocsf.io), and
records mapped to its classes. ``docs/audit.md`` shows the same tables.

``raw_data`` of every event is the C-form of the record: its SHA-256 is the record's hash, so that the chain can be
verified from what a receiver of OCSF has kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from ipaddress import ip_address
from typing import NamedTuple

from identree.core import audit
from identree.core.audit import Sealed

VERSION = "1.3.0"
# What every line begins with: a torn one is known by it.
BEGINS = b'{"class_uid":'

OTHER = 99
# The schema demands a name where the record has none.
NOBODY = "(unknown)"
EVERYBODY = "(everybody)"
# What a sudo request is about, in the schema's list of privileges.
PRIVILEGE = "sudo"

_HOSTNAME = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)*[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")


class Class(NamedTuple):
    """
    :ivar has_actor: whether the class itself has ``actor``; with False the profile ``host`` adds it; with None there is
        none at all.
    :ivar has_source: whether it has ``src_endpoint``.
    """

    uid: int
    caption: str
    has_actor: bool | None
    has_source: bool = True


BASE = Class(0, "Base Event", None, False)
ACCOUNT_CHANGE = Class(3001, "Account Change", True)
AUTHENTICATION = Class(3002, "Authentication", True)
AUTHORIZE_SESSION = Class(3003, "Authorize Session", False)
ENTITY_MANAGEMENT = Class(3004, "Entity Management", False)
USER_ACCESS = Class(3005, "User Access Management", False)
APPLICATION_LIFECYCLE = Class(6002, "Application Lifecycle", False, False)

# ``activity_id`` and ``activity_name``
ASSIGN = (1, "Assign Privileges")
REVOKE = (2, "Revoke Privileges")
LOGON = (1, "Logon")
LOGOFF = (2, "Logoff")
CREATE = (1, "Create")
READ = (2, "Read")
UPDATE = (3, "Update")
DELETE = (4, "Delete")
ENROLL = (6, "Enroll")


class Severity(Enum):
    """``severity_id`` and ``severity``."""

    INFORMATIONAL = (1, "Informational")
    LOW = (2, "Low")
    MEDIUM = (3, "Medium")
    HIGH = (4, "High")


class EntityType(NamedTuple):
    """``type_id`` and ``type`` of a managed entity."""

    id: int
    name: str


DEVICE = EntityType(1, "Device")
POLICY = EntityType(5, "Policy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """
    What an event of Entity Management is about.

    :ivar name: the record's key that names it; empty: there is one only, and it is called ``only``.
    :ivar uid: the record's key with its number, if any.
    """

    type: EntityType
    name: str = "hostname"
    uid: str = ""
    only: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """
    What a kind of event is.

    :ivar title: for people; ``message`` of OCSF and the name in CEF.
    :ivar failed: somebody wanted something and did not get it.
    :ivar actor: the record's key that says who did it.
    :ivar nobody: the name where the class demands a user and the record has none.
    :ivar service: what a sign-in was to.
    """

    title: str
    of: Class
    activity: tuple[int, str]
    severity: Severity = Severity.INFORMATIONAL
    failed: bool = False
    actor: str = "actor"
    nobody: str = NOBODY
    service: str = "identree"
    entity: Entity | None = None

    @property
    def has_user(self) -> bool:
        """Whether ``username`` of the record is a person to whom it happened."""
        return self.of in (ACCOUNT_CHANGE, AUTHENTICATION, AUTHORIZE_SESSION, USER_ACCESS)

    @property
    def has_host(self) -> bool:
        """Whether ``hostname`` of the record, if there, is a host."""
        return self.entity is None or self.entity.type not in _NO_HOSTS


def _other(name: str) -> EntityType:
    return EntityType(OTHER, name)


_SUDO_RULE = _other("sudo rule")
_CHANNEL = _other("notification channel")
# Entities whose name stands in the record's ``hostname``, and is none.
_NO_HOSTS = (_SUDO_RULE, _CHANNEL)

_PASSWORD = Entity(type=_other("break-glass password"))
_PREFERENCE = Entity(type=_other("notification preference"), name="username")
_PUSH_DEVICE = Entity(type=_other("push device"), name="username")
_ROUTE = Entity(type=_other("notification route"), name="", only="notification route")

MEANINGS: dict[str, Meaning] = {
    "challenge_created": Meaning(title="Sudo requested", of=AUTHORIZE_SESSION, activity=(OTHER, "Request Privileges")),
    "auto_approved": Meaning(title="Sudo approved by a grace session", of=AUTHORIZE_SESSION, activity=ASSIGN),
    "challenge_approved": Meaning(title="Sudo approved", of=AUTHORIZE_SESSION, activity=ASSIGN),
    "challenge_partially_approved": Meaning(
        title="Sudo approved by one of several", of=AUTHORIZE_SESSION, activity=(OTHER, "Approve in Part")
    ),
    "challenge_approval_withdrawn": Meaning(
        title="Approval of sudo withdrawn", of=AUTHORIZE_SESSION, activity=(OTHER, "Withdraw Approval")
    ),
    "challenge_rejected": Meaning(
        title="Sudo rejected", of=AUTHORIZE_SESSION, activity=ASSIGN, severity=Severity.LOW, failed=True
    ),
    "challenge_cancelled": Meaning(
        title="Sudo request given up", of=AUTHORIZE_SESSION, activity=(OTHER, "Cancel Request")
    ),
    "challenge_expired": Meaning(title="Sudo request expired", of=AUTHORIZE_SESSION, activity=ASSIGN, failed=True),
    "break_glass_policy_override": Meaning(
        title="Sudo approved over the policy", of=AUTHORIZE_SESSION, activity=ASSIGN, severity=Severity.HIGH
    ),
    "approval_refused": Meaning(
        title="Approval refused by a rule",
        of=AUTHORIZE_SESSION,
        activity=(OTHER, "Approve"),
        severity=Severity.MEDIUM,
        failed=True,
    ),
    "session_revoked": Meaning(title="Grace session revoked", of=USER_ACCESS, activity=REVOKE),
    "sessions_revoked_bulk": Meaning(
        title="Grace sessions revoked", of=USER_ACCESS, activity=REVOKE, severity=Severity.LOW, nobody=EVERYBODY
    ),
    "session_extended": Meaning(title="Grace session extended", of=USER_ACCESS, activity=ASSIGN),
    "grace_elevated": Meaning(
        title="Grace session given by an administrator", of=USER_ACCESS, activity=ASSIGN, severity=Severity.MEDIUM
    ),
    "user_logged_in": Meaning(title="Signed in", of=AUTHENTICATION, activity=LOGON),
    "user_signed_out": Meaning(title="Signed out", of=AUTHENTICATION, activity=LOGOFF),
    "authentication_failed": Meaning(
        title="Authentication failed", of=AUTHENTICATION, activity=LOGON, severity=Severity.MEDIUM, failed=True
    ),
    "ldap_bind_failed": Meaning(
        title="LDAP bind failed",
        of=AUTHENTICATION,
        activity=LOGON,
        severity=Severity.MEDIUM,
        failed=True,
        service="identree LDAP",
    ),
    "break_glass_used": Meaning(
        title="Break-glass password used",
        of=AUTHENTICATION,
        activity=LOGON,
        severity=Severity.HIGH,
        service="sudo",
    ),
    "breakglass_rotation_requested": Meaning(
        title="Break-glass rotation requested", of=ENTITY_MANAGEMENT, activity=UPDATE, entity=_PASSWORD
    ),
    "breakglass_escrowed": Meaning(
        title="Break-glass password escrowed", of=ENTITY_MANAGEMENT, activity=UPDATE, entity=_PASSWORD
    ),
    "revealed_breakglass": Meaning(
        title="Break-glass password revealed",
        of=ENTITY_MANAGEMENT,
        activity=READ,
        severity=Severity.HIGH,
        entity=_PASSWORD,
    ),
    "config_changed": Meaning(
        title="Settings changed",
        of=ENTITY_MANAGEMENT,
        activity=UPDATE,
        severity=Severity.MEDIUM,
        entity=Entity(type=_other("settings"), name="", only="settings"),
    ),
    "user_removed": Meaning(title="User removed", of=ACCOUNT_CHANGE, activity=(6, "Delete"), severity=Severity.MEDIUM),
    "claims_updated": Meaning(
        title="Claims updated",
        of=ENTITY_MANAGEMENT,
        activity=UPDATE,
        severity=Severity.MEDIUM,
        entity=Entity(type=_other("claims"), name="username"),
    ),
    "host_removed": Meaning(
        title="Host removed",
        of=ENTITY_MANAGEMENT,
        activity=DELETE,
        severity=Severity.MEDIUM,
        entity=Entity(type=DEVICE),
    ),
    "host_unconfigured": Meaning(
        title="Host unconfigured",
        of=ENTITY_MANAGEMENT,
        activity=UPDATE,
        severity=Severity.MEDIUM,
        entity=Entity(type=DEVICE),
    ),
    "host_registered": Meaning(
        title="Host registered",
        of=ENTITY_MANAGEMENT,
        activity=CREATE,
        severity=Severity.MEDIUM,
        entity=Entity(type=DEVICE),
    ),
    "host_registration_changed": Meaning(
        title="Host registration changed",
        of=ENTITY_MANAGEMENT,
        activity=UPDATE,
        severity=Severity.MEDIUM,
        entity=Entity(type=DEVICE),
    ),
    "host_secret_rotated": Meaning(
        title="Host secret rotated",
        of=ENTITY_MANAGEMENT,
        activity=UPDATE,
        entity=Entity(type=_other("host secret")),
    ),
    "enrolment_token_created": Meaning(
        title="Enrolment token created",
        of=ENTITY_MANAGEMENT,
        activity=CREATE,
        severity=Severity.MEDIUM,
        entity=Entity(type=_other("enrolment token")),
    ),
    "host_enrolled": Meaning(title="Host enrolled", of=ENTITY_MANAGEMENT, activity=ENROLL, entity=Entity(type=DEVICE)),
    "deployed": Meaning(title="Deployed to a host", of=ENTITY_MANAGEMENT, activity=ENROLL, entity=Entity(type=DEVICE)),
    "certificate_issued": Meaning(
        title="Client certificate issued",
        of=ENTITY_MANAGEMENT,
        activity=CREATE,
        entity=Entity(type=_other("client certificate"), uid="code"),
    ),
    "sudo_rule_modified": Meaning(
        title="Sudo rule modified",
        of=ENTITY_MANAGEMENT,
        activity=UPDATE,
        severity=Severity.MEDIUM,
        entity=Entity(type=_SUDO_RULE),
    ),
    "server_restarted": Meaning(
        title="Server restarted", of=APPLICATION_LIFECYCLE, activity=(5, "Restart"), severity=Severity.LOW
    ),
    "notification_channel_added": Meaning(
        title="Notification channel added", of=ENTITY_MANAGEMENT, activity=CREATE, entity=Entity(type=_CHANNEL)
    ),
    "notification_channel_deleted": Meaning(
        title="Notification channel deleted", of=ENTITY_MANAGEMENT, activity=DELETE, entity=Entity(type=_CHANNEL)
    ),
    "notification_route_added": Meaning(
        title="Notification route added", of=ENTITY_MANAGEMENT, activity=CREATE, entity=_ROUTE
    ),
    "notification_route_deleted": Meaning(
        title="Notification route deleted", of=ENTITY_MANAGEMENT, activity=DELETE, entity=_ROUTE
    ),
    "notification_channel_changed": Meaning(
        title="Notification channel changed", of=ENTITY_MANAGEMENT, activity=UPDATE, entity=Entity(type=_CHANNEL)
    ),
    "notification_route_changed": Meaning(
        title="Notification route changed", of=ENTITY_MANAGEMENT, activity=UPDATE, entity=_ROUTE
    ),
    "notification_preference_saved": Meaning(
        title="Notification preference saved", of=ENTITY_MANAGEMENT, activity=UPDATE, entity=_PREFERENCE
    ),
    "notification_preference_deleted": Meaning(
        title="Notification preference deleted", of=ENTITY_MANAGEMENT, activity=DELETE, entity=_PREFERENCE
    ),
    "notification_tested": Meaning(
        title="Test notification sent", of=ENTITY_MANAGEMENT, activity=(OTHER, "Test"), entity=Entity(type=_CHANNEL)
    ),
    "push_device_added": Meaning(
        title="Push device added", of=ENTITY_MANAGEMENT, activity=CREATE, severity=Severity.LOW, entity=_PUSH_DEVICE
    ),
    "push_device_removed": Meaning(
        title="Push device removed", of=ENTITY_MANAGEMENT, activity=DELETE, entity=_PUSH_DEVICE
    ),
    "audit_checkpoint": Meaning(title="Audit checkpoint", of=BASE, activity=(OTHER, "Checkpoint")),
}

_POLICY = Entity(type=POLICY, name="reason")
_POLICIES = Entity(type=POLICY, name="", only="approval policies")
# ``config_changed`` with one of these words as ``actor`` is about policies, of which ``reason`` names the one, or the
# version; the administrator is ``username`` then.
POLICY_MEANINGS: dict[str, Meaning] = {
    word: Meaning(
        title=title,
        of=ENTITY_MANAGEMENT,
        activity=activity,
        severity=Severity.MEDIUM,
        actor="username",
        entity=entity,
    )
    for word, title, activity, entity in (
        ("policy_added", "Approval policy added", CREATE, _POLICY),
        ("policy_updated", "Approval policy changed", UPDATE, _POLICY),
        ("policy_deleted", "Approval policy deleted", DELETE, _POLICY),
        ("policies_reordered", "Approval policies reordered", UPDATE, _POLICY),
        ("policies_imported", "Approval policies imported", UPDATE, _POLICIES),
        ("policies_reverted", "Approval policies reverted", UPDATE, _POLICIES),
    )
}


def meaning(values: Mapping[str, str]) -> Meaning:
    """Of a record; a kind that the table does not know is a Base Event with the kind's name."""
    kind = values["event"]
    if kind == "config_changed" and values.get("actor") in POLICY_MEANINGS:
        return POLICY_MEANINGS[values["actor"]]
    known = MEANINGS.get(kind)
    return known or Meaning(title=kind, of=BASE, activity=(OTHER, kind))


def milliseconds(timestamp: str) -> int:
    """Unix time of a record's ``timestamp``; 0 when it is none, which a record of ours never has."""
    try:
        return int(datetime.fromisoformat(timestamp).timestamp()) * 1000
    except ValueError:
        return 0


def number(record: Sealed) -> str:
    """One name for a record among all chains."""
    return f"{record.instance}:{record.seq}" if record.instance else str(record.seq)


def text(record: Sealed) -> bytes:
    """The record as one line of OCSF, without the newline."""
    values: dict[str, str] = json.loads(record.plain)
    means = meaning(values)
    return audit.plain(_event(record, values, means)).encode()


def place(line: bytes) -> tuple[str, int] | None:
    """The chain and number of a line that :func:`text` wrote; None when it is no such line."""
    try:
        event = json.loads(line)
        link = audit.read(event["raw_data"].encode())
        if event["metadata"]["sequence"] != link.seq:
            return None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return link.instance, link.seq


def _event(record: Sealed, values: Mapping[str, str], means: Meaning) -> dict[str, object]:
    of = means.of
    activity, activity_name = means.activity
    severity, severity_name = means.severity.value
    actor = values.get(means.actor, "")
    reason = values.get("reason", "")
    event: dict[str, object] = {
        "class_uid": of.uid,
        "class_name": of.caption,
        "category_uid": of.uid // 1000,
        "activity_id": activity,
        "activity_name": activity_name,
        "type_uid": of.uid * 100 + activity,
        "severity_id": severity,
        "severity": severity_name,
        "status_id": 2 if means.failed else 1,
        "status": "Failure" if means.failed else "Success",
        "time": milliseconds(values["timestamp"]),
        "metadata": _metadata(record, values, means, bool(actor)),
        "message": means.title,
    }
    unmapped = {"hash": record.hash}
    for key in ("prev_hash", "instance", "request_id", "code"):
        if key in values:
            unmapped[key] = values[key]
    if reason:
        event["comment" if of is ENTITY_MANAGEMENT else "status_detail"] = reason
    if actor:
        if of.has_actor is None:
            unmapped["actor"] = actor
        else:
            event["actor"] = {"user": {"name": actor}}
    address = values.get("remote_addr", "")
    if address:
        if of.has_source:
            event["src_endpoint"] = _source(address)
        else:
            unmapped["remote_addr"] = address
    build = _PARTS.get(of.uid)
    if build is not None:
        build(event, values, means)
    else:
        unmapped.update({key: values[key] for key in ("username", "hostname") if values.get(key)})
    event["unmapped"] = unmapped
    event["raw_data"] = record.canonical.decode()
    return event


def _metadata(record: Sealed, values: Mapping[str, str], means: Meaning, acted: bool) -> dict[str, object]:
    metadata: dict[str, object] = {
        "version": VERSION,
        "product": _product(values),
        "uid": number(record),
        "sequence": record.seq,
        "event_code": values["event"],
        "log_name": "audit",
        "log_provider": "identree",
        "original_time": values["timestamp"],
    }
    if means.of is AUTHORIZE_SESSION and "code" in values:
        # what belongs to one request has one code
        metadata["correlation_uid"] = values["code"]
    if acted and means.of.has_actor is False:
        metadata["profiles"] = ["host"]
    return metadata


def _product(values: Mapping[str, str]) -> dict[str, object]:
    return {"name": "identree", "vendor_name": "identree", "version": values["version"]}


def _source(address: str) -> dict[str, object]:
    try:
        ip_address(address)
    except ValueError:
        return {"name": address}
    return {"ip": address}


def _endpoint(name: str) -> dict[str, object]:
    """A host; ``(unknown)`` and the like are names, but no host names."""
    return {"hostname": name} if _HOSTNAME.fullmatch(name) else {"name": name}


def _user(event: dict[str, object], values: Mapping[str, str], means: Meaning) -> None:
    event["user"] = {"name": values["username"] or means.nobody}


def _authentication(event: dict[str, object], values: Mapping[str, str], means: Meaning) -> None:
    _user(event, values, means)
    event["service"] = {"name": means.service}
    if values.get("hostname"):
        event["dst_endpoint"] = _endpoint(values["hostname"])


def _authorize_session(event: dict[str, object], values: Mapping[str, str], means: Meaning) -> None:
    _user(event, values, means)
    event["privileges"] = [PRIVILEGE]
    if values.get("hostname"):
        event["dst_endpoint"] = _endpoint(values["hostname"])


def _user_access(event: dict[str, object], values: Mapping[str, str], means: Meaning) -> None:
    _user(event, values, means)
    event["privileges"] = [PRIVILEGE]
    if values.get("hostname"):
        event["resource"] = {"name": values["hostname"], "type": "host"}


def _entity_management(event: dict[str, object], values: Mapping[str, str], means: Meaning) -> None:
    assert means.entity is not None
    name = entity_name(values, means.entity)
    type = means.entity.type
    entity: dict[str, object] = {"name": name, "type": type.name, "type_id": type.id}
    if values.get(means.entity.uid):
        entity["uid"] = values[means.entity.uid]
    if type is DEVICE:
        entity["device"] = {**_endpoint(name), "type_id": 0}
    elif type is POLICY:
        entity["policy"] = {"name": name}
    event["entity"] = entity


def entity_name(values: Mapping[str, str], entity: Entity) -> str:
    """What the thing is called."""
    return values.get(entity.name, "") or entity.only or NOBODY


def _application(event: dict[str, object], values: Mapping[str, str], means: Meaning) -> None:
    event["app"] = _product(values)


_PARTS: dict[int, Callable[[dict[str, object], Mapping[str, str], Meaning], None]] = {
    ACCOUNT_CHANGE.uid: _user,
    AUTHENTICATION.uid: _authentication,
    AUTHORIZE_SESSION.uid: _authorize_session,
    ENTITY_MANAGEMENT.uid: _entity_management,
    USER_ACCESS.uid: _user_access,
    APPLICATION_LIFECYCLE.uid: _application,
}
