"""The patches to llama.cpp: found by their text, or refused."""

import shutil
from pathlib import Path

import pytest

from timestep.errors import ToolchainError
from training.patches import apply_patches, patch_files

LITTLE_LLAMA = Path(__file__).with_name("little_llama")
FINETUNE = Path("examples/training/finetune.cpp")


def test_the_patch_fits_wherever_its_lines_stand(tmp_path: Path) -> None:
    tree = Path(shutil.copytree(LITTLE_LLAMA, tmp_path / "tree"))
    moved = "// one more line\n" * 7 + (tree / FINETUNE).read_text()
    (tree / FINETUNE).write_text(moved)
    apply_patches(tree)
    text = (tree / FINETUNE).read_text()
    assert "common_tokenize(ctx, params.prompt, true, true)" in text
    assert "common_opt_dataset_init(ctx, tokens, llama_n_ctx(ctx));" in text
    assert text.count("// one more line\n") == 7 and text.endswith(moved[-200:])


@pytest.mark.parametrize("text", [None, "int main() {}\n"])
def test_a_source_it_does_not_fit_is_refused(tmp_path: Path, text: str | None) -> None:
    (tmp_path / FINETUNE).parent.mkdir(parents=True)
    if text:
        (tmp_path / FINETUNE).write_text(text)
    with pytest.raises(ToolchainError, match=rf"'{patch_files()[0].name}' does not fit '{FINETUNE}'"):
        apply_patches(tmp_path)
