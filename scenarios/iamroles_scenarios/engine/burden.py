"""The judge under load: traffic that flows beside all checks of a run, and is judged itself.

A gate of its own, with the policy of the orders, gets callers that are let in, callers that are not, and
tokens that live for seconds; every answer must be right for as long as the run lasts. Each world that checks
share gets
strangers: what has no credential, or none that could be one, must be refused under any policy. So the agents
that are judged are busy, and so is the host.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from iamroles_scenarios.base.errors import SuiteError
from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec, WorldSpec
from iamroles_scenarios.engine.fire import PATIENCE, Fire
from iamroles_scenarios.engine.ledger import DEAD, Account, Flow, Kind
from iamroles_scenarios.jose import mint_for
from iamroles_scenarios.traffic.polling import NANO, now

if TYPE_CHECKING:
    from iamroles_scenarios.engine.worlds import Place, Worlds

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
"""A host under load is late, and that is no fault of the agent's."""


class _Leaning:
    """Traffic on one world, and its account."""

    def __init__(self, place: Place, flows: Callable[[Fire], None], rate: float, scale: float) -> None:
        proxy = place.world.proxy
        self.fire = Fire((proxy.host, proxy.port), rate=rate, connections=8, scale=scale)
        flows(self.fire)
        self.fire.start()
        self.account = Account(self.fire.ledger, self.fire.steps["begin"].begin)

    def settle(self, age: float) -> None:
        self.account.settle(now() - round(age * NANO))

    def stop(self) -> None:
        self.fire.stop()
        self.account.settle(now())


class Burden:
    """The traffic of a run.

    Args:
        worlds: of the run.
        rate: questions a second to the gate of its own.
        scale: multiplies deadlines.
    """

    def __init__(self, worlds: Worlds, rate: float, scale: float) -> None:
        self._worlds, self.rate, self._scale = worlds, rate, scale
        self._began = time.monotonic()
        self._leaning: dict[int, _Leaning] = {}
        self._accounts: list[Account] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._place: Place | None = None
        self._thread = threading.Thread(target=self._look, name="burden", daemon=True)
        self.faults: list[str] = []

    def begin(self) -> None:
        """Bring up its own gate and begin."""
        spec = WorldSpec(policy="orders", settings=_SETTINGS)
        self._place = self._worlds.start(spec, f"{self._worlds.namespace}-burden", haproxy=True)
        self._lean(self._place, self._callers, self.rate)
        self._worlds.on_shared, self._worlds.on_release = self.lean_on, self.let_go
        self._thread.start()

    def _callers(self, fire: Fire) -> None:
        place = self._place
        assert place is not None  # noqa: S101 - begin started it
        issuer = self._worlds.issuer(place.issuer("corp"))

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
            flow = Flow(name, RequestSpec(), "", opens if role == "reader" else shut, weight=weight)
            fire.ask(flow, mint=partial(token, name, life, role), renew=renewal)
        # One that ended long ago: a run may be over before eve's first token is.
        old, expires = token("old", _LIFE, "reader", ago=_LONG_AGO)
        fire.ask(Flow("old", RequestSpec(), old, DEAD, weight=0.5), expires=expires)
        self._strangers(fire)

    def _strangers(self, fire: Fire) -> None:
        fire.ask(Flow("nobody", RequestSpec(), "", _SHUT))
        fire.ask(Flow("nonsense", RequestSpec(), "nonsense", _SHUT, weight=0.5))

    def lean_on(self, place: Place) -> None:
        """Put strangers before a world that checks share."""
        self._lean(place, self._strangers, max(1.0, self.rate / _SHARE))

    def _lean(self, place: Place, flows: Callable[[Fire], None], rate: float) -> None:
        made = _Leaning(place, flows, rate, self._scale)
        with self._lock:
            self._leaning[id(place)] = made
            self._accounts.append(made.account)

    def let_go(self, place: Place) -> None:
        """A world is about to be closed."""
        with self._lock:
            made = self._leaning.pop(id(place), None)
        if made is not None:
            try:
                made.stop()
            except SuiteError as error:
                self.faults.append(str(error))

    def _look(self) -> None:
        while not self._over.wait(_LOOK):
            with self._lock:
                leaning = list(self._leaning.values())
            for one in leaning:
                one.settle(PATIENCE * self._scale)

    def end(self) -> None:
        """Stop all of it; idempotent."""
        self._worlds.on_shared = self._worlds.on_release = None
        if not self._over.is_set():
            self._over.set()
            with suppress(RuntimeError):  # never started
                self._thread.join()
            for one in list(self._leaning):
                with self._lock:
                    made = self._leaning.pop(one, None)
                if made is not None:
                    made.stop()
            if self._place is not None:
                self._place.close()
            self._ended = time.monotonic()

    @property
    def answers(self) -> int:
        """How many came, of all worlds."""
        return sum(account.answers for account in self._accounts)

    @property
    def bad(self) -> dict[Kind, int]:
        kinds = {kind for account in self._accounts for kind in account.bad}
        return {kind: sum(account.bad[kind] for account in self._accounts) for kind in sorted(kinds)}

    @property
    def sound(self) -> bool:
        """Whether it flowed, and no verdict was wrong.

        A host under load may starve an agent until HAProxy's health check takes it out: 5xx and missing
        answers are told. Where they are more than a tenth, nothing was shown.
        """
        bad = self.bad
        missing = sum(bad.get(kind, 0) for kind in (Kind.FAULT, Kind.LOST))
        verdicts = sum(bad.values()) - missing
        return not verdicts and not self.faults and 10 * missing <= self.answers and self.answers > 0

    def told(self) -> list[str]:
        """What came of it, in sentences."""
        seconds = max(0.001, getattr(self, "_ended", time.monotonic()) - self._began)
        wrong = ", ".join(f"{count} {kind}" for kind, count in self.bad.items()) or "every one right"
        lines = [f"under load: {self.answers} answers, {self.answers / seconds:.0f} a second: {wrong}"]
        for account in self._accounts:
            for at, entry, kind, why in account.examples[:2]:
                lines.append(f"  at {at:.1f} s, flow {entry.question.flow.name}: {kind}: {why}")
        return lines + [f"  {fault}" for fault in self.faults]
