"""Traffic on a world, and the steps that happen in it: of a scenario file, or drawn by a soak."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from iamroles_scenarios.engine.judged_traffic import JudgedTraffic, StepTimes
from iamroles_scenarios.engine.ledger import Flow

if TYPE_CHECKING:
    from iamroles_scenarios.declarations.scenario import FlowSpec, Step
    from iamroles_scenarios.engine.tokens import Mint
    from iamroles_scenarios.engine.worlds import Loan


class Timeline:
    """A context in which the traffic flows.

    Args:
        loan: the world.
        flows: what is asked, by name.
        mint: makes their tokens.
        scale: multiplies deadlines.
        how: as `JudgedTraffic`.
    """

    def __init__(
        self,
        loan: Loan,
        flows: Mapping[str, FlowSpec],
        mint: Mint,
        *,
        scale: float,
        **how: Any,  # noqa: ANN401 - of `JudgedTraffic`
    ) -> None:
        self._place, self._specs, self._mint, self._scale = loan, flows, mint, scale
        proxy, certificates = loan.world.proxy, loan.certificates
        tls = None if certificates is None else certificates.tls
        self.traffic = JudgedTraffic((proxy.host, proxy.port), scale=scale, tls=tls, **how)
        self._beside = ExitStack()
        """The traffic, and the fetching of keys beside it."""

    def __enter__(self) -> Self:
        sets = self._place.sets
        if sets is not None:
            self.traffic.ledger.verify = sets.unverified
            self._beside.enter_context(sets.fetched())
        for name, spec in self._specs.items():
            if not spec.from_:
                self._ask(name, spec)
        self._beside.callback(self.traffic.stop)
        self.traffic.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._beside.close()

    def _ask(self, name: str, spec: FlowSpec) -> None:
        token = spec.request.token

        def mint() -> tuple[str, float]:
            made = self._mint.fresh(token) if spec.renew else self._mint.token(token)
            return made.text, made.expires

        flow = Flow(name, spec.request, spec.expect, weight=spec.weight)
        self.traffic.ask(flow, mint=mint if token else None, renew=spec.renew * self._scale)

    def step(self, name: str, step: Step, act: Callable[[], None]) -> StepTimes:
        """Make a step happen, note when it did, and change what is asked and what is right from then on.

        Args:
            name: of the step; no other step has it.
            step: the step.
            act: what happens.
        """
        with self.traffic.step(name) as times:
            act()
        if self._place.certificates is not None:
            self.traffic.trust(self._place.certificates.tls)
        for flow, expect in step.then.items():
            self.traffic.change(flow, expect, by=name, settles=step.settles)
        for flow, spec in self._specs.items():
            if step.name and spec.until == step.name:
                self.traffic.leave(flow)
            if step.name and spec.from_ == step.name:
                self._ask(flow, spec)
        return times
