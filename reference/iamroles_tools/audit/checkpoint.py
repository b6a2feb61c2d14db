"""Signed checkpoints of a log, and proofs that a batch of lines is in it.

A checkpoint states the number of batches in a log and the root of their tree (`chain.Tree`). It is a note in
C2SP's tlog-checkpoint format, signed with Ed25519 (C2SP signed-note), so any witness that knows these formats
accepts it. An old checkpoint shows whether the log was rewritten since.

Who signs. Not the agent: a key on the host that writes the log would sign a rewritten log as well. The
auditor runs `iamroles audit checkpoint` on a copy, or with read access; each run first checks that the log
still holds the tree of the previous run.

A proof is a file in C2SP's tlog-proof format: the batch's lines as its extra data, the inclusion path (RFC
9162 section 2.1.3), the checkpoint. To check it one needs only these lines of the log.
"""

from __future__ import annotations

import base64
import hashlib
import re
from binascii import Error as Base64Error
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from iamroles_agent.audit.chain import SEALED
from iamroles_tools.audit.merkle import root_of_path

_ED25519 = b"\x01"
_DASH = "— "
_PROOF = "c2sp.org/tlog-proof@v1"
NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,255}")


class CheckpointError(Exception):
    """A key, a note or a proof cannot be read, or is wrong."""


class KeyFormatError(CheckpointError):
    """A key is invalid."""


def _key_id(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(text: str, name: str) -> bytes:
    with suppress(Base64Error, ValueError):
        if _encoded(data := base64.b64decode(text)) == text:  # one spelling: no stray trailing bits
            return data
    raise CheckpointError(f"{name} is not base64")


@dataclass(frozen=True, slots=True)
class Verifier:
    """A trusted signer: a name, and the key for it and for all names below it (`name/…`)."""

    name: str
    key: Ed25519PublicKey

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """Read a verifier key as `audit key` prints it: `name+id+base64` (C2SP signed-note).

        Raises:
            KeyFormatError: it is invalid.
        """
        name, _, rest = text.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        try:
            data = _decoded(encoded, "the key")
        except CheckpointError as error:
            raise KeyFormatError(str(error)) from error
        if not NAME.fullmatch(name) or len(data) != 33 or data[:1] != _ED25519:
            raise KeyFormatError(
                f"{text.strip()!r} is not a verifier key for Ed25519: `iamroles audit key` prints it"
            )
        if key_id != _key_id(name, data[1:]).hex():
            raise KeyFormatError(
                f"the key id {key_id} does not fit {name} and this key: was it copied whole?"
            )
        return cls(name, Ed25519PublicKey.from_public_bytes(data[1:]))

    def __str__(self) -> str:
        public = _raw(self.key)
        return f"{self.name}+{_key_id(self.name, public).hex()}+{_encoded(_ED25519 + public)}"

    def signed(self, text: str, name: str, signature: bytes) -> bool | None:
        """Return whether a signature line of this key is right; None if another key made it."""
        if name != self.name and not name.startswith(self.name + "/"):
            return None
        if signature[:4] != _key_id(name, _raw(self.key)):
            return None
        try:
            self.key.verify(signature[4:], text.encode())
        except InvalidSignature:
            return False
        return True


def new_key() -> bytes:
    """Make an Ed25519 key, PEM (PKCS #8)."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_key(pem: bytes, source: str) -> Ed25519PrivateKey:
    """Read a signing key.

    Raises:
        KeyFormatError: it is not an unencrypted Ed25519 key.
    """
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise KeyFormatError(f"{source} does not hold an unencrypted private key in PEM: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFormatError(
            f"{source} is not an Ed25519 key. Make one: iamroles audit key {source}.new --name NAME"
        )
    return key


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a log: its name, its number of batches, the root of their tree."""

    origin: str
    size: int
    root: bytes

    def __str__(self) -> str:
        return f"{self.origin}\n{self.size}\n{_encoded(self.root)}\n"

    def signed(self, keys: Iterable[Ed25519PrivateKey]) -> str:
        """Make the note, with one signature for each key; the key's name is the origin."""
        text = str(self)
        lines = ""
        for key in keys:
            signature = _key_id(self.origin, _raw(key.public_key())) + key.sign(text.encode())
            lines += f"{_DASH}{self.origin} {_encoded(signature)}\n"
        return f"{text}\n{lines}"

    @classmethod
    def opened(cls, note: str, verifiers: Sequence[Verifier]) -> Checkpoint:
        """Read a note that one of these keys has signed.

        Raises:
            CheckpointError: it is not a note, none of the keys signed it, or one of their signatures is
            wrong.
        """
        text, mark, signatures = note.rpartition("\n\n")
        text += "\n"
        if not mark or not note.endswith("\n"):
            raise CheckpointError("not a signed note: no blank line before signatures at the end")
        known = False
        for line in signatures.splitlines():
            name, _, encoded = line.removeprefix(_DASH).partition(" ")
            if not line.startswith(_DASH) or not encoded:
                raise CheckpointError("not a signed note: a signature line is malformed")
            signature = _decoded(encoded, f"the signature of {name}")
            for verifier in verifiers:
                right = verifier.signed(text, name, signature)
                if right is False:
                    raise CheckpointError(f"the signature of {name} is wrong")
                known = known or bool(right)
        if not known:
            raise CheckpointError("none of the given keys has signed it")
        return cls.parse(text)

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a note's text, without its signatures.

        Raises:
            CheckpointError: it is not a checkpoint.
        """
        origin, size, root, *_ = [*text.split("\n"), "", "", ""]
        if not origin or not re.fullmatch("0|[1-9][0-9]{0,18}", size):
            raise CheckpointError("not a checkpoint: its lines are origin, size, root hash")
        decoded = _decoded(root, "the root hash")
        if len(decoded) != hashlib.sha256().digest_size:
            raise CheckpointError("not a checkpoint: the root is not a SHA-256")
        return cls(origin, int(size), decoded)


def witness_request(size: int, path: Iterable[bytes], note: str) -> str:
    """Make the body of a request to a witness: the size that it knows, the proof from there, the note."""
    return "\n".join((f"old {size}", *map(_encoded, path), "", note))


def proof_text(batch: bytes, index: int, path: Iterable[bytes], note: str) -> str:
    """Make the proof that a batch is in the log whose checkpoint the note is."""
    return "\n".join((_PROOF, f"extra {_encoded(batch)}", f"index {index}", *map(_encoded, path), "", note))


def proven(text: str, verifiers: Sequence[Verifier]) -> tuple[Checkpoint, list[bytes]]:
    """Check a proof.

    Returns:
        The checkpoint, and the lines that are proven to be in its log.

    Raises:
        CheckpointError: it proves nothing; the message says why.
    """
    head, mark, note = text.partition("\n\n")
    form, extra, index, *hashes = [*head.split("\n"), "", ""]
    if (
        form != _PROOF
        or not mark
        or not extra.startswith("extra ")
        or not re.fullmatch(r"index \d{1,19}", index)
    ):
        raise CheckpointError(f"not a proof: it begins with {_PROOF}, then `extra` and `index`")
    batch = _decoded(extra.removeprefix("extra "), "the batch")
    path = [_decoded(node, "a hash of the path") for node in hashes if node]
    checkpoint = Checkpoint.opened(note, verifiers)
    digest = digest_of(batch)
    if digest is None:
        raise CheckpointError("the lines are not one sealed batch: they were changed, or some are missing")
    if root_of_path(int(index.removeprefix("index ")), checkpoint.size, digest, path) != checkpoint.root:
        raise CheckpointError(
            "the path does not lead to the checkpoint's root: this batch is not in that log"
        )
    return checkpoint, batch.splitlines()


def digest_of(batch: bytes) -> bytes | None:
    """Return the hash that seals a batch; None if its bytes do not give it."""
    sealed = SEALED.search(batch)
    if sealed is None or any(SEALED.search(line) for line in batch.splitlines(keepends=True)[:-1]):
        return None
    digest = hashlib.sha256(batch[: sealed.start(2)]).digest()
    return digest if digest.hex().encode() == sealed[3] else None
