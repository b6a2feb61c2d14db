"""The oracle against a running agent: random policies in force one after the other, thousands of questions.

Each policy takes effect by a reload, in one process, on purpose: a verdict, a role or a lifetime that
survives from the policy before is a disagreement too. If an agent declares no reload, it starts again for
each policy. The agent must refuse a policy whose grants conflict, and must then still answer by the policy
before.

Tokens are real: minted here for each question, ES256, by the mock issuer whose keys the agent fetches. Before
the campaign shows the first disagreement, it makes it small: it takes out of policy and token everything
without which agent and oracle still disagree.
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.base.errors import CheckFailed, Evidence, StageError, WireError
from iamroles_scenarios.checks.oracle.answer import said, unlike
from iamroles_scenarios.checks.oracle.generate import DrawnCase, DrawnPolicy, draw, may_conflict, shuffled
from iamroles_scenarios.checks.oracle.judge import Outcome, judge, load_error
from iamroles_scenarios.declarations.results import tails
from iamroles_scenarios.engine.bench import Bench, bench
from iamroles_scenarios.engine.setups import uses
from iamroles_scenarios.jose import mint
from iamroles_scenarios.wire.asker import Asker

if TYPE_CHECKING:
    from iamroles_scenarios.engine.target import Target
    from iamroles_scenarios.stage import World

CASES_PER_WORLD = 60
POLICY = "policy-oracle"
"""The file of what all drawn policies share, in data/worlds/."""
_WINDOW = 64
"""Questions on their way at a time."""
_ASKED_AGAIN = 10
"""Questions by the policy before that the campaign repeats after a refused reload."""
_ANSWER_WITHIN = 20.0


@dataclass(frozen=True, slots=True)
class DrawnQuestion:
    """One drawn case with its token minted, and the oracle's outcome."""

    number: int
    """Number of the case under its policy."""
    case: DrawnCase
    claims: dict[str, Any]
    token: str
    expected: Outcome

    @property
    def check(self) -> dict[str, Any]:
        return {"authorization": f"Bearer {self.token}", **self.case.request}


@dataclass(slots=True)
class CampaignReport:
    """The sums of a campaign."""

    seed: int
    cases: int = 0
    worlds: int = 0
    refused: int = 0
    """Policies with a conflict, which the agent refused as it must."""
    verdicts: Counter[str] = field(default_factory=Counter)
    """Number of questions by outcome: a campaign that only refuses proves little."""
    seconds: float = 0.0

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {name}" for name, count in self.verdicts.most_common())
        return (
            f"seed {self.seed}: {self.cases} cases in {self.worlds} worlds agree, "
            f"{self.refused} worlds refused as they must; {self.seconds:.1f} s ({kinds})"
        )


def again(seed: int, number: int) -> str:
    """Return the command that plays one policy again."""
    return f"iamroles conformance oracle --seed {seed} --world {number}"


class Campaign:
    """Plays policies of a seed against an agent.

    Args:
        here: a bench on a world of its own.
        seed: of the policies.
        shuffled: ask everything a second time, with every list of the policy and of the tokens in another
            order: no answer may change.
    """

    def __init__(self, here: Bench, seed: int, *, shuffled: bool = False) -> None:
        self._here = here
        self._issuer = here.issuer()
        self._keys = list(self._issuer.keys)  # a key that is added later may miss the agent's fetch
        self._force = (_Reloading if here.target.agent.features.get("reload") else _Restarting)(here)
        self.report = CampaignReport(seed)
        self._shuffled = shuffled
        self._before: tuple[DrawnPolicy, list[DrawnQuestion]] | None = None

    def run(self, numbers: Sequence[int], cases: int) -> CampaignReport:
        """Play policies in this order.

        Args:
            numbers: of the seed's policies.
            cases: questions to each.

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

    # --- one policy ----------------------------------------------------------------------------------------

    def _world(self, number: int, cases: int) -> None:
        played = draw(self.report.seed, number, cases)
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

    def _again_shuffled(self, number: int, played: DrawnPolicy) -> None:
        """Play the same policy in another order: the oracle says the same, and so must the agent."""
        other = shuffled(played, self.report.seed + number)
        answer = self._force.take(self._completed(other.policy))
        if not answer.get("reloaded"):
            what = "the agent refuses a policy in another order"
            raise self._failure(number, other, what, received=str(answer))
        self._ask(number, other, self._questions(other), "in another order: ")

    def _must_refuse(self, number: int, played: DrawnPolicy, answer: Mapping[str, Any]) -> None:
        conflict = load_error(played.policy) or ("", "")
        if answer.get("reloaded"):
            what = f"the agent takes up a policy whose grants {conflict[0]} and {conflict[1]} conflict"
            raise self._failure(number, played, what, received=str(answer))
        names = ["grant", *(str(grant["id"]) for grant in played.policy["grants"])]  # the key, or which (6.2)
        if not any(name in str(answer.get("error", "")) for name in names):
            what = "the agent refuses a conflict, but its error names no grant"
            raise self._failure(number, played, what, received=str(answer))
        self.report.refused += 1
        if self._before is not None and self._force.keeps:
            former, questions = self._before
            self._ask(number, former, questions[:_ASKED_AGAIN], "after another policy was refused: ")

    def _ask(self, number: int, played: DrawnPolicy, questions: list[DrawnQuestion], when: str = "") -> None:
        answers = self._answers(number, played, questions)
        for question, answer in zip(questions, answers, strict=True):
            if found := unlike(question.expected, answer):
                what = f"{when}case {question.number} of world {number}: {'; '.join(found)}"
                raise self._failure(number, played, what, question, answer)
            self.report.cases += 1
            self.report.verdicts[question.expected.reason or "allowed"] += 1

    def _answers(
        self, number: int, played: DrawnPolicy, questions: list[DrawnQuestion]
    ) -> list[dict[str, object]]:
        with Asker(self._force.agent.spop_address, timeout=self._here.seconds(_ANSWER_WITHIN)) as asker:
            try:
                return asker.decide_many([question.check for question in questions], window=_WINDOW)
            except WireError as error:
                raise self._failure(number, played, error.message, trace=error.trace) from error

    def _questions(self, played: DrawnPolicy) -> list[DrawnQuestion]:
        now = int(time.time())
        return [self._question(played.policy, number, case, now) for number, case in enumerate(played.cases)]

    def _question(self, policy: Mapping[str, Any], number: int, case: DrawnCase, now: int) -> DrawnQuestion:
        claims = {**case.claims, "iat": now + case.claims["iat"], "exp": now + case.claims["exp"]}
        token = mint({"key": "ES256", "claims": claims, "drop": ["nbf"]}, self._keys, now, self._issuer.url)
        return DrawnQuestion(number, case, claims, token, judge(policy, claims, case.request, now))

    def _completed(self, policy: Mapping[str, Any]) -> dict[str, Any]:
        """Complete a drawn policy with the tables that all of them share."""
        base = self._here.loan.policy
        issuer = {**base["issuers"][0], **policy["issuers"][0]}
        return copy.deepcopy({**base, **policy, "issuers": [issuer]})

    # --- disagreement --------------------------------------------------------------------------------------

    def _failure(
        self,
        number: int,
        played: DrawnPolicy,
        what: str,
        question: DrawnQuestion | None = None,
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
            logs=tails({"agent": self._force.agent.logs()}),
        )
        return CheckFailed(f"{what} (again: {again(self.report.seed, number)})", evidence)

    def _smaller(
        self, policy: Mapping[str, Any], question: DrawnQuestion, answer: Mapping[str, object]
    ) -> tuple[Mapping[str, Any], DrawnQuestion, Mapping[str, object]]:
        """Take parts out of policy and token as long as agent and oracle still disagree."""
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
        self, policy: Mapping[str, Any], number: int, case: DrawnCase
    ) -> tuple[DrawnQuestion, Mapping[str, object]] | None:
        """Return the question and its answer if agent and oracle still disagree."""
        if load_error(policy) is not None:
            return None
        try:
            if not self._force.take(self._completed(policy)).get("reloaded"):
                return None
            question = self._question(policy, number, case, int(time.time()))
            with Asker(self._force.agent.spop_address, timeout=_ANSWER_WITHIN) as asker:
                answer = asker.decide(question.check)
        except (CheckFailed, WireError):
            return None
        return (question, answer) if unlike(question.expected, answer) else None


def _smaller_ones(
    policy: Mapping[str, Any], case: DrawnCase
) -> Iterator[tuple[Mapping[str, Any], DrawnCase]]:
    """Yield policies and cases with one part less."""
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
            yield policy, DrawnCase(claims, case.request)


def _shown(policy: Mapping[str, Any]) -> str:
    """Write a policy with one rule a line."""
    lines = [f'multi_role = "{policy["multi_role"]}", issuer {json.dumps(policy["issuers"][0])}']
    for table in ("roles", "groups", "grants", "denies", "scopes"):
        lines += [f"{table}: {json.dumps(entry)}" for entry in policy[table]]
    return "\n".join(lines)


def _lines(answer: Mapping[str, object]) -> str:
    return "\n".join(f"{name} = {value!r}" for name, value in sorted(answer.items()))


# --- how an agent takes a policy ---------------------------------------------------------------------------


class _Reloading:
    """One agent that reloads; after a refused reload the policy before stays in force."""

    keeps = True

    def __init__(self, here: Bench) -> None:
        self._here = here
        self.agent = here.world.agent

    def take(self, policy: dict[str, Any]) -> Mapping[str, Any]:
        try:
            return self._here.reload(policy)
        except StageError as error:
            raise CheckFailed(f"the agent did not say what came of the reload: {error.message}") from error

    def close(self) -> None:
        """Leave the agent to its world."""


class _Restarting(_Reloading):
    """A fresh agent for each policy, because it cannot reload."""

    keeps = False
    _started: World | None = None

    def take(self, policy: dict[str, Any]) -> Mapping[str, Any]:
        self.close()
        target = self._here.target
        try:
            self._started = target.stage.world(target.agent, policy, haproxy=False)
        except StageError as error:
            if " ended " not in error.message:  # it is late, and did not refuse
                raise
            return {"reloaded": False, "error": error.logs["agent"]}
        uses(self._started)
        self.agent = self._started.agent
        return {"reloaded": True}

    def close(self) -> None:
        if self._started is not None:
            self._started.close()
            self._started = None


# --- whole campaigns ---------------------------------------------------------------------------------------


@contextmanager
def campaign(target: Target, seed: int, *, shuffled: bool = False) -> Iterator[Campaign]:
    """Yield a campaign on a world of its own."""
    with bench(target, POLICY, "policy.oracle.order" if shuffled else "policy.oracle", own=True) as here:
        yield Campaign(here, seed, shuffled=shuffled)


def numbers_for(cases: int) -> list[int]:
    """Number as many policies of a seed as give about `cases` questions, not counting those with a
    conflict."""
    numbers: list[int] = []
    left, number = cases, 0
    while left > 0:
        numbers.append(number)
        if not may_conflict(number):
            left -= CASES_PER_WORLD
        number += 1
    return numbers
