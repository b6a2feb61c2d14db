"""Questions to the log: who did what, when, with which role."""

import csv
import gzip
import json
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest
from audit_support import ASKED, decided, lines, opened, written
from invoking import ran, said
from tokens_support import Clock
from waiting import until

from iamroles_agent.audit.record import prepare
from iamroles_agent.base.identity import Decision, Identity, Request
from iamroles_agent.base.reasons import Reason
from iamroles_agent.live.console import Stream
from iamroles_agent.live.judge import EXPIRED
from iamroles_agent.live.proxy_worker import Cut
from iamroles_agent.live.ticket import Ticket
from iamroles_agent.processes import cutting
from iamroles_tools.audit import reading
from iamroles_tools.audit.query import moment

READER = "arn:aws:iam::111122223333:role/reader"
WRITER = "arn:aws:iam::111122223333:role/writer"
HOUR = 1772366400  # 2026-03-01T12:00:00Z


def cut(log, request_id, principal, role):
    """Record a stream that was cut, as worker 0 does."""
    request = Request("GET", "shop", "/live", ip_address("192.0.2.7"))
    ticket = Ticket(
        "iam/aa", Identity("corp", principal, "s-1", (), 2000), request, role, "rw", "R2"
    ).encode()
    stream = Stream("", 7, "192.0.2.7", 1, 0, 2000, 2000, request_id, ticket, False, True, 0.0)
    cutting.record(log, Cut(stream, EXPIRED, "", due=2000.0, done=2000.1, by="filter"))


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path, clock = tmp_path_factory.mktemp("log") / "audit.jsonl", Clock(HOUR)
    audit = opened(path, clock=clock)
    alice, bob = {"principal": "alice", "roles": (READER,)}, {"principal": "bob", "roles": (READER, WRITER)}
    decisions = [
        (Decision(allow=True, role=READER, backend="ro", rule="R1", **alice), "/orders"),
        (Decision(allow=True, role=WRITER, rule="R2", **bob), "/orders/9"),
        (Decision(allow=False, reason=Reason.NO_GRANT, **alice), "/admin"),
        (Decision(allow=False, reason=Reason.TOKEN_EXPIRED, detail="two minutes ago"), "/orders"),
        (Decision(allow=False, reason=Reason.PATH_AMBIGUOUS), "/\x1b]0;owned\x07"),
        (Decision(allow=False, reason=Reason.NO_GRANT, principal="=cmd()", roles=(READER,)), "/x"),
    ]
    for number, (decision, path_asked) in enumerate(decisions):
        decided(audit, f"r{number}", decision, host="shop", path=path_asked)
        clock.now += 600
    cut(audit, "r1", "bob", WRITER)
    audit.close()
    return path


def asked(log, *arguments):
    found = said("audit query --format json", log, *arguments)
    return [json.loads(line)["request"] for line in found.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        *(((), ["r0", "r1", "r2", "r3", "r4", "r5", "r1"]), (("--who", "alice"), ["r0", "r2"])),
        *((("--who", "b*"), ["r1", "r1"]), (("--role", "writer"), ["r1", "r1"])),
        *((("--role", READER), ["r0", "r1", "r2", "r5"]), (("--verdict", "allow"), ["r0", "r1"])),
        *((("--reason", "token_expired"), ["r3"]), (("--path", "/orders*"), ["r0", "r1", "r3"])),
        (("--request", "r2"), ["r2"]),
        (("--since", "2026-03-01T12:10:00Z", "--until", "2026-03-01T12:30:00Z"), ["r1", "r2"]),
        (("--since", "2026-03-01", "--until", "2026-03-01T14:05:00+02:00"), ["r0"]),
        *(((*more, "--who", "b*", "--cause", "expired"), ["r1"]) for more in ((), ("--kind", "event"))),
        *((("--kind", "termination"), ["r1"]), (("--who", "alice", "--verdict", "deny"), ["r2"])),
    ],
)
def test_filters(log, arguments, expected):
    assert asked(log, *arguments) == expected


def test_table_is_for_people(log):
    shown = said("audit query", log).splitlines()

    assert shown[0] == (
        "2026-03-01T12:00:00.000Z  ALLOW  alice as reader from 192.0.2.7  GET shop/orders -> ro  R1"
    )
    assert "DENY" in shown[3]
    assert shown[3].endswith("token_expired (two minutes ago)")
    assert shown[6].endswith("CUT    bob as writer from 192.0.2.7  connection cut: expired -> rw  R2")


def test_a_path_has_no_power_over_the_terminal(log):
    for form in ("table", "summary", "csv"):
        assert not {"\x1b", "\x07"} & set(said("audit query --format", form, log))


def test_csv_holds_no_formula(log):
    [found] = csv.DictReader(said("audit query --format csv --who =*", log).splitlines())

    assert (found["principal"], found["reason"], found["actor"]) == ("'=cmd()", "no_grant", "")


def test_a_cut_stream_has_a_row_like_a_decision(log):
    [found] = csv.DictReader(said("audit query --format csv --kind termination", log).splitlines())

    about = {"verdict": "cut", "principal": "bob", "role": WRITER, "path": "/live", "cause": "expired"}
    assert {name: found[name] for name in about} == about


def test_summary_counts(log):
    shown = said("audit query --format summary --reason no_grant", log).splitlines()

    assert shown[1].split()[:4] == ["1", "deny", "alice", "as"]
    [shown] = said("audit query --format summary --kind termination", log).splitlines()
    assert shown.split()[1:6] == ["cut", "bob", "as", "writer", "expired"]


@pytest.fixture
def rotated(tmp_path):
    """One verdict used three times in a file that was then rotated and compressed, and twice in the next."""
    path = tmp_path / "audit.jsonl"
    audit = opened(path)
    prepared = prepare(Decision(allow=True, role=READER, principal="alice", roles=(READER,)), **ASKED)
    for number in range(5):
        if number == 3:
            audit.flush()
            path.rename(tmp_path / "old")
            audit.reopen()
            until(lambda: path.exists() and path.stat().st_size)
        audit.record(prepared, f"r{number}")
        decided(audit, f"b{number}", Decision(allow=False, principal="bob"), path=f"/{number}")
    audit.close()
    with gzip.open(tmp_path / "audit.jsonl.1.gz", "wb") as stream:
        stream.write((tmp_path / "old").read_bytes())
    return path, tmp_path / "audit.jsonl.1.gz"


def test_compressed_rotated_files_are_read_in_the_order_they_were_written(rotated):
    found = list(map(json.loads, said("audit query --format json --who alice", *rotated).splitlines()))

    assert [record["request"] for record in found] == ["r0", "r1", "r2", "r3", "r4"]
    own = {"time", "seq", "request"}
    assert len({json.dumps({k: v for k, v in record.items() if k not in own}) for record in found}) == 1
    ran("audit verify", *rotated)


@pytest.mark.parametrize(("which", "expected"), [(0, ["r3", "r4"]), (1, ["r0", "r1", "r2"])])
def test_each_file_stands_alone(rotated, which, expected):
    assert asked(rotated[which], "--who", "alice") == expected


@pytest.mark.parametrize(("kept", "times"), [(2, [2, 2]), (0, [3, 4])])
def test_a_verdict_is_looked_up_only_if_forgotten_and_in_its_own_file(rotated, monkeypatch, kept, times):
    read, real = [], reading.opened
    monkeypatch.setattr(reading, "_KEPT", kept)
    monkeypatch.setattr(reading, "opened", lambda path: read.append(path) or real(path))

    said("audit query", *rotated)
    assert [read.count(path) for path in rotated] == times


def test_a_use_whose_verdict_is_not_given_is_told(tmp_path):
    path = written(tmp_path / "audit.jsonl", "r0", "r1")
    path.write_bytes(b"".join(lines(path)[2:]))

    note = "note: 1 uses name a verdict that stands in a file that was not given"
    assert note in said("audit query", path)


@pytest.mark.parametrize(
    "forged",
    [
        *({"seq": 9, "use": 9}, {"time": "2026-03-01T12:00:00"}, {"proxy": "x"}, {"about": {"path": 5}}),
        *({"event": "cut", "about": {wrong: 5}} for wrong in ("roles", "proxy")),
        *({"path": 5}, {"kind": "gap", "detail": "\x07"}),
    ],
)
def test_a_forged_line_does_not_stop_the_search(log, tmp_path, forged):
    path = tmp_path / "audit.jsonl"
    record = {"time": "2026-03-01T12:00:00.000Z", "seq": 1, "kind": "decision", "request": "r1"} | forged
    forged_line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
    path.write_bytes(forged_line + log.read_bytes())

    for asked_for in ("--path /*", "--role *", "--since 9000d", "--cause x", "--request r1 --format table"):
        ran(f"audit query {asked_for}", path)
    assert "\x07" not in said("audit verify", path, code=1)


def test_bad_arguments(log):
    for moment_given in ("yesterday", "9999999d", "999999999999d"):
        assert "or an age: 15m, 2h, 7d" in said(f"audit query --since {moment_given}", log, code=2)
    ran("audit query absent.jsonl", code=2)


def test_moments():
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    assert moment("90m", now) == datetime(2026, 3, 1, 10, 30, tzinfo=UTC)
    assert moment("2026-03-01", now) == datetime(2026, 3, 1, tzinfo=UTC)
