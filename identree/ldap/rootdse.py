"""
What the server says about itself: the root DSE and the subschema (RFC 4512 sections 4.2 and 5.1, spec/ldap section 11).

Both are readable before a bind; they hold nothing of the directory's.
"""

from __future__ import annotations

from collections.abc import Callable

from identree.directory import dn, schema
from identree.directory.draft import Attributes
from identree.directory.snapshot import Entry, Snapshot
from identree.ldap import operations
from identree.ldap.ber import SearchRequest
from identree.ldap.search import Reply, entry_answer

SUBSCHEMA_NORMAL = dn.normal(schema.SUBSCHEMA_DN)

# All operational attributes by "+" (RFC 3673); absolute true and false filters (RFC 4526).
FEATURES = (b"1.3.6.1.4.1.4203.1.5.1", b"1.3.6.1.4.1.4203.1.5.3")


class RootDSE:
    """
    :param base_dn: of the directory, as the operator wrote it.
    :param version: of identree.
    :param directory: the snapshot that is served, None before there is one.
    :param start_tls: whether StartTLS can be asked for.
    """

    def __init__(
        self, *, base_dn: str, version: str, directory: Callable[[], Snapshot | None], start_tls: bool
    ) -> None:
        self._base_dn = base_dn.encode()
        self._version = version.encode()
        self._directory = directory
        self._start_tls = start_tls
        self._subschema = Entry.alone(schema.SUBSCHEMA_DN, schema.subschema())
        # by whether SASL EXTERNAL is offered: the change number that it was made for, and the entry
        self._made: dict[bool, tuple[int | None, Entry]] = {}

    def answer(self, request: SearchRequest, *, subschema: bool, external: bool) -> Reply:
        """
        The answer to a search based at the one or the other.

        :param external: whether SASL EXTERNAL can succeed on this connection.
        """
        return entry_answer(self._subschema if subschema else self._entry(external), request)

    def _entry(self, external: bool) -> Entry:
        snapshot = self._directory()
        usn = None if snapshot is None else snapshot.usn
        made = self._made.get(external)
        if made is None or made[0] != usn:
            made = self._made[external] = (usn, Entry.alone("", self._attributes(usn, external)))
        return made[1]

    def _attributes(self, usn: int | None, external: bool) -> Attributes:
        extensions = (operations.WHO_AM_I, operations.CANCEL)
        attributes: list[tuple[str, tuple[bytes, ...]]] = [
            ("objectClass", (b"top", b"extensibleObject")),
            ("namingContexts", (self._base_dn,)),
            ("defaultNamingContext", (self._base_dn,)),
            ("supportedControl", (operations.PAGED_RESULTS,)),
            ("supportedExtension", (operations.START_TLS, *extensions) if self._start_tls else extensions),
            ("supportedFeatures", FEATURES),
            ("supportedLDAPVersion", (b"3",)),
            ("vendorName", (b"identree",)),
            ("vendorVersion", (self._version,)),
            ("subschemaSubentry", (schema.SUBSCHEMA_DN.encode(),)),
        ]
        if external:
            attributes.append(("supportedSASLMechanisms", (b"EXTERNAL",)))
        if usn is not None:
            # a smaller number than sssd saw last makes it start from nothing: without a snapshot there is none
            attributes.append(("lastUSN", (b"%d" % usn,)))
        return tuple(attributes)
