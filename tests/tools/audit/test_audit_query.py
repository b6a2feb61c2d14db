"""Questions to the log: who did what, when, with which role."""

import csv
import gzip
import json
from datetime import UTC, datetime

import pytest
from audit_support import ASKED, decided
from click.testing import CliRunner
from waiting import until

from iamroles_agent.audit.log import Audit
from iamroles_agent.audit.record import members, prepare
from iamroles_agent.base.config import AuditSettings
from iamroles_agent.base.identity import Decision
from iamroles_agent.base.reasons import Reason
from iamroles_tools.audit.query import moment
from iamroles_tools.commands.audit import audit as command

READER = "arn:aws:iam::111122223333:role/reader"
WRITER = "arn:aws:iam::111122223333:role/writer"
HOUR = 1772366400  # 2026-03-01T12:00:00Z


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    now = [float(HOUR)]
    audit = Audit(AuditSettings(path=str(path)), clock=lambda: now[0])
    decisions = [
        (
            Decision(allow=True, role=READER, principal="alice", roles=(READER,), backend="ro", rule="R1"),
            "/orders",
        ),
        (Decision(allow=True, role=WRITER, principal="bob", roles=(READER, WRITER), rule="R2"), "/orders/9"),
        (Decision(allow=False, reason=Reason.NO_GRANT, principal="alice", roles=(READER,)), "/admin"),
        (Decision(allow=False, reason=Reason.TOKEN_EXPIRED, detail="two minutes ago"), "/orders"),
        (Decision(allow=False, reason=Reason.PATH_AMBIGUOUS), "/\x1b]0;owned\x07"),
        (Decision(allow=False, reason=Reason.NO_GRANT, principal="=cmd()", roles=(READER,)), "/x"),
    ]
    for number, (decision, path_asked) in enumerate(decisions):
        decided(audit, decision, request_id=f"r{number}", host="shop", path=path_asked)
        now[0] += 600
    who = {"principal": "bob", "role": WRITER, "backend": "rw", "src": "192.0.2.7"}
    audit._note(members({"kind": "termination", "cause": "token_expired", **who}), ("r1", 1, None))
    audit.close()
    return path


def asked(log, *arguments):
    result = CliRunner().invoke(command, ["query", str(log), "--format", "json", *arguments])
    assert result.exit_code == 0, result.output
    return [json.loads(line)["request"] for line in result.output.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ["r0", "r1", "r2", "r3", "r4", "r5", "r1"]),
        (("--who", "alice"), ["r0", "r2"]),
        (("--who", "b*"), ["r1", "r1"]),
        (("--role", "writer"), ["r1", "r1"]),
        (("--role", READER), ["r0", "r1", "r2", "r5"]),
        (("--verdict", "allow"), ["r0", "r1"]),
        (("--reason", "token_expired"), ["r3"]),
        (("--path", "/orders*"), ["r0", "r1", "r3"]),
        (("--request", "r2"), ["r2"]),
        (("--since", "2026-03-01T12:10:00Z", "--until", "2026-03-01T12:30:00Z"), ["r1", "r2"]),
        (("--since", "2026-03-01", "--until", "2026-03-01T14:05:00+02:00"), ["r0"]),
        (("--kind", "termination"), ["r1"]),
        (("--who", "alice", "--verdict", "deny"), ["r2"]),
    ],
)
def test_filters(log, arguments, expected):
    assert asked(log, *arguments) == expected


def test_table_is_for_people(log):
    result = CliRunner().invoke(command, ["query", str(log)])

    lines = result.output.splitlines()
    assert lines[0] == (
        "2026-03-01T12:00:00.000Z  ALLOW  alice as reader from 192.0.2.7  GET shop/orders -> ro  R1"
    )
    assert "DENY" in lines[3]
    assert lines[3].endswith("token_expired (two minutes ago)")
    assert "CUT    bob as writer" in lines[6]


def test_a_path_has_no_power_over_the_terminal(log):
    for form in ("table", "summary"):
        result = CliRunner().invoke(command, ["query", str(log), "--format", form])

        assert "\x1b" not in result.output
        assert "\x07" not in result.output


def test_csv_holds_no_formula(log):
    result = CliRunner().invoke(command, ["query", str(log), "--format", "csv", "--who", "=*"])

    [found] = csv.DictReader(result.output.splitlines())
    assert found["principal"] == "'=cmd()"


def test_summary_counts(log):
    result = CliRunner().invoke(command, ["query", str(log), "--format", "summary", "--reason", "no_grant"])

    assert result.output.splitlines()[1].split()[:4] == ["1", "deny", "alice", "as"]


@pytest.fixture
def rotated(tmp_path):
    """One verdict used three times in a file that was then rotated and compressed, and twice in the next."""
    path = tmp_path / "audit.jsonl"
    audit = Audit(AuditSettings(path=str(path)))
    decision = Decision(allow=True, role=READER, principal="alice", roles=(READER,))
    prepared = prepare(decision, **(ASKED | {"path": "/x"}))
    for number in range(5):
        if number == 3:
            audit.flush()
            path.rename(tmp_path / "old")
            audit.reopen()
            until(lambda: path.exists() and path.stat().st_size)
        audit.record(prepared, f"r{number}")
    audit.close()
    with gzip.open(tmp_path / "audit.jsonl.1.gz", "wb") as stream:
        stream.write((tmp_path / "old").read_bytes())
    return path, tmp_path / "audit.jsonl.1.gz"


def test_compressed_rotated_files_are_read_in_the_order_they_were_written(rotated):
    both = list(map(str, rotated))

    result = CliRunner().invoke(command, ["query", "--format", "json", *both, "--who", "alice"])

    found = [json.loads(line) for line in result.output.splitlines()]
    assert [record["request"] for record in found] == ["r0", "r1", "r2", "r3", "r4"]
    own = {"time", "seq", "request"}
    assert len({json.dumps({k: v for k, v in record.items() if k not in own}) for record in found}) == 1
    assert CliRunner().invoke(command, ["verify", *both]).exit_code == 0


@pytest.mark.parametrize(("which", "expected"), [(0, ["r3", "r4"]), (1, ["r0", "r1", "r2"])])
def test_each_file_stands_alone(rotated, which, expected):
    assert asked(rotated[which], "--who", "alice") == expected


def test_a_use_whose_verdict_is_not_given_is_told(log, tmp_path):
    path = tmp_path / "audit.jsonl"
    audit = Audit(AuditSettings(path=str(path)))
    for number in range(2):
        decided(audit, Decision(allow=True), request_id=f"r{number}", src="", method="", host="", path="",
            policy_version="v", generation=1,
        )  # fmt: skip
    audit.close()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[2:]))

    result = CliRunner().invoke(command, ["query", str(path)])

    assert "note: 1 uses name a verdict that stands in a file that was not given" in result.output


def test_bad_arguments(log):
    result = CliRunner().invoke(command, ["query", str(log), "--since", "yesterday"])

    assert result.exit_code == 2
    assert "or an age: 15m, 2h, 7d" in result.output
    assert CliRunner().invoke(command, ["query", "absent.jsonl"]).exit_code == 2


def test_moments():
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    assert moment("90m", now) == datetime(2026, 3, 1, 10, 30, tzinfo=UTC)
    assert moment("2026-03-01", now) == datetime(2026, 3, 1, tzinfo=UTC)
