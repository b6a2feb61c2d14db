"""The oracle against a running agent: random worlds put in force one after the other, thousands of questions.

Each world is taken up by a reload, in one process, on purpose: a verdict, a role or a lifetime that survives
from the world before is a disagreement too. An agent that declares no reload is started anew for each. A
world whose grants conflict must be refused, and the one before must still answer as it did.

Tokens are real: minted here for each question, ES256, by the mock issuer whose keys the agent fetches. The
first disagreement is made small before it is shown: whatever can be taken out of policy and token without the
two agreeing again is taken out.
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.base.errors import CheckFailed, Evidence, StageError, WireError
from iamroles_scenarios.checks.oracle.answer import said, unlike
from iamroles_scenarios.checks.oracle.generate import Case, DrawnWorld, may_conflict, shuffled, world
from iamroles_scenarios.checks.oracle.judge import Outcome, judge, load_error
from iamroles_scenarios.declarations.results import tails
from iamroles_scenarios.declarations.scenario import WorldSpec
from iamroles_scenarios.jose import mint
from iamroles_scenarios.wire.asker import Asker

if TYPE_CHECKING:
    from iamroles_scenarios.engine.target import Target
    from iamroles_scenarios.engine.worlds import Loan
    from iamroles_scenarios.mock.clients import IssuerHandle

CASES_PER_WORLD = 60
WORLD = WorldSpec(policy="policy-oracle", own=True)
_WINDOW = 64
"""Questions on their way at a time."""
_ASKED_AGAIN = 10
"""Questions of the world before that are asked again after a refused reload."""
_RELOAD_WITHIN = 10.0
_ANSWER_WITHIN = 20.0


@dataclass(frozen=True, slots=True)
class Question:
    """One case with its token minted, and what the oracle says."""

    number: int
    """Of the case, in its world."""
    case: Case
    claims: dict[str, Any]
    token: str
    expected: Outcome

    @property
    def check(self) -> dict[str, Any]:
        return {"authorization": f"Bearer {self.token}", **self.case.request}


@dataclass(slots=True)
class CampaignReport:
    """What came of a campaign."""

    seed: int
    cases: int = 0
    worlds: int = 0
    refused: int = 0
    """Worlds that conflict, and were refused as they must."""
    verdicts: Counter[str] = field(default_factory=Counter)
    """How many questions had each outcome: a campaign that only refuses proves little."""
    seconds: float = 0.0

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {name}" for name, count in self.verdicts.most_common())
        return (
            f"seed {self.seed}: {self.cases} cases in {self.worlds} worlds agree, "
            f"{self.refused} worlds refused as they must; {self.seconds:.1f} s ({kinds})"
        )


def again(seed: int, number: int) -> str:
    """The command that plays one world again."""
    return f"iamroles conformance oracle --seed {seed} --world {number}"


class Campaign:
    """Plays worlds of a seed against an agent.

    Args:
        target: the agent, its stage.
        loan: a running world of `WORLD`.
        seed: of the worlds.
        shuffled: ask everything a second time, with every list of the policy and of the tokens in another
            order: no answer may change.
    """

    def __init__(self, target: Target, loan: Loan, seed: int, *, shuffled: bool = False) -> None:
        self._target = target
        self._place = loan
        self._issuer: IssuerHandle = target.worlds.issuer(loan.issuer("corp"))
        self._keys = list(self._issuer.keys)  # a new one might come after the fetch that is under way
        self._force: _Reloading | _Restarting = (
            _Reloading(target, loan) if target.agent.features.get("reload") else _Restarting(target, loan)
        )
        self.report = CampaignReport(seed)
        self._shuffled = shuffled
        self._before: tuple[DrawnWorld, list[Question]] | None = None

    def run(self, numbers: Sequence[int], cases: int) -> CampaignReport:
        """Play worlds in this order.

        Args:
            numbers: which of the seed's worlds.
            cases: questions in each.

        Raises:
            CheckFailed: the first disagreement, made small.
        """
        started = time.monotonic()
        try:
            for number in numbers:
                self._world(number, cases)
        finally:
            self._force.close()
        self.report.seconds = time.monotonic() - started
        return self.report

    # --- one world -----------------------------------------------------------------------------------------

    def _world(self, number: int, cases: int) -> None:
        played = world(self.report.seed, number, cases)
        answer = self._force.take(self._completed(played.policy))
        if not played.loads:
            self._must_refuse(number, played, answer)
            return
        if not answer.get("reloaded"):
            raise self._failure(
                number, played, "the agent refuses a policy that is sound", received=str(answer)
            )
        questions = self._questions(played)
        self._ask(number, played, questions)
        self.report.worlds += 1
        self._before = (played, questions)
        if self._shuffled:
            self._again_shuffled(number, played)

    def _again_shuffled(self, number: int, played: DrawnWorld) -> None:
        """The same world in another order: the oracle says the same, and so must the agent."""
        other = shuffled(played, self.report.seed + number)
        answer = self._force.take(self._completed(other.policy))
        if not answer.get("reloaded"):
            what = "the agent refuses a policy in another order"
            raise self._failure(number, other, what, received=str(answer))
        self._ask(number, other, self._questions(other), "in another order: ")

    def _must_refuse(self, number: int, played: DrawnWorld, answer: Mapping[str, Any]) -> None:
        conflict = load_error(played.policy) or ("", "")
        if answer.get("reloaded"):
            what = f"the agent takes up a policy whose grants {conflict[0]} and {conflict[1]} conflict"
            raise self._failure(number, played, what, received=str(answer))
        ids = [str(grant["id"]) for grant in played.policy["grants"]]
        if not any(name in str(answer.get("error", "")) for name in ids):
            what = "the agent refuses a conflict, but its error names no grant"
            raise self._failure(number, played, what, received=str(answer))
        self.report.refused += 1
        if self._before is not None and self._force.keeps:
            former, questions = self._before
            self._ask(number, former, questions[:_ASKED_AGAIN], "after another policy was refused: ")

    def _ask(self, number: int, played: DrawnWorld, questions: list[Question], when: str = "") -> None:
        answers = self._answers(number, played, questions)
        for question, answer in zip(questions, answers, strict=True):
            if found := unlike(question.expected, answer):
                what = f"{when}case {question.number} of world {number}: {'; '.join(found)}"
                raise self._failure(number, played, what, question, answer)
            self.report.cases += 1
            self.report.verdicts[question.expected.reason or "allowed"] += 1

    def _answers(self, number: int, played: DrawnWorld, questions: list[Question]) -> list[dict[str, object]]:
        with Asker(self._force.address, timeout=_ANSWER_WITHIN * self._target.scale) as asker:
            try:
                return asker.decide_many([question.check for question in questions], window=_WINDOW)
            except WireError as error:
                raise self._failure(number, played, error.message, trace=error.trace) from error

    def _questions(self, played: DrawnWorld) -> list[Question]:
        now = int(time.time())
        return [self._question(played.policy, number, case, now) for number, case in enumerate(played.cases)]

    def _question(self, policy: Mapping[str, Any], number: int, case: Case, now: int) -> Question:
        claims = {**case.claims, "iat": now + case.claims["iat"], "exp": now + case.claims["exp"]}
        token = mint({"key": "ES256", "claims": claims, "drop": ["nbf"]}, self._keys, now, self._issuer.url)
        return Question(number, case, claims, token, judge(policy, claims, case.request, now))

    def _completed(self, policy: Mapping[str, Any]) -> dict[str, Any]:
        """The world file: the generated policy, and what every world has in common."""
        base = self._place.policy
        issuer = {**base["issuers"][0], **policy["issuers"][0]}
        return copy.deepcopy({**base, **policy, "issuers": [issuer]})

    # --- disagreement --------------------------------------------------------------------------------------

    def _failure(
        self,
        number: int,
        played: DrawnWorld,
        what: str,
        question: Question | None = None,
        answer: Mapping[str, object] | None = None,
        *,
        received: str = "",
        trace: str = "",
    ) -> CheckFailed:
        policy: Mapping[str, Any] = played.policy
        if question is not None and answer is not None:
            policy, question, answer = self._smaller(policy, question, answer)
            received = _lines(answer)
        sent = [f"seed {self.report.seed}, world {number}, policy:", _shown(policy)]
        if question is not None:
            claims = {**question.case.claims}
            sent += [
                f"token roles: {claims.get('roles')!r}",
                f"token claims (iat and exp from now): {claims}",
                f"request: {question.case.request}",
            ]
        evidence = Evidence(
            sent="\n".join(sent),
            expected="" if question is None else said(question.expected),
            received=received,
            trace=trace,
            logs=tails({"agent": self._force.logs()}),
        )
        return CheckFailed(f"{what} (again: {again(self.report.seed, number)})", evidence)

    def _smaller(
        self, policy: Mapping[str, Any], question: Question, answer: Mapping[str, object]
    ) -> tuple[Mapping[str, Any], Question, Mapping[str, object]]:
        """Take out of policy and token what the disagreement does not need, as long as something can go."""
        if not self._force.keeps:
            return policy, question, answer
        shrinking = True
        while shrinking:
            shrinking = False
            for smaller_policy, case in _smaller_ones(policy, question.case):
                tried = self._tried(smaller_policy, question.number, case)
                if tried is not None:
                    policy, (question, answer), shrinking = smaller_policy, tried, True
                    break
        return policy, question, answer

    def _tried(
        self, policy: Mapping[str, Any], number: int, case: Case
    ) -> tuple[Question, Mapping[str, object]] | None:
        """The question and its answer if agent and oracle still disagree."""
        if load_error(policy) is not None:
            return None
        try:
            if not self._force.take(self._completed(policy)).get("reloaded"):
                return None
            question = self._question(policy, number, case, int(time.time()))
            with Asker(self._force.address, timeout=_ANSWER_WITHIN) as asker:
                answer = asker.decide(question.check)
        except (CheckFailed, WireError):
            return None
        return (question, answer) if unlike(question.expected, answer) else None


def _smaller_ones(policy: Mapping[str, Any], case: Case) -> Iterator[tuple[Mapping[str, Any], Case]]:
    """Policies and cases with one thing less."""
    for table in ("grants", "denies", "scopes"):
        for index, rule in enumerate(policy[table]):
            without = [*policy[table][:index], *policy[table][index + 1 :]]
            yield {**policy, table: without}, case
            for key in ("hosts", "sources", "shadow", "match"):
                if key in rule:
                    less = {name: value for name, value in rule.items() if name != key}
                    yield {**policy, table: [*policy[table][:index], less, *policy[table][index + 1 :]]}, case
    roles = case.claims["roles"]
    if isinstance(roles, list) and len(roles) > 1:
        for index in range(len(roles)):
            claims = {**case.claims, "roles": [*roles[:index], *roles[index + 1 :]]}
            yield policy, Case(claims, case.request)


def _shown(policy: Mapping[str, Any]) -> str:
    """A policy with one rule a line."""
    lines = [f'multi_role = "{policy["multi_role"]}", issuer {json.dumps(policy["issuers"][0])}']
    for table in ("roles", "groups", "grants", "denies", "scopes"):
        lines += [f"{table}: {json.dumps(entry)}" for entry in policy[table]]
    return "\n".join(lines)


def _lines(answer: Mapping[str, object]) -> str:
    return "\n".join(f"{name} = {value!r}" for name, value in sorted(answer.items()))


# --- how an agent takes a policy ---------------------------------------------------------------------------


class _Reloading:
    """One agent, reloaded: what it refuses leaves the policy before in force."""

    keeps = True

    def __init__(self, target: Target, loan: Loan) -> None:
        self._agent = loan.world.agent
        self._within = _RELOAD_WITHIN * target.scale

    @property
    def address(self) -> str:
        return self._agent.spop_address

    def take(self, policy: dict[str, Any]) -> Mapping[str, Any]:
        try:
            return self._agent.reload(policy, within=self._within)
        except StageError as error:
            raise CheckFailed(f"the agent did not say what came of the reload: {error.message}") from error

    def logs(self) -> str:
        return self._agent.logs()

    def close(self) -> None:
        """Nothing of its own."""


class _Restarting:
    """An agent that cannot reload: a fresh one for each policy."""

    keeps = False

    def __init__(self, target: Target, loan: Loan) -> None:
        self._target = target
        self._close: Callable[[], None] = lambda: None
        self._agent = loan.world.agent

    @property
    def address(self) -> str:
        return self._agent.spop_address

    def take(self, policy: dict[str, Any]) -> Mapping[str, Any]:
        self._close()
        self._close = lambda: None
        try:
            world = self._target.stage.world(self._target.agent, policy, haproxy=False)
        except StageError as error:
            return {"reloaded": False, "error": str(error)}
        self._close, self._agent = world.close, world.agent
        return {"reloaded": True}

    def logs(self) -> str:
        return self._agent.logs()

    def close(self) -> None:
        self._close()


# --- whole campaigns ---------------------------------------------------------------------------------------


@contextmanager
def campaign(target: Target, seed: int, *, shuffled: bool = False) -> Iterator[Campaign]:
    """A campaign on a world of its own that ends with it."""
    with target.worlds.borrow(WORLD, "policy.oracle.order" if shuffled else "policy.oracle") as loan:
        yield Campaign(target, loan, seed, shuffled=shuffled)


def numbers_for(cases: int) -> list[int]:
    """So many worlds of a seed that about `cases` questions are asked in those that load."""
    numbers: list[int] = []
    left, number = cases, 0
    while left > 0:
        numbers.append(number)
        if not may_conflict(number):
            left -= CASES_PER_WORLD
        number += 1
    return numbers
