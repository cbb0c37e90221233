"""What processes agree on at the start; test_processes.py has the same with real processes."""

import pytest

import agreement
from agreement import ToldError, check_agreement, failure_told

FACTS = {"--lr": 0.1, "--epochs": 4, "the fingerprint of the training data": "ab"}


@pytest.fixture
def say(monkeypatch):
    """Let the processes of a run, of which this is one, say something."""

    def pretend(rank: int, said: list) -> None:
        monkeypatch.setattr(agreement, "_several", lambda: True)
        monkeypatch.setattr(agreement.dist, "get_rank", lambda: rank)
        monkeypatch.setattr(agreement, "_gather", lambda mine: [(f"host-{r}", what) for r, what in enumerate(said)])

    return pretend


def test_one_process_agrees_with_itself():
    check_agreement(FACTS)
    with pytest.raises(ValueError, match="own"), failure_told():
        raise ValueError("own")


def test_the_same_everywhere_is_fine(say):
    say(0, [FACTS, dict(FACTS)])
    check_agreement(FACTS)


def test_the_process_that_differs_is_named_once(say):
    others = [FACTS, dict(FACTS), {**FACTS, "the fingerprint of the training data": "cd", "--epochs": 5}]
    say(0, others)
    expected = (
        "process 2 on host-2 was started with something else than process 0 on host-0: --epochs is 5 there and 4 in "
        "process 0; the fingerprint of the training data is 'cd' there and 'ab' in process 0. Give"
    )
    with pytest.raises(ValueError, match=expected):
        check_agreement(FACTS)
    say(2, others)
    with pytest.raises(ToldError):
        check_agreement(others[2])


def test_many_differences_are_counted(say):
    say(0, [FACTS, {}])
    with pytest.raises(ValueError, match="--lr is None there"):
        check_agreement(FACTS)
    say(0, [{str(number): number for number in range(9)}, {}])
    with pytest.raises(ValueError, match="2 is None there and 2 in process 0; and 6 more"):
        check_agreement({})


def test_a_process_that_cannot_start_is_named(say):
    say(0, [FACTS, "there is no folder x"])
    with pytest.raises(RuntimeError, match="process 1 on host-1 cannot start: there is no folder x"):
        check_agreement(FACTS)


def test_what_fails_everywhere_is_said_by_process_0_alone(say):
    say(0, ["no data", "no data"])
    with pytest.raises(ValueError, match="no data"), failure_told():
        raise ValueError("no data")
    say(1, ["no data", "no data"])
    with pytest.raises(ToldError), failure_told():
        raise ValueError("no data")
    say(1, [FACTS, "no data"])
    with pytest.raises(ValueError, match="no data"), failure_told():
        raise ValueError("no data")
