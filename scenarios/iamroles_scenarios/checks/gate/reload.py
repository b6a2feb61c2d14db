"""HAProxy reloads under traffic: too rich for a scenario file, because two things happen at once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import RequestSpec, WorldSpec
from iamroles_scenarios.engine.observation import Observation
from iamroles_scenarios.engine.play import Target
from iamroles_scenarios.engine.players import ProxyPlayer
from iamroles_scenarios.engine.worlds import Place
from iamroles_scenarios.errors import CheckFailed, Evidence

_CLIENTS = 3
_RELOADS = 3
_BETWEEN = 30
"""Requests answered before the next reload: traffic must flow on both sides of each."""
_DEADLINE = 20.0
"""Seconds, times the scale, for each of these rounds."""


@dataclass
class _Traffic:
    """What the clients share."""

    stop: threading.Event = field(default_factory=threading.Event)
    moved: threading.Condition = field(default_factory=threading.Condition)
    answered: int = 0
    wrong: list[tuple[str, Observation]] = field(default_factory=list)

    def saw(self, expected: str, seen: Observation, *, right: bool) -> None:
        """Count an answer and wake whoever waits for it."""
        with self.moved:
            self.answered += 1
            if not right:
                self.wrong.append((expected, seen))
            self.moved.notify_all()

    def wait(self, more: int, seconds: float) -> bool:
        """Until so many more were answered, or the clients have ended."""
        with self.moved:
            mark = self.answered + more
            return self.moved.wait_for(lambda: self.answered >= mark or self.stop.is_set(), seconds)


def _client(place: Place, token: str, scale: float, traffic: _Traffic) -> None:
    """Ask for what is allowed and what is not, in turn, until told to stop."""
    player = ProxyPlayer(place.world, scale)
    try:
        while not traffic.stop.is_set():
            seen = player.ask(RequestSpec(path="/orders/1"), token, with_reason=False)
            traffic.saw("status 200 from orders-ro", seen, right=seen.backend == "orders-ro")
            seen = player.ask(RequestSpec(path="/admin"), token, with_reason=False)
            traffic.saw("status 403", seen, right=seen.status == 403 and not seen.allow)
    finally:
        player.close()
        if not traffic.stop.is_set():  # it fell: the others have nothing to wait for
            traffic.stop.set()
            with traffic.moved:
                traffic.moved.notify_all()


@check(
    "gate.haproxy-reload.verdicts",
    requirements=["GATE-RELOAD-001"],
    lane="gate",
    title="reloads of HAProxy under traffic change no verdict",
)
def haproxy_reload(target: Target) -> None:
    """Three clients ask without a pause while HAProxy is reloaded three times."""
    with target.worlds.borrow(WorldSpec(policy="orders", own=True), "gate.haproxy-reload") as place:
        token = target.worlds.issuer(place.issuer("")).mint({"roles": ["reader"], "exp": "+15m"})
        traffic = _Traffic()
        started = time.monotonic()
        with ThreadPoolExecutor(_CLIENTS, thread_name_prefix="client") as pool:
            clients = [pool.submit(_client, place, token, target.scale, traffic) for _ in range(_CLIENTS)]
            try:
                for _ in range(_RELOADS):
                    _flowing(traffic, target.scale)
                    place.world.haproxy.reload()
                _flowing(traffic, target.scale)
            finally:
                traffic.stop.set()
        for client in clients:
            client.result()  # a client that fell is a fault of the harness
        _judge(traffic, place, time.monotonic() - started)


def _flowing(traffic: _Traffic, scale: float) -> None:
    seconds = _DEADLINE * scale
    if not traffic.wait(_BETWEEN, seconds):
        raise CheckFailed(f"fewer than {_BETWEEN} requests were answered within {seconds:g} s")


def _judge(traffic: _Traffic, place: Place, seconds: float) -> None:
    if not traffic.wrong:
        return
    expected, seen = traffic.wrong[0]
    logs = {part: "\n".join(text.splitlines()[-25:]) for part, text in place.world.logs().items()}
    raise CheckFailed(
        f"{len(traffic.wrong)} of {traffic.answered} answers in {seconds:.1f} s were wrong",
        Evidence(sent=seen.sent, expected=expected, received=seen.received, logs=logs),
    )
