"""Checkpoints and proofs: the tree against RFC 9162, the note against C2SP, both against a log on disk."""

import base64
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from audit_support import decided, lines, opened, written
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from invoking import ran, said
from test_audit_query import cut
from test_audit_tampering import story

from iamroles_agent.audit.chain import Head, Tree, joint
from iamroles_agent.base.identity import Decision
from iamroles_tools.audit.checkpoint import Checkpoint, CheckpointError, Verifier, proven, read_key
from iamroles_tools.audit.merkle import KnownTree, root_of_path

ENTRIES = [bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657",
                                            "606162636465666768696a6b6c6d6e6f")]  # fmt: skip
"""The entries that certificate-transparency's own tests use, and the root of all eight."""
ROOT = "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
NAME = "gate.example.com/audit"


def naive_root(entries):
    """RFC 9162 section 2.1.1, word by word."""
    if not entries:
        return hashlib.sha256().digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\0" + entries[0]).digest()
    half = 1
    while half * 2 < len(entries):
        half *= 2
    return hashlib.sha256(b"\1" + naive_root(entries[:half]) + naive_root(entries[half:])).digest()


def follows(former, size, old, new, path):
    """RFC 9162 section 2.1.4.2, word by word: what a witness does."""
    if former == size:
        return not path and old == new
    nodes = [old, *path] if former & (former - 1) == 0 else [*path]
    if not nodes:
        return False
    first, last = former - 1, size - 1
    while first & 1:
        first, last = first >> 1, last >> 1
    left = right = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            return False
        if first & 1 or first == last:
            left, right = joint(node, left), joint(node, right)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            right = joint(right, node)
        first, last = first >> 1, last >> 1
    return (left, right, last) == (old, new, 0)


def tree_of(entries):
    tree = Tree()
    for entry in entries:
        tree = tree.grown(entry)
    return tree


class TestTree:
    def test_the_root_of_the_known_entries(self):
        assert tree_of(ENTRIES).root.hex() == ROOT
        assert tree_of([]).root == hashlib.sha256().digest()

    @given(size=st.integers(0, 70))
    def test_it_grows_as_the_standard_says(self, size):
        entries = [number.to_bytes(2, "big") for number in range(size)]

        assert tree_of(entries).root == naive_root(entries)
        assert len(tree_of(entries).peaks) == size.bit_count()

    @given(data=st.data())
    def test_each_entry_is_proven_from_any_file_on_and_no_other_entry_is(self, data):
        size = data.draw(st.integers(1, 70))
        entries = [number.to_bytes(2, "big") for number in range(size)]
        index = data.draw(st.integers(0, size - 1))
        first = data.draw(st.integers(0, index))
        before = tree_of(entries[:first])

        path = KnownTree(before, entries[first:]).path_to(index)

        root = naive_root(entries)
        assert root_of_path(index, size, entries[index], path) == root
        assert root_of_path(index, size, b"another", path) != root
        for wrong in (index - 1, index + 1, size):
            assert root_of_path(wrong, size, entries[index], path) != root
        if path:
            assert root_of_path(index, size, entries[index], path[:-1]) != root
        assert root_of_path(index, size, entries[index], [*path, b"\0" * 32]) != root

    @given(data=st.data())
    def test_a_state_is_proven_to_follow_an_earlier_one(self, data):
        size = data.draw(st.integers(1, 70))
        entries = [number.to_bytes(2, "big") for number in range(size)]
        former = data.draw(st.integers(1, size))
        first = data.draw(st.integers(0, former))

        path = KnownTree(tree_of(entries[:first]), entries[first:]).path_from(former)

        old, new = naive_root(entries[:former]), naive_root(entries)
        assert follows(former, size, old, new, path)
        assert former == size or not follows(former, size, old[::-1], new, path)
        assert former == size or not follows(former, size, old, new[::-1], path)
        assert KnownTree(Tree(), entries).path_from(0) == []

    def test_a_head_that_was_written_half_is_none(self):
        head = Head(7, "a" * 64, tree_of(ENTRIES[:7]))
        text = str(head)

        assert Head.parse(text) == head
        assert all(Head.parse(text[:at]) is None for at in range(len(text) - 1))
        other = str(Head(8, "b" * 64, tree_of(ENTRIES[:7])))
        assert all(Head.parse(other[:at] + text[at:]) is None for at in range(21, len(text) - 20))


class TestNote:
    VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
    """C2SP signed-note's own example."""
    SIGNATURE = "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM="

    def test_a_signature_that_others_made_is_understood(self):
        verifier = Verifier.parse(self.VKEY)
        note = f"This is an example message.\n\n— example.com/foo {self.SIGNATURE}\n"

        with pytest.raises(CheckpointError, match="not a checkpoint"):  # signed, and no checkpoint
            Checkpoint.opened(note, [verifier])
        with pytest.raises(CheckpointError, match=r"signature of example\.com/foo is wrong"):
            Checkpoint.opened(note.replace("an example", "no example"), [verifier])
        assert str(verifier) == self.VKEY

    def test_who_signed(self):
        one, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        checkpoint = Checkpoint(f"{NAME}/worker-0", 8, bytes.fromhex(ROOT))
        mine, theirs = (Verifier(NAME, key.public_key()) for key in (one, other))
        elsewhere = Verifier("elsewhere.example.com/audit", one.public_key())

        assert Checkpoint.opened(checkpoint.signed([one]), [theirs, mine]) == checkpoint
        assert Checkpoint.opened(checkpoint.signed([one, other]), [theirs]) == checkpoint
        for verifiers in ([theirs], [elsewhere], []):
            with pytest.raises(CheckpointError, match="none of the given keys"):
                Checkpoint.opened(checkpoint.signed([one]), verifiers)

    @given(data=st.data())
    def test_no_change_of_a_note_escapes(self, data):
        key = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
        note = Checkpoint(f"{NAME}/worker-0", 8, bytes.fromhex(ROOT)).signed([key])
        at = data.draw(st.integers(0, note.index("\n\n")))
        character = data.draw(st.sampled_from("0123456789abcXYZ/\n "))
        changed = note[:at] + character + note[at + 1 :]

        if changed != note:
            with pytest.raises(CheckpointError):
                Checkpoint.opened(changed, [Verifier(NAME, key.public_key())])

    @pytest.mark.parametrize(
        "text",
        ["", "x", "a+b+c", VKEY[:-1], VKEY.replace("530d903a", "530d903b"), VKEY.replace("foo", "bar")],
    )
    def test_a_verifier_key_that_was_not_copied_whole(self, text):
        with pytest.raises(CheckpointError):
            Verifier.parse(text)


def signed_log(tmp_path):
    """A log of two workers and four files, a key, and the checkpoints of both."""
    directory, out = tmp_path / "log", tmp_path / "signed"
    directory.mkdir()
    out.mkdir()
    story(directory)
    vkey = said("audit key --name", NAME, tmp_path / "key.pem").strip()
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    found = SimpleNamespace(
        files=sorted(directory.glob("audit*")), key=tmp_path / "key.pem", vkey=vkey, out=out, tmp=tmp_path
    )
    checkpoint(found)
    found.notes = sorted(out.glob("*.checkpoint"))
    assert [note.name for note in found.notes] == ["worker-0.checkpoint", "worker-1.checkpoint"]
    return found


@pytest.fixture
def signed(tmp_path):
    return signed_log(tmp_path)


def checkpoint(signed, *keys, code=0):
    """Sign what the log is now; return what the command prints."""
    signs = [word for key in keys or (signed.key,) for word in ("--sign", key)]
    return said("audit checkpoint --name", NAME, "--out", signed.out, *signs, *signed.files, code=code)


def given_notes(signed, notes=None):
    return [
        "--key", signed.vkey, *(one for note in notes or signed.notes for one in ("--checkpoint", note)),
    ]  # fmt: skip


class TestLog:
    def test_it_holds_what_was_signed_also_when_it_has_grown(self, signed):
        ran("audit verify", *signed.files, *given_notes(signed))
        checkpoint(signed)
        ran("audit verify", *signed.files, "--checkpoint", signed.notes[0], code=2)  # whose signature?
        other = signed.tmp / "of-another-log"
        key = read_key(signed.key.read_bytes(), "key")
        other.write_text(Checkpoint(f"{NAME}/worker-0", 1, bytes(32)).signed([key]))
        for notes in ([other, *signed.notes], [*signed.notes, other]):
            assert "it was rewritten" in said(
                "audit verify", *signed.files, *given_notes(signed, notes), code=1
            )

    def test_a_witness_is_told_that_it_follows_what_it_knows(self, signed):
        request, former = signed.out / "worker-0.add-checkpoint", signed.notes[0].read_text()
        assert request.read_text() == f"old 0\n\n{former}"
        log = opened(signed.files[0])
        for number in range(5):
            decided(log, f"more-{number}")
            assert log.flush()
        log.close()

        checkpoint(signed)

        head, _, note = request.read_text().partition("\n\n")
        old, *lines = head.splitlines()
        assert note == signed.notes[0].read_text() != former
        before, after = Checkpoint.parse(former), Checkpoint.parse(note)
        assert old == f"old {before.size}"
        path = [base64.b64decode(line) for line in lines]
        assert follows(before.size, after.size, before.root, after.root, path)

    def test_a_log_that_was_rewritten_whole_is_betrayed(self, signed, tmp_path):
        """Self-consistent, heads and all: only what was kept elsewhere tells."""
        for file in signed.files:
            file.unlink()
        story(signed.files[0].parent)

        ran("audit verify --complete", *signed.files)
        assert "it was rewritten" in said("audit verify", *signed.files, *given_notes(signed), code=1)
        assert "it was rewritten" in checkpoint(signed, code=1)

    def test_a_log_of_a_worker_that_never_was_is_foreign_and_one_that_is_gone_is_missed(self, signed):
        ours = [file for file in signed.files if ".w1." not in file.name]
        foreign = said("audit verify", *signed.files, *given_notes(signed, signed.notes[:1]), code=1)

        assert "no checkpoint for worker 1: its log may be foreign" in foreign
        assert "no log for the checkpoint of" in said("audit verify", *ours, *given_notes(signed), code=1)

    def test_an_end_that_was_cut_off_with_its_head_is_betrayed(self, signed):
        current = signed.files[0]
        whole = lines(current)
        seals = [at for at, line in enumerate(whole) if b'"hash":"' in line]
        current.write_bytes(b"".join(whole[: seals[-2] + 1]))
        Path(f"{current}.head").unlink()
        files = [file for file in signed.files if file.exists()]

        ran("audit verify", *files)
        assert "the end was cut off" in said("audit verify", *files, *given_notes(signed), code=1)

    def test_nothing_is_signed_that_is_not_whole(self, signed):
        current = signed.files[0]
        current.write_bytes(current.read_bytes().replace(b"alice", b"mallo"))
        before = [note.read_text() for note in signed.notes]

        assert "nothing is signed" in checkpoint(signed, code=1)
        assert [note.read_text() for note in signed.notes] == before

    def test_older_files_may_be_gone(self, signed):
        """Files from before the checkpoint may be gone, but not the one that it was made of."""
        signed.files = [file for file in signed.files if not file.name.endswith(".1")]

        ran("audit verify", *signed.files, *given_notes(signed))
        written(signed.files[0], "deleted").unlink()
        written(signed.files[0], "kept")
        assert "give its older files" in said("audit verify", *signed.files, *given_notes(signed), code=1)
        assert "begins a new series" in checkpoint(signed, code=1)
        signed.notes[0].unlink()
        checkpoint(signed)

    def test_a_key_is_rotated_by_signing_with_both_for_a_while(self, signed):
        new = signed.tmp / "new.pem"
        vkey = said("audit key --name", NAME, new).strip()
        checkpoint(signed, new, code=1)  # nobody it knows signed the former
        checkpoint(signed, signed.key, new)

        for key in (signed.vkey, vkey):
            signed.vkey = key
            ran("audit verify", *signed.files, *given_notes(signed))
        checkpoint(signed, new)


def prove(signed, request, *, files=None, note=None, code=0):
    """Prove a request's record by the checkpoint of its worker, or by that note; return what is printed."""
    by = ["--checkpoint", note or signed.notes[int(request[0])], "--out", signed.tmp / request]
    return said("audit prove --request", request, *by, *(files or signed.files), code=code)


class TestProof:
    @pytest.mark.parametrize("request_id", ["0-0-0-0", "0-0-2-1", "0-1-2-2", "1-0-1-0", "1-1-0-2"])
    def test_a_line_is_proven_without_the_log(self, signed, request_id):
        proofs = [word for path in prove(signed, request_id).splitlines() for word in ("--proof", path)]
        assert Path(proofs[1]).stat().st_mode & 0o007 == 0  # it is a part of the log

        shown = said("audit verify --key", signed.vkey, *proofs)

        assert f'"request":"{request_id}"' in shown
        assert '"kind":"decision"' in shown  # a short line comes with its full record
        assert f"are in {NAME}/worker-{request_id[0]}" in shown
        found = said("audit verify --format json --key", signed.vkey, *proofs).splitlines()
        for about in map(json.loads, found):
            assert about["log"] == f"{NAME}/worker-{request_id[0]}"
            assert set(about["lines"]) <= set(shown.splitlines())

    def test_from_the_newest_file_alone(self, signed):
        files = [file for file in signed.files if not file.name.endswith(".1")]
        [path, *_] = prove(signed, "0-1-2-2", files=files).splitlines()

        ran("audit verify --proof", path, "--key", signed.vkey)

    def test_no_change_of_a_proof_escapes(self, proof_and_verifier):
        text, verifier = proof_and_verifier
        assert proven(text, [verifier])
        for at in range(len(text)):
            for other in {*"0189AZaz+/=\n ", chr(ord(text[at]) + 1)} - {text[at]}:
                with pytest.raises(CheckpointError):
                    proven(text[:at] + other + text[at + 1 :], [verifier])

    def test_what_is_not_there_or_too_young(self, signed):
        nothing = prove(signed, "9-9-9-9", note=signed.notes[0], code=1)
        assert "no decision on request 9-9-9-9" in nothing
        other = prove(signed, "0-0-0-0", note=signed.notes[1], code=1)
        assert f"in the log of worker 0: give its checkpoint, not that of {NAME}/worker-1" in other

    def test_of_all_records_of_a_request_the_decision_that_was_answered_is_proven(self, signed):
        """Worker 0 records the cut of a stream that worker 1 let in, and decided twice."""
        log = opened(signed.files[0], worker=1)
        decided(log, "1-0-1-0", Decision(allow=False, principal="bob"))
        log.close()
        log = opened(signed.files[0])
        cut(log, "1-0-1-0", "bob", "")
        log.close()
        checkpoint(signed)

        [path] = prove(signed, "1-0-1-0").splitlines()
        _, lines = proven(Path(path).read_text(), [Verifier.parse(signed.vkey)])
        [record] = [one for one in map(json.loads, lines) if "request" in one]
        assert (record["request"], record["verdict"]) == ("1-0-1-0", "deny")


@pytest.fixture(scope="module")
def proof_and_verifier(tmp_path_factory):
    found = signed_log(tmp_path_factory.mktemp("proof"))
    return Path(prove(found, "0-0-1-1").splitlines()[-1]).read_text(), Verifier.parse(found.vkey)
