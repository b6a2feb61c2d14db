"""Play a scenario: `play(scenario, target) -> list[CheckResult]`. Knows nothing of pytest.

Whose fault is it? A check fails when the agent, or what HAProxy does on its word, is not as the scenario
says. Everything else that goes wrong (a mock that does not answer, HAProxy gone, a recipe that cannot be
minted) is the suite's own fault and becomes `harness-error`, never `fail`. A scenario whose short-lived token
died before it could be used, because the host was too slow, is played again with longer lives.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.declarations.results import CheckResult, Evidence, Verdict
from iamroles_scenarios.declarations.scenario import (
    Expectation,
    KeysStep,
    Lane,
    ReloadStep,
    RequestSpec,
    Scenario,
    Step,
    WaitStep,
    merged,
)
from iamroles_scenarios.engine.observation import Observation, describe, mismatches
from iamroles_scenarios.engine.players import AgentFault, HarnessFault, Player, player_for
from iamroles_scenarios.engine.tokens import Mint, Minted
from iamroles_scenarios.engine.worlds import Place, Worlds
from iamroles_scenarios.mock.clients import WaitTimeoutError
from iamroles_scenarios.stage import StageError

if TYPE_CHECKING:
    from iamroles_scenarios.stage import AgentSpec, Stage

_AGENT = "agent"
"""The agent's part in the stage's logs."""
_LOG_TAIL = 25
_ATTEMPTS = 3
_CLOCK_MARGIN = 0.05
"""Seconds beyond a token's `exp`, for clocks that are read by another process."""
_POLL = 0.05
"""Seconds between two questions of an expectation that has time to come true."""
EVENT_DEADLINE = 10.0
"""Seconds, times the time scale, for events of the agent: starting again, a reload, a fetch of keys."""


class TooSlow(Exception):  # noqa: N818 - of the host, not of the agent
    """A short-lived token expired before the agent could be asked: nothing was learnt about the agent."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a scenario is played against."""

    lane: Lane
    stage: Stage
    agent: AgentSpec
    worlds: Worlds
    scale: float = 1.0
    """Multiplies deadlines and short lives; above 1 for slow hosts."""

    def lacks(self, features: list[str] | frozenset[str]) -> list[str]:
        """Features among these that the agent declares not to have."""
        return sorted(name for name in features if not self.agent.features.get(name))


def owner_of(scenario_id: str, lane: str) -> str:
    """The name under which a scenario borrows its world."""
    return f"{scenario_id}-{lane}"


def play(scenario: Scenario, target: Target) -> list[CheckResult]:
    """Play a scenario in one lane and judge its checks there; never raises for what the agent does."""
    started = time.monotonic()
    names = [name for name, spec in scenario.checks.items() if target.lane in spec.lanes]

    def all_of_them(verdict: Verdict, message: str, evidence: Evidence | None = None) -> list[CheckResult]:
        return [_result(scenario, target, name, (verdict, message, evidence or Evidence())) for name in names]

    if missing := target.lacks(scenario.features):
        return all_of_them(Verdict.NOT_APPLICABLE, f"the agent declares no {', '.join(missing)}")
    try:
        with target.worlds.borrow(scenario.world, owner_of(scenario.id, target.lane)) as place:
            timeline = _replayed(scenario, target, place)
    except StageError as error:
        # The run's first world came up. An agent that ends, or never gets ready, under another policy that
        # SPEC.md allows is at fault itself; the stage then gives its log and no other.
        verdict = Verdict.FAIL if set(error.logs) == {_AGENT} else Verdict.HARNESS_ERROR
        return all_of_them(verdict, error.message, Evidence(logs=error.logs))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is not the agent's
        trace = "".join(traceback.format_exception(error)[-6:])
        evidence = Evidence(trace=trace)
        return all_of_them(Verdict.HARNESS_ERROR, f"{type(error).__name__}: {error}", evidence)
    seconds = time.monotonic() - started
    return [replace(timeline.verdict(name), seconds=seconds) for name in names]


def _replayed(scenario: Scenario, target: Target, place: Place) -> _Timeline:
    for attempt in range(_ATTEMPTS):
        slower = replace(target, scale=target.scale * 2**attempt)
        timeline = _Timeline(scenario, slower, place)
        try:
            timeline.run()
        except TooSlow as error:
            if attempt == _ATTEMPTS - 1:
                timeline.broke(HarnessFault(f"{error}; raise the time scale"))
        else:
            return timeline
    return timeline


_Outcome = tuple[Verdict, str, Evidence]


def _result(scenario: Scenario, target: Target, name: str, outcome: _Outcome) -> CheckResult:
    spec = scenario.checks[name]
    verdict, message, evidence = outcome
    return CheckResult(
        check=f"{scenario.id}.{name}",
        requirements=tuple(spec.requirements),
        verdict=verdict,
        message=message,
        evidence=evidence,
        lane=target.lane,
        title=spec.title,
    )


class _Timeline:
    """One playing of one scenario: tokens minted so far, and what each check has seen."""

    def __init__(self, scenario: Scenario, target: Target, place: Place) -> None:
        self._scenario = scenario
        self._target = target
        self._place = place
        self._mint = Mint(scenario, target.stage, target.worlds, place, target.scale)
        self._failures: dict[str, tuple[str, Evidence]] = {}
        self._proven: dict[str, int] = dict.fromkeys(scenario.checks, 0)
        self._fault: Exception | None = None
        self._fetches: dict[str, int] = {}
        self._retiring: dict[str, list[str]] = {}

    # --- playing -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Play every step of the lane; a fault ends the timeline, a failed expectation does not."""
        player = player_for(self._target.lane, self._place.world, self._target.scale)
        try:
            for number, step in enumerate(self._scenario.steps, 1):
                if self._target.lane in step.lanes:
                    self._step(number, step, player)
        except (AgentFault, HarnessFault) as error:
            self.broke(error)
        finally:
            player.close()

    def _step(self, number: int, step: Step, player: Player) -> None:
        for request in step.requests():
            self._request(number, step, request, player)
        events: list[tuple[Any, Callable[[Any], None]]] = [
            (step.agent, self._agent),
            (step.keys, self._keys),
            (step.wait, self._wait),
            (step.reload, self._reload),
            (step.cloud, self._mint.cloud),
            (step.mint, self._mint_now),
        ]
        for event, act in events:
            if event is not None:
                act(event)

    def _request(self, number: int, step: Step, request: RequestSpec, player: Player) -> None:
        token = self._mint.token(request.token) if request.token else None
        expectations = {
            name: item
            for name, item in step.expect.items()
            if self._target.lane in self._scenario.checks[name].lanes
        }
        patience = max((item.within or 0.0 for item in expectations.values()), default=0.0)
        deadline = time.monotonic() + patience * self._target.scale
        with_reason = any(item.reason is not None for item in expectations.values())
        while True:
            seen = player.ask(request, token.text if token else "", with_reason=with_reason)
            self._in_time(token, expectations, seen)
            differences = {
                name: mismatches(item, seen, self._mint.expiries) for name, item in expectations.items()
            }
            if not any(differences.values()) or time.monotonic() >= deadline:
                break
            time.sleep(_POLL)
        where = f"step {number}" + (f" ({step.note})" if step.note else "")
        where += f", token {request.token!r}" if request.token and len(step.each) > 1 else ""
        for name, differing in differences.items():
            self._proven[name] += 1
            if differing and name not in self._failures:
                self._fail(where, name, expectations[name], seen, differing)

    def _in_time(self, token: Minted | None, expectations: dict[str, Expectation], seen: Observation) -> None:
        """A refusal of a token that has expired meanwhile is right: it says nothing against the agent."""
        hopeful = any(item.allow or item.status == 200 for item in expectations.values())
        if token is not None and token.short and hopeful and not seen.allow and seen.at >= token.expires:
            raise TooSlow(f"the token lived until {token.expires}, the answer came at {seen.at:.1f}")

    # --- events --------------------------------------------------------------------------------------------

    def _agent(self, action: str) -> None:
        handle = self._place.world.agent
        acts = {"kill": handle.kill, "pause": handle.pause, "resume": handle.resume, "start": handle.start}
        try:
            acts[action]()
        except StageError as error:
            if action != "start":
                raise
            raise AgentFault(f"the agent did not start again: {error.message}") from error

    def _keys(self, step: KeysStep) -> None:
        issuer = self._target.worlds.issuer(self._place.issuer(step.issuer))
        if step.do == "rotate":
            self._retiring.setdefault(issuer.name, []).append(issuer.keys[0].kid)
            issuer.rotate()
        elif step.do == "slow":
            issuer.fault("jwks", "slow", seconds=step.seconds * self._target.scale)
        elif step.do == "mend":
            issuer.clear("jwks")
        else:
            for kid in self._retiring.pop(issuer.name, []):
                issuer.remove(kid)
        self._fetches[issuer.name] = issuer.counters().get("jwks", 0)

    def _mint_now(self, names: list[str]) -> None:
        for name in names:
            self._mint.token(name)

    def _wait(self, step: WaitStep) -> None:
        if step.expired:
            expires = self._mint.token(step.expired).expires
            while (left := expires - time.time()) > -_CLOCK_MARGIN:
                time.sleep(left + _CLOCK_MARGIN)
            return
        issuer = self._target.worlds.issuer(self._place.issuer(step.fetched))
        seconds = EVENT_DEADLINE * self._target.scale
        try:
            issuer.wait_for("jwks", self._fetches.get(issuer.name, 0) + 1, seconds)
        except WaitTimeoutError as error:
            message = f"the agent did not renew the key set of {step.fetched!r} within {seconds:g} s"
            raise AgentFault(message) from error

    def _reload(self, step: ReloadStep) -> None:
        policy = merged(self._place.policy, self._place.own(step.override))
        try:
            answer = self._place.world.agent.reload(policy, within=EVENT_DEADLINE * self._target.scale)
        except StageError as error:
            raise AgentFault(f"the agent did not say what came of the reload: {error.message}") from error
        if answer["reloaded"]:
            self._place.policy = policy
        message = f"the agent answered the reload with {answer}, expected reloaded = {step.accepted}"
        right = answer["reloaded"] == step.accepted
        if not right and not step.check:
            raise AgentFault(message)
        if step.check:
            self._reloaded(step, step.check, answer, "" if right else message)
        if step.error is not None:
            named = not answer["reloaded"] and step.error.names in str(answer.get("error"))
            message = f"the refusal does not name {step.error.names!r}: {answer}"
            self._reloaded(step, step.error.check, answer, "" if named else message)

    def _reloaded(self, step: ReloadStep, name: str, answer: dict[str, Any], message: str) -> None:
        """Keep what a reload showed of a check; no message: all was well."""
        self._proven[name] += 1
        if message:
            sent = f"policy change: {step.override}"
            evidence = Evidence(sent=sent, received=str(answer), logs=self._log_tails())
            self._failures.setdefault(name, (message, evidence))

    # --- judging -------------------------------------------------------------------------------------------

    def _fail(
        self, where: str, name: str, expected: Expectation, seen: Observation, differing: list[str]
    ) -> None:
        evidence = Evidence(
            sent=seen.sent,
            expected=describe(expected),
            received=seen.received,
            trace=seen.trace,
            logs=self._log_tails(),
        )
        self._failures[name] = (f"{where}: {'; '.join(differing)}", evidence)

    def _log_tails(self) -> dict[str, str]:
        try:
            logs = self._place.world.logs()
        except Exception as error:  # noqa: BLE001 - a missing log must not hide the failure
            return {"logs": f"could not be read: {error}"}
        return {part: "\n".join(text.splitlines()[-_LOG_TAIL:]) for part, text in logs.items()}

    def broke(self, error: Exception) -> None:
        """The timeline ended early: checks not yet settled take the fault."""
        self._fault = error

    def verdict(self, name: str) -> CheckResult:
        """The check's result after `run`."""
        outcome: _Outcome
        if name in self._failures:
            outcome = (Verdict.FAIL, *self._failures[name])
        elif self._fault is None and self._proven[name]:
            outcome = (Verdict.PASS, "", Evidence())
        elif isinstance(self._fault, AgentFault):
            evidence = Evidence(trace=self._fault.trace, logs=self._log_tails())
            outcome = (Verdict.FAIL, str(self._fault), evidence)
        else:
            message = str(self._fault) if self._fault else "no step of this lane bears on it"
            outcome = (Verdict.HARNESS_ERROR, message, Evidence(logs=self._log_tails()))
        return _result(self._scenario, self._target, name, outcome)
