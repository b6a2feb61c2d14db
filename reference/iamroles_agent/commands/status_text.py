"""The status of a running agent as text for people."""

from __future__ import annotations

from typing import Any

from iamroles_agent.processes import in_force

Found = dict[str, Any]


def well(found: Found) -> bool:
    """Return whether all workers serve the version in force and can decide."""
    problems = [member["stats"].get("problem") for member in found["members"]]
    return not in_force.of(found).broken and not any(problems)


def as_text(found: Found) -> str:
    """Return the answer to `status`, a few lines for each part of the agent."""
    up = _span(found["now"] - found["started"])
    confirmed = f"confirmed by {found['confirmed']} of {found['workers']} workers"
    change = f"; a change is in its phase {found['change']}" if found["change"] else ""
    lines = [
        f"agent {found['agent']}, pid {found['pid']}, on {found['listen']}, up {up}",
        f"in force: version {found['version']}, policy {found['policy']}, {confirmed}{change}",
        *_enforced(found),
        _kept(found),
    ]
    if found["overslept"] >= 1.0:
        lines.append(f"the parent was not run for {found['overslept']:.1f} s in all: this host is overloaded")
    for member in found["members"]:
        lines.append(_member(member))
        lines += _keys(member["stats"])
    return "\n".join(lines)


def _enforced(found: Found) -> list[str]:
    said = in_force.of(found).said()
    requests = [f"new requests: {said['requests']}"] if said["requests"] != "in force" else []
    return [*requests, f"open streams: {said['streams']}"]


def _kept(found: Found) -> str:
    if not found["state_dir"]:
        return "not kept: agent.state_dir is not set"
    if found["save_error"]:
        return f"NOT SAVED in {found['state_dir']}: {found['save_error']}"
    return f"kept in {found['state_dir']}"


def _member(member: Found) -> str:
    stats = member["stats"]
    text = f"{member['name']}: pid {member['pid']}, {member['state']}"
    if member["version"] is not None:
        text += f", version {member['version']}"
    if "connections" in stats:
        text += f", {stats['connections']} connections, {stats['pending']} decisions under way"
    if "questions" in stats:
        text += f", {stats['questions']} questions: {stats['allowed']} allowed, {stats['refused']} refused"
    if audit := stats.get("audit"):
        state = "FAILING" if audit["failing"] else "writing"
        text += f"; audit {state}: {audit['records']} records, {audit['lost']} lost"
    if member["replaced"]:
        text += f"; replaced {member['replaced']} times, last: {member.get('last', '')}"
    if stats.get("problem"):
        text += f"; CANNOT DECIDE: {stats['problem']}"
    return text


def _keys(stats: Found) -> list[str]:
    lines = []
    for name, keys in sorted(stats.get("keys", {}).items()):
        age = "no key set" if keys["age"] is None else f"{keys['kids']} keys, {_span(keys['age'])} old"
        failing = f", {keys['failures']} fetches failed in a row" if keys["failures"] else ""
        lines.append(f"  keys of {name}: {age}, {keys['fetches']} fetches{failing}")
    return lines


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
