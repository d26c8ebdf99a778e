"""Who gets an entry, and who has a contested name."""

from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from identree.directory.draft import Kind
from identree.directory.eligibility import (
    WITHHELD_MESSAGES,
    Judgement,
    group_name_problem,
    has_private_group,
    judge,
    username_problem,
)
from identree.directory.source import Source
from tests.directory.sources import fresh_map, group, numbered, run, source, user


def judged(of: Source) -> Judgement:
    ids = numbered(fresh_map(), of)
    return run(judge(of, ids.uids, ids.gids))


def reasons(judgement: Judgement) -> list[tuple[str, str, str]]:
    return [(item.source_id, item.key, item.other) for item in judgement.withheld]


class NameTests(SynchronousTestCase):
    def test_usernames(self) -> None:
        """Letters of either case, digits, dot, underscore and hyphen; 1 to 64 of them."""
        for name in ("alice", "A.b_c-9", "x" * 64, "0"):
            self.assertEqual(username_problem(name), "", name)
        for name in ("", "a@b", "x" * 65, "a b", "ä", "alice\n", "a\0"):
            self.assertEqual(username_problem(name), "invalid_username", name)

    def test_dots(self) -> None:
        """Names that lead out of the directory of homes are none."""
        self.assertEqual([username_problem(name) for name in (".", "..", "...")], ["invalid_username"] * 2 + [""])

    def test_reserved_usernames(self) -> None:
        """In any case, as hosts find accounts in any case; everybody's name to sudo is nobody's."""
        for name in ("www-data", "WWW-Data", "root", "Root", "ALL", "All", "all"):
            self.assertEqual(username_problem(name), "reserved_username", name)
        self.assertEqual(username_problem("roots"), "")

    def test_group_names(self) -> None:
        """Lower case, at most 32, not beginning with a digit or hyphen."""
        for name in ("ops", "_x", "a.b-c_9", "x" * 32):
            self.assertEqual(group_name_problem(name), "", name)
        for name in ("", "Ops", "9a", "-a", "x" * 33, "a b", "ops\n", "é"):
            self.assertEqual(group_name_problem(name), "invalid_group_name", name)
        self.assertEqual(group_name_problem("wheel"), "reserved_group_name")

    def test_private_group(self) -> None:
        """A user name that is the system's as a group's name, in whatever case, names no private group."""
        self.assertEqual([has_private_group(name) for name in ("alice", "docker", "Docker")], [True, False, False])


class JudgementTests(SynchronousTestCase):
    def test_everybody(self) -> None:
        """Valid names are served in source order, disabled people too."""
        judgement = judged(source(user("bob", disabled=True), user("alice"), group("ops")))
        self.assertEqual((list(judgement.people), list(judgement.groups)), (["u-bob", "u-alice"], ["g-ops"]))
        self.assertEqual(judgement.withheld, ())

    def test_bad_names(self) -> None:
        """Everything withheld is told with its reason."""
        judgement = judged(source(user("a@b"), user("root"), group("Ops"), group("sudo")))
        self.assertEqual(
            reasons(judgement),
            [
                ("u-a@b", "invalid_username", ""),
                ("u-root", "reserved_username", ""),
                ("g-Ops", "invalid_group_name", ""),
                ("g-sudo", "reserved_group_name", ""),
            ],
        )

    def test_case_variants(self) -> None:
        """Two user names that differ in case only are one name; the older account keeps it."""
        judgement = judged(source(user("Alice", created=1), user("alice", created=2)))
        self.assertEqual(list(judgement.people), ["u-Alice"])
        self.assertEqual(reasons(judgement), [("u-alice", "username_taken", "u-Alice")])

    def test_older_person(self) -> None:
        """A group may not take the name of an older account."""
        judgement = judged(source(user("ops", created=1), group("ops", created=2)))
        self.assertEqual((list(judgement.people), list(judgement.groups)), (["u-ops"], []))
        self.assertEqual(reasons(judgement), [("g-ops", "name_taken_by_person", "u-ops")])

    def test_older_group(self) -> None:
        """An account may not take the name of an older group, not in other case either."""
        judgement = judged(source(user("Ops", created=2), group("ops", created=1)))
        self.assertEqual((list(judgement.people), list(judgement.groups)), ([], ["g-ops"]))
        self.assertEqual(reasons(judgement), [("u-Ops", "name_taken_by_group", "g-ops")])

    def test_unknown_age(self) -> None:
        """Without times the account keeps the name: a lost login is noticed later than a lost group."""
        for times in (("", ""), ("", "yesterday"), ("2024-01-01T00:00:00Z", "")):
            person, team = (
                replace(item, created_at=time) for item, time in zip((user("ops"), group("ops")), times, strict=True)
            )
            self.assertEqual(list(judged(source(person, team)).people), ["u-ops"], times)

    def test_times_as_instants(self) -> None:
        """Ages are compared as instants, whatever the zone and the fraction."""
        person = replace(user("ops"), created_at="2024-01-01T10:00:00.5+02:00")
        team = replace(group("ops"), created_at="2024-01-01T08:00:00Z")
        self.assertEqual(list(judged(source(person, team)).groups), ["g-ops"])

    def test_withheld_names_are_free(self) -> None:
        """Who is not served for another reason has no claim to a name."""
        judgement = judged(source(user("ops", created=1, id="no number"), group("ops", created=2)))
        self.assertEqual(list(judgement.people), ["no number"])
        of = source(user("wheel", created=1), group("wheel", created=2))
        self.assertEqual(
            reasons(judged(of)),
            [("g-wheel", "reserved_group_name", ""), ("u-wheel", "private_group_reserved", "")],
        )

    def test_second_group(self) -> None:
        """Of two groups with one name the older one is served."""
        judgement = judged(source(group("ops", id="1"), group("ops", id="2", created=2)))
        self.assertEqual(reasons(judgement), [("2", "group_name_taken", "1")])

    def test_repeated_id(self) -> None:
        """An id that comes twice gets one entry, and keeps no second name from others."""
        judgement = judged(source(user("alice", id="1"), user("bob", id="1"), user("bob", id="2")))
        self.assertEqual({id: one.username for id, one in judgement.people.items()}, {"1": "alice", "2": "bob"})

    def test_no_number(self) -> None:
        """Without both numbers there is no entry."""
        of = source(user("alice"), group("ops"))
        judgement = run(judge(of, {"u-alice": 5}, {}))
        self.assertEqual(reasons(judgement), [("u-alice", "no_number", ""), ("g-ops", "no_number", "")])

    def test_shared_id(self) -> None:
        """A group with a person's id would have the number of the person's private group, so it is withheld."""
        judgement = judged(source(user("alice", id="1"), group("ops", id="1")))
        self.assertEqual((list(judgement.people), list(judgement.groups)), (["1"], []))

    def test_texts(self) -> None:
        """Every reason has a sentence, with nothing left to fill in."""
        judgement = judged(source(user("ops", created=2), group("ops"), user("docker"), user("a@b")))
        for item in judgement.withheld:
            self.assertNotIn("{", item.text())
            self.assertIn(item.key, WITHHELD_MESSAGES)
        self.assertIn(Kind.PRIVATE_GROUP, {item.kind for item in judgement.withheld})
