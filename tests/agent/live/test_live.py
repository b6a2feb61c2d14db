"""Live streams without a proxy: tickets, the console's answers, the cutter's schedule, revocations."""

import asyncio
import json
import re
import time
from dataclasses import replace
from ipaddress import ip_address

import pytest
from invoking import ran, said
from live_proxy import Proxy, Row
from tokens_support import ED_KEY, public_jwk

from iamroles_agent.base.config import Issuer, Limits
from iamroles_agent.base.errors import ConfigError
from iamroles_agent.base.identity import Actor, Identity, Request, RoleArn
from iamroles_agent.commands import sessions
from iamroles_agent.live import cutter as cutting
from iamroles_agent.live import proxy_worker, revocations
from iamroles_agent.live.console import ConsoleError, Stream, is_stream, pointers, streams, workers
from iamroles_agent.live.judge import EXPIRED, REVOKED, Ends
from iamroles_agent.live.revocations import STS_LIFETIME, Revocation, Revocations, read, to_part, write
from iamroles_agent.live.ticket import MAX_BYTES, Ticket, TicketError
from iamroles_agent.processes.cutting import _about
from iamroles_agent.tokens.grounds import ground, key_ground, lost, token_grounds
from iamroles_agent.tokens.keys import Key, KeySet, parse_key

READER = RoleArn("aws", "1" * 12, "reader")
ABOUT = {"issued_at": 1000, "credential": "sha256:00", "key_id": "k1", "grounds": ("iss:0",)}
WHO = Identity("corp", "alice", "s-1", (READER,), 2000, **ABOUT)
UNDATED = WHO._replace(issued_at=None, scopes=frozenset({"a", "b"}), preferred=READER)
REQUEST = Request("GET", "shop.example", "/a b;c", ip_address("2001:db8::1"), "reader")
TICKET = Ticket("iam/aa", WHO, REQUEST, str(READER), "orders", "R1")


def name_of(arn):
    return {"reader": "staff"}.get(arn.name)


# --- tickets


@pytest.mark.parametrize(
    "ticket",
    [
        TICKET,
        Ticket("iam/aa", UNDATED, REQUEST, "", "", ""),
        Ticket("iam/aa", WHO._replace(principal="ü\n'\""), None, "", "", ""),
    ],
)
def test_a_ticket_comes_back_as_it_was(ticket):
    text = ticket.encode()

    assert Ticket.decode(text) == ticket
    assert text.translate(str.maketrans("", "", "-_.")).isalnum()


@pytest.mark.parametrize("piece", ["/" + "x" * 4095, "/a%E3%81%82%E3%81%82", "/x%20y"])
def test_of_a_path_that_is_too_long_the_beginning_is_kept(piece):
    path = piece * (4096 // len(piece))
    text = replace(TICKET, request=replace(REQUEST, path=path)).encode()
    kept = Ticket.decode(text)

    assert kept.partial
    assert path.startswith(kept.request.path)
    assert 1000 < len(kept.request.path) < len(text) <= MAX_BYTES
    stream = Stream("", 0, "", 0, 0, 0, 0, "", text, alive=True, filtered=False, age=0.0)
    assert sessions._about(stream)["path"] == f"{kept.request.path}…"


def test_the_record_of_a_cut_names_the_actor_with_its_issuer():
    ticket = Ticket("iam/aa", WHO._replace(actor=Actor("bot", "urn:x")), REQUEST, "", "", "")
    stream = Stream("", 0, "", 0, 0, 0, 0, "", ticket.encode(), alive=True, filtered=False, age=0.0)

    assert _about(stream).items() >= {"actor": "bot", "actor_issuer": "urn:x"}.items()


@pytest.mark.parametrize("text", ["", "x", "e30", "!!!", TICKET.encode()[:-9], "W10"])
def test_what_is_no_ticket_is_said_so(text):
    with pytest.raises(TicketError):
        Ticket.decode(text)


# --- what HAProxy answers

KEY = "7|192.0.2.1|4711|1000|2000|c0ffee|TICKET"


def test_rows_of_the_table():
    answer = (
        "# table: iam-live, type: string, size:102400, used:2\n"
        f"0x7f1: key={KEY} use=1 exp=4000 shard=0 gpt0=2000 gpc0=0\n"
        f"0x7f2: key=8|2001:db8::1|4712|1000|2000|c0|T use=0 exp=3000 gpt0=2000 gpc0=1\n"
        "0x7f3: key=nonsense use=1 exp=1 gpt0=0 gpc0=0\n\n"
    )

    first, second = streams(answer)

    assert first == Stream(KEY, 7, "192.0.2.1", 4711, 1000, 2000, 2000, "c0ffee", "TICKET", True, False, 1.0)
    assert second.source == "2001:db8::1:4712"
    assert (second.alive, second.filtered, second.age) == (False, True, 2.0)


@pytest.mark.parametrize("answer", ["", "No such table", "Unknown command"])
def test_a_haproxy_without_our_table_is_another(answer):
    with pytest.raises(ConsoleError, match="no table iam-live"):
        streams(answer)


def test_workers_old_ones_too():
    answer = (
        "#<PID> <type> <reloads> <uptime> <version>\n10 master 1 [failed: 0] 0d00h 3.0\n# workers\n"
        "12 worker 0 0d00h 3.0\n# old workers\n11 worker 1 0d00h 3.0\n# programs\n"
    )

    assert workers(answer) == [12, 11]
    with pytest.raises(ConsoleError, match="not a master"):
        workers("Unknown command: 'show proc'")


def test_a_stream_is_known_by_its_number():
    stream = streams(f"# table:\n0x1: key={KEY} use=1 exp=1 gpt0=1 gpc0=0\n")[0]

    assert pointers("0xa: proto=tcpv4 src=192.0.2.1:4711 fe=x\n0xb: proto=sockpair src=unix:1 fe=y\n") == {
        "192.0.2.1:4711": ["0xa"],
        "unix:1": ["0xb"],
    }
    assert is_stream("0xa: [25/Nov] id=7 proto=tcpv4 source=192.0.2.1:4711\n  flags=", stream)
    assert not is_stream("0xa: [25/Nov] id=8 proto=tcpv4 source=192.0.2.1:4711\n  flags=", stream)
    assert is_stream("0xa: [25/Nov] id=7 proto=unix_stream source=unix:2\n  flags=", stream)
    assert not is_stream("Session not found.", stream)


# --- the cutter, against a console of text and a clock of our own


@pytest.fixture
def proxy(monkeypatch):
    return Proxy(TICKET, 1990.0).installed(monkeypatch)


def by_expiry(ticket, expires, fresh, before):
    return Ends(expires, EXPIRED)


async def test_a_stream_is_cut_when_its_time_has_come_and_not_before(proxy):
    proxy.streams = {7: Row(4711, 2000), 8: Row(4712, 3000)}
    cutter = proxy.cutter(by_expiry)

    await cutter.look()
    await proxy.looked(cutter, 1999.99)
    assert not proxy.cuts

    await proxy.looked(cutter, 2000.16)

    assert [(cut.stream.number, cut.cause, cut.by, round(cut.late, 2)) for cut in proxy.cuts] == [
        (7, EXPIRED, "agent", 0.16)
    ]
    assert proxy.streams[8].ended is None


async def test_what_the_proxy_closed_itself_is_recorded_once_with_its_moment(proxy):
    proxy.streams = {7: Row(4711, 2000, 1999.98), 8: Row(4712, 2000, 2000.1)}
    proxy.streams[9] = Row(4713, 2000, 1999.9)  # before its time: not a cut
    proxy.now = 2000.4
    cutter = proxy.cutter(by_expiry)
    await cutter.look()
    await cutter.look()

    assert [(cut.stream.number, cut.by, round(cut.done, 2), round(cut.late, 2)) for cut in proxy.cuts] == [
        (7, "timeout", 1999.98, 0.0),
        (8, "timeout", 2000.1, 0.1),
    ]
    assert not proxy.streams


async def test_what_one_agent_cut_its_neighbour_does_not_record(proxy):
    first, second = [], []
    proxy.streams = {7: Row(4711, 2000)}
    one = proxy.cutter(by_expiry, record=first.append)
    other = proxy.cutter(by_expiry, record=second.append, name="iam/bb")
    for proxy.now in (1999.9, 2000.2, 2000.3, 2000.6, 2001.0):
        await other.look()
        await one.look()

    assert (len(first), len(second)) == (1, 0)


async def test_a_change_is_judged_once_all_workers_were_read_and_what_must_end_has_ended(proxy):
    cutter, seen = proxy.cutter(lambda *_: Ends(0, REVOKED)), []

    async def look():
        await cutter.look()
        seen.append((cutter.numbers.judged == cutter.changes, cutter.numbers.problem))

    await look()
    proxy.streams[7] = Row(4711, 2000)
    cutter.revoked()
    proxy.answer = lambda command: "" if "sess" in command else Proxy.answer(proxy, command)  # not found
    await look()
    proxy.silent = True
    await look()
    proxy.silent = False
    del proxy.answer
    await look()

    assert seen == [(True, ""), (False, ""), (False, "/m: no answer within 2 s"), (True, "")]
    assert [cut.cause for cut in proxy.cuts] == [REVOKED]


async def test_a_revocation_leaves_what_else_was_judged(proxy):
    asked, refused = [], Ends(0, REVOKED)
    proxy.streams = {7: Row(4711, 9000)}

    def judge(ticket, expires, fresh, before):
        asked.append(before)
        return refused if len(asked) == 4 else Ends(expires, EXPIRED)

    cutter = proxy.cutter(judge)
    await cutter.look()
    await cutter.look()
    cutter.revoked()
    await cutter.look()
    assert asked == [None, Ends(9000, EXPIRED)]

    cutter.revoked()
    cutter.changed()
    await cutter.look()
    cutter.changed()
    cutter.revoked()
    await cutter.look()

    assert asked[2:] == [None, None]
    assert [cut.cause for cut in proxy.cuts] == [REVOKED]


async def test_a_change_during_a_look_is_followed_by_another_look_at_once(proxy, monkeypatch):
    monkeypatch.setattr(cutting, "POLL", 3600)
    cutter, looked = proxy.cutter(by_expiry), asyncio.Event()
    answer = proxy.answer

    def changing(command):
        if command == "show proc" and proxy.asked.count(command) > 1:
            looked.set()
        elif command.startswith("show table"):
            cutter.revoked()
        return answer(command)

    proxy.answer = changing
    task = asyncio.create_task(cutter.run())
    try:
        await asyncio.wait_for(looked.wait(), 60)
    finally:
        task.cancel()


async def test_nothing_is_kept_of_streams_that_are_gone(proxy):
    proxy.streams = {7: Row(4711, 3000)}
    cutter = proxy.cutter(by_expiry)
    await proxy.looked(cutter, 2000, 2999, 3001, 3002, 3100)

    assert not proxy.streams
    assert [(worker.judged, worker.due) for worker in cutter._workers.values()] == [({}, {})]


async def test_when_nothing_changed_only_what_is_due_is_asked_for(proxy):
    proxy.streams = {7: Row(4711, 9000)}
    cutter = proxy.cutter(by_expiry)
    await proxy.looked(cutter, *(proxy.now + second for second in (0, 2, 4, proxy_worker.SETTLE)))
    proxy.asked.clear()
    await proxy.looked(cutter, proxy.now + 1)

    due, now = f"data.gpt0 lt {int(proxy.now) + proxy_worker.AHEAD + 1}", int(proxy.now)
    assert proxy.asked == [
        "show proc",
        f"show table iam-live data.conn_cur gt 0 {due}",
        f"show table iam-wait {due}",
        f"clear table iam-live data.conn_cur eq 0 data.gpc0 eq 0 data.gpt0 gt {now + 1}",
        f"show table iam-live data.conn_cur eq 0 data.gpt0 lt {now + 2}",
    ]


async def test_a_silent_proxy_is_said_once(proxy, caplog):
    cutter = proxy.cutter(by_expiry)
    proxy.silent = True
    for _ in range(3):
        await cutter.look()

    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    assert cutter.numbers.unreachable == 1


async def test_streams_of_another_gate_are_left_alone(proxy, caplog):
    proxy.streams = {7: Row(4711, 1000)}
    cutter = proxy.cutter(lambda *question: Ends(0, REVOKED), name="other/aa")
    await cutter.look()

    assert not proxy.cuts
    assert "another gate" in caplog.text


# --- revocations


@pytest.mark.parametrize(
    ("members", "fits"),
    [
        ({"roles": ["staff"]}, True),
        ({"roles": [str(READER)]}, True),
        ({"roles": ["writer"]}, False),
        ({"principals": ["alice"]}, True),
        ({"principals": ["bob"]}, False),
        ({"sessions": ["s-1"], "principals": ["bob"]}, False),
        ({"credentials": ["sha256:00"]}, True),
        ({"keys": ["J" * 43]}, True),
        ({"keys": ["X" * 43, "y" * 43]}, True),
        ({"keys": ["y" * 43]}, False),
        ({"keys": ["J" * 43], "principals": ["bob"]}, False),
        ({"issuers": ["corp"]}, True),
        ({"issuers": ["guest"]}, False),
        ({"issuers": ["guest", "corp"], "principals": ["alice"]}, True),
        ({"issuers": ["guest"], "principals": ["alice"]}, False),
        ({"roles": ["staff"], "issued_before": 1000}, False),
        ({"roles": ["staff"], "issued_before": 1001}, True),
        ({"roles": ["staff"], "issued_before": "1970-01-01T00:16:41Z"}, True),
        ({"roles": ["staff"], "issued_before": "1970-01-01t00:16:41z", "reason": "x" * 501}, True),
        ({"roles": ["staff"], "issued_before": "1970-01-01T00:15:60Z"}, False),  # 00:16:00
    ],
)
def test_whom_a_revocation_is_about(members, fits):
    bound = WHO._replace(binding=("J" * 43, "X" * 43))
    assert Revocation(id="x", **members).fits(bound, name_of) is fits
    assert (Revocations((Revocation(id="x", **members),)).match(bound, name_of) is not None) is fits
    unbound = Revocations((Revocation(id="x", **members),)).match(WHO, name_of)
    assert (unbound is not None) is (fits and "keys" not in members)


def test_a_revocation_is_found_by_what_it_names_and_not_by_looking_at_all(monkeypatch):
    looked = []
    fits = Revocation.fits
    monkeypatch.setattr(Revocation, "fits", lambda row, *who: looked.append(row.id) or fits(row, *who))
    others = [Revocation(id=f"o{n}", principals=[f"p{n}"], sessions=[f"s{n}"]) for n in range(5000)]
    about = [
        Revocation(id="late", principals=["alice"], issued_before=1),
        Revocation(id="name", roles=["staff"], principals=["bob"]),
        Revocation(id="hit", roles=[str(READER)], sessions=["s-1"]),
        Revocation(id="second", credentials=["sha256:00"]),
    ]

    found = Revocations((*others, *about)).match(WHO, name_of)

    assert (found.id, looked) == ("hit", ["late", "hit"])


def test_a_credential_without_a_time_counts_as_issued_before():
    row = Revocation(id="x", roles=["staff"], issued_before=1)

    assert row.fits(WHO._replace(issued_at=None), name_of)
    assert row.fits(WHO._replace(grounds=()), name_of)  # STS: its caller chose the time


def test_the_file_and_the_part_keep_everything(tmp_path):
    every = {"principals": ["ü"], "sessions": ["s"], "credentials": ["sha256:1"], "issued_before": 1000.5}
    every["keys"] = ["J" * 43]
    first = Revocation(id="a", roles=["staff"], reason='quote " and \n, \x7f, 😀')
    listed = Revocations((first, Revocation(id="b", **every)))
    write(tmp_path / "r.toml", listed)

    assert read(tmp_path / "r.toml") == listed
    assert revocations.from_part(to_part(listed)) == listed
    assert revocations.from_part(to_part(revocations.NONE)) == revocations.NONE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[revocations]]\nid = 'a'\nroles = 'a'", "r.toml:3: revocations[0].roles:"),
        ("[[revocations]]\nid = 'a'\nroles = ['a']\n\n[[revocations]]\nid = ", "r.toml:6: is not TOML"),
        ("[[revocations]]\nid = 'a'\nroles = ['a', 7]", "r.toml:3: revocations[0].roles[1]:"),
        ("# \n[[revocations]]\nid = 'a'\nprincipals = [true]", "r.toml:4: revocations[0].principals[0]:"),
        ("revocations = 'none'", "r.toml:1: revocations:"),
        ("[[revocations]]\nid = 'a'\nroles = ['a']\n" * 10_001, "10001 revocations, at most 10000"),
        (b"# one\n# tw\xff\n", "r.toml:2: is not UTF-8. Write it again"),
        ("[[revocations]]\nid = 1\nroles = ['a']", "revocations[0].id"),
        ("[[revocations]]\nid = 'a'", "revocations[0]: names nobody: give credential"),
        ("[[revocations]]\nid = 'a'\nkeys = ['sha256:00']", "r.toml:3: revocations[0].keys[0]:"),
        ("[[revocations]]\nid = 'a'\nrole = ['a']", "revocations[0].role"),
        ("[[revocations]]\nid = 'a'\nroles = ['a']\nissued_before = 'yesterday'", "RFC 3339"),
        ("[[revoc", "not TOML"),
        pytest.param(f"a = [\n{'9' * 5000}]", "r.toml:2: is not TOML: Exceeds", id="digits"),
        ("[[revocations]]\nid = 'a'\nissued_before = '9999-12-31T23:59:60Z'", "a moment is RFC 3339"),
        *(
            (f"[[revocations]]\nid = 'a'\nroles = ['a']\nissued_before = {at}", "not milliseconds")
            for at in ("1700000000000", "-1", "nan", "inf")
        ),
    ],
)
def test_a_wrong_file_says_where(tmp_path, text, said):
    """More such files: `test_live_end_to_end.py`."""
    path = tmp_path / "r.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(ConfigError, match=re.escape(said)):
        read(path)


def test_revoke_add_list_undo(tmp_path):
    world = tmp_path / "w.toml"
    world.write_text('version = 1\n[live]\nrevocations = "r.toml"\n')

    ran("revoke add --role staff --issued-before now --id a --reason stolen --config", world)
    ran("revoke add --id b --config", world, code=2)
    ran("revoke add --principal p --id a --config", world, code=2)
    assert "not UTF-8" in ran("revoke add --principal p --reason \udce9 --config", world, code=2).output
    listed = [json.loads(line) for line in said("revoke list --config", world).splitlines()]
    assert [(row["id"], row["roles"], row["reason"]) for row in listed] == [("a", ["staff"], "stolen")]
    ran("revoke undo b --config", world, code=2)
    ran("revoke undo a --config", world)
    assert said("revoke list --config", world) == ""


LIFETIMES = {"corp": 100.0, "guest": 300.0, "cloud": STS_LIFETIME}


@pytest.mark.parametrize(
    ("members", "lasts"),
    [
        ({"roles": ["a"]}, None),
        ({"roles": ["a"], "added": 1000}, None),
        ({"issuers": ["corp"], "issued_before": 1000}, 100),
        ({"issuers": ["corp", "guest"], "roles": ["a"], "issued_before": 1000}, 300),
        ({"roles": ["a"], "issued_before": 1000}, STS_LIFETIME),
        ({"issuers": ["corp", "gone"], "issued_before": 1000}, None),
        ({"credentials": ["sha256:00"], "issuers": ["corp"], "added": 1000}, None),
        ({"credentials": ["sha256:00"], "issuers": ["corp"], "issued_before": 1000}, 100),
    ],
)
def test_a_revocation_is_over_when_all_that_it_can_be_about_has_run_out(members, lasts):
    row = Revocation(id="x", **members)

    for now in (1099.0, 1100.0, 1299.0, 1300.0, 999.0 + STS_LIFETIME, 1000.0 + STS_LIFETIME, 1e11):
        assert row.over(LIFETIMES, now) is (lasts is not None and now >= 1000 + lasts)
    assert not row.over({}, 1e11)


def test_at_the_bound_nothing_more_is_written_and_all_else_works(tmp_path):
    path = tmp_path / "r.toml"
    rows = [Revocation(id=f"r{n}", principals=[f"p{n}"]) for n in range(10_000)]
    write(path, Revocations(tuple(rows)))
    full = path.read_bytes()

    done = ran("revoke add --principal p --id new --config x --file", path, code=2)

    assert "more than 10000 revocations" in done.output
    assert path.read_bytes() == full
    assert len(said("revoke list --config x --file", path).splitlines()) == len(read(path).rows) == 10_000
    path.write_bytes(full + b"[[revocations]]\nid = 'of-before'\nprincipals = ['q']\n")
    ran("revoke undo r7 --config x --file", path)
    left = {row.id for row in read(path).rows}
    assert {"r7", "of-before"} & left == {"of-before"}
    assert len(left) == 10_000, "r70 has another id"


def test_what_has_expired_goes_with_the_next_write(tmp_path):
    issuer = (
        'name = "corp"\nissuer = "https://i"\nalgorithms = ["RS256"]\nmax_lifetime = "10m"\nleeway = "30s"'
    )
    world, path = tmp_path / "w.toml", tmp_path / "r.toml"
    world.write_text(f'version = 1\n[live]\nrevocations = "r.toml"\n[[issuers]]\n{issuer}\n')
    now = time.time()
    ages = {"over": 631, "stands": 605}  # the leeway counts
    rows = [Revocation(id=n, roles=["a"], issued_before=now - t) for n, t in ages.items()]
    write(path, Revocations(tuple(rows)))

    text = said("revoke add --principal p --issued-before now --id new --config", world)

    assert "1 revocations went" in text
    assert "and the leeway for the issuers' clocks" in text
    assert "STS" not in text
    ran("revoke add --credential sha256:0123456789abcdef --id one --config", world)
    stands, new, one = read(path).rows
    assert (stands.id, new.id, new.added, new.issued_before - now >= 30) == ("stands", "new", None, True)
    assert one.added >= now - 1


@pytest.mark.parametrize(
    ("issuers", "policy", "warned"),
    [("", "sts", True), ("--issuer cloud", "sts", True), ("--issuer corp", "sts", False), ("", "junk", True)],
)
def test_it_is_said_that_no_sts_credential_is_spared(tmp_path, issuers, policy, warned):
    tables = '[[issuers]]\nname = "corp"\n[[sts]]\nname = "cloud"\n'
    (tmp_path / "w").write_text(tables if policy == "sts" else "junk")

    line = f"revoke add --role a --issued-before 1700000000 {issuers} --config"
    done = ran(line, tmp_path / "w", "--file", tmp_path / "r.toml")

    assert ("aws:TokenIssueTime" in done.output) is warned


# --- what a credential rests on


def issuer_of(**more):
    return Issuer(**{"name": "corp", "issuer": "https://idp", "algorithms": ["RS256"], **more})


def lost_of(issuer, key=(), keys=None, alg="RS256"):
    more = (ground("aud", "a"), ground("aud", "b"), *key)
    grounds = token_grounds("https://idp", alg, more)
    return lost(WHO._replace(grounds=grounds), issuer, Limits(), keys, 1500.0)


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"audiences": ["a", "c"]}, ""),
        ({"audiences": ["b"]}, ""),
        ({"audiences": ["c"]}, "audience"),
        ({"client_ids": ["a"]}, "audience"),
        ({"audiences": ["a"], "algorithms": ["RS256", "ES256"]}, ""),
        ({"audiences": ["a"], "algorithms": ["ES256"]}, "alg"),
        ({"audiences": ["a"], "issuer": "https://other"}, "iss"),
    ],
)
def test_what_a_policy_takes_away_of_a_credential_s_grounds(more, kind):
    assert lost_of(issuer_of(**more)) == kind


def test_another_key_under_its_kid_is_another_key_and_so_is_its_key_under_another():
    issuer = issuer_of(audiences=["a"])
    key, other = (Key(WHO.key_id, "RSA", "", None, None, ("AQAB", n)) for n in ("n1", "n2"))
    renamed, mine = Key("k2", "RSA", "", None, None, ("AQAB", "n1")), [key_ground(key)]

    found = [lost_of(issuer, mine, keys) for keys in ([key], [other], [renamed], None)]
    assert found == ["", "key", "key", ""]


def test_an_issuer_may_add_the_alg_of_a_token_to_its_key_and_drop_it():
    issuer = issuer_of(audiences=["a"], algorithms=["EdDSA", "Ed25519"])
    keys = [parse_key(public_jwk(ED_KEY, WHO.key_id, alg)) for alg in (None, "EdDSA", "Ed25519")]

    for key in keys[:2]:
        found = [lost_of(issuer, [key_ground(key)], [now], "EdDSA") for now in keys]
        assert found == ["", "", "key"], "a key for Ed25519 alone does not fit"
    assert KeySet(keys[:1])._kept(keys[1]) is keys[1], "to new requests it is another key"
    older = key_ground(keys[1], "EdDSA")  # with the key's own alg
    assert lost_of(issuer, [older], [keys[1]], "EdDSA") == ""
