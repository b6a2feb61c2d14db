"""The fixture of checks of faults: questions that are asked while something is broken, and the way back.

Two things must hold, whatever breaks. The policy is kept: a question that must be refused reaches no backend,
and no answer names another person. And when the fault is over, callers are served within
a bound; how long that took is the remark of the check that passed.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from typing import Any

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import AgentFault, HttpFault, StageError, TooSlow
from iamroles_scenarios.base.polling import polls
from iamroles_scenarios.checks.proxy.traffic import HttpQuestion, person
from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec
from iamroles_scenarios.engine.bench import EDGE, Bench, own_bench
from iamroles_scenarios.engine.http import HttpConnection
from iamroles_scenarios.engine.observation import Observation
from iamroles_scenarios.engine.players import Player, observed, player_for, raw_request
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import Loan
from iamroles_scenarios.stage.breaker import Breaker

BACK = 20.0
"""Seconds, times the scale, within which callers are served when a fault is over."""
_ANSWER = 10.0
"""Seconds, times the scale, that a client waits for an answer."""
_GIVES_UP = 1.0
"""Seconds, times the scale, that the agent waits for keys or STS; HAProxy waits longer. A question and its
answer are two pieces or more."""
ONE = RequestSpec(path="/orders/1")
SERVED = Expectation(status=200, backend="orders-ro")
"""The answer to `ONE` for readers."""
FAULTY = (500, 502, 503, 504)
"""Status codes of the proxy if a part fails."""


class FaultBench(Bench):
    """A world of its own, its callers, and how soon they were served after each fault."""

    breaker: Breaker | None = None
    """Stands between two parts, and the asking part gives up after `_GIVES_UP` at the soonest."""

    def __init__(self, target: Target, loan: Loan, flow: str) -> None:
        super().__init__(target, loan, flow)
        self.address = loan.world.proxy.host, loan.world.proxy.port
        """The address at which clients ask."""
        self.recoveries: dict[str, float] = {}
        """Seconds from the end of each fault to the first good answer."""
        self._numbers = itertools.count(300)

    @cached_property
    def workers(self) -> Player:
        """A client of each worker, on its connections until one breaks: opening them is most of the work."""
        self._clients.append(player_for("gate-spop", self.world, self.target.scale, self.loan.workers))
        return self._clients[-1]

    @cached_property
    def people(self) -> list[HttpQuestion]:
        """One person's questions: those of this fixture if a check gives no others."""
        return person(self, "alice")

    def caller(self, expected: Expectation, **recipe: Any) -> HttpQuestion:  # noqa: ANN401 - recipes hold anything
        """Return a question with an STS credential that was never shown before."""
        text = self.credential(self.reader, expires=next(self._numbers), **recipe)
        return HttpQuestion(ONE, text, expected)

    def send(self, question: HttpQuestion) -> Observation | None:
        """Ask on a new connection; None if no answer came.

        Raises:
            StageError: the run was ended meanwhile, so that none will come.
        """
        request = question.request.model_copy(update={"connection": ""})
        raw = raw_request(request, question.token, keep=False)
        try:
            with closing(HttpConnection(self.address, self.seconds(_ANSWER))) as line:
                return observed(line.exchange(request.method, raw), raw, [question.token])
        except HttpFault as error:
            recording.note(f"no answer: {error}")
            if self.world.haproxy.closed:
                raise StageError("the run is over: no question is asked now") from error
            return None

    @contextmanager
    def waiting(self, question: HttpQuestion) -> Iterator[None]:
        """Have this asked meanwhile, by a client that may wait; its answer does not matter."""

        def ask() -> None:
            with suppress(StageError):  # the run is over
                self.send(question)

        client = threading.Thread(target=recording.carried(ask), daemon=True)
        client.start()
        yield
        client.join(self.seconds(2 * _ANSWER))

    def ask_during(
        self, fault: str, questions: Sequence[HttpQuestion] | None = None, *, served: bool = False
    ) -> int:
        """Ask while something is broken.

        Args:
            fault: names what.
            questions: and what the policy gives them; None: `people`.
            served: whether the right answer must come; if not, a 5xx or no answer passes too.

        Returns:
            How many got a 5xx or no answer.

        Raises:
            CheckFailed: an answer that the policy does not give.
            TooSlow: it must, but the breaker passed the bytes so late that a part may have given up.
        """
        lost = 0
        for question in self.people if questions is None else questions:
            seen = self.send(question)
            if seen is None or seen.status in FAULTY:
                lost += 1
                if served:
                    if self.breaker is not None and self.breaker.longest > self.seconds(_GIVES_UP) / 4:
                        raise TooSlow(f"{fault}: the suite took {self.breaker.longest:.1f} s for its bytes")
                    raise self.failed(f"{fault}: not served", seen, question.expected)
                if seen is not None and seen.allow:
                    raise self.failed(f"{fault}: a backend was reached all the same", seen, question.expected)
            elif question.wrong(seen):
                raise self.failed(f"{fault}: the answer is wrong", seen, question.expected)
        return lost

    def ask_unknown(self, fault: str, question: HttpQuestion) -> None:
        """Ask during an outage: accept the right answer, a refusal, or no answer.

        Raises:
            CheckFailed: another answer.
        """
        seen = self.send(question)
        if seen is not None and seen.status not in (401, *FAULTY) and question.wrong(seen):
            raise self.failed(f"{fault}: the answer is wrong", seen, question.expected)

    def must_recover(
        self, fault: str, questions: Sequence[HttpQuestion] | None = None, *, everywhere: bool = False
    ) -> None:
        """Ask after the fault until every answer is right, and once more from then on.

        Args:
            fault: names it.
            questions: and what the policy gives them; None: `people`.
            everywhere: ask each worker too, without HAProxy, which asks another if one does not answer.

        Raises:
            CheckFailed: that took longer than `BACK`, or an answer gave more than the policy does.
        """
        questions = self.people if questions is None else questions
        began = time.monotonic()
        for question in questions:
            opens = question.expected.status == 200
            for last in polls(began + self.seconds(BACK) - time.monotonic()):
                if (seen := self.send(question)) is not None and not question.wrong(seen):
                    break
                if seen is not None and seen.status not in FAULTY and opens:
                    recording.note(f"{fault}: {seen.status} after its end")
                if seen is not None and seen.allow:
                    raise self.failed(f"{fault}, after its end: the answer is wrong", seen, question.expected)
                if last:
                    raise self.failed(f"{fault}: not served {BACK:g} s after its end", seen)
        self.recoveries[fault] = took = time.monotonic() - began
        recording.waited(f"recovery from {fault}", took, self.seconds(BACK))
        self.ask_during(f"{fault}, after its end", questions, served=True)
        if not everywhere:
            return
        self.workers.close()  # each must take a new connection
        for _last in polls(self.seconds(BACK)):
            if (seen := self.ask_each_worker(questions[0])) is not None and not questions[0].wrong(seen):
                return
        raise self.failed(f"{fault}: a worker does not serve {BACK:g} s after its end", seen)

    def ask_each_worker(self, question: HttpQuestion) -> Observation | None:
        """Ask each worker without HAProxy, which asks another one if the first does not answer.

        Returns:
            The first answer, with `others`; None if a worker gave none.
        """
        if not self.target.agent.spop:
            return self.send(question)
        request = question.request.model_copy(update={"connection": ""})
        try:
            return self.workers.ask(request, question.token, with_reason=False)
        except AgentFault as error:
            recording.note(f"no answer of a worker: {error}")
            self.workers.close()
            return None

    def rotate_through(
        self, faults: Iterable[tuple[str, Callable[[], object]]], mend: Callable[[], object]
    ) -> None:
        """Rotate the issuer's key during each fault: tokens of the key that the agent has go on.

        Args:
            faults: their names, and what breaks.
            mend: ends one.
        """
        for fault, breaks in faults:
            breaks()
            self.issuer().announce()
            self.issuer().adopt()
            new = HttpQuestion(ONE, self.token(sub="bob"), SERVED)
            self.ask_during(fault, served=True)
            self.ask_unknown(f"{fault}, a token of a new key", new)
            mend()
            self.must_recover(fault, [new, *self.people])

    @property
    def remark(self) -> str:
        """The recoveries, as the report shows them."""
        times = [f"{fault} {took:.2f} s" for fault, took in self.recoveries.items() if fault != "start"]
        return "back after " + ", ".join(times)


@contextmanager
def fault_bench(
    target: Target,
    *,
    override: Mapping[str, Any] | None = None,
    sts: str = "",
    between: Callable[[str, str], str] | None = None,
    files: Mapping[str, str] | None = None,
    suffix: str = "",
    start: bool = True,
) -> Iterator[FaultBench]:
    """Lend a world of its own; HAProxy waits two seconds for a verdict.

    Args:
        target: agent and stage.
        override: merged over the policy.
        sts: an endpoint that the agent asks for the bench's host of STS.
        between, files: see `Stage.world`.
        suffix: what the names of its issuers end in, if they must be known before.
        start: wait until callers are served.
    """
    if sts:
        table = {"name": "sts", "endpoint": sts, "hosts": ["fault{suffix}.sts.example"], "timeout": "1s"}
        edge = {"binding_header": "x-iam-edge", "binding_value": EDGE, "insecure_http": True}
        override = {"sts": [{**table, **edge}]}
    how: dict[str, Any] = {"settings": {"IAM_TIMEOUT_PROCESSING": "2s"}, "between": between, "files": files}
    with (
        own_bench(target, "orders", suffix, override=override, **how) as world,
        closing(FaultBench(target, world.loan, "fault")) as here,
    ):
        if start:
            here.must_recover("start", [here.caller(SERVED)] if sts else None)
        yield here
