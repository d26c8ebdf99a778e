"""
State files that an operator or another program writes: read with suspicion, followed while we run.

A file that is there but cannot be trusted or understood stops the start and, later, leaves the last good content in
force; it never counts as absent (spec/storage section 12, which also has the limits). Nor does a file that was there
and is gone: these files restrict, so that their loss would open what they closed. Only a restart takes it for absent.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from twisted.logger import Logger

T = TypeVar("T")

Signature = tuple[int, int, int] | None


class BadStateFile(Exception):
    """The file is there and must not be used; the message names it, the problem and the remedy."""


def read_state_file(path: str, limit_bytes: int) -> tuple[bytes | None, Signature]:
    """
    The content, or None when there is no such file, and what tells a changed file from this one.

    :raise BadStateFile: a symlink, no regular file, writable by others, too large, or unreadable.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None, None
    except OSError as problem:
        raise BadStateFile(f"{path}: {problem.strerror}; it must be a regular file that identree may read") from problem
    with os.fdopen(_regular(handle, path), "rb") as file:
        about = os.fstat(file.fileno())
        if about.st_mode & 0o022:
            raise BadStateFile(f"{path} can be written by others; run: chmod go-w {path}")
        if about.st_size > limit_bytes:
            raise BadStateFile(f"{path} is larger than {limit_bytes} bytes")
        try:
            return file.read(limit_bytes + 1), (about.st_ino, about.st_mtime_ns, about.st_size)
        except OSError as problem:
            raise BadStateFile(f"{path} cannot be read: {problem.strerror}") from problem


def _regular(handle: int, path: str) -> int:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BadStateFile(f"{path} is not a regular file")
    return handle


class StateFile(Generic[T]):
    """
    The present meaning of a file.

    :param parse: content to meaning; None is an absent file. ``ValueError`` means bad content.
    :param in_thread: runs a blocking function away from the reactor.
    :param succeed: the meaning in force and the newly read one to the one that counts from now on.
    """

    _log = Logger()

    def __init__(
        self,
        path: str,
        limit_bytes: int,
        parse: Callable[[bytes | None], T],
        in_thread: Callable[[Callable[[], object]], Awaitable[object]],
        succeed: Callable[[T, T], T] = lambda before, after: after,
    ) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._parse = parse
        self._in_thread = in_thread
        self._succeed = succeed
        self._trouble = ""
        self._value, self._signature = self._load()

    def __call__(self) -> T:
        return self._value

    async def refresh(self) -> bool:
        """Read it again if it changed; whether its meaning is a new one. Trouble is logged once per cause."""
        try:
            loaded = await self._in_thread(self._load_if_changed)
        except BadStateFile as problem:
            if str(problem) != self._trouble:
                self._trouble = str(problem)
                self._log.error("state file: {problem}. The last good content stays in force.", problem=problem)
            return False
        self._trouble = ""
        if loaded is None:
            return False
        read: tuple[T, Signature] = loaded  # type: ignore[assignment]
        self._value, self._signature = self._succeed(self._value, read[0]), read[1]
        self._log.info("state file: {path} read again", path=self._path)
        return True

    def _load(self) -> tuple[T, Signature]:
        raw, signature = read_state_file(self._path, self._limit_bytes)
        try:
            return self._parse(raw), signature
        except ValueError as problem:
            raise BadStateFile(f"{self._path}: {problem}") from problem

    def _load_if_changed(self) -> tuple[T, Signature] | None:
        try:
            about = os.lstat(self._path)
        except FileNotFoundError:
            if self._signature is None:
                return None
            raise self._gone() from None
        except OSError as problem:
            raise BadStateFile(f"{self._path}: {problem.strerror}") from problem
        if self._signature == (about.st_ino, about.st_mtime_ns, about.st_size):
            return None
        value, signature = self._load()
        if signature is None:
            raise self._gone()
        return value, signature

    def _gone(self) -> BadStateFile:
        return BadStateFile(f"{self._path} is gone; put it back, or restart identree to go on without it")
