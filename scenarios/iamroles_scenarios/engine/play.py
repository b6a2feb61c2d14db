"""Play a scenario: `play(scenario, target) -> list[CheckResult]`. Knows nothing of pytest.

Whose fault is it? A check fails when the agent, or what HAProxy does on its word, is not as the scenario
says. Everything else that goes wrong (a mock that does not answer, HAProxy gone, a recipe that cannot be
minted) is the suite's own fault and becomes `harness-error`, never `fail`. A scenario whose short-lived token
died before it could be used, because the host was too slow, is played again with longer lives.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.declarations.results import CheckResult, tails
from iamroles_scenarios.declarations.scenario import (
    Expectation,
    KeysStep,
    Lane,
    PlannedCheck,
    ReloadStep,
    RequestSpec,
    Scenario,
    Step,
    WaitStep,
    merged,
)
from iamroles_scenarios.engine.observation import Observation, describe, mismatches
from iamroles_scenarios.engine.players import Player, player_for
from iamroles_scenarios.engine.setups import judged_alive
from iamroles_scenarios.engine.tokens import Mint, Minted
from iamroles_scenarios.engine.verdicts import blamed, lacking, passed
from iamroles_scenarios.engine.worlds import Place, Worlds
from iamroles_scenarios.errors import (
    AgentFault,
    CheckFailed,
    Evidence,
    HarnessFault,
    StageError,
    TooSlow,
    WaitTimeoutError,
)

if TYPE_CHECKING:
    from iamroles_scenarios.stage import AgentSpec, Stage

_ATTEMPTS = 3
_CLOCK_MARGIN = 0.05
"""Seconds beyond a token's `exp`, for clocks that are read by another process."""
_POLL = 0.05
"""Seconds between two questions of an expectation that has time to come true."""
ENDING = 0.2
"""Seconds in which an agent whose check failed has ended, if it does."""
EVENT_DEADLINE = 10.0
"""Seconds, times the time scale, for events of the agent: starting again, a reload, a fetch of keys."""


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


class Watcher:
    """Is told how a scenario goes while it is played; does nothing by itself."""

    def begins(self, place: Place) -> None:
        """The world runs, nothing has been asked; also when the scenario is played again."""

    def happens(self, step: Step) -> None:
        """An event is about to happen."""

    def asks(self, step: Step, request: RequestSpec) -> None:
        """A request is about to be sent, perhaps several times."""

    def saw(self, step: Step, seen: Observation, differing: list[str]) -> None:
        """Its answer is final; what differs from what all checks expect, one sentence each."""


def play(scenario: Scenario, target: Target, watcher: Watcher | None = None) -> list[CheckResult]:
    """Play a scenario in one lane and judge its checks there; never raises for what the agent does."""
    started = time.monotonic()
    checks = scenario.planned(target.lane)
    if missing := target.lacks(scenario.features):
        return [lacking(check, missing) for check in checks]
    try:
        with target.worlds.borrow(scenario.world, owner_of(scenario.id, target.lane)) as place:
            timeline = _replayed(scenario, target, place, watcher or Watcher())
            results = judged_alive([timeline.verdict(check) for check in checks], [place.world], ENDING)
    except Exception as error:  # noqa: BLE001 - `blamed` says whose fault it is
        results = [blamed(check, error) for check in checks]
    seconds = time.monotonic() - started
    return [replace(result, seconds=seconds) for result in results]


def _replayed(scenario: Scenario, target: Target, place: Place, watcher: Watcher) -> _Timeline:
    for attempt in range(_ATTEMPTS):
        timeline = _Timeline(scenario, replace(target, scale=target.scale * 2**attempt), place, watcher)
        timeline.run()
        if not isinstance(timeline.fault, TooSlow):
            break
    return timeline


class _Timeline:
    """One playing of one scenario: tokens minted so far, and what each check has seen."""

    def __init__(self, scenario: Scenario, target: Target, place: Place, watcher: Watcher) -> None:
        self._watcher = watcher
        self._scenario = scenario
        self._target = target
        self._place = place
        self._mint = Mint(scenario, target.stage, target.worlds, place, target.scale)
        self._failures: dict[str, tuple[str, Evidence]] = {}
        self._proven: dict[str, int] = dict.fromkeys(scenario.checks, 0)
        self.fault: AgentFault | HarnessFault | None = None
        """What ended it early."""
        self._fetches: dict[str, int] = {}
        self._retiring: dict[str, list[str]] = {}

    # --- playing -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Play every step of the lane; a fault ends the timeline, a failed expectation does not."""
        player = player_for(self._target.lane, self._place.world, self._target.scale)
        try:
            self._watcher.begins(self._place)
            for number, step in enumerate(self._scenario.steps, 1):
                if self._target.lane in step.lanes:
                    self._step(number, step, player)
        except (AgentFault, HarnessFault) as error:
            self.fault = error
        finally:
            player.close()

    def _step(self, number: int, step: Step, player: Player) -> None:
        for request in step.requests():
            self._watcher.asks(step, request)
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
                self._watcher.happens(step)
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
        self._watcher.saw(step, seen, [text for each in differences.values() for text in each])
        where = f"step {number}" + (f" ({step.note})" if step.note else "")
        where += f", token {request.token!r}" if request.token and len(step.each) > 1 else ""
        for name, differing in differences.items():
            self._proven[name] += 1
            if differing:
                self._fail(where, name, expectations[name], seen, differing, token.text if token else "")

    def _in_time(self, token: Minted | None, expectations: dict[str, Expectation], seen: Observation) -> None:
        """A refusal of a token that has expired meanwhile is right: it says nothing against the agent."""
        hopeful = any(item.allow or item.status == 200 for item in expectations.values())
        if token is not None and token.short and hopeful and not seen.allow and seen.at >= token.expires:
            late = f"the token lived until {token.expires}, the answer came at {seen.at:.1f}"
            raise TooSlow(f"{late}; raise the time scale")

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

    def _fail(  # noqa: PLR0917 - all that one failing step has
        self,
        where: str,
        name: str,
        expected: Expectation,
        seen: Observation,
        differing: list[str],
        token: str,
    ) -> None:
        message = f"{where}: {'; '.join(differing)}"
        if name in self._failures:  # the evidence is the first step's; every step is named
            before, evidence = self._failures[name]
            self._failures[name] = (f"{before}\n  {message}", evidence)
            return
        evidence = Evidence(
            sent="\n".join(filter(None, [seen.sent, *opened(token)])),
            expected=describe(expected),
            received=seen.received,
            trace=seen.trace,
            logs=self._log_tails(),
        )
        self._failures[name] = (message, evidence)

    def _log_tails(self) -> dict[str, str]:
        try:
            logs = self._place.world.logs()
        except Exception as error:  # noqa: BLE001 - a missing log must not hide the failure
            return {"logs": f"could not be read: {error}"}
        return tails(logs)

    def verdict(self, check: PlannedCheck) -> CheckResult:
        """The check's result after `run`: its own failure, else the fault that ended the timeline early."""
        name = check.id.removeprefix(f"{self._scenario.id}.")
        if name in self._failures:
            return blamed(check, CheckFailed(*self._failures[name]))
        if self.fault is None and self._proven[name]:
            return passed(check)
        result = blamed(check, self.fault or HarnessFault("no step of this lane bears on it"))
        return replace(result, evidence=replace(result.evidence, logs=self._log_tails()))


_SHOWN = 1500
"""Characters of a token's header, and of its claims, that a failure shows."""


def opened(token: str) -> list[str]:
    """Header and claims of a JWT as lines to read, never its signature; none for what is no JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        return []
    lines = []
    for title, part in zip(("header", "claims"), parts, strict=False):
        try:
            text = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode()
        except ValueError:
            text = "<not base64url of UTF-8>"
        printable = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
        lines.append(f"token {title}: {printable[:_SHOWN]}{'…' * (len(printable) > _SHOWN)}")
    return lines
