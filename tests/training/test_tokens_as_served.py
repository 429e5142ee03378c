"""What is trained on is what was served, token by token."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from storage.store import ObjectStore
from storage.traces import TraceStore
from tests.training.conftest import CALCULATOR, talk
from timestep.models.chat import ChatRenderer
from timestep.models.engine import LlamaEngine
from training.dataset import load_traces, pack, render
from training.tokenizer import Tokenizer

SYSTEM = {"role": "system", "content": "You are a helpful assistant. Use a tool when it helps."}


@pytest.mark.parametrize("turn", [1, 3])
async def test_training_tokens_begin_with_the_prompt_tokens_served(tiny: Path, store: ObjectStore, turn: int) -> None:
    messages: list[dict[str, Any]] = [SYSTEM, *talk(17, 23)["messages"]]
    engine = LlamaEngine(tiny, 1024, 1)
    prompt = messages[: turn + 1]
    served = engine.tokenize(engine.renderer.prompt(prompt, [CALCULATOR]))
    generation = engine.stream(prompt, [CALCULATOR], temperature=0.0, max_tokens=1)
    list(generation)
    assert generation.prompt_tokens == len(served)

    now = datetime.now(UTC)
    trace: dict[str, Any] = {"mode": "inference", "status": "completed", "started": now.isoformat()}
    trace |= {"messages": messages, "tools": [CALCULATOR]}
    await TraceStore(store).write(trace, agent="assistant", step_id="1", when=now)
    (conversation,) = (await load_traces(TraceStore(store), "assistant")).conversations
    tokenizer = Tokenizer(tiny)
    rendered = render(conversation, ChatRenderer.from_file(tiny), tokenizer.sequence)
    packed = pack([rendered, rendered], tokenizer, 256, "traces")
    trained = tokenizer(packed.text(0))[:256]
    assert trained[: len(served)] == served[:256]
    assert served.count(tokenizer("<|im_start|>")[0]) == turn + 2, "special tokens are special tokens"
    assert tokenizer(rendered.text)[: len(served)] == served
    assert len(served) in {answer.start for answer in rendered.answers}, "and what is learnt begins where they end"
