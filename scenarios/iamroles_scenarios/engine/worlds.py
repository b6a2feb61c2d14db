"""Worlds: a running agent, and HAProxy before it, for one policy; started once and shared by its scenarios.

Scenarios of one policy share a world, because starting one costs a second and most only ask questions. A
scenario that disturbs its world (kills the agent, rotates keys, reloads) says `own = true` and gets one to
itself, with issuers of its own: every `{idp}/corp` becomes `{idp}/corp-<scenario>`, so that rotating the keys
of one never shows in another. A world is closed when the last scenario that was planned for it has returned
it. An unplanned world is closed when its only user has, or when others have been used since: an agent that
only waits takes time from those that are asked.
"""

from __future__ import annotations

import copy
import json
import os
import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.base.durations import seconds
from iamroles_scenarios.base.errors import StageError, TooSlow, Untestable
from iamroles_scenarios.declarations.scenario import WorldSpec, merged, policy_of
from iamroles_scenarios.engine.certificates import ProxyCertificates
from iamroles_scenarios.engine.key_sets import SECRETS, KeySets, signing
from iamroles_scenarios.engine.leaks import Leaks
from iamroles_scenarios.engine.setups import ENDING, answers, ended, uses
from iamroles_scenarios.stage.rendering import SHIPPED
from iamroles_scenarios.stage.spec import declares, processing

if TYPE_CHECKING:
    from iamroles_scenarios.mock.clients import IssuerHandle
    from iamroles_scenarios.stage import AgentSpec, Stage, World

DEFAULT_ISSUER = "corp"
FEDERATION = "{federation}"
_playings = count(2)
WORKERS = 2
"""Processes that answer if something changes in a world, and the agent declares `workers`."""
_IDLE = 6
"""Idle, unplanned shared worlds that are kept, at most."""
_STARTS = max(os.cpu_count() or 1, 2)
"""Worlds that start at a time. A start is work, not waiting: more would only take longer, and would take time
from the checks that are being played."""
_ISSUER = re.compile(r"(\{idp\}/)([A-Za-z0-9_-]+)")


@dataclass(slots=True)
class Loan:
    """A world on loan to a scenario."""

    world: World
    policy: dict[str, Any]
    """The policy it runs, placeholders still in it."""
    suffix: str = ""
    """The end of its issuers' names."""
    second: World | None = None
    """If HAProxy asks two agents: the other one, without a HAProxy of its own."""
    certificates: ProxyCertificates | None = None
    """HAProxy's certificates, if it speaks TLS."""
    sets: KeySets | None = None
    """The keys of the signed identity, if agents sign it."""

    @property
    def workers(self) -> int:
        """Return how many processes of an agent must know of a change."""
        return int(self.policy.get("agent", {}).get("workers", 1))

    @property
    def worlds(self) -> tuple[World, ...]:
        return (self.world,) if self.second is None else (self.world, self.second)

    def close(self) -> None:
        for world in self.worlds:
            world.close()

    def wait_agents(self, within: float) -> None:
        """Wait until HAProxy holds each agent for up, if its configuration says which server is one.

        Raises:
            TooSlow: it did not within these seconds: what is asked then says nothing about the agent.
        """
        proxy = self.world.haproxy
        if proxy.agents and not proxy.wait_agent(True, within, len(self.worlds)):
            raise TooSlow(f"HAProxy did not hold each started agent for up within {within:g} s")

    def issuer(self, name: str) -> str:
        """Return the name of the mock issuer that a scenario means by a name."""
        return (name or DEFAULT_ISSUER) + self.suffix

    def own(self, policy: dict[str, Any]) -> dict[str, Any]:
        """Return a policy with this world's own issuers instead of the general ones."""
        return _renamed(policy, self.suffix)


def _renamed(policy: dict[str, Any], suffix: str) -> dict[str, Any]:
    if not suffix:
        return copy.deepcopy(policy)
    text = _ISSUER.sub(rf"\g<1>\g<2>{suffix}", json.dumps(policy))
    result: dict[str, Any] = json.loads(text)
    return result


@dataclass(slots=True)
class _Slot:
    lock: threading.Lock = field(default_factory=threading.Lock)
    loan: Loan | None = None
    fault: Exception | None = None


class Worlds:
    """All worlds of a run; safe to use from many threads.

    Args:
        stage: where they are started.
        agent: what is started.
        haproxy: whether HAProxy stands before the agent; without, only the lanes over SPOP can be played.
        namespace: what the names of all issuers end in, so that several `Worlds` share one stage.
        scale: by which the targets' times are stretched, and what agents and HAProxies wait for with them.
    """

    def __init__(
        self, stage: Stage, agent: AgentSpec, *, haproxy: bool = True, namespace: str = "", scale: float = 1.0
    ) -> None:
        self._stage = stage
        self.namespace = namespace
        self._scale = scale
        self._agent = agent
        self._haproxy = haproxy
        self._slots: dict[str, _Slot] = {}
        self._planned: Counter[str] = Counter()
        self._lent: Counter[str] = Counter()
        self._idle: dict[str, _Slot] = {}
        """The longest idle first."""
        self._closed = False
        self._lock = threading.Lock()
        self._starting = threading.Semaphore(_STARTS)
        self._issuers: dict[str, IssuerHandle] = {}
        self.leaks = Leaks()
        self.on_shared: Callable[[Loan], None] | None = None
        """Called with each world that is started to be shared; `on_release` before it is closed."""
        self.on_release: Callable[[Loan], None] | None = None

    def for_another_playing(self, factor: float) -> Worlds:
        """Return worlds in which a check is played again: stretched, and without what happened before."""
        name, scale = f"{self.namespace}-{next(_playings)}", self._scale * factor
        agent = replace(self._agent, ready_within=self._agent.ready_within * factor)
        found = Worlds(self._stage, agent, haproxy=self._haproxy, namespace=name, scale=scale)
        found.leaks, found.on_shared, found.on_release = self.leaks, self.on_shared, self.on_release
        return found

    def issuer(self, name: str) -> IssuerHandle:
        """Return the mock issuer of a name, created when it is first wanted."""
        with self._lock:
            if name not in self._issuers:
                self._issuers[name] = self._stage.idp.issuer(name)
            return self._issuers[name]

    def plan(self, spec: WorldSpec, owner: str) -> None:
        """Announce a loan to come, so that the world is neither closed too early nor kept too long."""
        with self._lock:
            self._planned[_key(spec, owner)] += 1

    @contextmanager
    def borrow(self, spec: WorldSpec, owner: str) -> Iterator[Loan]:
        """Lend a running world to a scenario.

        Args:
            spec: what it must be like.
            owner: scenario and lane; names an own world and its issuers.

        Raises:
            StageError: it cannot be started; later borrowers of the same world get the same error, until
                `start_again`.
        """
        key = _key(spec, owner)
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._idle.pop(key, None)
            self._lent[key] += 1
        try:
            loan = self._opened(slot, spec, owner)
            for world in loan.worlds:
                uses(world)
            try:
                yield loan
            except Exception:
                ended(loan.worlds, ENDING)  # a closed world cannot say it
                raise
        finally:
            self._release(key, slot, own=spec.own)

    def _opened(self, slot: _Slot, spec: WorldSpec, owner: str) -> Loan:
        with slot.lock:
            if slot.fault is not None:
                raise slot.fault
            if slot.loan is None:
                suffix = self.namespace + (f"-{_slug(owner)}" if spec.own else "")
                try:
                    slot.loan = self.start(spec, suffix)
                    if self.on_shared is not None and not spec.own:
                        self.on_shared(slot.loan)
                except Exception as error:
                    slot.fault = error
                    raise
            return slot.loan

    def start(
        self,
        spec: WorldSpec,
        suffix: str,
        *,
        tls: bool = False,
        signed: float = 0.0,
        **how: Any,  # noqa: ANN401 - of `Stage.world`
    ) -> Loan:
        """Start a world that is never shared; the caller closes it.

        Args:
            spec: what it must be like.
            suffix: what the names of its issuers end in.
            tls: HAProxy speaks TLS.
            signed: seconds that a key of the signed identity signs; 0: the spec says whether and how.
            how: passed to `Stage.world`.

        Raises:
            StageError: it cannot be started.
            Untestable: HAProxy's configuration does not take TLS.
        """
        if self._closed:
            raise StageError("The run is over: no world is started now.")
        policy = policy_of(spec)
        if spec.changes and declares(self._agent.features, "workers"):
            policy = merged({"agent": {"workers": WORKERS}}, policy)
        if signed:
            policy = merged(policy, signing(self._stage, signed, shared=spec.agents == 2))
            how["files"] = {SECRETS: f"{secrets.token_hex(32)}\n", **how.get("files", {})}
        policy = self._located(_renamed(policy, suffix), suffix)
        for name in _ISSUER.findall(json.dumps(policy)):
            self.issuer(name[1])
        # Many worlds are asked over SPOP alone. What stands between HAProxy and the agent is there at once.
        late = "between" not in how and not tls
        how = {"haproxy": self._haproxy, "settings": spec.settings, "late": late, **how}
        how["settings"] = dict(how["settings"] or {})
        if self._scale > 1:
            self._stretch(policy, how["settings"])
        certificates = ProxyCertificates() if tls else None
        if certificates is not None:
            how["settings"] |= certificates.settings
            how["files"] = {**how.get("files", {}), **certificates.files}
        agent, second = self._agent, None
        if spec.agents == 2:
            second = self._served(agent, policy, haproxy=False, files=how.get("files"))
            how["settings"] = {**how["settings"], "IAM_AGENT_2": second.agent.inner_address}
            agent = with_second(agent)
        try:
            world = self._served(agent, policy, **how)
        except BaseException as error:
            if second is not None:
                self._stage.release(second)
            if certificates is not None and isinstance(error, StageError) and "haproxy" in error.logs:
                why = "HAProxy's configuration must split IAM_BIND into words, as `bind` takes them"
                raise Untestable(f"{why} (docs/stage.md): {error.message}") from error
            raise
        loan = Loan(world, policy, suffix, second, certificates)
        if signed:
            loan.sets = KeySets([one.agent for one in loan.worlds], signed)
        return loan

    def _served(self, agent: AgentSpec, policy: dict[str, Any], **how: Any) -> World:  # noqa: ANN401
        """Start a world whose agent serves the address that it announces."""
        with self._starting:
            world = self._stage.world(agent, policy, **how)
        self.leaks.watch(world)
        try:
            if world.agent.spop_address:
                answers(world.agent.spop_address, {"agent": world.agent.logs()})
        except StageError as error:
            error.world = json.dumps(world.document)
            world.close()
            raise
        uses(world)
        return world

    def start_own(self, spec: WorldSpec, owner: str, **how: Any) -> Loan:  # noqa: ANN401 - as `start`
        """Start as `start`, named after its owner."""
        return self.start(spec, f"{self.namespace}-{_slug(owner)}", **how)

    def _stretch(self, policy: dict[str, Any], settings: dict[str, str]) -> None:
        """Stretch what agents wait for, and HAProxy."""
        vendor = self._agent.haproxy.get("settings", {})
        waits = [
            (settings, "IAM_TIMEOUT_PROCESSING", f"{processing(vendor):g}s"),
            (policy.setdefault("agent", {}), "decision_timeout", "10s"),
            (policy.setdefault("keys", {}), "timeout", "5s"),
            *((sts, "timeout", "10s") for sts in policy.get("sts", ())),
        ]
        for table, key, default in waits:
            table[key] = f"{round(seconds(table.get(key, default)) * self._scale * 1000)}ms"

    def _located(self, policy: dict[str, Any], suffix: str) -> dict[str, Any]:
        """Replace `{federation}` by the URL of the mock cloud's outbound issuer, the default account's.

        `{suffix}` becomes the end of this world's own names: hosts of STS that no other world shares.
        """
        text = json.dumps(policy).replace("{suffix}", suffix)
        if FEDERATION in text:
            text = text.replace(FEDERATION, self._stage.cloud.account().issuer.url)
        located: dict[str, Any] = json.loads(text)
        return located

    def _release(self, key: str, slot: _Slot, *, own: bool) -> None:
        with self._lock:
            self._lent[key] -= 1
            planned = self._planned[key] > 0
            self._planned[key] -= planned
            # A world that did not start stays, so that later borrowers get its error.
            if self._lent[key] or self._planned[key] or self._slots.get(key) is not slot or slot.fault:
                return
            if not (planned or own):
                self._idle[key] = slot
                if len(self._idle) <= _IDLE:
                    return
                key = next(iter(self._idle))
                slot = self._idle.pop(key)
            del self._planned[key], self._lent[key], self._slots[key]
        with slot.lock:
            self._let_go(slot)

    def start_again(self) -> None:
        """Let worlds that did not start be started again: the host was late for one of them."""
        with self._lock:
            for key in [key for key, slot in self._slots.items() if slot.fault and not self._lent[key]]:
                del self._slots[key]

    def _let_go(self, slot: _Slot) -> None:
        if slot.loan is not None:
            if self.on_release is not None:
                self.on_release(slot.loan)
            slot.loan.close()
            slot.loan = None

    def close(self) -> None:
        """Stop every world that still runs, also under scenarios that are being played; start no other."""
        with self._lock:
            self._closed = True
            slots, self._slots = list(self._slots.values()), {}
        for slot in slots:
            with slot.lock:
                self._let_go(slot)


def with_second(agent: AgentSpec) -> AgentSpec:
    """Return the same agent with two servers in HAProxy: IAM_AGENT_2 names the second.

    A configuration of the vendor's own knows IAM_AGENT_2 itself: that is what the feature `pair` declares.
    """
    render = list(agent.haproxy.get("render", SHIPPED))
    if render[-len(SHIPPED) + 1 :] != list(SHIPPED[1:]):
        return agent
    return replace(agent, haproxy={**agent.haproxy, "render": [*render, "--agent", "127.0.0.1:9902"]})


def _key(spec: WorldSpec, owner: str) -> str:
    text = json.dumps([policy_of(spec), spec.agents, spec.settings, spec.changes], sort_keys=True)
    return f"{owner}\n{text}" if spec.own else text


def _slug(owner: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", owner.lower()).strip("-")
