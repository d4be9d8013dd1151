"""The fuzz targets without a fuzzer: what they begin with, what they have found, and plain changes to it. Runs everywhere."""

from random import Random

import pytest

from tests.fuzz.fleet import fleet
from tests.fuzz.mutation import mutate_bytes, mutate_json
from tests.fuzz.reproducers import REPRODUCERS
from tests.fuzz.table import TARGETS
from tests.fuzz.target import find_parser
from tests.support.der import elements, paths, replaced

CHANGES = 300
"""Changed inputs for each target: a second for all of them."""


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_good_keeps_the_property(name: str) -> None:
    """Each target begins with inputs that its own writers made, none longer than what is tried."""
    seeds = list(TARGETS[name].seeds())
    assert len(set(seeds)) > 1
    for seed in seeds:
        assert len(seed) <= TARGETS[name].max_bytes
        TARGETS[name].check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_what_is_changed_keeps_the_property(name: str) -> None:
    """The same few hundred changes in every run: no coverage guides them, but they need nothing beside Python."""
    target, random = TARGETS[name], Random(name)
    seeds = list(target.seeds())
    for _ in range(CHANGES):
        seed = random.choice(seeds)
        if target.is_json and random.random() < 0.7:
            target.check(mutate_json(seed, random, lambda data: mutate_bytes(data, random))[: target.max_bytes])
        else:
            target.check(mutate_bytes(seed, random)[: target.max_bytes])


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, found in REPRODUCERS.items() for data in found])
def test_what_was_found_stays_mended(name: str, data: bytes) -> None:
    """Inputs that broke a property once."""
    TARGETS[name].check(data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_drives_parsers_that_exist(name: str) -> None:
    """Each parser that a target names is in the package, so that docs/reliability.md can name it too."""
    for parser in TARGETS[name].parsers:
        assert callable(find_parser(parser)), parser


def test_an_element_is_replaced_and_nothing_else() -> None:
    """Of a real certificate: put back, each element gives the same bytes; replaced, the whole is still well-formed around it."""
    (whole,) = elements(fleet().host.der)
    ways = list(paths(whole))
    assert len(ways) >= 50
    for path, element in ways:
        assert replaced(whole, path, element.whole) == whole.whole
    for path, _ in ways[1:]:
        assert b"\x04\x01x" in elements(replaced(whole, path, b"\x04\x01x"))[0].content
