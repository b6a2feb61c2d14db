"""No tampering escapes: a log of several workers and files, and every way to change it, at any place."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from audit_support import ASKED, decided, lines, opened, written
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from invoking import said
from waiting import until

from iamroles_agent.audit.chain import SEALED, Head, seal
from iamroles_agent.audit.record import prepare
from iamroles_agent.base.errors import StartError
from iamroles_agent.base.identity import Decision
from iamroles_agent.base.reasons import Reason
from iamroles_tools.audit.verify import verify

WORKERS, FILES, BATCHES = 2, 2, 3
THOROUGH = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Lines = list[bytes]


def story(directory):
    """Two workers, each with a rotated file and a current one, of several batches; name to lines."""
    verdicts = [
        prepare(Decision(allow=reason is None, reason=reason, principal=principal), **ASKED)
        for principal, reason in (("alice", None), ("bob", None), ("", Reason.NO_CREDENTIALS))
    ]
    for worker in range(WORKERS):
        log = opened(directory / "audit.jsonl", sync="1s", worker=worker)
        path = directory / ("audit.w1.jsonl" if worker else "audit.jsonl")
        for number in range(FILES):
            for batch in range(BATCHES):
                for index in range(3):
                    log.record(verdicts[(batch + index) % 3], f"{worker}-{number}-{batch}-{index}", 40000)
                assert log.flush()
            if number < FILES - 1:
                _rotate(log, path)
        log.close()
    return {path.name: lines(path) for path in directory.glob("audit*")}


def _rotate(log, path):
    path.rename(path.with_name(path.name + ".1"))
    log.reopen()
    until(lambda: path.exists() and path.stat().st_size)


@dataclass
class Logs:
    """The genuine log, one of somebody else, and a place for the tampered one."""

    directory: Path
    genuine: dict[str, Lines]
    foreign: Lines
    names: list[str] = field(default_factory=list)

    def judged(self, files):
        """Return whether `verify` calls these files whole, the genuine heads beside them."""
        for name in self.names:
            (self.directory / name).unlink(missing_ok=True)
            if name in files:
                (self.directory / name).write_bytes(b"".join(files[name]))
        return verify(sorted(self.directory.glob("audit*")), complete=True).whole


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    directory, elsewhere = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("theirs")
    files = story(directory)
    names = sorted(name for name in files if not name.endswith(".head"))
    genuine = {name: files[name] for name in names}
    assert len(genuine) == WORKERS * FILES
    assert all(sum(bool(SEALED.search(line)) for line in lines) >= BATCHES for lines in genuine.values())
    foreign = [line for lines in story(elsewhere).values() for line in lines if line.startswith(b"{")]
    return Logs(directory, genuine, foreign, names)


def test_the_genuine_log_is_whole(logs):
    assert logs.judged(logs.genuine)


Change = Callable[[st.DataObject, Lines, Logs], Lines | None]


def _in_order(files):
    """All lines, rotated files before the file that goes on from them."""
    names = sorted(files, key=lambda name: (name.removesuffix(".1"), not name.endswith(".1")))
    return [line for name in names for line in files[name]]


def _place(data, lines, more=0):
    return data.draw(st.integers(0, len(lines) - 1 + more), label="place")


def remove(data, lines, logs):
    at, to = sorted((_place(data, lines), _place(data, lines)))
    return lines[:at] + lines[to + 1 :]


def keep_some(data, lines, logs):
    kept = data.draw(st.sets(st.integers(0, len(lines) - 1)), label="kept")
    return [lines[at] for at in sorted(kept)]


def flip(data, lines, logs):
    whole = bytearray(b"".join(lines))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    return bytes(whole).splitlines(keepends=True)


def swap(data, lines, logs):
    one, other = _place(data, lines), _place(data, lines)
    swapped = [*lines]
    swapped[one], swapped[other] = lines[other], lines[one]
    return swapped


def shuffle(data, lines, logs):
    return data.draw(st.permutations(lines), label="order")


def repeat(data, lines, logs):
    at = _place(data, lines, 1)
    return [*lines[:at], lines[_place(data, lines)], *lines[at:]]


def insert(data, lines, logs):
    ours = [line for name in logs.names for line in logs.genuine[name]]
    own = lines[_place(data, lines)].replace(b'"seq":', b'"seq":1')
    new = st.one_of(*map(st.sampled_from, (ours, logs.foreign, [own, b"x\n", b"{}\n"])))
    at = _place(data, lines, 1)
    return [*lines[:at], data.draw(new, label="line"), *lines[at:]]


def insert_a_chain(data, lines, logs):
    """A whole log of somebody else, self-consistent, as another worker's or as this one's."""
    begin = next(at for at, line in enumerate(logs.foreign) if b'"seq":1,' in line)
    chain = [line.replace(b'"worker":0', b'"worker":7') for line in logs.foreign[begin:]]
    at = _place(data, lines, 1)
    return [*lines[:at], *(chain if data.draw(st.booleans()) else logs.foreign), *lines[at:]]


def append_sealed(data, lines, logs):
    """A batch with a seal of its own, linked to where it is put, that pretends to be what follows there."""
    seals = [at for at, line in enumerate(lines) if SEALED.search(line)][:-1]
    at = data.draw(st.sampled_from(seals))
    found = SEALED.search(lines[at])
    assert found is not None
    number = int(lines[at].partition(b'"seq":')[2].partition(b",")[0])
    forged = bytearray(b'{"time":"2026-03-01T00:00:00.000Z","seq":%d,"use":2}\n' % (number + 1))
    who = lines[at][lines[at].index(b',"worker"') : found.start()].rstrip(b",")
    seal(forged, Head(number, found[3].decode()), who)
    return [*lines[: at + 1], bytes(forged), *lines[at + 1 :]]


def cut(data, lines, logs):
    whole = b"".join(lines)
    return whole[: data.draw(st.integers(0, len(whole)), label="length")].splitlines(keepends=True)


JUNK = st.binary(min_size=1, max_size=40) | st.sampled_from(
    [b"\0" * 4096, b"\n", b'{"time":"', b'{"time":"2026-03-01T00:00:00.000Z","seq":9}', b" "]
)


def append(data, lines, logs):
    return [*lines, data.draw(JUNK, label="junk")]


def splice(data, lines, logs):
    whole = b"".join(lines)
    at = data.draw(st.integers(0, len(whole)), label="place")
    return (whole[:at] + data.draw(JUNK, label="junk") + whole[at:]).splitlines(keepends=True)


CHANGES = [cut, append, splice, remove, keep_some, flip, swap, shuffle, repeat, insert]
CHANGES += [insert_a_chain, append_sealed]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@given(data=st.data())
@THOROUGH
def test_any_change_at_any_place_is_found(logs, change, data):
    name = data.draw(st.sampled_from(logs.names), label="file")
    lines = change(data, logs.genuine[name], logs)

    assert logs.judged(logs.genuine | {name: lines}) == (lines == logs.genuine[name])


@given(data=st.data())
@THOROUGH
def test_lines_that_went_to_another_file_are_found(logs, data):
    one, other = data.draw(st.lists(st.sampled_from(logs.names), min_size=2, max_size=2, unique=True))
    source, target = [*logs.genuine[one]], [*logs.genuine[other]]
    line = source.pop(_place(data, source))
    target.insert(_place(data, target, 1), line)

    moved = logs.genuine | {one: source, other: target}
    assume(_in_order(moved) != _in_order(logs.genuine))  # a rotated file's last line may begin the next file
    assert not logs.judged(moved)


def test_a_file_that_is_gone_is_found(logs):
    for name in logs.names:
        assert not logs.judged({other: lines for other, lines in logs.genuine.items() if other != name}), name


def test_a_rotated_and_a_current_file_that_changed_names_are_found(logs):
    first, second = logs.names[:2]
    swapped = logs.genuine | {first: logs.genuine[second], second: logs.genuine[first]}

    assert not logs.judged(swapped)  # the head beside the current file vouches for more than that now holds


class TestTheEnd:
    """Bytes after the last record, and what a cut leaves."""

    @given(data=st.data())
    @THOROUGH
    def test_without_its_head_only_a_cut_after_a_seal_escapes(self, logs, data, tmp_path):
        """The lawful case: the log was as short once. A head or checkpoint kept elsewhere shows it."""
        path = tmp_path / "alone.jsonl"
        lines = logs.genuine["audit.jsonl.1"]
        short = cut(data, lines, logs)
        path.write_bytes(b"".join(short))

        lawful = short == lines[: len(short)] and (not short or SEALED.search(short[-1]) is not None)
        assert verify([path]).whole == lawful

    @pytest.mark.parametrize(
        ("tail", "remedy"),
        [
            *((start, "next start cuts them off") for start in (b'{"time":"2026-03-01T00:0', b'{"ti')),
            *((other, "does not start on them") for other in (b"\0\0\0\0", b"x")),
        ],
    )
    def test_bytes_after_the_last_record_are_said(self, tmp_path, tail, remedy):
        """Half a line once read WHOLE. The finding says what the next start does."""
        path = written(tmp_path / "audit.jsonl", "a")
        with path.open("ab") as stream:
            stream.write(tail)

        shown = said("audit verify", path, code=1)
        assert f"{len(tail)} bytes after record 3 belong to no record" in shown
        assert remedy in shown
        assert "WHOLE up to there: 3 records in 1 file" in shown
        if "cuts" in remedy:
            written(path, "b")
            assert "WHOLE: 6 records" in said("audit verify", path)
        else:
            with pytest.raises(StartError, match="does not end in an audit record"):
                written(path, "b")

    @pytest.mark.parametrize("create", [True, False])
    def test_a_rotated_log_that_nobody_wrote_since_is_whole(self, tmp_path, create):
        """The head vouches for a record of the rotated file; the agent is stopped, or has had no request."""
        path = written(tmp_path / "audit.jsonl", "a")
        rotated = path.rename(tmp_path / "audit.jsonl.1")
        if create:
            path.touch()
        files = set(tmp_path.glob("audit*"))

        said("audit verify", *files)
        shown = said("audit verify", *files - {rotated}, code=1)
        assert (
            "audit.jsonl:end: no records, but audit.jsonl.head vouches for record 3 in no given file" in shown
        )

    def test_half_a_line_that_was_rotated_away_is_closed_by_the_next_start(self, tmp_path):
        """The agent was killed, logrotate moved the file, the agent started."""
        path, rotated, head = (tmp_path / f"audit.jsonl{end}" for end in ("", ".1", ".head"))
        log = opened(path)
        decided(log, "a")
        assert log.flush()
        rotated.write_bytes(path.read_bytes() + b'{"time":"20')
        vouched = head.read_bytes()
        log.close()
        path.unlink()
        head.write_bytes(vouched)
        written(path, "b")

        shown = said("audit verify", *tmp_path.glob("audit*"))
        assert "11 bytes after record 2 belong to no record" in shown
        assert "WHOLE: 5 records" in shown

    def test_half_a_line_under_the_pen_is_a_note(self, tmp_path):
        path = tmp_path / "audit.jsonl"
        log = opened(path)
        decided(log, "a")
        assert log.flush()
        with path.open("ab") as stream:
            stream.write(b'{"time":"20')

        assert "an unfinished line: the agent is writing it" in said("audit verify", path)
        log.close()


@pytest.mark.parametrize("make", [lambda head: head.symlink_to("victim"), os.mkfifo, Path.mkdir])
def test_a_head_that_is_no_regular_file_is_not_written(tmp_path, make):
    """A link at the head's place once led the agent to overwrite the file that it names."""
    victim, head = tmp_path / "victim", tmp_path / "audit.jsonl.head"
    victim.write_text("precious")
    make(head)

    with pytest.raises(StartError, match=r"audit\.jsonl\.head cannot be the head.*Remove it"):
        opened(tmp_path / "audit.jsonl")
    assert victim.read_text() == "precious"
