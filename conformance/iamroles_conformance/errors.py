"""All that the judge itself raises, and what its commands end with.

`SelectionError` and `StageError` come from the scenarios and pass through. No error is a verdict on an agent,
except `ConformanceFailure`, which carries one to pytest.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the commands, and of pytest if the stage fails."""

    PASSED = 0
    FAILED = 1
    MISTAKE = 2
    """In the command or a file it names; click's own code."""
    STAGE_FAULT = 3
    """The stage, or the agent on it, cannot be used: nothing was judged."""
    UNTESTABLE = 6
    """Nothing failed, but some checks could not be judged, because the host was late above all."""
    INTERRUPTED = 130
    """By Ctrl-C or SIGTERM: what was played until then is reported, and says nothing about the rest."""


class ConformanceError(Exception):
    """Root of this package's errors."""


class ReportError(ConformanceError):
    """A saved run that cannot be read."""


class BundleError(ConformanceError):
    """A bundle of evidence that is not what it should be: names the file that is wrong."""


class ConformanceFailure(ConformanceError):  # noqa: N818 - pytest shows it as a failure
    """A check that did not pass, for pytest; its text is the explanation."""


class ConformanceWarning(UserWarning):
    """A check that failed and that the grade permits to: a SHOULD, or a clause of `strict` alone."""
