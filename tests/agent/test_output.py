"""Standard output and standard error while nobody reads them."""

from __future__ import annotations

import contextlib
import json
import logging
import os

import pytest

from iamroles_agent.output import Output


@pytest.fixture
def standard_output():
    """Descriptor 1 is a pipe for a while; gives its reading end, not blocking."""
    reader, writer = os.pipe()
    former = os.dup(1)
    os.dup2(writer, 1)
    os.set_blocking(reader, False)
    yield reader
    os.dup2(former, 1)
    for descriptor in (reader, writer, former):
        os.close(descriptor)


def test_lines_that_were_dropped_on_standard_output_leave_json_behind(standard_output, caplog):
    """A program reads it line by line; what was dropped is said in the log."""
    out = Output(1, 1 << 20)
    line = json.dumps({"reloaded": False, "error": "x" * 300_000}).encode() + b"\n"
    with caplog.at_level(logging.WARNING):
        for _ in range(8):
            out.write(line)
        heard = b""
        while not out.flush():
            heard += os.read(standard_output, 1 << 20)
        with contextlib.suppress(BlockingIOError):
            heard += os.read(standard_output, 1 << 20)

    lines = heard.splitlines()
    dropped = 8 - len(lines)
    assert dropped > 0
    assert [json.loads(one)["reloaded"] for one in lines] == [False] * len(lines)
    assert f"{dropped} lines on standard output were dropped" in caplog.text
