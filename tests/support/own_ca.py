"""A CA that is not ours: openssl's, with the configuration that pki/runbooks/own-ca.md shows."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.support.processes import ROOT

RUNBOOK: Final = ROOT / "pki" / "runbooks" / "own-ca.md"


class OwnCa:
    """A root, a hosts CA and a receivers CA below it, made and run by the openssl program in a directory."""

    def __init__(self, directory: Path) -> None:
        """Make the three, and a CRL of each."""
        self.path = directory
        (configuration,) = re.findall(r"^```ini\n(.*?)^```$", RUNBOOK.read_text(), re.DOTALL | re.MULTILINE)
        (directory / "own-ca.cnf").write_text(configuration)
        for name in ("root", "hosts", "receivers"):
            (directory / name).mkdir()
            (directory / name / "index.txt").touch()
            (directory / name / "crlnumber").write_text("01\n")
        self._run("req", "-x509", *self._new_key("root"), "-days", "3652", "-extensions", "root_ca", "-out", "root/cert.pem")
        for name in ("hosts", "receivers"):
            self._run("req", "-new", *self._new_key(name), "-out", f"{name}/request.pem")
            self.sign("root", f"{name}/request.pem", f"{name}_ca", f"{name}/cert.pem", 1826)
        for name in ("root", "hosts", "receivers"):
            self.sign_list(name)

    def sign(self, ca: str, request: str | Path, profile: str, out: str, days: int = 90, subject: str | None = None) -> Path:
        """Sign a request with one of the CAs; *profile* is a section of the configuration."""
        named = [] if subject is None else ["-subj", subject]
        extensions = ["-extensions", profile, "-days", str(days)]
        self._run("ca", *self._ca(ca), "-batch", "-notext", *extensions, *named, "-in", str(request), "-out", out)
        return self.path / out

    def revoke(self, ca: str, certificate: Path) -> None:
        """Revoke what a CA signed, and sign its list."""
        self._run("ca", *self._ca(ca), "-revoke", str(certificate), "-crl_reason", "keyCompromise")
        self.sign_list(ca)

    def sign_list(self, ca: str) -> None:
        """Sign a CA's list."""
        self._run("ca", *self._ca(ca), "-gencrl", "-out", f"{ca}/crl.pem")

    def add_profile(self, name: str, base: str, **other: str) -> None:
        """Add a profile that is *base* but for some lines; an empty one is left out."""
        path = self.path / "own-ca.cnf"
        (body,) = re.findall(rf"^\[{base}\]\n(.*?)(?=^\[|\Z)", path.read_text(), re.DOTALL | re.MULTILINE)
        lines = dict(line.split(" = ", 1) for line in body.splitlines() if " = " in line) | other
        with path.open("a") as file:
            file.write(f"\n[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items() if value))

    def together(self, name: str, cas: Sequence[str]) -> bytes:
        """Return the files of one name (cert.pem, crl.pem) of some CAs, one behind the other."""
        return b"".join((self.path / ca / name).read_bytes() for ca in cas)

    def _ca(self, name: str) -> list[str]:
        return ["-config", "own-ca.cnf", "-name", name]

    def _new_key(self, name: str) -> list[str]:
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-sha256"]
        return ["-config", "own-ca.cnf", *curve, "-keyout", f"{name}/key.pem", "-subj", f"/O=Acme/CN=Acme {name} CA"]

    def _run(self, *words: str) -> None:
        ran = subprocess.run(["openssl", *words], cwd=self.path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
