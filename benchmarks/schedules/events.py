"""Events of a schedule: two numbers say where, and how. A function returns False if it could not."""

import functools
from collections.abc import Callable
from typing import Any

from benchmarks.schedules.agent import Agent
from benchmarks.schedules.loop import Job
from benchmarks.schedules.parts import Connection, Process
from benchmarks.schedules.world import ENDS, KEYS, KIDS, MARKS, PATHS, PRINCIPALS, Asked, address
from iamroles_agent.control.slots import FETCHER

Choice = tuple[str, int, int]
"""The event, and two numbers below 65,536 that say to whom and how."""


def _waiting(agent: Agent) -> list[Callable[[float], object]]:
    """Whatever is on its way somewhere."""
    found: list[Callable[[float], object]] = []
    for process in agent.processes.values():
        if process.alive and process.said:
            found.append(functools.partial(_hear, agent, process))
        if not process.runs:
            continue
        if process.pipe.waiting:
            found.append(functools.partial(_give, process, process.pipe))
        found += [
            functools.partial(_give, process, connection.pipe)
            for connection in process.connections
            if connection.pipe.waiting
        ]
        found += [functools.partial(_work, process, job) for job in process.loop.jobs]
    found += [functools.partial(_reap, agent, process) for process in agent.ends]
    if agent.loader is not None:
        found.append(lambda _part: agent.load_on())
    return found


def _hear(agent: Agent, process: Process, _part: float) -> None:
    agent.hear(process)


def _reap(agent: Agent, process: Process, _part: float) -> None:
    agent.reap(process)


def _give(process: Process, pipe: Any, part: float) -> None:
    process.step(lambda: pipe.deliver(part))


def _work(process: Process, job: Job, part: float) -> None:
    if not job.ran:
        process.agent.tell(f"{process.name}: work in a thread is done")
        job.run()
        if part < 0.5:
            return  # its report comes later
    process.loop.jobs.remove(job)
    if 0.5 <= part < 0.75:  # something arrives in the same turn of its loop
        process.step(lambda: (job.report(), process.pipe.deliver()))
    else:
        process.step(job.report)


def deliver(agent: Agent, x: int, y: int) -> bool:
    found = _waiting(agent)
    if found:
        found[x % len(found)](1.0 if y % 4 else (y % 97) / 97)
    return bool(found)


def _relieve(agent: Agent, x: int, y: int) -> bool:
    process = _one(agent, x)
    if process is None:
        return False
    if y % 3:
        return agent.relieve(process)
    return agent.deliver_all()


def _one(agent: Agent, x: int, least: int = FETCHER) -> Process | None:
    found = [one for one in agent.processes.values() if one.alive and one.index >= least]
    return found[x % len(found)] if found else None


def _connect(agent: Agent, x: int, y: int) -> bool:
    found = [one for one in agent.processes.values() if one.serves and one.runs and len(one.connections) < 3]
    if found:
        Connection(agent, found[x % len(found)])
    return bool(found)


def _ask(agent: Agent, x: int, y: int) -> bool:
    connections = [
        connection
        for one in agent.processes.values()
        for connection in one.connections
        if one.serves and not connection.over
    ]
    if not connections:
        return _connect(agent, x, y)
    connection = connections[x % len(connections)]
    for _ in range(1 + y % 2):
        # Mostly what an issuer publishes now, and few different questions: so that they are remembered.
        published = sorted(agent.issuer.keys[address(0)])
        key = published[y % len(published)] if y % 8 and published else KEYS[y // 8 % len(KEYS)]
        connection.ask(Asked(key, x // 7 % PRINCIPALS, x // 23 % len(ENDS), y // 3 % PATHS))
        y = y * 31 + 7
    if x % 2:
        connection.process.step(connection.pipe.deliver)
    return True


def _hang_up(agent: Agent, x: int, y: int) -> bool:
    connections = [
        connection
        for one in agent.processes.values()
        for connection in one.connections
        if not connection.over
    ]
    if connections:
        connection = connections[x % len(connections)]
        if y % 3 == 0:
            connection.say_goodbye()
        elif y % 3 == 1:
            connection.pipe.ended = True
        elif connection.process.runs:
            connection.close()
    return bool(connections)


def pass_time(agent: Agent, x: int, y: int) -> None:
    agent.pass_time((0.01, 0.05, 0.1, 0.25, 0.3, 0.5)[x % 6])


def _jump(agent: Agent, x: int, y: int) -> None:
    """The host slept, or time was of no interest."""
    agent.tell("time jumps")
    agent.pass_time((1.0, 2.1, 4.0, 8.0, 16.0)[x % 5])


def _edit(agent: Agent, x: int, y: int) -> None:
    agent.mark, agent.signalled = None if x % 12 == 0 else y % MARKS, False
    agent.tell(f"the file has mark {agent.mark}")
    if x % 2:
        agent.load()


def _revoke(agent: Agent, x: int, y: int) -> None:
    if x % 10 == 0:
        agent.revoke(None)
    else:
        agent.revoke(frozenset(f"u{one}" for one in range(PRINCIPALS) if y >> one & 1))


def _rotate(agent: Agent, x: int, y: int) -> None:
    """An issuer publishes other keys; one name has one material at a time."""
    chosen = frozenset((kid, y >> (3 + kid) & 1) for kid in range(KIDS) if y >> kid & 1)
    agent.issuer.keys[address(0 if x % 3 else MARKS - 1)] = chosen
    agent.tell(f"the issuer publishes {sorted(chosen)}")


def _mood(agent: Agent, x: int, y: int) -> None:
    agent.issuer.mood = ("good", "good", "down", "failing", "lying")[x % 5]


def _refuse(agent: Agent, x: int, y: int) -> None:
    """A worker will not be able to build the next policy."""
    Agent.ill = 1


def _kill(agent: Agent, x: int, y: int) -> bool:
    process = agent.processes.get(FETCHER) if y % 3 == 0 else _one(agent, x)
    if process is not None and process.alive:
        agent.tell(f"{process.name} dies")
        process.dies("signal 9")
    return process is not None


def _terminate(agent: Agent, x: int, y: int) -> bool:
    process = _one(agent, x)
    if process is None or process.loop.terminate is None:
        return False
    agent.tell(f"{process.name} gets SIGTERM")
    process.step(process.loop.terminate)
    return True


def _freeze(agent: Agent, x: int, y: int) -> bool:
    process = _one(agent, x)
    if process is not None:
        process.frozen = not process.frozen
        agent.tell(f"{process.name} {'stops' if process.frozen else 'goes on'}")
    return process is not None


def _fill(agent: Agent, x: int, y: int) -> None:
    agent.disk.full = not agent.disk.full
    agent.tell(f"the disk is {'full' if agent.disk.full else 'good'}")


EVENTS: dict[str, tuple[Callable[[Agent, int, int], bool | None], int]] = {
    "deliver": (deliver, 420),
    "relieve": (_relieve, 90),
    "ask": (_ask, 170),
    "connect": (_connect, 25),
    "hang-up": (_hang_up, 15),
    "pass": (pass_time, 70),
    "jump": (_jump, 8),
    "edit": (_edit, 45),
    "reload": (lambda agent, *_: agent.load(), 12),
    "revoke": (_revoke, 25),
    "settled": (lambda agent, *_: agent.ask_revocations(), 25),
    "rotate": (_rotate, 25),
    "mood": (_mood, 10),
    "refuse": (_refuse, 8),
    "kill": (_kill, 18),
    "terminate": (_terminate, 3),
    "freeze": (_freeze, 14),
    "die": (lambda agent, *_: agent.die(), 4),
    "stop": (lambda agent, *_: agent.stop(), 3),
    "fill": (_fill, 6),
}
"""The events, and how often each happens."""
FAULTS = ("jump", "mood", "kill", "refuse", "terminate", "freeze", "die", "stop", "fill", "hang-up")
