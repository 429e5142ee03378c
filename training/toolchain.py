"""Gets llama.cpp's tools: fetched, patched and built once per home, or found on PATH; then trusted or refused.

Every build lands in ``<toolchain>/<version>-<patch hash>-<machine>/bin`` by one rename, under a lock, so
that two processes build once and a killed build leaves nothing that looks finished.
"""

import asyncio
import importlib.metadata
import platform
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from timestep.errors import ToolchainError, UsageError
from timestep.settings import Settings
from training.lock import locked
from training.patches import apply_patches, fingerprint
from training.probe import check_parses_special_tokens
from training.process import Finished, run_tool

REPOSITORY = "https://github.com/ggml-org/llama.cpp"
TOOLS = ("llama-finetune", "llama-quantize", "llama-bench")
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_NATIVE": "ON",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_APP": "OFF",
}
INSTEAD = "Let Timestep build its own: TIMESTEP_TOOLCHAIN_SOURCE=sdist"
_EXE = ".exe" if sys.platform == "win32" else ""
_STEP = re.compile(r"^\[(\d+)/(\d+)\]")

Progress = Callable[[str], None]


class Toolchain(BaseModel):
    """Paths of llama.cpp's tools; ``version`` says which source and patches they were built from."""

    model_config = ConfigDict(frozen=True)

    finetune: Path
    quantize: Path
    bench: Path | None
    version: str


async def ensure_toolchain(settings: Settings, progress: Progress | None = None) -> Toolchain:
    """The tools of ``settings.toolchain_source``, built if this home has none yet (some three minutes).

    ``progress`` gets one short line at a time. Raises ToolchainError where they can't be fetched, built
    or trusted, UsageError for a source that does not exist.
    """
    source, report = settings.toolchain_source, progress or (lambda line: None)
    if source == "path":
        return await _from_path()
    if source == "sdist":
        version = importlib.metadata.version("llama-cpp-python")
    elif source.startswith("git:") and source != "git:":
        version = "git-" + re.sub(r"[^\w.]+", "_", source[4:])
    else:
        raise UsageError(f"No toolchain source '{source}'. Use sdist, path or git:TAG.")
    key = f"{version}-{fingerprint()}-{platform.machine().lower()}"
    home = settings.toolchain_dir / key
    if not _complete(home):
        await _build_once(settings, source, home, report)
    return _toolchain(home / "bin", key)


def _toolchain(folder: Path, version: str) -> Toolchain:
    finetune, quantize, bench = (folder / f"{name}{_EXE}" for name in TOOLS)
    return Toolchain(finetune=finetune, quantize=quantize, bench=bench, version=version)


def _complete(home: Path) -> bool:
    return all((home / "bin" / f"{name}{_EXE}").is_file() for name in TOOLS)


async def _from_path() -> Toolchain:
    found = {name: Path(path) for name in TOOLS if (path := shutil.which(name))}
    for name in ("llama-finetune", "llama-quantize"):
        if name not in found:
            raise ToolchainError(f"No '{name}' on PATH. {INSTEAD}")
    finetune, quantize = found["llama-finetune"], found["llama-quantize"]
    await _trust(finetune, "path")
    return Toolchain(finetune=finetune, quantize=quantize, bench=found.get("llama-bench"), version="path")


async def _build_once(settings: Settings, source: str, home: Path, report: Progress) -> None:
    def wait() -> None:
        report("waiting for another process that builds llama.cpp")

    async with locked(home.parent / f".{home.name}.lock", wait):
        if _complete(home):
            return
        for leftover in home.parent.glob(f".{home.name}.build-*"):
            await asyncio.to_thread(shutil.rmtree, leftover, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{home.name}.build-", dir=home.parent))
        try:
            tree = await _fetch(source, work, report)
            await asyncio.to_thread(apply_patches, tree)
            built = await _build(tree, work, settings.cores, report)
            report("checking llama-finetune on a toy model")
            await _trust(built / f"llama-finetune{_EXE}", source)
            await asyncio.to_thread(_install, built, work / "done", home)
        finally:
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)


async def _trust(finetune: Path, source: str) -> None:
    try:
        await check_parses_special_tokens(finetune)
    except ToolchainError as error:
        raise ToolchainError(str(error) if source == "sdist" else f"{error} {INSTEAD}") from error


def _install(built: Path, staged: Path, home: Path) -> None:
    """Keep the binaries alone; the folder appears under its final name in one rename."""
    (staged / "bin").mkdir(parents=True)
    for name in TOOLS:
        shutil.copy2(built / f"{name}{_EXE}", staged / "bin")
    shutil.rmtree(home, ignore_errors=True)
    staged.rename(home)


async def _fetch(source: str, work: Path, report: Progress) -> Path:
    """The llama.cpp source tree under ``work``: from the sdist of the installed library, or cloned."""
    if source.startswith("git:"):
        tag, tree = source[4:], work / "llama.cpp"
        report(f"cloning llama.cpp {tag}")
        clone = ["git", "clone", "--quiet", "--depth", "1", "--branch", tag, REPOSITORY, str(tree)]
        _check(await _run(clone), f"llama.cpp '{tag}' could not be cloned from {REPOSITORY}")
        return tree
    version = importlib.metadata.version("llama-cpp-python")
    report(f"fetching the source of llama-cpp-python {version}")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
    finished = await _run([*download, "--dest", str(work), f"llama-cpp-python=={version}"])
    _check(finished, f"The source of llama-cpp-python {version} could not be fetched from the package index")
    return await asyncio.to_thread(_unpack, work)


def _unpack(work: Path) -> Path:
    with tarfile.open(next(work.glob("llama_cpp_python-*.tar.gz"))) as tar:
        # Set rather than passed: Python knows it from 3.11.4 on.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        tar.extractall(work / "sdist")
    return next((work / "sdist").glob("*/vendor/llama.cpp"))


async def _build(tree: Path, work: Path, cores: int, report: Progress) -> Path:
    """Configure and compile; returns the folder of the binaries."""
    if not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise ToolchainError("No C++ compiler found. Install one: apt install g++, or xcode-select --install")
    cmake, ninja = await _build_tools(work, report)
    build = work / "build"
    options = [f"-D{name}={value}" for name, value in (OPTIONS | {"CMAKE_MAKE_PROGRAM": ninja}).items()]
    report("configuring llama.cpp")
    configured = await _run([cmake, "-S", str(tree), "-B", str(build), "-G", "Ninja", *options])
    _check(configured, "llama.cpp could not be configured")

    def show(line: str) -> None:
        if step := _STEP.match(line):
            report(f"building llama.cpp {step[1]}/{step[2]}")

    compile_command = [cmake, "--build", str(build), "-j", str(cores), "--target", *TOOLS]
    _check(await run_tool(compile_command, on_line=show), "llama.cpp could not be built")
    return build / "bin"


async def _build_tools(work: Path, report: Progress) -> tuple[str, str]:
    """Paths of cmake and ninja: those on PATH, else those inside the PyPI packages of these names."""
    cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
    if cmake and ninja:
        return cmake, ninja
    report("fetching cmake and ninja")
    folder = work / "tools"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "cmake", "ninja"]
    _check(await _run(install), "cmake and ninja could not be fetched from the package index")
    inside = {
        name: next((path for path in folder.glob(f"**/bin/{name}{_EXE}") if not _is_script(path)), None)
        for name in ("cmake", "ninja")
    }
    if not all(inside.values()):
        raise ToolchainError("The PyPI packages cmake and ninja hold no programs for this machine. Install both.")
    return cmake or str(inside["cmake"]), ninja or str(inside["ninja"])


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"


async def _run(command: list[str]) -> Finished:
    try:
        return await run_tool(command)
    except OSError as error:
        raise ToolchainError(f"'{command[0]}' can't be started: {error.strerror}. Is it installed?") from error


def _check(finished: Finished, sentence: str) -> None:
    if finished.code != 0:
        raise ToolchainError(f"{sentence}: {finished.ending}. Last output: {_last_lines(finished.tail)}")


def _last_lines(tail: str) -> str:
    lines = [line for line in tail.splitlines() if "error" in line.lower()] or tail.splitlines()[-1:]
    return " | ".join(lines[:3]) or "none"
