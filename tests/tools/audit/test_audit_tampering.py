"""No tampering escapes: a log of several workers and files, and every way to change it, at any place."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from audit_support import ASKED, lines, opened
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from waiting import until

from iamroles_agent.audit.chain import SEALED, Head, seal
from iamroles_agent.audit.record import prepare
from iamroles_agent.base.identity import Decision
from iamroles_agent.base.reasons import Reason
from iamroles_tools.audit.verify import verify

WORKERS, FILES, BATCHES = 2, 2, 3
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
    return {path.name: lines(path) for path in directory.glob("*jsonl*")}


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
        return verify(sorted(self.directory.iterdir()), complete=True).whole


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
    new = data.draw(
        st.one_of(
            st.sampled_from(ours), st.sampled_from(logs.foreign), st.sampled_from([own, b"x\n", b"{}\n"])
        ),
        label="line",
    )
    at = _place(data, lines, 1)
    return [*lines[:at], new, *lines[at:]]


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


@pytest.mark.parametrize(
    "change",
    [remove, keep_some, flip, swap, shuffle, repeat, insert, insert_a_chain, append_sealed],
    ids=lambda change: change.__name__,
)
@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_at_any_place_is_found(logs, change, data):
    name = data.draw(st.sampled_from(logs.names), label="file")
    lines = change(data, logs.genuine[name], logs)

    assert logs.judged(logs.genuine | {name: lines}) == (lines == logs.genuine[name])


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
