"""How far a stage is, and estimates of the time left: only out of what was measured."""

from __future__ import annotations

import pytest

from pipeline.display.progress import (
    LEAST_S,
    WINDOW_S,
    Sample,
    StageProgress,
    about,
    seconds_left,
    total_work,
)


def stage(**expected: float) -> StageProgress:
    return StageProgress("stage 1 of 5, fine-tune", "teachers", "steps", expected)


def test_items_that_have_not_begun_are_as_long_as_expected_beside_the_others() -> None:
    assert total_work({"a": 100}, {"a": 1.0, "b": 1.0, "c": 1.0}) == 300
    assert total_work({"a": 100}, {"a": 10.0, "b": 5.0}) == 150
    assert total_work({"a": 100, "b": 50}, {"a": 1.0, "b": 1.0}) == 150
    assert total_work({}, {"a": 1.0}) is None


def test_time_left_is_work_left_by_the_throughput_measured() -> None:
    samples = [Sample(0, 0), Sample(10, 50)]
    assert seconds_left(samples, 10, 100) == 20
    assert seconds_left(samples, 20, 100) == 40  # nothing has come since: it has become slower


def test_no_estimate_before_there_is_progress_to_measure() -> None:
    assert seconds_left([], 100, 50) is None
    assert seconds_left([Sample(0, 10)], 100, 50) is None
    assert seconds_left([Sample(0, 0), Sample(1, 10)], LEAST_S - 1, 50) is None
    assert seconds_left([Sample(0, 5), Sample(10, 5)], 10, 50) is None


def test_old_progress_does_not_count() -> None:
    slow, fast = [Sample(0, 0), Sample(1000, 10)], [Sample(1001 + i, 10 + 10 * i) for i in range(11)]
    now = 1000 + WINDOW_S / 2
    assert seconds_left([*slow[:1], *fast], now, 100) == pytest.approx(100 / (100 / (now - 1001)))
    assert seconds_left(slow, 1000, 10) == 1000  # progress slower than the window still counts


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "about 10 s"),
        (34, "about 30 s"),
        (56, "about 1 min"),
        (470, "about 8 min"),
        (3570, "about 1 h"),
        (7900, "about 2 h 10 min"),
        (200_000, "about 56 h"),
    ],
)
def test_about(seconds: float, text: str) -> None:
    assert about(seconds) == text


def test_a_stage_says_how_many_of_how_many_and_how_long() -> None:
    one = stage(a=1.0, b=1.0, c=1.0)
    assert one.headline(0) == "stage 1 of 5, fine-tune: 0 of 3 teachers"
    one.advance("a", 1, 101, now=20)
    assert one.headline(20) == "stage 1 of 5, fine-tune: 0 of 3 teachers, 1 of about 303 steps"
    one.advance("a", 51, 101, now=30)
    one.advance("a", 101, 101, now=40)
    # 100 steps in 20 s: 202 are left
    assert one.counts(40) == "1 of 3 teachers, 101 of about 303 steps, about 40 s left"
    one.advance("b", 1, 201, now=60)
    one.advance("c", 1, 201, now=60)
    assert "101 of" not in one.counts(60)
    assert "of 503 steps" in one.counts(60)
    one.advance("b", 201, 201, now=100)
    one.advance("c", 201, 201, now=100)
    assert one.counts(100) == "3 of 3 teachers, 503 of 503 steps"


def test_what_earlier_launches_did_is_no_throughput_of_this_one() -> None:
    one = stage(a=1.0)
    one.advance("a", 900, 1000, now=0)
    one.advance("a", 910, 1000, now=10)
    assert one.seconds_left(10) == pytest.approx(90)  # one step a second
    late = stage(a=1.0, b=1.0)
    late.advance("a", 10, 1000, now=0)
    late.advance("a", 20, 1000, now=10)
    late.advance("b", 500, 1000, now=10)  # resumed at step 500
    assert late.seconds_left(10) == pytest.approx(2000 - 520)


def test_the_start_of_replicas_is_no_throughput() -> None:
    one = StageProgress("label", "teachers", "examples", {"a": 1000})
    one.advance("a", 0, 1000, now=0)
    one.advance("a", 100, 1000, now=60)  # they took a minute to start
    assert one.seconds_left(60) is None
    one.advance("a", 200, 1000, now=70)
    assert one.seconds_left(70) == pytest.approx(80)


def test_an_item_that_ends_early_is_as_long_as_it_was() -> None:
    one = stage(a=1.0, b=1.0)
    one.advance("a", 1, 100, now=0)
    one.advance("a", 41, 100, now=10)
    one.end("a")  # stopped early
    assert one.counts(10) == "1 of 2 teachers, 41 of about 82 steps, about 10 s left"
    one.end("b")  # somebody else made it
    assert one.counts(11) == "2 of 2 teachers, 41 of 41 steps"


def test_an_item_that_begins_again_has_done_what_it_did_before() -> None:
    one = stage(a=1.0)
    one.advance("a", 1, 100, now=0)
    one.advance("a", 61, 100, now=60)
    one.advance("a", 1, 20, now=61)  # stopped early; the next schedule
    one.advance("a", 11, 20, now=71)
    assert one.counts(71) == "0 of 1 teachers, 72 of 81 steps, about 10 s left"
    one.advance("a", 1, 10, now=72)
    assert one.counts(72).startswith("0 of 1 teachers, 73 of 82 steps")


def test_an_item_that_goes_back_to_its_checkpoint_has_lost_what_came_after() -> None:
    one = stage(a=1.0)
    one.advance("a", 60, 100, now=0)
    one.advance("a", 50, 100, now=60)  # its worker was lost
    assert one.counts(60) == "0 of 1 teachers, 50 of 100 steps"


def test_what_has_nothing_to_do_is_done_and_what_is_no_item_is_ignored() -> None:
    one = stage(a=5.0, b=5.0)
    one.advance("a", 0, 0, now=0)
    one.advance("other", 5, 10, now=0)
    one.end("other")
    assert one.counts(0) == "1 of 2 teachers"
    assert StageProgress("stage 2 of 5, preflight").headline(0) == "stage 2 of 5, preflight"


def test_samples_do_not_grow_without_end() -> None:
    one = stage(a=1.0)
    for step in range(5000):
        one.advance("a", step + 1, 5000, now=float(step))
    assert len(one._samples) <= WINDOW_S + 3
