"""Each kind of change, put to each worker: by itself, and after the death of each process of the agent.

A change that one worker of two does not learn of is a wrong answer in every second request. A kind of change
is a row of `CHANGES`; it is made in one world after the other kinds, and asked of all workers at once
(`engine.spread`). Deaths are those of a process that the agent has when it is ready, its first process last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count
from math import ceil
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import jwt

from iamroles_scenarios.base import lateness, recording
from iamroles_scenarios.base.errors import AgentFault, StageError, TooSlow, Untestable, WireError
from iamroles_scenarios.base.family import cpu_time, family, holders
from iamroles_scenarios.base.polling import polls, rest
from iamroles_scenarios.checks.derived.world import iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.bench import ALLOWED, EDGE, UNAVAILABLE, Bench, Pending, bench, refused
from iamroles_scenarios.engine.events import end_process
from iamroles_scenarios.engine.key_sets import KeySets, signing
from iamroles_scenarios.engine.observation import mismatches
from iamroles_scenarios.engine.spread import Spread
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import WORKERS
from iamroles_scenarios.wire.asker import Asker, decide
from iamroles_scenarios.wire.judge import NO_CREDENTIAL

_WITHIN = 10.0
"""Seconds, times the scale, in which the agent answers after a death, and keys, revocations and ends of
sessions are in force: `refresh` and `recheck` are one second here."""
_SLOW, _REVOKED, _AUDIENCES = 1.0, 4, 3000
"""Seconds that STS takes for a credential that waits while a process dies; revocations in a row; audiences of
200 octets in a policy."""
_STALE = 4.0
"""Seconds, times the scale: `max_stale` where the issuers always answer."""
_OUTAGE, _LATE = 6.0, 2.0
"""Seconds, times the scale: `max_stale` where an issuer is down, and by how much its end may be late."""
_NEW, _SOON, _LONGER = 6, 0.5, 3
"""Connections that are opened while a process hangs; seconds for an answer on each, not times the scale,
because a late agent has not answered before the process was gone; and how many times as long as all others
a connection takes if it waited for that, since a busy host makes all of them slow."""
_ROTATE, _KEYS_SEEN = 4.0, 3
"""Seconds that a key signs, times the scale; keys that must sign after deaths: the second is known before."""
_GRANTS, _HELD, _ANSWER = 2000, 2.0, 40.0
"""Grants of a large policy; seconds, times the scale, for which a process stands before it dies, and in which
a reload is answered: no clause says how long it may take to read such a policy."""
_BUSY = 0.01
"""Seconds of CPU that show that a process works at a reload."""
_DELAYS = 0.2, 0.5
"""Seconds, times the scale, from the signal for a faulty policy to that for a good one: no event shows that
an agent has read a file."""
_GONE = refused("credential_revoked")
_MORE = 3
"""Workers, where others have `WORKERS`."""
_names = count(1)


def _policy(here: Bench) -> None:
    policy, token = here.loan.policy, here.token()
    kept = [grant for grant in policy["grants"] if grant["id"] != "R1"]
    here.expect("by the policy", token, ALLOWED)
    # Longer than a socket between processes takes at once.
    [first, *others] = policy["issuers"]
    first = {**first, "audiences": [*first["audiences"], *(f"{number:0200}" for number in range(_AUDIENCES))]}
    changed = {**policy, "grants": kept, "issuers": [first, *others]}
    here.must_reload(changed, "without the reader's grant, and with many audiences")
    here.expect("without its grant", token, refused("no_grant", status=403))
    here.must_reload(policy, "with the reader's grant")
    here.expect("with its grant again", token, ALLOWED)


def _keys(here: Bench) -> None:
    issuer, gone = here.issuer(), refused("key_unknown", "signature_invalid")
    oldest = here.token()
    here.expect("by the oldest key", oldest, ALLOWED, within=_WITHIN)
    issuer.rotate(overlap=False)  # no token of the next key makes the agent fetch
    here.expect("by a key that went out in silence", oldest, gone, within=_WITHIN)
    former, old = issuer.keys[0], here.token()
    here.expect("by the old key", old, ALLOWED, within=_WITHIN)
    issuer.rotate()
    new = here.token()
    here.expect("by a key that came in", new, ALLOWED, within=_WITHIN)
    here.expect("by the old key beside it", old, ALLOWED)
    issuer.remove(former.kid)
    here.expect("by a key that went out", old, gone, within=_WITHIN)
    here.expect("by the key that stayed", new, ALLOWED)


@contextmanager
def _revoked(here: Bench) -> Iterator[None]:
    """Revoke one principal after another, by files of equal length; the last stays revoked in the block."""
    for _ in range(_REVOKED):
        name = f"eve-{next(_names):04}"
        token = here.token(sub=name)
        here.expect("before the revocation", token, ALLOWED, within=_WITHIN)
        here.revoke(principals=[name])
        here.expect("after its revocation", token, _GONE, within=_WITHIN)
    yield
    here.expect("long after its revocation", token, _GONE, within=_WITHIN)
    here.revoke()


def _revocation(here: Bench) -> None:
    with _revoked(here):
        here.expect("after the revocation of another", here.token(sub="mallory"), ALLOWED)


def _session(here: Bench) -> None:
    keys = here.session()
    credential = here.credential(keys)
    here.expect("a session that began", credential, ALLOWED, within=_WITHIN)
    here.cloud.expire(keys)
    ended = refused("sts_rejected", "token_expired")
    here.expect("a session that ended", credential, ended, within=_WITHIN)
    here.expect("the next session", here.credential(here.session()), ALLOWED, within=_WITHIN)


CHANGES: Mapping[str, tuple[str, Callable[[Bench], None]]] = {
    "a policy": ("reload", _policy),
    "a key in and a key out": ("oidc", _keys),
    "a revocation": ("live", _revocation),
    "an STS session": ("sts", _session),
}
"""Kinds of change: the feature that an agent needs for it, and what makes it and asks."""


@contextmanager
def _waiting(here: Bench) -> Iterator[None]:
    """Let a credential wait for STS when the block begins; it is proved soon after the block."""
    credential, calls = here.credential(here.session()), here.sts_calls()
    here.sts_fault("slow", seconds=here.seconds(_SLOW))
    question = Pending(here.another(), credential)
    for _last in polls(here.seconds(_WITHIN)):
        if here.sts_calls() > calls or question.seen or question.error:
            break
    yield
    here.sts_clear()
    here.expect("a credential that waited for STS then", credential, ALLOWED, within=_WITHIN)


@contextmanager
def _world(
    target: Target, owner: str, tables: Mapping[str, Any] | None = None, *, once: bool = False, **keys: str
) -> Iterator[Bench]:
    """Lend a world in which everything may change, with more tables of a policy, and more of `keys`.

    If `once`, credentials of STS count once.
    """
    override = {"keys": {"refresh": "1s", "cooldown": "500ms", **keys}, **(tables or {})}
    if not target.lacks(["live"]):
        override["live"] = {"revocations": "revocations.toml"}
    if not target.lacks(["sts"]):
        about = {"endpoint": "{sts}", "binding_value": EDGE, "insecure_http": True, "recheck": "1s"}
        about |= {"replay_cache": True} if once else {}
        override["sts"] = [{"name": "workers", "hosts": ["workers{suffix}.sts.example"], **about}]
    with bench(target, "orders", owner, own=True, flow="workers", **override) as here:
        if "live" in override:
            here.revoke()
        yield here


def _change_all(here: Bench, when: str) -> int:
    """Make each kind of change that the agent knows, and ask all workers."""
    played = [(kind, make) for kind, (feature, make) in CHANGES.items() if not here.target.lacks([feature])]
    for kind, make in played:
        here.when = f"{when}{kind}: "
        make(here)
    return len(played)


def _must_answer(here: Bench, what: str) -> bool:
    """Ask until each worker answers, and return whether each does in time; unseen ones count as answering.

    The time that this host kept the agent from running does not count, and a late judge counts for nothing.

    Raises:
        CheckFailed: no right answer comes.
        TooSlow: they answer late, and that may be because of this host.
    """
    token = here.token()
    began = late = sent = time.monotonic()
    for _last in polls(here.seconds(_WITHIN)):
        late, sent = sent, time.monotonic()
        here.client.close()  # the next question opens connections, and finds out which workers there are
        try:
            seen = here.ask(token)
            wrong = "; ".join(mismatches(ALLOWED, seen, {}))
            whole = len(seen.others) + 1 >= here.loan.workers
        except AgentFault as error:
            wrong, whole = error.message, False
        if whole and not wrong:
            break
    if wrong:
        raise here.failed(f"{what}: no right answer within {_WITHIN:g} s: {wrong}")
    recording.timed(_WITHIN)
    took = late - began
    in_time = took * (1 - lateness.delay(began, here.world.host_pids, took, judge=False).share) < _WITHIN
    if whole and in_time and took > _WITHIN:
        raise TooSlow(f"{what}: an answer from each worker after {took:.0f} s, much of which the host took")
    return whole and in_time


def _processes(here: Bench) -> Iterator[tuple[str, int]]:
    """Yield each process but the first that the agent has now and still has then: in words, and its id.

    Raises:
        Untestable: its processes cannot be seen from here.
    """
    if (first := here.world.agent.host_pid) is None:
        raise Untestable("the agent's processes cannot be seen from this host")
    found = {pid: Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip() for pid in family(first)[1:]}
    if not found:
        raise AgentFault("the agent has no child process that could be killed: declare `workers = false`")
    for number, (pid, name) in enumerate(found.items(), 1):
        if pid in family(first):
            yield f"process {number} of {len(found)} ({name})", pid


def _serving(here: Bench, held: ExitStack) -> int:
    """Return a process that holds a connection, which stays open; any, if the first process holds all."""
    children = [pid for _what, pid in _processes(here)]
    askers = held.enter_context(Spread(here.world.agent, WORKERS, here.seconds(_WITHIN))).askers()
    held_by = holders(here.world.agent.host_pid or 0, ports := [one.port for one in askers])
    return [*(pid for port in ports if (pid := held_by.get(port)) in children), *children][0]


def deaths(here: Bench) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield each process of the agent in words, and what ends it: the first process last.

    Raises:
        Untestable: its processes cannot be seen from here, or not be killed.
    """
    agent = here.world.agent
    for what, pid in _processes(here):
        yield f"the death of {what}", partial(end_process, pid)

    def end_first() -> None:
        agent.kill_first()
        for last in polls(here.seconds(_WITHIN)):  # until its children have ended by themselves
            with suppress(*() if last else (StageError,)):
                agent.start()
                break

    yield "the death of its first process, and a start", end_first


@check("policy.workers.changes", "WORKERS-CHANGE-001", features={"oidc", "workers"})
def changes(target: Target) -> str:
    """Each change is in force in each worker: a policy, a key in, a key out, a revocation, an STS session.

    With two workers, each of which is asked. At the end no key set has changed for `max_stale`.
    """
    with _world(target, "policy.workers.changes", max_stale=f"{target.seconds(_STALE):g}s") as here:
        played = _change_all(here, "")
        rest(here.seconds(_STALE))
        here.expect("by keys that did not change", here.token(), ALLOWED, within=_WITHIN)
        return f"{played} kinds of change"


@check("policy.workers.deaths", "WORKERS-DEATH-001", features={"oidc", "workers"}, long=True)
def after_deaths(target: Target) -> str:
    """After the death of any of its processes the agent answers again, and takes up each kind of change.

    Each process is killed in turn, the first process last. A revocation stays in force, also while the issuer
    is down, and a credential that waits for STS is proved; then everything changes once.
    """
    with _world(target, "policy.workers.deaths") as here:
        number = 0
        for number, (what, end) in enumerate(deaths(here), 1):  # noqa: B007 - counted
            _must_answer(here, f"before {what}")
            here.when = f"{what}: "
            with ExitStack() as held:
                if "start" not in what:  # what takes its place has the keys in force
                    here.issuer().fault("*", "status", status=503)
                    held.callback(here.issuer().clear)
                for feature, hold in (("live", _revoked), ("sts", _waiting)):
                    if not target.lacks([feature]):
                        held.enter_context(hold(here))
                end()
                _must_answer(here, f"after {what}")
            _change_all(here, f"after {what}: ")
    return f"{number} deaths, {len(CHANGES)} kinds of change after each"


@check("identity.sts.once", "STS-REPLAY-001", features={"oidc", "sts", "workers"}, long=True)
def once(target: Target) -> None:
    """A credential that counts once opens once: of two questions together, and after deaths.

    The two come on one connection, while STS takes its time. Each process but the first is killed in turn.
    """
    with _world(target, "identity.sts.once", once=True) as here:
        keys, ends, address = here.session(), count(100), here.world.agent.spop_address

        def asked() -> dict[str, Any]:
            return iam_check(here.credential(keys, expires=next(ends)), path="/orders/1")

        def opens(question: dict[str, Any]) -> bool:
            return decide(address, question, timeout=here.seconds(_WITHIN)).get("allow") is True

        here.sts_fault("slow", seconds=here.seconds(_SLOW))
        used = [asked()]
        with Asker(address, timeout=here.seconds(_WITHIN)) as asker:
            times = [one.get("allow") for one in asker.decide_many(used * 2)].count(True)
        here.sts_clear()
        if times > 1:
            raise here.failed("two questions at once with a credential that counts once are allowed")
        used *= times  # if it was not judged, it may be used again
        for what, pid in _processes(here):
            _must_answer(here, f"before the death of {what}")
            end_process(pid)
            _must_answer(here, f"after the death of {what}")
            for _last in polls(here.seconds(_WITHIN)):
                if opens(fresh := asked()):
                    used.append(fresh)
                    break
            if any(map(opens, used)):
                raise here.failed(f"after the death of {what} a credential counts twice")


@check("identity.keys.deaths", "JWKS-OUTAGE-002", features={"oidc", "workers"})
def stale(target: Target) -> None:
    """A process that takes a dead one's place keeps no key set longer than `max_stale`.

    In an outage, all processes but the first die.
    """
    longest = target.seconds(_OUTAGE)
    with _world(target, "identity.keys.deaths", max_stale=f"{longest:g}s") as here:
        token = here.token()
        here.expect("before an outage", token, ALLOWED, within=_WITHIN)
        here.issuer().fault("*", "status", status=503)
        over = time.monotonic() + longest
        rest(longest / 2)
        for _what, pid in _processes(here):
            end_process(pid)
        for last in polls(here.seconds(_WITHIN)):
            here.client.close()
            with suppress(*() if last else (AgentFault,)):
                here.ask(token)
                break
        rest(over - time.monotonic())
        here.expect("max_stale after an outage began, and deaths", token, UNAVAILABLE, within=_LATE)


@check(
    "policy.workers.reloads",
    *("WORKERS-DEATH-001", "RELOAD-AGAIN-001", "ORACLE-LOAD-001"),
    features={"oidc", "workers", "reload"},
    long=True,
)
def while_reloading(target: Target) -> str:
    """A reload is answered although a process dies meanwhile, and a large policy is put in force.

    Each process but the first is stopped, so that the reload waits for it, and then killed; at last a process
    that the agent makes for a reload, and the first that works at a large policy. An agent may refuse such a
    reload, and takes up the next one, also if it comes while a faulty policy is read. A process that is born
    during a reload decides by the new policy.
    """
    with _world(target, "policy.workers.reloads") as here, ThreadPoolExecutor(1) as pool:
        policy, token, number = here.loan.policy, here.token(exp="+55m"), 0
        shut = {**policy, "grants": [grant for grant in policy["grants"] if grant["id"] != "R1"]}
        large = {**shut, "grants": [*shut["grants"], *(_grant(number) for number in range(_GRANTS))]}

        def reload(wanted: Mapping[str, Any]) -> dict[str, Any]:
            return dict(here.world.agent.reload(wanted, within=here.seconds(_ANSWER)))

        for number, (what, pid) in enumerate(_processes(here), 1):  # noqa: B007 - counted
            _must_answer(here, f"before the death of {what}")
            end_process(pid, SIGSTOP)
            answer = pool.submit(recording.carried(reload), shut)
            rest(here.seconds(_HELD))
            end_process(pid)
            if not answer.result().get("reloaded"):
                here.must_reload(shut, f"after the death of {what}")
            here.client.close()
            here.expect(f"without its grant, {what} died", token, refused("no_grant", status=403))
            here.must_reload(policy, f"after the death of {what}")
        if not _reload_at_a_birth(here, pool, partial(reload, shut)).get("reloaded"):
            here.must_reload(shut, "after a process was born")
        here.client.close()
        here.expect("without its grant, a process was born", token, refused("no_grant", status=403))
        known = set(family(here.world.agent.host_pid or 0))
        answer = pool.submit(recording.carried(reload), large)
        for _last in polls(here.seconds(_HELD), 0.005):
            if made := set(family(here.world.agent.host_pid or 0)) - known:
                end_process(made.pop())
                break
        answer.result()
        used = {pid: cpu_time(pid) for _what, pid in _processes(here)}
        answer = pool.submit(recording.carried(reload), large)
        for _last in polls(here.seconds(_HELD), 0.002):
            if busy := [pid for pid, before in used.items() if cpu_time(pid) > before + _BUSY]:
                end_process(busy[0])
            if busy or answer.done():
                break
        answer.result()
        if not (said := reload(large)).get("reloaded"):
            raise here.failed(f"a policy of {_GRANTS} grants was turned down: {said.get('error', said)}")
        here.client.close()
        here.expect("by a large policy", token, refused("no_grant", status=403))
        here.expect("by its last grant", token, ALLOWED, path=f"/many/{_GRANTS - 1}")
        faulty = {**large, "grants": [*large["grants"], {**_grant(_GRANTS), "metods": ["GET"]}]}
        for delay in _DELAYS:
            here.world.agent.begin_reload(faulty)
            rest(here.seconds(delay))
            for wanted, seen in ((policy, ALLOWED), (shut, refused("no_grant", status=403))):
                reload(wanted)  # the answer may be that to the faulty one
                here.client.close()
                here.expect("by a good policy behind a faulty one", token, seen, within=_WITHIN)
    return f"{number} processes"


def _reload_at_a_birth(
    here: Bench, pool: ThreadPoolExecutor, reload: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Kill a worker, and reload while the process that takes its place stands still, just born."""
    with ExitStack() as held:
        worker, known = _serving(here, held), set(family(here.world.agent.host_pid or 0))
        end_process(worker)
        for _last in polls(here.seconds(_WITHIN), 0.002):
            if born := set(family(here.world.agent.host_pid or 0)) - known:
                break
        for pid in born:
            held.callback(end_process, pid, SIGCONT)
            end_process(pid, SIGSTOP)
        answer = pool.submit(recording.carried(reload))
        rest(here.seconds(_DELAYS[1]))
    return answer.result()


def _grant(number: int) -> dict[str, Any]:
    about = {"roles": ["reader"], "methods": ["GET"], "backend": "orders-ro"}
    return {"id": f"many{number}", "path": f"/many/{number}", **about}


@check("fire.worker.number", "FIRE-WORKER-002", lane="gate-spop", features={"oidc", "workers"})
def number_of_workers(target: Target) -> None:
    """As many workers answer as the world says, and again after the death of each process of the agent."""
    with _world(target, "fire.worker.number", {"agent": {"workers": _MORE}}) as here:
        for what, end in deaths(here):
            end()
            if not _must_answer(here, f"after {what}"):
                raise here.failed(f"{what}: fewer than {_MORE} workers answer after {_WITHIN:g} s")


@check("identity.signed.deaths", "SIGNED-KEY-002", features={"identity", "oidc", "workers"})
def published(target: Target) -> None:
    """After the death of each process but the first, the log names where the keys are that sign then.

    Keys follow each other as before the deaths.
    """
    rotate = _ROTATE * ceil(target.scale)  # an agent may refuse less than two lifetimes
    with _world(target, "identity.signed.deaths", signing(target.stage, rotate)) as here:
        agent, token = here.world.agent, here.token(exp="+55m")
        for what, pid in _processes(here):
            end_process(pid)
            _must_answer(here, f"after the death of {what}")
        here.expect("after all deaths", token, ALLOWED, within=_WITHIN)
        sets, kids = KeySets([agent], rotate), list[str]()
        for _last in polls(here.seconds(_WITHIN) + 3 * rotate):
            signed = decide(agent.spop_address, iam_check(token, path="/orders/1")).get("identity")
            if (kid := str(jwt.get_unverified_header(str(signed))["kid"])) in kids:
                continue
            kids.append(kid)
            if not any(kid in (found := sets.published()) for _last in polls(here.seconds(_WITHIN))):
                raise here.failed(
                    "the key that signs is at no place that the log names", None, kid, str(found)
                )
            if len(kids) == _KEYS_SEEN:
                return
        raise here.failed(f"{len(kids)} keys signed after all deaths; `rotate` is {rotate:g}s")


@check("fire.worker.keys", "FIRE-WORKER-002", lane="gate-spop", features={"oidc", "workers"})
def born(target: Target) -> None:
    """A worker that takes a dead one's place serves by keys as old as they are, while their issuer is down.

    They were renewed a moment ago, and last changed longer ago than `max_stale`.
    """
    with (
        _world(target, "fire.worker.keys", max_stale=f"{target.seconds(_STALE):g}s") as here,
        ExitStack() as held,
    ):
        token, issuer = here.token(), here.issuer()
        here.expect("the first", token, ALLOWED, within=_WITHIN)
        rest(here.seconds(_STALE))
        serving = _serving(here, held)
        issuer.wait_for("jwks-done", issuer.counters().get("jwks-done", 0) + 1, here.seconds(_WITHIN))
        until = time.time() + here.seconds(_STALE / 2)
        held.callback(issuer.clear)
        issuer.fault("*", "status", status=503)
        end_process(serving)
        for _last in polls(until - time.time()):
            here.client.close()
            try:
                seen = here.ask(token)
            except AgentFault:
                continue  # no clause says how soon there is a successor
            if wrong := mismatches(ALLOWED, seen, {}):
                here.in_time(until, "a question after a worker's death")
                raise here.failed(f"a worker died, its issuer is down: {'; '.join(wrong)}", seen, ALLOWED)
            if len(seen.others) + 1 >= WORKERS:
                break


@check("fire.worker.hangs", "FIRE-WORKER-003", lane="gate-spop", features={"oidc", "workers"})
def hanging(target: Target) -> None:
    """Each process but the first is stopped in turn: it is replaced, and new connections do not wait for it.

    They open one after the other and stay. An agent may replace a process before anybody notices.
    """
    with _world(target, "fire.worker.hangs") as here, ExitStack() as held:
        for what, pid in _processes(here):
            _must_answer(here, f"before {what} hangs")
            with ExitStack() as connections:
                held.callback(end_process, pid, SIGCONT)
                end_process(pid, SIGSTOP)
                recording.timed(_SOON)
                answered, waited = [0.0], 0.0
                for _ in range(_NEW):
                    began = time.monotonic()
                    asker = Asker(here.world.agent.spop_address, timeout=here.seconds(_WITHIN))
                    with suppress(WireError):
                        connections.enter_context(asker).decide(NO_CREDENTIAL)
                    took = time.monotonic() - began
                    if took > _SOON and not waited and not family(pid):
                        waited = took
                    else:
                        answered.append(took)
                if waited > _LONGER * max(answered):
                    raise here.failed(f"a new connection waited until {what}, which hung, was replaced")
                if waited > max(answered):  # else it waited for the host alone, as they did
                    raise TooSlow(f"a new connection took {waited:.1f} s, and others {max(answered):.1f} s")
            if not _must_answer(here, f"after {what} hung"):
                raise here.failed(f"{what} hangs: fewer than {WORKERS} workers answer after {_WITHIN:g} s")
