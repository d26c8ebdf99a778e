"""
How answers are written: bodies, redirects and cookies (spec/http-api sections 2.3, 2.6, 2.8).

Every function sets status and headers and returns the body. The headers that all answers have are the site's concern.
"""

from __future__ import annotations

import json
from typing import Final

from twisted.web.iweb import IRequest

RETRY_UNAVAILABLE_SECONDS = 2

# What stands in a cookie value besides letters and digits without any danger; the rest is dropped.
_COOKIE_BYTES: Final = frozenset(range(0x20, 0x7F)) - set(b'";\\')
# Escaped in JSON so that it stays harmless wherever it is pasted.
_HTML_IN_JSON: Final = (
    ("<", "\\u003c"),
    (">", "\\u003e"),
    ("&", "\\u0026"),
    ("\u2028", "\\u2028"),
    ("\u2029", "\\u2029"),
)

TEXT = b"text/plain; charset=utf-8"
HTML = b"text/html; charset=utf-8"
JSON = b"application/json"


def send(request: IRequest, code: int, content_type: bytes, body: bytes) -> bytes:
    """An answer of known length."""
    request.setResponseCode(code)
    headers = request.responseHeaders
    headers.setRawHeaders(b"Content-Type", [content_type])
    headers.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
    return body


def encode_json(value: object) -> bytes:
    """Compact UTF-8 with the escapes of section 2.6, without the line feed."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character, escaped in _HTML_IN_JSON:
        if character in text:
            text = text.replace(character, escaped)
    return text.encode("utf-8", "replace")


def send_json(request: IRequest, code: int, value: object) -> bytes:
    """The value as JSON and a line feed; keys stand in the order given."""
    return send(request, code, JSON, encode_json(value) + b"\n")


def json_error(request: IRequest, code: int, error: str, **more: object) -> bytes:
    """``J(error)`` of the contract; ``more`` are further members."""
    return send_json(request, code, {"error": error, **more})


def text(request: IRequest, code: int, message: str) -> bytes:
    """``T(message)`` of the contract."""
    return send(request, code, TEXT, message.encode() + b"\n")


def html(request: IRequest, code: int, body: bytes) -> bytes:
    return send(request, code, HTML, body)


def empty(request: IRequest, code: int) -> bytes:
    request.setResponseCode(code)
    if code != 204:  # RFC 9110 section 8.6: there is no length to tell
        request.responseHeaders.setRawHeaders(b"Content-Length", [b"0"])
    return b""


def redirect(request: IRequest, code: int, location: str) -> bytes:
    """
    An empty answer that sends the browser to ``location``.

    :param location: printable ASCII, as checked by who made it; anything else is percent-encoded here, so that no
        header can be split.
    """
    safe = "".join(c if "\x20" < c < "\x7f" else "".join(f"%{b:02X}" for b in c.encode()) for c in location)
    request.responseHeaders.setRawHeaders(b"Location", [safe.encode("ascii")])
    return empty(request, code)


def see_other(request: IRequest, location: str) -> bytes:
    """303: go on with a GET."""
    return redirect(request, 303, location)


def retry_after(request: IRequest, seconds: int) -> None:
    request.responseHeaders.setRawHeaders(b"Retry-After", [b"%d" % seconds])


def set_cookie(
    request: IRequest,
    name: str,
    value: str,
    *,
    max_age: int,
    secure: bool,
    http_only: bool = True,
    same_site: str = "Lax",
) -> None:
    """
    Set a cookie for the whole site, its value written raw (section 2.8): what cannot stand in one is dropped, and a
    value with a space or a comma is put in double quotes.

    :param max_age: seconds; 0 deletes it.
    """
    raw = bytes(b for b in value.encode("utf-8", "replace") if b in _COOKIE_BYTES)
    if b" " in raw or b"," in raw:
        raw = b'"' + raw + b'"'
    cookie = b"%b=%b; Path=/; Max-Age=%d" % (name.encode("ascii"), raw, max_age)
    if http_only:
        cookie += b"; HttpOnly"
    cookie += b"; SameSite=" + same_site.encode("ascii")
    if secure:
        cookie += b"; Secure"
    request.responseHeaders.addRawHeader(b"Set-Cookie", cookie)
