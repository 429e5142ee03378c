"""Versions count up, whoever registers them; what is promoted moves in one step."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from storage.references import Reference
from timestep.database.engine import Database
from timestep.errors import ConflictError, NotFoundError
from timestep.models.registry import ModelRegistry

BASE = "smollm2-135m-instruct"


def weights(name: str) -> Reference:
    return Reference(key=f"models/{name}.gguf", sha256=name.encode().hex().rjust(64, "0"), size=6_000_000_000)


@pytest.fixture
def registry(database: Database) -> ModelRegistry:
    return ModelRegistry(database)


async def test_a_registered_version_comes_back_whole(registry: ModelRegistry) -> None:
    evaluation = {"perplexity": 3.25, "tool_calls": {"exact": 0.5}, "note": "ü"}
    made = await registry.register("assistant", weights("a"), BASE, "run-1", evaluation)
    assert (made.name, made.version, made.base, made.origin) == ("assistant", 1, BASE, "run-1")
    assert (made.file, made.evaluation) == (weights("a"), evaluation)
    assert made.created_at.tzinfo is not None
    assert await registry.get("assistant", 1) == made
    assert await registry.versions("assistant") == [made]


async def test_declaring_twice_changes_nothing_but_the_base(registry: ModelRegistry) -> None:
    await registry.declare("assistant", BASE)
    await registry.register("assistant", weights("a"), BASE, None, {})
    await registry.promote("assistant", 1)
    await registry.declare("assistant", BASE)
    assert await registry.names() == {"assistant": BASE}
    await registry.declare("assistant", "other")
    assert await registry.names() == {"assistant": "other"}
    promoted = await registry.promoted("assistant")
    assert promoted is not None
    assert promoted.version == 1


async def test_a_resumed_run_gets_the_version_it_made(registry: ModelRegistry) -> None:
    first = await registry.register("assistant", weights("a"), BASE, "run-1", {"perplexity": 1.0})
    assert await registry.register("assistant", weights("b"), BASE, "run-1", {}) == first
    assert (await registry.register("coder", weights("a"), BASE, "run-1", {})).name == "coder"
    assert len(await registry.versions("assistant")) == 1


async def test_versions_without_origin_are_all_new(registry: ModelRegistry) -> None:
    made = [await registry.register("assistant", weights("a"), BASE, None, {}) for _ in range(3)]
    assert [version.version for version in made] == [1, 2, 3]


async def test_registering_at_once_gives_each_its_own_version(registry: ModelRegistry) -> None:
    made = await asyncio.gather(
        *(registry.register("assistant", weights(f"{i}"), BASE, f"run-{i // 2}", {}) for i in range(40))
    )
    assert {version.version for version in made} == set(range(1, 21))
    by_origin = {version.origin: version.version for version in made}
    assert all(by_origin[version.origin] == version.version for version in made)
    assert [version.version for version in await registry.versions("assistant")] == list(range(1, 21))


async def test_promoting_moves_what_is_served_and_nothing_else(registry: ModelRegistry) -> None:
    for name in ("assistant", "coder"):
        await registry.declare(name, BASE)
        for run in range(2):
            await registry.register(name, weights(name), BASE, f"run-{run}", {})
    assert await registry.promoted("assistant") is None
    await registry.promote("assistant", 2)
    await registry.promote("assistant", 1)
    served = await registry.promoted("assistant")
    assert served is not None
    assert (served.name, served.version) == ("assistant", 1)
    assert await registry.promoted("coder") is None
    assert await registry.promoted("nobody") is None


async def test_promoting_at_once_leaves_one_of_them(registry: ModelRegistry) -> None:
    for run in range(10):
        await registry.register("assistant", weights("a"), BASE, f"run-{run}", {})

    async def read() -> set[int]:
        seen = set()
        for _ in range(30):
            served = await registry.promoted("assistant")
            seen |= {served.version} if served else set()
        return seen

    *_, seen = await asyncio.gather(*(registry.promote("assistant", version) for version in range(1, 11)), read())
    assert seen <= set(range(1, 11))
    served = await registry.promoted("assistant")
    assert served is not None


async def test_promoting_instead_of_another_moves_only_from_there(registry: ModelRegistry) -> None:
    for run in range(3):
        await registry.register("assistant", weights("a"), BASE, f"run-{run}", {})
    assert not await registry.promote("assistant", 2, instead_of=1)
    assert await registry.promoted("assistant") is None
    assert await registry.promote("assistant", 2, instead_of=None)
    assert not await registry.promote("assistant", 3, instead_of=None)
    assert await registry.promote("assistant", 3, instead_of=2)
    assert await registry.promote("assistant", 1)
    with pytest.raises(NotFoundError, match="No model 'assistant@4'"):
        await registry.promote("assistant", 4, instead_of=1)


async def test_of_many_that_promote_instead_of_the_same_version_one_does(registry: ModelRegistry) -> None:
    versions = range(1, 11)
    for run in versions:
        await registry.register("assistant", weights("a"), BASE, f"run-{run}", {})
    done = await asyncio.gather(*(registry.promote("assistant", version, instead_of=None) for version in versions))
    served = await registry.promoted("assistant")
    assert served is not None
    assert [version for version, promoted in zip(versions, done, strict=True) if promoted] == [served.version]


async def test_what_is_not_there_is_named(registry: ModelRegistry) -> None:
    await registry.register("assistant", weights("a"), BASE, "run-1", {})
    for attempt in (registry.promote("assistant", 2), registry.get("assistant", 2)):
        with pytest.raises(NotFoundError, match=r"No model 'assistant@2'. Did you mean 'assistant@1'\?"):
            await attempt
    for attempt in (registry.promote("asistant", 1), registry.get("asistant", 1)):
        with pytest.raises(NotFoundError, match=r"No model 'asistant'. Did you mean 'assistant'\?"):
            await attempt
    assert await registry.promoted("assistant") is None


async def test_a_deleted_versions_number_is_never_anothers(registry: ModelRegistry) -> None:
    for name in ("a", "b"):
        await registry.register("assistant", weights(name), BASE, f"run-{name}", {})
    await registry.promote("assistant", 1)
    await registry.delete("assistant", 2)
    assert await registry.unneeded() == {weights("b").key}
    assert [made.version for made in await registry.versions("assistant")] == [1]
    for attempt in (registry.get("assistant", 2), registry.promote("assistant", 2), registry.delete("assistant", 2)):
        with pytest.raises(NotFoundError, match="No model 'assistant@2'"):
            await attempt
    assert (await registry.register("assistant", weights("b"), BASE, None, {})).version == 3


async def test_the_version_that_is_served_is_not_deleted(registry: ModelRegistry) -> None:
    await registry.register("assistant", weights("a"), BASE, None, {})
    await registry.promote("assistant", 1)
    with pytest.raises(ConflictError, match="is the one that 'assistant' serves"):
        await registry.delete("assistant", 1)
    assert (await registry.get("assistant", 1)).version == 1


async def test_weights_that_another_version_has_too_are_needed(registry: ModelRegistry) -> None:
    for name in ("assistant", "coder"):
        await registry.register(name, weights("a"), BASE, None, {})
    await registry.delete("assistant", 1)
    assert await registry.unneeded() == set()
    await registry.delete("coder", 1)
    assert await registry.unneeded() == {weights("a").key}


async def test_a_deleted_model_comes_back_with_its_next_version(registry: ModelRegistry) -> None:
    for name in ("a", "b", "b"):
        await registry.register("mine", weights(name), BASE, None, {})
    await registry.promote("mine", 2)
    await registry.delete_model("mine")
    assert await registry.unneeded() == {weights("a").key, weights("b").key}
    assert (await registry.names(), await registry.versions("mine")) == ({}, [])
    assert await registry.promoted("mine") is None
    with pytest.raises(NotFoundError):
        await registry.delete_model("mine")
    assert (await registry.register("mine", weights("c"), BASE, None, {})).version == 4
    assert await registry.names() == {"mine": BASE}


async def test_of_a_promotion_and_a_deletion_at_once_one_is_done(registry: ModelRegistry) -> None:
    for number in range(1, 9):
        await registry.register("assistant", weights("a"), BASE, None, {})
        work = (registry.promote("assistant", number), registry.delete("assistant", number))
        promoted, deleted = await asyncio.gather(*work, return_exceptions=True)
        assert isinstance(promoted, NotFoundError) is not isinstance(deleted, ConflictError), (promoted, deleted)


async def test_the_database_itself_keeps_a_promoted_version_there(
    registry: ModelRegistry,
    database: Database,
) -> None:
    await registry.register("assistant", weights("a"), BASE, "run-1", {})
    await registry.promote("assistant", 1)
    for statement in ("delete from model_versions", "update models set promoted = 7"):
        with pytest.raises(IntegrityError):
            async with database.session() as session:
                await session.execute(text(statement))
