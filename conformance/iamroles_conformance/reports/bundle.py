"""The bundle of evidence of a run: one `.tar.gz` that others can check, render again, and replay in part.

====================  =====================================================================================
``manifest.json``     SHA-256 and size of every other file; what a signature signs
``manifest.json.sig`` 64 bytes: Ed25519 (RFC 8032) over the bytes of ``manifest.json``; only if signed
``report.json``       the document of the run, and its forms: ``report.html``, ``junit.xml``, ``summary.md``,
                      ``badge.svg``, ``badge.json``
``transcripts/…``     what passed in each check, those that passed too; named as the check, ``.txt``
====================  =====================================================================================

The manifest is canonical JSON: keys sorted, no white space, ASCII, one newline at its end. So it has one form
for each content, and `openssl pkeyutl -verify -rawin` can check the signature without this suite. The public
key stands in it: to take the signature away, one must take the key out, too, and then the bundle is unsigned
and says so. Whether the key is the vendor's, only a key had from the vendor can tell.

Nothing of a bundle is ever written to disk by its reader: names in an archive are a stranger's words.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from iamroles_conformance.errors import BundleError, ReportError
from iamroles_conformance.reports import report
from iamroles_scenarios.base.recording import without_secrets
from iamroles_scenarios.declarations.results import CheckResult

FORMAT = "iamroles-evidence-1"
MANIFEST, SIGNATURE, REPORT = "manifest.json", "manifest.json.sig", "report.json"
_MOST = 256 << 20
"""Bytes of a whole bundle, unpacked."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose digests are right and whose signature, if it has one, fits the key that it names."""

    files: Mapping[str, bytes]
    """All but manifest and signature, by name."""
    key: bytes | None
    """The public key it is signed with, raw; None: it is unsigned."""

    @property
    def document(self) -> dict[str, Any]:
        """The report, as it stands there.

        Raises:
            BundleError: the report is missing or invalid.
        """
        try:
            found: dict[str, Any] = json.loads(self.files[REPORT])
            report.parsed(self.files[REPORT].decode(), REPORT)
        except (KeyError, ValueError, RecursionError, ReportError) as error:
            raise BundleError(f"{REPORT}: is not the report of a run: {error}") from error
        return found


def transcript_name(check: str) -> str:
    """The file of a check's transcript."""
    return f"transcripts/{check}.txt"


def write(
    path: Path,
    found: Mapping[str, Any],
    results: Mapping[str, CheckResult],
    key: Ed25519PrivateKey | None = None,
) -> None:
    """Write the bundle of a run.

    Args:
        path: the file.
        found: the document.
        results: by the name of the check.
        key: signs it.
    """
    files = {name: text.encode() for name, text in report.forms(dict(found)).items()}
    for name, result in results.items():
        files[transcript_name(name)] = _transcript(name, result).encode("utf-8", "backslashreplace")
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "files": {name: entry(content) for name, content in files.items()},
        "public_key": key.public_key().public_bytes_raw().hex() if key else None,
    }
    files[MANIFEST] = canonical(manifest)
    if key is not None:
        files[SIGNATURE] = key.sign(files[MANIFEST])
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    prepared(path)
    path.write_bytes(gzip.compress(whole.getvalue(), mtime=0))


def prepared(path: Path) -> None:
    """Make sure, before a long run, that a bundle can be written there.

    Raises:
        BundleError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        path.open("ab").close()
        if new:
            path.unlink()  # a run that comes to nothing leaves none that is empty
    except OSError as error:
        raise BundleError(f"{path}: no bundle can be written there: {error.strerror}.") from error


def _transcript(name: str, result: CheckResult) -> str:
    head = f"{name}: {result.verdict.value}\n{result.title}\n{without_secrets(result.message)}".rstrip()
    nothing = "--- nothing was sent: the check does not apply, or talks to no agent itself"
    return f"{head}\n\n{result.transcript or nothing}\n"


def entry(content: bytes) -> dict[str, Any]:
    """Make the manifest's entry of a file."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def canonical(value: Mapping[str, Any]) -> bytes:
    """JSON in its one form: what is signed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"


def read(path: Path) -> Bundle:
    """Read a bundle and hold it to its manifest and signature.

    Raises:
        BundleError: names the file that is wrong.
    """
    files = _unpacked(path)
    raw, signature = files.pop(MANIFEST, None), files.pop(SIGNATURE, None)
    if raw is None:
        raise BundleError(f"{MANIFEST}: is missing: {path} is not a bundle of evidence.")
    manifest = _manifest(raw)
    for name in sorted(files.keys() ^ manifest["files"].keys()):
        raise BundleError(f"{name}: is {'not in the manifest' if name in files else 'missing'}.")
    for name, content in files.items():
        if entry(content) != manifest["files"][name]:
            raise BundleError(f"{name}: was changed: it is not what the manifest says.")
    return Bundle(files, _signer(manifest["public_key"], raw, signature))


class _Bounded(gzip.GzipFile):
    """Refuse to read past `_MOST`: `tarfile` reads the header of a long name whole, whatever its size."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() + (size or 0) > _MOST:
            raise BundleError(f"{self.name}: unpacks to more than {_MOST} bytes.")
        return super().read(size)


def _unpacked(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    left = _MOST
    try:
        with _Bounded(path) as packed, tarfile.open(fileobj=packed, mode="r:") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                left -= member.size
                if content is None or left < 0 or member.name in files:
                    why = (
                        "stands there twice" if member.name in files else "is not a plain file, or too large"
                    )
                    raise BundleError(f"{member.name}: {why}.")
                files[member.name] = content.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read as a bundle: {error}.") from error
    return files


def _manifest(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
        sound = found["format"] == FORMAT and isinstance(found["files"], dict) and "public_key" in found
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound or canonical(found) != raw:
        raise BundleError(f"{MANIFEST}: is not canonical, or not a manifest of the format {FORMAT}.")
    assert isinstance(found, dict)  # noqa: S101 - it has keys
    return found


def _signer(named: object, raw: bytes, signature: bytes | None) -> bytes | None:
    if named is None and signature is None:
        return None
    if not isinstance(named, str) or signature is None:
        raise BundleError(f"{SIGNATURE}: is missing, or {MANIFEST} names no key: the bundle was changed.")
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(named))
        key.verify(signature, raw)
    except (InvalidSignature, ValueError) as error:
        raise BundleError(f"{SIGNATURE}: does not fit {MANIFEST}: the bundle was changed.") from error
    return key.public_bytes_raw()


def private_key(path: Path) -> Ed25519PrivateKey:
    """The key to sign with, PEM (PKCS #8), without a passphrase.

    Raises:
        BundleError: it is invalid.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BundleError(f"{path}: is not a private key without a passphrase: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError(f"{path}: is not an Ed25519 key. Make one: openssl genpkey -algorithm ed25519")
    return key


def public_key(path: Path) -> bytes:
    """The key a bundle should be signed with, PEM; gives it raw.

    Raises:
        BundleError: it is invalid.
    """
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise BundleError(f"{path}: is not a public key: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError(f"{path}: is not an Ed25519 key.")
    return key.public_bytes_raw()
