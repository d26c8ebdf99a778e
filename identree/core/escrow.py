"""
What escrowing a break-glass password means to the outside (spec/notifications-and-policy section 8): which vault a host
belongs to, what its item is called there, where an administrator sees it, and the limits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, quote_plus, unquote, urlsplit

from identree.core.names import normalised_hostname

BACKENDS = ("local", "vault", "1password-connect", "bitwarden", "infisical")
COMMAND = "command"

# Store operations that may run at once, all hosts together.
MOST_AT_ONCE = 5
# One operation, with every request that belongs to it.
OPERATION_SECONDS = 30.0
# How far a token's time may be from ours, either way.
TOKEN_SECONDS = 60
# Used tokens are remembered for ten minutes; beyond so many no host gets another one accepted.
MOST_USED_TOKENS = 10_000
# A request has 1024 bytes, so no password that comes by one is longer.
LONGEST_PASSWORD_BYTES = 1024
# Of an answer's item or vault id; those of all products fit many times.
LONGEST_ID = 2048
# Lines of a command's output in which its item id is looked for.
ITEM_ID_LINES = 1000

DEFAULT_KEY = "default"
_HOSTNAME = re.compile(r"[a-zA-Z0-9._-]{1,254}")
# What stays as it is in a path segment.
_SEGMENT_SAFE = "-_.~$&+:=@"
_ITEM_ID = "item_id="


def token_key(hostname: str, ts: int | str) -> str:
    """
    Under which a used token is remembered.

    :param ts: unix seconds.
    """
    return f"{hostname}:{ts}"


def checked_hostname(hostname: str) -> str:
    """
    The same, fit to stand in paths and names.

    :raise ValueError: it is not; ``.`` and ``..`` would lead to another place.
    """
    if not _HOSTNAME.fullmatch(hostname) or not hostname.strip("."):
        raise ValueError("the host's name cannot be used as a name at the escrow back end")
    return hostname


def checked_password(password: str) -> str:
    """
    The same, fit to be stored and to come back as it is.

    :raise ValueError: it is empty, too long, or no text; the message has nothing of it.
    """
    try:
        length = len(password.encode())
    except UnicodeEncodeError:
        raise ValueError("the password is no text that can be encoded as UTF-8") from None
    if not 0 < length <= LONGEST_PASSWORD_BYTES:
        raise ValueError(f"a password of 1 to {LONGEST_PASSWORD_BYTES} bytes can be escrowed, this one has {length}")
    return password


# -- which vault a host belongs to ------------------------------------------------------------------------------------
def place_of(hostname: str, vault_map: Mapping[str, str], path: str) -> str:
    """
    The vault or path of a host: its own key in the map; else the longest pattern ``prefix*`` or ``*suffix`` that fits;
    else the key ``default``; else ``path``.

    Case does not matter: host names come normalised, keys as somebody wrote them. Of equally long patterns the first
    in sorted order counts.

    :param path: ``IDENTREE_ESCROW_PATH``.
    """
    name = normalised_hostname(hostname)
    best, longest = "", 0
    for key in sorted(vault_map):
        pattern = normalised_hostname(key)
        if pattern == name:
            return vault_map[key]
        if len(pattern) <= longest:
            continue
        # the star at the end decides, even where there is another one at the beginning
        if pattern.endswith("*"):
            fits = name.startswith(pattern[:-1])
        else:
            fits = pattern.startswith("*") and name.endswith(pattern[1:])
        if fits:
            best, longest = key, len(pattern)
    if best:
        return vault_map[best]
    return vault_map.get(DEFAULT_KEY, path)


# -- escaping ---------------------------------------------------------------------------------------------------------
def path_escape(text: str) -> str:
    """As one segment of a path: slashes are escaped too."""
    return quote(text, safe=_SEGMENT_SAFE)


def query_escape(text: str) -> str:
    """As a value in a query: a space becomes a plus sign."""
    return quote_plus(text, safe="")


# -- HashiCorp Vault --------------------------------------------------------------------------------------------------
def kv_path(place: str, hostname: str) -> str:
    """
    The path of a host's secret in a KV engine of version 2, behind ``/v1/``.

    :param place: ``mount`` or ``mount/prefix``, without the ``data/`` that the engine wants.
    :raise ValueError: the mount is missing, or a segment is ``.`` or ``..``; says what to do.
    """
    name = checked_hostname(hostname)
    mount, _, prefix = place.strip("/").partition("/")
    if not mount:
        raise ValueError(
            "IDENTREE_ESCROW_PATH: the mount of a KV engine (version 2) is needed, such as secret/identree"
        )
    if {".", ".."} & {mount, *prefix.split("/")}:
        raise ValueError("IDENTREE_ESCROW_PATH: a path without . and .. is needed")
    return "/".join(path_escape(part) for part in ((mount, "data", prefix, name) if prefix else (mount, "data", name)))


def kv_path_of_item(item_id: str, url: str, hostname: str) -> str:
    """
    The path behind ``/v1/`` that a stored item id names; empty when it names no secret of that host.

    :param item_id: the URL of the secret when it was stored.
    :param url: the server's address now, without a trailing slash. Only this one is ever asked.
    """
    start = f"{url}/v1/"
    path = item_id[len(start) :] if item_id.startswith(start) else _path_of(item_id).partition("/v1/")[2]
    segments = path.split("/")
    named = unquote(segments[-1]) == hostname
    whole = all(segments) and len(segments) in (3, 4) and segments[1] == "data"
    inner = [part for segment in segments for part in unquote(segment).split("/")]
    if not (named and whole) or {".", ".."} & set(inner) or re.search(r"[^!-~]|[?#\\]", path):
        return ""
    return path


def _path_of(url: str) -> str:
    """The path of a URL as it stands there; empty when it is none."""
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


# -- 1Password, Bitwarden, Infisical ----------------------------------------------------------------------------------
_ONEPASSWORD_ID = re.compile(r"[A-Za-z0-9-]{20,36}")


def item_title(hostname: str) -> str:
    """What a host's item is called in 1Password and Bitwarden."""
    return f"breakglass-{checked_hostname(hostname)}"


def is_onepassword_id(text: str) -> bool:
    """Whether this is the id of a 1Password vault or item rather than a name."""
    return _ONEPASSWORD_ID.fullmatch(text) is not None


def onepassword_filter(title: str) -> str:
    """The filter of 1Password Connect for exactly this title (SCIM, RFC 7644 section 3.4.2.2), as in a query."""
    escaped = title.replace("\\", "\\\\").replace('"', '\\"')
    return query_escape(f'title eq "{escaped}"')


def bitwarden_identity(url: str) -> str:
    """Where Bitwarden's tokens come from. :param url: of the API, without a trailing slash."""
    if "api.bitwarden.com" in url:
        return url.replace("api.bitwarden.com", "identity.bitwarden.com")
    return url.removesuffix("/api") + "/identity"


def infisical_name(hostname: str) -> str:
    """What a host's secret is called. Two hosts may share a name: ``web-1`` and ``web.1``."""
    return "BREAKGLASS_" + checked_hostname(hostname).replace("-", "_").replace(".", "_").upper()


def two_parts(place: str) -> tuple[str, str]:
    """``ORG/PROJECT`` or ``WORKSPACE/ENV``; the second part may be missing. Surrounding slashes do not count."""
    first, _, second = place.strip("/").partition("/")
    return first, second


# -- a custom command -------------------------------------------------------------------------------------------------
def command_environment(environment: Mapping[str, str], hostname: str, prefixes: tuple[str, ...]) -> dict[str, str]:
    """
    All that the command gets: ``PATH``, ``HOME``, ``BREAKGLASS_HOSTNAME``, and what of the server's environment begins
    with one of the prefixes.
    """
    wanted = tuple(prefix for prefix in prefixes if prefix)
    given = {name: value for name, value in environment.items() if wanted and name.startswith(wanted)}
    given.update({name: environment[name] for name in ("PATH", "HOME") if name in environment})
    given["BREAKGLASS_HOSTNAME"] = hostname
    return given


def item_id_in(output: str) -> str:
    """The value of the first line ``item_id=…``; empty when there is none that could be stored."""
    for line in output.split("\n", ITEM_ID_LINES)[:ITEM_ID_LINES]:
        text = line.strip()
        if text.startswith(_ITEM_ID):
            value = text.removeprefix(_ITEM_ID).strip()
            return value if len(value) <= LONGEST_ID and value.isprintable() else ""
    return ""


# -- links ------------------------------------------------------------------------------------------------------------
def web_link(
    backend: str, *, url: str, web_url: str, place: str, hostname: str, item_id: str = "", vault_id: str = ""
) -> str:
    """
    Where an administrator sees the password in the product's own pages; empty when that is not known.

    :param url, web_url: ``IDENTREE_ESCROW_URL`` and ``IDENTREE_ESCROW_WEB_URL``.
    :param place: of :func:`place_of`.
    :param item_id, vault_id: of the host's record.
    """
    url, web_url = url.rstrip("/"), web_url.rstrip("/")
    if not (_is_web(url) and _is_web(web_url)):
        return ""
    if backend == "1password-connect":
        base, marker, account = web_url.partition("#/")
        if not (marker and account and item_id and vault_id):
            return ""
        return f"{base.rstrip('/')}/Vault/{path_escape(account)}:{path_escape(vault_id)}:{path_escape(item_id)}"
    if backend == "vault":
        try:
            path = kv_path_of_item(item_id, url, hostname) or kv_path(place, hostname)
        except ValueError:
            return ""
        mount, _, *inner = path.split("/")
        return f"{url}/ui/vault/secrets/{mount}/kv/{'/'.join(inner).replace('%2F', '/')}/details"
    first, second = two_parts(place)
    if backend == "bitwarden" and first:
        base = url.removesuffix("/api").replace("://api.", "://vault.", 1)
        return f"{base}/#/sm/{path_escape(first)}/secrets" + (f"/{path_escape(item_id)}" if item_id else "")
    if backend == "infisical" and first:
        return f"{url}/{path_escape(first)}/secrets" + (f"/{path_escape(second)}" if second else "")
    return ""


def _is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False
