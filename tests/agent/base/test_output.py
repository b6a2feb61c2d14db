"""Standard output and standard error while nobody reads them."""

import contextlib
import json
import logging
import os
from unittest import mock

import pytest

from iamroles_agent.base import output
from iamroles_agent.base.output import Output


@contextlib.contextmanager
def unread_standard_output():
    """Descriptor 1 is a pipe for a while; gives its reading end, not blocking. (No fixture: pytest's own
    capture sets the descriptor again between fixtures and test.)"""
    reader, writer = os.pipe()
    former = os.dup(1)
    os.dup2(writer, 1)
    os.set_blocking(reader, False)
    try:
        yield reader
    finally:
        os.dup2(former, 1)
        for descriptor in (reader, writer, former):
            os.close(descriptor)


@pytest.mark.parametrize("reopens", [True, False], ids=["own", "of-another-user"])
def test_lines_that_were_dropped_on_standard_output_leave_json_behind(caplog, monkeypatch, reopens):
    """A program reads it line by line; what was dropped is said in the log."""
    if not reopens:
        monkeypatch.setattr(output.os, "open", mock.Mock(side_effect=PermissionError))
    line = json.dumps({"reloaded": False, "error": "x" * 300_000}).encode() + b"\n"
    with unread_standard_output() as reader, caplog.at_level(logging.WARNING):
        out = Output(1, 1 << 20)
        for _ in range(8):
            out.write(line)
        heard = b""
        while not out.flush():
            heard += os.read(reader, 1 << 20)
        with contextlib.suppress(BlockingIOError):
            heard += os.read(reader, 1 << 20)

    lines = heard.splitlines()
    dropped = 8 - len(lines)
    assert dropped > 0
    assert [json.loads(one)["reloaded"] for one in lines] == [False] * len(lines)
    assert f"{dropped} lines on standard output were dropped" in caplog.text
