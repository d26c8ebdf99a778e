"""
The one vocabulary of refusals.

The core and the application raise these; the web adapter maps them once to a status and a sentence. Clients must be
able to tell *unavailable* (try again) from *refused* (do not), so the two have no common parent but Exception.
"""


class Refused(Exception):
    """
    The domain says no. ``key`` is the message key that the pages translate and the contract names.
    """

    key = "refused"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or self.key)
        self.detail = detail


class Invalid(Refused):
    """What was sent is not of the required form; ``detail`` says which field and what would be right."""

    key = "invalid_form"

    def __init__(self, detail: str = "", *, key: str = "") -> None:
        super().__init__(detail or key)
        self.detail = detail
        if key:
            self.key = key


class Unauthorized(Refused):
    """The credential is missing or wrong. Counts against the caller's address."""

    key = "unauthorized"


class NotListed(Unauthorized):
    """The credential is right, but the host does not list the user. Does not count against the address."""

    key = "unauthorized"


class HostnameMismatch(Refused):
    """The challenge belongs to another host than the one asking."""

    key = "hostname_mismatch"


class CredentialMismatch(Refused):
    """A per-host secret was used for another host's challenge."""

    key = "credential_mismatch"


class Throttled(Refused):
    """Too many failures or requests from one address or person; ``retry_after`` in whole seconds."""

    key = "too_many_requests"

    def __init__(self, retry_after: int = 60, detail: str = "") -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class TooManyPending(Refused):
    """The owner or the whole server has as many pending challenges as it may have."""

    key = "rate_limit_exceeded"


class JustificationRequired(Refused):
    """A reason is required; ``choices`` are the offered ones."""

    key = "justification_required"

    def __init__(self, choices: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.choices = choices


class NotFound(Refused):
    """Unknown, decided, expired or not visible to the caller: deliberately not told apart."""

    key = "challenge_expired_or_resolved"


class Gone(NotFound):
    """A host asked for a challenge that is unknown or past its time."""

    key = "expired"


class AlreadyResolved(NotFound):
    """Another decision came first, or the challenge ran out."""


class Superseded(Refused):
    """The owner's sessions were revoked after the challenge was created."""

    key = "superseded_by_revocation"


class DuplicateApproval(Refused):
    """One person counts once."""

    key = "already_approved_by_you"


class Forbidden(Refused):
    key = "not_authorized_message"


class AdminRequired(Forbidden):
    key = "admin_approval_required"


class OutsideWindow(Forbidden):
    key = "outside_approval_window"


class FreshLoginRequired(Forbidden):
    key = "oidc_reauth_required"


class OverrideNotAllowed(Forbidden):
    key = "break_glass_override_not_allowed"


class SelfApprovalForbidden(Forbidden):
    """The policy wants somebody else than the requester."""

    key = "self_approval_forbidden"


class NotAnApprover(Forbidden):
    """The policy names groups of approvers, and this person is in none of them; ``detail`` names the groups."""

    key = "not_an_approver"


class AccountDisabled(Forbidden):
    """The requester's account is disabled in the directory."""

    key = "account_disabled"


class PoliciesFromFile(Refused):
    """The policy file is authoritative; nothing can be changed here."""

    key = "policies_from_file"


class PoliciesChanged(Refused):
    """Somebody else has saved other policies since these were read."""

    key = "policies_changed"


class OneTapUsed(Refused):
    key = "one_tap_used"


class OneTapInvalid(Refused):
    """A one-tap link of the wrong form, or that was not made here."""

    key = "one_tap_invalid"


class OneTapExpired(Refused):
    key = "one_tap_expired"


class SessionExpired(Refused):
    """There is no valid browser session, or it is another person's."""

    key = "session_expired_sign_in"


class FormExpired(Refused):
    key = "form_expired_message"


class BadCsrfToken(Refused):
    key = "invalid_csrf"


class LoginFailed(Refused):
    """
    A sign-in could not be completed. ``key`` names the page's message; ``status`` is the HTTP status of
    spec/web-ui section 3; ``detail`` goes to the log, never to the browser.
    """

    def __init__(self, key: str, status: int, detail: str = "") -> None:
        super().__init__(detail or key)
        self.key = key
        self.status = status


class ProviderUnavailable(Exception):
    """The identity provider cannot be reached or answers nonsense before a person is involved. Try again."""


class StorageUnavailable(Exception):
    """
    The database is locked, read-only, full or gone. Nothing of the operation was done; it may be repeated.

    :ivar reason: one of ``locked``, ``read_only``, ``full``, ``unreachable``, ``overloaded``, ``error``.
    """

    def __init__(self, reason: str = "error", detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class SchemaTooNew(Exception):
    """The database was migrated by a newer program. The message says what to do."""
