"""The shipped HAProxy configuration, cut up: `python -m iamroles_loadtests.bench.variants WORLD OUTPUT …`.

A step is what stands under a heading `# ---- N. what it does` of haproxy.cfg; `record` is the log line,
`live` the rules that every backend begins with. A step is left out by removing its rules: what HAProxy then
no longer spends is what the step costs. None of these may ever see real traffic.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from iamroles_loadtests.asking import gate_config

_HEADING = re.compile(r"^    # ---- (?:(\d)\. )?(.*?) -*$")
RULE = re.compile(r"^    (?:http-request|http-response|http-after-response|log-format|unique-id-format) ")
_RECORD, _LIVE = "record", "live"
_ASK = "3"
_FILTER = re.compile(r"^    filter spoe .*\n", re.MULTILINE)
_QUESTION = re.compile(r"^    http-request send-spoe-group .*\n", re.MULTILINE)
_FRONTEND = re.compile(r"^frontend iam-gate .*\n", re.MULTILINE)
_BACKENDS = "defaults iam-routes from iam-defaults\n"
_PLAIN = '    http-request return status 200 content-type text/plain string "backend=plain\\n"\n'


def steps(text: str) -> dict[str, str]:
    """The steps of haproxy.cfg: what each does, by what `--without` calls it."""
    found = {}
    for line in text.splitlines():
        if heading := _HEADING.match(line):
            name = heading[1] or (_RECORD if heading[2].startswith("The record") else _LIVE)
            found[name] = heading[2]
    return found


def without(text: str, left_out: set[str]) -> str:
    """haproxy.cfg without the rules of some steps; without `3` it has no SPOE filter either.

    Raises:
        GateConfigError: a step does not exist.
    """
    if strange := left_out - steps(text).keys():
        raise gate_config.GateConfigError(f"haproxy.cfg has no step {', '.join(sorted(strange))}")
    kept, step = [], ""
    for line in text.splitlines(keepends=True):
        if heading := _HEADING.match(line.rstrip("\n")):
            step = heading[1] or (_RECORD if heading[2].startswith("The record") else _LIVE)
        elif line[:1].isalpha():
            step = ""
        if not (step in left_out and RULE.match(line)):
            kept.append(line)
    text = "".join(kept)
    return _FILTER.sub("", text) if _ASK in left_out else text


def without_streams(files: Mapping[str, str]) -> dict[str, str]:
    """Rendered files without the step `live`, and without what refuses streams in the backends."""
    kept = [line for line in files["iam-routes.cfg"].splitlines(keepends=True) if not RULE.match(line)]
    return {**files, "haproxy.cfg": without(files["haproxy.cfg"], {_LIVE}), "iam-routes.cfg": "".join(kept)}


def by_hand(text: str) -> str:
    """haproxy.cfg with the verdict set where the agent is asked."""
    return _asked(text, _by_hand())


def native(text: str, key: str) -> str:
    """haproxy.cfg with HAProxy's own check in the agent's place: RS256 by a key, and `exp`; no roles.

    Each is looked at once, and what follows needs no condition: HAProxy would verify the signature again in
    each rule that names an ACL of it.
    """
    refuse = "http-request deny deny_status 401 unless"
    return _asked(
        text,
        "    http-request set-var(txn.bearer) http_auth_bearer\n"
        f'    {refuse} {{ var(txn.bearer),jwt_verify(RS256,"{key}") -m int 1 }}\n'
        "    http-request set-var(txn.native_exp) var(txn.bearer),jwt_payload_query('$.exp','int')\n"
        f"    {refuse} {{ date,sub(txn.native_exp),neg -m int gt 0 }}\n" + _by_hand(),
    )


def _by_hand() -> str:
    return "".join(
        f"    http-request set-var(txn.iam.{name}) {value}\n" for name, value in gate_config.UNASKED.items()
    )


def _asked(text: str, rules: str) -> str:
    first, *rest = _QUESTION.split(text)
    return first + rules + "".join(rest)


def plain(text: str, *, recorded: bool = False) -> str:
    """haproxy.cfg whose front end answers at once: what a request costs without us.

    It makes no log line; `recorded`: it makes the gate's.
    """
    text = without(text, set(steps(text)) - ({_RECORD} if recorded else set()))
    if not recorded:
        text = text.replace("    log global\n", "")
    return _FRONTEND.sub(lambda found: found[0] + _PLAIN, text)


def main() -> int:
    """Render, then change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("world")
    parser.add_argument("output")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--recorded", action="store_true", help="with --plain")
    parser.add_argument("--unasked", action="store_true")
    parser.add_argument("--native", metavar="FILE")
    parser.add_argument("--without", action="append", default=[], metavar="STEP")
    asked = parser.parse_args()
    if code := gate_config.shipped(asked.world, asked.output):
        return code
    gate, routes = (Path(asked.output, name) for name in ("haproxy.cfg", "iam-routes.cfg"))
    text = gate.read_text(encoding="utf-8")
    if asked.plain:
        text = plain(text, recorded=asked.recorded)
    elif asked.native:
        text = native(text, asked.native)
    elif asked.unasked:
        text = by_hand(text)
    left_out = set(asked.without)
    if (asked.unasked or asked.native) and not asked.plain:
        text = _FILTER.sub("", text)
    gate.write_text(without(text, left_out) if left_out else text, encoding="utf-8")
    routes.write_text(gate_config.routes(routes.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
