"""Timelines: scenarios whose traffic flows while their steps happen, and windows in which it is judged.

A scenario with `[traffic]` asks its flows from begin to end, through HAProxy. Steps happen `at` their times,
and may change what is right for a flow. A window says between which moments every answer must have been
right, and what is excused: what was in flight when a part was killed, or for how long a fault may be felt.
Nothing excuses a false allow. docs/under-fire.md is the guide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from iamroles_scenarios.base.durations import seconds
from iamroles_scenarios.declarations.documents import BadValueError, Duration, KeyPath, Model

BEGIN, END = "begin", "end"
"""Moments that every timeline has: of its traffic."""


class Traffic(Model):
    """The rate of the traffic, its connections, and its length."""

    rate: float = Field(gt=0, le=100_000)
    """Questions a second over all flows, Poisson arrivals; multiplied by `Target.rate`."""
    connections: int = Field(default=8, ge=1, le=1000)
    """Keep-alive connections: as many questions can be in flight."""
    until: Duration
    """From the begin of the traffic to its end, times the time scale."""
    tls: bool = False
    """HAProxy speaks TLS; `certificate` steps replace what it shows."""
    fresh: bool = False
    """A new connection for each question, with a handshake of its own."""
    signed: Duration = 0.0
    """Time for which each key of the agent signs identities, times the time scale (0: it signs none). Each
    header must verify by every key set that a backend may hold (`engine.key_sets`)."""


def _moment(value: object) -> object:
    """Read a duration as seconds, any other text as the name of a step."""
    if isinstance(value, str) and value[:1].isdigit():
        return seconds(value)
    return value


Moment = Annotated[str | float, BeforeValidator(_moment, json_schema_input_type=str)]
"""Seconds from the begin of the traffic, or the name of a step: its begin."""


class WindowSpec(Model):
    """Between two moments every answer must be right: no wrong verdict, no 5xx, none lost."""

    check: str
    """The check that this is evidence for."""
    between: Annotated[list[Moment], Field(min_length=2, max_length=2)]
    """From and to: a step's name (its begin), a time such as "3s", "begin" or "end". An answer belongs to the
    window in which its question was sent."""
    flows: list[str] = Field(default_factory=list)
    """Names of flows; []: all."""
    in_flight: list[str] = Field(default_factory=list)
    """Names of steps that kill a part: 5xx and missing answers of questions that were under way then are
    excused, at most one for each connection and step."""
    recovers: Duration = 0.0
    """Time from the end of the window's first step, or from its begin, times the time scale, in which false
    denies are excused."""
    p99: float | None = Field(default=None, gt=1)
    """Factor by which the 99th percentile may exceed that of the quiet time: from the begin of the traffic to
    the first step with `at`. Half a second, times the time scale, is always allowed."""


def check_timeline(
    traffic: Traffic | None,
    flows: Mapping[str, Any],
    windows: Sequence[WindowSpec],
    steps: Sequence[Any],
) -> None:
    """Hold a scenario's timeline to its rules.

    Args:
        traffic: `[traffic]`.
        flows: `FlowSpec` by name.
        windows: in the file's order.
        steps: `Step` in the file's order.

    Raises:
        BadValueError: the key, what is wrong and what to do.
    """
    timed = [number for number, step in enumerate(steps) if step.at is not None]
    if traffic is None:
        _without_traffic(flows, windows, steps, timed)
        return
    for key, given in (("flows", flows), ("windows", windows)):
        if not given:
            raise BadValueError(("traffic",), f"it has no {key}: add [{key}…]")
    if not timed:
        raise BadValueError(("traffic",), "no step has a time: give one `at`")
    _check_steps(traffic, steps, timed)
    _check_kinds(traffic, steps, timed)
    names = {step.name for step in steps[timed[0] :] if step.name}
    for name, flow in flows.items():
        for key, moment in (("from", flow.from_), ("until", flow.until)):
            if moment:
                _known(("flows", name, key), moment, names, "a step of the timeline")
        _judgeable(("flows", name, "expect"), flow.expect)
    for number, step in enumerate(steps):
        for name, expectation in step.then.items():
            _known(("steps", number, "then"), name, flows, "a flow")
            _judgeable(("steps", number, "then"), expectation)
    for number, window in enumerate(windows):
        _check_window(("windows", number), window, names, flows)


def _check_window(key: KeyPath, window: WindowSpec, names: set[str], flows: Mapping[str, Any]) -> None:
    for moment in window.between:
        if isinstance(moment, str):
            _known((*key, "between"), moment, names | {BEGIN, END}, "a step of the timeline")
    for name in window.in_flight:
        _known((*key, "in_flight"), name, names, "a step of the timeline")
    for name in window.flows:
        _known((*key, "flows"), name, flows, "a flow")


def _without_traffic(
    flows: Mapping[str, Any], windows: Sequence[WindowSpec], steps: Sequence[Any], timed: Sequence[int]
) -> None:
    keys: list[KeyPath] = [*[("flows",)] * bool(flows), *[("windows",)] * bool(windows)]
    keys += [("steps", number, "at") for number in timed]
    for key in ("then", "certificate"):
        keys += [("steps", number, key) for number, step in enumerate(steps) if getattr(step, key)]
    signers = [number for number, step in enumerate(steps) if step.wait and step.wait.signer]
    keys += [("steps", number, "wait") for number in signers]
    if keys:
        raise BadValueError(keys[0], "this is for timelines: add [traffic], or remove it")


def _check_steps(traffic: Traffic, steps: Sequence[Any], timed: Sequence[int]) -> None:
    at = 0.0
    for number in timed:
        if not at <= steps[number].at < traffic.until:
            raise BadValueError(
                ("steps", number, "at"),
                f"{steps[number].at:g} s is not between {at:g} s, when the step before it is, and the end at "
                f"{traffic.until:g} s: put the steps in the order of their times",
            )
        at = steps[number].at
    taken = {BEGIN, END, ""}
    for number, step in enumerate(steps):
        if step.name and (step.name in taken or step.name[0].isdigit()):
            raise BadValueError(
                ("steps", number, "name"), f"{step.name!r} is taken or begins with a digit: choose another"
            )
        taken.add(step.name)
        if step.then and number < timed[0]:
            raise BadValueError(("steps", number, "then"), "no traffic yet: say it in the flow's `expect`")


def _check_kinds(traffic: Traffic, steps: Sequence[Any], timed: Sequence[int]) -> None:
    for number, step in enumerate(steps):
        if step.certificate and not traffic.tls:
            raise BadValueError(
                ("steps", number, "certificate"), "HAProxy shows none without TLS: add tls to [traffic]"
            )
        if step.request and traffic.tls:
            raise BadValueError(("steps", number, "request"), "HAProxy speaks TLS: make it a flow")
        if step.wait and step.wait.signer and (not traffic.signed or number < timed[0]):
            what = "no key signs then: add signed to [traffic], and give this step or one before it a time"
            raise BadValueError(("steps", number, "wait"), what)


def _judgeable(key: KeyPath, expectation: Any) -> None:  # noqa: ANN401 - an Expectation
    for name in ("reason", "within", "expires"):
        if getattr(expectation, name) is not None:
            raise BadValueError(
                key, f"traffic is judged by what client and backend see, at once: leave `{name}` out"
            )


def _known(key: KeyPath, name: str, known: Iterable[str], what: str) -> None:
    if name not in known:
        raise BadValueError(key, f"{name!r} is not {what}: take one of {', '.join(sorted(known)) or 'none'}")
