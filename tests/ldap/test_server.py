"""All connections together: how many there may be, metrics, and the end."""

from twisted.internet.address import IPv6Address
from twisted.trial.unittest import SynchronousTestCase

from tests.ldap.harness import BASE, PEOPLE, Client, World, code, names, registry, search


class BoundsTests(SynchronousTestCase):
    def test_in_all(self) -> None:
        """One connection too many is cut, and a place that becomes free is free."""
        world = World(max_connections=2)
        first, second = world.connect(), world.connect("192.0.2.2")
        third = world.connect("192.0.2.3")
        self.assertEqual([client.wire.aborted for client in (first, second, third)], [False, False, True])
        first.wire.abortConnection()
        self.assertFalse(world.connect("192.0.2.3").over)
        self.assertEqual(world.value("identree_ldap_connections_refused_total", reason="connections"), 1)

    def test_of_address(self) -> None:
        """An address has its own bound; of IPv6 it is the network."""
        world = World(max_per_address=1)
        world.connect()
        self.assertTrue(world.connect().over)
        self.assertFalse(world.connect("192.0.2.2").over)
        found = [
            Client(world.factory.buildProtocol(IPv6Address("TCP", address, 1))).over
            for address in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1")
        ]
        self.assertEqual(found, [False, True, False])
        self.assertEqual(world.value("identree_ldap_connections_refused_total", reason="address"), 2)

    def test_forgotten(self) -> None:
        """Nothing is kept of addresses without a connection."""
        world = World()
        world.connect().wire.abortConnection()
        self.assertEqual((len(world.factory), world.factory._of_address), (0, {}))


class MetricsTests(SynchronousTestCase):
    def test_connections(self) -> None:
        """How many there are, and may be."""
        world = World(max_connections=77)
        world.connect()
        self.assertEqual(world.value("identree_ldap_connections"), 1)
        self.assertEqual(world.value("identree_ldap_connections_limit"), 77)

    def test_searches(self) -> None:
        """Searches by base, with codes, entries, durations and memo hits, a second later."""
        world = World()
        client = world.bound()
        for filter in ("(uid=user1)", "(uid=user1)", "(uid=nobody)"):
            client.ask(search(filter=filter))
        client.ask(search(base=f"ou=groups,{BASE}", filter="(cn=x)"))
        client.ask(search("", "(objectClass=*)", scope=0))
        read = world.metrics.registry.get_sample_value
        self.assertEqual(read("identree_ldap_queries_total", {"base": "people"}), 0)
        world.clock.advance(1)
        for name, labels, value in (
            ("identree_ldap_queries_total", {"base": "people"}, 3),
            ("identree_ldap_queries_total", {"base": "groups"}, 1),
            ("identree_ldap_queries_total", {"base": "root"}, 1),
            ("identree_ldap_results_total", {"operation": "search", "code": "0"}, 5),
            ("identree_ldap_entries_total", {}, 3),
            ("identree_ldap_search_duration_seconds_count", {}, 5),
            ("identree_ldap_search_duration_seconds_bucket", {"le": "0.0001"}, 5),
            ("identree_ldap_memo_hits_total", {}, 1),
        ):
            self.assertEqual(read(name, labels), value, name)

    def test_durations(self) -> None:
        """Durations are put where the metrics library itself would put them."""
        world, other = World(), World()
        for seconds in (0.0, 0.0001, 0.00011, 0.25, 7.0):
            world.tally.search("people", 0, 0, seconds)
            other.metrics.ldap_search.observe(seconds)
        world.tally.flush()
        ours, theirs = (
            {(s.name, s.labels.get("le")): s.value for metric in m.ldap_search.collect() for s in metric.samples}
            for m in (world.metrics, other.metrics)
        )
        self.assertEqual(ours, theirs)

    def test_refused_search(self) -> None:
        """A search that was not allowed is no query, but a result."""
        world = World()
        world.connect().ask(search())
        self.assertEqual(world.value("identree_ldap_queries_total", base="people"), 0)
        self.assertEqual(world.value("identree_ldap_results_total", operation="search", code="50"), 1)


class TurnsTests(SynchronousTestCase):
    def test_fair(self) -> None:
        """Searches over everything on many connections go on by turns, and a small one does not wait for them."""
        world = World(people=1000)
        clients = [world.bound() for _ in range(5)]
        for client in clients:
            client.received()
            client.send(search(filter="(gecos=User*)"))
        small = world.bound()
        self.assertEqual(len(names(small.ask(search()))), 1)
        world.turn(20)
        self.assertEqual([len(client.received()) for client in clients], [1001] * 5)

    def test_failure(self) -> None:
        """A turn that fails is logged, and the next has its turn."""
        world = World()
        done: list[int] = []
        world.turns.add(lambda: 1 // 0)  # type: ignore[arg-type, return-value]
        world.turns.add(lambda: done.append(1))
        world.turn()
        self.assertEqual((len(self.flushLoggedErrors(ZeroDivisionError)), done), (1, [1]))


class EndTests(SynchronousTestCase):
    def test_close(self) -> None:
        """Every connection gets a notice and is closed; it is over when all are gone."""
        world = World()
        clients = [world.bound(), world.connect()]
        clients[0].received()
        clients[1].wire.stuck = True
        done = world.factory.close()
        for client in clients:
            [notice] = client.received()
            self.assertEqual((notice.id, notice.value.resultCode), (0, 52))
            self.assertEqual(notice.value.responseName, b"1.3.6.1.4.1.1466.20036")
        self.assertNoResult(done)
        world.clock.advance(5)
        self.assertIsNone(self.successResultOf(done))

    def test_twice(self) -> None:
        """Closing again, and without connections, is over at once."""
        world = World()
        self.successResultOf(world.factory.close())
        self.successResultOf(world.factory.close())

    def test_late(self) -> None:
        """Who comes while it stops is not let in."""
        world = World()
        world.factory.close()
        self.assertTrue(world.connect().over)

    def test_many_hosts_removed(self) -> None:
        """Of very many connections only so many are looked at in one go, and all in the end."""
        from identree.ldap import server

        self.patch(server, "RECHECKED_AT_ONCE", 3)
        world = World()
        world.registry = registry("web1")
        clients = [world.connect() for _ in range(10)]
        for client in clients:
            client.bind_host("web1")
        world.registry = registry("db1")
        world.factory.registry_changed()
        self.assertEqual(sum(client.over for client in clients), 3)
        world.turn(5)
        self.assertTrue(all(client.over for client in clients))
        self.assertEqual(code(world.bound().ask(search(base=PEOPLE))), 0)
