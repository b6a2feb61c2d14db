"""Records that only HAProxy has: its own refusals, and 503s while the agent was away."""

import gzip
import json
from pathlib import Path

import pytest
from audit_support import ALICE, decided, opened
from invoking import ran, said
from tokens_support import Clock

from iamroles_agent.base.identity import Decision
from iamroles_agent.base.reasons import Reason

HOUR = 1772366400  # 2026-03-01T12:00:00Z


def line(request, second=0, **fields):
    """A line of HAProxy's log as `haproxy.cfg` shapes it."""
    return json.dumps(
        {
            "time": f"2026-03-01T12:00:{second:02}Z", "request_id": request, "status": 200, "verdict": "200",
            "reason": "-", "fault": "-", "client": "192.0.2.9", "client_port": 4000, "ended": "--",
            "method": "GET", "host": "shop", "path": f"/{request}",
        } | fields
    )  # fmt: skip


LINES = [
    *(line("r0"), line("ambiguous", 3, status=400, verdict="-", reason="path_ambiguous", path="/a/../b")),
    line("garbage", 4, status=400, verdict="-", method="-", host="-", path="-", ended="PR"),
    line("late", 5, status=503, verdict="503", fault="1"),
    *(line("broken", 6, status=503, verdict="503", fault="256"), line("away", 7, status=503, verdict="503")),
    line("r1", 8, status=503, verdict="503", reason="keys_unavailable"),
    line("lost", 9, status=503, verdict="503", reason="internal_error"),
    line("refused", 9, status=403, verdict="403", reason="no_grant"),
]


@pytest.fixture
def logs(tmp_path):
    """An audit of r0, r1 and `late`, and HAProxy's log of these and six more."""
    clock, path, log = Clock(HOUR), tmp_path / "audit.jsonl", tmp_path / "haproxy.log"
    audit = opened(path, clock=clock)
    refusal = Decision(allow=False, reason=Reason.KEYS_UNAVAILABLE)
    for request, decision in (("r0", ALICE), ("late", ALICE), ("r1", refusal)):
        decided(audit, request, decision, src="192.0.2.9", host="shop", path=f"/{request}")
        clock.now += 5
    audit.close()
    log.write_text("\n".join(LINES) + "\n")
    return path, log


def asked(logs, *arguments):
    audit, *proxy = logs
    options = [option for path in proxy for option in ("--haproxy-log", path)]
    result = ran("audit query --format json", audit, *options, *arguments)
    return [json.loads(text) for text in result.stdout.splitlines()], result.stderr


def test_what_haproxy_refused_by_itself_stands_between_the_decisions(logs):
    records, told = asked(logs)

    assert [(found["request"], found["kind"], found.get("cause")) for found in records] == [
        *(("r0", "decision", None), ("ambiguous", "proxy", "refused_by_proxy")),
        *(("garbage", "proxy", "not_judged"), ("late", "decision", None)),
        *(("broken", "proxy", "agent_fault"), ("away", "proxy", "agent_away")),
        *(("lost", "proxy", "agent_refused"), ("r1", "decision", None)),
    ]
    assert records[1] | {"reason": "path_ambiguous", "status": 400, "path": "/a/../b"} == records[1]
    assert "9 requests; 7 refused without the agent's answer, 2 of them in the audit too; 0 lines" in told


def test_a_verdict_that_came_too_late_says_what_haproxy_did_instead(logs):
    [late], _ = asked(logs, "--request", "late")

    assert late["verdict"] == "allow"
    assert late["proxy"] == {"status": 503, "cause": "agent_timeout", "fault": "1"}
    table = said("audit query", logs[0], "--haproxy-log", logs[1])
    assert "(HAProxy answered 503: agent_timeout)" in table
    assert "PROXY  - as - from 192.0.2.9  GET shop/a/../b  refused_by_proxy path_ambiguous" in table


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        *((("--cause", "agent_timeout"), ["late"]), (("--cause", "agent_away"), ["away"])),
        *((("--cause", "refused_by_proxy"), ["ambiguous"]), (("--reason", "path_ambiguous"), ["ambiguous"])),
        (("--kind", "proxy"), ["ambiguous", "garbage", "broken", "away", "lost"]),
        (("--since", "2026-03-01T12:00:06Z", "--until", "2026-03-01T12:00:08Z"), ["broken", "away"]),
        *((("--path", "/a/*"), ["ambiguous"]), (("--who", "alice"), ["r0", "late"])),
    ],
)
def test_one_can_ask_for_them(logs, arguments, expected):
    assert [found["request"] for found in asked(logs, *arguments)[0]] == expected


BAD = [
    *(b"[NOTICE] (1) : haproxy version is 3.0.11\n", b"{\n", b"{}\n", b"[]\n", b"{" * 100_000 + b"\n"),
    b'{"time":5,"request_id":"x","verdict":"-"}\n',
    b'{"time":"yesterday","request_id":"x","verdict":"-"}\n',
    b'{"time":"2026-03-01T12:00:00Z","request_id":["x"],"verdict":"-"}\n',
    b'{"time":"2026-03-01T12:00:00Z","request_id":"odd","verdict":["-"],"status":"x","reason":7,"path":{}}\n',
    b'{"time":"2026-03-01T12:00:00Z","request_id":"\xff\xfe","verdict":"-","path":"\xc3\x28"}\n',
    *(b"\x00\x01\xff{\xff\n", b'{"time":"2026-03-01T12:00:00Z","request_id":"tor'),
]


def test_bad_lines_are_counted_and_never_fatal(logs, tmp_path):
    log = tmp_path / "bad.log"
    log.write_bytes(b"".join(BAD[:6]) + f"<134>Mar  1 haproxy[7]: {LINES[1]}\n".encode() + b"".join(BAD[6:]))

    records, told = asked((logs[0], log), "--kind", "proxy")

    assert [found["request"] for found in records] == ["odd", "\ufffd\ufffd", "ambiguous"]
    assert "9 lines could not be read, 2 others passed over" in told


def test_rotated_and_compressed(logs, tmp_path):
    old = tmp_path / "haproxy.log.1.gz"
    with gzip.open(old, "wt") as stream:
        stream.write("\n".join(LINES[:4]) + "\n")
    Path(logs[1]).write_text("\n".join(LINES[4:]) + "\n")

    assert [found["request"] for found in asked((*logs, old), "--kind", "proxy")[0]] == [
        "ambiguous", "garbage", "broken", "away", "lost",
    ]  # fmt: skip


def test_the_audit_is_read_twice(logs):
    assert "give files, not standard input" in said("audit query - --haproxy-log", logs[1], code=2)
