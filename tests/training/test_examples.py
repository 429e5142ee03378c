"""The example conversations that ship: what the demo teaches, and SmolLM2 learning from them for real."""

import runpy
from pathlib import Path

import pytest

from storage.store import ObjectStore
from tests.conftest import ROOT
from tests.tiny_model import SMOLLM2
from tests.training.test_learn import Registry
from timestep.agents.tools import default_tools
from timestep.models.chat import ChatRenderer
from timestep.models.engine import LlamaEngine
from timestep.models.files import local_file
from timestep.settings import Settings
from training.dataset import load_jsonl
from training.finetune import file_type
from training.learn import Job, Recipe, Workshop, learn
from training.tokenizer import Tokenizer
from training.weights import embedding_type

EXAMPLES = ROOT / "examples" / "conversations.jsonl"
CONTEXT = 512


def test_the_file_is_what_its_maker_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = runpy.run_path(str(ROOT / "examples" / "make_conversations.py"))
    monkeypatch.setitem(maker["main"].__globals__, "__file__", str(tmp_path / "make_conversations.py"))
    maker["main"]()
    assert (tmp_path / "conversations.jsonl").read_text() == EXAMPLES.read_text()


async def test_they_fit_a_window_and_keep_the_demos_question_back() -> None:
    conversations = (await load_jsonl(EXAMPLES)).conversations
    renderer, tokenizer = ChatRenderer.from_file(SMOLLM2), Tokenizer(SMOLLM2)
    names = {tool.name for tool in default_tools()}
    for conversation in conversations:
        text = renderer.conversation(conversation.messages, conversation.tools)
        assert len(tokenizer(text)) <= CONTEXT
        assert not any(kept in text for kept in ("17*23", "45+46", "31*12"))
        assert {tool["function"]["name"] for tool in conversation.tools or ()} <= names


@pytest.mark.long
async def test_smollm2_learns_from_them(settings: Settings, store: ObjectStore, tmp_path: Path) -> None:
    lines = EXAMPLES.read_text().splitlines()[:6]
    (tmp_path / "few.jsonl").write_text("\n".join(lines))
    recipe = Recipe(
        dataset=str(tmp_path / "few.jsonl"), context_length=CONTEXT, validation_split=0.3, learning_rate=5e-5
    )
    base = "smollm2-135m-instruct"
    job = Job(run_id="real", agent="assistant", base=base, model=base, recipe=recipe)
    learned = await learn(Workshop(job, settings, store), Registry())

    assert learned.after.perplexity is not None and learned.before.perplexity is not None
    assert learned.after.perplexity < 0.9 * learned.before.perplexity
    model = await local_file(learned.version.file, settings, store)
    assert (
        (file_type(model), embedding_type(model)) == (file_type(SMOLLM2), embedding_type(SMOLLM2)) == ("Q4_1", "Q8_0")
    )
    generation = LlamaEngine(model, 256, settings.cores).stream(
        [{"role": "user", "content": "What is the capital of France?"}], temperature=0.0, max_tokens=24
    )
    list(generation)
    assert generation.message.content and generation.completion_tokens > 1
