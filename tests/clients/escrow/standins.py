"""
The products that keep passwords, in memory, as far as escrowing one needs them. They refuse what the real ones refuse:
wrong credentials, other methods and paths, missing fields, values that the product could not read.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, unquote
from uuid import UUID

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from identree.clients.escrow.bitwarden import SymmetricKey, Unreadable

Handler = Callable[..., tuple[int, object]]


class StandIn(Resource):
    """
    :ivar asked: method and path, with the query, of every request.
    :ivar sent: the bodies that came, decoded.
    :ivar replies: by method and path, what to answer instead, once each: status and document; None: never.
    :ivar reachable: False: no request is ever answered.
    """

    isLeaf = True
    prefix = ""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.sent: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.replies: dict[str, list[tuple[int, object] | None]] = {}
        self.location = ""
        self.routes: list[tuple[str, re.Pattern[str], Handler]] = []

    def route(self, method: str, pattern: str, handler: Handler) -> None:
        self.routes.append((method, re.compile(pattern), handler))

    def render(self, request: Any) -> Any:
        uri = request.uri.decode()
        path, _, query = uri.partition("?")
        method = request.method.decode()
        self.asked.append(f"{method} {uri}")
        self.headers.append(
            {name.decode().lower(): values[0].decode() for name, values in request.requestHeaders.getAllRawHeaders()}
        )
        planned = self.replies.get(f"{method} {path}")
        body = request.content.read()
        if planned:
            reply = planned.pop(0)
            return NOT_DONE_YET if reply is None else self.say(request, *reply)
        document: Any = {}
        if body:
            kind = request.getHeader("content-type") or ""
            if kind.startswith("application/x-www-form-urlencoded"):
                document = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            elif kind == "application/json":
                document = json.loads(body)
            else:
                return self.say(request, 415, {"message": "unsupported media type"})
            self.sent.append(document)
        fields = {name: values[0] for name, values in parse_qs(query, strict_parsing=bool(query)).items()}
        for wanted, pattern, handler in self.routes:
            match = pattern.fullmatch(path)
            if match and wanted == method:
                parts = [unquote(part) for part in match.groups()]
                return self.say(request, *handler(request, document, fields, *parts))
        return self.say(request, *self.unknown())

    def unknown(self) -> tuple[int, object]:
        return 404, {"message": "not found"}

    def say(self, request: Any, status: int, document: object) -> bytes:
        request.setResponseCode(status)
        if self.location:
            request.setHeader("Location", self.location)
        request.setHeader("Content-Type", "application/json")
        return document if isinstance(document, bytes) else json.dumps(document).encode()


# -- HashiCorp Vault --------------------------------------------------------------------------------------------------
class Vault(StandIn):
    """
    A KV engine of version 2 and the AppRole login.

    :ivar tokens: that are good, with their remaining life in seconds; 0: for ever.
    :ivar secrets: by path under the mount, the versions.
    :ivar only: the method of writing that the policy allows; empty: both.
    """

    def __init__(self, tokens: dict[str, int] | None = None) -> None:
        super().__init__()
        self.mount, self.namespace = "secret", ""
        self.tokens = dict(tokens or {})
        self.role, self.secret_id = "role-1", "secret-id-of-the-role"
        self.renewable, self.ttl, self.longest = True, 3600, 0
        self.secrets: dict[str, list[dict[str, Any]]] = {}
        self.sealed, self.only = False, ""
        self.logins = self.renewals = 0
        self.route("POST", r"/v1/auth/approle/login", self.log_in)
        self.route("GET", r"/v1/auth/token/lookup-self", self.authorised(self.look_up))
        self.route("POST", r"/v1/auth/token/renew-self", self.authorised(self.renew))
        for method in ("POST", "PUT"):
            self.route(method, r"/v1/([^/]+)/data/(.+)", self.authorised(self.write))
        self.route("GET", r"/v1/([^/]+)/data/(.+)", self.authorised(self.read))

    def unknown(self) -> tuple[int, object]:
        return 404, {"errors": []}

    def authorised(self, handler: Handler) -> Handler:
        def checked(request: Any, *rest: Any) -> tuple[int, object]:
            if self.sealed:
                return 503, {"errors": ["Vault is sealed"]}
            right = request.getHeader("x-vault-namespace") == (self.namespace or None)
            if not right or request.getHeader("x-vault-token") not in self.tokens:
                return 403, {"errors": ["permission denied"]}
            return handler(request, *rest)

        return checked

    def log_in(self, request: Any, document: Any, fields: Any) -> tuple[int, object]:
        if self.sealed:
            return 503, {"errors": ["Vault is sealed"]}
        if request.getHeader("x-vault-namespace") != (self.namespace or None):
            return 403, {"errors": ["permission denied"]}
        if document != {"role_id": self.role, "secret_id": self.secret_id}:
            return 400, {"errors": ["invalid role or secret ID"]}
        self.logins += 1
        token = f"hvs.login-{self.logins}"
        self.tokens[token] = self.ttl
        return 200, {"auth": {"client_token": token, "lease_duration": self.ttl, "renewable": self.renewable}}

    def look_up(self, request: Any, document: Any, fields: Any) -> tuple[int, object]:
        ttl = self.tokens[request.getHeader("x-vault-token")]
        return 200, {"data": {"ttl": ttl, "renewable": self.renewable and ttl > 0}}

    def renew(self, request: Any, document: Any, fields: Any) -> tuple[int, object]:
        if not self.renewable:
            return 400, {"errors": ["lease is not renewable"]}
        self.renewals += 1
        token = request.getHeader("x-vault-token")
        granted = self.longest or self.ttl
        return 200, {"auth": {"client_token": token, "lease_duration": granted, "renewable": True}}

    def write(self, request: Any, document: Any, fields: Any, mount: str, path: str) -> tuple[int, object]:
        if self.only and request.method.decode() != self.only:
            return 405, {"errors": ["unsupported operation"]}
        if mount != self.mount:
            return 404, {"errors": [f'no handler for route "{mount}/data/{path}". route entry not found.']}
        if not isinstance(document.get("data"), dict):
            return 400, {"errors": ["no data provided"]}
        self.secrets.setdefault(path, []).append(document["data"])
        return 200, {"data": {"version": len(self.secrets[path]), "destroyed": False}}

    def read(self, request: Any, document: Any, fields: Any, mount: str, path: str) -> tuple[int, object]:
        if mount != self.mount or path not in self.secrets:
            return self.unknown()
        return 200, {"data": {"data": self.secrets[path][-1], "metadata": {"version": len(self.secrets[path])}}}


# -- 1Password Connect ------------------------------------------------------------------------------------------------
VAULT_ID = "ytrfte14kw1uex5txaore1emkz"


class OnePassword(StandIn):
    """:ivar items: by vault id and item id."""

    TOKEN = "eyJhbGciOiJFUzI1NiJ9.of-the-connect-server"

    def __init__(self) -> None:
        super().__init__()
        self.vaults = {VAULT_ID: "Servers", "b" * 26: "Other"}
        self.items: dict[tuple[str, str], dict[str, Any]] = {}
        self.route("GET", r"/v1/vaults", self.authorised(self.list_vaults))
        self.route("GET", r"/v1/vaults/([^/]+)/items", self.authorised(self.list_items))
        self.route("POST", r"/v1/vaults/([^/]+)/items", self.authorised(self.create))
        self.route("PUT", r"/v1/vaults/([^/]+)/items/([^/]+)", self.authorised(self.replace))
        self.route("GET", r"/v1/vaults/([^/]+)/items/([^/]+)", self.authorised(self.get))

    def authorised(self, handler: Handler) -> Handler:
        def checked(request: Any, document: Any, fields: Any, *parts: str) -> tuple[int, object]:
            if request.getHeader("authorization") != f"Bearer {self.TOKEN}":
                return 401, {"status": 401, "message": "Invalid token signature"}
            if parts and parts[0] not in self.vaults:
                return 403, {"status": 403, "message": "vault is not in scope"}
            return handler(document, fields, *parts)

        return checked

    def list_vaults(self, document: Any, fields: Any) -> tuple[int, object]:
        return 200, [{"id": id, "name": name} for id, name in self.vaults.items()]

    def list_items(self, document: Any, fields: Any, vault: str) -> tuple[int, object]:
        match = re.fullmatch(r'title eq "((?:[^"\\]|\\.)*)"', fields.get("filter", ""))
        if match is None:
            return 400, {"status": 400, "message": "invalid filter"}
        title = re.sub(r"\\(.)", r"\1", match[1]).casefold()
        return 200, [
            {"id": id, "title": item["title"], "vault": {"id": vault}}
            for (where, id), item in self.items.items()
            if where == vault and item["title"].casefold() == title
        ]

    def create(self, document: Any, fields: Any, vault: str) -> tuple[int, object]:
        return self._put(document, vault, f"{len(self.items):026d}")

    def replace(self, document: Any, fields: Any, vault: str, item: str) -> tuple[int, object]:
        if (vault, item) not in self.items:
            return 404, {"status": 404, "message": "item not found"}
        if document.get("id") != item:
            return 400, {"status": 400, "message": "The item ID in the path and in the body differ"}
        return self._put(document, vault, item)

    def _put(self, document: Any, vault: str, item: str) -> tuple[int, object]:
        if document.get("vault") != {"id": vault} or document.get("category") != "LOGIN":
            return 400, {"status": 400, "message": "invalid item"}
        self.items[vault, item] = {**document, "id": item}
        return 200, self.items[vault, item]

    def get(self, document: Any, fields: Any, vault: str, item: str) -> tuple[int, object]:
        if (vault, item) not in self.items:
            return 404, {"status": 404, "message": "item not found"}
        return 200, self.items[vault, item]


# -- Bitwarden Secrets Manager ----------------------------------------------------------------------------------------
ORG = "5688da1f-cc25-41d7-bb9f-b0740144ef1d"
PROJECT = "e325ea69-a3ab-4dff-836f-b02e013fe530"


class Bitwarden(StandIn):
    """
    The service itself: only sealed values, and only in its routes.

    :ivar secrets: by id, as they came.
    """

    CLIENT_ID = "ec2c1d46-6a4b-4751-a310-af9601317f2d"
    SECRET = "C2IgxjjLF7qSshsbwe8JGcbM075YXw"
    SEED = base64.b64decode("X8vbvA0bduihIDe/qrzIQQ==")
    ACCESS_TOKEN = f"0.{CLIENT_ID}.{SECRET}:X8vbvA0bduihIDe/qrzIQQ=="
    SEALED = True

    def __init__(self) -> None:
        super().__init__()
        self.organisation_key = SymmetricKey(bytes(range(64)))
        self.secrets: dict[str, dict[str, Any]] = {}
        self.tokens: set[str] = set()
        self.logins, self.expires_in = 0, 3600
        self.route("POST", r"/identity/connect/token", self.log_in)
        self.route("PUT", r"/api/secrets/([^/]+)", self.authorised(self.update))
        self.route("GET", r"/api/secrets/([^/]+)", self.authorised(self.get))
        self.routes_of_lists()

    def routes_of_lists(self) -> None:
        self.route("GET", r"/api/organizations/([^/]+)/secrets", self.authorised(self.list_all))
        self.route("GET", r"/api/projects/([^/]+)/secrets", self.authorised(self.list_project))
        self.route("POST", r"/api/organizations/([^/]+)/secrets", self.authorised(self.create))

    def authorised(self, handler: Handler) -> Handler:
        def checked(request: Any, document: Any, fields: Any, *parts: str) -> tuple[int, object]:
            if (request.getHeader("authorization") or "").removeprefix("Bearer ") not in self.tokens:
                return 401, {"message": "Unauthorized."}
            return handler(document, fields, *parts)

        return checked

    def log_in(self, request: Any, document: Any, fields: Any) -> tuple[int, object]:
        wanted = {
            "grant_type": "client_credentials",
            "client_id": self.CLIENT_ID,
            "client_secret": self.SECRET,
            "scope": "api.secrets",
        }
        if document != wanted:
            return 400, {"error": "invalid_client"}
        self.logins += 1
        token = f"bearer-{self.logins}"
        self.tokens.add(token)
        answer: dict[str, Any] = {"access_token": token, "expires_in": self.expires_in, "token_type": "Bearer"}
        if self.SEALED:
            payload = json.dumps({"encryptionKey": base64.b64encode(self.organisation_key.raw).decode()})
            answer["encrypted_payload"] = SymmetricKey.of_access_token(self.SEED).seal(payload, b"i" * 16)
        return 200, answer

    def wrong(self, document: Any) -> str:
        """What the server would say of the fields."""
        if self.SEALED:
            for name in ("key", "value", "note"):
                try:
                    self.organisation_key.open(document.get(name))
                except (Unreadable, TypeError):
                    return f"{name} is not a valid encrypted string."
        return ""

    def _put(self, document: Any, id: str) -> tuple[int, object]:
        problem = self.wrong(document)
        if problem:
            return 400, {"message": "The model state is invalid.", "validationErrors": [problem, document.get("value")]}
        self.secrets[id] = {**document, "id": id}
        return 200, self.secrets[id]

    def create(self, document: Any, fields: Any, organisation: str = ORG) -> tuple[int, object]:
        if organisation != ORG or document.get("organizationId") != ORG:
            return 404, {"message": "Resource not found."}
        return self._put(document, str(UUID(int=len(self.secrets) + 1)))

    def update(self, document: Any, fields: Any, id: str) -> tuple[int, object]:
        return self._put(document, id) if id in self.secrets else (404, {"message": "Resource not found."})

    def get(self, document: Any, fields: Any, id: str) -> tuple[int, object]:
        return (200, self.secrets[id]) if id in self.secrets else (404, {"message": "Resource not found."})

    def _listed(self, chosen: Callable[[dict[str, Any]], bool]) -> Iterator[dict[str, Any]]:
        for secret in self.secrets.values():
            if chosen(secret):
                yield {"id": secret["id"], "key": secret["key"], "organizationId": ORG}

    def list_all(self, document: Any, fields: Any, organisation: str) -> tuple[int, object]:
        if organisation != ORG:
            return 404, {"message": "Resource not found."}
        return 200, {"secrets": list(self._listed(lambda secret: True)), "projects": []}

    def list_project(self, document: Any, fields: Any, project: str) -> tuple[int, object]:
        return 200, {"secrets": list(self._listed(lambda secret: secret.get("projectIds") == [project]))}


class PlainBitwarden(Bitwarden):
    """A compatible product that takes values as they are, and searches them."""

    SEALED = False

    def routes_of_lists(self) -> None:
        self.route("GET", r"/api/organizations/([^/]+)/secrets", self.authorised(self.search))
        self.route("POST", r"/api/secrets", self.authorised(self.create))

    def search(self, document: Any, fields: Any, organisation: str) -> tuple[int, object]:
        return 200, {"data": list(self._listed(lambda secret: fields["search"] in secret["key"]))}


# -- Infisical --------------------------------------------------------------------------------------------------------
class Infisical(StandIn):
    """:ivar secrets: by workspace, environment and name. :ivar readable: False: the identity may only write."""

    CLIENT_ID, SECRET = "client-1", "secret-of-the-identity"

    def __init__(self) -> None:
        super().__init__()
        self.secrets: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.tokens: set[str] = set()
        self.logins, self.expires_in, self.readable = 0, 7200, True
        self.route("POST", r"/api/v1/auth/universal-auth/login", self.log_in)
        self.route("GET", r"/api/v3/secrets/raw/([^/]+)", self.authorised(self.get))
        self.route("PATCH", r"/api/v3/secrets/raw/([^/]+)", self.authorised(self.update))
        self.route("POST", r"/api/v3/secrets/raw/([^/]+)", self.authorised(self.create))

    def authorised(self, handler: Handler) -> Handler:
        def checked(request: Any, document: Any, fields: Any, *parts: str) -> tuple[int, object]:
            if (request.getHeader("authorization") or "").removeprefix("Bearer ") not in self.tokens:
                return 401, {"statusCode": 401, "message": "Token missing", "error": "Unauthorized"}
            return handler(document, fields, *parts)

        return checked

    def log_in(self, request: Any, document: Any, fields: Any) -> tuple[int, object]:
        if document != {"clientId": self.CLIENT_ID, "clientSecret": self.SECRET}:
            return 401, {"statusCode": 401, "message": "Invalid credentials", "error": "Unauthorized"}
        self.logins += 1
        token = f"access-{self.logins}"
        self.tokens.add(token)
        return 200, {"accessToken": token, "expiresIn": self.expires_in, "tokenType": "Bearer"}

    def _key(self, fields: Any, name: str) -> tuple[str, str, str]:
        assert fields["secretPath"] == "/"
        return fields["workspaceId"], fields["environment"], name

    def get(self, document: Any, fields: Any, name: str) -> tuple[int, object]:
        if not self.readable:
            return 403, {"statusCode": 403, "message": "You are not allowed to describeSecret", "error": "Forbidden"}
        secret = self.secrets.get(self._key(fields, name))
        if secret is None:
            return 404, {"statusCode": 404, "message": f"Secret with name '{name}' not found", "error": "NotFound"}
        return 200, {"secret": {"secretKey": name, **secret}}

    def _put(self, document: Any, name: str) -> tuple[int, object]:
        secret = {"secretValue": document["secretValue"], "secretComment": document.get("secretComment", "")}
        self.secrets[self._key(document, name)] = secret
        return 200, {"secret": {"secretKey": name, **secret}}

    def update(self, document: Any, fields: Any, name: str) -> tuple[int, object]:
        if self._key(document, name) not in self.secrets:
            return 404, {"statusCode": 404, "message": f"Secret with name '{name}' not found", "error": "NotFound"}
        return self._put(document, name)

    def create(self, document: Any, fields: Any, name: str) -> tuple[int, object]:
        if self._key(document, name) in self.secrets:
            return 400, {"statusCode": 400, "message": "Secret already exist", "error": "BadRequest"}
        return self._put(document, name)
