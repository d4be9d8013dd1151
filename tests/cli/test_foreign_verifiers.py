"""A bundle judged without us: by tar, openssl, a JOSE library, another reader of C2SP logs and another library of Merkle trees.

What a real receiver has signed is read here by the words of docs/store.md alone. Nothing of the package is called once the bundle
is written, but for the key that a person is told. Where a judge is not there its test is skipped and says so; openssl and the
recursive definition of RFC 6962 remain.
"""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws
from joserfc.errors import BadSignatureError
from joserfc.jwk import ECKey
from pymerkle import InmemoryTree

from securecore.audit.bundle import Bundle
from securecore.audit.statement import encode_payload
from securecore.certs.jws import LOG_KEY_TYP, sign
from securecore.certs.profiles import RECEIVER
from tests.support.bundles import DB, Collector
from tests.support.certificates import DOMAIN, Fleet, make_hierarchy, mint
from tests.support.dumps import NOW, Signer, make_signer
from tests.support.dumps import WEB as WEB_HOST
from tests.support.formats import canonical, climb, read_container, tree_root, unpadded
from tests.support.samples import Sample
from tests.support.stores import CORE, WEB

ED25519_DER: Final = bytes.fromhex("302a300506032b6570032100")
"""What stands before an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410)."""


class Proof(NamedTuple):
    """A tlog-proof, as c2sp.org/tlog-proof writes it down."""

    entry: bytes
    index: int
    path: list[bytes]
    note: str

    @property
    def size(self) -> int:
        """The second line of the note."""
        return int(self.note.splitlines()[1])

    @property
    def root(self) -> bytes:
        """And the third."""
        return base64.b64decode(self.note.splitlines()[2], validate=True)


def read_proof(text: str) -> Proof:
    """Return the parts of a proof."""
    head, note = text.split("\n\n", 1)
    magic, extra, index, *path = head.splitlines()
    assert magic == "c2sp.org/tlog-proof@v1"
    entry = base64.b64decode(extra.removeprefix("extra "), validate=True)
    return Proof(entry, int(index.removeprefix("index ")), [base64.b64decode(one, validate=True) for one in path], note)


class Judged(NamedTuple):
    """A bundle, unpacked by tar beside a root and the core."""

    place: Path
    sample: Sample

    @property
    def proof(self) -> Proof:
        """The receipt's parts."""
        return read_proof((self.place / "receipt").read_text("utf-8"))

    def header(self, name: str) -> dict[str, Any]:
        """Return the header of a signed statement."""
        return dict(json.loads(unpadded((self.place / name).read_bytes().split(b".")[0])))

    def payload(self, name: str) -> dict[str, Any]:
        """Return the payload of a signed statement."""
        return dict(json.loads(unpadded((self.place / name).read_bytes().split(b".")[1])))

    def leaf_of(self, name: str) -> x509.Certificate:
        """Return who signed it."""
        return x509.load_der_x509_certificate(base64.b64decode(self.header(name)["x5c"][0]))

    def openssl(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run openssl where the bundle was unpacked."""
        command = ["openssl", *map(str, arguments)]
        return subprocess.run(command, cwd=self.place, capture_output=True, text=True, check=False, **options)


@pytest.fixture
def judged(sample: Sample, tmp_path: Path) -> Judged:
    """The bundle of a dump of several frames, in a log of several entries."""
    place = tmp_path / "unpacked"
    place.mkdir()
    made = sample("audit", "prove", sample.dumps[0], "--with-report", "-o", tmp_path / "bundle.tar")
    assert made.code == 0, made
    subprocess.run(["tar", "xf", tmp_path / "bundle.tar"], cwd=place, check=True)
    (place / "ca.pem").write_bytes((sample.fleet.host / "ca.pem").read_bytes())
    return Judged(place, sample)


def chain_pem(judged: Judged, name: str, place: str) -> None:
    """Write a statement's chain as PEM: the leaf to ``leaf.pem``, those above it to *place*."""
    leaf, *above = (x509.load_der_x509_certificate(base64.b64decode(one)) for one in judged.header(name)["x5c"])
    (judged.place / "leaf.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    (judged.place / place).write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in above))


@pytest.mark.parametrize(("name", "typ"), [("manifest.jws", "securecore-manifest+jws"), ("log-key.jws", "securecore-log-key+jws")])
def test_a_jose_library_verifies_both_statements(name: str, typ: str, judged: Judged) -> None:
    """With the key of their first certificate; and refuses them with a changed letter."""
    token = (judged.place / name).read_text("ascii")
    numbers = judged.leaf_of(name).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    key = ECKey.import_key(numbers)
    registry = jws.JWSRegistry(algorithms=["ES256"])
    registry.max_header_length = 65536  # x5c stands there, and the library takes 512 bytes unless it is told otherwise
    found = jws.deserialize_compact(token, key, registry=registry)
    assert (found.headers()["typ"], found.headers()["alg"]) == (typ, "ES256")
    assert json.loads(found.payload or b"") == judged.payload(name)
    header, payload, signature = token.split(".")
    changed = payload[:-10] + ("A" if payload[-10] != "A" else "B") + payload[-9:]
    with pytest.raises(BadSignatureError):
        jws.deserialize_compact(f"{header}.{changed}.{signature}", key, registry=registry)


@pytest.mark.parametrize(("name", "purpose"), [("manifest.jws", "sslclient"), ("log-key.jws", "sslserver")])
def test_openssl_verifies_both_chains(name: str, purpose: str, judged: Judged) -> None:
    """Up to the root, at the time of the entry or of the statement; and not for the other purpose."""
    chain_pem(judged, name, "above.pem")
    said = json.loads(judged.proof.entry)["time"] if name == "manifest.jws" else judged.payload(name)["issued_at"]
    at = int(datetime.fromisoformat(said).timestamp())
    command = ["verify", "-x509_strict", "-CAfile", "ca.pem", "-untrusted", "above.pem", "-attime", at, "-purpose"]
    assert judged.openssl(*command, purpose, "leaf.pem").stdout == "leaf.pem: OK\n"
    other = "sslserver" if purpose == "sslclient" else "sslclient"
    assert judged.openssl(*command, other, "leaf.pem").returncode != 0


def test_openssl_finds_nobody_on_the_lists(judged: Judged, sample: Sample) -> None:
    """Each list signed by its CA, and the host's certificate and its CA on none of them."""
    chain_pem(judged, "manifest.jws", "above.pem")
    at = int(datetime.fromisoformat(json.loads(judged.proof.entry)["time"]).timestamp())
    (lists,) = (judged.place / "crls").iterdir()
    assert sha256(lists.read_bytes()).hexdigest() == lists.stem == json.loads(judged.proof.entry)["crl_sha256"]
    command = ["verify", "-CAfile", "ca.pem", "-untrusted", "above.pem", "-CRLfile", lists, "-crl_check_all", "-attime", at]
    ran = judged.openssl(*command, "leaf.pem")
    assert (ran.stdout, ran.stderr) == ("leaf.pem: OK\n", "")


def test_openssl_verifies_the_checkpoint(judged: Judged) -> None:
    """The note's signature is Ed25519 over its text, with the key of the statement, under the key id that C2SP lays down."""
    text, _, lines = judged.proof.note.partition("\n\n")
    origin, key = text.splitlines()[0], base64.b64decode(judged.payload("log-key.jws")["public_key"])
    assert origin == f"{judged.payload('log-key.jws')['name']}/{WEB}"
    (line,) = lines.splitlines()
    dash, name, blob = line.split(" ")
    signature = base64.b64decode(blob, validate=True)
    assert (dash, name) == ("—", origin)
    assert signature[:4] == sha256(origin.encode() + b"\n\x01" + key).digest()[:4]
    (judged.place / "key.der").write_bytes(ED25519_DER + key)
    (judged.place / "signature").write_bytes(signature[4:])
    (judged.place / "text").write_bytes(f"{text}\n".encode())
    command = [
        "pkeyutl",
        "-verify",
        "-rawin",
        "-pubin",
        "-keyform",
        "DER",
        "-inkey",
        "key.der",
        "-sigfile",
        "signature",
        "-in",
        "text",
    ]
    assert judged.openssl(*command).returncode == 0
    (judged.place / "text").write_bytes(f"{text}\n".encode().replace(b"\n", b"\n1", 1))
    assert judged.openssl(*command).returncode != 0


def test_the_path_leads_to_the_root_by_the_rfcs_own_words(judged: Judged) -> None:
    """From the entry's leaf hash; and that root is the one of all the log's entries, by the recursive definition."""
    proof = judged.proof
    assert climb(sha256(b"\0" + proof.entry).digest(), proof.index, proof.size, proof.path) == proof.root
    lines = (judged.sample.log() / "entries.jsonl").read_bytes().splitlines()
    assert (lines[proof.index], tree_root(lines[: proof.size])) == (proof.entry, proof.root)


def test_another_reader_of_logs_believes_checkpoint_and_proof(judged: Judged) -> None:
    """With the verifier key that `audit check` prints, and with no other entry, place or key."""
    tlog = pytest.importorskip("aics_tlog", reason="aics-tlog needs Python 3.12")
    proof = judged.proof
    printed = judged.sample("audit", "verify", "--host", WEB, "--json").document[0]["verifier_key"]
    key = tlog.parse_vkey(printed)
    found = tlog.verify_checkpoint(tlog.parse_note(proof.note), key, expected_origin=proof.note.splitlines()[0])
    assert (found.ok, found.size, found.root) == (True, proof.size, proof.root)
    assert tlog.verify_leaf_inclusion(proof.entry, proof.index, proof.size, proof.path, found.root)
    assert not tlog.verify_leaf_inclusion(proof.entry + b" ", proof.index, proof.size, proof.path, found.root)
    assert not tlog.verify_leaf_inclusion(proof.entry, proof.index ^ 1, proof.size, proof.path, found.root)
    assert not tlog.verify_checkpoint(tlog.parse_note(proof.note.replace("\n", "\n1", 1)), key).ok


def test_another_library_of_trees_finds_both_roots(judged: Judged) -> None:
    """The log's, over its entries; and the manifest's, over the frames of core.zst."""
    proof, manifest = judged.proof, judged.payload("manifest.jws")
    lines = (judged.sample.log() / "entries.jsonl").read_bytes().splitlines()[: proof.size]
    core = read_container(judged.sample.first / "core.zst")
    assert core.plain == CORE
    for leaves, root in ((lines, proof.root), (core.leaves, bytes.fromhex(manifest["root"]))):
        tree = InmemoryTree(algorithm="sha256")
        for leaf in leaves:
            tree.append_entry(leaf)
        assert tree.get_root() == root


def check_by_hand(place: Path) -> list[str]:
    """Run the commands of docs/operations.md on a bundle beside its root; return what they say of a good one, and not of this."""
    if shutil.which("jq") is None:
        pytest.skip("jq is not here")
    manual = (Path(__file__).parents[2] / "docs/operations.md").read_text("utf-8")
    (commands,) = re.findall(r"^```sh\n(tar xf 9c41d07e\.tar\n.*?)^```$", manual, re.MULTILINE | re.DOTALL)
    ran = subprocess.run(["bash", "-uc", commands], cwd=place, capture_output=True, text=True, check=False)
    return [words for words in GOOD if words not in ran.stdout + ran.stderr]


GOOD: Final = (
    "host.pem: OK",
    "manifest.jws: OK",
    ".pem: OK",
    "entry: OK",
    "receiver.pem: OK",
    "Signature Verified Successfully",
    "origin: OK",
)


def test_the_manuals_commands_check_a_bundle(judged: Judged, tmp_path: Path) -> None:
    """As they stand in docs/operations.md, with openssl and programs that take files apart; each says that it is well."""
    shutil.copyfile(judged.place / "ca.pem", tmp_path / "ca.pem")
    shutil.copyfile(tmp_path / "bundle.tar", tmp_path / "9c41d07e.tar")
    assert check_by_hand(tmp_path) == []


def honest(collector: Collector) -> Bundle:
    """Return what proves that web-1 sent a dump."""
    collector.receive(1)
    return collector.bundle(1)


def signed_by_another_host(collector: Collector) -> Bundle:
    """Return a dump of web-1 that db-2 has signed, in league with the receiver."""
    collector.signers[WEB_HOST] = Signer(make_signer(collector.hierarchy, DB).made, WEB_HOST)
    return honest(collector)


def stated_by_another_receiver(collector: Collector) -> Bundle:
    """Return the same, out of a log for which another receiver of the fleet has made the key."""
    other = mint(RECEIVER, issuer=collector.hierarchy.receivers, now=NOW, dns=[f"other.{DOMAIN}"])
    chain = [other.der, other.above[0].public_bytes(Encoding.DER)]
    signer = collector.notary.signer
    payload = encode_payload(signer.name, signer.public_key, NOW.isoformat())
    collector.notary.statement = sign(payload, other.key_pem, chain, LOG_KEY_TYP)
    return honest(collector)


def out_of_another_hosts_log(collector: Collector) -> Bundle:
    """Return the same, proved to be in db-2's log."""
    bundle = honest(collector)
    return bundle._replace(receipt=collector.notary.proof(collector.log(WEB_HOST), 0, host=DB))


def entered_as_another_content(collector: Collector) -> Bundle:
    """Return the same, whose entry tells of another length than the host has signed."""
    honest(collector)
    log = collector.log(WEB_HOST)
    log[0] = canonical(json.loads(log[0]) | {"size": 1 << 40})
    return collector.bundle(1)


@pytest.mark.parametrize(
    ("make", "unsaid"),
    [
        (honest, []),
        (signed_by_another_host, ["host.pem: OK"]),
        (stated_by_another_receiver, ["receiver.pem: OK"]),
        (out_of_another_hosts_log, ["origin: OK"]),
        (entered_as_another_content, ["entry: OK"]),
    ],
)
def test_the_manuals_commands_find_who_is_another(make: Callable[[Collector], Bundle], unsaid: list[str], tmp_path: Path) -> None:
    """All signatures of these bundles hold, and each certificate is one of the fleet's: who it names is what is wrong."""
    collector = Collector.make(make_hierarchy(now=NOW))
    bundle = make(collector)
    (tmp_path / "9c41d07e.tar").write_bytes(bundle.encode())
    (tmp_path / "ca.pem").write_bytes(collector.hierarchy.root.certificate.public_bytes(Encoding.PEM))
    assert (check_by_hand(tmp_path), collector.verify(bundle).ok) == (unsaid, not unsaid)


def test_all_of_it_fits_together(judged: Judged, fleet: Fleet) -> None:
    """By docs/store.md: entry, manifest, report and certificate name one another by their digests."""
    entry, manifest = json.loads(judged.proof.entry), judged.payload("manifest.jws")
    assert canonical(entry) == judged.proof.entry
    assert entry["manifest_sha256"] == sha256((judged.place / "manifest.jws").read_bytes()).hexdigest()
    assert entry["report_sha256"] == manifest["report_sha256"] == sha256((judged.place / "report.json").read_bytes()).hexdigest()
    assert entry["certificate"] == sha256(judged.leaf_of("manifest.jws").public_bytes(Encoding.DER)).hexdigest()
    names = judged.leaf_of("manifest.jws").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [entry["host"]] == [manifest["host"]]
    assert {name: entry[name] for name in ("dump", "store", "size", "frames", "root")}.items() <= manifest.items()
