"""
What happened: one frozen dataclass per kind of event.

An event is appended to the outbox in the transaction that makes it true (design section 3.2). The field names are those
of the audit record (spec/audit-and-metrics section 1), the kinds those of its catalogue (section 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """
    :ivar at: aware UTC, the time of emission; the record carries whole seconds.
    :ivar username: the subject: whose challenge or session it is.
    :ivar remote_addr: the client's address behind trusted proxies, without port; empty for the server's own acts.
    """

    kind: ClassVar[str] = ""

    at: datetime
    username: str
    hostname: str = ""
    code: str = ""
    actor: str = ""
    reason: str = ""
    remote_addr: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengeCreated(Event):
    kind: ClassVar[str] = "challenge_created"


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoApproved(Event):
    kind: ClassVar[str] = "auto_approved"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengeApproved(Event):
    kind: ClassVar[str] = "challenge_approved"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialApproval(Event):
    """One of several required approvals; deployed versions did not record it."""

    kind: ClassVar[str] = "challenge_partially_approved"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengeRejected(Event):
    kind: ClassVar[str] = "challenge_rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengeCancelled(Event):
    """The person at the terminal gave up; deployed agents never say so."""

    kind: ClassVar[str] = "challenge_cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengeExpired(Event):
    kind: ClassVar[str] = "challenge_expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRevoked(Event):
    kind: ClassVar[str] = "session_revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionsRevokedBulk(Event):
    kind: ClassVar[str] = "sessions_revoked_bulk"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionExtended(Event):
    kind: ClassVar[str] = "session_extended"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserLoggedIn(Event):
    kind: ClassVar[str] = "user_logged_in"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserSignedOut(Event):
    """Deployed versions did not record it."""

    kind: ClassVar[str] = "user_signed_out"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakGlassOverride(Event):
    kind: ClassVar[str] = "break_glass_policy_override"


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateIssued(Event):
    """``username`` and ``hostname`` are the host's name, ``code`` the serial: lower-case hex without leading zeros."""

    kind: ClassVar[str] = "certificate_issued"


@dataclass(frozen=True, slots=True, kw_only=True)
class SudoRuleModified(Event):
    """``username`` and ``actor`` are the admin's name, ``hostname`` the rule's group."""

    kind: ClassVar[str] = "sudo_rule_modified"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraceElevated(Event):
    """An admin gave a person a grace session: ``username`` is the person, ``actor`` the admin."""

    kind: ClassVar[str] = "grace_elevated"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakglassRotationRequested(Event):
    """``username`` and ``actor`` are the admin's name."""

    kind: ClassVar[str] = "breakglass_rotation_requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakglassEscrowed(Event):
    """``username`` and ``hostname`` are the host's name."""

    kind: ClassVar[str] = "breakglass_escrowed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RevealedBreakglass(Event):
    """``username`` and ``actor`` are the admin's name."""

    kind: ClassVar[str] = "revealed_breakglass"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakGlassUsed(Event):
    """A host reports that a person used its break-glass password; ``at`` is the time of receipt."""

    kind: ClassVar[str] = "break_glass_used"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigChanged(Event):
    """
    Settings saved: ``username`` and ``actor`` are the admin's name. A policy added or deleted: ``username`` is the
    admin's name, ``actor`` the literal ``policy_added`` or ``policy_deleted``, ``reason`` the policy's name.
    """

    kind: ClassVar[str] = "config_changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRemoved(Event):
    """``username`` is the removed person, ``actor`` the admin."""

    kind: ClassVar[str] = "user_removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimsUpdated(Event):
    """``username`` is the group's or person's name, ``actor`` the admin."""

    kind: ClassVar[str] = "claims_updated"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRemoved(Event):
    """``username`` and ``actor`` are the admin's name."""

    kind: ClassVar[str] = "host_removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed(Event):
    """``username`` and ``actor`` are the admin's name, ``hostname`` as the host reported it."""

    kind: ClassVar[str] = "deployed"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostUnconfigured(Event):
    """
    identree was taken off a host over SSH: ``username`` and ``actor`` are the admin's name. Deployed versions recorded
    it as ``deployed``.
    """

    kind: ClassVar[str] = "host_unconfigured"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRestarted(Event):
    """``username`` and ``actor`` are the admin's name."""

    kind: ClassVar[str] = "server_restarted"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationChannelAdded(Event):
    """``username`` is empty, ``hostname`` the channel's name, ``actor`` the admin."""

    kind: ClassVar[str] = "notification_channel_added"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationChannelDeleted(Event):
    """``username`` is empty, ``hostname`` the channel's name, ``actor`` the admin."""

    kind: ClassVar[str] = "notification_channel_deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationRouteAdded(Event):
    """``username`` is empty, ``actor`` the admin."""

    kind: ClassVar[str] = "notification_route_added"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationRouteDeleted(Event):
    """``username`` is empty, ``actor`` the admin."""

    kind: ClassVar[str] = "notification_route_deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationFailed(Event):
    """
    A credential was wrong: a host's at the API, or what came back from a sign-in. ``username`` and ``hostname`` are
    whom and what it was used for, as far as that was said, ``reason`` what was wrong and where. Deployed versions did
    not record it. Strangers cause it, so it is bounded (identree.app.trail).
    """

    kind: ClassVar[str] = "authentication_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRefused(Event):
    """
    A rule did not let somebody approve: ``username``, ``hostname`` and ``code`` are the request's, ``actor`` is who
    wanted to approve it, ``reason`` the rule. Deployed versions did not record it. Bounded (identree.app.trail).
    """

    kind: ClassVar[str] = "approval_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class LdapBindFailed(Event):
    """
    ``username`` is the value of the bind DN's first part, empty where there is none; ``hostname`` is set where that is
    a host. Deployed versions did not record it. Strangers cause it, so it is bounded (identree.app.trail).
    """

    kind: ClassVar[str] = "ldap_bind_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRegistered(Event):
    """``username`` and ``actor`` are who did it. Deployed versions did not record it, nor any that follows."""

    kind: ClassVar[str] = "host_registered"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRegistrationChanged(Event):
    """Users or group of a registered host: ``username`` and ``actor`` are who did it, ``reason`` what it has now."""

    kind: ClassVar[str] = "host_registration_changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSecretRotated(Event):
    """A host was given another secret: ``username`` and ``actor`` are who did it."""

    kind: ClassVar[str] = "host_secret_rotated"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentTokenCreated(Event):
    """``username`` and ``actor`` are who did it, ``reason`` until when it can be used."""

    kind: ClassVar[str] = "enrolment_token_created"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEnrolled(Event):
    """A host has used its token: ``username`` and ``hostname`` are its name, ``actor`` who had made the token."""

    kind: ClassVar[str] = "host_enrolled"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditCheckpoint(Event):
    """
    Where a chain stands, signed: ``username`` is empty, ``code`` names the key, ``reason`` is the statement
    (identree.core.checkpoints). Deployed versions have none.
    """

    kind: ClassVar[str] = "audit_checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalWithdrawn(Event):
    """Somebody took one of several required approvals back: ``actor`` is who. Deployed versions did not have it."""

    kind: ClassVar[str] = "challenge_approval_withdrawn"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationChannelChanged(Event):
    """``username`` is empty, ``hostname`` the channel's name, ``actor`` the admin. Not in deployed versions."""

    kind: ClassVar[str] = "notification_channel_changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationRouteChanged(Event):
    """``username`` is empty, ``actor`` the admin. Deployed versions did not have it."""

    kind: ClassVar[str] = "notification_route_changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationPreferenceSaved(Event):
    """What a person wants to be told: ``username`` and ``actor`` are the person. Not in deployed versions."""

    kind: ClassVar[str] = "notification_preference_saved"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationPreferenceDeleted(Event):
    """``username`` and ``actor`` are the person. Deployed versions did not record it."""

    kind: ClassVar[str] = "notification_preference_deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationTested(Event):
    """
    An admin had a test message sent: ``username`` and ``actor`` are the admin, ``hostname`` the channel's name,
    ``reason`` what came of it. Deployed versions did not record it.
    """

    kind: ClassVar[str] = "notification_tested"


@dataclass(frozen=True, slots=True, kw_only=True)
class PushDeviceAdded(Event):
    """A browser gets notifications: ``username`` and ``actor`` are its person, ``reason`` the device as shown."""

    kind: ClassVar[str] = "push_device_added"


@dataclass(frozen=True, slots=True, kw_only=True)
class PushDeviceRemoved(Event):
    """``username`` is its person, ``actor`` who did it; empty: its push service does not know it any more."""

    kind: ClassVar[str] = "push_device_removed"


KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (
        ChallengeCreated,
        AutoApproved,
        ChallengeApproved,
        PartialApproval,
        ChallengeRejected,
        ChallengeCancelled,
        ChallengeExpired,
        SessionRevoked,
        SessionsRevokedBulk,
        SessionExtended,
        UserLoggedIn,
        UserSignedOut,
        BreakGlassOverride,
        CertificateIssued,
        SudoRuleModified,
        GraceElevated,
        BreakglassRotationRequested,
        BreakglassEscrowed,
        RevealedBreakglass,
        BreakGlassUsed,
        ConfigChanged,
        UserRemoved,
        ClaimsUpdated,
        HostRemoved,
        Deployed,
        HostUnconfigured,
        ServerRestarted,
        NotificationChannelAdded,
        NotificationChannelDeleted,
        NotificationRouteAdded,
        NotificationRouteDeleted,
        AuthenticationFailed,
        ApprovalRefused,
        LdapBindFailed,
        HostRegistered,
        HostRegistrationChanged,
        HostSecretRotated,
        EnrolmentTokenCreated,
        HostEnrolled,
        AuditCheckpoint,
        ApprovalWithdrawn,
        NotificationChannelChanged,
        NotificationRouteChanged,
        NotificationPreferenceSaved,
        NotificationPreferenceDeleted,
        NotificationTested,
        PushDeviceAdded,
        PushDeviceRemoved,
    )
}
