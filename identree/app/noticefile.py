"""
The notification files on disk: read with suspicion, followed, written whole (spec/notifications-and-policy section 1).

A file that cannot be used at the start leaves identree without channels, and says so; later it leaves the last good
content in force. In both cases nothing is written over it: what an operator has in it would be gone.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

from twisted.logger import Logger

from identree.app.atomicfile import remove_leftovers, replace_file
from identree.app.statefiles import BadStateFile, Signature, read_state_file
from identree.core.noticefiles import FILE_BYTES

T = TypeVar("T")
InThread = Callable[[Callable[[], Any]], Awaitable[Any]]


class NoticeFile(Generic[T]):
    """
    :param path: empty: there is no file, and none is written.
    :param parse: content to meaning; None is an absent file. ``ValueError`` means bad content.
    :param prefix: of temporary files.
    """

    _log = Logger(namespace="identree")

    def __init__(
        self, path: str, parse: Callable[[bytes | None], T], prefix: str, in_thread: InThread, now_unix: float
    ) -> None:
        self.path = path
        self._parse = parse
        self._prefix = prefix
        self._in_thread = in_thread
        self._signature: Signature = None
        self.problem = ""
        self._value = parse(None)
        if path:
            remove_leftovers(path, prefix, now_unix)
            try:
                self._value, self._signature = self._load()
            except BadStateFile as problem:
                self.problem = str(problem)
                self._log.warn("notify: {problem}. Nothing is sent by it until it is put right.", problem=problem)

    def __call__(self) -> T:
        return self._value

    def _load(self) -> tuple[T, Signature]:
        raw, signature = read_state_file(self.path, FILE_BYTES)
        try:
            return self._parse(raw), signature
        except ValueError as problem:
            raise BadStateFile(f"{self.path}: {problem}") from problem

    async def refresh(self, *, always: bool = False) -> bool:
        """Read it again if it changed; whether its meaning may be a new one."""
        if not self.path:
            return False
        try:
            loaded = await self._in_thread(partial(self._load_if_changed, always))
        except BadStateFile as problem:
            if str(problem) != self.problem:
                self.problem = str(problem)
                self._log.warn("notify: {problem}. What was read before stays in force.", problem=problem)
            return False
        if loaded is None:
            return False
        self._value, self._signature = loaded
        self.problem = ""
        return True

    def _load_if_changed(self, always: bool) -> tuple[T, Signature] | None:
        try:
            about = os.lstat(self.path)
            signature: Signature = (about.st_ino, about.st_mtime_ns, about.st_size)
        except FileNotFoundError:
            signature = None
        except OSError as problem:
            raise BadStateFile(f"{self.path}: {problem.strerror}") from problem
        if signature == self._signature and not self.problem and not always:
            return None
        return self._load()

    async def write(self, make: Callable[[T], bytes], keep: Callable[[T], bool] = lambda value: False) -> None:
        """
        Write it anew from what it says now, and read that.

        :param keep: whether the old file is to be kept beside it, once, as ``<file>.with-secrets``.
        :raise BadStateFile: it cannot be used, and is left as it is; or there is no file.
        :raise OSError: it cannot be written.
        """
        if not self.path:
            raise BadStateFile("no file is configured")
        await self.refresh()
        if self.problem:
            raise BadStateFile(self.problem)
        value = self._value
        content = make(value)
        if len(content) > FILE_BYTES:
            raise BadStateFile(f"{self.path} would be larger than {FILE_BYTES} bytes")
        await self._in_thread(partial(self._replace, content, keep(value)))
        await self.refresh(always=True)

    def _replace(self, content: bytes, keep: bool) -> None:
        if keep:
            self._keep()
        os.makedirs(os.path.dirname(self.path) or ".", mode=0o755, exist_ok=True)
        replace_file(self.path, content, self._prefix)

    def _keep(self) -> None:
        raw, _ = read_state_file(self.path, FILE_BYTES)
        if raw is None:
            return
        beside = f"{self.path}.with-secrets"
        with suppress(FileExistsError):
            handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
