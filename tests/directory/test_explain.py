"""What an administrator is told about a name."""

import base64

from twisted.trial.unittest import SynchronousTestCase

from identree.directory.build import build, build_bridge
from identree.directory.explain import Explanation, explain, fingerprint, text
from identree.directory.ids import Numbers
from identree.directory.layout import Layout
from identree.directory.source import Source
from identree.directory.sudo import SudoRule
from tests.directory.sources import BASE, LAYOUT, fresh_map, group, numbered, run, source, user

NESTED = Layout(base_dn=BASE, nested_groups=True)
KEY = "ssh-ed25519 " + base64.b64encode(b"key").decode() + " alice@laptop"


def world() -> Source:
    return source(
        user("alice", claims=(("sshPublicKey", KEY),), first_name="Alice"),
        user("eve", disabled=True),
        user("a@b"),
        user("ops", created=9),
        group("all", "alice"),
        group("team", claims=(("memberGroups", "ops"), ("sudoCommands", "/bin/ls"))),
        group("ops", "alice", "eve", "a@b", claims=(("sudoCommands", "ALL,bad"), ("accessHosts", "web1"))),
        group("web", "eve", "alice", claims=(("sudoCommands", "ALL,!/bin/su"),)),
        group("db", "bob", claims=(("sudoCommands", "ALL"),)),
    )


def about(name: str, of: Source | None = None, layout: Layout = NESTED) -> Explanation:
    of = of or world()
    ids = numbered(fresh_map(), of)
    return explain(name, of, ids.numbers, layout, run(build(of, ids.numbers, layout)))


class AccountTests(SynchronousTestCase):
    def test_account(self) -> None:
        """Numbers, groups with the way into them, hosts and fingerprints; found in any case and by id."""
        for name in ("alice", "ALICE", "u-alice"):
            account = about(name).account
            assert account is not None
            self.assertEqual((account.uid, account.hosts, account.shell), (200_000, ("web1",), "/bin/bash"))
            self.assertEqual(
                [(one.group, one.via) for one in account.groups], [("team", ("ops",)), ("ops", ()), ("web", ())]
            )
            self.assertEqual(account.key_fingerprints, (fingerprint(KEY.encode()),))

    def test_rules(self) -> None:
        """Every rule with the reason."""
        self.assertEqual(
            [(rule.name, rule.applies, rule.why) for rule in about("alice").rules],
            [
                ("team", True, "nested_member"),
                ("ops", True, "member"),
                ("web", False, "not_served"),
                ("db", False, "not_served"),
            ],
        )

    def test_disabled(self) -> None:
        """A disabled account has no rule, and is told so."""
        explanation = about("eve")
        assert explanation.account is not None
        self.assertEqual((explanation.account.disabled, explanation.account.groups), (True, ()))
        self.assertEqual({rule.name: rule.why for rule in explanation.rules}["ops"], "disabled")

    def test_not_a_member(self) -> None:
        """Nor has one who is not in the group."""
        of = source(user("bob"), user("alice"), group("ops", "alice", claims=(("sudoCommands", "ALL"),)))
        [rule] = about("bob", of).rules
        self.assertEqual((rule.applies, rule.why), (False, "not_member"))

    def test_withheld(self) -> None:
        """Why a person has no account."""
        explanation = about("a@b")
        self.assertIsNone(explanation.account)
        self.assertEqual([item.key for item in explanation.withheld], ["invalid_username"])
        self.assertIn("ASCII", text(explanation))


class GroupTests(SynchronousTestCase):
    def test_group(self) -> None:
        """Members, and who of the group is none, with the reason."""
        found = about("ops").group
        assert found is not None
        self.assertEqual(found.members, ("alice",))
        self.assertEqual(found.not_members, (("eve", "disabled"), ("a@b", "invalid_username")))

    def test_contested(self) -> None:
        """The person who lost the name to the group is told beside it."""
        self.assertEqual([item.key for item in about("ops").withheld], ["name_taken_by_group"])

    def test_rules(self) -> None:
        """Its own rule and others'."""
        self.assertEqual(
            {rule.name: rule.why for rule in about("ops").rules if rule.report.served},
            {"team": "other_group", "ops": "group"},
        )

    def test_reserved(self) -> None:
        """A group that is not served is told."""
        explanation = about("all")
        self.assertIsNone(explanation.group)
        self.assertEqual([item.key for item in explanation.withheld], ["reserved_group_name"])


class BridgeTests(SynchronousTestCase):
    def test_rules(self) -> None:
        """Only rules are known here."""
        built = run(build_bridge((SudoRule(group="ops", commands="ALL"),), LAYOUT))
        explanation = explain("ops", Source(), Numbers(uids={}, gids={}), LAYOUT, built)
        self.assertEqual([(rule.applies, rule.why) for rule in explanation.rules], [(True, "host_group")])
        self.assertIn("bridge mode", text(explanation))


class TextTests(SynchronousTestCase):
    def test_account(self) -> None:
        """The lines of an account name what matters, and never a key."""
        lines = text(about("alice"))
        for part in (
            "uid 200000", "team (200001) through ops", "SHA256:", "web1",
            "ops: applies: the account is a member", "commands: ALL",
            "bad must be ALL or begin with a slash (left out)", "leaving out only !/bin/su", "(refuses the rule)",
        ):  # fmt: skip
            self.assertIn(part, lines)
        self.assertNotIn(KEY.split()[1], lines)

    def test_unknown(self) -> None:
        """A name that means nothing is said to."""
        self.assertFalse(about("nobody-here").found)
        self.assertIn("nothing here is called nobody-here", text(about("nobody-here")))

    def test_terminal(self) -> None:
        """What stands in the source cannot move the cursor."""
        lines = text(about("x\x1b[2J", source(user("x\x1b[2J"))))
        self.assertNotIn("\x1b", lines)

    def test_fingerprint(self) -> None:
        """As ssh-keygen prints it; a key that is no base64 has none."""
        for key in (b"ssh-rsa a2V5", b"ssh-rsa a2V5 a comment"):
            self.assertEqual(fingerprint(key), "ssh-rsa SHA256:LHDhK3oGRvkiefQnx7OOczTY5Tic/xZ6HcMOc/gmtoM")
        self.assertEqual(fingerprint(b"ssh-rsa ###"), "ssh-rsa unreadable")
        self.assertEqual(fingerprint(b"ssh-rsa "), "ssh-rsa unreadable")
