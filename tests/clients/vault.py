"""
HashiCorp Vault in memory, as far as signing needs it: the transit engine's keys and signatures, tokens that end and are
renewed, namespaces, a seal. It refuses what the real one refuses.
"""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import unquote

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

ADDRESS = "https://vault.example:8200"
TOKEN = "hvs.s3cr3t-of-tests"
HASHES = {"sha2-256": SHA256, "sha2-384": SHA384, "sha2-512": SHA512}


def public_pem(key: Any) -> str:
    raw: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return raw.decode()


class Vault(Resource):
    """
    :ivar versions: private keys by version number, of the one key.
    :ivar ttl: of the token, in seconds; 0: it never ends.
    :ivar raw_signatures: as one who changes the marshaling on the way does.
    :ivar replies: by path, what to answer instead: status and document; None: never.
    """

    isLeaf = True

    def __init__(self, *keys: Any) -> None:
        super().__init__()
        self.mount, self.namespace, self.name = "transit", "", "identree-ca"
        self.versions: dict[int, Any] = dict(enumerate(keys, 1))
        self.min_encryption_version = 0
        self.sealed = False
        self.ttl, self.renewable, self.longest = 3600, True, 0
        self.raw_signatures = False
        self.padded = True
        self.asked: list[str] = []
        self.replies: dict[str, tuple[int, object] | None] = {}

    def render(self, request: Any) -> Any:
        path = unquote(request.path.decode())
        self.asked.append(f"{request.method.decode()} {path}")
        if path in self.replies:
            reply = self.replies[path]
            if reply is None:
                return NOT_DONE_YET
            return self.say(request, *reply)
        if self.sealed:
            return self.fail(request, 503, "Vault is sealed")
        if request.getHeader("x-vault-namespace") != (self.namespace or None):
            return self.fail(request, 403, "permission denied")
        if request.getHeader("x-vault-token") != TOKEN:
            return self.fail(request, 403, "permission denied")
        document: dict[str, Any] = {}
        if request.method == b"POST":
            if request.getHeader("content-type") != "application/json":
                return self.fail(request, 400, "error parsing JSON")
            document = json.loads(request.content.read())
        routes = {
            f"GET /v1/{self.mount}/keys/{self.name}": self.key,
            f"POST /v1/{self.mount}/sign/{self.name}": self.sign,
            "GET /v1/auth/token/lookup-self": self.look_up,
            "POST /v1/auth/token/renew-self": self.renew,
        }
        handler = routes.get(self.asked[-1])
        if handler is None:
            return self.fail(request, 404)
        return handler(request, document)

    def say(self, request: Any, status: int, document: object) -> bytes:
        request.setResponseCode(status)
        request.setHeader("Content-Type", "application/json")
        return json.dumps(document).encode()

    def fail(self, request: Any, status: int, *errors: str) -> bytes:
        return self.say(request, status, {"errors": list(errors)})

    def key(self, request: Any, document: dict[str, Any]) -> bytes:
        data = {
            "name": self.name,
            "type": "rsa-2048" if isinstance(self.versions[1], rsa.RSAPrivateKey) else "ecdsa-p256",
            "keys": {
                str(number): {"creation_time": "2026-01-01T00:00:00Z", "public_key": public_pem(key)}
                for number, key in self.versions.items()
            },
            "latest_version": max(self.versions),
            "min_encryption_version": self.min_encryption_version,
            "supports_signing": True,
        }
        return self.say(request, 200, {"data": data, "auth": None})

    def sign(self, request: Any, document: dict[str, Any]) -> bytes:
        try:
            digest = base64.b64decode(document["input"], validate=True)
        except ValueError:
            return self.fail(request, 400, "unable to decode input as base64")
        algorithm = HASHES[document["hash_algorithm"]]()
        version = document.get("key_version", 0) or max(self.versions)
        if version not in self.versions:
            return self.fail(request, 400, "requested version for signing does not exist")
        if version < self.min_encryption_version:
            return self.fail(request, 400, "requested version for signing is less than the minimum")
        if document.get("prehashed") is not True or len(digest) != algorithm.digest_size:
            return self.fail(request, 400, "prehashed data of another length than the hash algorithm's")
        key = self.versions[version]
        if isinstance(key, rsa.RSAPrivateKey):
            if document.get("signature_algorithm") != "pkcs1v15":  # Vault's default is PSS
                signature = key.sign(digest, padding.PSS(padding.MGF1(algorithm), 32), Prehashed(algorithm))
            else:
                signature = key.sign(digest, padding.PKCS1v15(), Prehashed(algorithm))
        else:
            signature = key.sign(digest, ec.ECDSA(Prehashed(algorithm)))
            if self.raw_signatures:
                size = (key.curve.key_size + 7) // 8
                signature = b"".join(number.to_bytes(size, "big") for number in decode_dss_signature(signature))
        text = base64.b64encode(signature).decode()
        data = {"signature": f"vault:v{version}:{text if self.padded else text.rstrip('=')}", "key_version": version}
        return self.say(request, 200, {"data": data})

    def look_up(self, request: Any, document: dict[str, Any]) -> bytes:
        data = {"id": TOKEN, "ttl": self.ttl, "renewable": self.renewable, "policies": ["identree"]}
        return self.say(request, 200, {"data": data})

    def renew(self, request: Any, document: dict[str, Any]) -> bytes:
        if not self.renewable:
            return self.fail(request, 400, "lease is not renewable")
        granted = self.longest or self.ttl
        return self.say(request, 200, {"auth": {"client_token": TOKEN, "lease_duration": granted, "renewable": True}})
