"""What somebody who has a fleet's root, and nothing else, can do with a bundle."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from securecore.audit.bundle import Bundle, read_bundle
from securecore.cli.main import run
from tests.support.samples import Sample
from tests.support.stores import Ran


class Evidence:
    """A store, and a third party with nothing but the root."""

    def __init__(self, sample: Sample, place: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.sample = sample
        self.path = place / "bundle.tar"
        self.root = place / "ca.pem"
        shutil.copyfile(sample.fleet.host / "ca.pem", self.root)
        self._capture = capture

    def prove(self, dump: object, *arguments: object) -> Ran:
        """Run ``audit prove`` on the store."""
        return self.sample("audit", "prove", dump, "-o", self.path, "--root", self.root, *arguments)

    def check(self, *arguments: object) -> Ran:
        """Run ``audit check`` where no store is named, and none is there to be found."""
        chosen = arguments if "--root" in arguments else ("--root", self.root, *arguments)
        code = run(["audit", "check", str(self.path), *map(str, chosen)])
        output = self._capture.readouterr()
        return Ran(code, output.out, output.err)

    def read(self) -> Bundle:
        """Return the bundle."""
        with self.path.open("rb") as file:
            return read_bundle(file)

    def document(self, *arguments: object) -> dict[str, Any]:
        """Return what ``audit check --json`` says, once it holds."""
        ran = self.check("--json", *arguments)
        assert ran.code == 0, ran
        return dict(ran.document)
