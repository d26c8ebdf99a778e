"""A command of the administrator's own that stores passwords; what it stored cannot be read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.python.failure import Failure

from identree.app.escrow import EscrowFailed, Stored
from identree.clients import processes
from identree.clients.escrow.base import needed, shown
from identree.core.escrow import (
    COMMAND,
    OPERATION_SECONDS,
    checked_hostname,
    checked_password,
    command_environment,
    item_id_in,
)


class CommandBackend:
    """
    Implements :class:`identree.app.escrow.EscrowBackend`.

    :param reactor: an ``IReactorProcess`` and ``IReactorTime``.
    :param environment: the server's; of it the command gets ``PATH``, ``HOME`` and what begins with a prefix.
    """

    name = COMMAND
    revealable = False

    def __init__(
        self, *, reactor: Any, command: str, prefixes: tuple[str, ...], environment: Mapping[str, str]
    ) -> None:
        """:raise ValueError: there is no command, or it cannot be one."""
        needed(command.strip(), "IDENTREE_ESCROW_COMMAND", self.name)
        if "\0" in command:
            raise ValueError("IDENTREE_ESCROW_COMMAND: a NUL character cannot be part of a command")
        self._reactor, self._command = reactor, command
        self._prefixes, self._environment = prefixes, environment

    async def store(self, hostname: str, password: str) -> Stored:
        try:
            name, raw = checked_hostname(hostname), checked_password(password).encode()
        except ValueError as problem:
            raise EscrowFailed(f"escrow command: {problem}") from None
        environment = command_environment(self._environment, name, self._prefixes)
        run = processes.Run(self._reactor, raw, OPERATION_SECONDS)
        try:
            processes.start(run, self._reactor, self._command, environment)
        except OSError as problem:
            raise EscrowFailed(f"escrow command: it cannot be started: {problem.strerror}") from None
        reason, late = await run.ended
        output = shown(run.errors + b"\n" + run.output, (password,))
        if late:
            raise EscrowFailed(f"escrow command: not done within {OPERATION_SECONDS:g} s; it was killed", output)
        if not reason.check(ProcessDone):
            raise EscrowFailed(f"escrow command: {_described(reason)}", output)
        return Stored(item_id=item_id_in(run.output.decode("utf-8", "replace")))

    async def retrieve(self, hostname: str, item_id: str, vault_id: str) -> str:
        raise EscrowFailed("what an escrow command has stored cannot be read back; look where it puts the passwords")

    async def check(self) -> None:
        """Only running it would tell, and that stores something."""

    async def keep(self) -> None:
        """Nothing is lent."""


def _described(reason: Failure) -> str:
    value = reason.value
    if isinstance(value, ProcessTerminated) and value.signal is not None:
        return f"it was ended by signal {value.signal}"
    return f"it ended with status {getattr(value, 'exitCode', None)}; only 0 means stored"
