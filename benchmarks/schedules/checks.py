"""Checks after all faults of a schedule are over: nobody waits, all members agree, nothing is left, and
the good are served.
"""

from benchmarks.schedules.agent import ALL, Agent, revoked_by
from benchmarks.schedules.parts import Connection
from benchmarks.schedules.world import ENDS, KEYS, PRINCIPALS, Asked, address, keys_of, marks, opens, source
from iamroles_agent.control.document import KEYS as KEYS_PART


def finish(agent: Agent) -> None:
    """The faults are over: what must hold now."""
    agent.issuer.mood, agent.disk.full = "good", False
    if not agent.file.exists():
        agent.revoke(frozenset())
    Agent.ill = 0
    if agent.mark is None:
        agent.mark, agent.signalled = 1, False
    if not agent.signalled:
        agent.load()
    wanted = agent.mark
    agent.run_until(lambda: _good_again(agent))
    if agent.refused:  # the operator read so
        agent.load()
        agent.run_until(lambda: _good_again(agent))
    if not agent.faults and marks()[agent.plane.document.policy] != wanted:
        agent.wrong(f"the file's mark is {wanted}, in force is {agent.plane.document.policy}")
    _nobody_waits(agent)
    if not agent.faults:
        _everybody_agrees(agent)
        _nothing_is_left(agent)
    if not agent.faults:
        _the_good_are_served(agent)
    if not agent.faults and agent.answers % 4 == 0:
        _new_keys_are_served(agent)


def _good_again(agent: Agent) -> bool:
    document = agent.plane.document
    keys = document.parts.get(KEYS_PART + source(marks()[document.policy]))
    return (
        agent.calm()
        and keys is not None
        and agent.time.now - keys.stamp < 12.0
        and revoked_by(document) == agent.file.revoked
        and agent.disk.kept is not None
        and not agent.disk.kept.document.differences(document)
    )


def _nobody_waits(agent: Agent) -> None:
    connections = [connection for process in agent.processes.values() for connection in process.connections]

    def nobody() -> bool:
        # The fetcher may still look for a key on behalf of a worker that died.
        busy = any(process.member.link._tasks for process in agent.processes.values())
        return not busy and not any(connection.unanswered for connection in connections)

    agent.run_until(nobody, seconds=4.0)


def _everybody_agrees(agent: Agent) -> None:
    document = agent.plane.document
    for process in agent.processes.values():
        if process.document.version != document.version or document.differences(process.document):
            agent.wrong(f"{process.name} has {process.document.version}, in force is {document.version}")
        if process.index >= 0 and process.member.gate.policy.version != document.policy:
            agent.wrong(f"{process.name} decides by {process.member.gate.policy.version}")
    kept = agent.disk.kept
    if kept is None or kept.document.differences(document):
        agent.wrong("what is in force is not on disk")


def _nothing_is_left(agent: Agent) -> None:
    plane, relay = agent.plane, agent.plane.relay
    left = {
        "asks": relay._asks,
        "counts": {index: count for index, count in relay._counts.items() if count},
        "held": relay._held,
        "queue": plane.changes._queue,
        "pieces": plane._pieces,
    }
    for process in agent.processes.values():
        link = process.member.link
        left |= {
            f"{process.name} coming": link.member._coming,
            f"{process.name} pieces": link.member._pieces,
            f"{process.name} asks": link._asks,
            f"{process.name} tasks": link._tasks,
        }
        if process.index >= 0:
            stats = process.member.connections
            left[f"{process.name} pending"] = range(stats.pending)
            if stats.open != len(process.connections):
                agent.wrong(f"{process.name} counts {stats.open} connections of {len(process.connections)}")
            if len(process.member.remote._rings) != 1 or len(process.member.remote._sets) != 1:
                agent.wrong(f"{process.name} holds {len(process.member.remote._rings)} sources of keys")
            left[f"{process.name} former keys"] = process.member.authenticator._former
        else:
            sources = process.member.sources
            left["held tokens"] = [one for source in sources.values() for one in source._held]
            if len(sources) > 1:
                agent.wrong(f"the fetcher fetches from {len(sources)} sources")
    for what, held in left.items():
        if held:
            agent.wrong(f"left over: {what}: {held!r}"[:300])


def _the_good_are_served(agent: Agent) -> None:
    document = agent.plane.document
    mark = marks()[document.policy]
    keys = keys_of(document.parts[KEYS_PART + source(mark)].pieces[0])
    revoked = agent.file.revoked or frozenset()
    good = [
        Asked(key, principal, len(ENDS) - 1, path)
        for key in sorted(keys)
        for principal in range(PRINCIPALS)
        if f"u{principal}" not in revoked
        for path in range(4)
        if opens(mark, path)
    ]
    for process in list(agent.processes.values()):
        if process.index < 0 or not good:
            continue
        connection, before = Connection(agent, process), agent.allowed
        connection.ask(good[agent.answers % len(good)])
        agent.relieve(process)
        if agent.allowed == before:
            agent.wrong(f"{process.name} does not serve the good")


def _new_keys_are_served(agent: Agent) -> None:
    """A key that was published just now is fetched for the first token that names it."""
    for seconds in (11.0, 2.1):  # no cooldown, nor memory of what was asked for in vain, is left
        agent.time.now += seconds
        agent.run_until(lambda: _good_again(agent))
    mark = marks()[agent.plane.document.policy]
    before = agent.issuer.keys[address(mark)]
    new = next((key for key in KEYS if key[0] not in {kid for kid, _ in before}), None)
    path = next((path for path in range(4) if opens(mark, path)), None)
    if agent.faults or new is None or path is None or agent.file.revoked == ALL:
        return
    agent.issuer.keys[address(mark)] = before | {new}
    who = next(who for who in range(PRINCIPALS) if f"u{who}" not in (agent.file.revoked or ()))
    allowed, process = agent.allowed, next(one for one in agent.processes.values() if one.index >= 0)
    connection = Connection(agent, process)
    connection.ask(Asked(new, who, len(ENDS) - 1, path))
    agent.run_until(lambda: not connection.unanswered)
    if agent.allowed == allowed:
        agent.wrong(f"{process.name} does not serve a key that was published before the question")
