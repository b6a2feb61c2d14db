"""Every exception of this package, on one page, by whose fault it is.

A verdict ends a check: `CheckFailed`, `Untestable`. An `AgentFault` is the agent's, and fails the check that
meets it. A `SuiteError` is a fault of the suite, its stage or its caller, and never becomes a verdict on the
agent. `engine.verdicts` is the one place that turns them into verdicts.

The mock cloud's `AwsError`, `Unsigned` and `Incomplete` stay in `mock`: they are answers of AWS, and nobody
else meets them.
"""

# ruff: noqa: N818 - many are named by whose fault they are, which is the point

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Evidence:
    """The facts by which a reader can believe a failure, and fix it."""

    sent: str = ""
    expected: str = ""
    received: str = ""
    trace: str = ""
    """Decoded transcript: `>> NOTIFY …`, `<< ACK …`."""
    logs: dict[str, str] = field(default_factory=dict)
    """Log tails by part: agent, haproxy, idp, cloud, echo."""
    false_allow: bool = False
    """The agent allowed a request that had to be refused: a failure in every grade."""
    bounded: bool = False
    """The agent had a time in which to begin to refuse it."""


class PageError(Exception):
    """A page that a command cannot read, find, or put its table into; says what to do."""


# --- verdicts -----------------------------------------------------------------------------------------------


class CheckFailed(Exception):
    """Raised inside a check: the agent broke the requirement."""

    def __init__(self, message: str, evidence: Evidence | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.evidence = evidence or Evidence()


class Untestable(Exception):
    """Raised inside a check: this stage cannot judge it, and why."""


class Inapplicable(Exception):
    """Raised inside a check: what it needs the agent declares not to have; its text names that."""


# --- the agent's faults -------------------------------------------------------------------------------------


class AgentFault(Exception):
    """The agent did not do what was asked of it.

    Args:
        message: what it did instead.
        trace: the decoded conversation, if there is one.
    """

    def __init__(self, message: str, trace: object = "") -> None:
        self.message = message
        self.trace = str(trace)
        super().__init__(f"{message}\n{self.trace}" if self.trace else message)


class WaitTimeoutError(AgentFault):
    """A counter of a mock did not reach its mark in time: the agent did not ask."""


class WireError(AgentFault):
    """On a connection over SPOP."""


class SilenceError(WireError):
    """Nothing came before the deadline."""


class UnreachableError(WireError):
    """No connection: refused, no route, no such socket."""


class WireFormatError(AgentFault):
    """Bytes that are not SPOP.

    Args:
        why: what is wrong, for a reader of transcripts.
        offset: where, in bytes from the start of what was decoded.
    """

    def __init__(self, why: str, offset: int) -> None:
        super().__init__(f"at byte {offset}: {why}")
        self.why = why
        self.offset = offset


# --- the suite's own faults ---------------------------------------------------------------------------------


class WideVarint(WireFormatError):
    """A number of more than 64 bits. As an id it is permitted: SPOE.txt gives those no width."""


class SuiteError(Exception):
    """A fault of the suite, its stage, its data or its caller."""


class Mistake(SuiteError):
    """The caller erred, in a command or in a file that the command names. Commands exit 2."""


class SelectionError(Mistake):
    """The selection cannot be played: stage and agent are not at fault."""


class DocumentError(SuiteError):
    """A file of the suite that is not what it should be; all its problems, one a line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class RecipeError(SuiteError, ValueError):
    """A recipe says something that the minter does not know: the author of the scenario must fix it."""


class StageError(SuiteError):
    """The stage cannot be set up or used. Commands exit 3.

    Args:
        message: one clear sentence: what is wrong and what to do.
        logs: tails of the logs concerned, by part.
        cause: the fault alone, in the same words each time it is met; default: the message.

    Attributes:
        world: the world file that the agent was given, JSON; "" where none bears on it.
        began, pid: of a part that was not ready in time: since when it was waited for, by the monotonic
            clock, and its process, as this host numbers it; 0.0 if time did not decide.
    """

    began = 0.0
    pid: int | None = None

    def __init__(self, message: str, logs: dict[str, str] | None = None, cause: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.logs = logs or {}
        self.cause = cause or message
        self.world = ""

    def __str__(self) -> str:
        tails = (f"--- {part}\n{text}" for part, text in self.logs.items() if text)
        given = [f"--- the world file that it was given\n{self.world}"] if self.world else []
        return "\n".join([self.message, *tails, *given])


class ProxyFileError(StageError):
    """The output of `render` of an `agent.toml` cannot be used, or the command failed: the vendor's fault."""


class AgentFileError(StageError, Mistake):
    """An `agent.toml` that is missing or wrong, or a command in it that is not there."""


class HarnessFault(SuiteError):
    """Something else than the agent broke while a check was played."""


class HttpFault(HarnessFault):
    """The proxy gave no HTTP answer: refused, closed, garbled or silent."""


class TooSlow(HarnessFault):
    """The suite was late, as with a token that had expired meanwhile: it learnt nothing about the agent."""


class ControlError(SuiteError, RuntimeError):
    """A mock does not answer its control port, or refuses a command."""


class CommandError(SuiteError, ValueError):
    """The caller of a mock's control interface erred; the answer says how."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
