"""
The token cache (spec/host-agent section 8): who was approved lately, and whom the provider's token names, is let in
again as long as the token lasts and the server does not object.

The files are root's, in directories that are root's; what does not look like that is not there. The provider's keys are
kept beside them, so that not every ``sudo`` asks the provider.
"""

from __future__ import annotations

import copy
import errno
import fcntl
import json
import os
import stat
import time

from identree.agent import clock, journal, jwt, places
from identree.agent.config import ConfigError, split_url
from identree.agent.pam import valid_user
from identree.agent.watch import Watch
from identree.agent.wire import Client, Response, Unreachable, WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from identree.agent.config import Config

# Of a token's file; a token that would not be read back is not written either.
MAX_FILE_BYTES = 16384
# Of the kept keys: the provider's answer may have 64 KiB, and may grow when it is written anew.
MAX_KEYS_FILE_BYTES = 262144

# A token that ends within this time is none any more.
MARGIN_SECONDS = 30
# A token may be from a clock that is ahead of ours.
NOT_BEFORE_LEEWAY_SECONDS = 300

# All that the provider may take, once its keys are to be fetched.
PROVIDER_SECONDS = 5.0
PROVIDER_CONNECT_SECONDS = 2.0
# So long the kept keys are good; a token by a key that is not among them makes us fetch them earlier.
KEYS_SECONDS = 6 * 3600
# After a failure, or for the sake of an unknown key, the provider is not asked again for so long.
PAUSE_SECONDS = 60

GRACE_SECONDS = 2.0
LOCK_SECONDS = 1.0

# No host name holds this character, so it is nobody's directory.
KEYS_FILE = "@jwks"
TEMPORARY = ".token-tmp-"

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")


class Hit:
    """
    A token that counts. Its text is a secret.

    :ivar remaining: whole seconds that it is still good for. :ivar mtime: when it was kept, in unix seconds.
    """

    def __init__(self, token: str, remaining: int, mtime: float) -> None:
        self.token, self.remaining, self.mtime = token, remaining, mtime


class Refused(Exception):
    """The server answered, and did not say what it was asked. :ivar status: of HTTP."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


class _Miss(Exception):
    """There is no token that counts; the text says why."""


def off(config: Config) -> str:
    """Why there is no cache on this host; empty when there is one."""
    if not config.token_cache_enabled:
        return "IDENTREE_TOKEN_CACHE_ENABLED is false"
    if not config.token_cache_issuer:
        return "IDENTREE_TOKEN_CACHE_ISSUER is not set"
    if not config.token_cache_client_id:
        return "IDENTREE_TOKEN_CACHE_CLIENT_ID is not set"
    if not config.token_cache_dir.startswith("/"):
        return "IDENTREE_TOKEN_CACHE_DIR is not an absolute path"
    return ""


def lookup(
    config: Config, user: str, hostname: str, *, watch: Watch | None = None, now: Callable[[], float] = time.time
) -> Hit | None:
    """
    The kept token of ``user``, if everything about it is right; None is the answer to every doubt.

    :param hostname: as :attr:`Config.hostname` is. :param watch: of the person who waits.
    :raise Left: the person went away.
    """
    if off(config) or not _names(user, hostname):
        return None
    try:
        base = _directory(config.token_cache_dir, None)
    except FileNotFoundError:
        return None
    except (OSError, _Miss) as e:
        _doubt(user, e)
        return None
    try:
        token, remaining, mtime = _read_token(base, user, hostname, now())
        provider = Provider(config, base, watch or Watch(parent=False), now=now)
        _believe(provider, token, user, config.token_cache_client_id, now())
        return Hit(token, remaining, mtime)
    except FileNotFoundError:
        return None
    except (OSError, _Miss, jwt.BadToken, ConfigError, Unreachable, WireError) as e:
        _doubt(user, e)
        return None
    finally:
        os.close(base)


def session(client: Client, config: Config, user: str, hit: Hit, *, now: Callable[[], float] = time.time) -> int | None:
    """
    What the server says to a token that counts: the seconds that ``user`` is let in for, or None when the way is the
    ordinary one: the token was revoked (and is gone), or the server cannot be reached.

    :raise Refused: it answered otherwise. :raise WireError: there is no saying who answered, or what.
    """
    query = f"?username={user}" + (f"&hostname={config.hostname}" if config.hostname else "")
    try:
        answer = client.request(
            "GET", f"/api/grace-status{query}", timeout=GRACE_SECONDS, connect_timeout=GRACE_SECONDS
        )
    except Unreachable:
        return None
    if answer.status >= 500:  # it cannot say; the ordinary request will show what it can
        return None
    if answer.status != 200:
        raise Refused(answer.status)
    body = _object(answer)
    revoked = body.get("revoke_tokens_before")
    if revoked is not None:
        before = places.instant(revoked) if isinstance(revoked, str) else None
        # The file's time is by our clock. If that is ahead, an older file would look younger than the revocation.
        kept = hit.mtime - max(0.0, clock.ahead(answer.headers, now()) or 0.0)
        if before is None or kept < before:
            forget(config, user, config.hostname)
            return None
    grace = body.get("grace_remaining")
    seconds = int(grace) if isinstance(grace, (int, float)) and not isinstance(grace, bool) and 0 < grace < 1e9 else 0
    return max(hit.remaining, seconds)


def revoke(config: Config, user: str, hostname: str, revoked: str) -> None:
    """Forget the token if it is older than a verified ``revoke_tokens_before``, or if that makes no sense."""
    if off(config) or not revoked or not _names(user, hostname):
        return
    path = os.path.join(config.token_cache_dir, hostname, user)
    before = places.instant(revoked)
    try:
        if before is None or os.lstat(path).st_mtime < before:
            forget(config, user, hostname)
    except OSError:
        pass  # not there


def store(config: Config, user: str, hostname: str, id_token: str) -> bool:
    """
    Keep the token that came with a verified approval; whether that worked. Failing is no reason to keep anybody out,
    so it is only written down.
    """
    if off(config) or not _names(user, hostname):
        return False
    try:
        ends = jwt.unverified(id_token).get("exp")
        if isinstance(ends, bool) or not isinstance(ends, (int, float)) or not 0 < ends < 253402300800:
            raise _Miss("the token has no end")
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(ends)))
        data = json.dumps({"id_token": id_token, "expires_at": at}).encode()
        if len(data) > MAX_FILE_BYTES:
            raise _Miss("the token is too long")
        os.makedirs(config.token_cache_dir, 0o700, exist_ok=True)
        base = _directory(config.token_cache_dir, None)
        try:
            try:
                os.mkdir(hostname, 0o700, dir_fd=base)
            except FileExistsError:
                pass
            directory = _directory(hostname, base)
        finally:
            os.close(base)
        try:
            os.fchmod(directory, 0o700)
            _write(directory, user, data, locked=True)
        finally:
            os.close(directory)
        return True
    except (OSError, _Miss, jwt.BadToken) as e:
        detail = _told(config, hostname, user, e)
        journal.record(serious=True, user=user, result="warning", reason="token not kept", detail=detail)
        return False


def forget(config: Config, user: str, hostname: str) -> None:
    """Remove the token of ``user``, if there is one."""
    if not _names(user, hostname):
        return
    try:
        base = _directory(config.token_cache_dir, None)
        try:
            directory = _directory(hostname, base)
        finally:
            os.close(base)
        try:
            os.unlink(user, dir_fd=directory)
        finally:
            os.close(directory)
    except FileNotFoundError:
        pass
    except (OSError, _Miss) as e:
        journal.record(
            serious=True,
            user=user,
            result="warning",
            reason="token not removed",
            detail=_told(config, hostname, user, e),
        )


def count(config: Config, hostname: str) -> int:
    """
    How many tokens are kept for this host, good or not; none where none would be believed.

    :raise OSError: that cannot be seen, or is behind a link.
    """
    try:
        base = _directory(config.token_cache_dir, None)
        try:
            directory = _directory(hostname, base)
        finally:
            os.close(base)
    except (FileNotFoundError, _Miss):
        return 0
    try:
        names = os.listdir(directory)
    finally:
        os.close(directory)
    return sum(1 for name in names if valid_user(name))


def _names(user: str, hostname: str) -> bool:
    """Whether the two may be parts of a path."""
    named = 0 < len(hostname) <= 253 and set(hostname) <= _NAME_CHARACTERS and hostname.strip(".") != ""
    return named and valid_user(user)


def _doubt(user: str, error: Exception) -> None:
    detail = f"{error.filename or ''} {error.strerror}" if isinstance(error, OSError) else str(error)
    journal.record(user=user, result="token not used", reason=detail)


def _told(config: Config, hostname: str, user: str, error: Exception) -> str:
    # what was opened below a descriptor has half a name in its error
    path = os.path.join(config.token_cache_dir, hostname, user)
    return f"{path}: {error.strerror if isinstance(error, OSError) else error}"


# Files


def _directory(path: str, above: int | None) -> int:
    """
    A directory that nobody but root can change.

    :raise OSError: it is not there, or is a link. :raise _Miss: it is somebody's.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path.rstrip("/") or "/", flags, dir_fd=above)  # with a slash at its end a link would be followed
    info = os.fstat(fd)
    if info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o022:
        os.close(fd)
        raise _Miss(f"the directory {path} can be changed by others than root")
    return fd


def _read_token(base: int, user: str, hostname: str, now: float) -> tuple[str, int, float]:
    """Token, seconds that are left, and when it was kept. :raise OSError: :raise _Miss: there is none."""
    directory = _directory(hostname, base)
    try:
        data, mtime = _read(directory, user, MAX_FILE_BYTES)
    finally:
        os.close(directory)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise _Miss("its file is damaged") from None
    token = value.get("id_token") if isinstance(value, dict) else None
    ends = value.get("expires_at") if isinstance(value, dict) else None
    at = places.instant(ends) if isinstance(ends, str) else None
    if not isinstance(token, str) or not token or at is None:
        raise _Miss("its file is damaged")
    remaining = int(at - MARGIN_SECONDS - now)
    if remaining <= 0:
        raise _Miss("it has ended")
    return token, remaining, mtime


def _read(directory: int, name: str, limit: int) -> tuple[bytes, float]:
    """Content and time of a file that is root's alone. :raise OSError: :raise _Miss: there is none that is."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
    try:
        if not _lock(fd, fcntl.LOCK_SH):
            raise _Miss("its file is locked")
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_mode & 0o077 or info.st_uid not in (0, os.geteuid()):
            raise _Miss("its file is not root's alone")
        data = b""
        while len(data) < limit and (more := os.read(fd, limit - len(data))):
            data += more
        return data, info.st_mtime
    finally:
        os.close(fd)


def _write(directory: int, name: str, data: bytes, *, locked: bool) -> None:
    """Replace a file in one step. :param locked: wait for those who read it. :raise OSError: it stays as it was."""
    temporary = f"{TEMPORARY}{os.urandom(8).hex()}"
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    fd = os.open(temporary, flags | os.O_WRONLY | os.O_EXCL, 0o600, dir_fd=directory)
    held = -1
    try:
        try:
            view = data
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        if locked:
            held = os.open(name, flags | os.O_RDWR, 0o600, dir_fd=directory)
            if not _lock(held, fcntl.LOCK_EX):
                raise OSError(errno.EAGAIN, "is locked", name)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(temporary, dir_fd=directory)
        raise
    finally:
        if held >= 0:
            os.close(held)
    os.fsync(directory)


def _lock(fd: int, kind: int) -> bool:
    """False when another keeps it for :data:`LOCK_SECONDS`: nobody waits for a lock at a sudo."""
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return True
        except OSError as e:
            if e.errno not in (errno.EWOULDBLOCK, errno.EINTR) or time.monotonic() >= until:
                return False
        time.sleep(0.01)


# The provider


def _believe(provider: Provider, token: str, user: str, client_id: str, now: float) -> None:
    """:raise BadToken: :raise _Miss: the token is not the provider's, not for us, not now, or not this user's."""
    keys = provider.keys()
    try:
        claims = jwt.verify(token, keys.keys, keys.algorithms)
    except jwt.UnknownKey:
        newer = provider.newer(keys)
        if newer is None:
            raise
        claims = jwt.verify(token, newer.keys, newer.algorithms)
    audience = claims.get("aud")
    ends, begins = claims.get("exp"), claims.get("nbf", 0)
    if claims.get("iss") != provider.issuer:
        raise _Miss("another issuer")
    if client_id != audience and not (isinstance(audience, list) and client_id in audience):
        raise _Miss("another audience")
    for value in (ends, begins):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _Miss("its times are none")
    assert isinstance(ends, (int, float)) and isinstance(begins, (int, float))
    if not ends > now:
        raise _Miss("it has ended")
    if not begins <= now + NOT_BEFORE_LEEWAY_SECONDS:
        raise _Miss("it has not begun")
    if claims.get("preferred_username") != user:
        raise _Miss("another user's")


class Keys:
    """
    What is kept of a provider.

    :ivar fetched: when its keys were last confirmed. :ivar tried: when it was last asked. Both in unix seconds.
    """

    def __init__(self, value: dict[str, object]) -> None:
        """:raise ValueError: it is nothing that we wrote."""
        self.issuer, self.uri, self.etag = (_string(value, name) for name in ("issuer", "jwks_uri", "etag"))
        self.fetched, self.tried = _seconds(value, "fetched"), _seconds(value, "tried")
        algorithms, keys = value.get("algorithms"), value.get("keys")
        if not isinstance(algorithms, list) or not isinstance(keys, list):
            raise ValueError("keys")
        self.algorithms = [each for each in algorithms if isinstance(each, str)]
        self.keys = keys

    def text(self) -> bytes:
        return json.dumps(
            {
                "issuer": self.issuer,
                "jwks_uri": self.uri,
                "etag": self.etag,
                "fetched": self.fetched,
                "tried": self.tried,
                "algorithms": self.algorithms,
                "keys": self.keys,
            }
        ).encode()


def _string(value: dict[str, object], name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str):
        raise ValueError(name)
    return found


def _seconds(value: dict[str, object], name: str) -> float:
    found = value.get(name)
    # JSON of Python's has infinities, and numbers that are none or fit into none
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 <= found < 253402300800:
        raise ValueError(name)
    return float(found)


class _ProviderClient(Client):
    """The client with what makes an answer unnecessary when nothing has changed."""

    etag = ""

    def _exchange(self, request: bytes, until: float, sent: Callable[[], None] | None, *, kept: bool) -> Response:
        if self.etag:
            head, blank, body = request.partition(b"\r\n\r\n")
            request = head + f"\r\nIf-None-Match: {self.etag}".encode("ascii") + blank + body
        return super()._exchange(request, until, sent, kept=kept)


class Provider:
    """
    The OpenID provider's keys, kept in the cache directory.

    :param base: descriptor of that. :param now: unix seconds.
    """

    def __init__(self, config: Config, base: int, watch: Watch, *, now: Callable[[], float]) -> None:
        self._config, self._base, self._watch, self._now = config, base, watch, now
        self.issuer = config.token_cache_issuer
        self._until = 0.0

    def keys(self) -> Keys:
        """
        The keys as they were at most :data:`KEYS_SECONDS` ago.

        :raise _Miss: :raise Unreachable: :raise WireError: :raise ConfigError: the provider cannot be asked, or gives
            no usable answer.
        """
        kept, now = self._kept(), self._now()
        if kept is not None and 0 <= now - kept.fetched < KEYS_SECONDS:
            return kept
        if kept is not None and 0 <= now - kept.tried < PAUSE_SECONDS:
            raise _Miss("the provider did not answer a moment ago")
        return self._fetch(kept)

    def newer(self, than: Keys) -> Keys | None:
        """The keys as they are now, unless they were fetched a moment ago."""
        now = self._now()
        if 0 <= now - max(than.fetched, than.tried) < PAUSE_SECONDS:
            return None
        return self._fetch(than)

    def _kept(self) -> Keys | None:
        try:
            keys = Keys(json.loads(_read(self._base, KEYS_FILE, MAX_KEYS_FILE_BYTES)[0]))
        except (OSError, _Miss, ValueError, AttributeError, RecursionError):
            return None
        return keys if keys.issuer == self.issuer else None

    def _fetch(self, kept: Keys | None) -> Keys:
        self._until = time.monotonic() + PROVIDER_SECONDS
        now = self._now()
        try:
            fresh = self._ask(kept, now)
        except (Unreachable, WireError, _Miss, ConfigError):
            # kept, so that the next sudo does not wait for the same again
            nothing = {"jwks_uri": "", "etag": "", "fetched": 0, "tried": 0, "algorithms": [], "keys": []}
            failed = kept or Keys({"issuer": self.issuer, **nothing})
            failed.tried = now
            self._keep(failed)
            raise
        self._keep(fresh)
        return fresh

    def _keep(self, keys: Keys) -> None:
        try:
            data = keys.text()
            if len(data) <= MAX_KEYS_FILE_BYTES:
                _write(self._base, KEYS_FILE, data, locked=False)
        except OSError as e:
            path = os.path.join(self._config.token_cache_dir, KEYS_FILE)
            journal.record(result="warning", reason="the provider's keys are not kept", detail=f"{path}: {e.strerror}")

    def _ask(self, kept: Keys | None, now: float) -> Keys:
        document = _object(self._get(self.issuer.rstrip("/") + "/.well-known/openid-configuration", ""))
        if document.get("issuer") != self.issuer:
            raise _Miss("the provider calls itself otherwise than IDENTREE_TOKEN_CACHE_ISSUER")
        uri = document.get("jwks_uri")
        if not isinstance(uri, str) or not uri:
            raise _Miss("the provider names no jwks_uri")
        listed = document.get("id_token_signing_alg_values_supported")
        algorithms = [each for each in listed if isinstance(each, str)][:32] if isinstance(listed, list) else []
        value: dict[str, object] = {
            "issuer": self.issuer,
            "jwks_uri": uri,
            "fetched": now,
            "tried": now,
            "algorithms": algorithms or ["RS256"],
        }
        etag = kept.etag if kept is not None and kept.uri == uri and kept.keys else ""
        answer = self._get(uri, etag)
        if answer.status == 304 and kept is not None:
            return Keys({**value, "etag": etag, "keys": kept.keys})
        keys = _object(answer).get("keys")
        if not isinstance(keys, list):
            raise _Miss("the provider's keys are none")
        said = answer.headers.get("etag", "")
        usable = 0 < len(said) <= 256 and said.isascii() and said.isprintable()
        return Keys({**value, "etag": said if usable else "", "keys": keys[: jwt.MAX_KEYS]})

    def _get(self, url: str, etag: str) -> Response:
        """The answer 200, or 304 to a known ``etag``; over HTTPS by the system's authorities, without our secret."""
        whole, mark, query = url.partition("?")
        if mark and not (query.isascii() and query.isprintable() and not set(query) & set(' #"<>\\')):
            raise _Miss("the provider's address is none")
        where = copy.copy(self._config)
        where.scheme, where.host, where.port, base = split_url(whole, self._config.path)
        if where.scheme != "https" and self._config.scheme != "http":
            raise _Miss("the provider's address does not begin with https://")
        where.base = where.secret = where.ca_cert = where.client_cert = where.client_key = ""
        client = _ProviderClient(where, self._watch)
        client.etag = etag
        left = max(self._until - time.monotonic(), 0.1)
        try:
            answer = client.request(
                "GET", (base or "/") + mark + query, timeout=left, connect_timeout=PROVIDER_CONNECT_SECONDS
            )
        finally:
            client.close()
        if answer.status != 200 and not (etag and answer.status == 304):
            raise _Miss(f"the provider answers with HTTP {answer.status}")
        return answer


def _object(answer: Response) -> dict[str, object]:
    """:raise WireError: the body is no JSON object."""
    try:
        value = json.loads(answer.body.decode("utf-8", "replace")) if not answer.cut else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise WireError("the answer is no JSON object")
    return value
