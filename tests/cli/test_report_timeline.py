"""The timeline of an audit report: nothing is lost when stretches are put together, and every bar is in its row."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from securecore.cli.overview.timeline import LANE_HEIGHT, LANES, MAX_BINS, Histogram, draw

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001  # the zone is added


def counted(moments: list[tuple[datetime, str]]) -> Histogram:
    """Return what counted these."""
    histogram = Histogram()
    for moment, lane in moments:
        histogram.add(moment, lane)
    return histogram


@given(st.lists(st.tuples(MOMENTS, st.sampled_from(LANES)), min_size=1, max_size=30))
def test_every_event_is_in_its_stretch_whatever_the_span(moments: list[tuple[datetime, str]]) -> None:
    """From one moment to eight thousand years, in any order: as many as were added, where they were, in few stretches."""
    histogram = counted(moments)
    timeline = histogram.timeline(histogram)
    assert timeline is not None

    assert len(timeline.counts) <= MAX_BINS
    expected = [[0] * len(LANES) for _ in timeline.counts]
    for moment, lane in moments:
        expected[int((moment - timeline.starts_at).total_seconds()) // timeline.width_s][LANES.index(lane)] += 1
    assert [list(counts) for counts in timeline.counts] == expected


@given(st.lists(st.tuples(MOMENTS, st.sampled_from(LANES)), max_size=10), st.lists(st.tuples(MOMENTS, st.sampled_from(LANES))))
def test_two_hosts_together_count_as_one(one: list[tuple[datetime, str]], other: list[tuple[datetime, str]]) -> None:
    """Whether their events are counted together or apart."""
    together, apart = counted([*one, *other]), counted(one)
    apart.add_all(counted(other))
    assert apart.timeline(apart) == together.timeline(together)


def test_hosts_share_one_axis() -> None:
    """A host whose dumps came in one minute is drawn in the stretches of the one whose dumps came over a year."""
    short, long = counted([(NOON, "complete")]), counted([(NOON - timedelta(days=300), "deleted"), (NOON, "refused")])
    frame = Histogram()
    frame.add_all(short)
    frame.add_all(long)
    drawn, other = short.timeline(frame), long.timeline(frame)
    assert drawn is not None
    assert other is not None
    assert (drawn.starts_at, drawn.width_s, len(drawn.counts)) == (other.starts_at, other.width_s, len(other.counts))
    assert sum(map(sum, drawn.counts)) == 1


def test_silence_is_drawn_too() -> None:
    """The axis reaches to the moment of the report, though nothing happened there."""
    histogram = counted([(NOON, "complete")])
    histogram.cover(NOON + timedelta(minutes=30))
    timeline = histogram.timeline(histogram)
    assert timeline is not None
    assert (len(timeline.counts), timeline.ends_at) == (31, NOON + timedelta(minutes=31))


def test_nothing_counted_is_nothing_drawn() -> None:
    """A store without entries has no timeline."""
    assert Histogram().timeline(Histogram()) is None


@given(st.lists(st.tuples(MOMENTS, st.sampled_from(LANES), st.integers(1, 10**9)), min_size=1, max_size=20))
def test_bars_stay_in_their_rows(moments: list[tuple[datetime, str, int]]) -> None:
    """The highest fills its row, the lowest is seen, none leaves the drawing; names and sums are those of the lanes."""
    histogram = Histogram()
    for moment, lane, number in moments:
        histogram.add(moment, lane, number)
    timeline = histogram.timeline(histogram)
    assert timeline is not None
    drawing = draw(timeline)

    assert [lane.name for lane in drawing.lanes] == list(LANES)
    assert [lane.total for lane in drawing.lanes] == [sum(n for _, name, n in moments if name == lane) for lane in LANES]
    for lane in drawing.lanes:
        for bar in lane.bars:
            assert 0 <= bar.x < drawing.width
            assert lane.base - LANE_HEIGHT < bar.y <= lane.base - 2
            assert bar.y + bar.height == lane.base
            assert bar.ends_at > bar.starts_at
        assert lane.most == max((bar.number for bar in lane.bars), default=0)
