"""Bundles of evidence: written by a real run, checked, signed, forged, and replayed."""

import gzip
import io
import json
import re
import sys
import tarfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from invoking import AGENTS, agent_toml, finished, said

from iamroles_conformance.reports import bundle, report

RUN = "conformance run --lane=gate-spop --check=gate.no-token --check=gate.audience"
VERIFY = "conformance verify-report"


def _keys(directory, name):
    key = Ed25519PrivateKey.generate()
    private, public = directory / f"{name}.pem", directory / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with keys of a vendor and of a stranger, and bundles of the same run: signed and unsigned."""
    directory = tmp_path_factory.mktemp("evidence")
    private, _ = _keys(directory, "vendor")
    _keys(directory, "stranger")
    said(f"{RUN} --stage=processes", "--evidence", directory / "signed.tar.gz", "--sign-with", private)
    whole = _unpacked(directory / "signed.tar.gz")
    del whole[bundle.SIGNATURE]
    manifest = json.loads(whole[bundle.MANIFEST]) | {"public_key": None}
    _pack(directory / "unsigned.tar.gz", whole | {bundle.MANIFEST: bundle.canonical(manifest)})
    return directory


def _unpacked(path):
    with tarfile.open(path, "r:gz") as archive:
        return {one.name: archive.extractfile(one).read() for one in archive}


def _pack(path, files):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    path.write_bytes(gzip.compress(whole.getvalue()))
    return path


def _forged(source, target, change):
    """A bundle that was changed, with a manifest that fits again: what a careful forger does."""
    files = _unpacked(source)
    change(files)
    manifest = json.loads(files[bundle.MANIFEST])
    own = {bundle.MANIFEST, bundle.SIGNATURE}
    manifest["files"] = {name: bundle.entry(files[name]) for name in files if name not in own}
    return _pack(target, files | {bundle.MANIFEST: bundle.canonical(manifest)})


def _say(name, old, new):
    def change(files):
        assert old in files[name]
        files[name] = files[name].replace(old, new)

    return change


def test_every_check_has_a_transcript_those_that_passed_too(place):
    files = _unpacked(place / "signed.tar.gz")
    checks = json.loads(files["report.json"])["checks"]
    text = files["transcripts/gate.audience.refused[spop].txt"].decode()

    assert {bundle.transcript_name(one["name"]) for one in checks} < files.keys()
    assert all(one["verdict"] == "pass" for one in checks)
    assert '"aud": "canteen"' in text
    assert "reason = 'audience_mismatch'" in text
    assert "<< ACK" in text


def test_no_signature_of_a_token_is_in_a_bundle(place):
    text = b"\n".join(_unpacked(place / "unsigned.tar.gz").values()).decode()

    assert "no signature>" in text
    assert not re.search(r"eyJ[\w-]+\.[\w-]+\.[\w-]+", text)


def test_the_document_says_seeds_and_coverage(place):
    found = json.loads(_unpacked(place / "signed.tar.gz")["report.json"])

    assert set(found["seeds"]) == {"oracle", "fuzz"}
    assert found["coverage"]["checks"]["played"] == len(found["checks"])
    assert 0 < found["coverage"]["MUST"]["played"] < found["coverage"]["MUST"]["of"]


def test_a_whole_signed_bundle_is_accepted_and_openssl_agrees(place, tmp_path):
    told = said(VERIFY, place / "signed.tar.gz", "--public-key", place / "vendor.pub.pem")
    files = _unpacked(place / "signed.tar.gz")
    for name in (bundle.MANIFEST, bundle.SIGNATURE):
        (tmp_path / name).write_bytes(files[name])
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(place / "vendor.pub.pem"), "-rawin"]
    command += ["-in", bundle.MANIFEST, "-sigfile", bundle.SIGNATURE]
    agreed = finished(*command, cwd=tmp_path)

    assert "by the key given" in told
    assert agreed.returncode == 0, agreed.stderr


def test_an_unsigned_bundle_is_said_to_prove_nothing_about_its_maker(place):
    plain = place / "unsigned.tar.gz"

    assert "proves nothing about who made it" in said(VERIFY, plain)
    assert "the bundle is unsigned" in said(VERIFY, plain, "--public-key", place / "vendor.pub.pem", code=1)


def test_another_key_than_the_vendors_is_refused(place):
    told = said(VERIFY, place / "signed.tar.gz", "--public-key", place / "stranger.pub.pem", code=1)

    assert "REFUSED    manifest.json.sig: is of another key" in told


@pytest.mark.parametrize("name", ["report.json", "report.html", "transcripts/gate.audience.reason[spop].txt"])
def test_an_edited_file_is_named(place, tmp_path, name):
    files = _unpacked(place / "unsigned.tar.gz")
    files[name] += b" "

    assert f"REFUSED    {name}: was changed" in said(VERIFY, _pack(tmp_path / "x.tar.gz", files), code=1)


def test_a_signed_bundle_whose_manifest_was_made_to_fit_again_is_refused(place, tmp_path):
    change = _say("report.json", b'"verdict": "pass"', b'"verdict": "fail"')
    forged = _forged(place / "signed.tar.gz", tmp_path / "forged.tar.gz", change)

    assert "manifest.json.sig: does not fit manifest.json" in said(VERIFY, forged, code=1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("report.json", b"That is no statement of conformance.", b"It conforms to all."), "report.json"),
        (("report.json", b'"verdict": "pass"', b'"verdict": "warning"'), "another verdict than report.json"),
        (("report.html", b"That is no statement", b"That is a statement"), "report.html"),
        (("badge.svg", b"checks played", b"checks passed"), "badge.svg"),
    ],
)
def test_an_unsigned_forgery_that_contradicts_itself_is_refused(place, tmp_path, change, told):
    forged = _forged(place / "unsigned.tar.gz", tmp_path / "forged.tar.gz", _say(*change))

    assert told in said(VERIFY, forged, code=1)


def test_a_check_that_is_relabelled_is_refused(place, tmp_path):
    def change(files):
        found = json.loads(files["report.json"])
        found["checks"][0] |= {"title": "harmless", "level": "SHOULD", "requirements": []}
        found = report.derived(report.parsed(json.dumps(found), "")) | {"checks": found["checks"]}
        files |= {name: text.encode() for name, text in report.forms(found).items()}

    told = said(VERIFY, _forged(place / "unsigned.tar.gz", tmp_path / "forged.tar.gz", change), code=1)
    assert (
        "report.json: does not follow from names and verdicts of the checks in report.json (checks)" in told
    )


def test_what_a_bundle_of_another_suite_says_is_a_claim(place, tmp_path):
    def change(files):
        found = json.loads(files["report.json"])
        found["digests"]["suite"] = "sha256:0"
        found["statement"] |= {"sentence": "x 1 conforms to wire (strict).", "beside": []}
        files["report.json"] = json.dumps(found).encode()

    told = said(VERIFY, _forged(place / "unsigned.tar.gz", tmp_path / "other.tar.gz", change), code=1)

    assert "it claims  x 1 conforms to wire (strict)." in told
    assert re.search(r"its checks as this suite counts them: \d of \d+ checks played", told)


@pytest.mark.parametrize("value", [None, 5, {"x": 5}, []])
@pytest.mark.parametrize("key", ["product", "stage", "digests", "statement", "checks", "features"])
def test_a_report_of_another_shape_is_refused(place, tmp_path, key, value):
    def change(files):
        files["report.json"] = json.dumps(json.loads(files["report.json"]) | {key: value}).encode()

    assert said(VERIFY, _forged(place / "unsigned.tar.gz", tmp_path / "forged.tar.gz", change), code=1)


def _without_digests(found):
    del found["digests"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_without_digests, "not rendered again: it is of another suite"),
        (lambda found: found["checks"][0].update(again=5), "checks[0].again: Input should be a valid list"),
    ],
)
def test_members_that_are_missing_or_of_another_type_are_named(place, tmp_path, spoil, told):
    def change(files):
        found = json.loads(files["report.json"])
        spoil(found)
        files["report.json"] = json.dumps(found).encode()

    forged = _forged(place / "unsigned.tar.gz", tmp_path / "forged.tar.gz", change)
    assert told in said(VERIFY, forged, code=1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda files: files.pop("report.html"), "report.html: is missing"),
        (lambda files: files.update({"more.txt": b"x"}), "more.txt: is not in the manifest"),
        (lambda files: files.pop("manifest.json"), "manifest.json: is missing"),
        (lambda files: files.update({"manifest.json": b"{}"}), "manifest.json: is not canonical"),
    ],
)
def test_a_bundle_that_is_not_whole_is_refused(place, tmp_path, change, told):
    files = _unpacked(place / "unsigned.tar.gz")
    change(files)

    assert told in said(VERIFY, _pack(tmp_path / "part.tar.gz", files), code=1)


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "x.tar.gz").write_text("no")

    assert said(VERIFY, tmp_path / "x.tar.gz", code=1)


@pytest.mark.parametrize("content", ["no key", ""])
def test_a_key_that_is_none_is_a_mistake_of_the_command(place, tmp_path, content):
    (tmp_path / "bad.pem").write_text(content)

    assert said(RUN, "--evidence", tmp_path / "e.tar.gz", "--sign-with", tmp_path / "bad.pem", code=2)
    assert said(RUN, "--sign-with", place / "vendor.pem", code=2)
    assert said(VERIFY, place / "signed.tar.gz", "--public-key", tmp_path / "bad.pem", code=2)


def test_a_bundle_that_cannot_be_written_is_said_before_the_run(tmp_path):
    told = said(RUN, "--evidence", tmp_path, code=2)

    assert "no bundle can be written there" in told
    assert "judging" not in told


def test_pytest_writes_a_bundle_too(tmp_path):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--pyargs", "iamroles_conformance"]
    command += ["--iamroles-stage=processes", "--iamroles-evidence=e.tar.gz", "-k", "gate.no-token and spop"]
    done = finished(*command, cwd=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "transcripts/gate.no-token.refused[spop].txt" in bundle.read(tmp_path / "e.tar.gz").files


def test_an_archive_that_unpacks_to_more_than_a_bundle_may_hold_is_refused(tmp_path):
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz", compresslevel=1) as archive:
        member = tarfile.TarInfo("report.json")
        member.size = (256 << 20) + 1
        archive.addfile(member, _Zeros(member.size))

    told = said(VERIFY, tmp_path / "bomb.tar.gz", code=1)
    assert "report.json: is not a plain file, or too large" in told


def test_a_name_that_is_longer_than_a_bundle_may_be_is_not_read(tmp_path):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, (256 << 20) + 1
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT)))

    assert "unpacks to more than" in said(VERIFY, path, code=1)


def test_compression_that_breaks_within_a_file_is_refused(tmp_path):
    path = _pack(tmp_path / "damaged.tar.gz", {"report.json": bytes(400_000)})
    stored = gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0)
    path.write_bytes(stored[:200_000] + b"\xff" * 200_000)

    assert "cannot be read as a bundle: Error -3 while decompressing" in said(VERIFY, path, code=1)


class _Zeros(io.RawIOBase):
    def __init__(self, size):
        self._left = size

    def read(self, size=-1):
        found = bytes(min(size, self._left))
        self._left -= len(found)
        return found


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_what_is_no_plain_file_is_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "odd.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("report.json")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)

    assert said(VERIFY, tmp_path / "odd.tar.gz", code=1)


def test_a_replay_plays_the_sample_of_a_seed_and_agrees(place):
    agent = Path(__file__).parents[2] / "conformance" / "agent.toml"
    options = ("--agent", agent, "--stage=processes", "--sample=3", "--seed=7")

    told = said(VERIFY, place / "unsigned.tar.gz", *options)
    assert "3 of 7 checks with --seed 7: 3 agree, 0 differ" in told


def test_a_running_agent_is_asked_for_no_check_of_another_lane(place, tmp_path):
    (tmp_path / "agent.toml").write_text('spec = 1\n[launch]\naddress = "127.0.0.1:1"\n')
    for named in ("--agent", tmp_path / "agent.toml"), ("--agent-address", "127.0.0.1:1"):
        assert "no check of it can be played" in said(VERIFY, place / "unsigned.tar.gz", *named)


def test_a_verdict_that_differs_in_a_replay_is_named(place, tmp_path):
    agent = agent_toml(
        tmp_path, ["python", AGENTS / "blunt.py", "deny"], name="iamroles", version="0.1.0", oidc=True
    )
    options = ("--agent", agent, "--stage=processes", "--sample=50")
    told = said(VERIFY, place / "signed.tar.gz", *options, code=1)

    assert "DIFFERS    gate.audience.reason[spop]: the report says pass, here it was fail" in told
    assert "NOTE       the agent's program here is sha256:" in told
