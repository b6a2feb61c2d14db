"""Load a `Config` from a TOML or JSON file, or report every problem of the file at once (RELOAD-BAD-001).

Three passes, each as far as the passes before it allow: the format's own parser, the models' shapes and
types, and the checks that span tables (`policy.checks`), which also run over the sound part of a file whose
other part has errors. So an operator can correct a file in one round.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ValidationError

from iamroles_agent.base import files
from iamroles_agent.base.config import Config
from iamroles_agent.base.errors import ConfigError, Problem, closest, line_of_digits
from iamroles_agent.policy.checks import check
from iamroles_agent.policy.compiled import Policy
from iamroles_agent.policy.groups import ungrouped
from iamroles_agent.policy.lines import Lines, json_lines, line_of, toml_lines
from iamroles_agent.policy.sound import Sound

_MAX_BYTES = 64 << 20
_LEAST_NONCE_KEY, _MAX_SECRET = 32, 4096
_MOST_SECRETS, _SECRETS = 4, "identity_header.secrets"
_SECRET = re.compile(rb"[!-~]{43,512}")
_VENDOR = "x-"
"""Top-level tables of vendors (`[x-acme]`) are not checked: SPEC.md section 6."""
_Find = Callable[[], Lines]


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A configuration and the lines of its parts."""

    config: Config
    """Checked, groups written out."""
    written: Config
    """As the file says it."""
    lines: _Find
    name: str

    def line(self, key: str) -> int | None:
        """Return the 1-based line of a key such as `grants[2].backend`, or of the table that holds it."""
        return line_of(self.lines(), key)


def load(path: Path | str) -> Config:
    """Read a configuration; the suffix `.json` means JSON, any other TOML.

    Raises:
        ConfigError: with every problem of the file.
    """
    return load_file(path).config


def load_text(text: str, format: Literal["toml", "json"] = "toml", name: str = "<policy>") -> Config:  # noqa: A002
    """Read a configuration from memory; `name` stands for the file in problems.

    Raises:
        ConfigError: with every problem.
    """
    return parse_text(text, format, name).config


def load_policy(path: Path | str) -> Policy:
    """Read and compile a policy, and the policy beside it that it names as `agent.shadow_policy`.

    Raises:
        ConfigError: with every problem of the file, or of the shadow policy's.
    """
    config = load(path)
    tried = shadow_of(Path(path), config)
    return Policy(config, None if tried is None else Policy(tried))


def shadow_of(path: Path, config: Config) -> Config | None:
    """Read the policy that `agent.shadow_policy` of a configuration at `path` names.

    Raises:
        ConfigError: with that key, and every problem of that policy.
    """
    if (name := config.agent.shadow_policy) is None:
        return None
    try:
        return load(path.parent / name)
    except ConfigError as error:
        remedy = "Correct that policy, or leave the key out"
        here = Problem(str(path), "agent.shadow_policy", f"{name} cannot be enforced", remedy)
        raise ConfigError([here, *error.problems]) from error


def load_file(path: Path | str) -> PolicyFile:
    """Read a configuration like `load`, and keep the line numbers."""
    path = Path(path)
    try:
        raw = files.read(path, _MAX_BYTES)
    except OSError as error:
        remedy = "Name a policy file that exists and that this user may read"
        raise _fault(path, f"cannot be read: {error.strerror or error}", remedy) from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _fault(path, "is not UTF-8", "Save it as UTF-8", line) from error
    if text.startswith("\ufeff"):
        raise _fault(path, "begins with a byte-order mark (BOM)", "Save it as UTF-8 without BOM", 1)
    return parse_text(text, "json" if path.suffix == ".json" else "toml", str(path))


def nonce_key(path: Path, config: Config) -> bytes:
    """Read the key that `dpop.nonce_key` of a configuration at `path` names; b"" without nonces or a key.

    Raises:
        ConfigError: it cannot be read, is too short, or others may read it.
    """
    if config.dpop is None or not config.dpop.nonce or config.dpop.nonce_key is None:
        return b""
    place, key = path.parent / config.dpop.nonce_key, "dpop.nonce_key"
    found = _private(path, key, place, "openssl rand 32")
    if len(found) < _LEAST_NONCE_KEY:
        why = f"{place} has {len(found)} octets, and must have {_LEAST_NONCE_KEY}"
        raise ConfigError([Problem(str(path), key, why, "Write random octets: `openssl rand 32 > FILE`")])
    return hashlib.sha256(found).digest()


def identity_secrets(path: Path, config: Config) -> tuple[bytes, ...]:
    """Read the secrets that `identity_header.secrets` of a configuration at `path` names; () without a file.

    Raises:
        ConfigError: it cannot be read, a line cannot be a secret, or others may read it. It quotes no line.
    """
    if config.identity_header is None or config.identity_header.secrets is None:
        return ()
    place, key, how = path.parent / config.identity_header.secrets, _SECRETS, "openssl rand -base64 32"
    lines = [line.strip() for line in _private(path, key, place, how).splitlines()]
    found = [line for line in lines if line]
    wrong = next((n for n, line in enumerate(lines, 1) if line and not _SECRET.fullmatch(line)), 0)
    if wrong:
        why = f"line {wrong} of {place} cannot be a secret: 43 to 512 ASCII characters without a blank"
    elif not 1 <= len(set(found)) == len(found) <= _MOST_SECRETS:
        why = f"{place} has {len(found)} secrets, and must have 1 to {_MOST_SECRETS}, all different"
    else:
        return tuple(hashlib.sha256(line).digest() for line in found)
    raise ConfigError([Problem(str(path), key, why, f"Write a secret in each line: `{how} > FILE`")])


def _private(path: Path, key: str, place: Path, how: str) -> bytes:
    try:
        return files.read_secret(place, _MAX_SECRET)
    except OSError as error:
        remedy = f"Give the agent's user a file with mode 0600: `{how} > FILE`"
        why = f"{place} cannot be used: {error.strerror or error}"
        raise ConfigError([Problem(str(path), key, why, remedy)]) from error


def _fault(name: Path | str, message: str, remedy: str, line: int | None = None) -> ConfigError:
    return ConfigError([Problem(str(name), "", message, remedy, line)])


def parse_text(text: str, format: Literal["toml", "json"], name: str) -> PolicyFile:  # noqa: A002
    """Read a configuration like `load_text`, and keep the line numbers."""
    data, lines, problems = _parse(text, format, name)
    data = {key: value for key, value in data.items() if not key.startswith(_VENDOR) and key != "$schema"}
    try:
        config = Config.model_validate(data)
        sound = Sound.of_config(config)
    except ValidationError as error:
        problems += _shape_problems(error, data, lines, name)
        config = None
        sound = Sound.of_data(data, {_real_location(item["loc"], data) for item in error.errors()})
    problems += _unwritable(text, data, lines, name)
    problems += [
        Problem(name, fault.key, fault.message, fault.remedy, line_of(lines(), fault.key))
        for fault in check(sound)
    ]
    if problems or config is None:
        raise ConfigError(sorted(problems, key=lambda problem: (problem.line or 0, problem.key)))
    return PolicyFile(ungrouped(config), config, lines, name)


def _parse(
    text: str,
    format: Literal["toml", "json"],  # noqa: A002
    name: str,
) -> tuple[dict[str, Any], _Find, list[Problem]]:
    """Run the format's own parser. Lines are found when they are first asked for: most files are sound.

    Raises:
        ConfigError: the text cannot be parsed.
    """
    if format == "toml":
        try:
            return tomllib.loads(text), cache(lambda: toml_lines(text)), []
        except (ValueError, RecursionError) as error:
            found = re.search(r"line (\d+)", str(error))
            last = (
                text.count("\n") + 1 if isinstance(error, tomllib.TOMLDecodeError) else line_of_digits(text)
            )
            line = int(found[1]) if found else last
            raise _fault(name, f"is not TOML: {error}", "Correct the syntax", line) from error
    twice: list[object] = []

    def once(members: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(members)
        twice.extend(members[len(found) :])
        return found

    try:
        data = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        at = error.lineno if isinstance(error, json.JSONDecodeError) else line_of_digits(text)
        raise _fault(name, f"is not JSON: {error}", "Correct the syntax", at) from error
    if not isinstance(data, dict):
        raise _fault(name, "is not a JSON object", "Write the tables as members", 1)
    same = ("is written twice in one object", "Keep one of the two")
    again = json_lines(text)[1] if twice else []
    return data, cache(lambda: json_lines(text)[0]), [Problem(name, key, *same, line) for key, line in again]


def _unwritable(text: str, data: object, lines: _Find, name: str) -> Iterator[Problem]:
    """Find texts that no file name and no frame can hold: their characters must be escaped in the policy."""
    left = [("", data)] if re.search(r"\\[uU](0000|[dD][89a-fA-F])", text) else []
    for key, value in left:
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            wrong = "has U+0000 or half a surrogate pair"
            yield Problem(name, key, wrong, "Leave it out", line_of(lines(), key))
        elif isinstance(value, dict):
            left += [(f"{key}.{member}".removeprefix("."), inner) for member, inner in value.items()]
        elif isinstance(value, list):
            left += [(f"{key}[{index}]", inner) for index, inner in enumerate(value)]


def _shape_problems(error: ValidationError, data: object, lines: _Find, name: str) -> Iterator[Problem]:
    for item in error.errors(include_url=False):
        loc = _real_location(item["loc"], data)
        key = _dotted(loc)
        message, remedy = _explain(item["type"], item["msg"], item.get("ctx", {}), loc)
        yield Problem(name, key, message, remedy, line_of(lines(), key))


def _real_location(loc: tuple[int | str, ...], data: object) -> tuple[int | str, ...]:
    """Drop the parts that pydantic adds for the members of a union (`roles_claim.str`)."""
    real: list[int | str] = []
    for part in loc:
        if isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif isinstance(data, dict):
            data = data.get(part)
        else:
            continue
        real.append(part)
    return tuple(real)


def _dotted(loc: tuple[int | str, ...]) -> str:
    key = ""
    for part in loc:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key


def _explain(kind: str, message: str, context: dict[str, Any], loc: tuple[int | str, ...]) -> tuple[str, str]:
    """Return message and remedy, in the operator's words."""
    last = str(loc[-1]) if loc else ""
    if kind == "extra_forbidden":
        known = _known_keys(loc[:-1])
        if near := closest(last.lower(), known, 0.5):
            return "is not a known key", f"Did you mean `{near}`?"
        vendor = f" A vendor's own tables begin with `{_VENDOR}`" if len(loc) == 1 else ""
        return "is not a known key", f"Known here: {', '.join(known)}.{vendor}"
    if kind == "missing":
        if last == "version":
            return "is missing", "Write `version = 1` at the top of the file"
        return "is missing", f"Add `{last} = …`; it has no default"
    if kind == "literal_error":
        return f"is not one of {context.get('expected', '')}", "Write one of them"
    if kind == "list_type" and len(loc) == 1:
        return "is not a list of tables", f"Write each as `[[{last}]]`"
    noun = {"string_type": "a string in quotes", "list_type": "a list in brackets"}
    noun |= {"int_type": "a whole number", "bool_type": "true or false", "float_type": "a number"}
    if wanted := noun.get(kind):
        return f"is not {wanted}", f"Write {wanted}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        listed = isinstance(loc[-1], int)
        inline = "{ … }" if listed else f"{last} = {{ … }}"
        header = f"[[{loc[0]}]]" if listed else f"[{loc[0]}]"
        return "is not a table", f"Write it as `{inline if len(loc) > 1 + listed else header}`"
    if kind == "value_error":
        return f"is wrong: {context.get('error', message)}", "Write it so"
    return message[:1].lower() + message[1:], "Choose a value within the bounds"


def _known_keys(loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the model at a location."""
    model: type[BaseModel] = Config
    for part in loc:
        if isinstance(part, str) and (field := model.model_fields.get(part)) is not None:
            kinds = (field.annotation, *get_args(field.annotation))
            model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), model)
    return [about.alias or name for name, about in model.model_fields.items()]
