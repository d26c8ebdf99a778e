"""What deploying decides without a network (spec/notifications-and-policy section 10, spec/host-agent section 17.4)."""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
from itertools import pairwise
from urllib.parse import quote

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core import deploy
from identree.core.deploy import (
    KEY_STRUCK,
    LINE_BYTES,
    OUTPUT_BYTES,
    OUTPUT_LINES,
    STRUCK,
    TOO_LONG,
    Access,
    ExpectedKey,
    HostKey,
    Scrubber,
    Transcript,
    expected_key,
    install_command,
    install_input,
    known_as,
    remove_command,
    reported_hostname,
    target,
)
from identree.core.errors import Invalid

# ssh-keygen -lf of this line says SHA256:GP/xPKDs8ZCYSeGjkNbm9UTTNTmxqeuTLM9Xgi5Uu7U
LINE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
BLOB = base64.b64decode(LINE.split()[1])
SECRET = "s3cr3t-0123456789-abcdefgh"


def shown(*chunks: bytes, secrets: tuple[str, ...] = (SECRET,)) -> list[str]:
    """What is shown of a stream that comes in these pieces."""
    scrubber = Scrubber(secrets)
    return [line for chunk in chunks for line in scrubber.feed(chunk)] + scrubber.close()


class TargetTests(SynchronousTestCase):
    def refused(self, *sent: object) -> str:
        return self.assertRaises(Invalid, target, *sent).detail

    def test_defaults(self) -> None:
        """Port 22 and root; the name is normalised."""
        self.assertEqual(
            target("Web1.Example.com.", 0, ""), deploy.Target(host="web1.example.com", port=22, user="root")
        )

    def test_place(self) -> None:
        """As people write it."""
        self.assertEqual(target("192.0.2.1", 2222, "ops").place, "192.0.2.1:2222")

    def test_texts(self) -> None:
        """The refusals of the contract."""
        self.assertEqual(self.refused("", 22, "root"), "hostname required")
        for name in ("web 1", "a" * 254, "web1;id", "-o\n", "[::1]", "…"):
            self.assertEqual(self.refused(name, 22, "root"), "invalid hostname")
        for port in (-1, 65536):
            self.assertEqual(self.refused("web1", port, "root"), "invalid port")
        for user in ("a b", "a" * 65, "root\n", "x;y"):
            self.assertEqual(self.refused("web1", 22, user), "invalid ssh_user")

    def test_known_as(self) -> None:
        """Another name where SSH goes to an address."""
        self.assertEqual((known_as("", "web1"), known_as("Web2.", "192.0.2.1")), ("web1", "web2"))
        self.assertRaises(Invalid, known_as, "web 2", "web1")

    def test_job_id(self) -> None:
        """Hexadecimal, of any length that could be one."""
        self.assertEqual(deploy.job_id("0A" * 16), "0a" * 16)
        for text in ("", "x" * 32, "0" * 65, "../x", "0\n"):
            self.assertEqual(self.assertRaises(Invalid, deploy.job_id, text).detail, "invalid job id")


class HostKeyTests(SynchronousTestCase):
    def test_fingerprint(self) -> None:
        """As ssh-keygen prints it: the digest in base64 without padding."""
        key = HostKey.from_blob(BLOB)
        self.assertEqual(key.type, "ssh-ed25519")
        self.assertEqual(
            key.fingerprint,
            subprocess.run(
                ["ssh-keygen", "-lf", "-"], input=LINE, capture_output=True, text=True, check=True
            ).stdout.split()[1],
        )

    def test_expected(self) -> None:
        """A fingerprint, with or without padding; a public key; a line of known_hosts."""
        key = HostKey.from_blob(BLOB)
        self.assertEqual(expected_key(f" {key.fingerprint}=\n"), ExpectedKey(fingerprint=key.fingerprint))
        for line in (LINE, f"{LINE} root@web1", f"[web1]:2222,192.0.2.1 {LINE}"):
            self.assertEqual(expected_key(line), ExpectedKey(fingerprint=key.fingerprint, type="ssh-ed25519"))

    def test_unusable(self) -> None:
        """Anything else is refused with what would be right."""
        for text in (
            "",
            "SHA256:short",
            "SHA1:" + "A" * 43,
            "ssh-ed25519",
            "ssh-ed25519 AAAA",
            "ssh-dss " + "A" * 80,
            "ssh-rsa " + LINE.split()[1],
            "SHA256:" + "A" * 43 + " x",
            "A" * 10_000,
        ):
            with self.subTest(text=text[:20]):
                self.assertIn("expected SHA256:", self.assertRaises(Invalid, expected_key, text).detail)

    def test_md5(self) -> None:
        """What old tools print proves nothing."""
        for text in ("MD5:" + ":".join(["0a"] * 16), ":".join(["0a"] * 16)):
            self.assertIn("MD5", self.assertRaises(Invalid, expected_key, text).detail)

    def test_foreign_blobs(self) -> None:
        """A key of another type, and what is none."""
        for blob in (b"", b"\xff\xff\xff\xff", b"\0\0\0\7ssh-dss", BLOB + b"x" * 5000):
            self.assertRaises(ValueError, HostKey.from_blob, blob)


class CommandTests(SynchronousTestCase):
    def test_commands(self) -> None:
        """Root needs no sudo; the URL is one word of the shell, whatever stands in it."""
        self.assertEqual(install_command("root", "https://x/y"), "bash -s 'https://x/y'")
        self.assertEqual(install_command("ops", "https://x/'; id"), "sudo bash -s 'https://x/'\\''; id'")
        self.assertEqual((remove_command("root"), remove_command("ops")), ("bash", "sudo bash"))

    def test_input_with_the_secret(self) -> None:
        """Two exports, then the script as it is."""
        sent = install_input(Access(secret="it's"), b"echo\n")
        self.assertEqual(sent, b"export SHARED_SECRET='it'\\''s'\nexport IDENTREE_SHARED_SECRET='it'\\''s'\necho\n")

    def test_input_with_a_token(self) -> None:
        """The secret of all hosts is not sent then."""
        self.assertEqual(
            install_input(Access(token="t", secret="s"), b"echo\n"), b"export IDENTREE_ENROL_TOKEN='t'\necho\n"
        )

    def test_input_without_either(self) -> None:
        """As a removal has it."""
        self.assertEqual(install_input(Access(), b"echo\n"), b"echo\n")

    def test_nul(self) -> None:
        """A shell would cut it off."""
        self.assertRaises(ValueError, install_input, Access(secret="a\0b"), b"")

    @given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
    @settings(max_examples=60, deadline=None)
    def test_quoting(self, text: str) -> None:
        """What a shell makes of it is the text."""
        self.assertEqual(shlex.split(deploy.shell_quoted(text)), [text])

    def test_reported_hostname(self) -> None:
        """The first line that says it counts, if it says a host's name."""
        self.assertEqual(reported_hostname(["x", "IDENTREE_HOSTNAME=Web1. ", "IDENTREE_HOSTNAME=web2"]), "web1")
        self.assertEqual(reported_hostname(["IDENTREE_HOSTNAME=a b", "IDENTREE_HOSTNAME=web2"]), "")
        self.assertEqual(reported_hostname(["export IDENTREE_HOSTNAME=web1"]), "")


class ScrubberTests(SynchronousTestCase):
    def test_lines(self) -> None:
        """A line comes when it has ended; what is left, when the stream has."""
        scrubber = Scrubber(())
        self.assertEqual(scrubber.feed(b"one\ntw"), ["one"])
        self.assertEqual(scrubber.feed(b"o\r\n\nthr"), ["two", ""])
        self.assertEqual((scrubber.close(), scrubber.close()), (["thr"], []))

    def test_a_known_secret(self) -> None:
        """Wherever it stands, and however often."""
        self.assertEqual(shown(f"a {SECRET}{SECRET}b\n".encode()), [f"a {STRUCK}{STRUCK}b"])

    def test_split_across_chunks(self) -> None:
        """At every byte of it, and at all of them."""
        raw = f"x {SECRET} y\n".encode()
        for cut in range(len(raw)):
            self.assertEqual(shown(raw[:cut], raw[cut:]), [f"x {STRUCK} y"])
        self.assertEqual(shown(*(raw[i : i + 1] for i in range(len(raw)))), [f"x {STRUCK} y"])

    def test_in_a_line_that_does_not_end(self) -> None:
        """Such a line is cut, but never in the middle of a secret, wherever that stands."""
        for before in range(LINE_BYTES - 2 * len(SECRET), LINE_BYTES + 3):
            raw = b"." * before + SECRET.encode() + b"." * 50
            for step in (len(raw), 1000, before + 5):
                lines = shown(*(raw[i : i + step] for i in range(0, len(raw), step)))
                text = "".join(lines)
                self.assertEqual(text, "." * before + STRUCK + "." * 50, before)

    def test_no_piece_is_larger(self) -> None:
        """So that nothing grows with a line."""
        scrubber = Scrubber((SECRET,))
        lines = scrubber.feed(b"." * (5 * LINE_BYTES))
        self.assertEqual([len(line) for line in lines], [LINE_BYTES] * 4)
        self.assertEqual([len(line) for line in scrubber.close()], [LINE_BYTES])

    def test_characters_are_not_cut(self) -> None:
        """A long line of umlauts stays one of umlauts."""
        for lead in ("", "x"):
            text = lead + "ä€😀" * 2000
            self.assertEqual("".join(shown(text.encode())), text)

    def test_spellings(self) -> None:
        """A secret in quotes of a shell, in JSON, in a URL, and in base64."""
        secret = 'it\'s "a"/b+c\\d?'
        for text in (
            secret,
            secret.replace("'", "'\\''"),
            shlex.quote(secret),
            json.dumps(secret),
            quote(secret, safe=""),
            base64.b64encode(secret.encode()).decode(),
        ):
            [line] = shown(f"<{text}>\n".encode(), secrets=(secret,))
            self.assertIn(STRUCK, line)
            self.assertNotIn("a", line)

    def test_a_secret_in_a_longer_one(self) -> None:
        """Nothing is left of the longer one."""
        self.assertEqual(shown(b"abcdefgh abcd\n", secrets=("abcd", "abcdefgh")), [f"{STRUCK} {STRUCK}"])

    def test_an_empty_secret(self) -> None:
        """It counts for nothing."""
        self.assertEqual(shown(b"abc\n", secrets=("",)), ["abc"])

    def test_what_a_host_has_itself(self) -> None:
        """Secrets that we do not know are told by their names."""
        for line in (
            "IDENTREE_SHARED_SECRET=0123456789abcdef",
            "export SHARED_SECRET='one two'",
            'ldap_default_authtok_password = "x\\"y z"',
            "api_key=abc",
            "X-Shared-Secret: abc def",
            "Authorization: Bearer abc",
            "ldaps://user:abcdef@ldap.example.com/",
            "token identree-enrol-" + "0" * 64,
        ):
            with self.subTest(line=line):
                [after] = shown(line.encode() + b"\n")
                self.assertIn(STRUCK, after)
                for rest in ("0123456789abcdef", "two", "abc", "y z", "000"):
                    self.assertNotIn(rest, after)

    def test_ordinary_lines(self) -> None:
        """What only speaks of secrets stays readable."""
        for line in (
            "the shared secret is missing: set IDENTREE_SHARED_SECRET",
            "wrote /etc/identree/client.conf",
            "token: expired",
            "see https://identree.example/docs@1",
            "password rotation: every 90 days",
        ):
            self.assertEqual(shown(line.encode() + b"\n"), [line])

    def test_a_private_key(self) -> None:
        """Nothing of one is shown; what comes after it is."""
        pem = b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\nBBBB\n-----END OPENSSH PRIVATE KEY-----\n"
        self.assertEqual(shown(b"a\n" + pem + b"b\n" + pem + b"c\n"), ["a", KEY_STRUCK, "b", KEY_STRUCK, "c"])

    def test_a_private_key_that_does_not_end(self) -> None:
        """A host cannot make everything after it disappear."""
        raw = b"-----BEGIN PRIVATE KEY-----\n" + b"AAAA\n" * 1000
        self.assertIn("AAAA", shown(raw))

    def test_terminals(self) -> None:
        """Colours, titles, bells and marks that turn text around are taken out; tabs stay."""
        raw = "\x1b[1;32mgreen\x1b[0m\x1b]0;title\x07 a\tb\a\u202e\u2028\x9b!\n".encode()
        self.assertEqual(shown(raw), ["green a\tb!"])

    def test_a_secret_in_colours(self) -> None:
        """What steers a terminal hides nothing."""
        self.assertEqual(shown(f"{SECRET[:5]}\x1b[0m{SECRET[5:]}\n".encode()), [STRUCK])

    def test_other_bytes(self) -> None:
        """What is no UTF-8 is replaced."""
        self.assertEqual(shown(b"\xff\xfea\n"), ["\ufffd\ufffda"])

    @given(
        st.lists(st.sampled_from([b"a", b"\n", SECRET.encode(), SECRET[:7].encode(), b"." * 5000]), max_size=12),
        st.data(),
    )
    @settings(max_examples=400, deadline=None)
    def test_wherever_it_is_cut(self, pieces: list[bytes], data: st.DataObject) -> None:
        """The same is shown however a stream is cut, and a secret never."""
        raw = b"".join(pieces)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
        chunks = [raw[a:b] for a, b in pairwise([0, *cuts, len(raw)])]
        text = "".join(shown(*chunks))
        self.assertEqual(text, "".join(shown(raw)))
        self.assertNotIn(SECRET, text)


class TranscriptTests(SynchronousTestCase):
    def test_a_megabyte(self) -> None:
        """The rest is dropped, which is said once, and what we say ourselves still stands there."""
        transcript = Transcript()
        line = "x" * 1023
        transcript.output([line] * 2000)
        transcript.output(["more"])
        transcript.say("the end")
        self.assertEqual(transcript.lines[-2:], [TOO_LONG, "the end"])
        self.assertEqual(len(transcript.lines), OUTPUT_BYTES // 1024 + 2)
        self.assertTrue(transcript.full)

    def test_many_lines(self) -> None:
        """Empty lines count too."""
        transcript = Transcript()
        transcript.output([""] * (OUTPUT_LINES + 100))
        self.assertEqual((len(transcript.lines), transcript.lines[-1]), (OUTPUT_LINES + 1, TOO_LONG))
