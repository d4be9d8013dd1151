"""docs/enrolment.md is normative: its tables and its examples are held against the code, both ways."""

import ast
import re
from datetime import timedelta
from pathlib import Path

from securecore.certs.profiles import ENROLLER, ENROLLER_OID
from securecore.cli.authority import enrolling
from securecore.pki import enrolment, limits
from securecore.pki.enrolment import parse_request
from securecore.pki.signing_request import MAX_REQUEST_BYTES
from securecore.pki.tokens import CONTEXT, make_mac, parse_token
from securecore.units import exact_span
from tests.test_documents import cells_of

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/enrolment.md").read_text()


def section(heading: str) -> str:
    """Return what stands below a heading, up to the next of any level."""
    return re.split(r"^#+ ", TEXT.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def test_the_table_of_requests_is_the_code() -> None:
    """Operations, the fields that each must have, those that it may have."""
    rows = cells_of(section("Requests"))
    stated = {
        row[0].strip("`"): (set(re.findall(r"`(\w+)`", row[1])), set(re.findall(r"`(\w+)`", row[2])))
        for row in rows
        if len(row) == 5
    }
    assert stated == enrolment._FIELDS


def test_the_example_requests_are_requests() -> None:
    """Each line of the block parses."""
    (block,) = re.findall(r"```text\n(.*?)```", section("Requests"), re.DOTALL)
    assert [parse_request(line.encode()).op for line in block.splitlines()] == ["roots", "enroll"]


def test_the_example_of_a_token_is_what_the_code_makes() -> None:
    """Id, key and HMAC, byte for byte; the message's offsets add up."""
    secret = parse_token("securecore-token-" + "5a" * 32)
    lines = dict(re.findall(r"^(id|key|mac) +([0-9a-f]+)$", section("The token"), re.MULTILINE))
    mac = make_mac(secret.key, b"\x30\x00", b"\x30\x00")
    assert lines == {"id": secret.id, "key": secret.key.hex(), "mac": mac.hex()}
    assert f"The message is {len(CONTEXT) + 64} bytes:" in TEXT
    assert f"| 0 | {len(CONTEXT)} | `{CONTEXT[:-1].decode()}` and one byte 00 |" in TEXT


def codes_in(*modules: str) -> set[str]:
    """Return the first arguments of every Denied(...) and KeyProblem(...) in some modules."""
    found = set()
    for module in modules:
        for node in ast.walk(ast.parse((ROOT / "securecore/pki" / f"{module}.py").read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Denied", "KeyProblem"):
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    found.add(str(first.value))
                elif isinstance(first, ast.JoinedStr):
                    found |= {"token-expired", "token-recalled"}
    return found


def test_the_table_of_errors_is_the_code() -> None:
    """Every code that the enroller gives but the judge's reasons, and which of them mean not now."""
    rows = cells_of(section("Answers"))
    stated = {row[0].strip("`"): row[2] for row in rows if len(row) == 3}
    assert set(stated) == codes_in("enroller", "known_keys", "serving")
    assert {code for code, exit_code in stated.items() if exit_code == "14"} == set(enrolment._LATER)
    assert set(stated.values()) == {"13", "14"}


def test_the_bounds_are_the_codes() -> None:
    """Every number of the page."""
    lives = [exact_span(timedelta(seconds=seconds)) for seconds in (limits.MIN_TOKEN_TTL_S, limits.MAX_TOKEN_TTL_S)]
    assert [*lives, enrolling._USUAL_LIFE] == ["1m", "1w", "1h"]
    for words in (
        f"| of the client | {limits.MAX_LINE_BYTES} | {limits.REQUEST_DEADLINE_S:.0f} s ",
        f"| of the enroller | {limits.MAX_ANSWER_BYTES} | {2 * limits.ANSWER_DEADLINE_S:.0f} s, as the client waits;",
        f"takes {limits.ANSWER_DEADLINE_S:.0f} s for its PKI's lock, then {limits.ANSWER_DEADLINE_S:.0f} s and what the line takes "
        f"at {limits.ANSWER_RATE_BYTES_PER_S // 1024} KiB/s",
        f"at most {MAX_REQUEST_BYTES} bytes of DER",
        f"| connections at once | {limits.MAX_CLIENTS}, of one address {limits.MAX_CLIENTS_PER_NETWORK}, of one IPv6 /48 "
        f"{limits.MAX_CLIENTS_PER_SITE};",
        f"| connections of one address within a minute | {limits.CLIENTS_PER_MINUTE}, of one IPv6 /48 "
        f"{limits.SITE_CLIENTS_PER_MINUTE};",
        f"| certificates by renewal for one host within a day | {limits.RENEWALS_PER_DAY};",
        f"| the wait for the PKI's lock, for `enroll` and `renew` | {limits.ANSWER_DEADLINE_S:.0f} s; then `unavailable`.",
        "| a token's life | 1 minute to 7 days, an hour if nothing is said |",
        f"# Enrolment on line: `{enrolment.ALPN}`",
        f"{ENROLLER_OID.dotted_string}, in this order",
    ):
        assert words in TEXT, words
    assert ENROLLER.extended_key_usage[0] == "serverAuth"
