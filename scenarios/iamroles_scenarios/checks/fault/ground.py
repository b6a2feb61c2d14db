"""What checks of faults stand on: questions that are asked while something is broken, and the way back.

Two things must hold whatever breaks. Nobody gets more than the policy gives: a question that must be refused
reaches no backend, and nobody is told another one's name. And when the fault is over, the good are served
within a bound; how long that took is the remark of the check that passed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import HttpFault, StageError
from iamroles_scenarios.checks.proxy.traffic import Turn
from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec
from iamroles_scenarios.engine.bench import EDGE, Bench, own_bench, own_suffix
from iamroles_scenarios.engine.http import HttpConnection
from iamroles_scenarios.engine.observation import Observation, describe
from iamroles_scenarios.engine.players import observed, raw_request
from iamroles_scenarios.engine.target import Target

BACK = 20.0
"""Seconds, times the scale, within which the good are served when a fault is over."""
_ANSWER = 10.0
"""Seconds, times the scale, that a client waits for an answer."""
_POLL = 0.05
ONE = RequestSpec(path="/orders/1")
SERVED = Expectation(status=200, backend="orders-ro")
"""Of `ONE`, for readers."""
FAULTY = (500, 502, 503, 504)
"""What the proxy answers where a part fails."""


@dataclass
class Ground:
    """A gate of its own, and what came of its faults."""

    gate: Bench
    address: tuple[str, int]
    """Where clients ask."""
    recoveries: dict[str, float] = field(default_factory=dict)
    """Seconds from the end of each fault to the first good answer."""

    def ask(self, turn: Turn) -> Observation | None:
        """Ask on a new connection; None where no answer came.

        Raises:
            StageError: the run was ended meanwhile, so that none will come.
        """
        raw = raw_request(turn.request.model_copy(update={"connection": ""}), turn.token, keep=False)
        try:
            with closing(HttpConnection(self.address, self.gate.seconds(_ANSWER))) as line:
                return observed(line.exchange(turn.request.method, raw), raw, [turn.token])
        except HttpFault as error:
            recording.note(f"no answer: {error}")
            if self.gate.world.haproxy.closed:
                raise StageError("the run is over: nobody is asked any more") from error
            return None

    @contextmanager
    def asking(self, turn: Turn) -> Iterator[None]:
        """Somebody asks this meanwhile, and waits; their answer does not matter."""
        somebody = threading.Thread(target=recording.carried(self.ask), args=(turn,), daemon=True)
        somebody.start()
        yield
        somebody.join(self.gate.seconds(2 * _ANSWER))

    def hold(self, what: str, turns: list[Turn], *, served: bool = False) -> None:
        """Ask each of these while something is broken.

        Args:
            what: names the fault.
            turns: questions, and what the policy gives them.
            served: whether the right answer must come; if not, a 5xx or none will do.

        Raises:
            CheckFailed: an answer that the policy does not give.
        """
        for turn in turns:
            seen = self.ask(turn)
            if seen is None or seen.status in FAULTY:
                if served:
                    raise self.gate.failed(f"{what}: not served", seen, describe(turn.expected))
                if seen is not None and seen.allow:
                    raise self.gate.failed(f"{what}: a backend was reached all the same", seen)
            elif turn.wrong(seen):
                raise self.gate.failed(f"{what}: the answer is wrong", seen, turn.expected)

    def unknown(self, what: str, turn: Turn) -> None:
        """Ask this while nobody can tell who asks: the right answer, a refusal or none will do.

        Raises:
            CheckFailed: another answer.
        """
        seen = self.ask(turn)
        if seen is not None and seen.status not in (401, *FAULTY) and turn.wrong(seen):
            raise self.gate.failed(f"{what}: the answer is wrong", seen, turn.expected)

    def recovers(self, what: str, turns: list[Turn]) -> None:
        """The fault is over: everyone is answered rightly within the bound, then and from then on."""
        began = time.monotonic()
        for turn in turns:
            while True:
                seen = self.ask(turn)
                if seen is not None and not turn.wrong(seen):
                    break
                if seen is not None and seen.status not in FAULTY and turn.expected.status == 200:
                    recording.note(f"{what}: {seen.status} after its end")
                if seen is not None and seen.allow and turn.expected.status != 200:
                    raise self.gate.failed(f"{what}, after its end: the answer is wrong", seen, turn.expected)
                if time.monotonic() > began + self.gate.seconds(BACK):
                    raise self.gate.failed(f"{what}: not served {BACK:g} s after its end", seen)
                time.sleep(_POLL)
        self.recoveries[what] = took = time.monotonic() - began
        recording.waited(f"recovery from {what}", took, self.gate.seconds(BACK))
        self.hold(f"{what}, after its end", turns, served=True)

    @property
    def remark(self) -> str:
        """The recoveries, for whoever reads the report."""
        told = [f"{what} {took:.2f} s" for what, took in self.recoveries.items() if what != "start"]
        return "back after " + ", ".join(told)


@contextmanager
def ground(
    target: Target,
    *,
    override: Mapping[str, Any] | None = None,
    settings: Mapping[str, str] | None = None,
    between: Callable[[str, str], str] | None = None,
    suffix: str = "",
) -> Iterator[Ground]:
    """A world of its own; HAProxy waits two seconds for a verdict.

    Args:
        target: agent and stage.
        override: merged over the policy.
        settings: HAProxy's.
        between: see `Stage.world`.
        suffix: what the names of its issuers end in, if they must be known before.
    """
    chosen = {"IAM_TIMEOUT_PROCESSING": f"{round(2000 * target.scale)}ms", **(settings or {})}
    how: dict[str, Any] = {"settings": chosen, "between": between}
    with own_bench(target, "orders", suffix, override=override, **how) as gate:
        yield Ground(gate, (gate.world.proxy.host, gate.world.proxy.port))


Asked = Callable[..., Turn]
"""What is expected of it, and a recipe, to a question with a credential that nobody has shown before."""


@contextmanager
def sts_ground(target: Target, endpoint: str) -> Iterator[tuple[Ground, str, Asked]]:
    """A ground whose agent asks STS at an endpoint; with the host that only its calls name."""
    suffix = own_suffix()
    host = f"fault{suffix}.sts.example"
    table = {
        "name": "sts", "endpoint": endpoint, "hosts": [host], "timeout": "1s",
        "binding_header": "x-iam-edge", "binding_value": EDGE, "insecure_http": True,
    }  # fmt: skip
    with ground(target, override={"sts": [table]}, suffix=suffix) as place:
        cloud = target.stage.cloud
        session, used = place.gate.session(), iter(range(300, 900))

        def asked(expected: Expectation, **recipe: object) -> Turn:
            text = cloud.presign_caller_identity(session, EDGE, {"expires": next(used), **recipe}, host=host)
            return Turn(ONE, text, expected)

        yield place, host, asked
