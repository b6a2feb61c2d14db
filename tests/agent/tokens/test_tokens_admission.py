"""The next question to STS: known keys and every source keep their share, and nothing grows."""

from ipaddress import ip_address

import pytest
from counting import steps
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from iamroles_agent.tokens import admission
from iamroles_agent.tokens.admission import MAX_WAIT, Admission, Callers, client_network


class Queue:
    """An admission with a clock that the test moves."""

    def __init__(self, **bounds):
        self.now = 0.0
        self.admission = Admission(lambda: self.now, **bounds)
        self.refused = []

    def ask(self, ticket, key="AKIA1", source="a"):
        self.admission.ask(ticket, key, source)
        return self.due()

    def done(self, ticket, proved=False):
        self.admission.done(ticket, proved=proved)
        return self.due()

    def due(self):
        start, refuse = self.admission.due()
        self.refused += refuse
        return start

    def flood(self, source="source {}", key="AKIA{}"):
        for n in range(400):
            self.ask(f"forged {n}", key.format(n), source.format(n % 50))

    def know(self, key="AKIA1", source="a"):
        assert self.ask("first", key, source) == ["first"]
        self.done("first", proved=True)


def test_a_call_starts_at_once_while_there_is_room():
    queue = Queue(calls=4, kept=2, per_flow=2)

    assert queue.ask(1) == [1]
    assert queue.ask(2) == [2]
    assert queue.ask(3) == []
    assert queue.done(1) == [3]


@pytest.mark.parametrize("forged", ["AKIA{}", "AKIAGOOD"], ids=["other-keys", "the-known-key-elsewhere"])
def test_a_flood_of_forged_credentials_leaves_room_for_a_known_key_at_its_source(forged):
    """400 forged credentials in one queue made a good caller wait past its time.

    An access key id stays no secret: a forger elsewhere writes it too.
    """
    queue = Queue()
    queue.know("AKIAGOOD", "office")
    queue.flood(key=forged)

    assert queue.admission.flying == 12
    assert queue.ask("good", "AKIAGOOD", "office") == ["good"]


def test_a_new_caller_elsewhere_is_served_beside_a_flood_from_one_source_and_at_the_source_is_the_next():
    queue = Queue()
    queue.flood("shared")

    assert queue.ask("elsewhere", "AKIAELSE", "office") == ["elsewhere"]
    queue.ask("new", "AKIANEW", "shared")
    assert queue.done("forged 0") == ["new"]


def test_a_new_caller_is_the_next_beside_a_flood_from_as_many_networks():
    """Beside 400 forged credentials a second, each from its own /64, a new caller's turn came too late."""
    queue = Queue()
    for n in range(400):
        queue.ask(n, f"AKIA{n}", f"2001:db8:{n}")
    queue.ask("new", "AKIANEW", "office")

    assert queue.done(0) == ["new"]


def test_sources_take_turns():
    queue = Queue(calls=2, kept=1, per_flow=2)
    for n in range(6):
        queue.ask(("a", n), source="a")
    for n in range(3):
        queue.ask(("b", n), source="b")
    began = [("a", 0)]
    while began[-1] is not None:
        began.append(next(iter(queue.done(began[-1])), None))

    assert [source for source, _ in began[1:7]] == ["b", "a", "b", "a", "b", "a"]


def test_known_keys_leave_room_for_strangers():
    queue = Queue(calls=4, kept=2, per_flow=4)
    queue.know()
    for n in range(50):
        queue.ask(n)

    assert queue.admission.flying == 3
    assert queue.ask("stranger", "AKIANEW", "b") == ["stranger"]


def test_knowledge_ends_and_is_bounded(monkeypatch):
    queue = Queue(calls=4, kept=4, per_flow=4, callers=(callers := Callers()))  # no room for strangers

    callers.add(("", "a", "AKIA1"), 10.0)
    assert queue.ask(1) == [1]
    queue.now = 10.0
    assert queue.ask(2) == []

    many = [("", "a", f"AKIA{n}") for n in range(5000)]
    for n, caller in enumerate(many * 2):
        callers.add(caller, 20.0 + n)
    assert sum(callers.until(caller) == 20.0 + n for n, caller in enumerate(many, 5000)) > 4900
    monkeypatch.setattr(admission, "_BUCKETS", 1)
    few = Callers()
    for n, caller in enumerate(many):
        few.add(caller, 20.0 + n)
    assert [caller for caller in many if few.until(caller)] == many[-4:]


def test_who_waited_too_long_is_refused():
    queue = Queue(calls=2, kept=1, per_flow=1)
    queue.ask(1)
    queue.ask(2)
    queue.now = MAX_WAIT - 0.001
    queue.ask(3)
    assert queue.refused == []
    queue.now = MAX_WAIT

    assert queue.due() == []
    assert queue.refused == [2]
    assert queue.done(1) == [3]


def test_who_went_away_is_not_asked_for():
    queue = Queue(calls=2, kept=1, per_flow=1)
    queue.ask(1)
    queue.ask(2)
    queue.admission.withdraw(2)

    assert queue.done(1) == []
    assert (queue.admission.waiting, queue.admission.flying) == (0, 0)


def test_the_longest_flow_loses_its_oldest():
    queue = Queue(calls=2, kept=1, per_flow=1, waiting=10, waiting_per_flow=8)
    for n in range(9):
        queue.ask(n, source="flood")
    assert queue.refused == []
    queue.ask("late", source="flood")
    assert queue.refused == [1]
    for n in range(3):
        queue.ask(f"other {n}", source=f"other {n}")

    assert (queue.refused, queue.admission.waiting) == ([1, 2], 10)


def test_an_ipv6_subscriber_is_one_source():
    assert client_network(ip_address("2001:db8:1:2::5")) == client_network(ip_address("2001:db8:1:2:3:4:5:6"))
    assert client_network(ip_address("2001:db8:1:2::5")) != client_network(ip_address("2001:db8:1:3::5"))
    assert client_network(ip_address("192.0.2.1")) != client_network(ip_address("192.0.2.2"))
    assert client_network(ip_address("::ffff:192.0.2.1")) == client_network(ip_address("192.0.2.1"))


@pytest.mark.parametrize("sources", [1, 1000])
def test_the_work_of_a_question_does_not_grow_with_those_that_wait(sources):
    queue = Queue(waiting=2048, waiting_per_flow=2048)
    for n in range(50):
        queue.ask(("early", n), source=str(n % sources))
    few = steps(lambda: queue.ask("one"))
    for n in range(1900):
        queue.ask(n, source=str(n % sources))

    assert steps(lambda: queue.ask("two")) <= 2 * few


class AnyOrder(RuleBasedStateMachine):
    """Whatever comes in whatever order, bounds hold and every ticket ends once."""

    def __init__(self):
        super().__init__()
        self.queue = Queue(calls=4, kept=2, per_flow=2, waiting=6, waiting_per_flow=3)
        self.count = 0
        self.flying, self.waiting = set(), set()

    def settle(self):
        before = len(self.queue.refused)
        started = self.queue.due()
        refused = self.queue.refused[before:]
        assert set(started) | set(refused) <= self.waiting
        assert len(set(started)) == len(started)
        self.flying |= set(started)
        self.waiting -= {*started, *refused}

    @rule(source=st.sampled_from("abc"), key=st.sampled_from("KL"))
    def ask(self, source, key):
        self.count += 1
        self.waiting.add(self.count)
        self.queue.admission.ask(self.count, key, source)
        self.settle()

    @rule(proved=st.booleans(), which=st.integers(0, 10))
    def done(self, proved, which):
        if self.flying:
            ticket = sorted(self.flying)[which % len(self.flying)]
            self.flying.remove(ticket)
            self.queue.admission.done(ticket, proved=proved)
            self.settle()

    @rule(which=st.integers(0, 10))
    def withdraw(self, which):
        if self.waiting:
            ticket = sorted(self.waiting)[which % len(self.waiting)]
            self.waiting.remove(ticket)
            self.queue.admission.withdraw(ticket)
            self.settle()

    @rule(seconds=st.sampled_from([0.5, 2.0, 4000.0]))
    def wait(self, seconds):
        self.queue.now += seconds
        self.settle()

    @invariant()
    def bounds(self):
        admission = self.queue.admission
        assert (admission.waiting, admission.flying) == (len(self.waiting), len(self.flying))
        assert admission.waiting <= 6
        assert admission.flying <= 4
        assert len(admission._flows) <= admission.waiting + admission.flying
        if admission.waiting:  # nothing waits where it could fly
            strangers = sum(not ticket.known for ticket in admission._flying.values())
            assert (
                admission.flying == 4
                or strangers == 2
                or any(flow.flying == 2 for flow in admission._flows.values())
                or admission.flying - strangers == 3
            )


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
