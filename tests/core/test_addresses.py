"""Clients behind proxies."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core.addresses import client_address, parse_networks, throttle_key

TRUSTED = parse_networks(["127.0.0.0/8", "10.0.0.0/8", "::1/128"])


class NetworkTests(SynchronousTestCase):
    def test_bad(self) -> None:
        """A mistake is named."""
        for text in ("10.0.0.0/33", "proxy", "10.0.0.1/8", ""):
            e = self.assertRaises(ValueError, parse_networks, ["127.0.0.1", text])
            self.assertIn(repr(text), str(e))


class ClientAddressTests(SynchronousTestCase):
    def test_walk(self) -> None:
        """From the right, over trusted proxies, to the first other address or the last good one."""
        for peer, header, client in (
            ("203.0.113.9", None, "203.0.113.9"),
            ("203.0.113.9", "198.51.100.1", "203.0.113.9"),
            ("127.0.0.1", None, "127.0.0.1"),
            ("127.0.0.1", "", "127.0.0.1"),
            ("127.0.0.1", "198.51.100.1", "198.51.100.1"),
            ("127.0.0.1", "6.6.6.6, 198.51.100.1", "198.51.100.1"),
            ("127.0.0.1", "6.6.6.6, 198.51.100.1, 10.1.1.1", "198.51.100.1"),
            ("127.0.0.1", "10.2.2.2,10.1.1.1", "10.2.2.2"),
            ("127.0.0.1", "198.51.100.1, unknown, 10.1.1.1", "10.1.1.1"),
            ("127.0.0.1", "nonsense", "127.0.0.1"),
            ("127.0.0.1", "198.51.100.1,", "127.0.0.1"),
            ("::ffff:127.0.0.1", "::ffff:198.51.100.1", "198.51.100.1"),
            ("::1", "2001:DB8::1", "2001:db8::1"),
            ("::1", "[2001:db8::1]:4711", "2001:db8::1"),
            ("::1", "198.51.100.1:4711", "198.51.100.1"),
            ("::1", "fe80::1%eth0", "::1"),
            ("/run/identree.sock", "198.51.100.1", "/run/identree.sock"),
        ):
            self.assertEqual(client_address(peer, header, TRUSTED), client, (peer, header))

    def test_bounded(self) -> None:
        """The walk ends after 32 entries."""
        header = ",".join(["198.51.100.1"] + ["10.0.0.1"] * 31 + ["10.0.0.2"])
        self.assertEqual(client_address("127.0.0.1", header, TRUSTED), "10.0.0.1")

    @given(st.text("0123456789.,:[]abcf% x", max_size=80))
    def test_noise(self, header: str) -> None:
        """Whatever the header says, the result is an address."""
        parse_networks([client_address("127.0.0.1", header, TRUSTED)])

    @given(st.text(max_size=80))
    def test_untrusted(self, header: str) -> None:
        """A stranger's header means nothing."""
        self.assertEqual(client_address("203.0.113.9", header, TRUSTED), "203.0.113.9")


class ThrottleKeyTests(SynchronousTestCase):
    def test_keys(self) -> None:
        """IPv4 by address, IPv6 by the /64 that one customer gets, anything else as it is."""
        self.assertEqual(throttle_key("198.51.100.1"), "198.51.100.1")
        self.assertEqual(throttle_key("2001:db8:1:2:3::4"), "2001:db8:1:2::/64")
        self.assertEqual(throttle_key("somewhere"), "somewhere")
