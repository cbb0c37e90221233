import threading
import time

import pytest

from adaface.system.threads import in_order


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_the_order_of_the_items(threads):
    def work(item):
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(in_order(work, range(20), threads=threads, ahead=6)) == [i * i for i in range(20)]


def test_no_more_items_are_taken_than_asked_for():
    taken = []
    items = (taken.append(i) or i for i in range(10))
    results = in_order(lambda item: item, items, threads=2, ahead=3)
    assert next(results) == 0
    assert len(taken) == 3
    assert list(results) == list(range(1, 10))


def test_an_error_comes_when_its_items_turn_comes_and_stops_the_rest():
    seen, gate = [], threading.Event()

    def work(item):
        if item == 0:
            gate.wait(10)
        else:
            gate.set()
        seen.append(item)
        if item == 2:
            raise ValueError("two")
        return item

    results = in_order(work, range(100), threads=2, ahead=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert max(seen) < 10


def test_who_stops_asking_leaves_no_thread_behind():
    before = threading.active_count()
    results = in_order(lambda item: item, range(1000), threads=2, ahead=8)
    next(results)
    results.close()
    assert threading.active_count() == before
