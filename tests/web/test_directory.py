"""The administrators' pages about the directory (spec/http-api section 9.2, spec/web-ui section 12.6)."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from treq.testing import StubTreq
from twisted.internet.defer import Deferred

from identree.app.directory import Loss, Refusal, Served, Trouble
from identree.app.ports import SourceUnavailable
from identree.app.statefiles import BadStateFile
from identree.core import tokens
from identree.directory.build import build
from identree.directory.draft import Kind
from identree.directory.eligibility import WITHHELD_MESSAGES, Withheld
from identree.directory.explain import REASONS
from identree.directory.ids import Numbers
from identree.directory.layout import Layout
from identree.directory.source import Source, SourceGroup, SourceUser
from identree.directory.sudo import VERDICT_MESSAGES, SudoRule, Verdict
from identree.web.directory_views import _REASONS, _VERDICTS, _WITHHELD, messages
from tests.app.memoryrules import at_once
from tests.web import test_render
from tests.web.desk import DBA, OPS, Desk
from tests.web.house import EXTERNAL_URL, START, House, result
from tests.web.test_render import Document, PageCase

RULES = "/admin/sudo-rules"
DIRECTORY = "/admin/directory"
ADD, UPDATE, DELETE = "/api/sudo-rules/add", "/api/sudo-rules/update", "/api/sudo-rules/delete"
REFRESH = "/api/directory/refresh"


class DirectoryCase(PageCase):
    full = False

    def setUp(self) -> None:
        self.desk = Desk(OPS, DBA, full=self.full)
        self.house = House(directory=self.desk)
        self.http = StubTreq(self.house.root)

    @property
    def rules(self) -> tuple[SudoRule, ...]:
        assert self.desk.file is not None
        return self.desk.file.rules

    def page(self, path: str, **options: Any) -> Document:
        return self.document(path, "carol", "admin", **options)

    def post(
        self, path: str, user: str = "carol", role: str = "admin", *, script: bool = False, **fields: str | None
    ) -> Any:
        """A form with valid form authentication; fields given as None are left out."""
        ts = int(self.house.now().timestamp())
        sent: dict[str, str | None] = {
            "username": user,
            "csrf_token": tokens.csrf_token(self.house.keys, user, ts),
            "csrf_ts": str(ts),
            **fields,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        if script:
            headers["Accept"] = "application/json"
        answering = self.http.post(
            EXTERNAL_URL + path,
            data=urlencode({name: text for name, text in sent.items() if text is not None}).encode(),
            headers=headers,
            cookies={"pam_session": self.house.cookie(user, role)},
            allow_redirects=False,
        )
        self.http.flush()
        return self.successResultOf(answering)

    def done(self, response: Any, flash: str, location: str = RULES) -> None:
        """A redirect that carries this flash."""
        self.assertEqual((response.code, response.headers.getRawHeaders("location")), (303, [EXTERNAL_URL + location]))
        cookies = response.headers.getRawHeaders("set-cookie")
        self.assertIn(f"pam_flash={flash}; Path=/; Max-Age=10; HttpOnly; SameSite=Strict", cookies)

    def values(self, page: Document) -> dict[str, str]:
        """What the inputs of the page's form are filled in with."""
        return {
            attributes["name"]: attributes.get("value", "")
            for tag, attributes in page.tags
            if tag == "input" and attributes.get("id", "").startswith("field-")
        }


class AddRuleTests(DirectoryCase):
    def test_added(self) -> None:
        """Deployed scripts: the fields of the contract, a redirect, and the flash of the contract."""
        response = self.post(ADD, group="web", commands="ALL", hosts="web1", run_as_user="www", options="NOPASSWD")
        self.done(response, "sudo_added:web")
        self.assertEqual(
            self.rules[-1], SudoRule(group="web", commands="ALL", hosts="web1", run_as_user="www", options="NOPASSWD")
        )
        self.assertEqual(self.house.store.events, ["sudo_rule_modified"])

    def test_fields_in_the_query(self) -> None:
        """Query parameters are form fields."""
        self.done(self.post(ADD + "?group=web&commands=ALL"), "sudo_added:web")

    def test_script_with_dropped_items(self) -> None:
        """Scripts are not asked: what is left out narrows the rule, and the page shows it."""
        self.done(self.post(ADD, group="web", commands="ALL,apt"), "sudo_added:web")
        self.assertIn("apt must be ALL or begin with a slash.", self.page(RULES).text)

    def test_person_is_asked(self) -> None:
        """A person reads what would be left out, with everything still filled in, and nothing is saved yet."""
        response = self.post(ADD, ask="1", group="web", commands="/bin/a\r\napt", options="LOG_INPUT")
        page = Document(self.body(response))
        self.assertEqual(response.code, 400)
        self.assertEqual(page.all("data-test").count("asks"), 1)
        self.assertIn("apt must be ALL or begin with a slash.", page.text)
        self.assertIn("/bin/a\napt", page.text)
        self.assertEqual((self.values(page)["group"], self.values(page)["options"]), ("web", "LOG_INPUT"))
        self.assertEqual(self.rules, (OPS, DBA))

    def test_save_anyway(self) -> None:
        """The person accepts it."""
        self.done(self.post(ADD, ask="1", accept="1", group="web", commands="/bin/a\r\napt"), "sudo_added:web")
        self.assertEqual(self.rules[-1].commands, "/bin/a, apt")

    def test_negation(self) -> None:
        """A negation is refused at its field, whatever was accepted, and nothing that was typed is lost."""
        response = self.post(ADD, ask="1", accept="1", group="web", commands="ALL\r\n!/bin/su", hosts="web1")
        page = Document(self.body(response))
        self.assertEqual((response.code, self.rules), (400, (OPS, DBA)))
        self.assertIn("!/bin/su: a negation cannot be served", page.text)
        self.assertIn("ALL\n!/bin/su", page.text)
        invalid = [attributes["name"] for _, attributes in page.tags if attributes.get("aria-invalid") == "true"]
        self.assertEqual(invalid, ["commands"])

    def test_missing_fields(self) -> None:
        """Group and commands are needed."""
        response = self.post(ADD, hosts="web1")
        page = Document(self.body(response))
        self.assertEqual((response.code, page.text.count("Fill this in.")), (400, 2))

    def test_duplicate(self) -> None:
        """409, and the form comes back."""
        response = self.post(ADD, group="ops", commands="ALL")
        page = Document(self.body(response))
        self.assertEqual((response.code, self.values(page)["group"]), (409, "ops"))
        self.assertIn("There is a rule for ops already. Edit that one instead.", page.text)

    def test_long_fields(self) -> None:
        """The longest fields of the contract arrive together, each byte of them encoded."""
        path = "/" + "&" * 4095
        response = self.post(ADD, group="web", commands=path, hosts="", options=",".join(["LOG_INPUT"] * 400))
        self.done(response, "sudo_added:web")
        self.assertEqual(self.post(ADD, group="more", commands=path + "x").code, 400)

    def test_hostile_text(self) -> None:
        """What was typed comes back as text."""
        page = Document(self.body(self.post(ADD, group="<script>", commands="</textarea><script>alert(1)</script>")))
        scripts = [attributes for tag, attributes in page.tags if tag == "script" and not attributes.get("src")]
        self.assertEqual((scripts, page.unclosed), ([], []))

    def test_language_links(self) -> None:
        """The page that a POST answers with leads to pages that can be asked for."""
        page = Document(self.body(self.post(ADD, group="web", commands="")))
        self.assertIn(f"{RULES}?lang=de", page.all("href"))

    def test_unwritable(self) -> None:
        """A file that cannot be written: 503, the reason, and the form as it was sent."""
        assert self.desk.file is not None
        self.desk.file.full = OSError(28, "No space left on device")
        response = self.post(ADD, group="web", commands="ALL")
        page = Document(self.body(response))
        self.assertEqual((response.code, self.values(page)["group"], self.rules), (503, "web", (OPS, DBA)))
        self.assertIn("No space left on device", page.text)


class ChangeRuleTests(DirectoryCase):
    def test_updated(self) -> None:
        """At its place, with the flash of the contract."""
        self.done(self.post(UPDATE, group="ops", commands="/bin/a"), "sudo_updated:ops")
        self.assertEqual(self.rules, (SudoRule(group="ops", commands="/bin/a"), DBA))

    def test_update_unknown(self) -> None:
        """404."""
        response = self.post(UPDATE, group="web", commands="ALL")
        self.assertEqual(response.code, 404)
        self.assertIn("No rule for this group", self.body(response))

    def test_deleted(self) -> None:
        """Gone, with the flash of the contract, which the page says in words."""
        self.done(self.post(DELETE, group="ops"), "sudo_deleted:ops")
        self.assertEqual(self.rules, (DBA,))
        page = self.page(RULES, cookies={"pam_flash": "sudo_deleted:ops"})
        self.assertIn("Deleted: the sudo rule of ops.", page.text)

    def test_delete_unknown(self) -> None:
        """404."""
        self.assertEqual(self.post(DELETE, group="web").code, 404)

    def test_delete_without_group(self) -> None:
        """400."""
        self.assertEqual(self.post(DELETE).code, 400)


class FormAuthenticationTests(DirectoryCase):
    def test_not_an_admin(self) -> None:
        """403, before any field is looked at."""
        for path in (ADD, UPDATE, DELETE, REFRESH):
            response = self.post(path, "alice", "user")
            self.assertEqual((path, response.code), (path, 403))
            self.assertIn("Not permitted", self.body(response))

    def test_checks_come_first(self) -> None:
        """What every form needs."""
        for path in (ADD, UPDATE, DELETE, REFRESH):
            self.assertEqual(self.post(path, csrf_token=None).code, 400)
            self.assertEqual(self.post(path, csrf_token="0" * 64).code, 403)

    def test_wrong_method(self) -> None:
        """405 in plain text."""
        for path in (ADD, UPDATE, DELETE, REFRESH):
            response = self.get(path, "carol", "admin")
            self.assertEqual((response.code, self.body(response)), (405, "method not allowed\n"))

    def test_scripts(self) -> None:
        """Our own scripts get the same answers as JSON."""
        saved = self.post(ADD, script=True, group="web", commands="ALL")
        self.assertEqual(json.loads(self.body(saved)), {"ok": True, "flash": "sudo_added:web", "location": RULES})
        refused = self.post(ADD, script=True, group="x", commands="!a")
        told = json.loads(self.body(refused))
        self.assertEqual((refused.code, told["error"], set(told["fields"])), (400, "sudo_rule_refused", {"commands"}))
        self.assertEqual(self.post(ADD, script=True, group="ops", commands="ALL").code, 409)


class RulesPageTests(DirectoryCase):
    def test_table(self) -> None:
        """Rules in file order with what hosts are told."""
        assert self.desk.file is not None
        self.desk.file.rules = (OPS, SudoRule(group="wide", commands="ALL, !/bin/su"), DBA)
        page = self.page(RULES)
        self.assertEqual(page.all("data-rule"), ["ops", "wide", "dba"])
        self.assertEqual(page.all("data-state"), ["served", "withheld", "served"])
        self.assertIn("!/bin/su: a negation cannot be served", page.text)

    def test_long_list(self) -> None:
        """A long list is cut in the table, and can be seen whole."""
        assert self.desk.file is not None
        self.desk.file.rules = (SudoRule(group="ops", commands=",".join(f"/bin/c{n}" for n in range(10))),)
        page = self.page(RULES)
        self.assertIn("and 4 more", page.text)
        self.assertIn("/bin/c6, /bin/c7, /bin/c8, /bin/c9", page.text)

    def test_empty(self) -> None:
        """It says what would be here."""
        assert self.desk.file is not None
        self.desk.file.rules = ()
        self.assertIn("No rules yet.", self.page(RULES).text)

    def test_add_form(self) -> None:
        """Asked for with a link; the cursor stands in its first field."""
        page = self.page(RULES + "?add=1")
        focused = [attributes["name"] for _, attributes in page.tags if "autofocus" in attributes]
        self.assertEqual((focused, page.all("action").count(ADD)), (["group"], 1))

    def test_edit_form(self) -> None:
        """Filled in with the rule, its group not to be changed."""
        page = self.page(RULES + "?edit=ops")
        fixed = [attributes["name"] for _, attributes in page.tags if "readonly" in attributes]
        self.assertEqual((fixed, self.values(page)["group"], page.all("action").count(UPDATE)), (["group"], "ops", 1))
        self.assertIn("/usr/bin/apt\n/usr/bin/systemctl restart nginx", page.text)

    def test_edit_round_trip(self) -> None:
        """What the form is filled in with saves the same rule again."""
        assert self.desk.file is not None
        rule = replace(
            OPS, order="7", description="web people", more_commands=("/bin/a 1,2", "/bin/b"), options="LOG_INPUT"
        )
        self.desk.file.rules = (rule,)
        page = self.page(RULES + "?edit=ops")
        fields = self.values(page)
        self.done(
            self.post(
                UPDATE,
                **fields,
                ask="1",
                commands="/usr/bin/apt\r\n/usr/bin/systemctl restart nginx",
                hosts="web1\r\nweb2",
                more_commands="/bin/a 1,2\r\n/bin/b",
            ),
            "sudo_updated:ops",
        )
        expected = replace(rule, commands="/usr/bin/apt, /usr/bin/systemctl restart nginx", hosts="web1, web2")
        self.assertEqual(self.rules, (expected,))

    def test_edit_unknown(self) -> None:
        """404."""
        self.assertEqual(self.get(RULES + "?edit=web", "carol", "admin").code, 404)

    def test_search_and_pages(self) -> None:
        """Many rules come in pages, and a search goes along from page to page."""
        assert self.desk.file is not None
        self.desk.file.rules = tuple(SudoRule(group=f"g{n}", commands="/bin/a") for n in range(120))
        page = self.page(RULES + "?page=2&q=bin")
        self.assertEqual((len(page.all("data-rule")), page.all("data-rule")[0]), (50, "g50"))
        self.assertIn(f"{RULES}?page=3&q=bin", page.all("href"))
        self.assertIn("No rule mentions this.", self.page(RULES + "?q=nothing").text)

    def test_unreadable(self) -> None:
        """A broken file: 503, with what is wrong with it."""
        assert self.desk.file is not None
        self.desk.file.broken = BadStateFile("/config/sudorules.json: it is not valid JSON")
        response = self.get(RULES, "carol", "admin")
        self.assertEqual(response.code, 503)
        self.assertIn("it is not valid JSON", self.body(response))
        self.assertEqual(self.get(RULES + "?edit=ops", "carol", "admin").code, 503)

    def test_others_are_sent_home(self) -> None:
        """Pages of administrators lead others to the requests; strangers sign in and come back."""
        for path in (RULES, RULES + "?edit=ops", DIRECTORY):
            response = self.get(path, "alice")
            self.assertEqual((response.code, response.headers.getRawHeaders("location")), (303, [EXTERNAL_URL + "/"]))
        # a browser without cookies
        self.http = StubTreq(self.house.root)
        response = self.get(RULES + "?edit=ops")
        wanted = f"{EXTERNAL_URL}/sessions/login?next=/admin/sudo-rules%3Fedit%3Dops"
        self.assertEqual(response.headers.getRawHeaders("location"), [wanted])

    def test_menu(self) -> None:
        """Administrators find both pages in the menu; others do not see them."""
        self.assertLessEqual({RULES, DIRECTORY}, set(self.page("/").all("href")))
        self.assertEqual({RULES, DIRECTORY} & set(self.document("/", "alice").all("href")), set())
        current = [
            attributes["href"] for _, attributes in self.page(RULES).tags if attributes.get("aria-current") == "page"
        ]
        self.assertEqual(current, [RULES])

    def test_german(self) -> None:
        """In German."""
        page = self.page(RULES, headers={"Accept-Language": "de"})
        self.assertIn("sudo-Regeln", page.text)


class FullModeTests(DirectoryCase):
    """Rules come from PocketID groups."""

    full = True

    def test_not_available(self) -> None:
        """The endpoints do not exist, before anybody is looked at; the wrong method is wrong there too."""
        for path in (ADD, UPDATE, DELETE):
            answering = self.http.post(EXTERNAL_URL + path)
            self.http.flush()
            response = self.successResultOf(answering)
            self.assertEqual((response.code, self.body(response)), (404, "not available\n"))
            self.assertEqual(self.get(path).code, 405)

    def test_read_only(self) -> None:
        """The rules are shown, and nothing to change them."""
        page = self.page(RULES + "?add=1")
        self.assertIn("come from the groups at PocketID", page.text)
        self.assertEqual([action for action in page.all("action") if "sudo-rules/" in action], [])


class DirectoryPageTests(DirectoryCase):
    full = True

    def test_state(self) -> None:
        """Counts, age and change number."""
        at = START - timedelta(minutes=4)
        self.desk.state = replace(
            self.desk.state, people=1204, groups=31, roles=7, usn=1772616600, confirmed_at=at, age_seconds=240.0
        )
        page = self.page(DIRECTORY)
        for word in ("1204", "31", "1772616600", "4 min ago", "Up to date"):
            self.assertIn(word, page.text)

    def test_nothing_yet(self) -> None:
        """Before the first refresh."""
        self.desk.state = replace(self.desk.state, ready=False, health="stale")
        self.assertIn("Nothing to serve yet", self.page(DIRECTORY).text)

    def test_failure(self) -> None:
        """Why the last refresh failed."""
        self.desk.state = replace(self.desk.state, trouble=Trouble(at=START, reason="PocketID did not answer"))
        self.assertIn("The last refresh failed: PocketID did not answer", self.page(DIRECTORY).text)

    def test_refusal(self) -> None:
        """The numbers of a refused refresh, and a form to accept it."""
        refusal = Refusal(at=START, losses=(Loss(what="people", before=1000, lost=700),))
        self.desk.state = replace(self.desk.state, refusal=refusal)
        page = self.page(DIRECTORY)
        self.assertIn("700 of 1000 people would vanish.", page.text)
        sent = {a["name"]: a["value"] for tag, a in page.tags if tag == "input" and "value" in a and "name" in a}
        self.assertEqual((sent["accept_shrink"], sent["seen"]), ("1", str(refusal)))

    def test_withheld(self) -> None:
        """What is left out and why; of very many the first ones."""
        one = Withheld(kind=Kind.PERSON, source_id="7", name="www-data", key="reserved_username")
        self.desk.state = replace(self.desk.state, withheld=(one,) * 250)
        page = self.page(DIRECTORY)
        self.assertEqual(page.all("data-withheld"), ["www-data"] * 200)
        self.assertIn("The user name belongs to the operating system.", page.text)
        self.assertIn("and 50 more", page.text)

    def serve(self) -> None:
        """A small directory."""
        alice = SourceUser(
            id="u1",
            username="alice",
            first_name="Alice",
            last_name="Smith",
            claims=(
                ("sshPublicKey", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEE a"),
            ),
        )
        users = (
            alice,
            SourceUser(id="u2", username="bob", disabled=True),
            SourceUser(id="u3", username="games"),
            SourceUser(id="u4", username="dave"),
        )
        groups = (
            SourceGroup(id="g1", name="ops", claims=(("sudoCommands", "/bin/a, apt"),), member_ids=("u1", "u2", "u3")),
            SourceGroup(id="g2", name="dba", claims=(("sudoCommands", "/bin/secret"),), member_ids=("u2",)),
            SourceGroup(id="g3", name="web", claims=(("sudoCommands", "/bin/secret"),), member_ids=("u4",)),
        )
        source, layout = Source(users=users, groups=groups), Layout(base_dn="dc=example,dc=com")
        numbers = Numbers(
            uids={"u1": 200000, "u2": 200001, "u3": 200002, "u4": 200003},
            gids={"g1": 200000, "g2": 200001, "u1": 200002, "u2": 200003, "u3": 200004, "g3": 200005, "u4": 200006},
        )
        built = result(at_once(build(source, numbers, layout)))
        self.desk.served = Served(
            snapshot=None,  # type: ignore[arg-type]  # not looked at here
            built=built,
            layout=layout,
            version=1,
            source=source,
            numbers=numbers,
        )
        self.desk.reports = built.rules

    def test_account(self) -> None:
        """Ids, groups, keys as fingerprints, and every sudo rule with why it applies or not."""
        self.serve()
        page = self.page(DIRECTORY + "?name=ALICE")
        for words in (
            "Account alice",
            "Alice Smith",
            "200002",
            "ssh-ed25519 SHA256:",
            "The account is a member of the group.",
            "apt must be ALL or begin with a slash.",
            "The account is not a member of the group.",
        ):
            self.assertIn(words, page.text)
        self.assertNotIn("AAAAC3", page.text)

    def test_disabled_account(self) -> None:
        """A disabled account has no rule."""
        self.serve()
        page = self.page(DIRECTORY + "?name=bob")
        self.assertIn("disabled: hosts deny it", page.text)
        self.assertNotIn("Applies", page.text)

    def test_group(self) -> None:
        """Members, and who is none and why."""
        self.serve()
        page = self.page(DIRECTORY + "?name=ops")
        for words in ("Group ops", "It is the group's rule.", "The account is disabled.", "belongs to the operating"):
            self.assertIn(words, page.text)

    def test_withheld_account(self) -> None:
        """Why an account is not there."""
        self.serve()
        self.assertIn("The user name belongs to the operating system.", self.page(DIRECTORY + "?name=games").text)

    def test_rules_of_groups(self) -> None:
        """The page of the rules shows them with what is served."""
        self.serve()
        page = self.page(RULES)
        self.assertEqual(
            (page.all("data-rule"), page.all("data-state")), (["ops", "dba", "web"], ["in_part", "withheld", "served"])
        )

    def test_unknown_name(self) -> None:
        """A name that nobody has."""
        self.assertIn("unknown-name", self.page(DIRECTORY + "?name=zed").all("data-test"))

    def test_refresh(self) -> None:
        """The source is asked, and the page says how it went."""
        self.done(self.post(REFRESH), "directory_refreshed:1", DIRECTORY)
        self.assertEqual(self.desk.refreshes, [False])

    def test_accepted(self) -> None:
        """A smaller directory is accepted when it is the one that was shown."""
        refusal = Refusal(at=START, losses=(Loss(what="people", before=1000, lost=700),))
        self.desk.state = replace(self.desk.state, refusal=refusal)
        self.post(REFRESH, accept_shrink="1", seen=str(refusal))
        self.post(REFRESH, accept_shrink="1")
        self.assertEqual(self.desk.refreshes, [True, True])

    def test_another_loss(self) -> None:
        """What was not shown is not accepted, nor what does not wait any more."""
        refusal = Refusal(at=START, losses=(Loss(what="people", before=1000, lost=990),))
        self.desk.state = replace(self.desk.state, refusal=refusal)
        response = self.post(REFRESH, accept_shrink="1", seen="700 of 1000 people would vanish")
        self.done(response, "directory_other_loss:1", DIRECTORY)
        self.desk.state = replace(self.desk.state, refusal=None)
        self.done(self.post(REFRESH, accept_shrink="1"), "directory_other_loss:1", DIRECTORY)
        self.assertEqual(self.desk.refreshes, [])

    def test_failed(self) -> None:
        """A refresh that fails."""
        self.desk.refreshing = Deferred()
        self.desk.refreshing.errback(SourceUnavailable("PocketID did not answer"))
        self.done(self.post(REFRESH), "directory_not_refreshed:1", DIRECTORY)

    def test_slow(self) -> None:
        """The browser is not kept waiting; the refresh goes on."""
        self.desk.refreshing = Deferred()
        routes = self.desk(self.house)
        asking = Deferred.fromCoroutine(routes.admin.refresh(self.house.caller("carol", "admin")))
        self.assertNoResult(asking)
        self.house.reactor.advance(8)
        self.assertEqual(self.successResultOf(asking).value, "running")
        self.desk.refreshing.callback(None)


class DirectoryMarkupTests(test_render.MarkupTests):
    """What holds for every page holds for these."""

    def setUp(self) -> None:
        desk = Desk(OPS, SudoRule(group="wide", commands="ALL, !/bin/su", description="<b>"), DBA)
        one = Withheld(kind=Kind.PERSON, source_id="7", name="www-data", key="reserved_username")
        desk.state = replace(
            desk.state,
            withheld=(one,),
            trouble=Trouble(at=START, reason="<script>"),
            refusal=Refusal(at=START, losses=(Loss(what="people", before=1000, lost=700),)),
        )
        self.house = House(directory=desk)
        self.http = StubTreq(self.house.root)
        self.pages = {
            "rules": self.body(self.get(RULES, "carol", "admin")),
            "form": self.body(self.get(RULES + "?edit=wide&q=a", "carol", "admin")),
            "directory": self.body(self.get(DIRECTORY + "?name=zed", "carol", "admin")),
        }

    def test_titles(self) -> None:
        """Titles name the page and identree."""
        self.assertIn("<title>Sudo rules - identree</title>", self.pages["rules"])
        self.assertIn("<title>Directory - identree</title>", self.pages["directory"])


class WordsTests(PageCase):
    """Every reason that the directory gives is said in the reader's language."""

    def test_verdicts(self) -> None:
        """What is wrong with a rule."""
        self.assertEqual(set(VERDICT_MESSAGES) - set(_VERDICTS), set())

    def test_reasons(self) -> None:
        """Why a rule applies or not."""
        self.assertEqual(set(REASONS) - set(_REASONS), set())

    def test_withheld(self) -> None:
        """What is left out."""
        self.assertEqual(set(WITHHELD_MESSAGES) - set(_WITHHELD), set())

    def test_filled_in(self) -> None:
        """Each sentence in each language, with a percent sign in what it is about."""
        for language in self.house.renderer.catalogues:
            for key in _VERDICTS:
                told = messages(language, [Verdict(field="commands", item="100%s", key=key)])
                self.assertNotIn("%(", told["commands"][0])
