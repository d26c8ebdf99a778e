"""Sudo rules in the rules file: who may change them, what is refused, what is recorded (spec/ldap section 3.5)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Coroutine, Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from identree.app.statefiles import BadStateFile
from identree.app.sudorules import (
    FIELD_BYTES,
    PAGE_RULES,
    Listing,
    RuleExists,
    RuleMissing,
    RuleNarrowed,
    RuleRefused,
    RulesUnavailable,
    State,
    SudoRules,
)
from identree.core.errors import Forbidden, StorageUnavailable
from identree.directory.build import RuleReport, build
from identree.directory.ids import Numbers
from identree.directory.layout import Layout, NoAuthenticate
from identree.directory.rulesfile import MAX_RULES
from identree.directory.source import Source, SourceGroup, SourceUser
from identree.directory.sudo import SudoRule
from tests.app.memoryrules import MemoryRules, at_once
from tests.app.world import World, now_result

OPS = SudoRule(group="ops", commands="/usr/bin/apt,/usr/bin/systemctl restart nginx", hosts="web1,web2")
DBA = SudoRule(group="dba", commands="/usr/bin/psql", run_as_user="postgres")


async def away(*arguments: object) -> None:
    """A store's operation while the database is locked."""
    raise StorageUnavailable("locked")


class RulesTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.file = MemoryRules(OPS, DBA)
        self.reports: Sequence[RuleReport] = ()
        self.mode: NoAuthenticate = "false"
        self.rules = self.made(self.file)
        self.carol = self.world.caller("carol", "admin")

    def made(self, file: MemoryRules | None) -> SudoRules:
        return SudoRules(
            file=file,
            reports=lambda: self.reports,
            no_authenticate=lambda: self.mode,
            store=self.world.store,
            now=self.world.now,
            journal=self.world.journal,
            sliced=at_once,
        )

    def listing(self, **asked: Any) -> Listing:
        return now_result(self.rules.listing(self.carol, **asked))

    def refused(self, work: Coroutine[Any, Any, object]) -> list[tuple[str, str, bool]]:
        """Field, key and weight of why a rule was not saved."""
        refusal = self.failureResultOf(Deferred.fromCoroutine(work), RuleRefused).value
        return [(verdict.field, verdict.key, verdict.refuses) for verdict in refusal.verdicts]

    def history(self) -> list[tuple[str, str, str, str]]:
        entries = now_result(self.world.store.history(None))
        return [(entry.username, entry.action, entry.hostname, entry.actor) for entry in entries]

    def unchanged(self) -> None:
        """Neither the file nor the records know of anything."""
        self.assertEqual(self.file.rules, (OPS, DBA))
        self.assertEqual((self.world.store.events, self.history()), ([], []))


class AddingTests(RulesTestCase):
    def test_added_last(self) -> None:
        """A new rule stands behind the others, with its fields trimmed."""
        rule = now_result(
            self.rules.add(
                self.carol, {"group": " web ", "commands": " ALL ", "options": "NOPASSWD", "run_as_group": "www"}
            )
        )
        self.assertEqual(rule, SudoRule(group="web", commands="ALL", options="NOPASSWD", run_as_group="www"))
        self.assertEqual(self.file.rules, (OPS, DBA, rule))

    def test_recorded(self) -> None:
        """History, audit record and log say who changed the rule of which group, from where."""
        now_result(self.rules.add(self.carol, {"group": "web", "commands": "ALL"}, address="192.0.2.9"))
        self.assertEqual(self.history(), [("carol", "sudo_rule_modified", "web", "")])
        record = json.loads(self.world.store.log.records[0].plain)
        self.assertEqual(
            [record.get(key) for key in ("event", "username", "hostname", "actor", "remote_addr", "reason")],
            ["sudo_rule_modified", "carol", "web", "carol", "192.0.2.9", None],
        )
        self.assertEqual(
            self.world.log, [("SUDO_RULE_ADDED", {"admin": "carol", "group": "web", "remote_addr": "192.0.2.9"})]
        )

    def test_only_admins(self) -> None:
        """Whoever is no administrator is refused before anything is looked at."""
        alice = self.world.caller("alice")
        for work in (
            self.rules.add(alice, {}),
            self.rules.update(alice, {}),
            self.rules.delete(alice, "ops"),
            self.rules.listing(alice),
            self.rules.rule(alice, "ops"),
        ):
            self.failureResultOf(Deferred.fromCoroutine(work), Forbidden)
        self.unchanged()

    def test_required(self) -> None:
        """Group and commands must be there; both are named."""
        self.assertEqual(
            self.refused(self.rules.add(self.carol, {"commands": " "})),
            [("group", "required", True), ("commands", "required", True)],
        )
        self.unchanged()

    def test_group_form(self) -> None:
        """What the file's contract does not allow as a group."""
        for group in ("Ops", "1st", "a b", "a" * 257, "a\nb", "öps", "-a"):
            with self.subTest(group=group):
                work = self.rules.add(self.carol, {"group": group, "commands": "ALL"})
                self.assertEqual(self.refused(work), [("group", "bad_group", True)])
        self.unchanged()

    def test_never_served_group(self) -> None:
        """Groups that could be stored but would never be served are refused with the reason."""
        for group, key in (("root", "sudo_reserved_group"), ("a" * 33, "sudo_bad_group")):
            self.assertEqual(
                self.refused(self.rules.add(self.carol, {"group": group, "commands": "ALL"})), [("group", key, True)]
            )
        self.unchanged()

    def test_field_length(self) -> None:
        """4096 bytes are the most, in UTF-8."""
        fields = {"group": "web", "commands": "/" + "x" * (FIELD_BYTES - 1)}
        now_result(self.rules.add(self.carol, fields))
        for long in ("/" + "x" * FIELD_BYTES, "/" + "ä" * (FIELD_BYTES // 2)):
            fields = {"group": "more", "commands": long, "hosts": long}
            self.assertEqual(
                self.refused(self.rules.add(self.carol, fields)),
                [("commands", "too_long", True), ("hosts", "too_long", True)],
            )

    def test_one_line(self) -> None:
        """NUL, CR and LF cannot stand in a field."""
        for character in "\0\r\n":
            fields = {"group": "web", "commands": f"/bin/a{character}b", "options": f"a{character}b"}
            self.assertEqual(
                self.refused(self.rules.add(self.carol, fields)),
                [("commands", "more_lines", True), ("options", "more_lines", True)],
            )

    def test_negation(self) -> None:
        """A negation is never dropped: it refuses the rule, also where dropped items are accepted."""
        fields = {"group": "web", "commands": "ALL, !/bin/su"}
        self.assertEqual(self.refused(self.rules.add(self.carol, fields)), [("commands", "sudo_negated", True)])
        self.unchanged()

    @given(st.sampled_from(["commands", "hosts", "run_as_user"]), st.text("ab/ ,!", max_size=12))
    def test_any_negation(self, field: str, text: str) -> None:
        """No item that begins with a negation is ever written to the file."""
        self.setUp()
        fields = {"group": "web", "commands": "ALL", field: text}
        with contextlib.suppress(RuleRefused):
            now_result(self.rules.add(self.carol, fields))
        negated = [item for item in text.split(",") if item.strip().startswith("!")]
        self.assertEqual(len(self.file.rules) == 3 and bool(negated), False)

    def test_nothing_valid(self) -> None:
        """A rule without any valid command would never be served."""
        self.assertEqual(
            self.refused(self.rules.add(self.carol, {"group": "web", "commands": "apt"})),
            [("commands", "sudo_relative_command", False), ("commands", "sudo_no_commands", True)],
        )

    def test_dropped_items_are_asked_about(self) -> None:
        """Where a person is there, items that would be left out are named first."""
        fields = {"group": "web", "commands": "/usr/bin/apt, apt"}
        work = self.rules.add(self.carol, fields, narrowed=False)
        refusal = self.failureResultOf(Deferred.fromCoroutine(work), RuleNarrowed).value
        self.assertEqual([(v.field, v.item) for v in refusal.verdicts], [("commands", "apt")])
        self.unchanged()

    def test_dropped_items_accepted(self) -> None:
        """Accepted, the rule is kept as it was written."""
        now_result(self.rules.add(self.carol, {"group": "web", "commands": "/usr/bin/apt, apt"}))
        self.assertEqual(self.file.rules[-1].commands, "/usr/bin/apt, apt")

    def test_mode(self) -> None:
        """Whether an option is left out depends on the mode that is in force."""
        fields = {"group": "web", "commands": "ALL", "options": "!authenticate"}
        self.assertEqual(
            self.refused(self.rules.add(self.carol, fields, narrowed=False)), [("options", "sudo_option_mode", False)]
        )
        self.mode = "claims"
        now_result(self.rules.add(self.carol, fields, narrowed=False))

    def test_duplicate(self) -> None:
        """A group has one rule."""
        work = self.rules.add(self.carol, {"group": "ops", "commands": "ALL"})
        self.failureResultOf(Deferred.fromCoroutine(work), RuleExists)
        self.unchanged()

    def test_cap(self) -> None:
        """A thousand rules are the most."""
        self.file.rules = tuple(SudoRule(group=f"g{number}", commands="ALL") for number in range(MAX_RULES))
        self.assertEqual(
            self.refused(self.rules.add(self.carol, {"group": "web", "commands": "ALL"})),
            [("group", "too_many_rules", True)],
        )

    def test_commands_with_commas(self) -> None:
        """Each line of the further commands is one command."""
        fields = {"group": "web", "commands": "", "more_commands": "/bin/a 1,2\r\n\r\n /bin/b\n"}
        now_result(self.rules.add(self.carol, fields))
        self.assertEqual(self.file.rules[-1].more_commands, ("/bin/a 1,2", "/bin/b"))


class UpdatingTests(RulesTestCase):
    def test_in_place(self) -> None:
        """The order of the rules is theirs in sudo, so a changed one keeps its place."""
        now_result(self.rules.update(self.carol, {"group": "ops", "commands": "ALL"}))
        self.assertEqual(self.file.rules, (SudoRule(group="ops", commands="ALL"), DBA))
        self.assertEqual(self.world.log[0][0], "SUDO_RULE_UPDATED")

    def test_unknown(self) -> None:
        """There is nothing to change."""
        work = self.rules.update(self.carol, {"group": "web", "commands": "ALL"})
        self.failureResultOf(Deferred.fromCoroutine(work), RuleMissing)
        self.unchanged()

    def test_further_fields_stay(self) -> None:
        """A form that does not know a field leaves it as it is."""
        self.file.rules = (SudoRule(group="ops", commands="ALL", order="7", more_commands=("/bin/a 1,2",)), DBA)
        now_result(self.rules.update(self.carol, {"group": "ops", "commands": "/bin/b"}))
        self.assertEqual(
            self.file.rules[0],
            SudoRule(group="ops", commands="/bin/b", order="7", more_commands=("/bin/a 1,2",)),
        )

    def test_further_fields_can_be_emptied(self) -> None:
        """A form that has a field empty empties it."""
        self.file.rules = (SudoRule(group="ops", commands="ALL", order="7", more_commands=("/bin/a 1,2",)),)
        now_result(self.rules.update(self.carol, {"group": "ops", "commands": "ALL", "order": "", "more_commands": ""}))
        self.assertEqual(self.file.rules, (SudoRule(group="ops", commands="ALL"),))

    def test_repeated_group(self) -> None:
        """A file edited by hand may have a group twice; its change leaves one rule, at the first's place."""
        self.file.rules = (OPS, DBA, SudoRule(group="ops", commands="ALL"))
        now_result(self.rules.update(self.carol, {"group": "ops", "commands": "/bin/a"}))
        self.assertEqual(self.file.rules, (SudoRule(group="ops", commands="/bin/a"), DBA))


class DeletingTests(RulesTestCase):
    def test_deleted(self) -> None:
        """The rule is gone, and that is recorded."""
        now_result(self.rules.delete(self.carol, " ops ", address="192.0.2.9"))
        self.assertEqual(self.file.rules, (DBA,))
        self.assertEqual(self.history(), [("carol", "sudo_rule_modified", "ops", "")])
        self.assertEqual(self.world.log[0][0], "SUDO_RULE_DELETED")

    def test_unknown(self) -> None:
        """There is nothing to delete."""
        self.failureResultOf(Deferred.fromCoroutine(self.rules.delete(self.carol, "web")), RuleMissing)
        self.unchanged()

    def test_no_group(self) -> None:
        """What is no group is not looked for."""
        self.assertEqual(self.refused(self.rules.delete(self.carol, "")), [("group", "required", True)])

    def test_never_served(self) -> None:
        """A rule that deployed servers stored but nobody is told of can be deleted."""
        self.file.rules = (SudoRule(group="a" * 200, commands="x"),)
        now_result(self.rules.delete(self.carol, "a" * 200))
        self.assertEqual(self.file.rules, ())

    def test_repeated_group(self) -> None:
        """The second rule of a group, which was never served, does not come into force."""
        self.file.rules = (OPS, DBA, SudoRule(group="ops", commands="ALL"))
        now_result(self.rules.delete(self.carol, "ops"))
        self.assertEqual(self.file.rules, (DBA,))


class TroubleTests(RulesTestCase):
    def test_unreadable(self) -> None:
        """A file that cannot be trusted stops looking and changing, with its reason."""
        self.file.broken = BadStateFile("/config/sudorules.json can be written by others; run: chmod go-w it")
        for work in (
            self.rules.listing(self.carol),
            self.rules.rule(self.carol, "ops"),
            self.rules.add(self.carol, {"group": "web", "commands": "ALL"}),
        ):
            problem = self.failureResultOf(Deferred.fromCoroutine(work), RulesUnavailable).value
            self.assertIn("chmod go-w", str(problem))

    def test_unwritable(self) -> None:
        """A failed write leaves everything as it was."""
        self.file.full = OSError(28, "No space left on device")
        work = self.rules.add(self.carol, {"group": "web", "commands": "ALL"})
        self.failureResultOf(Deferred.fromCoroutine(work), RulesUnavailable)
        self.unchanged()
        self.assertEqual(len(self.flushLoggedErrors()), 0)

    def test_database_away(self) -> None:
        """Without a database the file is not touched."""
        self.patch(self.world.store, "ping", away)
        work = self.rules.add(self.carol, {"group": "web", "commands": "ALL"})
        self.failureResultOf(Deferred.fromCoroutine(work), StorageUnavailable)
        self.assertEqual((self.file.rules, self.file.written), ((OPS, DBA), []))

    def test_not_recorded(self) -> None:
        """What cannot be recorded is taken back."""
        self.patch(self.world.store, "change_grace", away)
        work = self.rules.add(self.carol, {"group": "web", "commands": "ALL"})
        self.failureResultOf(Deferred.fromCoroutine(work), StorageUnavailable)
        self.assertEqual(self.file.rules, (OPS, DBA))
        self.assertEqual([len(rules) for rules in self.file.written], [3, 2])

    def test_client_hangs_up(self) -> None:
        """A change under way goes on to its end, and is recorded, when nobody waits for it any more."""
        self.file.held = Deferred()
        working = Deferred.fromCoroutine(self.rules.add(self.carol, {"group": "web", "commands": "ALL"}))
        self.assertNoResult(working)
        working.cancel()
        self.failureResultOf(working, CancelledError)
        self.file.held.callback(None)
        self.assertEqual(len(self.file.rules), 3)
        self.assertEqual(self.world.store.events, ["sudo_rule_modified"])

    def test_one_at_a_time(self) -> None:
        """The second change is decided on what the first one left."""
        self.file.held = held = Deferred()
        first = Deferred.fromCoroutine(self.rules.add(self.carol, {"group": "web", "commands": "ALL"}))
        second = Deferred.fromCoroutine(self.rules.add(self.carol, {"group": "web", "commands": "/bin/a"}))
        self.assertNoResult(second)
        self.file.held = None
        held.callback(None)
        self.assertEqual(self.successResultOf(first), SudoRule(group="web", commands="ALL"))
        self.failureResultOf(second, RuleExists)
        self.assertEqual(len(self.file.rules), 3)


class ListingTests(RulesTestCase):
    def test_states(self) -> None:
        """In file order, each with what hosts are told of it."""
        self.file.rules = (
            OPS,
            SudoRule(group="part", commands="/bin/a, apt"),
            SudoRule(group="wide", commands="ALL, !/bin/su"),
        )
        self.assertEqual(
            [(judged.rule.group, judged.state) for judged in self.listing().rules],
            [("ops", State.SERVED), ("part", State.IN_PART), ("wide", State.WITHHELD)],
        )

    def test_repeated_group(self) -> None:
        """Of several rules for a group only the first is served."""
        self.file.rules = (OPS, SudoRule(group="ops", commands="ALL"))
        first, second = self.listing().rules
        self.assertEqual((first.state, second.state), (State.SERVED, State.WITHHELD))
        self.assertEqual([verdict.key for verdict in second.verdicts], ["repeated"])

    def test_search(self) -> None:
        """A part of any field, in any case; the total is told beside."""
        listing = self.listing(search="PSQL")
        self.assertEqual(([j.rule.group for j in listing.rules], listing.found, listing.total), (["dba"], 1, 2))
        self.assertEqual(self.listing(search="nothing").rules, ())

    def test_pages(self) -> None:
        """A page has so many rules; a page that does not exist is the nearest."""
        self.file.rules = tuple(SudoRule(group=f"g{number}", commands="ALL") for number in range(PAGE_RULES * 2 + 1))
        for asked, number, shown in ((1, 1, PAGE_RULES), (3, 3, 1), (9, 3, 1), (0, 1, PAGE_RULES), (-5, 1, PAGE_RULES)):
            listing = self.listing(number=asked)
            self.assertEqual((listing.number, listing.pages, len(listing.rules)), (number, 3, shown))

    def test_rule_to_change(self) -> None:
        """One rule by its group."""
        self.assertEqual(now_result(self.rules.rule(self.carol, "dba")).rule, DBA)
        self.failureResultOf(Deferred.fromCoroutine(self.rules.rule(self.carol, "web")), RuleMissing)


class GroupRulesTests(RulesTestCase):
    """Where the rules come from PocketID groups."""

    def setUp(self) -> None:
        super().setUp()
        self.rules = self.made(None)
        user = SourceUser(id="u", username="alice")
        groups = (
            SourceGroup(
                id="1",
                name="ops",
                claims=(("sudoCommands", "/bin/a, apt"), ("sudoHosts", "web1")),
                member_ids=("u",),
            ),
            SourceGroup(id="2", name="staff-room", claims=(("accessHosts", "web1"),), member_ids=("u",)),
            SourceGroup(id="3", name="docker", claims=(("sudoCommands", "ALL"),), member_ids=("u",)),
            SourceGroup(id="4", name="empty", claims=(("sudoCommands", "ALL"),)),
        )
        numbers = Numbers(uids={"u": 200000}, gids={"u": 200000, "1": 200001, "2": 200002, "4": 200003})
        layout = Layout(base_dn="dc=example,dc=com")
        self.reports = now_result(at_once(build(Source(users=(user,), groups=groups), numbers, layout))).rules

    def test_listed(self) -> None:
        """Groups with sudo claims, as the directory judged them."""
        self.assertEqual(
            [(judged.rule.group, judged.rule.hosts, judged.state) for judged in self.listing().rules],
            [("ops", "web1", State.IN_PART), ("docker", "", State.WITHHELD), ("empty", "", State.WITHHELD)],
        )

    def test_nothing_yet(self) -> None:
        """Before the first refresh there are no rules."""
        self.reports = ()
        self.assertEqual(self.listing().rules, ())

    def test_not_changed_here(self) -> None:
        """There is nothing to change."""
        self.assertFalse(self.rules.editable)
        for work in (
            self.rules.add(self.carol, {"group": "web", "commands": "ALL"}),
            self.rules.update(self.carol, {"group": "ops", "commands": "ALL"}),
            self.rules.delete(self.carol, "ops"),
            self.rules.rule(self.carol, "ops"),
        ):
            self.failureResultOf(Deferred.fromCoroutine(work), RuleMissing)
        self.assertEqual(self.world.store.events, [])
