"""Status tokens: the vectors of spec/host-agent section 6 and spec/http-api section 4.9."""

from __future__ import annotations

import unittest

from identree.agent import tokens

SECRET = "0123456789abcdef0123456789abcdef"
ID = "00112233445566778899aabbccddeeff"
ROTATE, REVOKE = "2026-01-01T00:00:00Z", "2026-03-01T00:00:00Z"

RAW = {
    ("approved", "", ""): "5affdfb4f1f4dfcb41a30ae78fd4da788bd2e93170c818794f3ff8bc6d22118a",
    ("denied", "", ""): "7deb28c11d9e2e334971e459d5ec6413e3f4ed970dd958aa84ac9860ec560f71",
    ("approved", ROTATE, ""): "49880ad69f7dfb0c41914d608bc577b8082fb91f6724507c175d1b9c2183a9f7",
    ("approved", "", REVOKE): "d54da2ed9ec35742489d100dc8d74d5d38989a66f8e97dc39ff4c1f2da33aafb",
    ("approved", ROTATE, REVOKE): "23636722e2572b392dbba7984f10983de968baea16cbe3a266141c5e005fbb73",
}
DERIVED = {
    ("approved", "", ""): "cd5d8b1f56801752706672ec9907b9b482e05dea800408033717f248dcb0c1fc",
    ("denied", "", ""): "afc6f894614750e4c9f0a7520707645bd7360b048e145b1e3e439aa6f6729df0",
    ("approved", ROTATE, ""): "4dd00af3945b911bd56612c93d2086481cf72e8eb0d9a733a5069f74a7f8a417",
    ("approved", "", REVOKE): "8b8c965cbba114be5f92ad99d56f3e1930deb6d579180e1a184d9db7ba7c8829",
    ("approved", ROTATE, REVOKE): "2f2b5f96d66511dbd57b57198180af995eb62b02bd09d1ab0b71369712c308d1",
}


class TokenTests(unittest.TestCase):
    def test_message(self) -> None:
        """The signed text of the last raw vector."""
        self.assertEqual(
            tokens.message(ID, "approved", "alice", ROTATE, REVOKE, "r").decode(),
            f"32:{ID}8:approved5:alice20:{ROTATE}r20:{REVOKE}",
        )

    def test_lengths_are_bytes(self) -> None:
        """Lengths count UTF-8 bytes."""
        self.assertIn("6:älice".encode(), tokens.message(ID, "approved", "älice", "", "", "r"))

    def test_vectors(self) -> None:
        """Every published token is verified, in the raw and in the derived form."""
        for table in (RAW, DERIVED):
            for (status, rotate, revoke), token in table.items():
                self.assertTrue(tokens.verify([token], SECRET, ID, status, "alice", rotate, revoke), (status, rotate))

    def test_derived_with_mark(self) -> None:
        """The third form: derived key and marked revocation."""
        token = tokens.sign(tokens.derived_key(SECRET), ID, "approved", "alice", "", REVOKE, "r")
        self.assertTrue(tokens.verify([token], SECRET, ID, "approved", "alice", "", REVOKE))

    def test_any_field(self) -> None:
        """One good token among several is enough."""
        self.assertTrue(tokens.verify(["", "0" * 64, RAW["approved", "", ""]], SECRET, ID, "approved", "alice"))

    def test_refused(self) -> None:
        """Empty, other status, user, challenge, secret, upper case, non-ASCII: none verifies."""
        good = RAW["approved", "", ""]
        for offered, secret, challenge, status, user in (
            ("", SECRET, ID, "approved", "alice"),
            (good, SECRET, ID, "denied", "alice"),
            (good, SECRET, ID, "approved", "bob"),
            (good, SECRET, ID[::-1], "approved", "alice"),
            (good, SECRET[::-1], ID, "approved", "alice"),
            (good.upper(), SECRET, ID, "approved", "alice"),
            ("ä\ud800" * 32, SECRET, ID, "approved", "alice"),
        ):
            self.assertFalse(tokens.verify([offered], secret, challenge, status, user), offered)

    def test_moved_timestamps(self) -> None:
        """In the marked form a rotation time does not pass for a revocation time."""
        self.assertFalse(tokens.verify([RAW["approved", ROTATE, ""]], SECRET, ID, "approved", "alice", "", ROTATE))
