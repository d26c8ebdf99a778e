"""Keys and tokens: the vectors of the contract, and what must be refused."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core import tokens
from identree.core.challenge import GraceSession
from identree.core.errors import BadCsrfToken, FormExpired, Invalid, SessionExpired

SECRET = "0123456789abcdef0123456789abcdef"
RAW = SECRET.encode()
ID = "00112233445566778899aabbccddeeff"
HOST = "web01.example.com"
TS = 1767225600
ROTATE = "2026-01-01T00:00:00Z"
REVOKE = "2026-03-01T00:00:00Z"
KEYS = tokens.Keys.from_secrets(shared=SECRET, session="", hmac="")


class DerivationTests(SynchronousTestCase):
    def test_purposes(self) -> None:
        """spec/http-api section 4.9 and spec/configuration section 7: the subkeys."""
        vectors = {
            "session": "f08e9df8942bedb716a2aa254b933b1b3a72448d85c3a92620b69109d9927555",
            "csrf": "7e22c81e61df15b6cc9e71019566801a2895f02da410ba347aa1e618ec6b7991",
            "onetap": "d71770a50285f57f78a186de8c92473f53729060f0244b63170e5469d4e0a120",
            "approval_status": "27d2fd0b84aa951c4a0b344790f3f2f743cb5ec22895e51273e8d4e2dbfbbd1d",
            "grace-session": "fc8d756edb5e0851582ee78688641e0dfb2abe6e8d04153ddfbcfecdc90afa1e",
        }
        for purpose, expected in vectors.items():
            self.assertEqual(tokens.derive(RAW, purpose).hex(), expected)

    def test_base_order(self) -> None:
        """The token base is the first non-empty of override, session secret, shared secret."""
        of = tokens.Keys.from_secrets
        self.assertEqual(of(shared="a", session="b", hmac="c").session, tokens.derive(b"c", "session"))
        self.assertEqual(of(shared="a", session="b", hmac="").csrf, tokens.derive(b"b", "csrf"))
        self.assertEqual(of(shared="a", session="", hmac="").status, tokens.derive(b"a", "approval_status"))

    def test_grace_ignores_the_override(self) -> None:
        """Grace sessions are signed with the session or shared secret, never with the override."""
        of = tokens.Keys.from_secrets
        self.assertEqual(of(shared="a", session="b", hmac="c").grace, tokens.derive(b"b", "grace-session"))
        self.assertEqual(of(shared="a", session="", hmac="c").grace, tokens.derive(b"a", "grace-session"))
        self.assertEqual(of(shared="", session="", hmac="c").grace, b"")

    def test_no_secret(self) -> None:
        """Nothing is signed with the empty key."""
        self.assertRaises(ValueError, tokens.Keys.from_secrets, shared="", session="", hmac="")

    def test_no_keys_in_repr(self) -> None:
        """A traceback that shows the keys' repr shows no key."""
        self.assertEqual(repr(KEYS), "Keys()")

    def test_same(self) -> None:
        """Equal texts are equal as bytes too; different lengths and lone surrogates are merely different."""
        self.assertTrue(tokens.same("geheim", b"geheim"))
        self.assertFalse(tokens.same("geheim", "geheimnis"))
        self.assertFalse(tokens.same("\ud800", "geheim"))


class SessionCookieTests(SynchronousTestCase):
    def test_vectors(self) -> None:
        """The two published cookies."""
        self.assertEqual(
            tokens.session_cookie(KEYS, "alice", "admin", TS, ID),
            f"alice:admin:{TS}:{ID}:0b20e5d127bdef45c9bdcd5a80ca716d6b255308c801430d7ae8caaf057e69fc",
        )
        nonce = "abcdef1234567890abcdef1234567890"
        self.assertEqual(
            tokens.session_cookie(KEYS, "alice", "admin", 1700000000, nonce).rpartition(":")[2],
            "061aea5f594e29b657fbc098074404ce2091a062f858f3e2d546be57eef524ea",
        )

    def test_read(self) -> None:
        """A cookie says who, with what role, since when, and its nonce."""
        cookie = tokens.session_cookie(KEYS, "alice", "user", TS, ID)
        self.assertEqual(
            tokens.read_session_cookie(KEYS, cookie, TS + 1800),
            tokens.SessionCookie(username="alice", role="user", issued_at=TS, nonce=ID),
        )

    def test_age(self) -> None:
        """One second past the half hour, or one second early, there is no session."""
        cookie = tokens.session_cookie(KEYS, "alice", "user", TS, ID)
        for now in (TS + 1801, TS - 1):
            self.assertRaises(SessionExpired, tokens.read_session_cookie, KEYS, cookie, now)

    def test_signed_nonsense(self) -> None:
        """A right signature does not make up for a wrong part."""
        for signed in (
            f"alice:root:{TS}:{ID}",
            f"al ice:user:{TS}:{ID}",
            f"alice:user:{TS}:{ID[:-1]}",
            f"alice:user:+{TS}:{ID}",
            f"alice:user:{TS}\n:{ID}",
            "alice:user:١٧٦٧٢٢٥٦٠٠:" + ID,
            f"alice:user:{TS}",
            f"alice:user:{TS}:{ID}:{ID}",
        ):
            value = f"{signed}:{tokens.hexmac(KEYS.session, 'session:' + signed)}"
            self.assertRaises(SessionExpired, tokens.read_session_cookie, KEYS, value, TS)

    @given(st.text(max_size=200) | st.builds(":".join, st.lists(st.text(max_size=70), max_size=7)))
    def test_noise(self, value: str) -> None:
        """Whatever is sent, the answer is that there is no session."""
        self.assertRaises(SessionExpired, tokens.read_session_cookie, KEYS, value, TS)

    def test_one_bit(self) -> None:
        """Any changed character of the signature, and upper case, voids it."""
        cookie = tokens.session_cookie(KEYS, "alice", "user", TS, ID)
        signed, _, mac = cookie.rpartition(":")
        for bad in (mac[:-1] + ("0" if mac[-1] != "0" else "1"), mac.upper(), "", mac + "0"):
            self.assertRaises(SessionExpired, tokens.read_session_cookie, KEYS, f"{signed}:{bad}", TS)


class CsrfTests(SynchronousTestCase):
    def test_vectors(self) -> None:
        """The two published tokens."""
        self.assertEqual(
            tokens.csrf_token(KEYS, "alice", TS), "ee23c46dfc01ed5c5b23cab7e2fdc667fd42787e6a33a19e2db5666efd838391"
        )
        self.assertEqual(
            tokens.csrf_token(KEYS, "alice", 1700000000),
            "eb0fa89769dfd5bcd7ec93539ff0efbecfcc8b24b983413a0d420e0ffacde9e2",
        )

    def check(self, token: str, ts: str, now: int = TS, username: str = "alice") -> None:
        tokens.check_csrf(KEYS, username, token, ts, now)

    def test_window(self) -> None:
        """A form is good from its making until half an hour later, both included."""
        token = tokens.csrf_token(KEYS, "alice", TS)
        self.check(token, str(TS))
        self.check(token, str(TS), TS + 1800)
        self.assertRaises(FormExpired, self.check, token, str(TS), TS + 1801)
        self.assertRaises(FormExpired, self.check, token, str(TS), TS - 1)

    def test_not_a_time(self) -> None:
        """A timestamp that is no integer has its own message."""
        for ts in ("", "now", "1.5", " 1", "1_0", "١٧", "1" * 40):
            e = self.assertRaises(Invalid, self.check, "x", ts)
            self.assertEqual(e.key, "invalid_timestamp")

    def test_negative_time(self) -> None:
        """A negative integer is an integer, and long expired."""
        self.assertRaises(FormExpired, self.check, "x", "-5")

    def test_other_person(self) -> None:
        """Bob's form is not Alice's."""
        token = tokens.csrf_token(KEYS, "bob", TS)
        self.assertRaises(BadCsrfToken, self.check, token, str(TS))

    def test_leading_zero(self) -> None:
        """The time must be written as it was signed."""
        self.assertRaises(BadCsrfToken, self.check, tokens.csrf_token(KEYS, "alice", TS), f"0{TS}")


class OneTapTests(SynchronousTestCase):
    def test_vectors(self) -> None:
        """The published tokens, with and without host."""
        for host, expires, mac in (
            (HOST, 1767225720, "5bfa5a1f7244caecd6af636f95396e8990c40b6bf55ca503ee8d6c2982de11dd"),
            ("", 1767225720, "a3bf04341ae8aba74a68ead3466fba97787dd3ee9be7788e8ad3a9048c79b59e"),
            ("web01", 1700000000, "144b68346db9551f82d2d672b18a6801d0e23930adbf85501a8637ba3d7c55ff"),
        ):
            self.assertEqual(tokens.one_tap_token(KEYS, ID, "alice", expires, host), f"{ID}.{expires}.{mac}")

    def test_round_trip(self) -> None:
        """A token that is read back is valid for its owner and host only."""
        one_tap = tokens.read_one_tap(tokens.one_tap_token(KEYS, ID, "alice", TS, HOST))
        self.assertEqual((one_tap.id, one_tap.expires_at), (ID, TS))
        self.assertTrue(tokens.one_tap_valid(KEYS, one_tap, "alice", HOST))
        self.assertFalse(tokens.one_tap_valid(KEYS, one_tap, "bob", HOST))
        self.assertFalse(tokens.one_tap_valid(KEYS, one_tap, "alice", ""))

    def test_form(self) -> None:
        """Anything but three good parts is refused."""
        for token in ("", ID, f"{ID}.1", f"{ID}.x.{'0' * 64}", f"{ID.upper()}.1.{'0' * 64}", f"{ID}.1.{'0' * 64}.1"):
            self.assertRaises(Invalid, tokens.read_one_tap, token)


class StatusTokenTests(SynchronousTestCase):
    def test_message(self) -> None:
        """The message of the contract, byte for byte."""
        self.assertEqual(
            tokens.status_message(ID, "approved", "alice", ROTATE, REVOKE, "r"),
            b"32:00112233445566778899aabbccddeeff8:approved5:alice20:2026-01-01T00:00:00Zr20:2026-03-01T00:00:00Z",
        )

    def test_lengths_in_bytes(self) -> None:
        """Lengths count UTF-8 bytes."""
        self.assertIn("8:grün€".encode(), tokens.status_message(ID, "approved", "grün€", "", "", ""))

    def test_form_a(self) -> None:
        """What deployed agents accept: raw key, ``r``."""
        for status, rotate, revoke, expected in (
            ("approved", "", "", "5affdfb4f1f4dfcb41a30ae78fd4da788bd2e93170c818794f3ff8bc6d22118a"),
            ("denied", "", "", "7deb28c11d9e2e334971e459d5ec6413e3f4ed970dd958aa84ac9860ec560f71"),
            ("approved", ROTATE, "", "49880ad69f7dfb0c41914d608bc577b8082fb91f6724507c175d1b9c2183a9f7"),
            ("approved", "", REVOKE, "d54da2ed9ec35742489d100dc8d74d5d38989a66f8e97dc39ff4c1f2da33aafb"),
            ("approved", ROTATE, REVOKE, "23636722e2572b392dbba7984f10983de968baea16cbe3a266141c5e005fbb73"),
        ):
            self.assertEqual(tokens.status_token_for_host(RAW, ID, status, "alice", rotate, revoke), expected)

    def test_form_s(self) -> None:
        """What deployed servers send: derived key, empty."""
        for status, rotate, revoke, expected in (
            ("approved", "", "", "cd5d8b1f56801752706672ec9907b9b482e05dea800408033717f248dcb0c1fc"),
            ("denied", "", "", "afc6f894614750e4c9f0a7520707645bd7360b048e145b1e3e439aa6f6729df0"),
            ("approved", ROTATE, "", "4dd00af3945b911bd56612c93d2086481cf72e8eb0d9a733a5069f74a7f8a417"),
            ("approved", "", REVOKE, "8b8c965cbba114be5f92ad99d56f3e1930deb6d579180e1a184d9db7ba7c8829"),
            ("approved", ROTATE, REVOKE, "2f2b5f96d66511dbd57b57198180af995eb62b02bd09d1ab0b71369712c308d1"),
        ):
            self.assertEqual(tokens.status_token_derived(KEYS, ID, status, "alice", rotate, revoke), expected)

    def verified(self, token: str, status: str = "approved", secret: bytes = RAW) -> bool:
        return tokens.verify_status_token(secret, token, ID, status, "alice", ROTATE, REVOKE)

    def test_verify_all_forms(self) -> None:
        """Raw with ``r``, derived without and derived with are accepted; raw without is not."""
        derived = tokens.derive(RAW, "approval_status")
        for key, p, expected in ((RAW, "r", True), (derived, "", True), (derived, "r", True), (RAW, "", False)):
            token = tokens.hexmac(key, tokens.status_message(ID, "approved", "alice", ROTATE, REVOKE, p))
            self.assertEqual(self.verified(token), expected)

    def test_verify_refuses(self) -> None:
        """Empty tokens, other statuses and an empty secret verify nothing."""
        token = tokens.status_token_for_host(RAW, ID, "approved", "alice", ROTATE, REVOKE)
        self.assertFalse(self.verified(""))
        self.assertFalse(self.verified(token, "denied"))
        self.assertFalse(self.verified(tokens.hexmac(b"", b""), secret=b""))

    def test_no_secret_no_token(self) -> None:
        """Without the host's secret there is nothing to sign with."""
        self.assertEqual(tokens.status_token_for_host(b"", ID, "approved", "alice", "", ""), "")


class GraceTests(SynchronousTestCase):
    def session(self, mac: str) -> GraceSession:
        expires_at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=TS)
        return GraceSession(username="alice", hostname=HOST, expires_at=expires_at, mac=mac)

    def test_vectors(self) -> None:
        """The three published rows."""
        for host, expiry, mac in (
            (HOST, TS, "1a2e81bc8c3be6652657e343f153a20b5101f7189401a10016120c8dba6fcfc4"),
            ("web01", 1700000000, "120f2ced4c67714505b55658dfdc265597ccd4b2b385da2febab6f0785cbe88f"),
            ("", 1700000000, "42bc31a80b26645338d14e6f96ff73ff8a32e8411facb63538daced7266e5d9d"),
        ):
            self.assertEqual(tokens.grace_mac(KEYS.grace, "alice", host, expiry), mac)

    def test_valid(self) -> None:
        """A row is valid with its own signature only."""
        self.assertTrue(tokens.grace_valid(KEYS.grace, self.session(tokens.grace_mac(KEYS.grace, "alice", HOST, TS))))
        for mac in ("", tokens.grace_mac(KEYS.grace, "alice", HOST, TS + 1)):
            self.assertFalse(tokens.grace_valid(KEYS.grace, self.session(mac)))

    def test_without_key(self) -> None:
        """Without a secret rows are unsigned, and every row is accepted."""
        self.assertEqual(tokens.grace_mac(b"", "alice", HOST, TS), "")
        self.assertTrue(tokens.grace_valid(b"", self.session("anything")))


class OtherTokenTests(SynchronousTestCase):
    def test_escrow(self) -> None:
        """The published escrow tokens."""
        self.assertEqual(
            tokens.escrow_token(RAW, HOST, TS), "c1305d6de2c3125ed707cc6025bac42a7ab58a5af293e546f41a471aa948208a"
        )
        self.assertEqual(
            tokens.escrow_token(RAW, "web01", 1700000000),
            "026f89c7aed84e3b09bed69840f4c7fcebd9538aaf7db0e8e6c7799a4ef72259",
        )

    def test_bind_password(self) -> None:
        """The published LDAP passwords of hosts."""
        self.assertEqual(
            tokens.host_bind_password(RAW, HOST), "98426bea2a4215d6d1247f44cd0f692c7db1afe20a90e2ef87d752d4aeca4419"
        )
        self.assertEqual(
            tokens.host_bind_password(RAW, "web01"), "d745c6ec5b609c81c263fe2b2daf5166877f293ff3b52f9343ba06feda988b55"
        )

    def test_webhook(self) -> None:
        """The published signature; the prefix is optional, upper-case hex and no secret are refused."""
        secret, body = b"whsecwhsecwhsecwhsecwhsecwhsec01", b'{"event":"user.updated"}'
        signature = "sha256=2ff7b5de70a35870abe0088c9892ff1162eb69748264a98bcbcf9d2d33933d2b"
        self.assertEqual(tokens.webhook_signature(secret, body), signature)
        self.assertTrue(tokens.webhook_valid(secret, signature, body))
        self.assertTrue(tokens.webhook_valid(secret, signature[7:], body))
        self.assertFalse(tokens.webhook_valid(secret, "sha256=" + signature[7:].upper(), body))
        self.assertFalse(tokens.webhook_valid(b"", tokens.webhook_signature(b"", body), body))

    def test_api_keys(self) -> None:
        """A key is known when it is in the list; the empty one never is."""
        self.assertTrue(tokens.api_key_known(["a" * 32, "b" * 32], "b" * 32))
        self.assertFalse(tokens.api_key_known(["a" * 32], "b" * 32))
        self.assertFalse(tokens.api_key_known([""], ""))
