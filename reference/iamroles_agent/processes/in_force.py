"""The one meaning of "in force": for new requests, and apart from it for open streams.

The parent reports what its members enforce (`summary`); worker 0 reports what its cutter has judged. This
module draws the conclusions. `iamroles revoke`, `iamroles agent status`, `/healthz` and the metrics all say
what it finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iamroles_agent.live.cutter import Cutter

UNREACHED = "live.master_socket is not set: they are not reached, and end at their expiry"
WAITING = "not all of HAProxy's workers have been read since the last change"


@dataclass(frozen=True, slots=True)
class InForce:
    """A document, as far as it is enforced."""

    requests: str
    """Why new requests are not judged by it; "" if they are."""
    streams: str
    """Why open streams are not judged by it; "" if they are."""
    broken: bool
    """True if something must be mended; else a moment's wait may be enough."""
    reached: bool
    """True if the configuration lets the agent cut streams."""

    def said(self) -> dict[str, str]:
        """Say it of requests and streams apart, in a few words each."""
        streams = "NOT in force" if self.reached else "not in force"
        return {
            "requests": f"NOT in force: {self.requests}" if self.requests else "in force",
            "streams": f"{streams}: {self.streams}" if self.streams else "in force",
        }


def of(summary: Mapping[str, Any]) -> InForce:
    """Draw the conclusions from the parent's summary."""
    confirmed, workers = summary.get("confirmed", 0), summary.get("workers", 0)
    behind = ""
    if not workers or confirmed < workers:
        behind = f"{confirmed} of {workers} workers serve version {summary.get('version')}"
    problem = str(summary.get("fetcher", {}).get("revocations", ""))
    live = summary.get("live", {})
    unheard = str(live.get("problem", ""))
    reached = bool(live.get("configured", True))
    judged = live.get("judged") and live.get("version") == summary.get("version")
    streams = UNREACHED if not reached else unheard or problem or ("" if judged else WAITING)
    return InForce(problem or behind, streams, bool(problem or unheard or behind), reached)


def of_cutter(cutter: Cutter | None, version: int) -> dict[str, Any]:
    """Report, in worker 0, what its cutter has judged; without a cutter, that it is missing."""
    if cutter is None:
        return {"configured": False}
    numbers = cutter.numbers
    judged = numbers.judged == cutter.changes
    return {"configured": True, "problem": numbers.problem, "judged": judged, "version": version}
