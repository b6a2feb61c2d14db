"""What the flows of the identity family stand on: a shared world, a player, tokens by recipe, expectations.

Every flow has an issuer, or a host of STS, of its own within a shared world: what it does to its keys or
answers shows nowhere else, and one agent serves them all. Nothing here knows how an agent works.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.declarations.scenario import Expectation, OneOf, RequestSpec, WorldSpec
from iamroles_scenarios.engine.observation import Observation, describe, mismatches
from iamroles_scenarios.engine.play import Target
from iamroles_scenarios.engine.players import Player, player_for
from iamroles_scenarios.engine.worlds import Place
from iamroles_scenarios.errors import CheckFailed, Evidence
from iamroles_scenarios.jose import mint_for

if TYPE_CHECKING:
    from iamroles_scenarios.mock.clients import IssuerHandle

_POLL = 0.05
ALLOWED = Expectation(status=200, allow=True, backend="orders-ro")
UNAVAILABLE = Expectation(status=503, allow=False, backend="", reason="keys_unavailable")


def refused(*reasons: str, status: int | list[int] = 401) -> Expectation:
    """A refusal, for one of these reasons."""
    reason = OneOf(one_of=list(reasons)) if len(reasons) > 1 else reasons[0]
    return Expectation(status=status, allow=False, backend="", reason=reason)


@dataclass
class Ground:
    """A world on loan to a flow, and a way to ask its agent; one for each thread."""

    target: Target
    place: Place
    player: Player
    _closers: list[Player] = field(default_factory=list)

    def issuer(self, name: str) -> IssuerHandle:
        """The mock issuer that the world's policy means by a name."""
        return self.target.worlds.issuer(self.place.issuer(name))

    def token(self, issuer: str, signer: str = "", **recipe: Any) -> str:  # noqa: ANN401 - recipes hold anything
        """A token by recipe (`iamroles_scenarios.jose`), with the reader's role unless it says otherwise."""
        issuers = {name: self.issuer(name) for name in {issuer, signer or issuer}}
        full = {"roles": ["reader"], "issuer": issuer, "signer": signer or issuer, **recipe}
        return mint_for(full, issuers, time.time())

    def ask(self, token: str, **request: Any) -> Observation:  # noqa: ANN401 - fields of RequestSpec
        """Ask for the reader's route."""
        return self.player.ask(RequestSpec(**request), token, with_reason=True)

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
            within: ask again for so many seconds, times the scale.
            prompt: the answer may take at most so many seconds, times the scale; 0: as long as it likes.
            request: what else is asked for than the reader's route.

        Raises:
            CheckFailed: it was not.
        """
        began = time.monotonic()
        deadline = time.monotonic() + within * self.target.scale
        while True:
            seen = self.ask(token, **request)
            differing = mismatches(expected, seen, {})
            took = time.monotonic() - began
            if not differing and prompt and took > prompt * self.target.scale:
                differing = [f"the answer took {took:.1f} s, at most {prompt:g} s"]
            elif not differing:
                return seen
            if time.monotonic() >= deadline:
                raise CheckFailed(f"{what}: {'; '.join(differing)}", self.evidence(seen, describe(expected)))
            time.sleep(_POLL)

    def evidence(self, seen: Observation, expected: str) -> Evidence:
        """What a reader of a failure needs."""
        logs = {part: "\n".join(text.splitlines()[-25:]) for part, text in self.place.world.logs().items()}
        return Evidence(
            sent=seen.sent, expected=expected, received=seen.received, trace=seen.trace, logs=logs
        )

    def another(self) -> Ground:
        """The same for another thread, with a connection of its own; closed with this one."""
        player = player_for(self.target.lane, self.place.world, self.target.scale)
        self._closers.append(player)
        return Ground(self.target, self.place, player)

    def close(self) -> None:
        """End all connections."""
        for player in (self.player, *self._closers):
            player.close()


@contextmanager
def ground(target: Target, policy: str, **override: Any) -> Iterator[Ground]:  # noqa: ANN401 - a policy's tables
    """A shared world of a policy in `data/worlds/`, kept until the run ends."""
    with target.worlds.borrow(WorldSpec(policy=policy, override=override), "") as place:
        found = Ground(target, place, player_for(target.lane, place.world, target.scale))
        try:
            yield found
        finally:
            found.close()


class Pending:
    """A question asked in a thread of its own, while others are asked."""

    def __init__(self, asker: Ground, token: str) -> None:
        self.seen: Observation | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(asker, token), daemon=True)
        self._thread.start()

    def _run(self, asker: Ground, token: str) -> None:
        try:
            self.seen = asker.ask(token)
        except Exception as error:  # noqa: BLE001 - raised where the answer is wanted
            self.error = error

    @property
    def waiting(self) -> bool:
        """Whether it has no answer yet."""
        return self._thread.is_alive()

    def answer(self, within: float) -> Observation:
        """The answer.

        Raises:
            CheckFailed: none within so many seconds.
        """
        self._thread.join(within)
        if self.error is not None:
            raise self.error
        if self.seen is None:
            raise CheckFailed(f"no answer within {within:g} s")
        return self.seen
