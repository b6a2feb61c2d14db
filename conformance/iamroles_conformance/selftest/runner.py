"""Runs mutants against the checks that must catch them, side by side on one stage.

A mutant is played against the checks that name one of its ids, each in its cheapest lane: straight over SPOP
if that lane has the check, through HAProxy if not. An id has killed once one of its checks FAILs; UNTESTABLE
and HARNESS_ERROR kill nothing. Play ends when each id has killed, unless everything that turns red is
recorded. The unmodified agent runs first, as the baseline: a check that does not pass on it kills nothing.

Before its own checks each mutant plays `ALIVE`, ten checks that nearly every mutant passes. A mutant that
fails most of them, beside those that name its ids, has crashed and proves nothing.

The tolerant twin is the opposite: an agent with one permitted behaviour, or all of them, plays every MUST of
`core`. A check that turns red there accuses falsely and is wrong.

A surviving mutant also plays all other checks of its lanes, to tell which of two is wrong: if another check
catches it, the mutant's ids; if none does, its checks.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace

from iamroles_conformance.selftest.registry import Mutant
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.declarations.results import CheckResult, Verdict
from iamroles_scenarios.declarations.scenario import PROXY_LANES, Lane, PlannedCheck
from iamroles_scenarios.engine import wire_lane
from iamroles_scenarios.engine.jobs import jobs_of
from iamroles_scenarios.engine.run import Options, Run
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.wire_target import wire_target
from iamroles_scenarios.engine.worlds import Worlds
from iamroles_scenarios.stage import AgentSpec, Stage
from iamroles_scenarios.stage.rendering import SHIPPED

_CHILD = "iamroles_conformance.selftest.mutants"
_CHEAPEST = ("wire", "gate-spop", "gate", "proxy")
_WAITING = ("fault.", "fire.")
"""Families whose checks mostly wait for a clock."""
ALIVE = (
    "wire.hello.items",
    "wire.message.none",
    "wire.ack.stream-zero",
    "wire.type.near-maximum",
    "gate.allow.route",
    "gate.allow.specific",
    "gate.overlap.single",
    "gate.overlap.requested",
    "gate.no-token.refused",
    "gate.expired.refused",
)
"""Cheap checks of whether an agent still works apart from what its mutant breaks: 0.15 s a mutant."""
BREAK_MOST = {
    "fault.end-of-proxy",
    "gate.one-behind",
    "gate.tires-of-connections",
    "proxy.one-behind",
    "wire.ack-one-of-two",
    "wire.unset-three-arguments",
}
"""Mutants that break most of `ALIVE` by their nature. They do not play it."""
SIDE_BY_SIDE = 8
"""Mutants at a time, on two cores or more. Each is an agent of its own; most wait for a clock."""


@dataclass(frozen=True, slots=True)
class MutantResult:
    """The outcome of a mutant."""

    mutant: Mutant
    killed: dict[str, list[str]]
    """The checks of each id that turned red."""
    also: list[str] = field(default_factory=list)
    """If it survived: the checks of other ids that turned red."""
    trouble: str = ""
    """Why it could not be judged, or proves nothing."""
    red: dict[str, str] = field(default_factory=dict)
    """Messages of the checks that turned red, and of those of `ALIVE` that did not pass."""
    alone: bool = False
    """True if it survived beside other mutants, and was judged again by itself."""

    @property
    def survived(self) -> list[str]:
        """The ids that did not catch it."""
        return [name for name, checks in self.killed.items() if not checks]

    @property
    def caught(self) -> bool:
        return not self.trouble and not self.survived


@dataclass(frozen=True, slots=True)
class Accusation:
    """A check of `core` that does not pass on an agent that does only what is permitted."""

    check: str
    verdict: str
    message: str


class Selftest:
    """One run of the self-test; thread-safe after `baseline`.

    Args:
        stage: starts the agents. All mutants share it; each has issuers of its own.
        spec: the reference agent's `agent.toml`.
        scale: multiplies deadlines.
    """

    def __init__(self, stage: Stage, spec: AgentSpec, *, scale: float = 1.0) -> None:
        self._stage = stage
        self._spec = spec
        self._scale = scale
        self._numbers = itertools.count(1)
        self._planned = cheapest(plan())
        self._unsound: set[str] = set()
        self._lock = threading.Lock()

    def checks_for(self, ids: Iterable[str]) -> list[PlannedCheck]:
        """Return the checks that name any of these ids."""
        wanted = set(ids)
        return [check for check in self._planned if wanted & set(check.requirements)]

    def baseline(self, chosen: Sequence[Mutant]) -> list[CheckResult]:
        """Play the sound agent. Return the results that are not PASS; these checks will kill nothing."""
        checks = self._and(set(ALIVE), self.checks_for({name for found in chosen for name in found.kills}))
        red = self._failing(self._mutated([]), checks, (Verdict.PASS,))
        self._unsound = {result.check for result in red}
        return red

    def run(
        self,
        chosen: Sequence[Mutant],
        *,
        side_by_side: int = SIDE_BY_SIDE,
        on_outcome: Callable[[MutantResult], None] = lambda _outcome: None,
        whole: bool = False,
    ) -> list[MutantResult]:
        """Judge mutants, and return the outcomes in the order given.

        Side by side, a mutant whose timing alone shows it may survive. So survivors are judged again at the
        end, each by itself; the outcome says so (`MutantResult.alone`).
        """

        def report(outcome: MutantResult) -> MutantResult:
            with self._lock:
                on_outcome(outcome)
            return outcome

        def first(mutant: Mutant) -> MutantResult:
            outcome = self.judge(mutant, explain=False, whole=whole)
            return report(outcome) if outcome.caught else outcome

        order = _spread(chosen)
        with ThreadPoolExecutor(side_by_side, thread_name_prefix="mutant") as pool:
            found = dict(zip(order, pool.map(first, [chosen[at] for at in order]), strict=True))
        for at in order:
            if not found[at].caught:
                found[at] = report(replace(self.judge(chosen[at], whole=whole), alone=True))
        return [found[at] for at in sorted(found)]

    def judge(self, mutant: Mutant, *, explain: bool = True, whole: bool = False) -> MutantResult:
        """Play one mutant against its checks. Nothing that the mutant does is raised.

        Args:
            mutant: the mutant.
            explain: if it survives, look for other checks that catch it.
            whole: play all its checks, also after each id has killed.
        """
        checks = self.checks_for(mutant.kills)
        lacking = [name for name in mutant.kills if not any(name in check.requirements for check in checks)]
        if lacking:
            return MutantResult(mutant, {}, trouble=f"no check names {', '.join(lacking)}")
        spec = self._mutated([mutant])
        alive = set() if mutant.id in BREAK_MOST else set(ALIVE)

        def enough(found: list[CheckResult]) -> bool:
            played = {result.check for result in found}
            return not whole and played >= alive and all(self._killed(mutant, found).values())

        try:
            results = self._run(spec, self._and(alive, checks), enough)
        except Exception as error:  # noqa: BLE001 - a mutant that cannot be started has proven nothing
            return MutantResult(mutant, {}, trouble=f"{type(error).__name__}: {error}")
        named = {check.id for check in checks}
        failed = [one for one in results if one.verdict is not Verdict.PASS]
        red = {
            one.check: one.message
            for one in failed
            if one.check in alive or (one.check in named and self._turned_red(one))
        }
        beside = sorted({one.check for one in failed if one.check in alive} - named)
        crashed = 2 * len(beside) > len(alive - named)
        trouble = f"it breaks too much, also {', '.join(beside)}" if crashed else ""
        if mutant.apply.proxy:
            # A message that quotes the child's command says that it did not render: an edit changed nothing.
            trouble = next((one.message for one in results if _CHILD in one.message), trouble)
        outcome = MutantResult(mutant, self._killed(mutant, results), trouble=trouble, red=red)
        return self._explained(outcome, spec, results) if outcome.survived and explain else outcome

    def tolerant(self, behaviours: Sequence[Mutant]) -> list[Accusation]:
        """Return the MUSTs of `core` that accuse a twin with these behaviours of `registry.permitted`."""
        checks = [check for check in self._planned if check.must and check.grade == "core"]
        fine = (Verdict.PASS, Verdict.NOT_APPLICABLE)
        red = self._failing(self._mutated(behaviours), checks, fine)
        return [Accusation(one.check, one.verdict.value, one.message) for one in red]

    def _failing(
        self, spec: AgentSpec, checks: list[PlannedCheck], fine: tuple[Verdict, ...]
    ) -> list[CheckResult]:
        """Return what is not fine; judge by itself what is untestable beside the others, as mutants are."""
        found = self._whole(spec, checks)
        late = {result.check for result in found if result.verdict is Verdict.UNTESTABLE}
        found = [result for result in found if result.check not in late]
        if alone := [check for check in checks if check.id in late]:
            found += self._whole(spec, alone)
        return [result for result in found if result.verdict not in fine]

    def _explained(self, outcome: MutantResult, spec: AgentSpec, results: list[CheckResult]) -> MutantResult:
        """Add to a survivor which other checks catch it, or what kept its own from judging."""
        strange = [r for r in results if r.verdict in (Verdict.UNTESTABLE, Verdict.HARNESS_ERROR)]
        if strange:
            return replace(outcome, trouble=f"{strange[0].check}: {strange[0].verdict}: {strange[0].message}")
        lanes = {check.lane for check in self.checks_for(outcome.mutant.kills)}
        tried = {result.check for result in results}
        others = [check for check in self._planned if check.lane in lanes and check.id not in tried]
        try:
            rest = self._whole(spec, others)
        except Exception:  # noqa: BLE001 - only an explanation
            return outcome
        red = (Verdict.FAIL, Verdict.WARNING, Verdict.DEPARTURE)
        return replace(outcome, also=[result.check for result in rest if result.verdict in red])

    def _and(self, first: set[str], checks: list[PlannedCheck]) -> list[PlannedCheck]:
        """Return the checks, after those of the ids in `first`."""
        alive = [check for check in self._planned if check.id in first]
        return alive + [check for check in checks if check.id not in first]

    def _killed(self, mutant: Mutant, results: list[CheckResult]) -> dict[str, list[str]]:
        red = [result for result in results if self._turned_red(result)]
        return {name: [one.check for one in red if name in one.requirements] for name in mutant.kills}

    def _turned_red(self, result: CheckResult) -> bool:
        return result.verdict is Verdict.FAIL and result.check not in self._unsound

    def _mutated(self, chosen: Sequence[Mutant]) -> AgentSpec:
        """Describe the reference agent with these mutants in it, and in its rendering for HAProxy."""
        ids = ",".join(mutant.id for mutant in chosen)
        child = (sys.executable, "-m", _CHILD, ids)
        spec = replace(
            self._spec, name=f"mutant {ids}".rstrip(), build="", command=(*child, *self._spec.command[1:])
        )
        if any(mutant.apply.proxy for mutant in chosen):
            return replace(spec, haproxy={**spec.haproxy, "render": [*child, *SHIPPED[1:]]})
        return spec

    def _whole(self, spec: AgentSpec, checks: list[PlannedCheck]) -> list[CheckResult]:
        """Play all of these checks against an agent, many at a time."""
        namespace = f"-s{next(self._numbers)}"
        options = Options(scale=self._scale)
        with Run(spec, checks, options, stage=self._stage, namespace=namespace) as run:
            return list(run.results())

    def _run(
        self, spec: AgentSpec, checks: list[PlannedCheck], enough: Callable[[list[CheckResult]], bool]
    ) -> list[CheckResult]:
        """Play checks of any lanes against an agent started for them, until the results are enough."""
        through_haproxy = any(check.lane in PROXY_LANES for check in checks)
        namespace = f"-s{next(self._numbers)}"
        worlds = Worlds(self._stage, spec, haproxy=through_haproxy, namespace=namespace, scale=self._scale)
        results: list[CheckResult] = []
        with closing(worlds):
            for found in self._played(spec, worlds, checks):
                results += found
                if enough(results):
                    break
        return results

    def _played(
        self, spec: AgentSpec, worlds: Worlds, checks: list[PlannedCheck]
    ) -> Iterator[list[CheckResult]]:
        chosen = {check.id for check in checks}
        for job in sorted(jobs_of(checks), key=lambda job: _CHEAPEST.index(job.lane)):
            lane: Lane = "gate" if job.through_proxy else "gate-spop"
            target = Target(lane, self._stage, spec, worlds, self._scale, replays=False)
            if job.lane == "wire":
                with wire_target(target) as pointed:
                    found = wire_lane.run(pointed, job.checks, replays=False)
            else:
                found = job.play(target)
            yield [result for result in found if result.check in chosen]


def cheapest(planned: list[PlannedCheck]) -> list[PlannedCheck]:
    """Return each check once, in the cheapest lane that has it."""
    found: dict[str, PlannedCheck] = {}
    for check in sorted(planned, key=lambda check: _CHEAPEST.index(check.lane)):
        found.setdefault(check.id, check)
    return list(found.values())


def _spread(chosen: Sequence[Mutant]) -> list[int]:
    """Return their indices, those that wait spread among the rest. Otherwise they would fill all threads."""
    waiting = [at for at, mutant in enumerate(chosen) if mutant.id.startswith(_WAITING)]
    order = [at for at in range(len(chosen)) if at not in waiting]
    step = len(order) // (len(waiting) + 1) + 1
    for number, at in enumerate(waiting):
        order.insert(number * step, at)
    return order
