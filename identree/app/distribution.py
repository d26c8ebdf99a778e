"""
What hosts fetch before they have an agent: the install script and its signature, the agent, and what the script needs
to know (spec/http-api section 10, spec/notifications-and-policy section 9, spec/host-agent section 17).
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from threading import Lock
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from identree.app.atomicfile import remove_leftovers, sync_directory
from identree.app.journal import Journal
from identree.app.people import Caller
from identree.app.ports import Now
from identree.app.signing import CannotSign, InstallKeys, signature_bytes, signature_text
from identree.core.errors import Invalid, Refused
from identree.core.events import ConfigChanged, Event

# The agent is some hundred kilobytes, and is held in memory.
AGENT_BYTES = 32 << 20
# The longest install script of one's own.
SCRIPT_BYTES = 1 << 20
# The text of a signature, with blanks around it.
SIGNATURE_FILE_BYTES = 1024
CUSTOM_SCRIPT, CUSTOM_SIGNATURE = "custom-install.sh", "custom-install.sh.sig"
CUSTOM_MODE = 0o600
# Of files on their way to these names.
CUSTOM_TEMPORARY = ".custom-install-"

# One file under three names: scripts that are published already fetch the agent by the name of the machine's kind.
AGENT_NAMES = ("identree.pyz", "identree-linux-amd64", "identree-linux-arm64")

_log = Logger()

T = TypeVar("T")
# Runs a function in a thread.
InThread = Callable[[Callable[[], T]], Awaitable[T]]
# What tells a changed file from this one.
_Stamp = tuple[int, int, int, int, int]


class SigningOff(Refused):
    """There is no key (or only the public one, and nobody else has signed this)."""

    key = "signing_not_configured"


class NoCustomScript(Refused):
    key = "no_custom_script"


class NotWritten(Exception):
    """The script could not be stored; nothing has changed. The log says why."""


class Records(Protocol):
    """Where the events go (``identree.storage.interface.Store``)."""

    async def record(self, events: Sequence[Event]) -> None:
        """:raise StorageUnavailable: they are not recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """
    The agent as it is now.

    :ivar digest: SHA-256 in hex. :ivar modified: unix seconds, whole.
    """

    content: bytes
    digest: str
    modified: int

    def checksum(self, name: str) -> bytes:
        """The line that ``sha256sum -c`` reads."""
        return f"{self.digest}  {name}\n".encode("ascii")


class AgentFile:
    """
    The built agent, read when it is first asked for and again when it has changed.

    :param path: of ``identree.pyz``; empty: there is none here.
    """

    _log = Logger()

    def __init__(self, path: str, in_thread: InThread[Any]) -> None:
        self._path, self._in_thread = path, in_thread
        self._held: tuple[_Stamp, Agent] | None = None
        self._trouble = ""

    async def get(self) -> Agent | None:
        """None when it is not on this server."""
        if not self._path:
            return None
        try:
            agent: Agent = await self._in_thread(self._load)
        except OSError as problem:
            said = problem.strerror or str(problem)
            if said != self._trouble:
                self._trouble = said
                self._log.warn(
                    "hosts cannot fetch the agent: {path}: {problem}. Build it with make agent, or put it there",
                    path=self._path,
                    problem=said,
                )
            return None
        self._trouble = ""
        return agent

    def _load(self) -> Agent:
        """:raise OSError:"""
        held = self._held
        if held is not None and held[0] == _stamp(os.stat(self._path)):
            return held[1]
        content, status = _read(self._path, AGENT_BYTES)
        agent = Agent(content=content, digest=sha256(content).hexdigest(), modified=int(status.st_mtime))
        self._held = (_stamp(status), agent)
        return agent


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _read(path: str, limit_bytes: int) -> tuple[bytes, os.stat_result]:
    """:raise OSError: it cannot be read, is no regular file, is too large, or changed meanwhile."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise OSError(0, "not a regular file", path)
        content = file.read(limit_bytes + 1)
        after = os.fstat(file.fileno())
    if len(content) > limit_bytes:
        raise OSError(0, f"larger than {limit_bytes} bytes", path)
    if _stamp(before) != _stamp(after):
        raise OSError(0, "changed while it was read; replace it by renaming", path)
    return content, after


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """
    An install script.

    :ivar signature: text form; empty when nobody here has signed it.
    """

    content: bytes
    signature: str
    custom: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """
    The custom script as it is stored.

    :ivar signature: as it stands in the file, without blanks around it. :ivar valid: whether the key has signed it.
    """

    content: bytes
    signature: str
    valid: bool


class Scripts:
    """
    The install script that is served: one's own if there is one and the key has signed it, else the built-in one.

    :param builtin: the built-in script.
    :param keys: None: nothing is signed, and no custom script is believed.
    :param directory: where the custom script is stored; that of the signing key, which replicas share.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        builtin: bytes,
        keys: InstallKeys | None,
        directory: str,
        store: Records,
        now: Now,
        journal: Journal,
        in_thread: InThread[Any],
    ) -> None:
        self._keys = keys
        self._script_path = os.path.join(directory, CUSTOM_SCRIPT)
        self._signature_path = os.path.join(directory, CUSTOM_SIGNATURE)
        self._store, self._now, self._journal, self._in_thread = store, now, journal, in_thread
        signature = keys.sign(builtin) if keys is not None and keys.can_sign else ""
        self._builtin = Script(content=builtin, signature=signature, custom=False)
        # of these files the content was read and judged; guarded by the lock, as the pair of files is in this process
        self._held: tuple[tuple[_Stamp, _Stamp], Stored] | None = None
        self._lock = Lock()
        self._trouble = ""

    @property
    def public_pem(self) -> bytes:
        """:raise SigningOff:"""
        if self._keys is None:
            raise SigningOff
        return self._keys.public_pem

    def require_key(self) -> None:
        """:raise SigningOff: no script of one's own can be believed."""
        if self._keys is None:
            raise SigningOff

    def sign(self, content: bytes) -> str:
        """
        The signature of something short.

        :raise SigningOff: there is no private key here.
        """
        try:
            if self._keys is not None:
                return self._keys.sign(content)
        except CannotSign:
            pass
        raise SigningOff

    async def current(self) -> Script:
        """What is served now."""
        stored, trouble = await self._look()
        if stored is not None and not stored.valid:
            trouble = "its signature is not by the key in IDENTREE_INSTALL_VERIFY_KEY; sign it and upload it again"
        if trouble != self._trouble:
            self._trouble = trouble
            if trouble:
                self._log.warn(
                    "{path} is not served, the built-in install script is: {problem}",
                    path=self._script_path,
                    problem=trouble,
                )
        if stored is None or trouble:
            return self._builtin
        return Script(content=stored.content, signature=_canonical(stored.signature), custom=True)

    async def signature(self) -> str:
        """:raise SigningOff: nobody has signed what is served."""
        found = (await self.current()).signature
        if not found:
            raise SigningOff
        return found

    async def stored(self) -> Stored:
        """:raise NoCustomScript: there is none, or it cannot be read."""
        stored, _ = await self._look()
        if stored is None:
            raise NoCustomScript
        return stored

    async def replace(self, content: bytes, signature: str, caller: Caller, address: str) -> None:
        """
        Serve a script of one's own from now on.

        :param signature: text form, by the key of this server.
        :raise SigningOff: there is no key.
        :raise Invalid: the detail is the contract's text.
        :raise NotWritten: :raise StorageUnavailable: nothing has changed.
        """
        keys = self._keys
        if keys is None:
            raise SigningOff
        if len(content) > SCRIPT_BYTES:
            raise Invalid("script exceeds maximum size")
        if not signature.strip():
            raise Invalid("missing signature")
        if not await self._in_thread(lambda: keys.verify(content, signature)):
            raise Invalid("invalid signature")
        text = (_canonical(signature) + "\n").encode("ascii")
        try:
            prepared = await self._in_thread(lambda: self._prepare(content, text))
        except OSError as problem:
            raise self._not_written(problem) from None
        await _whole(self._put(prepared, sha256(content).hexdigest(), caller, address))

    async def _put(self, prepared: list[tuple[str, str]], digest: str, caller: Caller, address: str) -> None:
        """Nothing is in force that is not in the audit log: the record comes first, what can fail before it."""
        try:
            await self._record(caller, address, f"install script replaced, sha256 {digest}")
        except BaseException:
            await self._in_thread(lambda: _discard(prepared))
            raise
        try:
            await self._in_thread(lambda: self._commit(prepared))
        except OSError as problem:
            raise self._not_written(problem) from None
        self._journal.info("INSTALL_SCRIPT replaced", user=caller.username, sha256=digest, remote_addr=address)

    async def remove(self, caller: Caller, address: str) -> None:
        """
        Serve the built-in script again.

        :raise NotWritten: :raise StorageUnavailable: it is as before.
        """
        if await self._in_thread(self._there):
            await _whole(self._take(caller, address))

    async def _take(self, caller: Caller, address: str) -> None:
        await self._record(caller, address, "install script removed; the built-in one is served")
        try:
            await self._in_thread(self._remove)
        except OSError as problem:
            raise self._not_written(problem) from None
        self._journal.info("INSTALL_SCRIPT removed", user=caller.username, remote_addr=address)

    async def _record(self, caller: Caller, address: str, reason: str) -> None:
        who = caller.username
        event = ConfigChanged(at=self._now(), username=who, actor=who, reason=reason, remote_addr=address)
        await self._store.record([event])

    def _not_written(self, problem: OSError) -> NotWritten:
        said = problem.strerror or str(problem)
        self._log.error("{path} cannot be changed: {problem}", path=self._script_path, problem=said)
        return NotWritten(said)

    # In a thread

    async def _look(self) -> tuple[Stored | None, str]:
        """The stored script, and why there is none although there should be."""
        found: tuple[Stored | None, str] = await self._in_thread(self._load)
        return found

    def _load(self) -> tuple[Stored | None, str]:
        with self._lock:
            try:
                paths = (self._script_path, self._signature_path)
                stamps = [_stamp(os.stat(path)) for path in paths]
                if self._held is not None and self._held[0] == (stamps[0], stamps[1]):
                    return self._held[1], ""
                content, script_status = _read(self._script_path, SCRIPT_BYTES)
                raw, signature_status = _read(self._signature_path, SIGNATURE_FILE_BYTES)
            except FileNotFoundError as problem:
                half = problem.filename == self._signature_path
                return None, f"{CUSTOM_SIGNATURE} is missing beside it" if half else ""
            except OSError as problem:
                return None, problem.strerror or str(problem)
            signature = raw.decode("ascii", "replace").strip()
            valid = self._keys is not None and self._keys.verify(content, signature)
            stored = Stored(content=content, signature=signature, valid=valid)
            self._held = ((_stamp(script_status), _stamp(signature_status)), stored)
            return stored, ""

    def _there(self) -> bool:
        return os.path.lexists(self._script_path) or os.path.lexists(self._signature_path)

    def _prepare(self, content: bytes, signature: bytes) -> list[tuple[str, str]]:
        """Both files whole on the disk, under names of their own. :raise OSError: neither is."""
        remove_leftovers(self._script_path, CUSTOM_TEMPORARY, self._now().timestamp())
        prepared: list[tuple[str, str]] = []
        try:
            # the signature goes first: between the two renames the built-in script is served, never a mixture
            for path, data in ((self._signature_path, signature), (self._script_path, content)):
                temporary = os.path.join(os.path.dirname(path), f"{CUSTOM_TEMPORARY}{os.urandom(8).hex()}")
                handle = os.open(
                    temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, CUSTOM_MODE
                )
                prepared.append((temporary, path))
                with open(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
        except BaseException:
            _discard(prepared)
            raise
        return prepared

    def _commit(self, prepared: list[tuple[str, str]]) -> None:
        with self._lock:
            try:
                for temporary, path in prepared:
                    os.replace(temporary, path)
            except BaseException:
                _discard(prepared)
                raise
            sync_directory(os.path.dirname(self._script_path) or ".")

    def _remove(self) -> None:
        with self._lock:
            for path in (self._script_path, self._signature_path):
                with suppress(FileNotFoundError):
                    os.unlink(path)
            sync_directory(os.path.dirname(self._script_path) or ".")


async def _whole(work: Coroutine[Any, Any, None]) -> None:
    """Who asked may hang up; the work goes on to its end, so that record and deed stay one."""
    waiting: Deferred[None] = Deferred()

    def ended(result: Failure | None) -> None:
        if not waiting.called:
            waiting.callback(result)
        elif result is not None:
            _log.failure("the install script was not changed, and who asked is gone", result)

    Deferred.fromCoroutine(work).addBoth(ended)
    await waiting


def _discard(prepared: list[tuple[str, str]]) -> None:
    for temporary, _ in prepared:
        with suppress(OSError):
            os.unlink(temporary)


def _canonical(signature: str) -> str:
    raw = signature_bytes(signature)
    return "" if raw is None else signature_text(raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallTerms:
    """
    What the install script asks (``/install-config.json``).

    :ivar server_url: the external URL. :ivar install_url: where downloads come from, if elsewhere; else empty.
    :ivar base_dn: of the directory; empty when there is none.
    """

    server_url: str
    install_url: str = ""
    base_dn: str = ""

    def members(self) -> dict[str, str]:
        server, install = self.server_url.rstrip("/"), self.install_url.rstrip("/")
        found = {"server_url": server}
        if install and install != server:
            found["install_url"] = install
        if self.base_dn:
            found["ldap_base_dn"] = self.base_dn
        return found


# Of the uninstall script, which works as it stands: these lines are what is asked for.
_PAM_LINE, _FILES_LINE = "UNCONFIGURE_PAM=true\n", "REMOVE_FILES=true\n"


def uninstall_script(template: str, *, pam: bool = True, files: bool = True) -> str:
    """
    The uninstall script. It takes no files away that a PAM rule still runs, whatever is asked.

    :param pam: take identree out of PAM. :param files: remove the agent, its configuration and the break-glass hash.
    :raise ValueError: the template is another's.
    """
    for line, wanted in ((_PAM_LINE, pam), (_FILES_LINE, files)):
        if template.count("\n" + line) != 1:
            raise ValueError(f"the uninstall script lacks the line {line.strip()}")
        if not wanted:
            template = template.replace("\n" + line, "\n" + line.replace("true", "false"))
    return template


def manifest(version: str, agent: Agent | None, units: Mapping[str, str]) -> bytes:
    """What there is to fetch: a JSON object, one line."""
    files = (
        []
        if agent is None
        else [
            {
                "name": name,
                "path": f"/download/{name}",
                "size": len(agent.content),
                "sha256": agent.digest,
            }
            for name in AGENT_NAMES
        ]
    )
    found = [
        {
            "name": name,
            "path": f"/download/systemd/{name}",
            "size": len(text.encode()),
            "sha256": sha256(text.encode()).hexdigest(),
        }
        for name, text in sorted(units.items())
    ]
    return (json.dumps({"version": version, "files": files + found}, separators=(",", ":")) + "\n").encode()
