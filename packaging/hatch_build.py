"""Add to a build what no table of pyproject.toml can: a PyPI page whose links work, and an SBOM (PEP 770)."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)(?P<target>[^)\s]+)")


class Readme(MetadataHookInterface):
    """README.md with links into the repository, because PyPI has no other file of it."""

    def update(self, metadata: dict[str, Any]) -> None:
        base = metadata["urls"]["Repository"]

        def link(match: re.Match[str]) -> str:
            kind = "raw" if match["target"].endswith((".png", ".svg")) else "blob"
            return f"{base}/{kind}/HEAD/{match['target']}"

        text = _LINK.sub(link, Path(self.root, "README.md").read_text(encoding="utf-8"))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


class Sbom(BuildHookInterface):  # type: ignore[type-arg]
    """The packages of requirements.txt as CycloneDX, in the wheel's metadata."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        core = self.metadata.core
        root = {"name": core.name, "version": self.metadata.version}
        root |= {"purl": (ref := f"pkg:pypi/{core.name}@{self.metadata.version}"), "bom-ref": ref}
        lines = Path(self.root, "packaging/requirements.txt").read_text(encoding="utf-8").splitlines()
        pins = {
            name: {"type": "library", "name": name, "version": pin}
            | dict.fromkeys(("purl", "bom-ref"), f"pkg:pypi/{name}@{pin}")
            for name, pin in (line.split("==") for line in lines if not line.startswith("#"))
        }
        names = {canonicalize_name(Requirement(line).name) for line in core.dependencies}
        direct = [pins[name]["bom-ref"] for name in sorted(names & pins.keys())]
        licence = {"license": {"id": core.license_expression}}
        said = "The release was tested with these. The wheel contains none of them."
        bom = {
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {
                "component": {"type": "application", "licenses": [licence], **root},
                "properties": [{"name": "haproxy-iam-roles:versions", "value": said}],
            },
            "components": list(pins.values()),
            "dependencies": [{"ref": ref, "dependsOn": direct}],
        }
        self._folder = tempfile.mkdtemp()
        file = Path(self._folder, f"{core.name}.cdx.json")
        file.write_text(json.dumps(bom, indent=2) + "\n", encoding="utf-8")
        build_data.setdefault("sbom_files", []).append(str(file))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        shutil.rmtree(self._folder)
