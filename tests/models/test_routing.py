"""Names resolve to what is promoted now, on the real registry; the server follows without a restart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import openai
import pytest
from agents import Agent
from openai import OpenAI

from storage.store import ObjectStore
from tests.models.conftest import SMOLLM2, Server
from timestep.agents.registry import AgentRegistry
from timestep.database.engine import Database
from timestep.database.models import StepRow, UnitRow
from timestep.errors import ModelFileError, NotFoundError, UsageError
from timestep.models.engines import EnginePool
from timestep.models.files import WORDLLAMA
from timestep.models.registry import ModelRegistry, ModelVersion
from timestep.models.routing import ModelRouter, Served, checkpoint_id
from timestep.settings import Settings

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


class Shop:
    """A registry and a store with a declared model 'assistant', and what registers versions of it."""

    def __init__(self, database: Database, home: Path, file: Path) -> None:
        self.settings = Settings(home=home)
        self.registry = ModelRegistry(database)
        self.store = ObjectStore.open(self.settings.storage)
        self.router = ModelRouter(self.settings, self.registry, self.store)
        self._file = file

    async def version(self, data: bytes | None = None) -> ModelVersion:
        reference = await self.store.put_content(self._file if data is None else data, prefix="models", suffix=".gguf")
        return await self.registry.register("assistant", reference, SMOLLM2, None, {})


@pytest.fixture
async def shop(database: Database, tmp_path: Path, tiny_file: Path) -> Shop:
    made = Shop(database, tmp_path / "home", tiny_file)
    await made.registry.declare("assistant", SMOLLM2)
    return made


async def test_an_agents_model_is_its_base_until_a_version_is_promoted(shop: Shop, smollm2: Path) -> None:
    assert (await shop.router.resolve("local/assistant")).path == smollm2
    await shop.version()
    assert (await shop.router.resolve("assistant")).name == SMOLLM2
    await shop.registry.promote("assistant", 1)
    served = await shop.router.resolve("local/assistant")
    assert served.name == "local/assistant@1"
    assert served.path.stat().st_size < smollm2.stat().st_size


async def test_no_line_of_versions_takes_the_name_of_another_model(shop: Shop) -> None:
    for name in (SMOLLM2, WORDLLAMA):
        file = (await shop.version()).file
        await shop.registry.register(name, file, SMOLLM2, None, {})
        await shop.registry.promote(name, 1)
        assert (await shop.router.resolve(f"local/{name}")).name == f"local/{name}@1"
    assert (await shop.router.resolve(SMOLLM2)).name == SMOLLM2
    with pytest.raises(UsageError, match="makes embeddings"):
        await shop.router.resolve(WORDLLAMA)
    with pytest.raises(UsageError, match="was not trained here"):
        await shop.router.delete(SMOLLM2)
    await shop.router.delete(f"local/{SMOLLM2}")


async def test_a_version_is_served_by_its_number(shop: Shop) -> None:
    await shop.version()
    await shop.version()
    assert (await shop.router.resolve("local/assistant@2")).name == "local/assistant@2"
    assert (await shop.router.resolve(f"local/{SMOLLM2}")).name == SMOLLM2


@pytest.mark.parametrize(
    "name",
    ["local/assistent", "local/assistant@9", "assistant@latest", "assistant@99999999999", f"{SMOLLM2}@1", "gpt-4o", ""],
)
async def test_what_is_not_there_is_not_found(name: str, shop: Shop) -> None:
    await shop.version()
    with pytest.raises(NotFoundError):
        await shop.router.resolve(name)


async def test_a_typing_error_gets_a_suggestion(shop: Shop) -> None:
    with pytest.raises(NotFoundError, match="Did you mean 'local/assistant'"):
        await shop.router.resolve("local/assistent")


async def test_a_stored_file_that_is_no_model_is_named(shop: Shop) -> None:
    await shop.version(b"nonsense")
    with pytest.raises(ModelFileError, match="no GGUF file"):
        await shop.router.resolve("local/assistant@1")


async def test_a_checkpoint_is_a_model_while_storage_has_it(shop: Shop, tiny_file: Path) -> None:
    run_id = uuid4()
    kept = await shop.store.put_content(tiny_file, prefix=f"checkpoints/{run_id}", suffix=".gguf")
    unit = {"kind": "epoch", "name": "epoch 1", "fingerprint": "", "attempt": 1}
    async with shop.registry._database.session() as session:
        session.add(StepRow(id=str(run_id), attempt=1))
        await session.flush()
        result = {"checkpoint": kept.model_dump(mode="json")}
        session.add(UnitRow(step_id=str(run_id), position="training/epoch-1", result=result, **unit))
        session.add(UnitRow(step_id=str(run_id), position="training/epoch-2", **unit))  # under way
    name = f"local/{checkpoint_id(run_id, 1)}"
    served = await shop.router.resolve(name)
    assert served.name == name and served.path.stat().st_size == kept.size
    for absent in (checkpoint_id(run_id, 2), checkpoint_id(uuid4(), 1)):
        with pytest.raises(NotFoundError, match=absent):
            await shop.router.resolve(absent)
    await shop.store.delete(kept.key)
    with pytest.raises(NotFoundError, match=name):
        await shop.router.resolve(name)


async def test_a_configured_file_goes_by_its_name(tmp_path: Path, tiny_file: Path) -> None:
    file = tmp_path / "my@home.gguf"
    file.symlink_to(tiny_file)
    router = ModelRouter(Settings(home=tmp_path, model=str(file)), None, None)
    assert await router.names() == [SMOLLM2, "my@home", WORDLLAMA]
    for name in ("my@home", "local/my@home", str(file), f"local/{file}"):  # the path is what steps ask for
        assert await router.resolve(name) == Served("my@home", file)
    with pytest.raises(NotFoundError):
        await router.resolve("my")


async def test_a_configured_file_is_the_base_of_agents_that_name_it(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, model=str(tmp_path / "my.gguf"))
    agents: list[Any] = [Agent(name="a"), Agent(name="b", model="my"), Agent(name="c", model="local/my")]
    registry = AgentRegistry({agent.name: agent for agent in agents}, settings.model)
    assert [registry.base(name) for name in "abc"] == [settings.model] * 3


async def test_the_server_serves_what_was_promoted_while_it_ran(
    shop: Shop,
    serve: Callable[..., Server],
    postgres_url: str,
) -> None:
    url, settings = postgres_url, shop.settings
    server = serve("timestep.models.server", DATABASE_URL=url, STORAGE_URL=settings.storage, CONTEXT_LENGTH="256")
    client = OpenAI(base_url=server.api, api_key="none", max_retries=0)

    def ask(model: str = "local/assistant") -> str:
        return client.chat.completions.create(model=model, messages=HELLO, max_tokens=3).model

    assert [model.id for model in client.models.list()] == ["local/assistant", SMOLLM2, WORDLLAMA]
    assert ask() == SMOLLM2
    await shop.version()
    await shop.registry.promote("assistant", 1)
    assert ask() == "local/assistant@1"
    await shop.version()
    assert ask("local/assistant@2") == "local/assistant@2"
    assert ask() == "local/assistant@1"
    await shop.registry.promote("assistant", 2)
    assert ask() == "local/assistant@2"
    made = {model.id: model.created for model in client.models.list() if "@" in model.id}
    assert list(made) == ["local/assistant@1", "local/assistant@2"]
    assert all(made.values())
    with pytest.raises(openai.ConflictError, match="is the one that 'assistant' serves"):
        client.models.delete("local/assistant@2")
    assert client.models.delete("local/assistant@1").deleted
    with pytest.raises(openai.NotFoundError, match="No model 'assistant@1'"):
        ask("local/assistant@1")
    with pytest.raises(openai.BadRequestError, match="was not trained here"):
        client.models.delete(SMOLLM2)


async def test_the_files_of_deleted_models_go(shop: Shop) -> None:
    first, second = await shop.version(), await shop.version(b"other")
    await shop.router.delete("local/assistant@1")
    assert [await shop.store.exists(made.file.key) for made in (first, second)] == [False, True]
    await shop.router.delete("local/assistant")
    assert not await shop.store.exists(second.file.key)
    with pytest.raises(NotFoundError):
        await shop.router.resolve("local/assistant")


async def test_files_that_a_killed_deletion_left_go_with_the_next(shop: Shop) -> None:
    first, second = await shop.version(), await shop.version(b"other")
    await shop.registry.delete("assistant", 1)  # and no further
    assert await shop.store.exists(first.file.key)
    with pytest.raises(NotFoundError):
        await shop.router.delete("local/assistant@1")
    assert [await shop.store.exists(made.file.key) for made in (first, second)] == [False, True]


async def test_the_weights_least_recently_used_make_room(tiny_file: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.gguf" for number in range(3)]
    for file in files:
        file.symlink_to(tiny_file)
    pool = EnginePool(context_length=4096, threads=1, size=2)
    first = await pool.get(files[0])
    assert first.context_length == 1024  # the model's own, which is less
    running = first.stream(HELLO, seed=1, max_tokens=8)
    await pool.get(files[1])
    assert await pool.get(files[0]) is first
    await pool.get(files[2])
    await pool.get(files[1])
    assert pool.loaded == [files[2], files[1]]
    assert sum(len(deltas) for deltas in [batch async for batch in pool.run(running)]) > 0  # dropped, and yet sound
    pool.close()
