"""sender.toml: what is written reads back, and what is wrong is named with file and line."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securecore import limits
from securecore.errors import ConfigError, SecurecoreError
from securecore.names import Address, is_plain_path
from securecore.sender import storm_limits
from securecore.sender.admission import ACTIONS, CORE_LIMITS, Admission, Rule, StormLimit
from securecore.sender.configuration import (
    DEFAULT_SPOOL,
    DEFAULT_USER,
    KERNEL_WAYS,
    LocalConfiguration,
    SenderConfiguration,
    parse_configuration,
)
from securecore.sender.confinement import IO_PRIORITIES, Confinement
from securecore.sender.floor import Floor
from securecore.sender.local_mode import KEEP_MAX, LocalMode
from securecore.sender.patience import Patience, usual_patience
from securecore.sender.spool_limits import SpoolLimits

GOOD = 'version = 1\nreceivers = ["collector.example:4455"]\nidentity = "/etc/securecore/identity"\n'

paths = st.lists(
    st.text(st.characters(exclude_characters="/", exclude_categories=("C", "Z")), min_size=1), min_size=1, max_size=4
).map(lambda parts: "/" + "/".join(parts))


seconds = st.integers(1, 600) | st.floats(0, 600, exclude_min=True)
patterns = st.none() | st.text(st.characters(exclude_characters="[", exclude_categories=("C", "Z")), min_size=1, max_size=20)
users = st.none() | st.sampled_from(["root", "0", "4294967294", "CORP\\\\jane.doe"])
rules = st.builds(Rule, st.sampled_from(ACTIONS), patterns, users, patterns, patterns, st.none() | st.integers(1, 64))
bounds = st.builds(StormLimit, st.integers(0, storm_limits.MAX_BURST), st.integers(1, 86400))
sizes = st.none() | st.integers(1, 1 << 62)
admissions = st.builds(
    Admission, st.sampled_from(CORE_LIMITS), sizes, st.lists(rules, max_size=3).map(tuple), bounds, bounds, bounds
)
spool_limits = st.builds(
    SpoolLimits, st.none() | st.integers(1, 1 << 62), st.none() | st.integers(1, 1 << 62),
    st.integers(0, 99_999).map(lambda share: share / 100_000), st.integers(0, 1 << 62),
)  # fmt: skip
confinements = st.builds(
    Confinement,
    st.integers(0, limits.MAX_NICE),
    st.sampled_from(IO_PRIORITIES),
    st.integers(limits.MIN_HANDLER_MEMORY_BYTES, limits.MAX_HANDLER_MEMORY_BYTES),
    st.integers(1, int(limits.MAX_HANDLER_DEADLINE_S)).map(float),
    st.integers(1, int(limits.MAX_HANDLER_DEADLINE_S)).map(float),
)


@given(
    paths.filter(is_plain_path),
    paths.filter(is_plain_path),
    st.sampled_from(["securecore", "_x-1", "990:991"]),
    st.none() | st.builds(Patience, seconds, seconds, seconds),
    st.none() | admissions,
    st.none() | spool_limits,
    st.none() | confinements,
    st.sampled_from(KERNEL_WAYS),
)
def test_written_configuration_reads_back(
    identity: str,
    spool: str,
    user: str,
    deadlines: Patience | None,
    admission: Admission | None,
    bounds: SpoolLimits | None,
    confinement: Confinement | None,
    kernel: str,
) -> None:
    """For every path and user, parse(encode(x)) is x, quotes, backslashes and letters of any script included."""
    receivers = (Address("collector.example:4455"), Address("[fd00::5]:1"))
    configuration = SenderConfiguration(
        receivers, identity, spool, user,
        kernel=kernel, deadlines=deadlines, admission=admission, spool_limits=bounds, confinement=confinement,
    )  # fmt: skip
    assert parse_configuration(configuration.encode(), "sender.toml") == configuration


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: (GOOD + text).encode("utf-8", "surrogatepass")))
def test_any_bytes_are_understood_or_refused(data: bytes) -> None:
    """Whatever the file holds, the answer is a configuration or a SecurecoreError that names the file."""
    assert refusal(data).partition(":")[0] in ("", "sender.toml")


def test_configuration_cut_at_every_offset_is_refused_or_lacks_only_what_may_be_left_out() -> None:
    """A beginning of TOML may be TOML: then it says nothing that the whole does not say, and a path or name is never half one."""
    receivers = (Address("collector.example:4455"),)
    whole = SenderConfiguration(receivers, "/etc/securecore/identity", "/data/spool", "990:991", "whole", "agent")
    data = whole.encode()
    found = set()
    for cut in range(len(data)):
        if refusal(data[:cut]) == "":
            cut_short = parse_configuration(data[:cut], "sender.toml")
            assert (cut_short.receivers, cut_short.identity) == (whole.receivers, whole.identity)
            found.add((cut_short.spool, cut_short.spool_mode, cut_short.user, cut_short.kernel))
    assert found == {
        (DEFAULT_SPOOL, "tail", DEFAULT_USER, "pipe"),
        (whole.spool, "tail", DEFAULT_USER, "pipe"),
        (whole.spool, "whole", DEFAULT_USER, "pipe"),
        (whole.spool, "whole", whole.user, "pipe"),
        (whole.spool, "whole", whole.user, "agent"),
    }
    assert refusal(data + b"x") != ""


def refusal(data: bytes) -> str:
    """Return why a file is refused, nothing when it is understood; any other exception is the test's failure."""
    try:
        parse_configuration(data, "sender.toml")
    except SecurecoreError as error:
        return error.message
    return ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\nreciever = 1\n" + GOOD, "sender.toml:3: unknown key 'reciever'"),
        (GOOD + "[spol]\nx = 1\n", "sender.toml:4: unknown key 'spol'"),
        (GOOD + '"a b" = 1\n', "sender.toml:4: unknown key 'a b'"),
        (GOOD.replace("version = 1", "version = 2"), "sender.toml:1: version must be 1"),
        (GOOD.replace("version = 1", "version = true"), "sender.toml:1: version must be 1"),
        (GOOD.replace("version = 1", ""), "sender.toml: version must be 1"),
        (GOOD.replace(":4455", ""), "sender.toml:2: not an address: 'collector.example'"),
        (GOOD.replace('"collector.example:4455"', "1"), "sender.toml:2: not an address: ''"),
        (GOOD.replace('"collector.example:4455"', ""), "sender.toml: no receiver"),
        (GOOD.replace('["collector.example:4455"]', '"collector.example:4455"'), "sender.toml:2: receivers must be a list"),
        (GOOD.replace("identity", "#"), "sender.toml: identity is missing"),
        (GOOD + "[deadlines]\nconect = 5\n", "sender.toml:5: unknown key 'conect'"),
        (GOOD + "[handler]\nnise = 5\n", "sender.toml:5: unknown key 'nise'"),
        (GOOD + "handler = 5\n", "sender.toml:4: handler must be a table"),
        (GOOD + "[handler]\nnice = 20\n", "sender.toml:5: nice must be 0 to 19"),
        (GOOD + "[handler]\nnice = -1\n", "sender.toml:5: nice must be 0 to 19"),
        (GOOD + '[handler]\nio = "real-time"\n', "sender.toml:5: io must be normal, low or idle, not 'real-time'"),
        (GOOD + '[handler]\nmemory = "127MiB"\n', "sender.toml:5: memory must be 128 MiB to 16.0 GiB"),
        (GOOD + '[handler]\nmemory = "17GiB"\n', "sender.toml:5: memory must be 128 MiB to 16.0 GiB"),
        (GOOD + '[handler]\nmemory = "much"\n', "sender.toml:5: memory must be a size"),
        (GOOD + '[handler]\ndeadline = "0s"\n', "sender.toml:5: deadline must be a length of time"),
        (GOOD + '[handler]\ndeadline = "2d"\n', "sender.toml:5: deadline must be a day at most"),
        (GOOD + '[handler]\nsource_deadline = "2d"\n', "sender.toml:5: source_deadline must be a day at most"),
        (GOOD + "[handler]\ndeadline = 60\n", "sender.toml:5: deadline must be a text"),
        (GOOD + "deadlines = 5\n", "sender.toml:4: deadlines must be a table"),
        (GOOD + "[deadlines]\nhold = 0\n", "sender.toml:5: hold must be seconds: a number above 0, at most 600"),
        (GOOD + "[deadlines]\n\nhold = -1.5\n", "sender.toml:6: hold must be seconds"),
        (GOOD + "[deadlines]\nprogress = 600.1\n", "sender.toml:5: progress must be seconds"),
        (GOOD + "[deadlines]\nprogress = inf\n", "sender.toml:5: progress must be seconds"),
        (GOOD + "[deadlines]\nprogress = nan\n", "sender.toml:5: progress must be seconds"),
        (GOOD + "[deadlines]\nconnect = true\n", "sender.toml:5: connect must be seconds"),
        (GOOD + '[deadlines]\nconnect = "5"\n', "sender.toml:5: connect must be seconds"),
        (GOOD + "spool = 7\n", "sender.toml:4: spool must be a text"),
        (GOOD + "spool_mode = 7\n", "sender.toml:4: spool_mode must be a text"),
        (GOOD + "kernel = 7\n", "sender.toml:4: kernel must be a text"),
        (GOOD + 'kernel = "auto"\n', "sender.toml: kernel must be pipe or agent, not 'auto'"),
        (GOOD + 'spool_mode = "half"\n', "sender.toml: spool_mode must be tail or whole, not 'half'"),
        (GOOD + 'spool = "/a/../b"\n', "sender.toml: spool must be an absolute path"),
        (GOOD + 'spool = "/a\\nb"\n', "sender.toml: spool must be an absolute path"),
        (GOOD + 'user = "root"\n', "sender.toml: the user must not be root"),
        (GOOD + 'user = "1:0"\n', "sender.toml: the user must not be root"),
        (GOOD + "user\n", "sender.toml: expected '=' after a key"),
        (GOOD + "x = " + "1" * 5000 + "\n", "sender.toml: a number is too long, or brackets are nested too deeply"),
        (GOOD + "x = " + "[" * 5000 + "\n", "sender.toml: a number is too long, or brackets are nested too deeply"),
    ],
)
def test_mistake_is_named_with_its_place(text: str, message: str) -> None:
    """Each mistake names the file, and the line where it can be found."""
    with pytest.raises(ConfigError) as caught:
        parse_configuration(text.encode(), "sender.toml")
    assert caught.value.message.startswith(message)


def test_what_a_handler_may_take_is_the_version_s_where_nothing_is_said() -> None:
    """A table [handler] changes what it names, and leaves the rest as it is."""
    unsaid, said = (parse_configuration(text.encode(), "sender.toml") for text in (GOOD, GOOD + '[handler]\ndeadline = "2h"\n'))
    assert isinstance(unsaid, SenderConfiguration)
    assert isinstance(said, SenderConfiguration)
    assert unsaid.confinement is None
    assert said.confinement == Confinement(deadline_s=7200.0)
    other = parse_configuration((GOOD + '[handler]\nsource_deadline = "10m"\n').encode(), "sender.toml")
    assert isinstance(other, SenderConfiguration)
    assert other.confinement == Confinement(source_deadline_s=600.0)


BOUNDING = GOOD + "[spool_limits]\n"


def spool_limits_of(text: str) -> SpoolLimits | None:
    """Return what the lines of a table [spool_limits] say."""
    configuration = parse_configuration((BOUNDING + text).encode(), "sender.toml")
    assert isinstance(configuration, SenderConfiguration)
    return configuration.spool_limits


def test_what_the_spool_may_take_is_the_versions_where_nothing_is_said() -> None:
    """Who sets a quota keeps the floor; `none` lifts a bound."""
    nothing = parse_configuration(GOOD.encode(), "sender.toml")
    assert isinstance(nothing, SenderConfiguration)
    assert nothing.spool_limits is None
    assert spool_limits_of("") == SpoolLimits()
    assert spool_limits_of('stored = "20GiB"\ndumps = 200\n') == SpoolLimits(20 << 30, 200, limits.SPOOL_FLOOR_SHARE)
    assert spool_limits_of('floor_share = "none"\nfloor_free = "2GiB"\n') == SpoolLimits(floor_share=0.0, floor_bytes=2 << 30)
    assert spool_limits_of('stored = "none"\ndumps = "none"\nfloor_free = "none"\nfloor_share = "0.5%"\n') == SpoolLimits(
        floor_share=0.005
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quota = 1\n", "sender.toml:5: unknown key 'quota'"),
        ('stored = "much"\n', "sender.toml:5: stored must be a size"),
        ("\nstored = 0\n", "sender.toml:6: stored must be above 0"),
        ('dumps = "many"\n', "sender.toml:5: dumps must be a number"),
        ("dumps = -1\n", "sender.toml:5: dumps must be 0 to"),
        ("dumps = 0\n", "sender.toml:5: dumps must be above 0"),
        ("floor_share = 5\n", "sender.toml:5: floor_share must be a text"),
        ('floor_share = "5"\n', "sender.toml:5: floor_share must be a share below 100%"),
        ('floor_share = "100%"\n', "sender.toml:5: floor_share must be a share below 100%"),
        ('floor_share = "0%"\n', "sender.toml:5: floor_share must be above 0"),
        ("floor_free = true\n", "sender.toml:5: floor_free must be a size"),
    ],
)
def test_mistake_in_the_limits_of_the_spool_is_named_with_its_place(text: str, message: str) -> None:
    """The line of the key, and what it must be."""
    with pytest.raises(ConfigError) as caught:
        spool_limits_of(text)
    assert caught.value.message.startswith(message)


LOCAL = 'version = 1\n[local]\ndirectory = "/var/cores"\n'


@given(
    st.from_regex(r"(/[!-$&-.0-9:-~]{1,9}){1,2}", fullmatch=True).filter(is_plain_path),
    st.sampled_from(["zst", "gz", "zlib"]),
    st.none() | st.integers(1, 9),
    st.none() | st.integers(1, KEEP_MAX),
    st.sampled_from(["securecore", "_x-1", "990:991"]),
    st.none() | admissions,
    st.none() | spool_limits.map(lambda bounds: bounds.floor),
)
def test_written_local_configuration_reads_back(
    directory: str, kind: str, level: int | None, keep: int | None, user: str, admission: Admission | None, floor: Floor | None
) -> None:
    """For every mode, user, admission and floor, parse(encode(x)) is x."""
    configuration = LocalConfiguration(LocalMode(directory, kind, level, keep), user, admission, floor)
    assert parse_configuration(configuration.encode(), "sender.toml") == configuration


def test_a_local_configuration_needs_its_directory_only() -> None:
    """Everything else has a default; all dumps are kept."""
    assert parse_configuration(LOCAL.encode(), "sender.toml") == LocalConfiguration(LocalMode("/var/cores"))


@pytest.mark.parametrize(
    ("text", "floor"),
    [
        ("", None),
        ('floor_share = "0.5%"\n', Floor(0.005)),
        ('floor_free = "2GiB"\n', Floor(limits.SPOOL_FLOOR_SHARE, 2 << 30)),
        ('floor_share = "none"\nfloor_free = "none"\n', Floor(0.0)),
    ],
)
def test_what_local_cores_leave_free_is_the_versions_where_nothing_is_said(text: str, floor: Floor | None) -> None:
    """In the words of a spool's floor, in the table of the cores; what it is commented out with is what holds without it."""
    configuration = parse_configuration((LOCAL + text).encode(), "sender.toml")
    assert isinstance(configuration, LocalConfiguration)
    assert configuration.floor == floor

    shown = configuration.encode().replace(b"#floor", b"floor")
    assert parse_configuration(shown, "sender.toml") == replace(configuration, floor=floor or Floor())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LOCAL + "kep = 1\n", "sender.toml:4: unknown key 'kep'"),
        (LOCAL + 'keep = "1"\n', "sender.toml:4: keep must be a number"),
        (LOCAL + "keep = true\n", "sender.toml:4: keep must be a number"),
        (LOCAL + "keep = 1.5\n", "sender.toml:4: keep must be a number"),
        (LOCAL + "keep = 0\n", "sender.toml: keep must be 1 to 1000000"),
        (LOCAL + "level = 99\n", "sender.toml: level 99 does not exist"),
        (LOCAL + "format = 7\n", "sender.toml:4: format must be a text"),
        (LOCAL + 'format = "rar"\n', "sender.toml: 'rar' is no format"),
        (LOCAL.replace('"/var/cores"', '"cores"'), "sender.toml: the directory must be an absolute path"),
        (LOCAL.replace("/var/cores", "/var/my cores"), "sender.toml: '/var/my cores': a path in core_pattern must be of plain"),
        (LOCAL.replace("/var/cores", "/" + "x" * 99), "sender.toml: core_pattern would have "),
        (LOCAL.replace("directory", "#"), "sender.toml: directory is missing"),
        (LOCAL.replace("version = 1", "version = 1\nuser = 'root'"), "sender.toml: the user must not be root"),
        (LOCAL.replace("version = 1", "version = 1\nkernel = 'pipe'"), "sender.toml:2: kernel and [local] exclude each other"),
        (LOCAL.replace("version = 1", "version = 1\nspool_mode = 'tail'"), "sender.toml:2: spool_mode and [local] exclude"),
        (LOCAL.replace("version = 1", "version = 1\nspool = '/x'"), "sender.toml:2: spool and [local] exclude each other"),
        (LOCAL + 'floor_share = "0%"\n', "sender.toml:4: floor_share must be above 0"),
        (LOCAL + "floor_free = true\n", "sender.toml:4: floor_free must be a size"),
        (LOCAL + "[spool_limits]\n", "sender.toml:4: spool_limits and [local] exclude each other: cores are sent, or kept here"),
        (LOCAL + "[handler]\n", "sender.toml:4: handler and [local] exclude each other: a handler that keeps its cores"),
        (LOCAL + "[admission]\nmax_siz = 1\n", "sender.toml:5: unknown key 'max_siz'"),
        (LOCAL + "[admission]\nrules = [{}]\n", "sender.toml:5: rule 1: action must be include or exclude"),
        (GOOD + "[local]\ndirectory = '/x'\n", "sender.toml:2: receivers and [local] exclude each other"),
        ("version = 1\nlocal = '/x'\n", "sender.toml:2: local must be a table"),
    ],
)
def test_mistake_in_a_local_configuration_is_named(text: str, message: str) -> None:
    """Each mistake names the file, and the line where it can be found."""
    with pytest.raises(ConfigError) as caught:
        parse_configuration(text.encode(), "sender.toml")
    assert caught.value.message.startswith(message)


def test_a_deadline_that_is_left_out_is_the_usual_one() -> None:
    """Who changes one of them says nothing about the others; who changes none leaves all of them to the version."""
    configuration = parse_configuration((GOOD + "[deadlines]\nconnect = 30\n").encode(), "sender.toml")
    assert isinstance(configuration, SenderConfiguration)
    assert configuration.deadlines == usual_patience()._replace(connect_s=30)
    nothing = parse_configuration(GOOD.encode(), "sender.toml")
    assert isinstance(nothing, SenderConfiguration)
    assert nothing.deadlines is None
