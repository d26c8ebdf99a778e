"""
Stylesheet, scripts, icons: served from memory under a URL that changes with their content.

All files share one hash, so that modules and the stylesheet find each other by relative names, and a page with the old
hash never mixes with new files in a browser's cache.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from twisted.web import http
from twisted.web.iweb import IRequest

from identree.web.router import Router, TextAnswers, not_found

# One year, the most that RFC 9111 recommends, and no revalidation: another content has another URL.
IMMUTABLE = b"public, max-age=31536000, immutable"
# The hash of another version was asked for (an old page, another replica): the present file, but not for long.
REVALIDATE = b"no-cache"
# Smaller files gain nothing from compression.
_COMPRESS_FROM_BYTES = 860

TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """:ivar packed: gzip form, empty when it is not worth it."""

    content_type: str
    etag: str
    body: bytes
    packed: bytes


class Assets:
    """
    :param directory: files of the types in :data:`TYPES`; others are not served.
    """

    def __init__(self, directory: Path) -> None:
        bodies = {
            path.name: path.read_bytes()
            for path in sorted(directory.iterdir())
            if path.suffix in TYPES and path.is_file()
        }
        whole = sha256()
        for name, body in bodies.items():
            whole.update(f"{name}:{len(body)}:".encode() + body)
        self.hash = whole.hexdigest()[:16]
        self._assets = {
            name: Asset(
                content_type=TYPES[Path(name).suffix],
                etag=f'"{sha256(body).hexdigest()[:32]}"',
                body=body,
                packed=gzip.compress(body, 9, mtime=0) if len(body) >= _COMPRESS_FROM_BYTES else b"",
            )
            for name, body in bodies.items()
        }

    def __contains__(self, name: str) -> bool:
        return name in self._assets

    def get(self, name: str) -> Asset | None:
        return self._assets.get(name)

    def read(self, name: str) -> bytes:
        """:raise KeyError: there is no such file."""
        return self._assets[name].body

    def path(self, name: str) -> str:
        """:raise KeyError: there is no such file; a page must not refer to it."""
        if name not in self._assets:
            raise KeyError(name)
        return f"/static/{self.hash}/{name}"


class StaticRoutes:
    """``/static/HASH/NAME`` and ``/favicon.ico``; no session, no cookies."""

    router = Router()

    def __init__(self, assets: Assets) -> None:
        self._assets = assets
        self.answers = TextAnswers()

    @router.route("/static/<string:version>/<string:name>", methods=["GET"])
    def file(self, request: IRequest, version: str, name: str) -> bytes:
        return self._send(request, name, IMMUTABLE if version == self._assets.hash else REVALIDATE)

    @router.route("/favicon.ico", methods=["GET"])
    def favicon(self, request: IRequest) -> bytes:
        return self._send(request, "icon.svg", b"public, max-age=86400")

    def _send(self, request: IRequest, name: str, caching: bytes) -> bytes:
        asset = self._assets.get(name)
        if asset is None:
            return not_found(request)
        request.setHeader(b"Cache-Control", caching)
        request.setHeader(b"Content-Type", asset.content_type.encode())
        if asset.packed:
            request.setHeader(b"Vary", b"Accept-Encoding")
        if request.setETag(asset.etag.encode()) is http.CACHED:
            return b""
        if asset.packed and _accepts_gzip(request.getHeader("accept-encoding") or ""):
            request.setHeader(b"Content-Encoding", b"gzip")
            return asset.packed
        return asset.body


def _accepts_gzip(header: str) -> bool:
    for entry in header[:200].split(","):
        coding, _, parameter = entry.partition(";")
        if coding.strip().lower() == "gzip":
            return parameter.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
