"""Shapes of load: what else can be put on a gate than an even stream of the same mix.

Each takes the knee and gives the phase's options. Rates are shares of the knee, so that a shape means the
same on any machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from iamroles_scenarios.traffic import Segment

_COLD = 500.0
"""New tokens a second at most: each costs the agent a signature check."""


def _parts(*parts: tuple[float, ...], **more: Any) -> Callable[[float, float], dict[str, Any]]:  # noqa: ANN401 - Phase checks
    """Make a timetable: parts of the length, each with its share of the knee, or with its first and last."""

    def options(knee: float, seconds: float) -> dict[str, Any]:
        segments = [Segment(seconds * part, *(knee * share for share in shares)) for part, *shares in parts]
        return {"timetable": segments, **more}

    return options


def _cold(knee: float, seconds: float) -> dict[str, Any]:
    rate = min(_COLD, knee * 0.1)
    return {"timetable": [Segment(seconds, rate)], "once": "cold", "once_share": 1.0}


def cold_tokens(seconds: float) -> int:
    """Tokens that the shape `cold` uses up at most."""
    return int(_COLD * seconds * 1.3) + 100


SHAPES: dict[str, Callable[[float, float], dict[str, Any]]] = {
    "steady": _parts((1, 0.5)),
    "step": _parts((1 / 3, 0.3), (1 / 3, 0.6), (1 / 3, 0.9)),
    "spike": _parts((0.4, 0.2), (0.2, 1.2), (0.4, 0.2)),
    "ramp": _parts((1, 0.05, 1)),
    "closed": _parts(),
    "one": _parts((1, 0.5), weights={"one": 1.0}),
    "thousand": _parts((1, 0.5), weights={"thousand": 1.0}),
    "hundred-thousand": _parts((1, 0.25), weights={"hundred-thousand": 1.0}),
    "cold": _cold,
    "hostile": _parts((1, 0.2), weights={"mix": 1.0, "hostile": 1.0}),
    "fresh": _parts((1, 0.1), fresh=True),
    "streams": _parts((1, 0.5), streams=200),
    "second-agent": _parts((1, 0.3)),
}
"""Options of a phase by shape. `steady` half the knee; `step` three tenths, six, nine; `spike` a fifth, then
more than the knee takes, then a fifth; `ramp` up to the knee; `closed` no timetable; `one`, `thousand` and
`hundred-thousand` identities by Zipf's law; `cold` every token is new; `hostile` each second request is a
stranger's; `fresh` a new connection (with --tls: a new handshake) for each request; `streams` half the knee
beside 200 open event streams; `second-agent` three tenths, while another agent begins after a third of the
time. Its share of the questions from then on is an event of the result."""
ANYWHERE = ("steady", "step", "spike", "ramp", "closed")
"""Those that need no tokens, for any URL or agent."""
BY_HTTP = (*ANYWHERE, "fresh")
"""The same, for any URL."""
