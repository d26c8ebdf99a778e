"""Entries of people and groups, attribute by attribute."""

import uuid

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.directory.accounts import (
    MAX_KEY_BYTES,
    access_hosts,
    gecos,
    group_draft,
    home,
    member_groups,
    person_draft,
    private_group_draft,
    private_group_uuid,
    shell,
    ssh_keys,
)
from identree.directory.layout import Layout
from identree.directory.source import SourceGroup, SourceUser
from tests.directory.sources import BASE, LAYOUT, attributes

BIS = Layout(base_dn=BASE, schema="rfc2307bis")
ID = "8b2e6f6e-94f7-4c4a-9d2e-3f4f8a3d9b11"


def alice(**fields: object) -> SourceUser:
    return SourceUser(**{"id": ID, "username": "alice", **fields})  # type: ignore[arg-type]


def claims(*values: str, key: str = "sshPublicKey") -> tuple[tuple[str, str], ...]:
    return tuple((key, value) for value in values)


def entry(user: SourceUser, layout: Layout = LAYOUT) -> dict[str, list[str]]:
    return attributes(person_draft(user, 200_001, 300_001, (), (), layout))


class PersonTests(SynchronousTestCase):
    def test_whole(self) -> None:
        """A person with everything, as deployed."""
        person = alice(
            first_name="Alice", last_name="Ödegård", email="a@example.com", claims=claims("ssh-ed25519 AAAA x")
        )
        draft = person_draft(person, 200_001, 300_001, (b"db1", b"web1"), (), LAYOUT)
        self.assertEqual((draft.dn, draft.key), (f"uid=alice,ou=people,{BASE}", f"person:{ID}"))
        self.assertEqual(
            attributes(draft),
            {
                "objectClass": ["top", "posixAccount", "shadowAccount", "inetOrgPerson", "ldapPublicKey"],
                "uid": ["alice"],
                "cn": ["Alice Ödegård"],
                "sn": ["Ödegård"],
                "givenName": ["Alice"],
                "mail": ["a@example.com"],
                "uidNumber": ["200001"],
                "gidNumber": ["300001"],
                "gecos": ["Alice Odegard"],
                "homeDirectory": ["/home/alice"],
                "loginShell": ["/bin/bash"],
                "shadowLastChange": ["1"],
                "shadowMin": ["0"],
                "shadowMax": ["99999"],
                "shadowWarning": ["7"],
                "accountStatus": ["active"],
                "host": ["db1", "web1"],
                "sshPublicKey": ["ssh-ed25519 AAAA x"],
                "entryUUID": [ID],
            },
        )

    def test_least(self) -> None:
        """Without names the user name stands in; what is empty is absent."""
        found = entry(alice())
        self.assertEqual((found["cn"], found["sn"], found["gecos"]), (["alice"], ["alice"], ["alice"]))
        self.assertTrue({"givenName", "mail", "host", "sshPublicKey", "shadowExpire", "memberOf"}.isdisjoint(found))
        self.assertNotIn("ldapPublicKey", found["objectClass"])

    def test_disabled(self) -> None:
        """Hosts are told to deny, and there is no key to come in by."""
        found = entry(alice(disabled=True, claims=claims("ssh-rsa AAAA")))
        self.assertEqual((found["accountStatus"], found["shadowExpire"]), (["inactive"], ["1"]))
        self.assertNotIn("sshPublicKey", found)
        self.assertNotIn("ldapPublicKey", found["objectClass"])

    def test_never_must_change(self) -> None:
        """No account looks as if its password had to be changed now."""
        self.assertNotIn("0", entry(alice())["shadowLastChange"])

    def test_unfit_names(self) -> None:
        """Names with line breaks, or halves of characters, count as empty."""
        found = entry(alice(first_name="A\n", last_name="B\ud800", email="x\0"))
        self.assertEqual((found["cn"], found["sn"]), (["alice"], ["alice"]))
        self.assertTrue({"givenName", "mail"}.isdisjoint(found))

    def test_number_claims(self) -> None:
        """Ids come from the map only."""
        found = entry(alice(claims=(("uidNumber", "0"), ("gidNumber", "0"))))
        self.assertEqual((found["uidNumber"], found["gidNumber"]), (["200001"], ["300001"]))

    @given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
    def test_any_text(self, first: str, last: str, claim: str) -> None:
        """Whatever is in the source, the entry is UTF-8 without empty values, and its passwd line has seven fields."""
        person = alice(
            first_name=first, last_name=last, claims=(("homeDirectory", f"/{claim}"), ("loginShell", f"/{claim}"))
        )
        found = entry(person)
        for values in found.values():
            self.assertTrue(values and all(values))
        fields = (found["gecos"][0], found["homeDirectory"][0], found["loginShell"][0])
        line = ":".join(("alice", "x", "1", "1", *fields))
        self.assertEqual(len(line.split(":")), 7)
        self.assertEqual(len(line.splitlines()), 1)


class GecosTests(SynchronousTestCase):
    def test_folded(self) -> None:
        """ASCII as near as possible."""
        for name, expected in (
            ("Zoë Strauß", "Zoe Strauss"),
            ("Łukasz Øster", "Lukasz Oster"),
            ("a:b", "a b"),
            ("a\x1b[2Jb\x85c", "a [2Jbc"),
            ("王小明", "wang"),
            ("  ", "wang"),
        ):
            self.assertEqual(gecos(name, "wang"), expected)


class ClaimTests(SynchronousTestCase):
    def test_shell(self) -> None:
        """The last acceptable one; a relative one or one with blanks is not."""
        self.assertEqual(
            shell(alice(claims=claims("/bin/zsh", "zsh", "/b sh", "", key="loginShell")), LAYOUT), "/bin/zsh"
        )
        self.assertEqual(shell(alice(claims=claims("/" + "x" * 256, key="loginShell")), LAYOUT), "/bin/bash")
        self.assertEqual(shell(alice(claims=claims("/bin/zsh", key="loginshell")), LAYOUT), "/bin/bash")

    def test_home(self) -> None:
        """Absolute, no way up, nothing that ends a field."""
        for path in ("home", "/a/../b", "/..", "/a:b", "/a\nb", "/a\x7f", "/" + "x" * 256, ""):
            self.assertEqual(home(alice(claims=claims(path, key="homeDirectory")), LAYOUT), "/home/alice", path)
        for path in ("/srv/alice", "/a..b/c", "/"):
            self.assertEqual(home(alice(claims=claims(path, key="homeDirectory")), LAYOUT), path)

    def test_home_pattern(self) -> None:
        """The name goes into the first place; a pattern that gives no path gives /tmp."""
        for pattern, expected in (("/h/%s/%s", "/h/alice/%s"), ("/srv", "/srv"), ("h/%s", "/tmp"), ("/h\t%s", "/tmp")):
            self.assertEqual(home(alice(), Layout(base_dn=BASE, default_home=pattern)), expected)

    def test_keys(self) -> None:
        """Known types, each key once, unmodified, in claim order."""
        found = ssh_keys(
            (
                ("sshPublicKey2", "ssh-rsa BBBB  two  spaces "),
                ("sshPublicKey", "ssh-ed25519 AAAA"),
                ("sshPublicKey1", "ssh-ed25519 AAAA"),
                ("sshPublicKeyX", "ssh-ed25519 CCCC"),
                ("sshPublicKey\u0663", "ssh-ed25519 CCCC"),
                ("sshPublicKey3", "ssh-ed25519"),
                ("sshPublicKey4", 'command="x" ssh-ed25519 AAAA'),
                ("sshPublicKey5", "ssh-ed25519 A\nssh-ed25519 B"),
                ("sshPublicKey6", "sk-ssh-ed25519@openssh.com DDDD"),
            )
        )
        self.assertEqual(
            found, (b"ssh-rsa BBBB  two  spaces ", b"ssh-ed25519 AAAA", b"sk-ssh-ed25519@openssh.com DDDD")
        )

    def test_key_limits(self) -> None:
        """A hundred keys of 16384 bytes."""
        self.assertEqual(len(ssh_keys(claims(*(f"ssh-rsa {n}" for n in range(101))))), 100)
        start = "ssh-rsa "
        self.assertEqual(len(ssh_keys(claims(start + "x" * (MAX_KEY_BYTES - 8), start + "x" * (MAX_KEY_BYTES - 7)))), 1)

    def test_access_hosts(self) -> None:
        """Names only: no ALL, no domains, no patterns."""
        found = access_hosts((("accessHosts", "x"), ("accessHosts", "web1, ALL,all,.example.com,a b,web1,db*,h-1")))
        self.assertEqual(found, ("web1", "h-1"))
        self.assertEqual(access_hosts((("accesshosts", "web1"),)), ())

    def test_member_groups(self) -> None:
        """Valid group names, each once."""
        self.assertEqual(member_groups((("memberGroups", "ops,Web, db,ops"),)), ("ops", "db"))


class GroupTests(SynchronousTestCase):
    def test_members(self) -> None:
        """Both ways to name them; empty groups name nobody."""
        group = SourceGroup(id="g1", name="ops", friendly_name="Operations")
        draft = group_draft(group, 7, [b"alice"], [b"uid=alice,dc=x"], LAYOUT)
        self.assertEqual((draft.dn, draft.key), (f"cn=ops,ou=groups,{BASE}", "group:g1"))
        self.assertEqual(
            attributes(draft),
            {
                "objectClass": ["top", "posixGroup"],
                "cn": ["ops"],
                "description": ["Operations"],
                "gidNumber": ["7"],
                "memberUid": ["alice"],
                "member": ["uid=alice,dc=x"],
                "entryUUID": ["g1"],
            },
        )
        empty = attributes(group_draft(group, 7, [], [], LAYOUT))
        self.assertTrue({"memberUid", "member"}.isdisjoint(empty))

    def test_description(self) -> None:
        """An unfit friendly name gives way to the name."""
        for name in ("", "a\nb"):
            group = SourceGroup(id="g1", name="ops", friendly_name=name)
            self.assertEqual(attributes(group_draft(group, 7, [], [], LAYOUT))["description"], ["ops"])

    def test_bis(self) -> None:
        """In rfc2307bis a group with members is a groupOfNames too, which must not be empty."""
        group = SourceGroup(id="g1", name="ops")
        full, empty = group_draft(group, 7, [b"a"], [b"uid=a"], BIS), group_draft(group, 7, [], [], BIS)
        self.assertEqual(attributes(full)["objectClass"], ["top", "posixGroup", "groupOfNames"])
        self.assertEqual(attributes(empty)["objectClass"], ["top", "posixGroup"])


class PrivateGroupTests(SynchronousTestCase):
    def test_entry(self) -> None:
        """The person is its one member, by name."""
        draft = private_group_draft(alice(), 300_001, b"uid=alice,dc=x", LAYOUT)
        self.assertEqual((draft.dn, draft.key), (f"cn=alice,ou=groups,{BASE}", f"private:{ID}"))
        found = attributes(draft)
        self.assertEqual((found["gidNumber"], found["memberUid"]), (["300001"], ["alice"]))
        self.assertTrue({"member", "description"}.isdisjoint(found))

    def test_bis(self) -> None:
        """And by DN where hosts look for DNs."""
        found = attributes(private_group_draft(alice(), 1, b"uid=alice,dc=x", BIS))
        self.assertEqual(found["member"], ["uid=alice,dc=x"])

    def test_disabled(self) -> None:
        """A disabled person's group still has its name, and nobody in it."""
        found = attributes(private_group_draft(alice(disabled=True), 1, b"uid=alice,dc=x", BIS))
        self.assertEqual(found["cn"], ["alice"])
        self.assertTrue({"member", "memberUid"}.isdisjoint(found))
        self.assertEqual(found["objectClass"], ["top", "posixGroup"])

    def test_uuid(self) -> None:
        """Another id than the person's, always the same one, and a UUID whatever the person's id is."""
        for id in (ID, "opaque", "\ud800"):
            self.assertNotEqual(private_group_uuid(id), id)
            self.assertEqual(private_group_uuid(id), private_group_uuid(id))
            self.assertEqual(uuid.UUID(private_group_uuid(id)).version, 5)
        self.assertEqual(private_group_uuid(ID), str(uuid.uuid5(uuid.UUID(ID), "private-group")))
