"""Addresses that messages must not go to (spec/notifications-and-policy section 6, IANA special-purpose registries)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core.addresses import forbidden, parse_networks

DENIED = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.254 127.0.0.1 127.255.255.254 169.254.0.1
169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.170 192.0.2.1 192.88.99.1 192.168.0.1 192.168.255.255
198.18.0.1 198.19.255.255 198.51.100.7 203.0.113.9 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
:: ::1 ::2 ::ffff:127.0.0.1 ::ffff:10.1.2.3 ::ffff:169.254.169.254 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::a00:1
64:ff9b:1::1 100::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:2::1 2001:10::1 2001:20::1 2001:db8::1
2002:7f00:1:: 2002:a00:1::1 3fff::1 5f00::1 fc00::1 fd00::1 fdff:ffff::1 fe80::1 fe80::1%eth0 febf::1 fec0::1 ff02::1
ff0e::1 192.31.196.1 192.52.193.1 192.175.48.1 2620:4f:8000::1
""".split()
PERMITTED = """
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1 169.253.255.255
169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.1 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255
::ffff:8.8.8.8 2001:4860:4860::8888 2400:cb00::1 2600::1 2a00:1450::1 2620:fe::fe
""".split()
NONSENSE = ("", "localhost", "127.1", "0x7f000001", "2130706433", "1.2.3.4.5", "[::1]", "1.1.1.1 ", "010.0.0.1")


class ForbiddenTests(SynchronousTestCase):
    def test_table(self) -> None:
        """Special addresses of both families, at both ends of their networks, and their neighbours."""
        self.assertTrue(len(DENIED) + len(PERMITTED) >= 60)
        self.assertEqual([address for address in DENIED if not forbidden(address)], [])
        self.assertEqual([address for address in PERMITTED if forbidden(address)], [])

    def test_nonsense(self) -> None:
        """What is no address, or one in a form that others read otherwise, is none."""
        self.assertEqual([text for text in NONSENSE if not forbidden(text)], [])

    def test_allowed(self) -> None:
        """An allow list permits what it names, and nothing beside; never multicast or an unspecified address."""
        allowed = parse_networks(["10.20.0.0/16", "::1/128", "224.0.0.0/4", "0.0.0.0/8", "::/128"])
        for address, good in (
            ("10.20.1.1", True),
            ("::ffff:10.20.1.1", True),
            ("10.21.0.1", False),
            ("::1", True),
            ("224.0.0.1", False),
            ("0.0.0.0", False),
            ("::", False),
            ("8.8.8.8", True),
        ):
            self.assertEqual(not forbidden(address, allowed), good, address)

    @given(st.ip_addresses(v=4))
    def test_mapped(self, address: object) -> None:
        """An IPv4-mapped address is judged as its IPv4 address."""
        self.assertEqual(bool(forbidden(f"::ffff:{address}")), bool(forbidden(str(address))))
