"""The soak: traffic, rotation, revocation and faults without a pause, for as long as one likes, by a seed.

One world: HAProxy, two agents (one, where the configuration takes no second), the policy of the orders. One
event follows another, chosen and spaced by the seed. Planned events (keys, sessions, policies, revocations,
an agent told to stop, a reload of HAProxy, another certificate, an identity provider that is down for a
while) excuse nothing. The keys of the signed identity change all the while, and each header must verify.
Faults (a process killed, an agent killed or frozen) excuse 5xx, missing answers and false denies until they
are over, and for `RECOVERS` after. A false allow is excused by nothing. What can have a witness has one: a
token whose key is withdrawn, a session that was ended and a person that was revoked go on asking, and must be
refused.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.base.errors import AgentFault, Untestable
from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec, WorldSpec, merged
from iamroles_scenarios.engine.certificates import proxys
from iamroles_scenarios.engine.events import EVENT_DEADLINE, children_of, kill_child
from iamroles_scenarios.engine.fire import PATIENCE, Fire
from iamroles_scenarios.engine.ledger import Account, Flow
from iamroles_scenarios.engine.worlds import DEFAULT_ISSUER
from iamroles_scenarios.jose import mint_for
from iamroles_scenarios.traffic.polling import NANO, now

if TYPE_CHECKING:
    from iamroles_scenarios.engine.certificates import Site
    from iamroles_scenarios.engine.target import Target
    from iamroles_scenarios.engine.worlds import Place
    from iamroles_scenarios.mock.presign import SessionKeys

LEAST_ANSWERS, LEAST_EVENTS = 1000, 20
"""A run with fewer shows nothing, and counts as failed."""
RECOVERS = 4.0
"""Seconds, times the scale, after a fault."""
_SETTLES = 2.5
"""Seconds, times the scale, after which a withdrawn key, an ended session or a revoked person is shut out."""
_PHASE = 5.0
"""Seconds, times the scale, between two phases of a rotation: longer than a short token lives."""
_EVENTS = 3
"""Events at least between two phases."""
_ROTATE = 10.0
"""Seconds, times the scale, that a key signs identities, and is published before and after."""
_OPEN = Expectation(status=200, allow=True, backend="orders-ro")
_SHUT = Expectation(status=403, allow=False, backend="")
_OUT = Expectation(status=401, allow=False, backend="")
_FLAT_FROM = 300.0
"""Seconds that a run must last for memory and descriptors to be judged."""
_GROWTH, _SPARE = 1.5, {"memory": 32 << 20, "descriptors": 32}
"""The last quarter may have so many times what the second had, and so much more."""


@dataclass(slots=True)
class Happened:
    """One event, in seconds from the begin of the traffic."""

    at: float
    name: str
    fault: bool
    took: float = 0.0
    recovered: float = 0.0
    """Until the last answer before the next event that was not right; 0: there was none."""


@dataclass(slots=True)
class Sample:
    """What a part used at a moment: its processes together."""

    at: float
    memory: int
    """Resident, bytes."""
    descriptors: int


@dataclass(slots=True)
class Soaked:
    """What came of a soak."""

    seed: int
    seconds: float
    account: Account
    events: list[Happened] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    """By part."""
    unseen: set[str] = field(default_factory=set)
    """Parts of which memory and descriptors cannot be read from here."""
    keys: int = 0
    """So many keys signed identities that verified."""
    problems: list[str] = field(default_factory=list)
    """Why it failed; none: it did not."""


class Soak:
    """One soak.

    Args:
        target: agent and stage; its lane is "gate".
        seed: of the events and of the traffic.
        rate: questions a second.
    """

    def __init__(self, target: Target, *, seed: int, rate: float) -> None:
        self._target, self._seed, self._rate = target, seed, rate
        self._chance = random.Random(seed)  # noqa: S311 - an order, not a secret
        self._phase: dict[str, tuple[int, int, float]] = {}
        """Of each rotation: phases so far, the number of the last one's event, and when that was."""
        self._sessions: list[tuple[str, SessionKeys]] = []
        self._old = ""
        self._narrow = self._revoked = False
        self._numbers = 0

    # --- the run -------------------------------------------------------------------------------------------

    def run(self, seconds: float, told: Callable[[str], None] = lambda _: None) -> Soaked:
        """Soak for so long; `told` gets a line for each event."""
        features = self._target.agent.features
        override: dict[str, Any] = {
            "agent": {"workers": 2},
            "keys": {"refresh": "1s", "cooldown": "1s", "timeout": "1s", "max_stale": "1h"},
        }
        if features.get("live"):
            override["live"] = {"revocations": "revocations.toml"}
        if features.get("sts"):
            override["sts"] = [_STS]
        spec = WorldSpec(
            policy="orders",
            override=override,
            own=True,
            agents=2 if features.get("pair") else 1,
            settings={"IAM_TIMEOUT_PROCESSING": "10s"},
        )
        self._place = self._opened(spec)
        try:
            sets = self._place.sets
            with nullcontext() if sets is None else sets.fetched():
                return self._soak(seconds, told)
        finally:
            self._place.close()

    def _opened(self, spec: WorldSpec) -> Place:
        signed = _ROTATE * self._target.scale if self._target.agent.features.get("identity") else 0.0
        start = partial(self._target.worlds.start_own, spec, f"soak-{self._seed}", signed=signed)
        try:
            return start(tls=True)
        except Untestable:
            return start()

    def _soak(self, seconds: float, told: Callable[[str], None]) -> Soaked:
        proxy = self._place.world.proxy
        scale = self._target.scale
        self._fire = fire = Fire(
            (proxy.host, proxy.port),
            rate=self._rate,
            connections=12,
            scale=scale,
            seed=self._seed,
            tls=None if self._place.site is None else self._place.site.tls,
        )
        sets = self._place.sets
        if sets is not None:
            fire.ledger.verify = partial(sets.unverified, every=False)  # one that lacks a key asks anew
        self._flows()
        fire.start()
        begin = fire.steps["begin"].begin
        found = Soaked(self._seed, seconds, Account(fire.ledger, begin))
        try:
            fire.wait(50)
            while (now() - begin) / NANO < seconds:
                fire.wait(max(1, round(self._rate * self._chance.uniform(0.3, 1.2))))
                happened = self._next(found, begin)
                told(f"{happened.at:7.1f} s  {happened.name}, {happened.took:.2f} s")
                before = now() - round((PATIENCE + _PHASE) * scale * NANO)
                found.account.settle(before)
                if sets is not None:
                    sets.forget(before)
                self._measure(found, begin)
            for world in self._place.worlds:
                world.agent.start()
        except AgentFault as fault:
            found.problems.append(fault.message)
        finally:
            fire.stop()
        found.account.settle(now())
        found.keys = 0 if sets is None else len(sets.signed)
        _judge(found)
        return found

    def _next(self, found: Soaked, begin: int) -> Happened:
        events = list(self._possible())
        name, fault, act = events[self._chance.randrange(len(events))]
        self._numbers += 1
        self._step = f"{self._numbers} {name}"
        happened = Happened((now() - begin) / NANO, name, fault)
        found.events.append(happened)
        with self._fire.step(self._step) as moment:
            act()
        happened.took = (moment.end - moment.begin) / NANO
        if fault:
            spare = round(RECOVERS * self._target.scale * NANO)
            found.account.excuses.append((moment.begin, moment.end + spare))
        for flow, expect, settles in self._changes:
            self._fire.change(flow, expect, by=self._step, settles=settles)
        self._changes.clear()
        return happened

    def _measure(self, found: Soaked, begin: int) -> None:
        at = (now() - begin) / NANO
        parts = {f"agent {n}": world.agent.host_pid for n, world in enumerate(self._place.worlds, 1)}
        if not self._target.agent.runs:
            parts = {}
        for part, pid in (parts | {"haproxy": self._place.world.haproxy.host_pid}).items():
            try:
                seen = None if pid is None else used(pid)
            except PermissionError:
                seen = None
            if seen is None:
                found.unseen.add(part)
            else:
                found.samples.setdefault(part, []).append(Sample(at, *seen))

    # --- what is asked -------------------------------------------------------------------------------------

    _changes: list[tuple[str, Expectation, float]]

    def _flows(self) -> None:
        self._changes = []
        reader, writer = RequestSpec(), RequestSpec()
        export = RequestSpec(path="/orders/export")
        opens = Expectation(status=200, allow=True, backend="export")
        self._ask(Flow("export", export, "", opens), "reader", "ann", 1500.0, 400.0)
        self._ask(Flow("short", export, "", opens), "reader", "eve", 2.0 * self._target.scale, 1.0)
        self._ask(Flow("reader", reader, "", _OPEN), "reader", "dan", 2.0 * self._target.scale, 1.0)
        self._ask(Flow("writer", writer, "", _SHUT), "writer", "bob", 2.0 * self._target.scale, 1.0)
        self._fire.ask(Flow("nobody", RequestSpec(), "", _OUT, weight=0.3))
        if self._target.agent.features.get("live"):
            self._ask(Flow("mallory", export, "", opens), "reader", "mallory", 2.0 * self._target.scale, 1.0)

    def _ask(self, flow: Flow, role: str, name: str, life: float, renew: float) -> None:
        def mint() -> tuple[str, float]:
            return self._token(role, name, life)

        self._fire.ask(flow, mint=mint, renew=renew * self._target.scale)

    def _token(self, role: str, name: str, life: float) -> tuple[str, float]:
        at = time.time()
        expires = int(at + life) + 1
        recipe = {"roles": [role], "issuer": DEFAULT_ISSUER, "sub": name, "exp": expires}
        return mint_for(recipe, {DEFAULT_ISSUER: self._issuer}, at, default=DEFAULT_ISSUER), expires

    @property
    def _issuer(self) -> Any:  # noqa: ANN401 - a handle of the mock's
        return self._target.worlds.issuer(self._place.issuer(DEFAULT_ISSUER))

    # --- what happens --------------------------------------------------------------------------------------

    def _possible(self) -> Iterator[tuple[str, bool, Callable[[], None]]]:
        """Events that may come now: name, whether it is a fault, what it does."""
        features = self._target.agent.features
        yield "HAProxy is reloaded", False, self._place.world.haproxy.reload
        if (site := self._place.site) is not None:
            for by, what in (("runtime", "a command"), ("reload", "a reload")):
                yield f"another certificate by {what}", False, partial(self._certificate, site, by)
        for name, phases in (("keys", self._KEYS), ("sessions", self._SESSIONS)):
            phase, number, _ = self._phase.get(name, (0, -_EVENTS, 0.0))
            if name == "sessions" and not features.get("sts"):
                continue
            if self._numbers - number >= _EVENTS:  # by number, not by time: so a seed replays
                text, act = phases[phase % len(phases)]
                yield text, False, partial(self._in_phase, name, act)
        if self._phase.get("keys", (0, 0, 0.0))[0] % len(self._KEYS) == 0:
            yield "the identity provider is down", False, self._provider_down
        if features.get("reload"):
            yield "the policy changes", False, self._policy
            yield "a policy is refused", False, self._refused
        if features.get("live"):
            yield "mallory is " + ("let in again" if self._revoked else "revoked"), False, self._revoke
        if features.get("workers"):
            yield "a process of an agent is killed", True, self._kill_child
        if self._place.second is not None:
            yield "an agent is killed", True, lambda: self._again("kill")
            yield "an agent is stopped", False, lambda: self._again("stop")
            yield "an agent is frozen", True, self._freeze

    def _certificate(self, site: Site, by: str) -> None:
        if why := site.replace(self._place.world, by, self._target.scale):
            raise proxys(self._target.agent, why)
        self._fire.trust(site.tls)

    def _in_phase(self, name: str, act: Callable[[Soak], None]) -> None:
        phase, _, since = self._phase.get(name, (0, 0, 0.0))
        while time.monotonic() - since < _PHASE * self._target.scale:
            self._fire.wait(1)
        act(self)
        self._phase[name] = phase + 1, self._numbers, time.monotonic()

    def _announce(self) -> None:
        self._kid = self._issuer.keys[0].kid
        self._old = f"key {self._numbers}"
        token, expires = self._token("reader", "old", 1500.0)
        path = RequestSpec(path="/orders/export")
        opens = Expectation(status=200, allow=True, backend="export")
        self._fire.ask(Flow(self._old, path, token, opens, weight=0.5), expires=expires)
        self._issuer.announce()

    def _adopt(self) -> None:
        self._issuer.adopt()
        self._fire.renew()

    def _retire(self) -> None:
        self._fire.forget_renewed()
        self._issuer.remove(self._kid)
        self._changes.append((self._old, _OUT, _SETTLES))

    _KEYS = (
        ("a new key is published", _announce),
        ("the new key signs", _adopt),
        ("the old key is withdrawn", _retire),
        ("the withdrawn key is let go", lambda self: self._fire.leave(self._old)),
    )

    def _assume(self) -> None:
        cloud = self._target.stage.cloud
        account = cloud.account("111111111111")
        session = cloud.assume(account.ensure_role("reader"), f"soak-{self._numbers}")
        endpoint = self._place.policy["sts"][0]
        token = cloud.presign_caller_identity(
            session,
            endpoint["binding_value"],
            binding_header=endpoint["binding_header"],
            host=endpoint["hosts"][0],
        )
        name = f"session {self._numbers}"
        opens = Expectation(status=200, allow=True, backend="export")
        self._fire.ask(Flow(name, RequestSpec(path="/orders/export"), token, opens, weight=0.5))
        self._sessions.append((name, session))

    def _end_session(self) -> None:
        name, session = self._sessions[-1]
        self._target.stage.cloud.expire(session)
        self._changes.append((name, _OUT, _SETTLES))

    _SESSIONS = (
        ("a session begins", _assume),
        ("a session is ended", _end_session),
        ("an ended session is let go", lambda self: self._fire.leave(self._sessions[-1][0])),
    )

    def _provider_down(self) -> None:
        self._issuer.fault("jwks", "status", status=500)
        try:
            self._fire.wait(max(1, round(self._rate * 2)))
        finally:
            self._issuer.clear("jwks")

    def _reloaded(self, override: dict[str, Any], accepted: bool) -> None:
        policy = merged(self._place.policy, self._place.own(override))
        for world in self._place.worlds:
            answer = world.agent.reload(policy, within=EVENT_DEADLINE * self._target.scale)
            if answer["reloaded"] != accepted:
                raise AgentFault(f"the agent answered a reload with {answer}, expected {accepted}")
        if accepted:
            self._place.policy = policy

    def _policy(self) -> None:
        self._narrow = not self._narrow
        role = "writer" if self._narrow else "reader"
        self._reloaded({"grants": [{"id": "R1", "roles": [role]}]}, accepted=True)
        self._changes += [
            ("reader", _SHUT if self._narrow else _OPEN, 0.0),
            ("writer", _OPEN if self._narrow else _SHUT, 0.0),
        ]

    def _refused(self) -> None:
        self._reloaded({"grants": [{"id": "R1", "backend": "nowhere"}]}, accepted=False)
        self._reloaded({}, accepted=True)  # so that a restart finds a good file

    def _revoke(self) -> None:
        self._revoked = not self._revoked
        text = '[[revocations]]\nid = "soak"\nprincipals = ["mallory"]\nreason = "soak"\n'
        for world in self._place.worlds:
            world.agent.put("revocations.toml", text if self._revoked else "")
        opens = Expectation(status=200, allow=True, backend="export")
        self._changes.append(("mallory", _OUT if self._revoked else opens, 2 * _SETTLES))

    def _kill_child(self) -> None:
        with suppress(Untestable):
            kill_child(self._chance.choice(self._place.worlds))

    def _again(self, how: str) -> None:
        agent = self._chance.choice(self._place.worlds).agent
        agent.kill() if how == "kill" else agent.stop()
        agent.start()
        self._place.world.haproxy.wait_agent(up=True, within=EVENT_DEADLINE * self._target.scale)

    def _freeze(self) -> None:
        agent = self._chance.choice(self._place.worlds).agent
        agent.pause()
        try:
            self._fire.wait(max(1, round(self._rate)))
        finally:
            agent.resume()


_STS = {
    "name": "sts",
    "endpoint": "{sts}",
    "hosts": ["soak{suffix}.sts.example"],
    "binding_header": "x-iam-edge",
    "binding_value": "edge-a",
    "insecure_http": True,
    "recheck": "1s",
}


def used(pid: int) -> tuple[int, int]:
    """Resident bytes and descriptors of a process and all below it; what has gone counts nothing.

    Raises:
        PermissionError: another user's.
    """
    memory = descriptors = 0
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        waiting += children_of(one)
        with suppress(FileNotFoundError, ProcessLookupError):
            memory += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * 4096
            descriptors += len(list(Path(f"/proc/{one}/fd").iterdir()))
    return memory, descriptors


def _judge(found: Soaked) -> None:
    account = found.account
    for happened, later in zip(found.events, [*found.events[1:], None], strict=True):
        end = found.seconds + 60.0 if later is None else later.at
        late = [at - happened.at for at in account.late if happened.at <= at < end]
        happened.recovered = max(late, default=0.0)
    found.problems += [f"{count} answers: {kind}" for kind, count in account.bad.items()]
    if account.answers < LEAST_ANSWERS:
        found.problems.append(f"{account.answers} answers, fewer than {LEAST_ANSWERS}: nothing was shown")
    if len(found.events) < LEAST_EVENTS:
        found.problems.append(f"{len(found.events)} events, fewer than {LEAST_EVENTS}: nothing was shown")
    if found.seconds < _FLAT_FROM:
        return
    found.problems += [
        f"memory and descriptors of {part} cannot be read by this user: run as root"
        for part in sorted(found.unseen)
    ]
    for part, samples in found.samples.items():
        quarter = max(1, len(samples) // 4)
        for what, spare in _SPARE.items():
            before, after = (
                sorted(getattr(one, what) for one in some)[len(some) // 2]
                for some in (samples[quarter : 2 * quarter] or samples, samples[-quarter:])
            )
            if after > before * _GROWTH + spare:
                found.problems.append(f"{what} of {part} grew from {before} to {after}")
