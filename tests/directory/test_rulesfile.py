"""The rules of bridge mode as a file."""

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.directory.rulesfile import FILE_LIMIT, MAX_RULES, dump, parse
from identree.directory.sudo import SudoRule

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


class FileTests(SynchronousTestCase):
    def test_bytes(self) -> None:
        """The format of the deployed servers, byte for byte."""
        rules = (
            SudoRule(group="ops", commands="/bin/ls & <x>", hosts="web1", run_as_user="root", options="noexec"),
            SudoRule(group="a"),
        )
        self.assertEqual(
            dump(rules),
            b'[\n  {\n    "group": "ops",\n    "hosts": "web1",\n    "commands": "/bin/ls & <x>",\n'
            b'    "runAsUser": "root",\n    "options": "noexec"\n  },\n'
            b'  {\n    "group": "a",\n    "commands": ""\n  }\n]',
        )
        self.assertEqual(dump(()), b"[]")

    def test_new_fields(self) -> None:
        """What is new comes after the rest, in strings like the rest."""
        rule = SudoRule(group="ops", commands="/a", order="3", not_after="x", more_commands=("/b c,d", "/e"))
        self.assertEqual(
            list(json.loads(dump([rule]))[0].items()),
            [("group", "ops"), ("commands", "/a"), ("order", "3"), ("notAfter", "x"), ("commands1", "/b c,d"),
             ("commands2", "/e")],
        )  # fmt: skip
        self.assertEqual(parse(dump([rule])), (rule,))

    @given(
        st.lists(
            st.builds(
                SudoRule,
                group=_TEXT,
                commands=_TEXT,
                hosts=_TEXT,
                run_as_user=_TEXT,
                run_as_group=_TEXT,
                options=_TEXT,
                description=_TEXT,
                more_commands=st.lists(_TEXT.filter(lambda text: bool(text.strip())), max_size=12).map(tuple),
            ),
            unique_by=lambda rule: rule.group,
            max_size=4,
        )
    )
    def test_round_trip(self, rules: list[SudoRule]) -> None:
        """What is written is read again."""
        self.assertEqual(parse(dump(rules)), tuple(rules))

    def test_empty(self) -> None:
        """No file, null and an empty list are no rules."""
        self.assertEqual([parse(raw) for raw in (None, b"null", b"[]")], [(), (), ()])

    def test_lenient(self) -> None:
        """Nulls, also of unknown keys, and missing fields are passed over; so is a second rule for a group."""
        raw = b'[{"group":"a","hosts":null,"later":null},{"group":"a"},{}]'
        self.assertEqual(parse(raw), (SudoRule(group="a"), SudoRule(group="a"), SudoRule(group="")))

    def test_bad(self) -> None:
        """The rule, by its number, and the field are named."""
        for raw, parts in (
            (b"{}", ("list",)),
            (b"[", ("JSON",)),
            (b"\xff", ("UTF-8",)),
            (b'[{"group":"a"},5]', ("rule 2",)),
            (b'[{"group":"a","hosts":["web1"]}]', ("rule 1", "hosts")),
            (b'[{"group":"a","commands1":7}]', ("rule 1", "commands1")),
            (b'[{"group":"a"},{"group":"b","Hosts":"web1"}]', ("rule 2", "'Hosts'", "not known", "notAfter")),
            (b'[{"group":"a","notafter":"x"}]', ("rule 1", "'notafter'")),
            (b'[{"group":"a","' + b"k" * 1000 + b'":1}]', ("'" + "k" * 64 + "'",)),
            (b"[" * 100_000, ("JSON",)),
            (b" " * (FILE_LIMIT + 1), ("larger",)),
        ):
            message = str(self.assertRaises(ValueError, parse, raw))
            for part in parts:
                self.assertIn(part, message)

    def test_numbers_of_any_length(self) -> None:
        """Numbered commands are in the order of their numbers, however many digits these have."""
        long = "1" + "0" * 5000
        raw = json.dumps([{"group": "a", f"commands{long}": "/d", "commands12345": "/c", "commands02": "/a"}]).encode()
        self.assertEqual(parse(raw)[0].more_commands, ("/a", "/c", "/d"))

    def test_limits(self) -> None:
        """A thousand rules, one for each group, and no more bytes than are read."""
        many = [SudoRule(group=f"g{number}") for number in range(MAX_RULES + 1)]
        self.assertRaises(ValueError, dump, many)
        self.assertEqual(len(parse(dump(many[1:]))), MAX_RULES)
        self.assertIn("rule 2", str(self.assertRaises(ValueError, dump, [SudoRule(group="a"), SudoRule(group="a")])))
        self.assertRaises(ValueError, dump, [SudoRule(group="a", commands="x" * FILE_LIMIT)])
