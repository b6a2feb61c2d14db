"""Start a mock as its own process and wait for its ready line."""

import json
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Mock:
    process: subprocess.Popen[str]
    ready: dict[str, Any]


@contextmanager
def running(module: str, *arguments: str) -> Iterator[Mock]:
    command = [sys.executable, "-m", f"iamroles_scenarios.mock.{module}", "--exit-with-parent", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], 30)[0], f"{module} says nothing"
        line = process.stdout.readline()
        assert line, f"{module} ended with {process.wait(10)}"
        yield Mock(process, json.loads(line))
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
            raise
        finally:
            process.stdout.close()
