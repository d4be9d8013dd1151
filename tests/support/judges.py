"""Independent judges of certificates and CRLs: what we mint is shown to each of them, and what must be refused as well.

Each is a function from papers to its words of refusal, None where it accepts. None of them is our code, but the last.
"""

import shutil
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification

from securecore.certs.chain import Anchors
from securecore.certs.identity_directory import load_identity
from securecore.certs.judge import Purpose, Refusal, judge
from securecore.certs.revocation import RevocationLists
from securecore.errors import SecurecoreError
from securecore.pki.directory import PkiDirectory, certificate_pem

_OPENSSL_PURPOSES: Final = {Purpose.HOST: "sslclient", Purpose.RECEIVER: "sslserver", Purpose.ENROLLER: "sslserver"}
_PURPOSE_OIDS: Final = {
    Purpose.HOST: "1.3.6.1.5.5.7.3.2",
    Purpose.RECEIVER: "1.3.6.1.5.5.7.3.1",
    Purpose.ENROLLER: "1.3.6.1.5.5.7.3.1",
}
_CRL_END: Final = b"-----END X509 CRL-----\n"


class Papers(NamedTuple):
    """A leaf with the CAs above it, the CRLs of those, and what the leaf is shown for."""

    leaf: x509.Certificate
    issuing: x509.Certificate
    root: x509.Certificate
    lists: tuple[bytes, ...]
    purpose: Purpose

    @classmethod
    def of(cls, pki: PkiDirectory, identity: Path, purpose: Purpose) -> "Papers":
        """Return those of an identity directory, with all CRLs of its PKI."""
        leaf, issuing = load_identity(identity).certificates
        return cls(leaf, issuing, pki.certificate("root-ca"), split_lists(pki.crl_path.read_bytes()), purpose)


def split_lists(pem: bytes) -> tuple[bytes, ...]:
    """Return the CRLs of a crl.pem, each for itself."""
    return tuple(part + _CRL_END for part in pem.split(_CRL_END) if part)


Judge = Callable[[Papers, Path], str | None]


def ask_openssl(papers: Papers, directory: Path) -> str | None:
    """The openssl program, strict, for the purpose, with the CRLs of every CA."""
    files = _write(papers, directory)
    options = ["-x509_strict", "-purpose", _OPENSSL_PURPOSES[papers.purpose], "-crl_check_all"]
    sources = ["-CAfile", files["root"], "-CRLfile", files["lists"], "-untrusted", files["issuing"]]
    return _answer(["openssl", "verify", *options, *sources, files["leaf"]])


def ask_gnutls(papers: Papers, directory: Path) -> str | None:
    """GnuTLS's certtool, for the purpose, with the CRLs."""
    files = _write(papers, directory)
    options = ["--verify-purpose", _PURPOSE_OIDS[papers.purpose], "--load-ca-certificate", files["root"]]
    lists = ["--load-crl", files["lists"]] if papers.lists else []
    return _answer(["certtool", "--verify", *options, *lists, "--infile", files["chain"]])


def ask_library(papers: Papers, _directory: Path) -> str | None:
    """The cryptography library's verifier with its own policies, and then the CRLs, of which that verifier knows nothing."""
    builder = verification.PolicyBuilder().store(verification.Store([papers.root])).time(datetime.now(UTC))
    try:
        if papers.purpose is Purpose.HOST:
            chain = builder.build_client_verifier().verify(papers.leaf, [papers.issuing]).chain
        else:
            names = papers.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            dialled = x509.DNSName(names.get_values_for_type(x509.DNSName)[0])
            chain = builder.build_server_verifier(dialled).verify(papers.leaf, [papers.issuing])
    except verification.VerificationError as error:
        return str(error)
    lists = [x509.load_pem_x509_crl(pem) for pem in papers.lists]
    for certificate, issuer in pairwise(chain):
        key: Any = issuer.public_key()
        signed = [one for one in lists if one.issuer == issuer.subject and one.is_signature_valid(key)]
        if not signed:
            return f"no CRL of {issuer.subject.rfc4514_string()}"
        if any(one.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None for one in signed):
            return "revoked"
    return None


def ask_pkilint(papers: Papers, _directory: Path) -> str | None:
    """DigiCert's linter on each certificate and list, and on each with its issuer; the least note is a finding."""
    chain = (papers.leaf, papers.issuing, papers.root)
    found = [words for certificate in chain for words in lint_certificate(certificate)]
    pairs = zip(chain, (*chain[1:], papers.root), strict=True)
    found += [words for subject, issuer in pairs for words in lint_pair(issuer, subject)]
    found += [words for pem in papers.lists for words in lint_list(pem)]
    return "; ".join(found) or None


def ask_us(papers: Papers, _directory: Path) -> str | None:
    """Our own judge, as a receiver asks it, and our own look into the CRLs."""
    anchors, now = Anchors((papers.root,), (papers.issuing,)), datetime.now(UTC)
    try:
        judgement = judge(papers.leaf.public_bytes(Encoding.DER), (), anchors, papers.purpose, now)
        RevocationLists.parse_for(b"".join(papers.lists), judgement).check(judgement, now)
    except (Refusal, SecurecoreError) as error:
        return error.message
    return None


JUDGES: Final[Mapping[str, Judge]] = {
    "openssl": ask_openssl,
    "GnuTLS": ask_gnutls,
    "cryptography": ask_library,
    "pkilint": ask_pkilint,
    "securecore": ask_us,
}
_PROGRAMS: Final = {"openssl": "openssl", "GnuTLS": "certtool"}


def need_judge(name: str) -> Judge:
    """Return a judge; skips the test, and says so, where it is not on this machine."""
    if shutil.which(_PROGRAMS.get(name, "true")) is None:
        pytest.skip(f"needs the {_PROGRAMS[name]} program as an independent judge")
    if name == "pkilint":
        pytest.importorskip("pkilint", reason="needs pkilint as an independent judge")
    return JUDGES[name]


def openssl_on_ca(certificate: x509.Certificate, root: x509.Certificate, lists: tuple[bytes, ...], directory: Path) -> str | None:
    """Return why openssl, strict, refuses a CA's certificate below its root."""
    files = _write(Papers(certificate, certificate, root, lists, Purpose.HOST), directory)
    sources = ["-CAfile", files["root"], "-CRLfile", files["lists"]]
    return _answer(["openssl", "verify", "-x509_strict", "-crl_check_all", *sources, files["leaf"]])


def gnutls_on_list(pem: bytes, issuer: x509.Certificate, directory: Path) -> str | None:
    """Return why GnuTLS refuses a CRL."""
    ca, crl = _write_list(pem, issuer, directory)
    return _answer(["certtool", "--verify-crl", "--load-ca-certificate", ca, "--infile", crl])


def openssl_on_list(pem: bytes, issuer: x509.Certificate, directory: Path) -> str | None:
    """Return why openssl refuses a CRL's signature."""
    ca, crl = _write_list(pem, issuer, directory)
    return _answer(["openssl", "crl", "-noout", "-verify", "-CAfile", ca, "-in", crl])


def lint_certificate(certificate: x509.Certificate) -> list[str]:
    """Return what pkilint finds in one certificate."""
    from pkilint import loader

    try:
        document = loader.load_certificate(certificate.public_bytes(Encoding.DER), "certificate")
    except ValueError as error:
        return [str(error)]
    return _findings(_certificate_linter().validate(document.root))


def lint_pair(issuer: x509.Certificate, subject: x509.Certificate) -> list[str]:
    """Return what pkilint finds in a certificate and that of its issuer: names, key identifiers, the signature."""
    from pkilint import loader
    from pkilint.bin import lint_pkix_signer_signee_cert_chain as linter

    together: dict[str, Any] = {}
    for name, one in (("issuer", issuer), ("subject", subject)):
        try:
            together[name] = loader.load_certificate(one.public_bytes(Encoding.DER), name, name, together)
        except ValueError as error:
            return [str(error)]
    results = [
        *linter.create_decoder_validation_container().validate(together["issuer"].root),
        *linter.create_decoder_validation_container().validate(together["subject"].root),
        *linter.create_issuer_validation_container().validate(together["issuer"].root),
        *linter.create_subject_validation_container().validate(together["subject"].root),
    ]
    return _findings(results)


def lint_list(pem: bytes) -> list[str]:
    """Return what pkilint finds in one CRL."""
    from pkilint import loader

    try:
        document = loader.load_crl(x509.load_pem_x509_crl(pem).public_bytes(Encoding.DER), "crl")
    except ValueError as error:
        return [str(error)]
    return _findings(_list_linter().validate(document.root))


@cache
def _certificate_linter() -> Any:
    """What its program lint_pkix_cert puts together."""
    from pkilint.pkix import certificate, extension, name

    return certificate.create_pkix_certificate_validator_container(
        certificate.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS),
        [
            certificate.create_issuer_validator_container([]),
            certificate.create_validity_validator_container(),
            certificate.create_subject_validator_container([]),
            certificate.create_extensions_validator_container([]),
            certificate.create_spki_validator_container([]),
        ],
    )


@cache
def _list_linter() -> Any:
    """What its program lint_crl puts together for the profile PKIX."""
    from pkilint import pkix
    from pkilint.pkix import crl, extension, name

    return crl.create_pkix_crl_validator_container(
        [pkix.create_attribute_decoder(name.ATTRIBUTE_TYPE_MAPPINGS), pkix.create_extension_decoder(extension.EXTENSION_MAPPINGS)],
        [
            crl.create_issuer_validator_container([]),
            crl.create_validity_validator_container([]),
            crl.create_extensions_validator_container([]),
        ],
    )


def _findings(results: Any) -> list[str]:
    from pkilint.validation import ValidationFindingSeverity

    found = [one.finding for result in results for one in result.finding_descriptions]
    return [f"{one.severity.name} {one.code}" for one in found if one.severity <= ValidationFindingSeverity.NOTICE]


def _write(papers: Papers, directory: Path) -> dict[str, str]:
    contents = {
        "root": certificate_pem(papers.root),
        "issuing": certificate_pem(papers.issuing),
        "leaf": certificate_pem(papers.leaf),
        # GnuTLS wants the root at the end of the chain that it verifies.
        "chain": certificate_pem(papers.leaf, papers.issuing, papers.root),
        "lists": b"".join(papers.lists),
    }
    for name, content in contents.items():
        (directory / f"{name}.pem").write_bytes(content)
    return {name: str(directory / f"{name}.pem") for name in contents}


def _write_list(pem: bytes, issuer: x509.Certificate, directory: Path) -> tuple[str, str]:
    ca, crl = directory / "issuer.pem", directory / "list.pem"
    ca.write_bytes(certificate_pem(issuer))
    crl.write_bytes(pem)
    return str(ca), str(crl)


def _answer(command: list[str]) -> str | None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if ran.returncode == 0 else ran.stderr + ran.stdout
