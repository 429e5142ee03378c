"""The Prefect block over the object store: result storage of every flow and task, readable from any machine.

Import this module before Prefect resolves the block by its name: Prefect knows only block types whose
class has been imported.
"""

from functools import cached_property
from typing import Any, ClassVar

from prefect.filesystems import WritableFileSystem
from prefect.utilities.asyncutils import sync_compatible
from pydantic import Field, SecretStr

from storage.store import ObjectStore
from timestep.errors import NotFoundError
from timestep.settings import Settings

DEFAULT_NAME = "default"
# Where results lie in the store.
PREFIX = "results"


class StorageBlock(WritableFileSystem):
    """Prefect results in Timestep's object store, below ``results/``."""

    _block_type_name: ClassVar[str | None] = "Timestep storage"
    _block_type_slug: ClassVar[str | None] = "timestep-storage"
    _description: ClassVar[str | None] = "Results in the object store of a Timestep service."

    url: SecretStr = Field(title="URL", description="Storage URL: local:///path, s3://KEY:SECRET@bucket?endpoint=…")

    @cached_property
    def store(self) -> ObjectStore:
        """The object store behind the block."""
        return ObjectStore.open(self.url.get_secret_value())

    async def aread_path(self, path: str) -> bytes:
        """The bytes stored under ``path``. ValueError where there are none, as Prefect's own file systems do."""
        try:
            return await self.store.get(f"{PREFIX}/{path}")
        except NotFoundError as error:
            raise ValueError(str(error)) from error

    async def awrite_path(self, path: str, content: bytes) -> str:
        """Stores ``content`` under ``path``, atomically."""
        return (await self.store.put(f"{PREFIX}/{path}", content)).key

    @sync_compatible
    async def read_path(self, path: str) -> bytes:
        """As :meth:`aread_path`; from synchronous code it blocks."""
        return await self.aread_path(path)

    @sync_compatible
    async def write_path(self, path: str, content: bytes) -> str:
        """As :meth:`awrite_path`; from synchronous code it blocks."""
        return await self.awrite_path(path, content)


async def save_default(settings: Settings) -> str:
    """Saves the block that the service's flow runs use; returns its name, ``timestep-storage/default``."""
    block: Any = StorageBlock(url=SecretStr(settings.storage))
    await block.asave(DEFAULT_NAME, overwrite=True)
    return f"{StorageBlock._block_type_slug}/{DEFAULT_NAME}"
