"""
How requests are read: JSON, forms, cookies, credentials, the client's address (spec/http-api sections 2.5, 2.6, 2.8).

Nothing of Twisted's own parsing is used: it mixes query and body, takes multipart, and lets the last cookie win.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

from twisted.web.iweb import IRequest

from identree.app.hosts import Credential
from identree.core.addresses import Network, client_address
from identree.core.errors import Invalid

_MALFORMED_ESCAPE = re.compile(rb"%(?![0-9a-fA-F]{2})")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_JSON_SPACE = re.compile("[ \t\r\n]*")


class BadJSON(Exception):
    """The body does not begin with a JSON value of the wanted form."""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _folded(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key.casefold(): value for key, value in pairs}


_decoder = json.JSONDecoder(object_pairs_hook=_folded, parse_constant=_no_constant)


def body(request: IRequest) -> bytes:
    """The body, as far as the site let it in."""
    request.content.seek(0)
    raw: bytes = request.content.read()
    return raw


def cut(request: IRequest) -> bool:
    """Whether the body was longer than its path allows, so that only its beginning is there."""
    return bool(getattr(request, "cut", False))


def json_value(raw: bytes) -> Any:
    """
    The first JSON value; what follows it is ignored. Keys of objects are case-folded, the last of equal ones wins.

    :raise BadJSON: there is none.
    """
    text = raw.decode("utf-8", "replace")
    match = _JSON_SPACE.match(text)
    try:
        return _decoder.raw_decode(text, match.end() if match else 0)[0]
    except (ValueError, RecursionError):
        raise BadJSON from None


def json_object(raw: bytes) -> dict[str, Any]:
    """:raise BadJSON: the first value is neither an object nor ``null``, which is an empty one."""
    value = json_value(raw)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadJSON
    return value


def json_string(members: Mapping[str, Any], name: str) -> str:
    """
    A member, empty when absent or ``null``; lone surrogates become U+FFFD.

    :param name: lower case.
    :raise BadJSON: not a string.
    """
    value = members.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadJSON
    return value if value.isascii() else _LONE_SURROGATE.sub("\ufffd", value)


def json_integer(members: Mapping[str, Any], name: str) -> int:
    """A member, 0 when absent or ``null``. :raise BadJSON: not an integer literal."""
    value = members.get(name)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadJSON
    return value


def is_json(request: IRequest) -> bool:
    """Whether the content type begins with ``application/json``, in this case."""
    return first_header(request, b"Content-Type").startswith(b"application/json")


def first_header(request: IRequest, name: bytes) -> bytes:
    """The first header of a name, empty when there is none."""
    values: Sequence[bytes] | None = request.requestHeaders.getRawHeaders(name)
    return values[0] if values else b""


def _text(raw: bytes) -> str:
    return unquote_to_bytes(raw.replace(b"+", b" ")).decode("utf-8", "replace")


def fields(raw: bytes, *, strict: bool) -> dict[str, str]:
    """
    URL-encoded fields; of equal names the first counts.

    :param strict: whether a malformed escape or a raw ``;`` is an error; otherwise such a field is left out.
    :raise Invalid: (key ``invalid_form``)
    """
    found: dict[str, str] = {}
    for pair in raw.split(b"&"):
        if not pair:
            continue
        if b";" in pair or _MALFORMED_ESCAPE.search(pair):
            if strict:
                raise Invalid("a form with percent-encoded fields joined by &")
            continue
        name, _, value = pair.partition(b"=")
        found.setdefault(_text(name), _text(value))
    return found


def _query_string(request: IRequest) -> bytes:
    uri: bytes = request.uri
    return uri.partition(b"?")[2]


def query(request: IRequest) -> dict[str, str]:
    """The query parameters; malformed ones do not exist."""
    raw = _query_string(request)
    return fields(raw, strict=False) if raw else {}


def form(request: IRequest) -> dict[str, str]:
    """
    The fields of a POST: those of a URL-encoded body, then those of the query.

    :raise Invalid: (key ``invalid_form``) too long or malformed.
    """
    if cut(request):
        raise Invalid("a shorter form")
    found = {}
    kind = first_header(request, b"Content-Type").partition(b";")[0].strip().lower()
    if kind == b"application/x-www-form-urlencoded":
        found = fields(body(request), strict=True)
    return {**fields(_query_string(request), strict=True), **found}


def cookie(request: IRequest, name: str) -> str:
    """The value of the first cookie of this name, without surrounding quotes; empty when there is none."""
    wanted = name.encode("ascii")
    for header in request.requestHeaders.getRawHeaders(b"Cookie") or ():
        for part in header.split(b";"):
            key, separator, value = part.strip(b" \t").partition(b"=")
            if separator and key == wanted:
                if len(value) >= 2 and value[:1] == value[-1:] == b'"':
                    value = value[1:-1]
                text: str = value.decode("utf-8", "replace")
                return text
    return ""


class Credentials:
    """
    What hosts present: the first ``X-Shared-Secret``, as bytes, and their client certificate.

    :param certificate_name: the verified name in the client certificate of a connection, from its transport; empty when
        there is none.
    :param accepts: whether a certificate of this name counts; what does not is no certificate (spec/http-api section
        5).
    :param spoiled: what became of the certificate of a connection since that was opened, such as ``revoked``; empty
        while it is good. Connections are kept alive for many requests, and a spoiled certificate is none.
    """

    def __init__(
        self,
        certificate_name: Callable[[Any], str] = lambda transport: "",
        accepts: Callable[[str], bool] = lambda name: True,
        spoiled: Callable[[Any], str] = lambda transport: "",
    ) -> None:
        self._certificate_name = certificate_name
        self._accepts = accepts
        self._spoiled = spoiled

    def of(self, request: IRequest) -> Credential:
        transport = getattr(getattr(request, "channel", None), "transport", None)
        name = self._certificate_name(transport)
        if name and (self._spoiled(transport) or not self._accepts(name)):
            name = ""
        return Credential(secret=first_header(request, b"X-Shared-Secret"), certificate=name)


def wants_json(request: IRequest) -> bool:
    """Whether it is one of our scripts: they accept exactly JSON, which no browser asks for by itself."""
    return first_header(request, b"Accept") == b"application/json"


class Addresses:
    """
    Whose request it is: the peer, or behind trusted proxies the client that they name.

    :param trusted: the proxies' networks, as they are now.
    """

    def __init__(self, trusted: Callable[[], Sequence[Network]]) -> None:
        self._trusted = trusted

    def of(self, request: IRequest) -> str:
        peer = getattr(request.getClientAddress(), "host", "") or ""
        trusted = self._trusted()
        if not trusted:
            return client_address(peer, None, ())
        forwarded = request.requestHeaders.getRawHeaders(b"X-Forwarded-For")
        return client_address(peer, b",".join(forwarded).decode("latin-1") if forwarded else None, trusted)
