"""When the agent does what it does beside crashes."""

from securecore.sender.chores import Chore, Planned

CHORE = Chore("flush", lambda: 0, first_s=120, every_s=100, jitter_s=30, most_s=600)


def planned(chance: float = 0.5) -> Planned:
    """Return the chore of an agent that starts at 1000."""
    return Planned(CHORE, 1000, lambda: chance)


def test_the_first_comes_after_its_time_and_a_chance() -> None:
    """So that a fleet that was started at once does not come at once."""
    assert [planned(chance).next_at for chance in (0.0, 0.5, 1.0)] == [1120, 1135, 1150]
    assert not planned().is_due(1134)
    assert planned().is_due(1135)


def test_one_that_is_under_way_is_not_begun_again() -> None:
    """However long it takes, up to its bound."""
    chore = planned()
    chore.begin(4711, 1135)
    chore.hurry(1200)

    assert not chore.is_due(1735)
    assert not chore.is_overdue(1734)
    assert chore.is_overdue(1735)


def test_the_next_comes_after_the_end_of_the_last() -> None:
    """Not after its beginning: one that takes long is not followed at once."""
    chore = planned()
    chore.begin(4711, 1135)
    chore.put_off(1500)

    assert chore.pid is None
    assert chore.next_at == 1615
    assert not chore.is_overdue(9999)


def test_whoever_is_in_a_hurry_has_it_now() -> None:
    """SIGHUP."""
    chore = planned()
    chore.hurry(1001)
    assert chore.is_due(1001)
