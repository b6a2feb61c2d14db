"""A generator as a process of its own: `python -m iamroles_loadtests.measuring.generator PILES`.

One JSON line on standard input is a phase (`plan.Phase`), the answer is one JSON line on standard output:
what it measured (`Book.measured`), or `{"error": "…"}`. It ends with its standard input. It says
`{"ready": true}` first.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from iamroles_loadtests.asking.plan import Phase, Piles
from iamroles_scenarios.stage.guard import Guard

_GRACE = 30.0


class GeneratorError(Exception):
    """The generator broke; says nothing about the gate.

    Args:
        message: what happened.
        log: the end of its log.
    """

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(f"{message}\n{log}".strip())


class Plays(Protocol):
    """Whatever plays phases."""

    def play(self, phase: Phase) -> dict[str, Any]:
        """Play one; see `Book.measured`."""


class Generator:
    """A running generator; a context manager.

    Args:
        piles: the questions. They hold tokens, so they are put down where only this user reads them, and
            removed.
        command: its program and arguments; the path of the piles is appended.
    """

    def __init__(self, piles: Piles, command: Sequence[str] = ()) -> None:
        directory = Path(tempfile.mkdtemp(prefix="iamroles-load-"))
        self._guard = Guard()
        self._guard.note(f"dir {directory}")
        path = directory / "piles.json"
        path.write_text(piles.model_dump_json(), encoding="utf-8")
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self._process: subprocess.Popen[str] = self._guard.start(
                subprocess.Popen,
                [*(command or (sys.executable, "-m", "iamroles_loadtests.measuring.generator")), str(path)],
                cwd=directory,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                process_group=0,
            )
        self._answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def play(self, phase: Phase) -> dict[str, Any]:
        """Play a phase and wait for what it measured (`Book.measured`).

        Raises:
            GeneratorError: it could not.
        """
        assert self._process.stdin is not None  # noqa: S101 - asked for
        try:
            self._process.stdin.write(phase.model_dump_json() + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._broken(str(error)) from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - asked for
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                if "error" in found:
                    raise GeneratorError(str(found["error"]))
                return found
        self._process.wait(_GRACE)
        self._guard.note(f"-{self.pid}")
        raise self._broken(f"it ended with exit code {self._process.returncode}")

    def _broken(self, why: str) -> GeneratorError:
        log = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]
        return GeneratorError(f"the load generator failed: {why}", "\n".join(log))

    def close(self) -> None:
        """End it, in the middle of a phase too: between phases it has nothing to lose."""
        self._guard.close()
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # a phase that was not sent to its end
                self._process.stdin.close()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def main() -> None:
    """See the module."""
    from iamroles_loadtests.measuring.drive import Driver  # noqa: PLC0415 - numpy is not needed to start a generator

    driver = Driver(Piles.model_validate_json(Path(sys.argv[1]).read_bytes()))
    _say({"ready": True})
    for line in sys.stdin:
        try:
            _say(driver.play(Phase.model_validate_json(line)))
        except (KeyError, ValueError, OSError) as error:
            _say({"error": f"{type(error).__name__}: {error}"})


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
