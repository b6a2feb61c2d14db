"""A budget of disk: the agent rotates its log, removes the oldest of its files, and says so."""

import contextlib
import json
import logging
from pathlib import Path

import pytest
from audit_support import decided, opened
from invoking import ran
from pydantic import ValidationError
from waiting import until

from iamroles_agent.base.config import AuditSettings
from iamroles_tools.audit.verify import verify

KEEP = 1_000_000


def fill(log, begin, count):
    """Write this many records of about 1.8 kB; a batch is about a share of the budget."""
    for number in range(begin, begin + count):
        assert decided(log, f"r{number}", path=f"/{number}/" + "!" * 1500)
        if number % 40 == 0:
            assert log.flush()
    assert log.flush()


def files(directory):
    return sorted(path for path in directory.glob("[!.]*") if path.suffix != ".head")


def taken(directory):
    total = 0
    for path in files(directory):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            total += path.stat().st_size
    return total


@pytest.mark.parametrize("linked", [False, True])
def test_the_log_keeps_to_its_budget_and_to_its_newest_records(tmp_path, path, caplog, linked):
    caplog.set_level(logging.WARNING)
    if linked:
        tmp_path = tmp_path / "disk"
        tmp_path.mkdir()
        path.symlink_to(tmp_path / path.name)
    tmp_path.joinpath("audit.jsonl.000000000999999").write_bytes(b"of an older chain")
    log, peak = opened(path, keep="1MB"), 0
    for begin in range(0, 2400, 200):
        fill(log, begin, 200)
        peak = max(peak, taken(tmp_path))
    log.close()

    assert KEEP // 2 < peak < KEEP * 1.3  # one batch may be under way
    assert len(files(tmp_path)) > 3
    proof = verify(tmp_path.iterdir())
    assert proof.whole, proof.findings
    assert "in a file that was not given" in proof.notes[0]
    assert not verify(tmp_path.iterdir(), complete=True).whole
    asked = ran("audit query --format json", *files(tmp_path)).stdout
    requests = [json.loads(line)["request"] for line in asked.splitlines()]
    assert requests == [f"r{number}" for number in range(2400)][-len(requests) :]
    assert len(requests) > 200
    asked = ran("audit query --kind event --format json", *files(tmp_path)).stdout
    removed = [json.loads(line)["about"]["file"] for line in asked.splitlines()]
    assert removed
    assert not {path.name for path in files(tmp_path)} & set(removed)
    assert caplog.text.count("is removed: audit.keep is spent") >= len(removed)


def test_without_a_budget_nothing_is_rotated_or_removed(tmp_path, log):
    fill(log, 0, 1200)
    log.close()

    assert [path.name for path in files(tmp_path)] == ["audit.jsonl"]


def test_files_of_others_are_left_alone(tmp_path, path):
    others = [tmp_path / "audit.jsonl.1", tmp_path / "audit.w1.jsonl.000000000000001", tmp_path / "notes.txt"]
    for other in others:
        other.write_bytes(b"x" * KEEP)
    log = opened(path, keep="1MB")
    fill(log, 0, 1200)
    log.close()

    assert all(other.stat().st_size == KEEP for other in others)


def test_a_smaller_budget_holds_from_the_next_start(tmp_path, path):
    log = opened(path, keep="100MB")
    fill(log, 0, 1200)
    log.close()
    old = path.rename(tmp_path / "audit.jsonl.000000000001200")
    log = opened(path, keep="1MB")
    until(lambda: not old.exists())
    log.close()

    assert verify(tmp_path.iterdir()).whole


def test_a_directory_in_which_nothing_can_be_renamed_does_not_refuse_decisions(
    tmp_path, path, monkeypatch, caplog
):
    def refused(self, target):
        raise PermissionError(13, "Permission denied")

    log = opened(path, keep="1MB")
    fill(log, 0, 10)
    monkeypatch.setattr(Path, "rename", refused)
    fill(log, 10, 400)
    log.close()

    assert caplog.text.count("cannot be kept within audit.keep") == 1
    assert verify(tmp_path.iterdir(), complete=True).whole


@pytest.mark.parametrize("keep", ["0MB", "1", "900KB", 5_000_000, "2 GB", "-1MB", "1MiB"])
def test_what_is_no_budget(keep):
    with pytest.raises(ValidationError, match=r"a size is a string|greater than or equal to 1000000"):
        AuditSettings.model_validate({"keep": keep})
