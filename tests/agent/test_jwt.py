"""Tokens of a provider: what ``cryptography`` signs is believed, and nothing else."""

from __future__ import annotations

import hashlib
import hmac
import json
import unittest
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from identree.agent import jwt

RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
HASHES = {"RS256": hashes.SHA256(), "RS384": hashes.SHA384(), "RS512": hashes.SHA512()}
CLAIMS = {"sub": "alice", "aud": "identree"}


def number(value: int) -> str:
    return jwt.encode(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def rsa_jwk(key: rsa.RSAPrivateKey = RSA_KEY, **more: object) -> dict[str, object]:
    public = key.public_key().public_numbers()
    return {"kty": "RSA", "kid": "r1", "n": number(public.n), "e": number(public.e), **more}


def ec_jwk(key: ec.EllipticCurvePrivateKey = EC_KEY, **more: object) -> dict[str, object]:
    public = key.public_key().public_numbers()
    x, y = (jwt.encode(value.to_bytes(32, "big")) for value in (public.x, public.y))
    return {"kty": "EC", "crv": "P-256", "kid": "e1", "x": x, "y": y, **more}


def part(value: object) -> str:
    return jwt.encode(json.dumps(value).encode())


def ec_signature(key: ec.EllipticCurvePrivateKey, signed: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def make(algorithm: str, claims: object = CLAIMS, *, kid: str | None = "", key: Any = None, **header: object) -> str:
    """A token; its key id is the one of the key, unless another is given."""
    kid = {"ES256": "e1"}.get(algorithm, "r1") if kid == "" else kid
    head = part({"alg": algorithm, **({"kid": kid} if kid is not None else {}), **header})
    signed = f"{head}.{part(claims)}".encode()
    if algorithm == "ES256":
        signature = ec_signature(key or EC_KEY, signed)
    else:
        signature = (key or RSA_KEY).sign(signed, padding.PKCS1v15(), HASHES[algorithm])
    return f"{signed.decode()}.{jwt.encode(signature)}"


KEYS: list[object] = [rsa_jwk(), ec_jwk()]
ALL = list(jwt.ALGORITHMS)


class GoodTests(unittest.TestCase):
    def test_every_algorithm(self) -> None:
        """What another implementation signed is believed, by each algorithm."""
        for algorithm in jwt.ALGORITHMS:
            with self.subTest(algorithm):
                self.assertEqual(jwt.verify(make(algorithm), KEYS, ALL), CLAIMS)

    def test_many_curve_signatures(self) -> None:
        """Fresh keys, many messages: the curve's arithmetic has no corner that only some numbers meet."""
        for each in range(20):
            key = ec.generate_private_key(ec.SECP256R1())
            digest = hashlib.sha256(b"%d" % each).digest()
            public = key.public_key().public_numbers()
            signature = ec_signature(key, b"%d" % each)
            self.assertTrue(jwt.es256(public.x, public.y, digest, signature))
            self.assertFalse(jwt.es256(public.x, public.y, digest[::-1], signature))

    def test_key_that_is_the_base_point(self) -> None:
        """The private keys 1, 2 and n - 1, whose sums run through equal points and through infinity."""
        for private in (1, 2, jwt.N - 1):
            key = ec.derive_private_key(private, ec.SECP256R1())
            public = key.public_key().public_numbers()
            self.assertTrue(
                jwt.es256(public.x, public.y, hashlib.sha256(b"m").digest(), ec_signature(key, b"m")), private
            )

    def test_without_key_id(self) -> None:
        """Without id every fitting key is tried."""
        other = rsa_jwk(rsa.generate_private_key(65537, 2048), kid="r0")
        self.assertEqual(jwt.verify(make("RS256", kid=None), [other, *KEYS], ALL), CLAIMS)

    def test_other_sizes(self) -> None:
        """A key of 3072 bits, and an exponent of 3."""
        for key in (rsa.generate_private_key(65537, 3072), rsa.generate_private_key(3, 2048)):
            self.assertEqual(jwt.verify(make("RS256", key=key), [rsa_jwk(key)], ALL), CLAIMS)


class BadTests(unittest.TestCase):
    def refused(self, token: str, keys: object = None, advertised: list[str] | None = None) -> jwt.BadToken:
        with self.assertRaises(jwt.BadToken) as caught:
            jwt.verify(token, KEYS if keys is None else keys, ALL if advertised is None else advertised)
        return caught.exception

    def test_no_algorithm(self) -> None:
        """``none`` in any spelling, with and without a signature."""
        for name in ("none", "None", "NONE", "nOnE", "", None):
            for tail in ("", jwt.encode(b"x")):
                with self.subTest((name, tail)):
                    self.refused(f"{part({'alg': name})}.{part(CLAIMS)}.{tail}")

    def test_public_key_as_secret(self) -> None:
        """HS256 with the public key as secret: the oldest confusion."""
        head = f"{part({'alg': 'HS256', 'kid': 'r1'})}.{part(CLAIMS)}"
        key = str(rsa_jwk()["n"])
        forged = hmac.new(key.encode(), head.encode(), "sha256").digest()
        self.refused(f"{head}.{jwt.encode(forged)}", advertised=[*ALL, "HS256"])

    def test_not_advertised(self) -> None:
        """An algorithm that the provider does not use."""
        self.refused(make("RS512"), advertised=["RS256"])

    def test_other_algorithm_of_the_key(self) -> None:
        """A key that is made for another algorithm or for encryption, or a curve's key for RSA."""
        for keys in (
            [rsa_jwk(alg="RS512")],
            [rsa_jwk(use="enc")],
            [rsa_jwk(key_ops=["encrypt"])],
            [ec_jwk(kid="r1")],
            [rsa_jwk(kty="oct")],
        ):
            with self.subTest(keys):
                self.refused(make("RS256"), keys)

    def test_extensions(self) -> None:
        """What it demands to be understood is not."""
        self.refused(make("RS256", crit=["b64"], b64=False))
        self.refused(make("RS256", crit=[]))

    def test_unknown_key(self) -> None:
        """A key id that is not there is told apart: the keys may have changed."""
        self.assertIsInstance(self.refused(make("RS256", kid="other")), jwt.UnknownKey)
        self.assertIsInstance(self.refused(make("RS256", kid=None), [ec_jwk()]), jwt.UnknownKey)
        self.assertNotIsInstance(
            self.refused(make("ES256", key=ec.generate_private_key(ec.SECP256R1()))), jwt.UnknownKey
        )

    def test_changed(self) -> None:
        """Another header, other claims, another signature."""
        for algorithm in ("RS256", "ES256"):
            head, body, tail = make(algorithm).split(".")
            header = jwt._object(head)
            raw = bytearray(jwt.decode(tail))
            raw[40] ^= 1
            self.refused(f"{head}.{part({**CLAIMS, 'sub': 'mallory'})}.{tail}")
            self.refused(f"{part({**header, 'typ': 'x'})}.{body}.{tail}")
            self.refused(f"{head}.{body}.{jwt.encode(bytes(raw))}")

    def test_shape(self) -> None:
        """Not three parts, padding, characters of the other alphabet, loose bits, white space."""
        token = make("RS256")
        head, body, tail = token.split(".")
        for bad in (
            "",
            ".",
            "..",
            f"{head}.{body}",
            f"{token}.x",
            f"{head}.{body}.",
            f"{head}.{body}.{tail}=",
            " " + token,
        ):
            with self.subTest(bad[:40]):
                self.refused(bad)
        loose = tail[:-1] + chr(ord(tail[-1]) + 1)  # 256 bytes: the last character has two bits that mean nothing
        self.assertEqual(len(jwt.decode(tail)) % 3, 1)
        self.refused(f"{head}.{body}.{loose}")

    def test_names_twice(self) -> None:
        """A header or claims with one name twice are nobody's."""
        twice = jwt.encode(b'{"alg":"none","alg":"RS256"}')
        self.refused(f"{twice}.{part(CLAIMS)}.{jwt.encode(b'x')}")
        claims = jwt.encode(b'{"sub":"a","sub":"b"}')
        signed = f"{part({'alg': 'RS256'})}.{claims}"
        signature = RSA_KEY.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        self.refused(f"{signed}.{jwt.encode(signature)}")

    def test_no_object(self) -> None:
        """Claims that are no object, though signed."""
        for claims in ([], "x", 1, None):
            self.refused(make("RS256", claims))

    def test_too_long(self) -> None:
        """A token beyond the limit is not looked at."""
        self.refused("x" * (jwt.MAX_TOKEN_BYTES + 1))

    def test_deep(self) -> None:
        """Nesting that would exhaust the stack is no JSON."""
        deep = jwt.encode(b"[" * 30000)
        self.refused(f"{deep}.{deep}.{deep}")


class RsaTests(unittest.TestCase):
    N, E = RSA_KEY.public_key().public_numbers().n, 65537
    DIGEST = hashlib.sha256(b"m").digest()

    def test_small_keys(self) -> None:
        """Keys below 2048 bits are no keys, even numbers and large or small exponents neither."""
        small = rsa.generate_private_key(65537, 1024)
        signature = small.sign(b"m", padding.PKCS1v15(), hashes.SHA256())
        self.assertFalse(jwt.rsa(small.public_key().public_numbers().n, 65537, "sha256", self.DIGEST, signature))
        good = RSA_KEY.sign(b"m", padding.PKCS1v15(), hashes.SHA256())
        self.assertTrue(jwt.rsa(self.N, self.E, "sha256", self.DIGEST, good))
        for n, e in ((self.N - 1, self.E), (self.N, 1), (self.N, 2), (self.N, 1 << 40 | 1), (0, self.E)):
            with self.subTest(e):
                self.assertFalse(jwt.rsa(n, e, "sha256", self.DIGEST, good))

    def test_length_and_range(self) -> None:
        """A signature that is longer, shorter, or as large as the modulus."""
        good = RSA_KEY.sign(b"m", padding.PKCS1v15(), hashes.SHA256())
        as_number = int.from_bytes(good, "big")
        for bad in (
            b"",
            b"\x00" + good,
            good[:-1],
            (as_number + self.N).to_bytes(257, "big"),
            bytes(256),
            b"\xff" * 256,
        ):
            self.assertFalse(jwt.rsa(self.N, self.E, "sha256", self.DIGEST, bad))

    def test_padding_variants(self) -> None:
        """Blocks that a lenient reader takes: garbage behind the digest, short padding, other types, no parameters."""
        prefix = bytes.fromhex("3031300d060960864801650304020105000420")
        bare = bytes.fromhex("302f300b0609608648016503040201") + b"\x04\x20"
        numbers = RSA_KEY.private_numbers()

        def sign(block: bytes) -> bytes:
            return pow(int.from_bytes(block, "big"), numbers.d, self.N).to_bytes(256, "big")

        tail = prefix + self.DIGEST
        good = b"\x00\x01" + b"\xff" * (256 - 3 - len(tail)) + b"\x00" + tail
        self.assertTrue(jwt.rsa(self.N, self.E, "sha256", self.DIGEST, sign(good)))
        short = bare + self.DIGEST
        for block in (
            b"\x00\x01" + b"\xff" * 8 + b"\x00" + tail + bytes(256 - 11 - len(tail)),
            b"\x00\x02" + good[2:],
            b"\x00\x00" + good[2:],
            good[:10] + b"\xfe" + good[11:],
            b"\x00\x01" + b"\xff" * (256 - 3 - len(short)) + b"\x00" + short,
            b"\x00\x01" + b"\xff" * (256 - 3 - 32) + b"\x00" + self.DIGEST,
        ):
            self.assertFalse(jwt.rsa(self.N, self.E, "sha256", self.DIGEST, sign(block)))

    def test_cube_root(self) -> None:
        """With exponent 3, a cube whose beginning looks right is no signature (Bleichenbacher, 2006)."""
        key = rsa.generate_private_key(3, 2048)
        n = key.public_key().public_numbers().n
        block = b"\x00\x01\xff\x00" + bytes.fromhex("3031300d060960864801650304020105000420") + self.DIGEST
        wanted = int.from_bytes(block + b"\xff" * (256 - len(block)), "big")
        low, high = 0, 1 << 700
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**3 <= wanted else (low, middle - 1)
        self.assertTrue((low**3).to_bytes(256, "big").startswith(block[:30]))
        self.assertFalse(jwt.rsa(n, 3, "sha256", self.DIGEST, low.to_bytes(256, "big")))

    def test_other_hash(self) -> None:
        """A signature over another hash of the same text."""
        signature = RSA_KEY.sign(b"m", padding.PKCS1v15(), hashes.SHA512())
        self.assertFalse(jwt.rsa(self.N, self.E, "sha256", self.DIGEST, signature))


class CurveTests(unittest.TestCase):
    X, Y = EC_KEY.public_key().public_numbers().x, EC_KEY.public_key().public_numbers().y
    DIGEST = hashlib.sha256(b"m").digest()

    def setUp(self) -> None:
        self.good = ec_signature(EC_KEY, b"m")
        self.r, self.s = int.from_bytes(self.good[:32], "big"), int.from_bytes(self.good[32:], "big")

    def check(self, r: int, s: int, x: int = X, y: int = Y) -> bool:
        return jwt.es256(x, y, self.DIGEST, r.to_bytes(32, "big") + s.to_bytes(32, "big"))

    def test_range(self) -> None:
        """Numbers that are 0 or as large as the order: the \"psychic\" signatures."""
        self.assertTrue(self.check(self.r, self.s))
        for r, s in (
            (0, 0),
            (0, self.s),
            (self.r, 0),
            (jwt.N, self.s),
            (self.r, jwt.N),
            (jwt.N, jwt.N),
            (1, 1),
            (jwt.P - 1, 1),
        ):
            with self.subTest((r, s)):
                self.assertFalse(self.check(r, s))

    def test_negative(self) -> None:
        """n - s is a valid signature as well in plain ECDSA (the message is no other); a changed r is none."""
        self.assertTrue(self.check(self.r, jwt.N - self.s))
        self.assertFalse(self.check(jwt.N - self.r, self.s))

    def test_length(self) -> None:
        """DER, as other protocols carry it, and other lengths."""
        for bad in (EC_KEY.sign(b"m", ec.ECDSA(hashes.SHA256())), self.good[:-1], self.good + b"\x00", b""):
            self.assertFalse(jwt.es256(self.X, self.Y, self.DIGEST, bad))

    def test_key_off_the_curve(self) -> None:
        """A point that is not on the curve, or not in the field."""
        for x, y in ((self.X, self.Y + 1), (0, 0), (1, 1), (self.X + jwt.P, self.Y), (self.X, self.Y + jwt.P)):
            with self.subTest((x, y)):
                self.assertFalse(self.check(self.r, self.s, x, y))

    def test_broken_keys(self) -> None:
        """Coordinates of another length, another curve, missing ones: nothing is signed by them."""
        token = make("ES256")
        for change in ({"x": "AA"}, {"crv": "P-384"}, {"y": None}, {"x": "!"}, {"x": "A" * 4000}):
            with self.subTest(change), self.assertRaises(jwt.BadToken):
                jwt.verify(token, [{**ec_jwk(), **change}], ALL)


class HostileTests(unittest.TestCase):
    @settings(max_examples=150, deadline=None)
    @given(st.text(alphabet="abcXYZ019-_.=\x00é", max_size=60))
    def test_any_text(self, text: str) -> None:
        """Any text is refused, and nothing but refused."""
        with self.assertRaises(jwt.BadToken):
            jwt.verify(text, KEYS, ALL)

    @settings(max_examples=100, deadline=None)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=8),
            lambda c: (
                st.lists(c, max_size=3)
                | st.dictionaries(st.sampled_from(["kid", "kty", "n", "e", "x", "keys"]), c, max_size=4)
            ),
        )
    )
    def test_any_keys(self, keys: object) -> None:
        """Whatever the provider calls its keys."""
        with self.assertRaises(jwt.BadToken):
            jwt.verify(make("RS256"), keys, ALL)
