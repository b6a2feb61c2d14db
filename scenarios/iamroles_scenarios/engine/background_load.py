"""Background load: traffic that flows beside all checks of a run, and is judged itself.

A separate gate, with the policy `orders`, gets callers that must be allowed, callers that must not, and
tokens that live for seconds; every answer must be right for as long as the run lasts. Each world that checks
share gets strangers, without a credential or with nonsense, which any policy must refuse. So the agents that
are judged are busy, and so is the host.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from iamroles_scenarios.base.errors import SuiteError
from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec, WorldSpec
from iamroles_scenarios.engine.judged_traffic import PATIENCE, JudgedTraffic
from iamroles_scenarios.engine.ledger import DEAD, Flow, Kind, Outcomes
from iamroles_scenarios.jose import mint_for
from iamroles_scenarios.traffic.polling import NANO, now

if TYPE_CHECKING:
    from iamroles_scenarios.engine.worlds import Loan, Worlds

_SHARE = 10
"""A shared world gets the rate divided by this."""
_LIFE, _RENEWAL = 3, 1.0
"""Seconds that a short token lives, and after which the next is minted; times the scale."""
_LONG_AGO = 600.0
"""Seconds since a token was minted that was dead before the run."""
_LOOK = 1.0
"""Seconds between two looks at what came."""
_SHUT = Expectation(status=401, allow=False, backend="")
_SETTINGS = {"IAM_TIMEOUT_PROCESSING": "30s"}
"""A host under load is late, which is not the agent's fault."""


class BackgroundLoad:
    """The background load of a run.

    Args:
        worlds: of the run.
        rate: questions a second to the gate of its own.
        scale: multiplies deadlines.
    """

    def __init__(self, worlds: Worlds, rate: float, scale: float) -> None:
        self._worlds, self.rate, self._scale = worlds, rate, scale
        self._began = self._ended = time.monotonic()
        self._flowing: dict[int, tuple[JudgedTraffic, Outcomes]] = {}
        """By the id of the world's loan."""
        self._outcomes: list[Outcomes] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._own: Loan | None = None
        self._thread = threading.Thread(target=self._judge, name="load", daemon=True)
        self.faults: list[str] = []

    def begin(self) -> None:
        """Bring up its own gate and begin."""
        spec = WorldSpec(policy="orders", settings=_SETTINGS)
        self._own = self._worlds.start(spec, f"{self._worlds.namespace}-load", haproxy=True)
        self._put_on(self._own, self._ask_all, self.rate)
        self._worlds.on_shared, self._worlds.on_release = self._share, lambda loan: self._take_off(id(loan))
        self._thread.start()

    def end(self) -> None:
        """Stop all of it; idempotent."""
        self._worlds.on_shared = self._worlds.on_release = None
        if self._over.is_set():
            return
        self._over.set()
        with suppress(RuntimeError):  # never started
            self._thread.join()
        for key in list(self._flowing):
            self._take_off(key)
        if self._own is not None:
            self._own.close()
        self._ended = time.monotonic()

    # --- traffic -------------------------------------------------------------------------------------------

    def _ask_all(self, loan: Loan, traffic: JudgedTraffic) -> None:
        issuer = self._worlds.issuer(loan.issuer("corp"))

        def token(name: str, life: float, role: str, ago: float = 0.0) -> tuple[str, float]:
            at = time.time() - ago
            expires = int(at + life)
            recipe = {"roles": [role], "issuer": "corp", "sub": name, "exp": expires}
            return mint_for(recipe, {"corp": issuer}, at, default="corp"), expires

        shut = Expectation(status=403, allow=False, backend="")
        for name, role, life, renewal, weight in (
            ("ann", "reader", 1800.0, 600.0, 3.0),
            ("bob", "writer", 1800.0, 600.0, 1.0),
            ("eve", "reader", _LIFE * self._scale + 1, _RENEWAL * self._scale, 1.0),
        ):
            opens = Expectation(status=200, allow=True, backend="orders-ro", principal=name)
            flow = Flow(name, RequestSpec(), opens if role == "reader" else shut, weight=weight)
            traffic.ask(flow, mint=partial(token, name, life, role), renew=renewal)
        # A token that ended long ago: a run may be over before eve's first token ends.
        dead = partial(token, "old", _LIFE, "reader", ago=_LONG_AGO)
        traffic.ask(Flow("old", RequestSpec(), DEAD, weight=0.5), mint=dead)
        self._ask_strangers(loan, traffic)

    def _ask_strangers(self, _place: Loan, traffic: JudgedTraffic) -> None:
        traffic.ask(Flow("nobody", RequestSpec(), _SHUT))
        traffic.ask(Flow("nonsense", RequestSpec(), _SHUT, weight=0.5), mint=lambda: ("nonsense", 0.0))

    def _share(self, loan: Loan) -> None:
        """Put strangers before a world that checks share."""
        self._put_on(loan, self._ask_strangers, max(1.0, self.rate / _SHARE))

    def _put_on(self, loan: Loan, ask: Callable[[Loan, JudgedTraffic], None], rate: float) -> None:
        address = loan.world.proxy.host, loan.world.proxy.port
        traffic = JudgedTraffic(address, rate=rate, connections=8, scale=self._scale)
        ask(loan, traffic)
        traffic.start()
        outcomes = Outcomes(traffic.ledger, traffic.steps["begin"].begin)
        with self._lock:
            self._flowing[id(loan)] = traffic, outcomes
            self._outcomes.append(outcomes)

    def _take_off(self, key: int) -> None:
        """Stop the traffic on a world that is about to be closed."""
        with self._lock:
            traffic, outcomes = self._flowing.pop(key, (None, None))
        if traffic is None or outcomes is None:
            return
        try:
            traffic.stop()
        except SuiteError as error:
            self.faults.append(str(error))
        outcomes.judge(now())

    def _judge(self) -> None:
        while not self._over.wait(_LOOK):
            with self._lock:
                flowing = [outcomes for _, outcomes in self._flowing.values()]
            for outcomes in flowing:
                outcomes.judge(now() - round(PATIENCE * self._scale * NANO))

    # --- what came of it -----------------------------------------------------------------------------------

    @property
    def answers(self) -> int:
        """The number of answers from all worlds."""
        return sum(outcomes.answers for outcomes in self._outcomes)

    @property
    def bad(self) -> Counter[Kind]:
        return sum((outcomes.bad for outcomes in self._outcomes), Counter())

    @property
    def _missing(self) -> int:
        return self.bad[Kind.FAULT] + self.bad[Kind.LOST]

    @property
    def wrong(self) -> bool:
        """True if a verdict was wrong."""
        return self.bad.total() > self._missing

    @property
    def sound(self) -> bool:
        """True if it flowed, and no verdict was wrong.

        A host under load may starve an agent until HAProxy's health check takes it out: 5xx and missing
        answers are reported. If they are more than a tenth, nothing was shown.
        """
        return not self.wrong and not self.faults and 10 * self._missing <= self.answers > 0

    def sentences(self) -> list[str]:
        """Return what came of it."""
        seconds = max(0.001, (self._ended if self._over.is_set() else time.monotonic()) - self._began)
        wrong = ", ".join(f"{count} {kind}" for kind, count in sorted(self.bad.items())) or "every one right"
        lines = [f"under load: {self.answers} answers, {self.answers / seconds:.0f} a second: {wrong}"]
        for outcomes in self._outcomes:
            for at, entry, kind, why in outcomes.examples[:2]:
                lines.append(f"  at {at:.1f} s, flow {entry.question.flow.name}: {kind}: {why}")
        return lines + [f"  {fault}" for fault in self.faults]
