"""The log through rotation, crashes, a full disk and several workers; and that no token ever appears."""

import json
import logging
import os
import time
from unittest import mock

import pytest
from audit_support import ALICE, ASKED, child, confirmed, lines, opened, records, requests, written
from waiting import until

from iamroles_agent.audit.record import prepare
from iamroles_agent.base.errors import StartError
from iamroles_tools.audit.verify import verify

CHILD = """
    import json, resource, signal, sys, time
    from audit_support import confirmed, opened

    path = sys.argv[1]
"""


@pytest.fixture
def old(tmp_path):
    """Return the path of a rotated log."""
    return tmp_path / "audit.jsonl.1"


class TestRotation:
    def test_a_log_that_was_moved_away_is_left_and_the_chain_goes_on(self, path, old, log):
        confirmed(log, "a")
        assert log.flush()
        path.rename(old)
        confirmed(log, "b")
        log.reopen()
        until(path.exists)
        confirmed(log, "c")
        log.close()

        proof = verify([path, old])
        assert proof.whole
        assert not proof.notes
        assert verify([path]).whole
        assert "in a file that was not given" in verify([path]).notes[0]
        assert not verify([path], complete=True).whole
        assert records(old)[-1]["kind"] == "end"
        assert records(path)[0] | {"kind": "start", "reason": "rotated"} == records(path)[0]
        assert requests(old, path) == ["a", "b", "c"]

    def test_a_middle_file_left_out_is_found(self, tmp_path, path, log):
        for number in range(3):
            confirmed(log, str(number))
            assert log.flush()
            path.rename(tmp_path / f"audit.jsonl.{number}")
            log.reopen()
            until(path.exists)
        log.close()
        every = [*(tmp_path / f"audit.jsonl.{number}" for number in range(3)), path]

        assert verify(every).whole
        assert "missing before record" in verify([every[0], every[2], every[3]]).findings[0].message

    @pytest.mark.parametrize("empty", [lambda path: os.truncate(path, 0), os.unlink], ids=["cut", "gzip"])
    def test_truncated_or_removed_after_a_copy(self, path, old, log, empty):
        confirmed(log, "a")
        assert log.flush()
        old.write_bytes(path.read_bytes())
        empty(path)
        confirmed(log, "b")
        log.reopen()
        assert log.flush()
        log.close()

        assert verify([old, path]).whole
        assert requests(old, path) == ["a", "b"]
        alone = verify([path])
        assert alone.whole
        assert "in a file that was not given" in alone.notes[0]
        assert not verify([path], complete=True).whole

    def test_an_emptied_file_that_lost_its_first_lines_is_found(self, path, log):
        confirmed(log, "a")
        assert log.flush()
        os.truncate(path, 0)
        for request in "bcd":
            confirmed(log, request)
        log.close()
        assert verify([path]).whole
        path.write_bytes(b"".join(lines(path)[1:]))

        assert "in the middle: what came before is gone" in verify([path]).findings[0].message

    def test_no_decision_is_lost_or_misplaced_while_the_log_rotates(self, tmp_path):
        """Decisions, rotations and the end race; whatever the interleaving, all is there and in order."""
        for attempt in range(30):
            path, old = tmp_path / f"{attempt}.jsonl", tmp_path / f"{attempt}.jsonl.1"
            log = opened(path, sync="0.0s" if attempt % 2 else "4ms")
            asked = [str(number) for number in range(40)]
            for request in asked:
                assert confirmed(log, request)
                if request == "20":
                    path.rename(old)
                    log.reopen()
            log.close()

            files = [old, path] if path.exists() else [old]
            assert requests(*files) == asked
            proof = verify(files)
            assert (proof.whole, proof.notes) == (True, [])
            assert [records(files[-1])[at]["kind"] for at in (0, -1)] == ["start", "end"]

    def test_rotated_while_the_agent_was_down(self, path, old):
        written(path, "a").rename(old)
        written(path, "b")

        assert verify([old, path]).whole
        assert records(path)[0]["seq"] == records(old)[-1]["seq"] + 1

    def test_rotation_into_a_directory_that_is_gone_and_comes_back(self, tmp_path):
        directory = tmp_path / "logs"
        directory.mkdir()
        log = opened(path := directory / "audit.jsonl")
        confirmed(log, "a")
        assert log.flush()
        directory.rename(tmp_path / "old")
        log.reopen()
        until(lambda: log.state().failing)
        assert not confirmed(log, "refused")
        directory.mkdir()
        until(lambda: not log.state().failing)
        assert confirmed(log, "b")
        with pytest.raises(StartError, match=f"being written by process {os.getpid()}[.]"):
            opened(path)
        log.close()

        assert verify([tmp_path / "old" / "audit.jsonl", path]).whole
        assert requests(tmp_path / "old" / "audit.jsonl", path) == ["a", "b"]


class TestStart:
    def test_goes_on_where_it_stopped(self, path):
        written(path, "a")
        written(path, "b")

        assert verify([path]).whole
        assert [found["seq"] for found in records(path)] == [1, 2, 3, 4, 5, 6]

    def test_an_end_that_was_cut_off_while_it_was_down_is_not_papered_over(self, caplog, path):
        path.write_bytes(b"".join(lines(written(path, "a", "b"))[:-2]))
        written(path)

        assert "ends 2 records before its head says" in caplog.text
        [finding] = verify([path]).findings
        assert "records 3 to 4 are missing before record 5" in finding.message

    def test_an_unfinished_line_of_a_crash_is_cut_off_and_declared(self, path):
        with written(path, "a").open("ab") as stream:
            stream.write(b'{"time":"2026-03-01T00:0')
        written(path)

        assert verify([path]).whole
        assert records(path)[3]["torn"] == 24

    @pytest.mark.parametrize("text", ["root:x:0:0\n", pytest.param("[" * 100_000 + "\n", id="nested")])
    def test_a_file_of_someone_else_is_not_touched(self, path, text):
        path.write_text(text)

        with pytest.raises(StartError, match="does not end in an audit record"):
            opened(path)
        assert path.read_text() == text

    @pytest.mark.parametrize(
        ("name", "why"),
        [("absent/audit", "No such file"), ("a" * 300, "File name too long")],
        ids=["absent", "long"],
    )
    def test_no_directory(self, tmp_path, name, why):
        with pytest.raises(StartError, match=rf"cannot be opened: {why}.*audit\.path"):
            opened(tmp_path / name)

    def test_none_records_nothing_and_refuses_nothing(self):
        log = opened("none")

        assert confirmed(log, "a")
        log.close()
        assert log.state().records == 0

    def test_each_worker_has_a_chain_of_its_own(self, tmp_path, path):
        for worker in range(3):
            written(path, "a", worker=worker)

        paths = sorted(tmp_path.glob("*.jsonl"))
        assert [found.name for found in paths] == ["audit.jsonl", "audit.w1.jsonl", "audit.w2.jsonl"]
        proof = verify(paths)
        assert proof.whole
        assert sorted(span.worker for span in proof.spans.values()) == [0, 1, 2]


class TestFullDisk:
    """A limit on the file's size (RLIMIT_FSIZE) stops a write in its middle, exactly as a full disk does."""

    BODY = """
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        log = opened(path, sync=SYNC, on_error=ON_ERROR)
        deadline = time.monotonic() + 30
        answers = []
        while not log.state().failing and time.monotonic() < deadline:
            answers.append(confirmed(log, f"before-{len(answers)}"))
            time.sleep(0.0005)
        while_failing = [confirmed(log, f"during-{number}") for number in range(5)]
        state = log.state()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        while log.state().failing and time.monotonic() < deadline:
            time.sleep(0.001)
        after = confirmed(log, "after")
        log.close()
        print(json.dumps({"before": answers, "during": while_failing, "after": after,
                          "lost": state.lost, "failures": state.failures}))
    """

    def run(self, path, *, on_error, sync="40ms", more=""):
        how = f"\nSYNC, ON_ERROR = {sync!r}, {on_error!r}\n{more}\n"
        out, err = child(path, CHILD, how, self.BODY).communicate(timeout=60)
        assert out, err
        return json.loads(out), err

    def test_deny(self, path):
        told, err = self.run(path, on_error="deny")

        assert told["during"] == [False] * 5
        assert told["after"] is True
        assert told["failures"] >= 1
        for said in ("cannot be written", "now refused", "written again"):
            assert said in err
        assert verify([path]).whole
        on_record = requests(path)
        acknowledged = [f"before-{number}" for number, answer in enumerate(told["before"]) if answer]
        assert on_record == [*acknowledged, "after"]
        [gap] = records(path, kind="gap")
        assert gap["lost"] == told["lost"] >= 5
        assert gap["answered"] == "deny"

    def test_allow(self, path):
        told, err = self.run(path, on_error="allow")

        assert all([*told["before"], *told["during"], told["after"]])
        assert "answered unrecorded" in err
        assert verify([path]).whole
        expected = [f"before-{number}" for number in range(len(told["before"]))]
        assert requests(path) == [*expected, *(f"during-{number}" for number in range(5)), "after"]

    def test_standard_error_goes_on_where_it_stopped(self, path):
        more = "import os; os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), 2); path = 'stderr'"
        assert self.run(path, on_error="allow", more=more)[0]["failures"]

        assert verify([path], mixed=True).whole

    def test_without_a_window_the_decision_that_does_not_fit_is_refused_itself(self, path):
        told, _err = self.run(path, on_error="deny", sync="0s")

        assert told["before"][-1] is False
        assert all(told["before"][:-1])
        assert verify([path]).whole
        [gap] = records(path, kind="gap")
        overruled = next(found for found in records(path) if found["seq"] == gap["overruled"])
        assert overruled["request"] == f"before-{len(told['before']) - 1}"


def test_a_verdict_whose_first_use_ended_in_want_of_memory_is_written_in_full(path, old, log):
    """It once named a record of the file before."""
    known = prepare(ALICE, **ASKED)
    log.record(known, "a")
    assert log.flush()
    path.rename(old)
    log.reopen()
    until(lambda: known.file is not log._file_token)
    full = mock.MagicMock(get=mock.Mock(side_effect=MemoryError))
    with mock.patch.object(log, "_known", full), pytest.raises(MemoryError):
        log.record(known, "lost")
    log.record(known, "b")
    log.close()

    assert verify([path, old]).whole
    assert records(path, kind="decision")[0]["principal"] == "alice"


def test_records_outlive_an_end_of_memory(path):
    """Wherever memory ends, in a request or in the writer: what was acknowledged is on record, in order."""
    body = """
        log, deadline, answers = opened(path, sync="1s"), time.monotonic() + 60, []
        confirmed(log, "first", path="/" + "x" * 900)
        held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + (700 << 10), resource.RLIM_INFINITY))
        while not log.state().failing and time.monotonic() < deadline:
            try:
                answers.append(confirmed(log, f"r{len(answers)}", path=f"/{len(answers)}" + "x" * 900))
            except MemoryError:
                answers.append(False)
                time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        while log.state().failing and time.monotonic() < deadline:
            time.sleep(0.001)
        confirmed(log, "last")
        log.close()
        print(json.dumps({"answers": answers, "failures": log.state().failures}))
    """
    out, err = child(path, CHILD, body).communicate(timeout=90)
    assert out, err
    said = json.loads(out)
    expected = [f"r{number}" for number, answer in enumerate(said["answers"]) if answer]

    assert said["failures"], err
    assert verify([path]).whole
    assert requests(path) == ["first", *expected, "last"]


class TestKill:
    def test_at_most_the_declared_window_is_lost(self, path):
        window, body = (
            1.0,
            """
            log = opened(path, sync="1s")
            while True:
                request = f"{time.monotonic()}"
                assert confirmed(log, request)
                print(request, flush=True)
                time.sleep(0.002)
            """,
        )
        process = child(path, CHILD, body)
        first = float(process.stdout.readline())
        acknowledged = [str(first)]
        while float(acknowledged[-1]) < first + 1.5 * window:
            acknowledged.append(process.stdout.readline().strip())
        killed = time.monotonic()
        process.kill()
        process.communicate()

        written(path)
        due = [request for request in acknowledged if float(request) < killed - window]
        assert len(due) > 10
        assert set(due) <= set(requests(path))
        proof = verify([path])
        assert proof.whole
        assert "was killed before this start: up to 1.0 s" in proof.notes[0]


def test_hostile_strings_stay_one_line_of_json(path, log):
    hostile = '"},\n{"kind":"start\x00\x1b[31m\u2028\ud800é'
    confirmed(log, hostile, host=hostile, path=hostile, method=hostile)
    log.close()

    assert verify([path]).whole
    assert records(path)[1]["path"] == hostile


def test_a_disk_slower_than_the_load_is_said_and_declared(path, monkeypatch, caplog):
    """The buffer's bound is lowered; the disk is a pipe that nobody reads, until somebody does."""
    monkeypatch.setattr("iamroles_agent.audit.log.LIMIT", 1 << 18)
    monkeypatch.setattr("iamroles_agent.audit.outage.LIMIT", 1 << 18)
    monkeypatch.setattr("iamroles_agent.audit.log._BATCH", 1 << 17)
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = opened(path)
    caplog.set_level(logging.ERROR)

    answers = [confirmed(log, str(number)) for number in range(2000)]
    assert not all(answers)
    assert log.state().failing

    os.set_blocking(reader, True)
    text = b""
    while log.state().failing:
        text += os.read(reader, 65536)
    assert confirmed(log, "after")
    log.flush(0)
    while b'"after"' not in text:
        text += os.read(reader, 65536)
    os.close(reader)
    found = [json.loads(line) for line in text.splitlines()]
    [gap] = [line for line in found if line["kind"] == "gap"]
    assert gap["lost"] == answers.count(False)
    assert "slower than the load" in caplog.text
    log.close()
