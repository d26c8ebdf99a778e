"""What messages show of what somebody else said."""

from __future__ import annotations

from urllib.parse import quote

from twisted.trial.unittest import SynchronousTestCase

from identree.app.escrow import SHOWN_BYTES
from identree.clients.escrow.base import LOOKED_AT_BYTES, shown

SECRET = 'a"b/ü c+d'


class ShownTests(SynchronousTestCase):
    def test_forms(self) -> None:
        """A secret is struck out as it is, in JSON, and in an address."""
        for form in (SECRET, 'a\\"b/\\u00fc c+d', 'a\\"b/ü c+d', quote(SECRET, safe=""), "a%22b%2F%C3%BC+c%2Bd"):
            self.assertEqual(shown(f"no {form}!".encode(), ["", SECRET]), "no ***!")

    def test_one_line(self) -> None:
        """Nothing that moves the cursor or begins another line."""
        self.assertEqual(shown(b"\n a\r\n\x1b[31mb\xe2\x80\xa8c \xff", []), "a [31mb c \ufffd")

    def test_length(self) -> None:
        """At most so many bytes, of whole characters."""
        said = shown("ü".encode() * SHOWN_BYTES, [])
        self.assertEqual((len(said.encode()), set(said)), (SHOWN_BYTES, {"ü"}))

    def test_cut_secret(self) -> None:
        """Where the part that is looked at ends inside a secret, nothing of it is left."""
        secret = "s" + "x" * 40
        for offset in range(len(secret)):
            raw = b"." * offset + (secret.encode() * 1000)
            self.assertNotIn("x", shown(raw[: LOOKED_AT_BYTES + 5000], [secret]))
