"""
Where the break-glass passwords of hosts are kept (spec/notifications-and-policy section 8): the port that the escrow
back ends fulfil.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

# Of what a command or a back end says about a failure, in the log (spec/audit-and-metrics section 14).
SHOWN_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """
    What finds the password again; either may be empty, as some back ends need only the host's name.

    :ivar item_id: what the back end calls it.
    :ivar vault_id: the container that it lies in.
    """

    item_id: str = ""
    vault_id: str = ""


class EscrowFailed(Exception):
    """
    The back end or the command did not do it, or gave no usable answer: what it has is not known. A later attempt may
    succeed.

    :ivar reason: for the log and for administrators: what is wrong and what to do about it; without secrets.
    :ivar output: of the command, in one line of at most :data:`SHOWN_BYTES`, the password struck out; empty for other
        back ends.
    """

    def __init__(self, reason: str, output: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.output = output


class EscrowBackend(Protocol):
    """
    Keeps passwords. Every operation ends within half a minute, and may be cancelled; what was sent may then have been
    stored or not.

    :ivar name: as in ``IDENTREE_ESCROW_BACKEND``, or ``command``.
    :ivar revealable: whether :meth:`retrieve` can give passwords back; a command cannot.
    """

    @property
    def name(self) -> str: ...

    @property
    def revealable(self) -> bool: ...

    async def store(self, hostname: str, password: str) -> Stored:
        """
        Keep it instead of the host's last one. When this returns, it is stored; storing the same again is harmless.

        :raise EscrowFailed: it may or may not be stored.
        :raise StorageUnavailable: the same of identree's own database.
        """

    async def retrieve(self, hostname: str, item_id: str, vault_id: str) -> str:
        """
        :param hostname: in the spelling of the record.
        :param item_id, vault_id: of the record, as :meth:`store` gave them.
        :returns: the password, never empty.
        :raise EscrowFailed: it could not be read.
        :raise StorageUnavailable: the same of identree's own database.
        """

    async def check(self) -> None:
        """
        Whether it answers and accepts the credentials; nothing is changed. For health checks.

        :raise EscrowFailed: it does not.
        """

    async def keep(self) -> None:
        """
        Keep a lent credential alive; to be called about twice a minute, and cheap when nothing is to be done. What goes
        wrong is logged once, and tried again.
        """


class Ciphertexts(Protocol):
    """Where the local back end keeps what it has sealed; :class:`identree.storage.interface.Store` is one."""

    async def store_ciphertext(self, hostname: str, ciphertext: str) -> None:
        """Instead of the one that the host had. :raise StorageUnavailable: it was not stored."""

    async def ciphertext(self, hostname: str) -> str | None:
        """:raise StorageUnavailable: it could not be read."""
