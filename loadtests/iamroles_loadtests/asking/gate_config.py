"""The shipped HAProxy configuration, with what a measurement needs: `python -m …gate_config WORLD OUTPUT`.

Three changes, all in the one HAProxy that is measured, so that its rules, process and core are the same with
and without the question:

- a request with the header `meter-unasked` is not put to the agent; its verdict is set by hand;
- the time that the question takes is noted by HAProxy's own clock, in microseconds;
- the backends answer from within HAProxy, and their answer names the backend and the identity they received:
  no backend's speed is measured, and every verdict can be judged.

A configuration like this must never see real traffic: a client that sends the header needs no token.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from iamroles_scenarios.declarations.scenario import WorldSpec, policy_of
from iamroles_scenarios.engine.certificates import Certificate
from iamroles_scenarios.stage.rendering import SHIPPED
from iamroles_scenarios.stage.spec import find_program

UNASKED = {
    "status": "int(200)",
    "reason": "str(ok)",
    "role": "str(arn:aws:iam::111111111111:role/reader)",
    "principal": "str(meter)",
    "session": "str(none)",
    "issuer": "str(corp)",
    "rule": "str(R1)",
    "backend": "str(orders-ro)",
    "expires": "int(4102444800)",
    "allow": "bool(true)",
}
"""The verdict that is set by hand."""
_QUESTION = re.compile(
    r"^( *)http-request send-spoe-group (\S+ \S+)(?: (if|unless) (?!.*iam_again)(.*))?$", re.MULTILINE
)
"""The first question; the rule that asks again after a lost one stays as it is, and is not timed."""
_BIND = re.compile(r'^ *bind "\$\{IAM_BIND\[\*\]\}"$', re.MULTILINE)
_CERTIFICATE = "meter.pem"
NOWHERE = "127.0.0.1:9"
"""The server of backends that answer from within HAProxy."""
_SECTION = re.compile(r"^(?=\S)", re.MULTILINE)
_ANSWER = (
    'http-request return status 200 content-type text/plain lf-string "backend={name} '
    "principal=%[req.hdr(x-iam-principal)] role=%[req.hdr(x-iam-role)] rule=%[req.hdr(x-iam-rule)] "
    'tokens=%[req.hdr_cnt(authorization)] took=%[var(txn.meter_took)] \\n"'
)


def orders_policy() -> dict[str, Any]:
    """Make the policy `orders`, whose backends answer from within HAProxy."""
    document: dict[str, Any] = json.loads(json.dumps(policy_of(WorldSpec(policy="orders"))))
    for backend in document["backends"]:
        backend["servers"] = [NOWHERE]
    return document


class GateConfigError(Exception):
    """The configuration is not what this module knows how to change."""


def gate(text: str) -> str:
    """Change the gate's file: the question is timed, and left out if the request says so.

    Raises:
        GateConfigError: it does not ask exactly once.
    """
    found = _QUESTION.findall(text)
    if len(found) != 1:
        raise GateConfigError(f"haproxy.cfg has {len(found)} rules `send-spoe-group` where one is expected")
    indent, group, kind, condition = found[0]
    if kind == "unless":
        raise GateConfigError("haproxy.cfg asks `unless` something: the meter cannot add its own condition")
    lines = [
        # Looked for once: HAProxy would look for the header again in each rule that names such an ACL.
        "http-request set-var(txn.meter_unasked) req.hdr(meter-unasked)",
        "acl meter_unasked var(txn.meter_unasked) -m found",
        "http-request set-var(txn.meter_begin) date(0,us)",
        f"http-request send-spoe-group {group} if {condition} !meter_unasked".replace("if  ", "if "),
        "http-request set-var(txn.meter_took) date(0,us),sub(txn.meter_begin)",
        *(
            f"http-request set-var(txn.iam.{name}) {value} if meter_unasked"
            for name, value in UNASKED.items()
        ),
    ]
    return _QUESTION.sub("\n".join(indent + line for line in lines).replace("\\", r"\\"), text)


def routes(text: str) -> str:
    """Change the routes' file: backends answer from within HAProxy."""
    sections = _SECTION.split(text)
    return "".join(
        _answering(section) if section.startswith("backend route-") and NOWHERE in section else section
        for section in sections
    )


def _answering(section: str) -> str:
    head, *lines = section.splitlines()
    name = head.split()[1].removeprefix("route-")
    kept = [line for line in lines if not line.strip().startswith(("server ", "default-server ", "balance "))]
    return "\n".join([head, "    " + _ANSWER.format(name=name), *kept]) + "\n"


def behind_tls(text: str) -> str:
    """Put TLS on the bind line of the gate's file.

    Raises:
        GateConfigError: it does not bind exactly once.
    """
    if len(_BIND.findall(text)) != 1:
        raise GateConfigError("haproxy.cfg must have exactly one bind line with IAM_BIND")
    return _BIND.sub(rf"\g<0> ssl crt {_CERTIFICATE} alpn http/1.1", text)


def shipped(world: str, output: str, agents: Sequence[str] = ()) -> int:
    """Run the shipped render command; returns its exit code.

    Args:
        world: path of the policy.
        output: the directory.
        agents: `host:port` of each; empty: what the stage passes.
    """
    program, *words = SHIPPED
    if agents:
        words = [*words[: words.index("--agent")], *(word for at in agents for word in ("--agent", at))]
    argv = [find_program(program, None), *(word.format(world=world, output=output) for word in words)]
    return subprocess.run(argv, check=False, stdout=subprocess.DEVNULL).returncode  # noqa: S603 - as shipped


def shipped_files(policy: Mapping[str, Any]) -> dict[str, str]:
    """Render a policy whose issuers are nowhere as shipped; returns texts by file name."""
    with TemporaryDirectory() as output:
        world = Path(output, "world.json")
        world.write_text(json.dumps(policy).replace("{idp}", f"http://{NOWHERE}"), encoding="utf-8")
        if code := shipped(str(world), output):
            raise GateConfigError(f"iamroles policy render ended with exit code {code}")
        return {path.name: path.read_text(encoding="utf-8") for path in Path(output).iterdir()}


def render(world: str, output: str, agents: Sequence[str] = (), *, tls: bool = False) -> int:
    """As `shipped`, with what a measurement needs; `tls`: clients speak TLS.

    Raises:
        GateConfigError: see `gate`.
    """
    if code := shipped(world, output, agents):
        return code
    for name, change in (("haproxy.cfg", gate), ("iam-routes.cfg", routes)):
        path = Path(output, name)
        text = change(path.read_text(encoding="utf-8"))
        path.write_text(behind_tls(text) if tls and name == "haproxy.cfg" else text, encoding="utf-8")
    if tls:
        Path(output, _CERTIFICATE).write_text(Certificate().pem, encoding="utf-8")
    return 0


if __name__ == "__main__":
    both = ("127.0.0.1:9901", "127.0.0.1:9902") if "--second" in sys.argv[3:] else ()
    sys.exit(render(sys.argv[1], sys.argv[2], both, tls="--tls" in sys.argv[3:]))
