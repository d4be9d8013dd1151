"""PEM files of certificates and trust anchors."""

import pytest

from securecore import limits
from securecore.certs.chain import MAX_ANCHORS, common_name, fingerprint, is_signed_by, load_anchors, load_pem_certificates
from securecore.certs.profiles import HOST, ROOT_CA
from securecore.errors import ConfigError
from tests.support.certificates import Hierarchy, make_hierarchy, mint

BEGIN = b"-----BEGIN CERTIFICATE-----"


def test_anchors_are_told_apart_from_helpers(hierarchy: Hierarchy) -> None:
    """The self-signed certificate is the root wherever it stands; the others only help."""
    pems = [made.pem for made in (hierarchy.hosts, hierarchy.root, hierarchy.receivers)]
    expected = ((hierarchy.root.certificate,), (hierarchy.hosts.certificate, hierarchy.receivers.certificate))
    assert expected == tuple(load_anchors(b"a comment\n" + b"".join(pems)))


def test_file_without_a_root_is_refused(hierarchy: Hierarchy) -> None:
    """An issuing CA alone is not an anchor."""
    with pytest.raises(ConfigError, match="holds no root"):
        load_anchors(hierarchy.hosts.pem)


def test_false_root_is_refused(hierarchy: Hierarchy) -> None:
    """A certificate that names itself as issuer and was signed by another key is not a root."""
    false_root = mint(ROOT_CA, issuer=hierarchy.root, subject="false", issuer_name="false")
    with pytest.raises(ConfigError, match="did not sign itself"):
        load_anchors(hierarchy.root.pem + false_root.pem)


@pytest.mark.parametrize("text", [b"", b"x", BEGIN, BEGIN + b"\nAAAA\n-----END CERTIFICATE-----\n"])
def test_text_that_holds_no_certificate_is_refused(text: bytes) -> None:
    """Each is said in one line with the file's name."""
    with pytest.raises(ConfigError, match=r"^some\.pem: "):
        load_pem_certificates(text, what="some.pem")


def test_number_of_certificates_is_bounded(hierarchy: Hierarchy) -> None:
    """A chain has at most MAX_CHAIN, a ca.pem at most MAX_ANCHORS certificates."""
    assert len(load_pem_certificates(hierarchy.root.pem * limits.MAX_CHAIN)) == limits.MAX_CHAIN
    with pytest.raises(ConfigError, match="expected 1 to 4"):
        load_pem_certificates(hierarchy.root.pem * (limits.MAX_CHAIN + 1))
    with pytest.raises(ConfigError, match="expected 1 to 16"):
        load_anchors(hierarchy.root.pem * (MAX_ANCHORS + 1))


def test_truncated_pem_is_refused_at_every_length(hierarchy: Hierarchy) -> None:
    """No prefix of a file of one certificate is a file of one certificate, but for the newline at its end."""
    pem = hierarchy.root.pem
    for length in range(len(pem) - 1):
        with pytest.raises(ConfigError):
            load_pem_certificates(pem[:length])


def test_anchors_cut_at_every_offset_are_refused_or_whole(hierarchy: Hierarchy) -> None:
    """Of a file of three certificates, each beginning is refused, or has only whole ones and nothing of the next."""
    pems = [made.pem for made in (hierarchy.root, hierarchy.hosts, hierarchy.receivers)]
    data = b"".join(pems)
    taken = []
    for cut in range(len(data) + 1):
        try:
            anchors = load_anchors(data[:cut])
        except ConfigError:
            continue
        taken.append(cut)
        assert len(anchors.roots + anchors.intermediates) == data[:cut].count(b"-----END CERTIFICATE-----")
    ends = [sum(map(len, pems[:count])) for count in (1, 2, 3)]
    # Behind each certificate: without its newline, with it, and with the part of a BEGIN line that is not yet one.
    assert set(ends) <= set(taken) <= {cut for end in ends for cut in range(end - 1, end + len(BEGIN))}


def test_oversized_certificate_is_refused(hierarchy: Hierarchy) -> None:
    """The bound on a certificate's DER holds for files as well."""
    big = mint(HOST, issuer=hierarchy.hosts, dns=["a" * 60 + ".example"] * 300)
    with pytest.raises(ConfigError, match="at most"):
        load_pem_certificates(big.pem)


def test_signed_by_needs_name_and_key(hierarchy: Hierarchy) -> None:
    """The right name with the wrong key, and the right key with the wrong name, did not sign."""
    assert is_signed_by(hierarchy.hosts.certificate, hierarchy.root.certificate)
    assert not is_signed_by(hierarchy.hosts.certificate, make_hierarchy().root.certificate)
    assert not is_signed_by(hierarchy.hosts.certificate, mint(ROOT_CA, subject="other", key=hierarchy.root.key).certificate)


def test_words_for_names_cannot_steer_a_terminal(hierarchy: Hierarchy) -> None:
    """A common name with control characters is shown escaped and cut."""
    made = mint(HOST, issuer=hierarchy.hosts, subject="\x1b[2Jevil" + "x" * 50)
    words = common_name(made.certificate.subject)
    assert words.isprintable()
    assert "\\x1b[2Jevil" in words
    assert "'CN='" not in common_name(mint(ROOT_CA, subject="").certificate.subject)


def test_fingerprint_is_of_the_der(hierarchy: Hierarchy) -> None:
    """Sixty-four hexadecimal digits, the same for the same certificate."""
    assert fingerprint(hierarchy.root.certificate) == fingerprint(load_pem_certificates(hierarchy.root.pem)[0])
    assert len(fingerprint(hierarchy.root.certificate)) == 64
