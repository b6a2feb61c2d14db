"""Puts many questions to an agent, and tells of all that were answered wrong.

Every list of questions is asked twice: in order, which fills whatever memory the agent has, and then
backwards. An answer that depends on what was asked before is wrong in one of the two.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from iamroles_scenarios.base.errors import CheckFailed, Evidence
from iamroles_scenarios.checks.derived import answers
from iamroles_scenarios.checks.oracle.answer import TEXTS
from iamroles_scenarios.declarations.results import tails
from iamroles_scenarios.engine.bench import Bench, bench
from iamroles_scenarios.engine.credentials import opened
from iamroles_scenarios.engine.observation import differences
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.wire.asker import Asker
from iamroles_scenarios.wire.frames import Action

WORLD = "derived"
"""The policy of these checks, in data/worlds/."""
HOST, PATH, SOURCE = "kiosk.example.com", "/kiosk", "192.0.2.7"
"""What the grant of the role `kiosk` opens there, for GET alone."""
_WINDOW = 32
_WITHIN, _KEYS_WITHIN = 20.0, 10.0
"""Seconds, times the scale, for an answer, and for the keys of a new issuer."""
_POLL = 0.02
_SHOWN = 8
"""Wrong answers that a failure tells of; the rest is counted."""
_UNSET = dict.fromkeys((*TEXTS, "principal", "session"), "")
Wanted = Mapping[str, object]
ALLOWED: Wanted = {"allow": True}
REFUSED: Wanted = {"allow": False}
"""Refused, for whatever reason: where the standards do not say by which word."""
OPEN: Wanted = {}
"""The contract leaves it open; the answer must only be whole."""


def granted(rule: str, **more: object) -> Wanted:
    """An allow by this rule."""
    return {"allow": True, "rule": rule, **more}


def refusal(*reasons: str, **more: object) -> Wanted:
    """A refusal, for one of these reasons."""
    return {"allow": False, "reason": set(reasons), **more}


@dataclass(frozen=True, slots=True)
class Ask:
    """One question, and what must come of it."""

    what: str
    """Names it in a failure."""
    check: Mapping[str, Any]
    """Arguments of the `iam-check`."""
    wanted: Wanted
    """As `observation.differences` takes it."""
    context: Mapping[str, Any] | None = None
    """Arguments of the `iam-context`, where they matter."""


def question(token: str | None, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401 - arguments of iam-check
    """The question that the grant of the role `kiosk` answers, with this token and these changes."""
    authorization = None if token is None else f"Bearer {token}"
    good = {"authorization": authorization, "method": "GET", "host": HOST, "path": PATH, "src": SOURCE}
    return good | {name.replace("_", "-"): value for name, value in arguments.items()}


class Sitting(Bench):
    """A world, one connection to its agent, and what was answered wrong so far."""

    _wrong: list[tuple[str, Evidence]]
    asked = 0
    """Questions so far."""

    @contextmanager
    def connected(self, within: float = _WITHIN) -> Iterator[None]:
        """Hold one connection while questions are put; tell of what was wrong at the end.

        Args:
            within: seconds, times the scale, for each answer.
        """
        self._wrong = []
        address = self.world.agent.spop_address
        with Asker(address, timeout=within * self.target.scale) as self._asker:
            yield
        if self._wrong:
            sentences = [sentence for sentence, _ in self._wrong]
            rest = [f"and {len(sentences) - _SHOWN} more"] if len(sentences) > _SHOWN else []
            evidence = self._wrong[0][1]
            evidence.logs.update(tails(self.world.logs()))
            raise CheckFailed("; ".join([*sentences[:_SHOWN], *rest]), evidence)

    def put(self, asks: Sequence[Ask], when: str = "", *, window: int = _WINDOW, turns: int = 2) -> None:
        """Ask in order and backwards.

        Args:
            asks: questions.
            when: after what, for a failure.
            window: how many are on their way at a time; 1 where the order must be the written one.
            turns: 1: backwards only.
        """
        for turn in (list(asks), list(reversed(asks)))[2 - turns :]:
            self.judge(turn, self.answers(turn, window=window), when)

    def answers(self, asks: Sequence[Ask], *, window: int = _WINDOW) -> list[list[Action]]:
        return self._asker.actions_of([(ask.check, ask.context) for ask in asks], window=window)

    def judge(self, asks: Sequence[Ask], found: Sequence[Sequence[Action]], when: str = "") -> None:
        """Note what is wrong with answers."""
        for ask, actions in zip(asks, found, strict=True):
            self._judge(ask, actions, when)

    @staticmethod
    def now() -> int:
        """Epoch seconds."""
        return int(time.time())

    def settle(self, asks: Sequence[Ask]) -> None:
        """Ask, and judge nothing, until no answer is `keys_unavailable`: new issuers' keys are there then."""
        deadline = time.monotonic() + self.seconds(_KEYS_WITHIN)
        waiting = [ask for ask in asks if "keys_unavailable" not in str(ask.wanted.get("reason"))]
        while waiting and time.monotonic() < deadline:
            waiting = [
                ask
                for ask, actions in zip(waiting, self.answers(waiting), strict=True)
                if answers.read(actions).get("reason") == "keys_unavailable"
            ]
            if waiting:
                time.sleep(_POLL)

    def _judge(self, ask: Ask, actions: Sequence[Action], when: str) -> None:
        self.asked += 1
        seen = answers.read(actions)
        wrong = [*differences(ask.wanted, {**_UNSET, **seen}), *answers.faults(actions)]
        if wrong:
            reason = f" ({seen['reason']})" if "reason" in seen and "reason" not in ask.wanted else ""
            self.wrong(f"{when}{ask.what}: {', '.join(wrong)}{reason}", ask.check, ask.wanted, seen)

    def wrong(
        self,
        sentence: str,
        check: Mapping[str, Any] | None = None,
        wanted: Wanted | None = None,
        seen: Mapping[str, object] | None = None,
    ) -> None:
        if sentence in (known for known, _ in self._wrong):
            return
        shown = (
            {} if check is None else {key: value for key, value in check.items() if key != "authorization"}
        )
        token = str((check or {}).get("authorization")).partition(" ")[2]
        sent = "\n".join([f"iam-check {shown}", *opened(token)])
        received = "\n".join(f"{name} = {value!r}" for name, value in sorted((seen or {}).items()))
        self._wrong.append((sentence, Evidence(sent, str(dict(wanted or {})), received)))

    def force(self, policy: Mapping[str, Any], what: str) -> None:
        """Put a sound policy in force.

        Raises:
            CheckFailed: the agent turns it down.
        """
        answer = self.reload(dict(policy))
        if not answer.get("reloaded"):
            raise self.failed(f"a sound policy was turned down ({what}): {answer.get('error', answer)}")


@contextmanager
def sitting(target: Target, owner: str = "", **override: Any) -> Iterator[Sitting]:  # noqa: ANN401 - a policy's tables
    """A sitting in the world of these checks; with an owner, in one of its own that may be changed."""
    with bench(target, WORLD, owner, own=bool(owner), **override) as found:
        here = Sitting(target, found.place)
        with here.connected():
            yield here
