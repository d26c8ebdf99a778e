"""
Who is really asking: the client's address behind trusted proxies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network

# Proxies in a row that are believed; the rest of the header is not looked at.
MAX_HOPS = 32
# The same hosts ask again and again; so many parsed addresses are kept, 1 MB at most.
REMEMBERED = 4096
# Longest entry of the header that can be an address with a port, in characters.
_ENTRY_LENGTH = 64

_WITH_PORT = re.compile(r"\[([0-9a-fA-F:.]+)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}")


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """
    Networks such as ``10.0.0.0/8`` or ``::1/128``, or single addresses.

    :raise ValueError: naming the one that is not; also for host bits that are set, which hide a typing mistake.
    """
    networks: list[Network] = []
    for text in texts:
        try:
            networks.append(ip_network(text.strip()))
        except ValueError as e:
            raise ValueError(f"{text.strip()!r} is not a network such as 10.0.0.0/8 or 2001:db8::/32: {e}") from e
    return tuple(networks)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    text = text.strip(" \t")
    return None if len(text) > _ENTRY_LENGTH else _parsed(text)


@lru_cache(REMEMBERED)
def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    if "%" in text:
        return None
    with_port = _WITH_PORT.fullmatch(text)
    if with_port:
        text = with_port[1] or with_port[2]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def client_address(peer: str, forwarded_for: str | None, trusted: Sequence[Network]) -> str:
    """
    The address of the client, without port, an IPv4-mapped prefix removed.

    ``X-Forwarded-For`` is read from the right, as long as who wrote it is trusted: the first entry that is not a
    trusted proxy is the client. An entry that is no address ends the walk at the last good one, so does the end of the
    header, and so do 32 entries.

    :param peer: the address of the socket's other end; returned as it is when it is no address.
    :param forwarded_for: the header, several ones joined with commas; None or empty: absent.
    """
    current = _address(peer)
    if current is None:
        return peer
    if forwarded_for:
        entries = forwarded_for.rsplit(",", MAX_HOPS)[-MAX_HOPS:]
        for entry in reversed(entries):
            if not any(current in network for network in trusted):
                break
            further = _address(entry)
            if further is None:
                break
            current = further
    return str(current)


def is_trusted(peer: str, trusted: Sequence[Network]) -> bool:
    """Whether the socket's other end is one of our proxies; many clients come through it."""
    parsed = _address(peer)
    return parsed is not None and any(parsed in network for network in trusted)


def throttle_key(address: str) -> str:
    """What a limit counts by: the address, of IPv6 the /64 network, which is what one customer gets."""
    parsed = _address(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((int(parsed) >> 64 << 64, 64)))
    return address if parsed is None else str(parsed)


# -- addresses that messages must not go to ---------------------------------------------------------------------------
# IANA's registries of special-purpose addresses (RFC 6890 and its updates), multicast, and what leads to them.
_SPECIAL: tuple[tuple[str, str], ...] = (
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared by a carrier"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "protocol assignments"),
    ("192.0.2.0/24", "documentation"),
    ("192.31.196.0/24", "AS112"),
    ("192.52.193.0/24", "AMT"),
    ("192.88.99.0/24", "6to4 relay"),
    ("192.168.0.0/16", "private"),
    ("192.175.48.0/24", "AS112"),
    ("198.18.0.0/15", "benchmarking"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    ("::/96", "IPv4-compatible"),
    ("64:ff9b::/96", "NAT64"),
    ("64:ff9b:1::/48", "NAT64"),
    ("100::/64", "discarded"),
    ("100:0:0:1::/64", "dummy prefix"),
    ("2001::/23", "protocol assignments"),
    ("2001:db8::/32", "documentation"),
    ("2002::/16", "6to4"),
    ("2620:4f:8000::/48", "AS112"),
    ("3fff::/20", "documentation"),
    ("5f00::/16", "segment routing"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "site-local"),
    ("ff00::/8", "multicast"),
)
_SPECIAL_NETWORKS: tuple[tuple[Network, str], ...] = tuple((ip_network(text), why) for text, why in _SPECIAL)
# No allow list makes these a destination.
_NEVER = tuple(ip_network(text) for text in ("0.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "::/128", "ff00::/8"))


def forbidden(address: str, allowed: Sequence[Network] = ()) -> str:
    """
    Why nothing must be sent to an address that a name of somebody else's choosing led to; empty: it may be.

    An IPv4-mapped address is judged as its IPv4 address.

    :param allowed: special networks that may be reached all the same; never multicast or an unspecified address.
    """
    try:
        # a zone names an interface, and never belongs to a public address
        parsed: IPv4Address | IPv6Address = ip_address(address)
    except ValueError:
        return "no address"
    if isinstance(parsed, IPv6Address):
        if parsed.scope_id is not None:
            return "link-local"
        if parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
    why = next((words for network, words in _SPECIAL_NETWORKS if parsed in network), "")
    if not why or any(parsed in network for network in _NEVER):
        return why
    return "" if any(parsed in network for network in allowed) else why
