"""The fixture of checks written in Python: a running world, clients, credentials by recipe, expectations.

Most checks share a world. A check that changes keys or answers has an issuer, or a host of STS, of its own in
that world: what the check does shows nowhere else, and one agent serves all checks. The agent calls the mock
cloud whatever the host of STS is, and sends it as `Host`, so the cloud's counts, faults and last request are
by host. Nothing here knows how an agent works.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import CheckFailed, Evidence, TooSlow
from iamroles_scenarios.base.polling import polls
from iamroles_scenarios.declarations.results import tails
from iamroles_scenarios.declarations.scenario import Expectation, OneOf, RequestSpec, WorldSpec
from iamroles_scenarios.engine import answers
from iamroles_scenarios.engine.credentials import readable
from iamroles_scenarios.engine.events import EVENT_DEADLINE
from iamroles_scenarios.engine.observation import (
    Observation,
    describe,
    differences,
    falsely_allowed,
    mismatches,
)
from iamroles_scenarios.engine.players import Player, asked_for, player_for
from iamroles_scenarios.engine.spread import Spread
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import DEFAULT_ISSUER, Loan
from iamroles_scenarios.jose import mint_for
from iamroles_scenarios.wire.asker import Asker
from iamroles_scenarios.wire.frames import Action

if TYPE_CHECKING:
    from iamroles_scenarios.mock.clients import CloudClient, IssuerHandle, SessionKeys
    from iamroles_scenarios.stage import World
    from iamroles_scenarios.stage.agent_handle import AgentHandle
    from iamroles_scenarios.stage.relay import Relay

CHANGING = frozenset({"identity-cold", "identity-keys", "identity-kids", "identity-stale", "identity-sts"})
"""Shared worlds in which keys or sessions change: each check has an issuer, or a host of STS, of its own."""
_ANSWER, _KEYS = 20.0, 10.0
"""Seconds, times the scale, for an answer to one of many questions, and for the keys of new issuers."""
_WINDOW = 32
"""Questions of a list that are on their way at a time."""
_SHOWN = 8
"""Wrong answers that a failure shows; it counts the rest."""
STS_ACTION = "GetCallerIdentity"
EDGE = "edge-a"
"""The name of this edge, to which STS credentials are bound."""
EARLY = 0.05
"""Seconds by which a credential's end may be noticed early."""
ALLOWED = Expectation(status=200, allow=True, backend="orders-ro")
UNAVAILABLE = Expectation(status=503, allow=False, backend="", reason="keys_unavailable")


def refused(*reasons: str, status: int | list[int] = 401) -> Expectation:
    """Return a refusal, for any of these reasons."""
    reason = OneOf(one_of=list(reasons)) if len(reasons) > 1 else reasons[0]
    return Expectation(status=status, allow=False, backend="", reason=reason)


@dataclass(frozen=True, slots=True)
class SpopQuestion:
    """A question that goes to the agent over SPOP, among many on a connection, and the answer that it must
    get."""

    what: str
    """Names it in a failure."""
    check: Mapping[str, Any]
    """Arguments of the `iam-check`."""
    expected: answers.Expected
    context: Mapping[str, Any] | None = None
    """Arguments of the `iam-context`, where they matter."""


class Bench:
    """A running world on loan to a check, with clients, credentials and expectations.

    Args:
        target: agent and stage.
        loan: the world.
        flow: names the host of STS that credentials are signed for.
        clients: where clients are kept until `close`.
    """

    relay: Relay | None = None
    """Stands between HAProxy and the agent, if the check asked for it."""
    asked = 0
    """Questions of lists so far."""

    def __init__(
        self, target: Target, loan: Loan, flow: str = "", clients: list[Player] | None = None
    ) -> None:
        self.target = target
        self.loan = loan
        self.flow = flow
        self.sts_host = f"{flow}{loan.suffix}.sts.example"
        self._clients: list[Player] = [] if clients is None else clients
        self.when = ""
        """Words before each failure of a question: what happened before."""
        self._credential = ""
        """The credential of the last question, for a failure."""
        self._wrong: list[tuple[str, Evidence]] = []
        """Wrong answers to lists of questions."""

    @property
    def world(self) -> World:
        """The running agent, and HAProxy before it."""
        return self.loan.world

    @property
    def frames(self) -> Relay:
        """The relay of a world that was started with one."""
        assert self.relay is not None  # noqa: S101 - the check asked for it
        return self.relay

    @cached_property
    def client(self) -> Player:
        """This bench's client; other threads use that of `another`."""
        client = player_for(self.target.lane, self.world, self.target.scale, self.loan.workers)
        self._clients.append(client)
        return self._clients[-1]

    def another(self) -> Bench:
        """Make a bench on the same world for another thread, with a client of its own; it closes with this
        bench."""
        return Bench(self.target, self.loan, self.flow, self._clients)

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def seconds(self, seconds: float) -> float:
        return self.target.seconds(seconds)

    @staticmethod
    def now() -> int:
        """Return the epoch seconds."""
        return int(time.time())

    @staticmethod
    def in_time(moment: float, what: str, at: float | None = None) -> None:
        """Hold the judge to a moment, epoch seconds, that its own step had to come before.

        Args:
            moment: which.
            what: names the step.
            at: when the step was done; None: now.

        Raises:
            TooSlow: it came later, so the agent is not to blame: the check is played again with longer times.
        """
        if (late := (time.time() if at is None else at) + EARLY - moment) > 0:
            raise TooSlow(f"the judge was {late:.1f} s late for {what}")

    def failed(
        self,
        message: str,
        seen: Observation | None = None,
        expected: str | Expectation = "",
        received: str = "",
        *,
        bounded: bool = False,
    ) -> CheckFailed:
        """Make a failure with the evidence that a reader needs; `received` stands where nothing was seen."""
        logs = tails(self.world.logs())
        wanted = expected if isinstance(expected, str) else describe(expected)
        if seen is None:
            return CheckFailed(message, Evidence(expected=wanted, received=received, logs=logs))
        sent = "\n".join([seen.sent, *readable(self._credential)])
        false_allow = isinstance(expected, Expectation) and falsely_allowed(expected, seen)
        evidence = Evidence(sent, wanted, seen.received, str(seen.trace), logs, false_allow, bounded)
        return CheckFailed(message, evidence)

    # --- issuers, tokens and the policy ---------------------------------------------------------------------

    def issuer(self, name: str = DEFAULT_ISSUER) -> IssuerHandle:
        """Return the mock issuer that the world's policy means by a name."""
        return self.target.worlds.issuer(self.loan.issuer(name))

    def token(self, issuer: str = DEFAULT_ISSUER, signer: str = "", **recipe: Any) -> str:  # noqa: ANN401 - recipes hold anything
        """Mint a token by recipe (`iamroles_scenarios.jose`), by default with the reader's role."""
        issuers = {name: self.issuer(name) for name in {issuer, signer or issuer}}
        full = {"roles": ["reader"], "issuer": issuer, "signer": signer or issuer, **recipe}
        return mint_for(full, issuers, time.time())

    def reload(self, policy: Mapping[str, Any]) -> dict[str, Any]:
        """Give the agent another policy, and return its answer."""
        answer = dict(self.world.agent.reload(dict(policy), within=self.seconds(EVENT_DEADLINE)))
        recording.note(f"reload with another policy: {answer}")
        return answer

    def must_reload(self, policy: Mapping[str, Any], what: str) -> None:
        """Give the agent another policy, which is sound.

        Raises:
            CheckFailed: the agent turns it down.
        """
        answer = self.reload(policy)
        if not answer.get("reloaded"):
            raise self.failed(f"a sound policy was turned down ({what}): {answer.get('error', answer)}")

    def revoke(self, agent: AgentHandle | None = None, **revocation: Any) -> None:  # noqa: ANN401 - any members
        """Write the one revocation of the world's agent, or of another; without members, revoke nothing."""
        self.revoke_all([{"id": "now", **revocation}] if revocation else [], agent)

    def revoke_all(self, rows: Iterable[Mapping[str, Any]], agent: AgentHandle | None = None) -> None:
        """Write the file of revocations."""
        lines = ["# nothing"]
        for row in rows:
            lines.append("[[revocations]]")
            for key, value in row.items():
                lines.append(f"{key} = {value if isinstance(value, datetime) else json.dumps(value)}")
        (agent or self.world.agent).put("revocations.toml", "\n".join([*lines, ""]))

    # --- STS ------------------------------------------------------------------------------------------------

    @property
    def cloud(self) -> CloudClient:
        return self.target.stage.cloud

    @cached_property
    def reader(self) -> SessionKeys:
        """A session of the reader's role."""
        return self.session()

    def session(self, role: str = "reader", account: str = "111111111111", name: str = "") -> SessionKeys:
        """Open a session of a role, and create the role if it is missing."""
        arn = self.cloud.account(account).ensure_role(role)
        return self.cloud.assume(arn, name or f"s-{secrets.token_hex(4)}")

    def credential(self, keys: SessionKeys, now: float | None = None, **recipe: Any) -> str:  # noqa: ANN401 - recipes hold anything
        """Pre-sign a GetCallerIdentity for this bench's host, soundly or by recipe (`mock.presign`)."""
        return self.cloud.presign_caller_identity(keys, EDGE, recipe, host=self.sts_host, now=now)

    def sts_calls(self) -> int:
        """Count the agent's calls of this bench's host of STS."""
        return self.cloud.counters().get(f"{STS_ACTION}@{self.sts_host}", 0)

    def sts_fault(self, kind: str, **parameters: Any) -> None:  # noqa: ANN401 - parameters of a fault
        """Put a fault on the answers of this bench's host of STS."""
        self.cloud.fault(f"{STS_ACTION}@{self.sts_host}", kind, **parameters)

    def sts_clear(self) -> None:
        """End the fault of this bench's host of STS."""
        self.cloud.clear(f"{STS_ACTION}@{self.sts_host}")

    # --- one question at a time -----------------------------------------------------------------------------

    def ask(self, token: str, *, with_reason: bool = True, **request: Any) -> Observation:  # noqa: ANN401 - fields of RequestSpec
        """Ask for the reader's route, or as the request says."""
        self._credential = token
        return self.client.ask(RequestSpec(**request), token, with_reason=with_reason)

    def expect(
        self,
        what: str,
        token: str,
        expected: Expectation,
        *,
        within: float = 0.0,
        prompt: float = 0.0,
        **request: Any,  # noqa: ANN401 - fields of RequestSpec
    ) -> Observation:
        """Ask until it is as expected.

        Args:
            what: names the question in a failure.
            token: the credential.
            expected: the answer.
            within: seconds, times the scale, in which the question is repeated.
            prompt: seconds, times the scale, that the answer may take; 0: no bound.
            request: fields of the request, if it is not for the reader's route.

        Raises:
            CheckFailed: it never was.
        """
        began = time.monotonic()
        recording.note(f"{what}: expected {describe(expected)}")
        for seen, asked in asked_for(partial(self.ask, token, **request), self.seconds(within)):
            differing = mismatches(expected, seen, {})
            took = time.monotonic() - began
            if not differing and prompt and took > self.seconds(prompt):
                differing = [f"the answer took {took:.1f} s, at most {prompt:g} s"]
            elif not differing:
                if within or prompt:
                    recording.waited(what, took if prompt else asked, self.seconds(prompt or within))
                return seen
        message = f"{self.when}{what}: {'; '.join(differing)}"
        raise self.failed(message, seen, expected, bounded=within > 0)

    # --- lists of questions ---------------------------------------------------------------------------------

    @contextmanager
    def asking(self, within: float = _ANSWER) -> Iterator[None]:
        """Hold a connection to each worker for lists of questions; at the end, fail if an answer was wrong.

        Args:
            within: seconds, times the scale, for each answer.
        """
        with Spread(self.world.agent, self.loan.workers, self.seconds(within)) as self.spread:
            yield
        if self._wrong:
            sentences = [sentence for sentence, _ in self._wrong]
            rest = [f"and {len(sentences) - _SHOWN} more"] if len(sentences) > _SHOWN else []
            evidence = self._wrong[0][1]
            evidence.logs.update(tails(self.world.logs()))
            evidence = replace(evidence, false_allow=any(one.false_allow for _, one in self._wrong))
            raise CheckFailed("; ".join([*sentences[:_SHOWN], *rest]), evidence)

    def ask_all(
        self,
        questions: Sequence[SpopQuestion],
        when: str = "",
        *,
        window: int = _WINDOW,
        again: bool = True,
        keys: bool = False,
    ) -> None:
        """Ask each worker a list of questions in order, which fills its memory, and the first also backwards.

        An answer that depends on what was asked before is wrong in one of the two. All workers run one code.

        Args:
            questions: the list.
            when: words before each failure, such as `after the reload: `.
            window: questions on their way at a time; 1 keeps them in order.
            again: False: ask them only backwards.
            keys: repeat those that lack keys, which the agent fetches after a reload.
        """
        ordered, back = list(questions), list(reversed(questions))
        workers = self.spread.askers()
        for worker in workers:
            listed = ordered if again else back
            ask = partial(self.repeated, _lacks_keys, _KEYS) if keys else self.actions
            self.judge(listed, ask(listed, window=window, of=worker), when)
        if again:
            self.judge(back, self.actions(back, window=window, of=workers[0]), when)

    def actions(
        self, questions: Sequence[SpopQuestion], *, window: int = _WINDOW, of: Asker | None = None
    ) -> list[list[Action]]:
        """Ask one worker, and return the actions of each answer."""
        asker = of or self.spread.askers()[0]
        return asker.actions_of([(each.check, each.context) for each in questions], window=window)

    def judge(
        self, questions: Sequence[SpopQuestion], found: Sequence[Sequence[Action]], when: str = ""
    ) -> None:
        """Compare answers with the expected ones, and note the faults."""
        for question, actions in zip(questions, found, strict=True):
            self.asked += 1
            seen = answers.read(actions)
            wrong = [*differences(question.expected, {**answers.UNSET, **seen}), *answers.faults(actions)]
            if wrong:
                named = "reason" in seen and "reason" not in question.expected
                reason = f" ({seen['reason']})" if named else ""
                self.note_wrong(f"{when}{question.what}: {', '.join(wrong)}{reason}", question, seen)

    def note_wrong(
        self, sentence: str, question: SpopQuestion | None = None, seen: Mapping[str, object] | None = None
    ) -> None:
        """Keep a fault of the agent for the end of `asking`."""
        if sentence in (known for known, _ in self._wrong):
            return
        check = {} if question is None else question.check
        shown = {key: value for key, value in check.items() if key != "authorization"}
        sent = "\n".join([f"iam-check {shown}", *readable(str(check.get("authorization")).partition(" ")[2])])
        received = "\n".join(f"{name} = {value!r}" for name, value in sorted((seen or {}).items()))
        expected = str(dict(question.expected)) if question is not None else ""
        false_allow = question is not None and question.expected.get("allow") is False
        false_allow = false_allow and (seen or {}).get("allow") is True
        self._wrong.append((sentence, Evidence(sent, expected, received, false_allow=false_allow)))

    def wait_for_keys(self, questions: Sequence[SpopQuestion]) -> None:
        """Ask without judging until no answer is `keys_unavailable`: the agent then has new issuers' keys."""
        for worker in self.spread.askers():
            self.repeated(_lacks_keys, _KEYS, questions, of=worker)

    def repeated(
        self,
        lacks: Callable[..., object],
        within: float,
        questions: Sequence[SpopQuestion],
        **how: Any,  # noqa: ANN401 - of `actions`
    ) -> list[list[Action]]:
        """Ask one worker, and again what its answer `lacks` within some seconds; return the last actions."""
        found: dict[int, list[Action]] = {}
        left = dict(enumerate(questions))
        for _last in polls(self.seconds(within)):
            found |= zip(left, self.actions(list(left.values()), **how), strict=True)
            left = {number: each for number, each in left.items() if lacks(each, answers.read(found[number]))}
            if not left:
                break
        return [found[number] for number in range(len(questions))]


def _lacks_keys(question: SpopQuestion, seen: Mapping[str, object]) -> bool:
    unavailable = "keys_unavailable"
    return seen.get("reason") == unavailable and unavailable not in str(question.expected.get("reason"))


@contextmanager
def bench(
    target: Target,
    policy: str,
    owner: str = "",
    *,
    own: bool = False,
    changes: bool = False,
    flow: str = "",
    **override: Any,  # noqa: ANN401 - a policy's tables
) -> Iterator[Bench]:
    """Yield a bench on a world of a policy in `data/worlds/`; a shared world lasts while it is used.

    Args:
        target: agent and stage.
        policy: file name of the policy.
        owner: names an own world.
        own: whether the check disturbs its world.
        changes: whether something changes in it though it is shared.
        flow: names the host of STS that credentials are signed for.
        override: merged over the policy.
    """
    changes = changes or own or policy in CHANGING
    spec = WorldSpec(policy=policy, override=override, own=own, changes=changes)
    with target.worlds.borrow(spec, owner) as loan, closing(Bench(target, loan, flow)) as found:
        yield found


@contextmanager
def own_bench(
    target: Target,
    policy: str,
    suffix: str = "",
    *,
    override: Mapping[str, Any] | None = None,
    agents: Literal[1, 2] = 1,
    flow: str = "",
    **how: Any,  # noqa: ANN401 - of `Worlds.start`
) -> Iterator[Bench]:
    """Yield a bench on a world that is started for it.

    Args:
        target: agent and stage.
        policy: file name of the policy.
        suffix: what the names of its issuers end in, if they must be known before.
        override: merged over the policy.
        agents: how many are behind HAProxy.
        flow: names the host of STS that credentials are signed for.
        how: passed to `Worlds.start`.
    """
    spec = WorldSpec(policy=policy, override=dict(override or {}), own=True, changes=True, agents=agents)
    loan = target.worlds.start(spec, suffix or own_suffix(), **how)
    with closing(loan), closing(Bench(target, loan, flow)) as found:
        yield found


def own_suffix() -> str:
    """Return an end for names that no other check uses."""
    return f"-{uuid.uuid4().hex[:8]}"


@contextmanager
def beside(here: Bench, work: Callable[[Bench, threading.Event], None], threads: int) -> Iterator[None]:
    """Let other clients work in threads, until the context ends and sets their event; raise their errors."""
    ended = threading.Event()
    with ThreadPoolExecutor(threads, thread_name_prefix="beside") as pool:
        working = [pool.submit(recording.carried(work), here.another(), ended) for _ in range(threads)]
        try:
            yield
        finally:
            ended.set()
    for each in working:
        each.result()


class Pending:
    """A question asked in a thread of its own, while others are asked."""

    def __init__(self, asker: Bench, token: str) -> None:
        self.seen: Observation | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=recording.carried(self._run), args=(asker, token), daemon=True)
        self._thread.start()

    def _run(self, asker: Bench, token: str) -> None:
        try:
            self.seen = asker.ask(token)
        except Exception as error:  # noqa: BLE001 - raised where the answer is wanted
            self.error = error

    def answer(self, within: float) -> Observation:
        """Wait for the answer.

        Args:
            within: seconds.

        Raises:
            CheckFailed: no answer came.
        """
        self._thread.join(within)
        if self.error is not None:
            raise self.error
        if self.seen is None:
            raise CheckFailed(f"no answer within {within:g} s")
        return self.seen
