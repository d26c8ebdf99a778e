"""
A small OpenID Connect provider for looking around: whoever clicks a name is that person.

It is no identity provider for anything else. It speaks only on loopback, to clients on loopback, and forgets
everything when it stops. Authorization code flow with PKCE, RS256 (OpenID Connect Core 1.0, RFC 6749, 7636).
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from html import escape
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from twisted.internet.interfaces import IListeningPort
from twisted.web.resource import Resource
from twisted.web.server import Site

from identree.core import tokens
from identree.demo.pocketid import DemoPocketID

LOOPBACK = "127.0.0.1"
CODE_SECONDS = 60
TOKEN_SECONDS = 300
# Codes and access tokens that are remembered at once; the oldest goes.
MAX_REMEMBERED = 1000
MAX_BODY_BYTES = 16 << 10
MAX_PARAMETER = 2048

# Who can be clicked, and their groups.
USERS: Mapping[str, Sequence[str]] = {"alice": ("users",), "bob": ("users",), "carol": ("users", "admins")}

# Parameters of the request that the click repeats.
_PASSED_ON = (
    "response_type",
    "client_id",
    "redirect_uri",
    "scope",
    "state",
    "nonce",
    "code_challenge",
    "code_challenge_method",
    "prompt",
)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine, without asking a resolver."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def loopback_url(url: str) -> str:
    """The URL. :raise ValueError: it does not lead to this machine."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not is_loopback(parts.hostname or ""):
        raise ValueError(f"{url!r} is not on this machine; the demo works only on {LOOPBACK} and localhost")
    return url


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grant:
    username: str
    redirect_uri: str
    nonce: str
    code_challenge: str
    scope: str
    at: datetime


class DemoProvider:
    """
    The provider. It makes its key when it is built, which takes some tenths of a second.

    :param issuer: its own address, as :meth:`listen` will serve it.
    :param users: names and their groups.
    :param pocketid: served as ``/api``; its people are the users here.
    :param auto: an authorization request with ``login_hint=NAME`` and ``auto=1`` is answered at once, without a click;
        for scripted tests.
    :raise ValueError: the issuer or a redirect URI is not on loopback.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        issuer: str,
        client_id: str,
        client_secret: str,
        redirect_uris: Sequence[str],
        users: Mapping[str, Sequence[str]] = USERS,
        now: Callable[[], datetime],
        pocketid: DemoPocketID | None = None,
        auto: bool = False,
    ) -> None:
        self.issuer = loopback_url(issuer)
        self.client_id = client_id
        self.redirect_uris = tuple(loopback_url(uri) for uri in redirect_uris)
        self.users = users
        self.now = now
        self.auto = auto
        self._pocketid = pocketid
        self._client_secret = client_secret
        self._reactor = reactor
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._key_id = secrets.token_hex(8)
        self._grants: dict[str, _Grant] = {}
        self._access: dict[str, str] = {}

    def listen(self, port: int = 0, interface: str = LOOPBACK) -> IListeningPort:
        """
        Serve on a port of this machine; 0 takes a free one.

        :raise ValueError: the interface is not loopback.
        """
        if not is_loopback(interface) or interface == "localhost":
            raise ValueError(f"the demo's identity provider listens on {LOOPBACK} only, not on {interface!r}")
        site = Site(self.resource(), reactor=self._reactor)
        site.displayTracebacks = False
        listening: IListeningPort = self._reactor.listenTCP(port, site, interface=interface)
        return listening

    def resource(self) -> Resource:
        """The root of the provider's pages."""
        root = _Guard()
        well_known = Resource()
        well_known.putChild(b"openid-configuration", _Document(self.metadata))
        root.putChild(b".well-known", well_known)
        root.putChild(b"jwks", _Document(self.key_set))
        root.putChild(b"authorize", _Authorize(self))
        root.putChild(b"token", _Token(self))
        root.putChild(b"userinfo", _UserInfo(self))
        root.putChild(b"end_session", _EndSession(self))
        root.putChild(b"demo.css", _Style())
        if self._pocketid is not None:
            root.putChild(b"api", self._pocketid.resource())
        return root

    # -- what it says -------------------------------------------------------------------------------------------------
    def metadata(self) -> dict[str, Any]:
        """OpenID Connect Discovery 1.0 section 3."""
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "userinfo_endpoint": f"{self.issuer}/userinfo",
            "end_session_endpoint": f"{self.issuer}/end_session",
            "jwks_uri": f"{self.issuer}/jwks",
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
            "code_challenge_methods_supported": ["S256"],
            "scopes_supported": ["openid", "profile", "email", "groups"],
            "claims_supported": ["sub", "preferred_username", "name", "email", "groups", "auth_time", "nonce"],
        }

    def key_set(self) -> dict[str, Any]:
        public = RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return {"keys": [{**public, "kid": self._key_id, "use": "sig", "alg": "RS256"}]}

    def claims(self, username: str) -> dict[str, Any]:
        return {
            "sub": f"demo-{username}",
            "preferred_username": username,
            "name": username.capitalize(),
            "email": f"{username}@demo.invalid",
            "groups": list(self.users[username]),
        }

    # -- what it does -------------------------------------------------------------------------------------------------
    def grant(self, username: str, request: Mapping[str, str]) -> str:
        """A code for a person who signed in. :returns: where the browser goes with it."""
        code = secrets.token_urlsafe(32)
        _remember(
            self._grants,
            code,
            _Grant(
                username=username,
                redirect_uri=request["redirect_uri"],
                nonce=request.get("nonce", ""),
                code_challenge=request["code_challenge"],
                scope=request["scope"],
                at=self.now(),
            ),
        )
        return self.answer(request, code=code)

    def answer(self, request: Mapping[str, str], **parameters: str) -> str:
        """The client's redirect URI with parameters."""
        state = {"state": request["state"]} if "state" in request else {}
        uri = request["redirect_uri"]
        return f"{uri}{'&' if '?' in uri else '?'}{urlencode({**parameters, **state, 'iss': self.issuer})}"

    def is_client(self, client_id: str, secret: str) -> bool:
        return tokens.same(client_id, self.client_id) and tokens.same(secret, self._client_secret)

    def redeem(self, form: Mapping[str, str]) -> dict[str, Any] | None:
        """The tokens for a code, once; None when code, verifier or redirect URI is wrong."""
        grant = self._grants.pop(form.get("code", ""), None)
        now = self.now()
        if grant is None or (now - grant.at).total_seconds() > CODE_SECONDS:
            return None
        challenge = base64.urlsafe_b64encode(sha256(form.get("code_verifier", "").encode()).digest()).rstrip(b"=")
        if challenge.decode() != grant.code_challenge or form.get("redirect_uri") != grant.redirect_uri:
            return None
        access = secrets.token_urlsafe(32)
        _remember(self._access, access, grant.username)
        at = int(now.timestamp())
        claims = {
            "iss": self.issuer,
            "aud": self.client_id,
            "iat": at,
            "exp": at + TOKEN_SECONDS,
            "auth_time": int(grant.at.timestamp()),
            **({"nonce": grant.nonce} if grant.nonce else {}),
            **self.claims(grant.username),
        }
        return {
            "access_token": access,
            "token_type": "Bearer",
            "expires_in": TOKEN_SECONDS,
            "scope": grant.scope,
            "id_token": jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": self._key_id}),
        }

    def owner(self, access_token: str) -> str | None:
        return self._access.get(access_token)


def _remember(memory: dict[str, Any], key: str, value: Any) -> None:
    while len(memory) >= MAX_REMEMBERED:
        del memory[next(iter(memory))]
    memory[key] = value


# -- pages ------------------------------------------------------------------------------------------------------------
class _Guard(Resource):
    """Lets only requests through that name this machine: a page elsewhere cannot reach us by a name of its own."""

    def getChildWithDefault(self, path: bytes, request: Any) -> Resource:
        if not is_loopback(_host(request)):
            return _Page(403, "Not here", "<p>The demo’s identity provider is only for this machine.</p>")
        child: Resource = super().getChildWithDefault(path, request)
        return child

    def getChild(self, path: bytes, request: Any) -> Resource:
        return _Page(404, "Nothing here", "<p>There is no such page.</p>")


def _host(request: Any) -> str:
    return urlsplit(f"//{(request.getHeader(b'host') or b'').decode('latin-1')}").hostname or ""


class _Leaf(Resource):
    isLeaf = True


class _Document(_Leaf):
    def __init__(self, make: Callable[[], Mapping[str, Any]]) -> None:
        super().__init__()
        self._make = make

    def render_GET(self, request: Any) -> bytes:
        return _json(request, 200, self._make())


class _Page(_Leaf):
    """One small page; ``body`` is HTML."""

    def __init__(self, status: int, title: str, body: str) -> None:
        super().__init__()
        self._status, self._title, self._body = status, title, body

    def render(self, request: Any) -> bytes:
        return _html(request, self._status, self._title, self._body)


class _Authorize(_Leaf):
    """RFC 6749 section 4.1.1; GET shows the names, POST is the click on one."""

    def __init__(self, provider: DemoProvider) -> None:
        super().__init__()
        self._provider = provider

    def render_GET(self, request: Any) -> bytes:
        asked = _parameters(request.uri.partition(b"?")[2])
        refusal = self._refused(request, asked)
        if refusal is not None:
            return refusal
        hint = asked.get("login_hint", "")
        if self._provider.auto and asked.get("auto") == "1" and hint in self._provider.users:
            return _redirect(request, self._provider.grant(hint, asked))
        return _html(request, 200, "Sign in", self._choice(asked), form_target=_origin(asked["redirect_uri"]))

    def render_POST(self, request: Any) -> bytes:
        asked = _form(request)
        refusal = self._refused(request, asked)
        if refusal is not None:
            return refusal
        name = asked.get("user", "")
        if name == "":
            return _redirect(request, self._provider.answer(asked, error="access_denied"))
        if name not in self._provider.users:
            return _html(request, 400, "Unknown name", "<p>There is nobody of this name in the demo.</p>")
        return _redirect(request, self._provider.grant(name, asked))

    def _refused(self, request: Any, asked: Mapping[str, str]) -> bytes | None:
        """What is wrong with the request: shown here while the client is in doubt, else told to the client."""
        if asked.get("client_id") != self._provider.client_id:
            return _html(request, 400, "Unknown client", "<p>This application is not registered here.</p>")
        if asked.get("redirect_uri") not in self._provider.redirect_uris:
            return _html(request, 400, "Unknown address", "<p>The application gave an address that is not its own.</p>")
        if asked.get("response_type") != "code":
            return _redirect(request, self._provider.answer(asked, error="unsupported_response_type"))
        if "openid" not in asked.get("scope", "").split():
            return _redirect(request, self._provider.answer(asked, error="invalid_scope"))
        if not asked.get("code_challenge") or asked.get("code_challenge_method") != "S256":
            return _redirect(request, self._provider.answer(asked, error="invalid_request"))
        return None

    def _choice(self, asked: Mapping[str, str]) -> str:
        hidden = "".join(
            f'<input type="hidden" name="{name}" value="{escape(asked[name])}">' for name in _PASSED_ON if name in asked
        )
        names = "".join(
            f'<li><button name="user" value="{escape(name)}"><span class="initial" aria-hidden="true">'
            f"{escape(name[:1].upper())}</span><span><b>{escape(name)}</b> "
            f"<small>{escape(', '.join(groups))}</small></span></button></li>"
            for name, groups in self._provider.users.items()
        )
        return (
            "<p>This is the demo’s identity provider. Choose who you are.</p>"
            f'<form method="post" action="/authorize">{hidden}<ul>{names}</ul>'
            '<button class="quiet" name="user" value="">Cancel</button></form>'
        )


class _Token(_Leaf):
    """RFC 6749 section 4.1.3."""

    def __init__(self, provider: DemoProvider) -> None:
        super().__init__()
        self._provider = provider

    def render_POST(self, request: Any) -> bytes:
        form = _form(request)
        if not self._provider.is_client(*_credentials(request, form)):
            request.setHeader("www-authenticate", 'Basic realm="identree demo"')
            return _json(request, 401, {"error": "invalid_client"})
        if form.get("grant_type") != "authorization_code":
            return _json(request, 400, {"error": "unsupported_grant_type"})
        made = self._provider.redeem(form)
        if made is None:
            return _json(request, 400, {"error": "invalid_grant"})
        return _json(request, 200, made)


class _UserInfo(_Leaf):
    def __init__(self, provider: DemoProvider) -> None:
        super().__init__()
        self._provider = provider

    def render_GET(self, request: Any) -> bytes:
        scheme, _, token = (request.getHeader("authorization") or "").partition(" ")
        username = self._provider.owner(token) if scheme.lower() == "bearer" else None
        if username is None:
            request.setHeader("www-authenticate", 'Bearer error="invalid_token"')
            return _json(request, 401, {"error": "invalid_token"})
        return _json(request, 200, self._provider.claims(username))

    render_POST = render_GET


class _EndSession(_Leaf):
    """OpenID Connect RP-Initiated Logout 1.0. There is no session here; the browser just goes back."""

    def __init__(self, provider: DemoProvider) -> None:
        super().__init__()
        self._provider = provider

    def render_GET(self, request: Any) -> bytes:
        back = _parameters(request.uri.partition(b"?")[2]).get("post_logout_redirect_uri", "")
        if back and _origin(back) in {_origin(uri) for uri in self._provider.redirect_uris}:
            return _redirect(request, back)
        return _html(request, 200, "Signed out", "<p>You are signed out of the demo.</p>")


class _Style(_Leaf):
    def render_GET(self, request: Any) -> bytes:
        request.setHeader("content-type", "text/css; charset=utf-8")
        return _STYLE


# -- requests and answers ---------------------------------------------------------------------------------------------
def _parameters(query: bytes) -> dict[str, str]:
    """The first value of each parameter; nothing at all of a query that is too long or broken."""
    try:
        parsed = parse_qs(query.decode(), max_num_fields=50)
    except ValueError:
        return {}
    return {name: values[0] for name, values in parsed.items() if len(values[0]) <= MAX_PARAMETER}


def _form(request: Any) -> dict[str, str]:
    body: bytes = request.content.read(MAX_BODY_BYTES + 1)
    return {} if len(body) > MAX_BODY_BYTES else _parameters(body)


def _credentials(request: Any, form: Mapping[str, str]) -> tuple[str, str]:
    """Client id and secret from the Authorization header, form-encoded in it, or from the body."""
    scheme, _, encoded = (request.getHeader("authorization") or "").partition(" ")
    if scheme.lower() == "basic":
        try:
            name, _, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            return "", ""
        return unquote_plus(name), unquote_plus(secret)
    return form.get("client_id", ""), form.get("client_secret", "")


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _json(request: Any, status: int, document: Mapping[str, Any]) -> bytes:
    request.setResponseCode(status)
    request.setHeader("content-type", "application/json")
    request.setHeader("cache-control", "no-store")
    return json.dumps(document).encode()


def _redirect(request: Any, url: str) -> bytes:
    request.setHeader("cache-control", "no-store")
    request.setHeader("referrer-policy", "no-referrer")
    request.redirect(url.encode())
    return b""


def _html(request: Any, status: int, title: str, body: str, form_target: str = "") -> bytes:
    request.setResponseCode(status)
    for name, value in (
        ("content-type", "text/html; charset=utf-8"),
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
        # form-action also rules where a form's redirect may lead
        (
            "content-security-policy",
            f"default-src 'none'; style-src 'self'; form-action 'self' {form_target}; "
            "frame-ancestors 'none'; base-uri 'none'",
        ),
    ):
        request.setHeader(name, value)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)} · identree demo</title><link rel="stylesheet" href="/demo.css"></head>'
        f"<body><main><h1>{escape(title)}</h1>{body}</main></body></html>"
    ).encode()


_STYLE = b"""\
:root {
  color-scheme: light dark;
  --ground: oklch(0.975 0.004 150); --card: oklch(1 0 0); --line: oklch(0.88 0.008 150);
  --text: oklch(0.25 0.01 150); --soft: oklch(0.45 0.012 150); --accent: oklch(0.45 0.11 155);
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: oklch(0.19 0.008 150); --card: oklch(0.24 0.01 150); --line: oklch(0.37 0.012 150);
    --text: oklch(0.95 0.005 150); --soft: oklch(0.76 0.01 150); --accent: oklch(0.78 0.14 155);
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 24px;
  font: 16px/24px system-ui, sans-serif; color: var(--text); background: var(--ground);
}
main {
  width: min(100%, 360px); padding: 24px; background: var(--card); border: 1px solid var(--line); border-radius: 12px;
}
h1 { margin: 0 0 8px; font-size: 20px; line-height: 28px; }
p { margin: 0 0 24px; color: var(--soft); }
ul { list-style: none; margin: 0 0 12px; padding: 0; display: grid; gap: 8px; }
button {
  width: 100%; min-height: 56px; padding: 8px 12px; display: flex; align-items: center; gap: 12px; text-align: start;
  font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  cursor: pointer;
}
button:hover { border-color: var(--accent); }
button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.initial {
  flex: none; width: 32px; height: 32px; border-radius: 50%; display: grid; place-items: center;
  border: 1px solid var(--accent); color: var(--accent); font-weight: 600;
}
small { display: block; font-size: 14px; line-height: 20px; color: var(--soft); }
.quiet { min-height: 48px; justify-content: center; border-color: transparent; color: var(--soft); }
"""
