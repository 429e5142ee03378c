"""Getting llama.cpp: built once, by one of many, after any kill; and never trusted unseen.

A little CMake project with llama-finetune's two decisive lines stands for llama.cpp's source here; the
real build is the one that every other test of this folder trains with.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from timestep.errors import ToolchainError, UsageError
from timestep.settings import Settings
from training import toolchain as tools
from training.toolchain import Toolchain, ensure_toolchain

INSTEAD = "Let Timestep build its own: TIMESTEP_TOOLCHAIN_SOURCE=sdist"
LITTLE_LLAMA = Path(__file__).with_name("little_llama")
BUILD = """
import asyncio, sys
from pathlib import Path
from timestep.settings import Settings
from training import toolchain
toolchain.REPOSITORY = sys.argv[1]
settings = Settings(toolchain=Path(sys.argv[2]), toolchain_source="git:b1")
built = asyncio.run(toolchain.ensure_toolchain(settings, lambda line: print(line, flush=True)))
print(built.finetune)
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with the tag b1, in place of llama.cpp's own."""
    path = Path(shutil.copytree(LITTLE_LLAMA, tmp_path / "repository"))
    _git(path, "init", "--quiet")
    _commit(path, "b1")
    monkeypatch.setattr(tools, "REPOSITORY", str(path))
    return path


def _git(path: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(path), *identity, *arguments], check=True)


def _commit(path: Path, tag: str) -> None:
    _git(path, "add", ".")
    _git(path, "commit", "--quiet", "-m", tag)
    _git(path, "tag", tag)


def _settings(tmp_path: Path, source: str) -> Settings:
    return Settings(toolchain=tmp_path / "toolchain", toolchain_source=source)


async def test_a_pinned_tag_is_cloned_patched_built_and_kept(tmp_path: Path, repository: Path) -> None:
    settings, lines = _settings(tmp_path, "git:b1"), list[str]()
    built = await ensure_toolchain(settings, lines.append)
    assert built.finetune.is_file() and built.quantize.is_file() and built.bench and built.bench.is_file()
    assert any(line.startswith("building llama.cpp ") for line in lines)
    left = [path.name for path in built.finetune.parent.parent.iterdir()]
    assert left == ["bin"], "the source and the object files are not kept"

    shutil.rmtree(repository)
    lines.clear()
    assert await ensure_toolchain(settings, lines.append) == built
    assert lines == [], "a second call builds nothing and fetches nothing"


async def test_two_processes_build_once(tmp_path: Path, repository: Path) -> None:
    outputs = await asyncio.gather(*(_build(tmp_path, repository) for _ in range(2)))
    assert sum("configuring llama.cpp" in output for output in outputs) == 1
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]


async def test_a_killed_build_is_begun_anew(tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, "-c", BUILD, str(repository), str(tmp_path / "toolchain")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as killed:
        assert killed.stdout is not None
        while "configuring" not in await asyncio.to_thread(killed.stdout.readline):
            pass
        os.kill(killed.pid, signal.SIGKILL)
    assert list((tmp_path / "toolchain").glob(".*.build-*"))
    await _build(tmp_path, repository)
    assert not list((tmp_path / "toolchain").glob(".*.build-*")), "what the killed build left is gone"


async def _build(tmp_path: Path, repository: Path) -> str:
    command = [sys.executable, "-c", BUILD, str(repository), str(tmp_path / "toolchain")]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=ROOT)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


async def test_an_unknown_tag_is_named(tmp_path: Path, repository: Path) -> None:
    with pytest.raises(ToolchainError, match=r"'b2' could not be cloned .* exited with code 128"):
        await ensure_toolchain(_settings(tmp_path, "git:b2"))


async def test_a_build_that_fails_shows_the_compilers_error(tmp_path: Path, repository: Path) -> None:
    (repository / "other.cpp").write_text("int main() { return nothing; }\n")
    _commit(repository, "broken")
    with pytest.raises(ToolchainError, match=r"could not be built: .*nothing.* was not declared"):
        await ensure_toolchain(_settings(tmp_path, "git:broken"))
    assert not list((tmp_path / "toolchain").glob("*/bin"))


async def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"No toolchain source 'brew'\. Use sdist, path or git:TAG"):
        await ensure_toolchain(_settings(tmp_path, "brew"))


async def test_tools_on_path_are_used_once_the_probe_trusts_them(
    tmp_path: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(toolchain.finetune.parent), prepend=os.pathsep)
    found = await ensure_toolchain(_settings(tmp_path, "path"))
    assert (found.finetune, found.version) == (toolchain.finetune, "path")


async def test_tools_that_are_not_on_path_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match=rf"No 'llama-finetune' on PATH\. {INSTEAD}"):
        await ensure_toolchain(_settings(tmp_path, "path"))


# The real tool, given what an unpatched one would see: the special token's characters, or no mask.
SEES = {
    "special tokens as text": "sed -i 's/<|im_start|>/abcdefghijkl/g' $part; tr '[:print:]' 0 < $part > $part.mask",
    "no mask": "rm $part.mask",
}


@pytest.mark.parametrize("what", SEES)
async def test_a_finetune_that_trains_on_something_else_is_refused(
    tmp_path: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    script = f"""#!/bin/sh
for part in "$@"; do case "$part" in *.txt) {SEES[what]};; esac; done
exec {toolchain.finetune} "$@"
"""
    _install(tmp_path, toolchain, script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    with pytest.raises(ToolchainError, match=rf"does not train on the tokens that are served .*\. {INSTEAD}"):
        await ensure_toolchain(_settings(tmp_path, "path"))


async def test_a_finetune_that_does_not_run_is_refused(
    tmp_path: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, toolchain, "#!/bin/sh\necho no such instruction >&2\nkill -ILL $$\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    with pytest.raises(ToolchainError, match=rf"was killed by SIGILL on a toy model: no such instruction\. {INSTEAD}"):
        await ensure_toolchain(_settings(tmp_path, "path"))


async def test_a_finetune_that_cannot_be_started_is_refused(
    tmp_path: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, toolchain, "#!/nowhere/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    with pytest.raises(ToolchainError, match=rf"can't be started: .*\. {INSTEAD}"):
        await ensure_toolchain(_settings(tmp_path, "path"))


def _install(tmp_path: Path, toolchain: Toolchain, script: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "llama-finetune").write_text(script)
    (folder / "llama-finetune").chmod(0o755)
    (folder / "llama-quantize").symlink_to(toolchain.quantize)
