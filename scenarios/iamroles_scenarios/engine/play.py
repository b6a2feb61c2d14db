"""Play a scenario: `play(scenario, target) -> list[CheckResult]`. Knows nothing of pytest.

Whose fault is it? A check fails when the agent, or what HAProxy does on its word, is not as the scenario
says. Everything else that goes wrong (a mock that does not answer, HAProxy gone, a recipe that cannot be
minted) is the suite's own fault and becomes `harness-error`, never `fail`. A scenario whose short-lived token
died before it could be used, because the host was too slow, is played again with longer lives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import AgentFault, CheckFailed, Evidence, HarnessFault, TooSlow
from iamroles_scenarios.declarations.results import CheckResult, Verdict, tails
from iamroles_scenarios.declarations.scenario import Expectation, PlannedCheck, RequestSpec, Scenario, Step
from iamroles_scenarios.declarations.timeline import BEGIN
from iamroles_scenarios.engine.attempts import attempted
from iamroles_scenarios.engine.certificates import proxy_fault
from iamroles_scenarios.engine.credentials import readable
from iamroles_scenarios.engine.events import Events
from iamroles_scenarios.engine.judged_traffic import FLOOR, JudgedTraffic
from iamroles_scenarios.engine.ledger import Finding, Kind
from iamroles_scenarios.engine.observation import Observation, describe, falsely_allowed, mismatches
from iamroles_scenarios.engine.players import Player, asked_for, player_for
from iamroles_scenarios.engine.setups import ENDING, ended
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.timeline import Timeline
from iamroles_scenarios.engine.tokens import Mint, Minted
from iamroles_scenarios.engine.verdicts import blamed, judged, lacking, passed
from iamroles_scenarios.engine.worlds import Loan
from iamroles_scenarios.stage.spec import PROCESSING
from iamroles_scenarios.traffic.polling import NANO

_VARIANT = 80
"""Characters of one field of a request, in the line of a failing step."""
_ALSO = 10
"""Tokens of later failing steps that a failure shows, beside the first."""


def owner_of(scenario: Scenario, lane: str) -> str:
    """Return the name under which a scenario borrows its world."""
    return f"{scenario.id}-{lane}"


class Watcher:
    """Gets the events of a scenario while it is played, and does nothing with them."""

    def begins(self, loan: Loan) -> None:
        """Called when the world runs and nothing has been asked; also when the scenario is played again."""

    def happens(self, step: Step) -> None:
        """Called before an event happens."""

    def asks(self, step: Step, request: RequestSpec) -> None:
        """Called before a request is sent, perhaps several times."""

    def saw(self, step: Step, seen: Observation, differing: list[str]) -> None:
        """Called with the final answer, and what differs from what all checks expect, one sentence each."""

    def asked(self, traffic: JudgedTraffic) -> None:
        """Called when the traffic of a timeline is over."""


def play(scenario: Scenario, target: Target, watcher: Watcher | None = None) -> list[CheckResult]:
    """Play a scenario in one lane and judge its checks there; never raises for what the agent does."""
    checks = scenario.planned(target.lane)
    missing = target.lacks(scenario.needs)
    if not target.agent.runs and any(step.agent for step in scenario.steps):
        missing.append("process of its own")
    if missing:
        return [lacking(check, missing) for check in checks]
    watcher = watcher or Watcher()

    def play_at(slower: Target) -> list[CheckResult]:
        return judged(
            checks,
            lambda: _played(scenario, slower, watcher),
            scale=slower.scale,
            transcripts=target.transcripts,
        )

    return attempted(target, play_at)


def _played(scenario: Scenario, target: Target, watcher: Watcher) -> list[CheckResult]:
    with _world(scenario, target) as loan:
        playing = _Playing(scenario, target, loan, watcher)
        playing.run()
        results = [playing.verdict(check) for check in scenario.planned(target.lane)]
        if any(result.verdict is Verdict.FAIL for result in results):
            ended(loan.worlds, ENDING)  # a closed world cannot say it
    return results


@contextmanager
def _world(scenario: Scenario, target: Target) -> Iterator[Loan]:
    """Lend the world: of its own for each playing of a timeline, which leaves nothing as it was."""
    owner = owner_of(scenario, target.lane)
    if scenario.traffic is None:
        with target.worlds.borrow(scenario.world, owner) as loan:
            yield loan
        return
    tls, signed = scenario.traffic.tls, target.seconds(scenario.traffic.signed)
    with closing(target.worlds.start_own(scenario.world, owner, tls=tls, signed=signed)) as loan:
        yield loan


class _Playing:
    """One playing of one scenario: tokens minted so far, and what each check has seen."""

    def __init__(self, scenario: Scenario, target: Target, loan: Loan, watcher: Watcher) -> None:
        self._watcher = watcher
        self._scenario = scenario
        self._target = target
        self.loan = loan
        self._mint = Mint(scenario.tokens, target, loan)
        self._failures: dict[str, tuple[str, Evidence]] = {}
        self._proven: dict[str, int] = dict.fromkeys(scenario.checks, 0)
        self.fault: AgentFault | HarnessFault | None = None
        """The error that ended it early."""
        self._events = Events(target, loan, self._mint, self._shown_by_event)
        self._timeline: Timeline | None = None
        self._running = ExitStack()
        self._remarks: dict[str, list[str]] = {}

    # --- playing -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Play every step of the lane; a fault ends the timeline, a failed expectation does not."""
        player = player_for(self._target.lane, self.loan.world, self._target.scale, self.loan.workers)
        with closing(player), self._running:
            try:
                self._watcher.begins(self.loan)
                for number, step in enumerate(self._scenario.steps, 1):
                    if self._target.lane in step.lanes:
                        play_step = self._step if self._scenario.traffic is None else self._in_traffic
                        play_step(number, step, player)
                if self._timeline is not None and self._scenario.traffic is not None:
                    traffic = self._timeline.traffic
                    traffic.until(self._scenario.traffic.until)
                    self._running.close()
                    self._watcher.asked(traffic)
                    self._judge_windows(traffic)
                    if self.loan.sets is not None:  # one key after another signed
                        self.loan.sets.must_have_verified(2)
            except (AgentFault, HarnessFault) as error:
                self.fault = error

    def _step(self, number: int, step: Step, player: Player) -> None:
        for request in step.requests():
            self._watcher.asks(step, request)
            self._request(number, step, request, player)
        if step.request is None:
            recording.note(f"step {number}: {step.model_dump(exclude_defaults=True)}")
            self._watcher.happens(step)
            if step.wait is not None and step.wait.signer:
                assert self._timeline and self.loan.sets  # noqa: S101, PT018 - `signed`
                self.loan.sets.await_next(self._timeline.traffic)
            else:
                self._events.act(step)

    def _request(self, number: int, step: Step, request: RequestSpec, player: Player) -> None:
        token = self._mint.token(request.token) if request.token else None
        expectations = {
            name: item
            for name, item in step.expect.items()
            if self._target.lane in self._scenario.checks[name].lanes
        }
        patience = max((item.within or 0.0 for item in expectations.values()), default=0.0)
        bound = self._target.seconds(patience)
        with_reason = any(item.reason is not None for item in expectations.values())
        ask = partial(player.ask, request, token.text if token else "", with_reason=with_reason)
        for seen, asked in asked_for(ask, bound):
            self._in_time(token, expectations, seen)
            differences = {
                name: mismatches(item, seen, self._mint.expiries) for name, item in expectations.items()
            }
            if not any(differences.values()):
                if patience:
                    recording.waited("an answer as expected", asked, bound)
                break
        self._watcher.saw(step, seen, [text for each in differences.values() for text in each])
        where = f"step {number}" + (f" ({step.note})" if step.note else "")
        where += "".join(f", {text}" for text in _variant(step, request))
        for name, differing in differences.items():
            self._proven[name] += 1
            if differing:
                self._fail(where, name, expectations[name], seen, differing, token.text if token else "")

    def _in_time(self, token: Minted | None, expectations: dict[str, Expectation], seen: Observation) -> None:
        """Raise TooSlow for a refusal of a token that has expired meanwhile: the agent is right."""
        hopeful = any(item.allow or item.status == 200 for item in expectations.values())
        if token is not None and token.short and hopeful and not seen.allow and seen.at >= token.expires:
            late = f"the token lived until {token.expires}, the answer came at {seen.at:.1f}"
            raise TooSlow(late)
        if token is not None and token.short and hopeful and seen.allow:
            recording.waited(
                "an answer before a token's end", seen.at - token.minted, token.expires - token.minted
            )

    def _shown_by_event(self, name: str, message: str, sent: str, received: str) -> None:
        """Keep what an event showed of a check; no message: all was well."""
        self._proven[name] += 1
        if message:
            evidence = Evidence(sent=sent, received=received, logs=self._log_tails())
            self._failures.setdefault(name, (message, evidence))

    # --- traffic -------------------------------------------------------------------------------------------

    def _in_traffic(self, number: int, step: Step, player: Player) -> None:
        """Play a step of a timeline at its time, with what is right from then on."""
        spec = self._scenario.traffic
        assert spec is not None  # noqa: S101 - the caller looked
        if step.at is not None:
            if self._timeline is None:
                self._timeline = self._running.enter_context(
                    Timeline(
                        self.loan,
                        self._scenario.flows,
                        self._mint,
                        scale=self._target.scale,
                        rate=spec.rate,
                        connections=spec.connections,
                        fresh=spec.fresh,
                    )
                )
            self._timeline.traffic.until(step.at)
        act = partial(self._step, number, step, player)
        if self._timeline is None:
            act()
        else:
            self._timeline.step(step.name or f"step {number}", step, act)

    def _judge_windows(self, traffic: JudgedTraffic) -> None:
        decide = [step.settles for step in self._scenario.steps]
        decide += [FLOOR if window.p99 else window.recovers for window in self._scenario.windows]
        self._target.seconds(min(filter(None, decide), default=PROCESSING))
        for window in self._scenario.windows:
            found = traffic.judge(window)
            self._proven[window.check] += 1
            self._remarks.setdefault(window.check, []).append(str(found))
            if found.problems and window.check not in self._failures:
                message = f"{found}: {'; '.join(found.problems)}"
                lost = {kind for _, kind, _ in found.bad} == {Kind.LOST}
                if lost and self.loan.certificates is not None:
                    # By a handshake, or with HAProxy's old worker.
                    fault = proxy_fault(self._target.agent, f"{message}: {found.bad[0][2]}")
                    if isinstance(fault, HarnessFault):
                        raise fault
                self._failures[window.check] = (message, self._shown(traffic, found))

    def _shown(self, traffic: JudgedTraffic, found: Finding) -> Evidence:
        """Return the first bad answer, and when each step happened."""
        begin = traffic.steps[BEGIN].begin
        trace = [
            f"{(moment.begin - begin) / NANO:8.3f} s to {(moment.end - begin) / NANO:8.3f} s: {moment.name}"
            for moment in traffic.steps.values()
        ]
        if not found.bad:
            return Evidence(trace="\n".join(trace), logs=self._log_tails())
        entry, kind, why = found.bad[0]
        trace.append(
            f"{(entry.sent - begin) / NANO:8.3f} s to {(entry.received - begin) / NANO:8.3f} s: {kind}, "
            f"flow {entry.question.flow.name}: {why}"
        )
        sent, received = entry.shown
        sent = "\n".join([sent, *readable(entry.question.secret)])
        expected = " or ".join(map(describe, entry.right))
        false_allow = any(each is Kind.FALSE_ALLOW for _, each, _ in found.bad)
        return Evidence(sent, expected, received, "\n".join(trace), self._log_tails(), false_allow)

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
        message, false_allow = f"{where}: {'; '.join(differing)}", falsely_allowed(expected, seen)
        if name in self._failures:  # the evidence is the first step's; every step is named, with its token
            before, evidence = self._failures[name]
            shown = "\n".join(readable(token))
            if shown not in evidence.sent and evidence.sent.count("\nalso ") < _ALSO:
                evidence = replace(evidence, sent=f"{evidence.sent}\nalso {where}:\n{shown}")
            evidence = replace(evidence, false_allow=evidence.false_allow or false_allow)
            self._failures[name] = (f"{before}\n  {message}", evidence)
            return
        evidence = Evidence(
            sent="\n".join(filter(None, [seen.sent, *readable(token)])),
            expected=describe(expected),
            received=seen.received,
            trace=str(seen.trace),
            logs=self._log_tails(),
            false_allow=false_allow,
            bounded=bool(expected.within),
        )
        self._failures[name] = (message, evidence)

    def _log_tails(self) -> dict[str, str]:
        try:
            logs = self.loan.world.logs()
        except Exception as error:  # noqa: BLE001 - a missing log must not hide the failure
            return {"logs": f"could not be read: {error}"}
        return tails(logs)

    def verdict(self, check: PlannedCheck) -> CheckResult:
        """Return the check's result after `run`: its own failure, else the fault that ended the playing."""
        name = check.id.removeprefix(f"{self._scenario.id}.")
        if name in self._failures:
            return blamed(check, CheckFailed(*self._failures[name]))
        if self.fault is None and self._proven[name]:
            return passed(check, "; ".join(self._remarks.get(name, [])))
        fault = self.fault or HarnessFault("no step of this lane bears on it")
        return blamed(check, fault, Evidence(logs=self._log_tails()))


def _variant(step: Step, request: RequestSpec) -> list[str]:
    """Return what tells a request of a step from its others."""
    fields = sorted({field for variant in step.each if len(step.each) > 1 for field in variant})
    return [f"{field} {str(getattr(request, field, ''))[:_VARIANT]!r}" for field in fields]
