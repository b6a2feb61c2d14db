"""Events of a scenario's steps: what happens to agents, HAProxy, keys, the policy and the cloud.

One method for each field of `Step` that is an event; `Events.act` finds it. Another kind of event is a field
in `declarations.scenario.Step`, its name in `KINDS`, and a method here.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.base.errors import AgentFault, AgentFileError, HarnessFault, StageError, Untestable
from iamroles_scenarios.base.family import children_of
from iamroles_scenarios.base.polling import rest
from iamroles_scenarios.declarations import scenario
from iamroles_scenarios.declarations.scenario import KeysStep, ReloadStep, Step, WaitStep, merged, stripped
from iamroles_scenarios.engine.certificates import proxy_fault
from iamroles_scenarios.engine.tokens import Mint
from iamroles_scenarios.engine.worlds import Loan

if TYPE_CHECKING:
    from iamroles_scenarios.engine.target import Target
    from iamroles_scenarios.stage import World

CLOCK_MARGIN = 0.05
"""Seconds beyond a token's `exp`, for clocks that are read by another process."""
EVENT_DEADLINE = 10.0
"""Seconds, times the time scale, for events of the agent: starting again, a reload, a fetch of keys."""

Prove = Callable[[str, str, str, str], None]
"""Takes what an event showed of a check: the check, what was wrong ("": nothing), what was sent, and what was
received."""


class Events:
    """The events of one playing of a scenario.

    Args:
        target: agent and stage.
        loan: the world.
        mint: its tokens.
        prove: see `Prove`.
    """

    def __init__(self, target: Target, loan: Loan, mint: Mint, prove: Prove) -> None:
        self._target = target
        self._place = loan
        self._mint = mint
        self._prove = prove
        self._fetches: dict[str, int] = {}
        self._retiring: dict[str, list[str]] = {}

    def act(self, step: Step) -> None:
        """Make a step's event happen.

        Raises:
            AgentFault: the agent did not take it as it must.
            TooSlow: HAProxy does not ask an agent that started.
        """
        acts: tuple[tuple[Any, Callable[[Any], None]], ...] = (
            (step.agent, lambda action: self._agent(action, step.nth)),
            (step.haproxy, lambda _: self._place.world.haproxy.reload()),
            (step.certificate, self._certificate),
            (step.keys, self._keys),
            (step.wait, self._wait),
            (step.reload, self._reload),
            (step.cloud, self._mint.cloud),
            (step.mint, self._mint_now),
        )
        for event, act in acts:
            if event is not None:
                act(event)

    def _agent(self, action: str, nth: int) -> None:
        world = self._place.worlds[nth - 1]
        handle = world.agent
        acts: dict[str, Callable[[], object]] = {
            "kill": handle.kill,
            "pause": handle.pause,
            "resume": handle.resume,
            "start": handle.start,
            "stop": handle.stop,
            "kill-child": lambda: kill_child(world),
        }
        try:
            acts[action]()
        except StageError as error:
            if action != "start" or isinstance(error, AgentFileError):
                raise
            raise AgentFault(f"the agent did not start again: {error.message}") from error
        if action == "start" and self._place.second is not None:  # the next step may take the other one away
            self._place.wait_agents(self._target.seconds(EVENT_DEADLINE))

    def _certificate(self, step: scenario.CertificateStep) -> None:
        world, certificates = self._place.world, self._place.certificates
        assert certificates is not None  # noqa: S101 - the scenario says that it speaks TLS
        why = certificates.replace(world, step.by, self._target.scale)
        if why and isinstance(fault := proxy_fault(self._target.agent, why), HarnessFault):
            raise fault
        self._prove(step.check, why, f"another certificate by {step.by}", why)

    def _keys(self, step: KeysStep) -> None:
        issuer = self._target.worlds.issuer(self._place.issuer(step.issuer))
        retiring = self._retiring.setdefault(issuer.name, [])
        match step.do:
            case "rotate" | "announce":
                retiring.append(issuer.keys[0].kid)
                issuer.rotate() if step.do == "rotate" else issuer.announce()
            case "adopt":
                issuer.adopt()
            case "slow":
                issuer.fault("jwks", "slow", seconds=self._target.seconds(step.seconds))
            case "mend":
                issuer.clear("jwks")
            case "replace":
                issuer.rotate(overlap=False)
            case "retire":
                for kid in retiring:
                    issuer.remove(kid)
                retiring.clear()
        self._fetches[issuer.name] = issuer.counters().get("jwks", 0)

    def _mint_now(self, names: list[str]) -> None:
        for name in names:
            self._mint.mint(name)

    def _wait(self, step: WaitStep) -> None:
        if step.expired:
            expires = self._mint.token(step.expired).expires
            while (left := expires + CLOCK_MARGIN - time.time()) > 0 and rest(left):
                pass
            return
        issuer = self._target.worlds.issuer(self._place.issuer(step.fetched))
        seconds = self._target.seconds(EVENT_DEADLINE)
        issuer.wait_for("jwks", self._fetches.get(issuer.name, 0) + 1, seconds)

    def _reload(self, step: ReloadStep) -> None:
        policy = stripped(merged(self._place.policy, self._place.own(step.override)), step.without)
        for world in self._place.worlds:
            try:
                answer = world.agent.reload(policy, within=self._target.seconds(EVENT_DEADLINE))
            except StageError as error:
                raise AgentFault(f"the agent did not say what came of the reload: {error.message}") from error
            self._answered(step, answer)
        if answer["reloaded"]:
            self._place.policy = policy

    def _answered(self, step: ReloadStep, answer: dict[str, Any]) -> None:
        message = f"the agent answered the reload with {answer}, expected reloaded = {step.accepted}"
        right = answer["reloaded"] == step.accepted
        if not right and not step.check:
            raise AgentFault(message)
        sent, received = f"policy change: {step.override}", str(answer)
        if step.check:
            self._prove(step.check, "" if right else message, sent, received)
        if step.error is not None:
            named = not answer["reloaded"] and step.error.names in str(answer.get("error"))
            message = f"the refusal does not name {step.error.names!r}: {answer}"
            self._prove(step.error.check, "" if named else message, sent, received)


def kill_child(world: World) -> int:
    """Send SIGKILL to the oldest child process of a world's agent; return its process id on this host.

    Raises:
        AgentFault: it has no child, though it declares `workers`.
        Untestable: its processes cannot be seen from here.
    """
    pid = world.agent.host_pid
    if pid is None:
        raise Untestable("the agent's processes cannot be seen from this host")
    children = children_of(pid)
    if not children:
        raise AgentFault("the agent has no child process that could be killed: declare `workers = false`")
    end_process(children[0])
    return children[0]


def end_process(pid: int, how: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process, which may have ended.

    Raises:
        Untestable: this user may not.
    """
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return
    except PermissionError:
        raise Untestable("this user may not signal the agent's processes: run as root") from None
