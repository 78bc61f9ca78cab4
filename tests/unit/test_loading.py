"""Batches made ahead: the same ones in the same order, errors where they are asked for, and no
thread left behind.
"""

import threading
from time import sleep

import pytest

from pocketlm.train.prefetch import prefetched


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_every_step_is_made_once_and_given_in_its_turn():
    requested: list[int] = []
    with prefetched(lambda step: requested.append(step) or step * step, last_step=9) as made:
        assert [made(step) for step in range(4, 10)] == [step * step for step in range(4, 10)]
    assert requested == list(range(4, 10)) and not threads()


def test_the_next_step_is_made_while_this_one_runs():
    begun = threading.Event()

    def batches(step: int) -> int:
        if step == 1:
            begun.set()
        return step

    with prefetched(batches, last_step=5) as made:
        made(0)
        assert begun.wait(timeout=10)  # and nobody has asked for step 1


def test_an_error_comes_up_where_its_step_is_asked_for():
    def batches(step: int) -> int:
        if step == 2:
            raise ValueError("row 7 is damaged")
        return step

    with prefetched(batches, last_step=5) as made:
        assert [made(0), made(1)] == [0, 1]
        with pytest.raises(ValueError, match="row 7 is damaged"):
            made(2)
    assert not threads()


def test_a_step_out_of_turn_is_made_for_itself():
    with prefetched(lambda step: step, last_step=9) as made:
        assert [made(0), made(5), made(3), made(4)] == [0, 5, 3, 4]


def test_leaving_early_waits_for_what_was_begun_and_leaves_no_thread():
    finished: list[int] = []

    def batches(step: int) -> int:
        sleep(0.05 * step)
        finished.append(step)
        return step

    with pytest.raises(KeyboardInterrupt), prefetched(batches, last_step=9) as made:
        made(0)
        raise KeyboardInterrupt
    assert finished == [0, 1] and not threads()
