"""A generator: a process of its own that plays phases, so that nothing else in the run delays it."""

from __future__ import annotations

import multiprocessing
import os
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Self

from iamroles_loadtests.asking.cpu import CpuMeter
from iamroles_loadtests.asking.plan import Phase, Pools
from iamroles_loadtests.measuring.drive import Driver
from iamroles_loadtests.measuring.measurement import Measurement, Played
from iamroles_scenarios.stage.guard import Guard


class GeneratorError(Exception):
    """The generator broke; says nothing about the gate."""


class Generator:
    """A running generator; a context manager.

    Args:
        pools: the questions.
    """

    def __init__(self, pools: Pools) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, its = context.Pipe()
        self._process = context.Process(target=_serve, args=(its, pools), daemon=True)
        self._guard = Guard()
        self._guard.start(self._start)
        its.close()
        try:
            self._answer()
        except BaseException:  # also an interrupt
            self.close()
            raise

    def _start(self) -> BaseProcess:
        self._process.start()
        return self._process

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def play(self, phase: Phase, role: str = "", parts: CpuMeter | None = None) -> Played:
        """Play a phase and wait for what was measured.

        Args:
            phase: what to do.
            role: what it is to the run.
            parts: reads the CPU time of what is measured.

        Raises:
            GeneratorError: it could not.
        """
        before = parts.read() if parts else {}
        with suppress(BrokenPipeError):  # it has died: `_answer` says how
            self._connection.send(phase)
        measured = self._answer()
        assert measured is not None  # noqa: S101 - it answers a phase
        return Played(phase, role, measured, parts.since(before) if parts else {})

    def _answer(self) -> Measurement | None:
        try:
            found: Measurement | GeneratorError | None = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            raise GeneratorError(f"the load generator failed: it ended with exit code {code}") from None
        if isinstance(found, GeneratorError):
            raise found
        return found

    def close(self) -> None:
        """End it, in the middle of a phase too: between phases it has nothing to lose."""
        self._process.kill()
        self._process.join()
        self._guard.note(f"-{self.pid}")
        self._guard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_about: object) -> None:
        self.close()


def _serve(connection: Connection, pools: Pools) -> None:
    """Say that it is ready, then answer each phase."""
    os.setpgid(0, 0)  # a group for the guard, which Ctrl-C in the terminal does not reach
    driver = Driver(pools)
    answer: Measurement | GeneratorError | None = None
    with suppress(EOFError, OSError):  # the parent has ended
        while True:
            connection.send(answer)
            phase = connection.recv()
            try:
                answer = driver.play(phase)
            except (KeyError, ValueError, OSError) as error:
                answer = GeneratorError(f"{type(error).__name__}: {error}")
