"""The way in by a kept token (spec/host-agent section 5.1 A), on the real archive."""

from __future__ import annotations

import time
import unittest
from pathlib import Path

from tests.agent.harness import Helper, interpreters
from tests.agent.scripted import Answer, Request, Script, approved, created, pending, token
from tests.agent.test_jwt import ec_jwk, make, rsa_jwk

HOST = "web01.example.com"


class KeptTokenTests(unittest.TestCase):
    """:ivar grace: the answer to the question whether the token counts. :ivar polls: answers to polls."""

    def setUp(self) -> None:
        self.grace = Answer(200, {"grace_remaining": 0})
        self.create: Answer | None = None
        self.polls = [approved()]

    def helper(self) -> Helper:
        script: Script = self.answer
        helper = Helper(script)
        self.addCleanup(helper.close)
        assert helper.server is not None
        self.issuer = f"{helper.server.url}/idp"
        self.cache = Path(helper.directory) / "cache"
        helper.conf |= {
            "IDENTREE_TOKEN_CACHE_ISSUER": self.issuer,
            "IDENTREE_TOKEN_CACHE_CLIENT_ID": "identree",
            "IDENTREE_TOKEN_CACHE_DIR": str(self.cache),
        }
        return helper

    def answer(self, request: Request) -> Answer:
        if request.path == "/idp/.well-known/openid-configuration":
            return Answer(200, {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys"})
        if request.path == "/idp/keys":
            return Answer(200, {"keys": [rsa_jwk(), ec_jwk()]})
        if request.path == "/api/grace-status":
            return self.grace
        if request.method == "POST":
            return self.create or created()
        return self.polls.pop(0) if len(self.polls) > 1 else self.polls[0]

    def token(self, left: int = 4000) -> str:
        claims = {"iss": self.issuer, "aud": "identree", "exp": int(time.time()) + left, "preferred_username": "alice"}
        return make("RS256", claims)

    @property
    def file(self) -> Path:
        return self.cache / HOST / "alice"

    def kept(self) -> Helper:
        """A host on which a first sudo has kept the token that came with the approval."""
        helper = self.helper()
        self.polls = [pending(), approved(id_token=self.token())]
        self.assertEqual(helper.run(), 0, helper.output)
        self.assertTrue(self.file.exists(), helper.output)
        assert helper.server is not None
        helper.server.requests.clear()
        return helper

    def challenges(self, helper: Helper) -> int:
        assert helper.server is not None
        return len([each for each in helper.server.seen("POST") if each.path == "/api/challenge"])

    def again(self, helper: Helper) -> int:
        helper._raw["output"] = b""
        self.polls = [approved()]
        return helper.run()

    def test_let_in(self) -> None:
        """The second sudo asks for no approval, on every Python."""
        helper = self.kept()
        for version, path in interpreters().items():
            helper._raw["output"] = b""
            self.assertEqual(helper.run(python=path), 0, (version, helper.output))
            self.assertIn("session expires in 1h", helper.output)
        self.assertEqual(self.challenges(helper), 0)

    def test_revoked(self) -> None:
        """A revoked token is forgotten, and an approval is asked for."""
        helper = self.kept()
        self.grace = Answer(200, {"grace_remaining": 0, "revoke_tokens_before": "2099-01-01T00:00:00Z"})
        self.assertEqual(self.again(helper), 0)
        self.assertEqual(self.challenges(helper), 1)
        self.assertFalse(self.file.exists())

    def test_refused(self) -> None:
        """A refusal keeps out; no challenge is made behind it."""
        helper = self.kept()
        self.grace = Answer(401, {})
        self.assertEqual(self.again(helper), 1)
        self.assertIn("IDENTREE_SHARED_SECRET", helper.output)
        self.assertEqual(self.challenges(helper), 0)

    def test_server_gone(self) -> None:
        """An unreachable server makes a kept token no worse than none: the line is that of any sudo."""
        helper = self.kept()
        assert helper.server is not None
        helper.server.stop()
        self.assertEqual(self.again(helper), 1)
        self.assertIn("cannot be reached", helper.output)
        self.assertTrue(self.file.exists())

    def test_approved_at_once(self) -> None:
        """A verified approval that carries a revocation forgets the older token."""
        helper = self.kept()
        self.grace = Answer(503, {})
        revoke = "2099-01-01T00:00:00Z"
        self.create = created(
            status="approved", approval_token=token("approved", revoke=revoke), revoke_tokens_before=revoke
        )
        self.assertEqual(self.again(helper), 0, helper.output)
        self.assertFalse(self.file.exists())

    def test_pushed_off(self) -> None:
        """The server's setting keeps a token from being kept."""
        helper = self.helper()
        self.create = created(client_config={"token_cache_enabled": False})
        self.polls = [approved(id_token=self.token())]
        self.assertEqual(helper.run(), 0, helper.output)
        self.assertFalse(self.file.exists())

    def test_forged_approval(self) -> None:
        """A token that comes with a forged approval is not kept."""
        helper = self.helper()
        self.polls = [Answer(200, {"status": "approved", "approval_token": "0" * 64, "id_token": self.token()})]
        self.assertEqual(helper.run(), 1)
        self.assertFalse(self.file.exists())
