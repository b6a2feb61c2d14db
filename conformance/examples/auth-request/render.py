"""Write HAProxy's configuration: the shipped one, with a Lua action that asks the HTTP service."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from shipped import render

ASK = "    http-request lua.auth-request\n"
# One Lua state for all threads: while a question is out the action yields, so others need not wait.
# (`lua-load-per-thread` looks for its file only when `default-path config` no longer holds.)
TOP = """\
    lua-load auth-request.lua
    tune.lua.session-timeout 5s
    httpclient.retries 0
    httpclient.timeout.connect 500ms
"""
# Not for traffic, which Lua sends by itself: HAProxy's check and its commands see the service here.
AGENTS = """\
backend iam-agents from iam-defaults
    mode tcp
    default-server check inter 1s fastinter 250ms downinter 250ms fall 2 rise 1 init-addr last,libc,none
    server agent-1 "${IAM_AGENT_1}"
"""

world, output = map(Path, sys.argv[1:])
render(world, output, ASK, top=TOP, agents=AGENTS)
(output / "auth-request.lua").write_text((HERE / "auth-request.lua").read_text())
