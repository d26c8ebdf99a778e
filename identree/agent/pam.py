"""
The PAM helper up to the first byte sent (spec/host-agent section 5); :mod:`identree.agent.flow` goes on from there.
"""

from __future__ import annotations

import json
import os
import time

from identree.agent import config as configuration
from identree.agent.caller import Caller
from identree.agent.text import clean, note
from identree.agent.watch import Left, Watch, listen_to_signals
from identree.agent.wire import Client, Response, Unreachable, WireError

# Deployed servers read no more of a challenge request than this.
MAX_REQUEST_BYTES = 1024

# With which each part of the request begins, in characters; the reason is cut by the server at the same length.
_LIMITS = {"reason": 500, "command": 1000, "cwd": 255, "tty": 64, "remote_host": 253}

# What is shortened first when the request is too long: what the approver misses least. So much of the command stays,
# in characters: the person who asks writes the reason, and must not push out of sight what is to be approved.
_SHORTENED = ("command", "cwd", "remote_host", "tty", "reason")
_KEPT = {"command": 120}

_USER_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")

# What PAM asks of a module besides authentication; anything else is a request to authenticate, never a way past it.
_OTHER_TYPES = ("account", "password", "session", "open_session", "close_session", "setcred")

# The kernel takes no larger environment.
_MAX_ENVIRONMENT_BYTES = 8 << 20

# Who connects at all, connects within this time; more tries follow (section 19.8).
FIRST_CONNECT_SECONDS = 2.5


def run() -> int:
    """Ask for approval; 0 when it was given."""
    environ = dict(os.environ)
    configuration.strip_environment()
    user = environ.get("PAM_USER", "")
    if not user:
        note("identree: PAM_USER is not set; this command is for pam_exec, see identree --help")
        return 1
    if not valid_user(user):
        note(f"identree: the user name {clean(user, 64)!r} cannot be approved; letters, digits, '.', '_', '-' only")
        return 1
    if ambiguous(original_environment()):
        note("identree: the PAM environment has one name twice; look for pam_env with user_readenv in this service")
        return 1
    if environ.get("PAM_TYPE", "auth") in _OTHER_TYPES:
        return 0
    try:
        config = configuration.load(conf_path(environ))
        caller = Caller(environ)
        watch = Watch(signals=caller.is_sudo)
        client = Client(config, watch)
    except configuration.ConfigError as e:
        note(f"identree: {e}")
        from identree.agent import journal

        journal.record(user=user, result="error", reason="configuration", detail=str(e))
        return 1
    first: Response | BaseException | None = None
    begun = time.monotonic()
    try:
        listen_to_signals()
        if not keeps_tokens(config):
            request = encode(user, config.hostname, caller, caller.reason)
            first = client.request(
                "POST", "/api/challenge", request, connect_timeout=FIRST_CONNECT_SECONDS, sent=_prepare
            )
    except (Unreachable, WireError, Left) as e:
        first = e
    from identree.agent import flow

    return flow.Flow(config, client, watch, caller, user, begun).run(first)


def original_environment() -> bytes:
    """Our environment as the kernel has it; empty when it cannot be read."""
    data = b""
    try:
        with open("/proc/self/environ", "rb") as file:
            data = file.read(_MAX_ENVIRONMENT_BYTES)
    except OSError:
        pass
    return data


def ambiguous(block: bytes) -> bool:
    """
    Whether one of PAM's own names stands there twice.

    pam_exec puts them behind what other modules left in the PAM environment, and Python takes the first of equal ones:
    whoever could plant ``PAM_TYPE=account`` there would not be asked at all.
    """
    names = [item.partition(b"=")[0] for item in block.split(b"\0") if item.startswith(b"PAM_")]
    return len(names) != len(set(names))


def _prepare() -> None:
    """Load what the answer will need, while the server makes it."""
    from identree.agent import flow, places, screen, tokens  # noqa: F401


def keeps_tokens(config: configuration.Config) -> bool:
    """Whether there is a token cache on this host; :func:`tokencache.off` says why not."""
    return bool(config.token_cache_enabled and config.token_cache_issuer and config.token_cache_client_id)


def valid_user(name: str) -> bool:
    """``^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,63}$``"""
    return 0 < len(name) <= 64 and set(name) <= _USER_CHARACTERS and name[0] not in ".-"


def conf_path(environ: dict[str, str]) -> str:
    """
    ``client.conf``, or what ``IDENTREE_CLIENT_CONF`` names for somebody who only tries the helper.

    Whoever could choose the file could choose the server. So the variable counts only when a controlling terminal
    shows that a person started us: pam_exec takes that away with ``setsid``, and nothing in a PAM environment gives it
    back. That we are not root proves nothing: pam_exec may run us as the user whom ``su`` is about to let in.
    """
    named = environ.get("IDENTREE_CLIENT_CONF", "")
    if not named or os.getuid() != os.geteuid() or os.getgid() != os.getegid():
        return configuration.DEFAULT_PATH
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return configuration.DEFAULT_PATH
    return named


def encode(user: str, hostname: str, caller: Caller, reason: str, *, told: bool = True) -> bytes:
    """
    The challenge request, at most :data:`MAX_REQUEST_BYTES` long.

    :param told: with the optional parts about the command, which a server may not know.
    """
    parts = {"username": user, "hostname": hostname, "reason": clean(reason, _LIMITS["reason"])}
    if told:
        for key in ("command", "cwd", "tty", "remote_host"):
            parts[key] = shorten(clean(getattr(caller, key), 2000), _LIMITS[key])
    while True:
        body = json.dumps({k: v for k, v in parts.items() if v}, ensure_ascii=False, separators=(",", ":")).encode()
        over = len(body) - MAX_REQUEST_BYTES
        if over <= 0:
            return body
        key = next(key for key in _SHORTENED if len(parts.get(key, "")) > _KEPT.get(key, 0))
        # One character is at most four bytes, and a quote or backslash two: cutting by a quarter converges.
        parts[key] = shorten(parts[key], max(_KEPT.get(key, 0), len(parts[key]) - max(1, over // 4)))


def shorten(text: str, limit: int) -> str:
    """``text``, or its beginning and an ellipsis, at most ``limit`` characters; nothing when that says nothing."""
    if len(text) <= limit:
        return text
    return text[: limit - 1].rstrip() + "…" if limit > 8 else ""
