"""Faults of the host: no descriptors, memory, CPU or disk for the agent; and parts that die.

Limits are put on the running processes (prlimit(2)) from this host: as root, also in a container.
docs/under-fire.md names the faults that no stage can produce: a clock that steps, a slow disk.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Self

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.busy import LOOP
from iamroles_scenarios.base.errors import Inapplicable, StageError, Untestable, WaitTimeoutError
from iamroles_scenarios.base.family import family
from iamroles_scenarios.base.polling import polls, rest
from iamroles_scenarios.checks.fault.fixture import BACK, ONE, FaultBench, fault_bench
from iamroles_scenarios.checks.proxy.traffic import HttpQuestion, shut
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.engine.bench import ALLOWED, Bench, beside, own_suffix, refused
from iamroles_scenarios.engine.key_sets import keeping
from iamroles_scenarios.engine.target import Target

_DEEP = 1.5
"""Seconds that a thread has waited for the CPU at a time, if the agent was starved."""
_LOOK = 0.1
_STARVED = 3.0
"""Seconds, times the scale, without CPU: longer than any heartbeat should be."""
_PATIENCE = 15.0
"""Seconds, times the scale, for `_DEEP` to come."""
_HOGS, _CROWD = 4, 32
_FOREIGN = b"This is not a log.\n"
_NOTICED, _WRITTEN = 2.0, 0.2
"""Seconds, times the scale, in which an agent sees that its log was moved away, if it looks; and in which it
writes a record: longer than `sync`."""


def _has_processes(here: FaultBench) -> None:
    if not here.target.agent.runs:
        raise Inapplicable("process of its own")


def _processes(here: FaultBench) -> list[int]:
    """Return the agent's processes, its first one first.

    Raises:
        Inapplicable: HAProxy alone decides.
    """
    _has_processes(here)
    first = here.world.agent.host_pid
    if first is None:
        raise Untestable("the agent's processes cannot be seen from this host")
    return family(first)


def _lasting(here: FaultBench, pids: list[int]) -> list[int]:
    """Return those of these processes that last: a helper of the agent's ends by itself."""
    for _last in polls(most := here.seconds(_STARVED), most):
        pids = [pid for pid in _processes(here) if pid in pids]
    return pids


@contextmanager
def _limited(here: FaultBench, what: int, to: Callable[[int], int]) -> Iterator[None]:
    """Put a soft limit on each process of the agent while the block runs, and none after it."""
    try:
        for pid in _processes(here):
            with suppress(ProcessLookupError, FileNotFoundError):  # a helper of the agent's has ended
                _, hard = resource.prlimit(pid, what)
                resource.prlimit(pid, what, (to(pid), hard))
    except PermissionError:
        raise Untestable("this user may not limit the agent's processes: run as root") from None
    try:
        yield
    finally:
        for pid in _processes(here):  # also those that were started meanwhile
            with suppress(ProcessLookupError):
                _, hard = resource.prlimit(pid, what)
                resource.prlimit(pid, what, (hard, hard))


@contextmanager
def _full_disk(here: FaultBench, size: int = 0) -> Iterator[None]:
    """Let no file of the agent's grow beyond this while the block runs.

    Raises:
        Untestable: that ended a process by SIGXFSZ, a signal that a full disk does not send.
    """
    exposed = [pid for pid in _processes(here) if ends_by(pid, signal.SIGXFSZ)]
    lasting = exposed and _lasting(here, exposed)
    with _limited(here, resource.RLIMIT_FSIZE, lambda _pid: size):
        yield
        if not all(ends_by(pid, signal.SIGXFSZ) for pid in lasting):
            here.world.agent.kill()  # so that its end is the check's doing
            raise Untestable(
                "the limit in place of a full disk ended a process by SIGXFSZ: docs/under-fire.md"
            )


def ends_by(pid: int, number: signal.Signals) -> bool:
    """Return whether a process lives that this signal ends: it neither ignores nor catches it (proc(5))."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    said = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    handled = int(said["SigIgn"][0], 16) | int(said["SigCgt"][0], 16)
    return said["State"][0] != "Z" and not handled >> number - 1 & 1


def _fresh(here: FaultBench, count: int) -> list[HttpQuestion]:
    """Return questions that were never asked before, each of a person of its own."""
    return [
        HttpQuestion(
            ONE,
            here.token(sub=f"p{number}", exp="+15m"),
            Expectation(status=200, backend="orders-ro", principal=f"p{number}"),
        )
        for number in range(count)
    ]


@check("fault.host.descriptors", "FAULT-HOST-001", long=True)
def descriptors(target: Target) -> str:
    """An agent without a free descriptor gives no wrong verdict, and serves when it has some again.

    Others take those that are left. Then HAProxy is reloaded, so that it needs connections that the agent
    cannot take. The remark says how many questions were not served: none, if HAProxy got its connections. A
    revocation that comes meanwhile is not lost, and reloads are answered again.
    """
    live = {} if target.lacks(["live"]) else {"live": {"revocations": "revocations.toml"}}
    with fault_bench(target, override=live) as here:
        eve = here.token(sub="eve", exp="+15m")
        here.expect("before it is revoked", eve, ALLOWED)
        with _limited(here, resource.RLIMIT_NOFILE, _descriptors), ExitStack() as others:
            host, _, port = here.world.agent.spop_address.rpartition(":")
            with suppress(OSError):  # nobody accepts, and more than some may not wait for that
                for _ in range(0 if host == "unix" else _CROWD):
                    others.enter_context(socket.create_connection((host.strip("[]"), int(port)), _DEEP))
            if live:
                here.revoke(principals=["eve"])
            if not target.lacks(["reload"]):
                here.world.agent.begin_reload(here.loan.policy)
            here.world.haproxy.reload()
            lost = here.ask_during("no descriptors")
        here.must_recover("no descriptors", everywhere=True)
        if live:
            here.expect("revoked meanwhile", eve, refused("credential_revoked"), within=BACK)
        # An agent may have kept the reload, and answer it only now.
        again = () if target.lacks(["reload"]) else polls(here.seconds(BACK))
        if again and not any(here.reload(here.loan.policy).get("reloaded") for _last in again):
            raise here.failed(f"no policy is taken up {BACK:g} s after there are descriptors again")
        return f"{here.remark}; not served meanwhile: {lost} of {len(here.people)}"


def _descriptors(pid: int) -> int:
    """Return a limit by which none is free."""
    used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in count() if number not in used)


@check("fault.host.memory", "FAULT-HOST-002", long=True)
def memory(target: Target) -> str:
    """An agent that gets no more memory gives no wrong verdict, and serves when it gets some again.

    Its address space may not grow; questions that it has never seen may need some. The remark says how many
    it could not answer: none, if it had enough.
    """
    with fault_bench(target) as here:
        asked = _fresh(here, 20) + here.people
        with _limited(here, resource.RLIMIT_AS, _address_space):
            here.world.haproxy.reload()
            lost = here.ask_during("no memory", asked)
        here.must_recover("no memory", everywhere=True)
        return f"{here.remark}; not served meanwhile: {lost} of {len(asked)}"


def _address_space(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


@check("fault.host.cpu", "FAULT-HOST-003", long=True)
def cpu(target: Target) -> str:
    """An agent without CPU time kills none of its own processes, and serves when it gets some.

    All its threads share one CPU at the lowest priority, and other processes keep that busy; then all but
    those of its first process.
    """
    recording.starves()
    with fault_bench(target) as here:
        before = _lasting(here, _processes(here))

        def ask(_client: Bench, ended: threading.Event) -> None:
            while not ended.is_set():
                here.ask_during("no CPU")

        with _Waits(before) as waits, beside(here, ask, 1), _starved(here, before) as free:
            for freed in (before[:1], before):  # its first process sees the others wait
                rest(here.seconds(_STARVED))
                any(waits.deepest >= _DEEP for _last in polls(here.seconds(_PATIENCE - _STARVED)))
                free(freed)
        here.must_recover("no CPU", everywhere=True)
        if set(before) - set(after := _processes(here)):
            raise here.failed(f"its processes were {before}, and are {after}: it killed its own")
        if waits.deepest < _DEEP:
            raise Untestable("the agent cannot be starved of CPU here")
        return here.remark


class _Waits:
    """The longest wait of a thread of these processes for the CPU, while the block runs.

    The kernel counts a wait when it is over (proc(5), schedstat). So what has come since the last look, less
    the time since then, is the least length of a single wait.
    """

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._over = threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)
        self.deepest = 0.0

    def __enter__(self) -> Self:
        self._looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._looking.join()

    def _look(self) -> None:
        former, seen = self._counted(), time.monotonic()
        while not self._over.wait(_LOOK):
            counted, now = self._counted(), time.monotonic()
            came = (waited - former.get(thread, waited) for thread, waited in counted.items())
            self.deepest = max(self.deepest, max(came, default=0.0) - (now - seen))
            former, seen = counted, now

    def _counted(self) -> dict[Path, float]:
        found = {}
        for pid in self._pids:
            for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with suppress(OSError, ValueError):
                    found[thread] = int(thread.read_text().split()[1]) / 1e9
        return found


@contextmanager
def _starved(here: FaultBench, pids: list[int]) -> Iterator[Callable[[Iterable[int]], None]]:
    """Let other processes keep the one CPU busy that these may use, and come first there.

    Yields what frees some. What the agent starts meanwhile inherits it all, so at the end each is freed.
    """
    first = _processes(here)[0]  # others may have ended since
    whole = os.sched_getaffinity(first)
    one = {min(whole)}
    hogs: list[subprocess.Popen[bytes]] = []

    def free(some: Iterable[int]) -> None:
        for tid in _threads(some):
            with suppress(OSError):
                os.sched_setscheduler(tid, os.SCHED_OTHER, os.sched_param(0))
                os.sched_setaffinity(tid, whole)

    try:
        for tid in _threads(pids):
            with suppress(ProcessLookupError):
                os.sched_setaffinity(tid, one)
                os.sched_setscheduler(tid, os.SCHED_IDLE, os.sched_param(0))
        for _ in range(_HOGS):
            hogs.append(subprocess.Popen([sys.executable, "-S", "-c", LOOP, str(os.getpid())]))  # noqa: S603 - our own
            os.sched_setaffinity(hogs[-1].pid, one)
            _beside(hogs[-1].pid, first)
        yield free
    except PermissionError:
        raise Untestable("this user may not starve the agent's processes: run as root") from None
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
        for _twice in range(2):  # a thread may start another before it is freed itself
            free(_processes(here))


def _threads(pids: Iterable[int]) -> list[int]:
    return [int(one.name) for pid in pids for one in Path(f"/proc/{pid}/task").glob("*")]


def _beside(pid: int, other: int) -> None:
    """Put a process into the control group of another: each group has its share of a CPU."""
    for line in Path(f"/proc/{other}/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)  # cgroups(7): version 2 names no controllers
        if not controllers or "cpu" in controllers.split(","):
            members = Path(f"/sys/fs/cgroup/{controllers}{group}/cgroup.procs")
            with suppress(OSError), members.open("r+") as file:  # never a new one
                file.write(str(pid))


@contextmanager
def _gone(folder: Path) -> Iterator[None]:
    """Move a folder away; after the block there is a new one."""
    folder.rename(folder.with_suffix(".moved"))
    yield
    folder.mkdir()


@check("fault.host.disk", "FAULT-HOST-004", long=True)
def disk(target: Target) -> str:
    """An agent whose audit log cannot be written refuses, and serves when it can.

    The agent's files cannot grow, as on a full disk, twice; then, where the suite sees the log, it is moved
    away alone; its folder is gone, or another one is there; or a text, a device, a pipe whose reader stops.
    A log that was moved away during a stop keeps nobody out. `audit.on_error` is `deny`. And a policy that
    could not be saved comes back after a death, and none before it (8.5).
    """
    inside = target.stage.kind == "containers" and bool(target.agent.image or target.agent.build)
    folder = (Path("/tmp") if inside else target.stage.directory) / f"log{own_suffix()}"  # noqa: S108 - its own
    seen_here = target.stage.kind == "processes"
    path = folder / "log" if seen_here else folder
    log = {"path": str(path), "on_error": "deny", "sync": "100ms"}
    if seen_here:
        folder.mkdir()
    with fault_bench(target, override={"audit": log}) as here:
        for fault in ("a full disk", "a disk that is full again"):
            with _full_disk(here):
                _nobody_allowed(here, fault)
            here.must_recover(fault, everywhere=True)
        if seen_here:
            _replace_log(here, folder)
        remark = here.remark
    if seen_here and not target.lacks(["workers"]):
        (full := folder / "full").symlink_to("/dev/full")
        _strange_log(target, {"audit": {**log, "path": str(full)}, "agent": {"workers": 2}}, _full_device)
    if seen_here:
        with closing(_PipedLog(folder / "pipe")) as pipe:
            override = {"audit": {**log, "path": str(pipe.path)}}
            _strange_log(target, override, partial(_stuck_log, pipe=pipe))
    if not target.lacks(["reload"]):
        _die_unsaved(target, {**log, "path": f"{folder}.unsaved", "sync": "0s"})
    return remark


def _die_unsaved(target: Target, log: Mapping[str, Any]) -> None:
    """Kill the agent after a reload beside a full disk: what it confirmed comes back, and no older policy.

    Each batch of its log is synced: not even the first answer comes without a record.
    """
    with fault_bench(target, override={"agent": keeping(target.stage), "audit": log}) as here:
        policy = here.loan.policy
        kept = [grant for grant in policy["grants"] if grant["backend"] != "orders-ro"]
        with _full_disk(here):
            if (seen := here.ask_each_worker(here.people[0])) and seen.opened:
                raise here.failed("a full disk, sync 0s: the first answer opens without a record", seen)
            confirmed = here.reload({**policy, "grants": kept}).get("reloaded")
        here.world.agent.kill()  # before it saves again
        if confirmed:
            here.world.agent.start()
            here.must_recover("a death on a full disk", [HttpQuestion(ONE, here.token(), shut(403))])


def _strange_log(target: Target, override: Mapping[str, Any], play: Callable[[FaultBench], None]) -> None:
    """Play in a world whose log is not a file; an agent may also say that it cannot use it, and end (8.4)."""
    try:
        with fault_bench(target, override=override, start=False) as here:
            play(here)
    except StageError as error:
        if " ended " not in error.message or "audit" not in error.logs["agent"]:
            raise


def _full_device(here: FaultBench) -> None:
    here.send(here.people[0])  # an agent may fetch keys only then
    with suppress(WaitTimeoutError):  # or refuse before it needs them
        here.issuer().wait_for("jwks", at_least=1, deadline=here.seconds(BACK))
    _nobody_allowed(here, "a device that is full")


class _PipedLog:
    """A pipe that holds what comes; once it is full it takes nothing, and gives no error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._end = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        fcntl.fcntl(self._end, fcntl.F_SETPIPE_SZ, 1 << 20)  # enough for all that is recorded here

    def close(self) -> None:
        os.close(self._end)

    def fill(self) -> None:
        """Fill the pipe to its last byte."""
        for size in (1 << 12, 1):
            with suppress(BlockingIOError):
                while os.write(self._end, size * b"\n"):
                    pass

    def empty(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._end, 1 << 20):
                pass


def _stuck_log(here: FaultBench, pipe: _PipedLog) -> None:
    """Ask while the pipe takes the log, and while it is full."""
    fault = "a log that takes nothing"
    for last in polls(here.seconds(BACK)):
        if (seen := here.ask_each_worker(here.people[0])) and seen.allow:
            break
        if last:
            return  # an agent need not take a pipe
    pipe.fill()
    _nobody_allowed(here, fault)
    pipe.empty()
    here.must_recover(fault, everywhere=True)


def _logs(folder: Path) -> list[Path]:
    """Return the logs there: an agent may write a file for each worker, and the reference agent heads."""
    return [one for one in folder.glob("log*") if one.suffix != ".head"]


def _replace_log(here: FaultBench, folder: Path) -> None:
    """Put another disk, nothing, a new log and a text in the log's place."""
    for turn in range(2):
        for one in _logs(folder):
            one.rename(folder / f"rotated-{turn}-{one.name}")
        for _last in polls(here.seconds(_NOTICED)):
            here.ask_each_worker(here.people[0])
            if _logs(folder):
                break
        here.must_recover("a log that was moved away", everywhere=True)
    here.ask_during("a sound disk", 5 * here.people, served=True)  # the next log is shorter
    longest = 0
    for _last in polls(here.seconds(_NOTICED), here.seconds(_WRITTEN)):
        former, longest = longest, max((one.stat().st_size for one in _logs(folder)), default=0)
        if longest == former:
            break
    with _full_disk(here, longest):
        _nobody_allowed(here, "a full disk")
        folder.rename(folder.with_suffix(".full"))
        folder.mkdir()
        here.must_recover("a full disk whose place another one takes")
    with _gone(folder):
        _nobody_allowed(here, "a log whose folder is gone")
    here.must_recover("a log whose folder is gone", everywhere=True)
    here.world.agent.stop()
    for one in _logs(folder):
        one.rename(folder / f"former-{one.name}")
    here.world.agent.start()
    here.must_recover("a stop in which the log was moved away")
    folder.rename(old := folder.with_suffix(".old"))
    folder.mkdir()
    texts = [folder / one.name for one in _logs(old)]
    for text in texts:
        text.write_bytes(_FOREIGN)
    _nobody_allowed(here, "a text in the log's place", texts)
    for text in texts:
        text.unlink(missing_ok=True)
    here.must_recover("a text in the log's place", everywhere=True)


def _nobody_allowed(here: FaultBench, fault: str, texts: Sequence[Path] = ()) -> None:
    end = time.monotonic() + here.seconds(BACK)
    # Each worker learns it by a record of its own.
    while (seen := here.ask_each_worker(here.people[0])) and seen.opened:
        if any(not one.exists() or one.read_bytes() != _FOREIGN for one in texts):
            return  # an agent may write behind them, or move them away
        if time.monotonic() > end:
            raise here.failed(f"{fault}: allowed though nothing can be recorded", seen)
    for question in _fresh(here, 2):
        if (seen := here.ask_each_worker(question)) and seen.opened:
            raise here.failed(f"{fault}: a new question was allowed", seen)
    for question in here.people:
        seen = here.send(question)
        if seen is not None and seen.allow:
            raise here.failed(f"{fault}: allowed without a record", seen, question.expected)


@check("fault.host.agent", "FAULT-HOST-005", long=True)
def agent(target: Target) -> str:
    """An agent that is killed or frozen allows nothing, and serves when it is back.

    HAProxy is left alone. What a killed agent left on disk, state and log, keeps its successor from nothing.
    """
    kept = dict[str, Any]()
    if target.stage.kind == "processes":
        log = target.stage.directory / f"log{own_suffix()}"
        kept = {"agent": keeping(target.stage), "audit": {"path": str(log)}}
    with fault_bench(target, override=kept) as here:
        _has_processes(here)
        part = here.world.agent
        part.kill()
        here.ask_during("killed")
        part.start()
        here.must_recover("killed", everywhere=True)
        part.pause()
        here.ask_during("frozen", here.people[:3])
        part.resume()
        here.must_recover("frozen", everywhere=True)
        return here.remark


@check("fault.host.haproxy", "FAULT-HOST-006", long=True)
def haproxy(target: Target) -> str:
    """A proxy that is killed and started again finds an agent that serves it.

    Its connections to the agent end without a word.
    """
    with fault_bench(target) as here:
        for _ in range(3):
            here.world.haproxy.restart()
            here.must_recover("HAProxy killed")
        return here.remark
