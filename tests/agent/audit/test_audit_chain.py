"""The chain: what `audit verify` proves, and what it says of each kind of tampering."""

import hashlib
import json
import sys
import time
from dataclasses import replace

import pytest
from audit_support import ASKED, decided, lines, opened
from invoking import said
from spop_transcript import YES

from iamroles_agent.audit.chain import GENESIS, SEALED, Head, Tree, seal
from iamroles_agent.audit.file import head_path
from iamroles_agent.audit.record import prepare
from iamroles_tools.audit.verify import verify

ALLOW = replace(YES, credential="sha256:0123456789abcdef", roles=(YES.role,))
ABOUT = {"host": "orders.example.com", "path": "/orders/1", "policy_version": "sha256:feed", "generation": 3}


def written(path, count=8, **how):
    """A log of two batches: the start, and the decisions with the end."""
    log = opened(path, sync="1s", **how)
    assert log.flush()
    for number in range(count):
        assert decided(log, f"req-{number}", ALLOW, src_port=40000 + number, **ABOUT)
    log.close()
    return path


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    return lines(written(tmp_path_factory.mktemp("genuine") / "audit.jsonl"))


def judged(texts, directory, head=None):
    path = directory / "judged.jsonl"
    path.write_bytes(b"".join(texts))
    head_path(path).unlink(missing_ok=True)
    if head is not None:
        head_path(path).write_text(str(head))
    return verify([path])


def last_head(texts):
    sealed = [json.loads(text) for text in texts if SEALED.search(text)]
    tree = Tree()
    for record in sealed:
        tree = tree.grown(bytes.fromhex(record["hash"]))
    return Head(sealed[-1]["seq"], sealed[-1]["hash"], tree)


def test_a_genuine_log_is_whole(genuine, tmp_path):
    proof = judged(genuine, tmp_path, last_head(genuine))

    assert proof.whole
    assert proof.records == 10  # start, 8 decisions, end
    assert not proof.notes


def test_a_record_says_who_did_what_when_with_which_role(genuine):
    found = json.loads(genuine[1])

    said = {"seq": 2, "request": "req-0", "kind": "decision", "verdict": "allow", "status": 200, "rule": "R1"}
    said |= {"principal": "alice", "session": "s-1", "issuer": "corp", "role": YES.role, "roles": [YES.role]}
    said |= {"src": "192.0.2.7", "port": 40000, "method": "GET", "host": "orders.example.com"}
    said |= {"path": "/orders/1", "backend": "orders", "credential": "sha256:0123456789abcdef"}
    said |= {"expires": 1800003600, "policy": "sha256:feed", "keys": 3}

    assert found.pop("time").endswith("Z")
    assert found == said
    again = json.loads(genuine[2])
    assert again.pop("time").endswith("Z")
    assert again == {"seq": 3, "request": "req-1", "port": 40001, "use": 2}, "a verdict is said once"


def test_the_chain_can_be_checked_without_this_tool(genuine):
    before, batch, batches = GENESIS, b"", 0
    for line in genuine:
        batch += line
        if b',"hash":"' not in line:
            continue
        body, _, rest = batch.rpartition(b',"hash":"')
        assert json.loads(line)["prev"] == before
        assert rest == hashlib.sha256(body).hexdigest().encode() + b'"}\n'
        before, batch, batches = json.loads(line)["hash"], b"", batches + 1

    assert (batch, batches) == (b"", 2)


@pytest.mark.parametrize("line", range(10))
def test_a_removed_line_is_named(genuine, tmp_path, line):
    proof = judged(genuine[:line] + genuine[line + 1 :], tmp_path, last_head(genuine))

    finding = proof.findings[-1]
    assert len(proof.findings) == (2 if line == 9 else 1)
    if line == 0:
        assert "begins with record 2, in the middle" in finding.message
    elif line == 9:
        assert "the end was cut off" in proof.findings[0].message
        assert "records 2 to 9 are sealed by nothing" in finding.message
    else:
        assert finding.line == line + 1
        assert f"record {line + 1} is missing before record {line + 2}" in finding.message


@pytest.mark.parametrize("line", range(9))
def test_reordered_lines_are_named(genuine, tmp_path, line):
    swapped = [*genuine]
    swapped[line : line + 2] = reversed(swapped[line : line + 2])

    proof = judged(swapped, tmp_path, last_head(genuine))

    at = [finding.line for finding in proof.findings if finding.line]
    assert at[:2] in ([line + 1, line + 2], [line + 1, line + 1])
    said = " ".join(finding.message for finding in proof.findings)
    assert "out of order" in said or "begins a new chain" in said


@pytest.mark.parametrize("line", range(10))
def test_a_changed_line_is_named_with_its_batch(genuine, tmp_path, line):
    changed = [*genuine]
    changed[line] = changed[line].replace(b'"time":"2', b'"time":"1')

    [finding] = judged(changed, tmp_path, last_head(genuine)).findings

    if line == 0:
        assert (finding.line, "record 1 was changed" in finding.message) == (1, True)
    else:
        assert finding.line == 2
        assert "one of records 2 to 10 (up to" in finding.message


def test_a_changed_batch_with_a_new_seal_breaks_the_next(genuine, tmp_path):
    changed = bytearray(genuine[0].replace(b'"reason":"started"', b'"reason":"falsely"'))
    body = changed[: changed.index(b',"worker"')] + b"}\n"
    who = genuine[0][genuine[0].index(b',"worker"') : genuine[0].index(b',"prev"')]
    seal(body, Head(), who)

    findings = judged([bytes(body), *genuine[1:]], tmp_path).findings

    assert [finding.line for finding in findings] == [2]
    assert "record 2 does not follow record 1" in findings[0].message


def test_members_after_the_hash_and_lines_that_nothing_seals_are_found(genuine, tmp_path):
    smuggled = genuine[0].replace(b'"}\n', b'","verdict":"deny"}\n')
    assert "one of records 1 to 10" in judged([smuggled, *genuine[1:]], tmp_path).findings[0].message

    forged = genuine[2].replace(b'"seq":3', b'"seq":11')
    [finding] = judged([*genuine, forged], tmp_path, last_head(genuine)).findings
    assert (finding.line, "sealed by nothing" in finding.message) == (11, True)


@pytest.mark.parametrize("line", range(11))
def test_one_foreign_line_is_one_finding(genuine, tmp_path, line):
    theirs = lines(written(tmp_path / "theirs.jsonl"))
    for foreign in (b"hello\n", theirs[1], theirs[0], theirs[-1]):
        proof = judged([*genuine[:line], foreign, *genuine[line:]], tmp_path, last_head(genuine))

        assert proof.findings, foreign
        assert line + 1 in [finding.line for finding in proof.findings] or line in (0, 1)


def test_lines_of_another_worker_are_foreign(genuine, tmp_path):
    """Seen before: a chain inserted under another worker's number was taken for a second worker's."""
    written(tmp_path / "audit.jsonl", 3, worker=7)
    theirs = lines(tmp_path / "audit.w7.jsonl")
    heads = [json.loads(genuine[-1])["hash"]]

    for at in range(11):
        path = tmp_path / "judged.jsonl"
        path.write_bytes(b"".join([*genuine[:at], *theirs, *genuine[at:]]))
        proof = verify([path], complete=True, heads=heads)
        assert not proof.whole, at


def test_a_log_is_verified_while_it_is_written(path):
    log = opened(path, sync="1s")
    assert log.flush()
    start = path.read_bytes()
    unsealed = start.partition(b',"worker"')[0].replace(b'"seq":1,"kind":"start"', b'"seq":2,"kind":"event"')
    path.write_bytes(start + unsealed + b"}\n")

    proof = verify([path])
    log.close()

    assert proof.whole
    assert "not sealed yet" in proof.notes[0]


def test_a_rewritten_log_is_betrayed_by_a_head_kept_elsewhere(genuine, path):
    written(path)

    assert verify([path], heads=[json.loads(path.read_bytes().splitlines()[-1])["hash"]]).whole
    findings = verify([path], heads=[json.loads(genuine[-1])["hash"]]).findings
    assert [str(finding).count("the log was rewritten") for finding in findings] == [0, 1]
    assert "its log was rewritten, or is foreign" in findings[0].message


def test_what_the_command_says(path):
    shown = said("audit verify", written(path), head_path(path))
    assert "WHOLE: 10 records in 1 file, nothing removed, changed, inserted or reordered" in shown
    assert json.loads(said("audit verify --format json", path))["whole"] is True

    genuine = lines(path)
    head = json.loads(genuine[-1])["hash"]
    said("audit verify --head", head, path)
    path.write_bytes(b"".join(genuine[:-1]))
    assert "the log was rewritten" in said("audit verify --head", head, path, code=1)
    path.write_bytes(b"".join(genuine[:3] + genuine[4:]))
    assert f"{path}:4: record 4 is missing before record 5" in said("audit verify", path, code=1)
    path.write_bytes(b"")
    head_path(path).unlink()
    assert "NOT PROVEN" in said("audit verify", path, code=1)


@pytest.mark.skipif(sys.gettrace() is not None, reason="coverage makes Python slower, and the hash not")
def test_a_record_costs_no_more_than_the_hash_of_its_full_line(log):
    """The hot path: the caller's own CPU time for one more use of a verdict, which no hash delays."""
    prepared = prepare(ALLOW, **(ASKED | ABOUT))
    line = b"x" * 600

    def cost(call):
        rounds = []
        for _ in range(5):
            began = time.thread_time()
            for _ in range(2000):
                call()
            rounds.append(time.thread_time() - began)
        return min(rounds)

    hashing = cost(lambda: hashlib.sha256(line).hexdigest())
    recording = cost(lambda: log.record(prepared, "56e307bc-a7c1-4211-844c-d0ca1ae55a6a", 40000, 7))
    log.close()

    assert recording < 5 * hashing  # about 1.2
