"""The loop on rows that only count: when a patch comes, who leaves, what is not computed again."""

import numpy as np
import pytest
from mimo_edge.runtime.bundle.errors import BundleError, EnvironmentProblem, ResourceError
from mimo_edge.runtime.generation.loop import Loop
from mimo_edge.runtime.generation.request import Failure, Outcome, Step

from tests.counting import SPEECH, CountingBackend, CountingRows, request


def loop_of(slots: int) -> tuple[Loop, CountingRows]:
    backend = CountingBackend(slots)
    return Loop(backend, SPEECH, slots), backend.states  # type: ignore[arg-type]


def ids(outcomes: list[Outcome]) -> list[int]:
    assert all(isinstance(outcome, Step) for outcome in outcomes), outcomes
    return [outcome.text_id for outcome in outcomes if isinstance(outcome, Step)]


def failure(outcomes: list[Outcome]) -> Failure:
    (found,) = (outcome for outcome in outcomes if isinstance(outcome, Failure))
    return found


def test_a_patch_comes_before_the_backbone_reads_it() -> None:
    loop, states = loop_of(1)
    loop.add(request(9, max_new=2))
    assert ids(loop.step()) == [9]
    assert states.calls == ["extend", "draw"], "no step that nobody has asked for"
    assert ids(loop.step()) == [0] and states.calls[-1] == "step"
    assert loop.step() == [] and states.calls.count("step") == 1, "the last patch is not read"


def test_times_are_the_loops_own() -> None:
    loop, _ = loop_of(1)
    loop.add(request(3, max_new=3))
    for step in (*loop.step(), *loop.step()):
        assert isinstance(step, Step) and 0 < step.backend_seconds <= step.seconds < 1


def test_a_prompt_is_read_in_pieces_between_steps() -> None:
    loop, states = loop_of(2)
    loop.add(request(3))
    later = loop.begin(request(16, 1))
    assert ids(loop.step()) == [3]
    for _ in range(3):
        assert loop.prefill(5) == [] and len(loop.step()) == 1
    assert loop.prefill(5) == []
    steps = loop.step()
    assert [step.request_id for step in steps] == [later - 1, later] and ids(steps)[1] == 6
    assert states.ids[1] == [1] + [0] * 15


def test_a_row_that_joins_keeps_its_state() -> None:
    loop, states = loop_of(2)
    loop.add(request(3))
    assert ids(loop.step()) == [3]
    loop.add(request(6, 1))
    assert ids(loop.step()) == [4, 6] and ids(loop.step()) == [5, 7]
    assert states.ids == [[0, 0, 0, 3, 4], [1, 0, 0, 0, 0, 0, 6]]


def test_no_memory_for_a_step_ends_the_longest() -> None:
    loop, states = loop_of(2)
    loop.add(request(3))
    longer = loop.add(request(6, 1))
    assert ids(loop.step()) == [3, 6]
    fails, calls = ResourceError("no memory for more"), []

    def step(*given: np.ndarray) -> np.ndarray:
        calls.append(len(given[1]))
        if len(calls) == 1:
            raise fails
        return CountingRows.step(states, *given)  # type: ignore[arg-type]

    states.step = step  # type: ignore[method-assign]
    outcomes = loop.step()
    assert calls == [2, 1], "tried again without it"
    assert failure(outcomes) == Failure(longer, fails) or failure(outcomes).error is fails
    assert [o.text_id for o in outcomes if isinstance(o, Step)] == [4], "neither lost nor twice"
    assert loop.free == 1 and states.ids[1] == []


def test_a_step_that_fails_otherwise_ends_all_that_share_it() -> None:
    loop, states = loop_of(2)
    loop.add(request(3))
    loop.add(request(6, 1))
    loop.step()
    states.fails = EnvironmentProblem("the GPU is gone")
    outcomes = loop.step()
    assert len(outcomes) == 2 and all(isinstance(o, Failure) for o in outcomes)
    states.fails = None
    loop.add(request(5))
    assert ids(loop.step()) == [5]


def test_a_row_in_the_place_of_another_is_not_read_for_it() -> None:
    loop, _ = loop_of(1)
    request_id = loop.add(request(4))
    assert ids(loop.step()) == [4]
    loop.remove(request_id)
    loop.add(request(7))
    assert ids(loop.step()) == [7]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_nan_or_infinite_end_their_own_row(bad: float) -> None:
    loop, states = loop_of(2)
    broken = loop.add(request(3, first=8))
    loop.add(request(5))
    assert ids(loop.step()) == [3, 5]
    states.bad = {8: bad}
    outcomes = loop.step()
    found = failure(outcomes)
    assert found.request_id == broken and isinstance(found.error, BundleError)
    assert "scores of the text are NaN or infinite" in str(found.error)
    assert "--dtype" in str(found.error)
    assert [o.text_id for o in outcomes if isinstance(o, Step)] == [6]
    assert ids(loop.step()) == [7] and states.ids[0] == [], "nothing of it stays"


def test_codes_of_scores_that_are_nan_or_infinite() -> None:
    loop, states = loop_of(1)
    loop.add(request(9))
    states.codes = -1  # what the graph's sampler makes of them
    found = failure(loop.step())
    assert "audio codes are NaN or infinite" in str(found.error)
    assert loop.free == 1


def test_what_a_slot_holds_is_not_computed_again() -> None:
    """The next turn: the prompt and its answer, and more."""
    loop, states = loop_of(1)
    loop.add(request(5, 1, max_new=4))
    said = [ids(loop.step())[0] for _ in range(4)]
    assert said == [5, 6, 7, 8]
    again = request(12, 1)
    again.prompt[0, 10::2] = [5, 6, 7, 8, 0, 0, 0]
    states.calls.clear()
    loop.add(again)
    assert loop.reused == 8, "the prompt, and what the backbone has read of the answer"
    assert states.ids[0] == [1, 0, 0, 0, 0, 5, 6, 7, 8, 0, 0, 0]
    assert states.calls == ["extend"] and ids(loop.step()) == [2]


def test_the_same_prompt_again_reads_its_last_patch() -> None:
    loop, states = loop_of(1)
    loop.add(request(5, max_new=1))
    assert ids(loop.step()) == [5]
    loop.add(request(5, max_new=1))
    assert loop.reused == 4 and ids(loop.step()) == [5] and len(states.ids[0]) == 5


def test_a_beginning_that_others_need_too_is_copied() -> None:
    loop, states = loop_of(3)
    loop.add(request(6, 3, max_new=1))
    loop.step()
    longer = request(8, 3)
    longer.prompt[0, 8::2] = 2  # four patches in common
    loop.add(longer)
    assert states.ids[0] == [3, 0, 0, 0, 0, 0], "what was there is kept while there is place"
    assert states.ids[1] == [3, 0, 0, 0, 2, 2, 2, 2] and loop.reused == 4
    loop.add(request(7, 3))  # goes on where the first has ended
    assert states.ids[0] == [3, 0, 0, 0, 0, 0, 0] and loop.reused == 10
    loop.add(longer)  # of one that is busy
    assert states.ids[2] == states.ids[1] and loop.reused == 17


def test_codes_of_speech_must_be_the_same_and_those_of_text_need_not() -> None:
    loop, _ = loop_of(2)
    speech = request(5, SPEECH, max_new=1)
    speech.prompt[1:, 2:] = 4  # behind text ids of 0
    loop.add(speech)
    loop.step()
    other = request(5, SPEECH)
    loop.add(other)
    assert loop.reused == 4
    other = request(5, SPEECH)
    other.prompt[2, 1] = 1
    loop.add(other)
    assert loop.reused == 4, "its first patch is another sound"


def test_reuse_can_be_left_out() -> None:
    backend = CountingBackend(1)
    loop = Loop(backend, SPEECH, 1, reuse=False)  # type: ignore[arg-type]
    for _ in range(2):
        loop.add(request(5, max_new=1))
        assert ids(loop.step()) == [5]
    assert loop.reused == 0


def test_a_full_row_leaves_a_place_for_what_steps_write() -> None:
    loop, states = loop_of(2)
    loop.add(request(39))
    assert ids(loop.step()) == [9]
    loop.add(request(38, 1, max_new=2))
    assert [ids(loop.step()) for _ in range(2)] == [[8], [9]]
    loop.add(request(3, 2))
    for expected in (3, 4, 5):
        assert ids(loop.step()) == [expected]
    assert max(states.lengths) <= states.capacity - 1


def test_closing_gives_the_memory_back() -> None:
    loop, states = loop_of(1)
    loop.close()
    assert states.closed
