"""Prepares and runs the compose file: HAProxy, two agents, mocks, a locust master and its workers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import docker

from iamroles_loadtests.asking import gate_config
from iamroles_loadtests.locusting.master import IDP
from iamroles_scenarios.base.errors import StageError
from iamroles_scenarios.stage.images import Images

REPORT = ("result.json", "summary.txt", "index.html")
AGENTS = ("agent-1:9901", "agent-2:9901")


def prepare(directory: Path, settings: Mapping[str, str], *, haproxy: str = "3.0") -> None:
    """Build the images and write compose.yaml with all that it mounts.

    Args:
        directory: where; made if need be.
        settings: variables of the compose file.
        haproxy: which one.

    Raises:
        StageError: no engine, or an image cannot be built.
    """
    try:
        images = Images(docker.from_env())
    except docker.errors.DockerException as error:
        raise StageError(f"No Docker engine answers: {error}. Start one.") from error
    (directory / "haproxy").mkdir(parents=True, exist_ok=True)
    out = directory / "out"
    out.mkdir(exist_ok=True)
    for name in REPORT:  # of an earlier run: a failed one must not look like it
        (out / name).unlink(missing_ok=True)
    variables = {
        **settings,
        "IAMROLES_IMAGE": images.python(load=True),
        "IAMROLES_HAPROXY_IMAGE": images.haproxy(haproxy),
    }
    lines = "".join(f"{name}={value}\n" for name, value in variables.items())
    (directory / ".env").write_text(lines, encoding="utf-8")
    compose = files("iamroles_loadtests.locusting").joinpath("compose.yaml").read_text(encoding="utf-8")
    (directory / "compose.yaml").write_text(compose, encoding="utf-8")
    policy = gate_config.orders_policy() | {"agent": {"listen": "0.0.0.0:9901"}}
    world = directory / "world.json"
    world.write_text(json.dumps(policy, indent=1).replace("{idp}", IDP), encoding="utf-8")
    if code := gate_config.render(str(world), str(directory / "haproxy"), AGENTS):
        raise StageError(f"iamroles policy render ended with exit code {code}.")


def up(directory: Path) -> int:
    """Run it to its end, and remove the containers; returns the master's exit code.

    Raises:
        StageError: there is no `docker compose`.
    """
    compose = ["docker", "compose", "--project-directory", str(directory)]
    try:
        subprocess.run([*compose, "version"], check=True, capture_output=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        raise StageError("`docker compose` is missing: install Docker's compose plugin.") from error
    try:
        ends = ["--abort-on-container-exit", "--exit-code-from", "master", "--attach", "master"]
        return subprocess.run([*compose, "up", *ends], check=False).returncode  # noqa: S603
    finally:
        subprocess.run([*compose, "down", "--volumes", "--timeout", "2"], check=False, capture_output=True)  # noqa: S603
