"""The changes made to llama.cpp's source before it is built, and how they are applied.

A hunk is found by its text, not by its line number, so that it also fits a neighbouring release; it
must fit exactly once, or the build stops.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from timestep.errors import ToolchainError

FOLDER = Path(__file__).parent


def patch_files() -> list[Path]:
    """The patches, in the order they are applied."""
    return sorted(FOLDER.glob("*.patch"))


def fingerprint() -> str:
    """Short hash of all patches: a changed patch means a new build."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in patch_files())).hexdigest()[:8]


def mask_path(text: Path) -> Path:
    """Where the patched llama-finetune looks for the mask of ``text``: which of its tokens are learnt."""
    return text.with_name(f"{text.name}.mask")


def apply_patches(source: Path) -> None:
    """Apply every patch to the llama.cpp tree ``source``; ToolchainError where one does not fit."""
    for patch in patch_files():
        for target, before, after in _hunks(patch.read_text()):
            path = source / target
            text = path.read_text() if path.is_file() else ""
            if text.count(before) != 1:
                raise ToolchainError(
                    f"Patch '{patch.name}' does not fit '{target}' of this llama.cpp. Use another release: "
                    "TIMESTEP_TOOLCHAIN_SOURCE=sdist or git:TAG"
                )
            path.write_text(text.replace(before, after))


def _hunks(patch: str) -> Iterator[tuple[str, str, str]]:
    """(file, text before, text after) of each hunk of a unified diff."""
    target, before, after = "", "", ""
    for line in patch.splitlines(keepends=True):
        if line.startswith(("--- ", "+++ ", "@@")):
            if before or after:
                yield target, before, after
            before, after = "", ""
            if line.startswith("+++ "):
                target = line[4:].strip().removeprefix("b/")
        elif target and line[0] in " -+":
            before += line[1:] if line[0] in " -" else ""
            after += line[1:] if line[0] in " +" else ""
    if before or after:
        yield target, before, after
