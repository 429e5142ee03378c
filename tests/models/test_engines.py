"""The pool hands every delta from the generating thread to the event loop, however fast they come."""

from collections.abc import Generator, Iterator

import pytest

from timestep.errors import RateLimitError
from timestep.models.engines import EnginePool
from timestep.models.generation import Generation
from timestep.models.turn import Delta

COUNT = 2000


@pytest.fixture
def pool() -> Iterator[EnginePool]:
    made = EnginePool(context_length=256, threads=1)
    yield made
    made.close()


def rapid(count: int, error: Exception | None = None) -> Generation:
    """A generation whose deltas cost nothing; ``error`` ends it."""

    def deltas() -> Generator[Delta, None, None]:
        for number in range(count):
            yield {"content": str(number)}
        if error:
            raise error

    generation = Generation(forced=False, prompt_tokens=1)
    generation.deltas = deltas()
    return generation


async def test_no_delta_is_lost_or_comes_twice(pool: EnginePool) -> None:
    for _ in range(100):
        seen = [delta["content"] async for deltas in pool.run(rapid(COUNT)) for delta in deltas]
        assert seen == [str(number) for number in range(COUNT)]


async def test_what_is_prepared_has_its_place_in_the_queue() -> None:
    small = EnginePool(context_length=256, threads=1, limit=1)
    with small.admit(), small.admit():  # one will be under way, and one waits
        with pytest.raises(RateLimitError), small.admit():
            pass
        with small.admit(always=True):
            pass
    with small.admit():
        pass
    small.close()


async def test_a_generation_that_fails_does_so_after_its_deltas(pool: EnginePool) -> None:
    seen: list[Delta] = []
    with pytest.raises(ValueError, match="broken"):
        async for deltas in pool.run(rapid(COUNT, ValueError("broken"))):
            seen += deltas
    assert len(seen) == COUNT
