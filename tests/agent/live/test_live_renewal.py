"""Renewal without a proxy: who may prolong what, until when, and what the agent tells HAProxy."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from live_proxy import SRC, Proxy, Row
from policies import ISSUER, document, grant

from iamroles_agent.base.config import Config
from iamroles_agent.base.identity import Identity, Request, RoleArn
from iamroles_agent.live.console import FRESH, ConsoleError, Stream, fresh
from iamroles_agent.live.judge import EXPIRED, POLICY_CHANGED, REVOKED, UNKNOWN, Ends, judge
from iamroles_agent.live.renewal import Fresh, Successors
from iamroles_agent.live.revocations import NONE, Revocation, Revocations
from iamroles_agent.live.ticket import Ticket
from iamroles_agent.policy.compiled import Policy

READER, WRITER = RoleArn("aws", "1" * 12, "reader"), RoleArn("aws", "1" * 12, "writer")
OLD = Identity("corp", "alice", "s-1", (READER,), 2000, issued_at=1000, credential="sha256:old")
NEW = OLD._replace(not_after=2900, issued_at=1900, credential="sha256:new")
REQUEST = Request("GET", "shop.example", "/chat/a", ip_address("192.0.2.1"))
STREAM = Ticket("iam/aa", OLD, REQUEST, str(READER), "chat", "C1")


def policy(bound="refused", dpop=(("origins", ["https://shop.example"]),), **backend):
    grants = (grant(f"C{n}", r, "*", "/chat", "chat") for n, r in enumerate(("reader", "writer"), 1))
    tables = {
        "issuers": [ISSUER | {"name": "corp", "bound": bound}],
        "dpop": None if dpop is None else dict(dpop),
        "roles": [{"name": role.name, "arn": str(role)} for role in (READER, WRITER)],
        "backends": [{"name": "chat", "streams": True, "renew": True, **backend}],
    }
    return Policy(Config.model_validate(document(*grants, **tables)))


def who(identity, role=READER):
    """The first part of a ticket."""
    return Ticket("iam/bb", identity, None, str(role), "chat", "").encode().partition(".")[0]


KNOWN = Successors([Fresh(SRC, who(NEW), 2900)])
WITHOUT_NEW = Revocations((Revocation(id="x", credentials=["sha256:new"]),))


def judged(revocations=NONE, world=None, now=1999.0):
    world = world or policy()
    return lambda ticket, expires, text, before=None: judge(
        ticket, expires, now, policy=world, sources={}, revocations=revocations, fresh=text, before=before
    )


def row(ends=2000, **fields):
    key = f"7|{SRC}|4711|1000|2000|r7|{STREAM.encode()}"
    found = Stream(key, 7, SRC, 4711, 1000, 2000, ends, "r7", STREAM.encode(), True, False, 0.0)
    return replace(found, **fields)


def test_the_first_part_of_a_ticket_says_who():
    first = STREAM.encode().partition(".")[0]

    assert Ticket.decode(first) == replace(STREAM, request=None, rule="")


def test_fresh_credentials_of_the_table():
    answer = f"# table: iam-fresh, used:2\n0x1: key={SRC}|{who(NEW)} use=0 exp=9 gpt0=7\n"

    assert fresh(answer) == [(SRC, who(NEW), 7)]
    with pytest.raises(ConsoleError, match="policy render"):
        fresh("No such table\n")


def test_the_credential_that_lasts_longest_prolongs_and_no_longer_than_it_lives():
    longest = NEW._replace(not_after=3000)
    found = Successors(
        [Fresh(SRC, who(NEW), 2900), Fresh(SRC, who(longest), 3000), Fresh(SRC, who(OLD), 2000)]
    )

    [renewal] = found.renewal(row(), judged())

    assert renewal.until == 3000
    assert renewal.commands() == [
        f"set table iam-live key {row().key} data.gpt0 3000",
        f"set table iam-wait key 7|{row().ticket} data.gpt0 3000",
    ]
    [own] = Successors([Fresh(SRC, who(NEW), 9999)]).renewal(row(), judged())
    assert own.until == NEW.not_after, "what the table says does not count"


@pytest.mark.parametrize(
    ("src", "text"),
    [
        ("192.0.2.2", who(NEW)),
        (SRC, who(NEW._replace(issuer="other"))),
        (SRC, who(NEW._replace(principal="bob"))),
        (SRC, who(NEW._replace(session="s-2"))),
        (SRC, who(NEW._replace(roles=(WRITER,)), WRITER)),
        (SRC, who(NEW, WRITER)),
        (SRC, who(NEW._replace(binding=("J" * 43, "")))),
        (SRC, "nonsense"),
    ],
)
def test_who_prolongs_nothing(src, text):
    assert Successors([Fresh(src, text, 2900)]).renewal(row(), judged()) == []


BOTH = ("J" * 43, "X" * 43)


@pytest.mark.parametrize(
    ("old", "new", "prolongs"),
    [
        ({"binding": BOTH}, {"binding": BOTH}, 1),
        ({"binding": BOTH}, {"binding": ("J" * 43, "")}, 0),
        ({"binding": BOTH}, {"binding": ("", "X" * 43)}, 0),
        ({"binding": BOTH}, {"binding": BOTH[::-1]}, 0),
        ({"binding": BOTH}, {"binding": None}, 0),
        ({"session": ""}, {"session": ""}, 0),
    ],
)
def test_only_a_credential_of_the_same_keys_and_of_a_session_prolongs(old, new, prolongs):
    world = policy(bound="accepted")
    stream = replace(STREAM, identity=OLD._replace(**old)).encode()
    known = Successors([Fresh(SRC, who(NEW._replace(**new)), 2900)])

    assert len(known.renewal(row(ticket=stream), judged(world=world))) == prolongs


@pytest.mark.parametrize(
    ("setting", "more", "causes"),
    [
        ("accepted", {}, [EXPIRED, EXPIRED]),
        ("required", {}, [EXPIRED, POLICY_CHANGED]),
        ("refused", {}, [POLICY_CHANGED, EXPIRED]),
        ("accepted", {"dpop": None}, [POLICY_CHANGED, EXPIRED]),
    ],
)
def test_a_stream_ends_with_what_let_its_binding_pass(setting, more, causes):
    bound = replace(STREAM, identity=OLD._replace(binding=("J" * 43, ""))).encode()
    judge = judged(world=policy(bound=setting, **more), now=1500.0)

    assert [judge(ticket, 2000, "").cause for ticket in (bound, STREAM.encode())] == causes


@pytest.mark.parametrize(
    ("revocation", "detail"),
    [
        ({"credentials": ["sha256:old"]}, "revocation x"),
        ({"principals": ["alice"], "issued_before": 1500}, "revocation x"),
        ({"credentials": ["sha256:new"]}, "revocation x of the credential that prolonged it"),
    ],
)
def test_a_revocation_of_either_credential_ends_a_stream_that_was_prolonged(revocation, detail):
    listed = Revocations((Revocation(id="x", **revocation),))

    ends = KNOWN.judge(row(2900), judged(listed, now=2100.0), 2100.0)

    assert (ends.at, ends.cause, ends.detail) == (0, REVOKED, detail)
    assert KNOWN.renewal(row(), judged(listed)) == []


def test_a_stream_that_was_prolonged_lives_while_one_that_prolonged_it_is_believed():
    other = NEW._replace(credential="sha256:other", not_after=2500)
    known = Successors([Fresh(SRC, who(NEW), 2900), Fresh(SRC, who(other), 2500)])

    assert known.judge(row(2900), judged(now=2100.0), 2100.0).at == 2900
    assert known.judge(row(2900), judged(WITHOUT_NEW, now=2100.0), 2100.0).at == 2500
    # While its own credential lasts, a stream does not need what prolonged it.
    assert KNOWN.judge(row(2900), judged(WITHOUT_NEW, now=1995.0), 1995.0) == Ends(2000, EXPIRED)
    assert Successors().judge(row(2900), judged(now=1995.0), 1995.0) == Ends(2000, EXPIRED)


def test_what_was_prolonged_ends_by_a_policy_that_renews_no_more_and_if_nobody_knows_by_whom():
    ends = KNOWN.judge(row(2900), judged(world=policy(renew=False), now=2100.0), 2100.0)
    unknown = Successors().judge(row(2900), judged(), 2100.0)

    assert [(one.at, one.cause) for one in (ends, unknown)] == [(0, POLICY_CHANGED), (0, UNKNOWN)]


def test_what_was_judged_before_stands_unless_it_is_revoked_now():
    before = Ends(1234, EXPIRED)
    without_old = Revocations((Revocation(id="x", credentials=[STREAM.identity.credential]),))

    assert judged()(STREAM.encode(), 2000, "", before) == before
    assert judged()(STREAM.encode(), 2000, "", Ends(0, REVOKED)) == Ends(2000, EXPIRED)
    assert judged(without_old)(STREAM.encode(), 2000, "", before).cause == REVOKED
    assert judged(WITHOUT_NEW)(STREAM.encode(), 2000, who(NEW), before).cause == REVOKED


# --- the cutter, against a console of text

SEEN = who(NEW), 2900
"""A fresh credential that HAProxy saw, and its end."""


@pytest.fixture
def proxy(monkeypatch):
    found = Proxy(STREAM, 1996.0).installed(monkeypatch)
    found.stream = found.streams[7] = Row(4711, 2000)
    found.seen = [SEEN]
    return found


def cutter_of(proxy, *, listed=(), renews=True, name="iam/aa"):
    def judge(*question):
        return judged(Revocations(tuple(listed)), now=proxy.now)(*question)

    renewing = frozenset({"chat"} if renews else ())
    return proxy.cutter(judge, name, renewed=proxy.renewed.append, renewing=lambda: renewing)


async def test_a_stream_is_prolonged_shortly_before_it_would_end_and_ends_later(proxy):
    cutter = cutter_of(proxy)
    await proxy.looked(cutter, 1980.0)
    assert not [command for command in proxy.asked if FRESH in command]

    await proxy.looked(cutter, 1998.5, 2100.0)
    [one] = proxy.renewed
    assert (one.until, one.successor.identity.credential, proxy.cuts) == (2900, "sha256:new", [])

    proxy.now, proxy.seen = 2901.0, []
    await cutter.look()
    assert [(cut.cause, cut.due, cut.by) for cut in proxy.cuts] == [(EXPIRED, 2900, "agent")]


async def test_where_the_policy_does_not_say_so_nothing_is_asked_and_nothing_prolonged(proxy):
    cutter = cutter_of(proxy, renews=False)
    await cutter.look()
    await proxy.looked(cutter, 2001.0)

    assert (proxy.renewed, [cut.due for cut in proxy.cuts]) == ([], [2000])
    assert not [command for command in proxy.asked if FRESH in command]


async def test_a_revocation_of_what_prolonged_it_gives_a_stream_its_own_end_back(proxy):
    listed = []
    cutter = cutter_of(proxy, listed=listed)
    await cutter.look()
    assert proxy.stream.ends == 2900

    listed.append(Revocation(id="x", credentials=["sha256:new"]))
    cutter.revoked()
    await cutter.look()
    assert (proxy.stream.ends, proxy.cuts) == (2000, [])

    await proxy.looked(cutter, 2001.0)
    assert [(cut.cause, cut.due) for cut in proxy.cuts] == [(EXPIRED, 2000)]


async def test_a_clock_that_was_set_back_keeps_no_stream_from_being_prolonged(proxy):
    """Credentials once were looked for only when the clock stood again where it had been at the last look."""
    cutter = cutter_of(proxy)
    proxy.streams, proxy.seen = {8: Row(4712, 5005)}, []
    await proxy.looked(cutter, 5000.0)
    proxy.streams, proxy.seen = {7: proxy.stream}, [SEEN]
    await proxy.looked(cutter, 1996.0)

    assert proxy.stream.ends == 2900


async def test_too_late_is_too_late(proxy):
    cutter, proxy.seen = cutter_of(proxy), []
    await cutter.look()
    proxy.now, proxy.seen = 2001.0, [SEEN]
    await cutter.look()

    assert (proxy.renewed, proxy.stream.ends, len(proxy.cuts)) == ([], 2000, 1)


async def test_another_agent_renews_in_the_last_second_only(proxy):
    cutter = cutter_of(proxy, name="iam/cc")
    await cutter.look()
    assert not proxy.renewed

    await proxy.looked(cutter, 1997.2)
    assert len(proxy.renewed) == 1


async def test_an_agent_that_was_started_anew_judges_what_was_prolonged_by_what_prolonged_it(proxy):
    proxy.now, proxy.stream.ends = 2100.0, 2900
    cutter = cutter_of(proxy)
    await cutter.look()
    cutter.revoked()
    await cutter.look()
    assert not proxy.cuts

    listed = [Revocation(id="x", credentials=["sha256:new"])]
    await cutter_of(proxy, listed=listed).look()
    [cut] = proxy.cuts
    assert (cut.cause, cut.detail) == (REVOKED, "revocation x of the credential that prolonged it")


async def test_what_prolonged_a_stream_outlives_the_worker_of_haproxy_that_saw_it(proxy):
    cutter = cutter_of(proxy)
    await cutter.look()
    proxy.now, proxy.seen = 2100.0, []  # a reload: the old worker drops it, the new one has not got it yet
    cutter.changed()
    await cutter.look()

    assert proxy.cuts == []


async def test_a_revocation_while_a_stream_is_prolonged_is_not_lost(proxy):
    listed = []
    cutter = cutter_of(proxy, listed=listed)
    answer = proxy.answer

    def revoked_meanwhile(command):
        if command.startswith("set table iam-live"):
            listed.append(Revocation(id="x", principals=["alice"]))
            cutter.revoked()
        return answer(command)

    proxy.answer = revoked_meanwhile
    await cutter.look()
    await cutter.look()

    assert [(cut.cause, proxy.stream.ended) for cut in proxy.cuts] == [(REVOKED, proxy.now)]


async def test_a_haproxy_without_the_table_is_said_once_and_ends_its_streams(proxy, caplog):
    answer = proxy.answer
    proxy.answer = lambda command: "No such table\n" if FRESH in command else answer(command)
    cutter = cutter_of(proxy)
    await proxy.looked(cutter, 1998.5, 1999.0, 2001.0)

    assert (proxy.renewed, len(proxy.cuts)) == ([], 1)
    assert caplog.text.count("no table iam-fresh") == 1
