"""Judging a model: perplexity of the assistant's tokens, exact tool calls, and which of two is better."""

import json
import math
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from tests.training.conftest import talk
from timestep.models.chat import AssistantMessage, ChatRenderer, ToolCall
from timestep.models.engine import LlamaEngine
from timestep.models.generation import Generation
from training import evaluate as judge
from training.dataset import Conversation
from training.evaluate import Evaluation, better, evaluate

TALK = Conversation(**talk(12, 34))


async def test_perplexity_is_that_of_the_assistants_tokens(tiny: Path) -> None:
    found = await evaluate(tiny, [TALK], context_length=512, threads=2)

    renderer = ChatRenderer.from_file(tiny)
    llama = llama_cpp.Llama(str(tiny), n_ctx=512, logits_all=True, verbose=False, n_threads=2)
    tokens = llama.tokenize(renderer.conversation(TALK.messages, TALK.tools).encode(), special=True)
    llama.eval(tokens)
    likely = np.array(llama.scores[: len(tokens)], np.float64)
    likely -= np.log(np.exp(likely).sum(axis=1, keepdims=True))
    losses = []
    for turn in (1, 3):
        start = len(llama.tokenize(renderer.prompt(TALK.messages[:turn], TALK.tools).encode(), special=True))
        end = tokens.index(2, start) + 1  # <|im_end|> belongs to the turn
        losses += [-likely[position - 1, tokens[position]] for position in range(start, end)]
    assert found.tokens == len(losses)
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=0.02)


class KnowsOneCall(LlamaEngine):
    """Calls the calculator with 12*34, written in its own way, whatever it is asked."""

    def stream(self, messages: Any, tools: Any = None, **options: Any) -> Generation:
        call = ToolCall(name="calculator", arguments='{"expression":  "12*34"}')
        generation = Generation(forced=False, prompt_tokens=1, message=AssistantMessage(tool_calls=[call]))
        generation.deltas = (delta for delta in list[dict[str, Any]]())
        return generation


async def test_a_call_is_exact_by_its_name_and_arguments(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "LlamaEngine", KnowsOneCall)
    twice = talk(12, 34)
    twice["messages"][1]["tool_calls"] *= 2
    renamed = talk(12, 34)
    renamed["messages"][1]["tool_calls"][0]["function"]["name"] = "clock"
    held_out = [TALK, *(Conversation(**line) for line in (talk(12, 35), twice, renamed))]
    found = await evaluate(tiny, held_out, context_length=512, threads=1)
    assert (found.tool_call_accuracy, found.tool_calls) == (0.25, 4)


async def test_nothing_to_measure_is_none(tiny: Path) -> None:
    nothing = await evaluate(tiny, [], context_length=256, threads=1)
    assert (nothing.perplexity, nothing.tool_call_accuracy, nothing.conversations) == (None, None, 0)
    plain = Conversation(messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}])
    found = await evaluate(tiny, [plain], context_length=256, threads=1)
    assert found.perplexity is not None and (found.tool_call_accuracy, found.tool_calls) == (None, 0)


async def test_a_conversation_beyond_the_context_is_cut_and_its_calls_count_as_missed(tiny: Path) -> None:
    long = talk(2, 3)
    long["messages"][0]["content"] = json.dumps(list(range(400)))
    found = await evaluate(tiny, [Conversation(**long), TALK], context_length=256, threads=1)
    assert found.tool_calls == 2 and found.perplexity is not None


def _evaluation(perplexity: float | None, accuracy: float | None) -> Evaluation:
    return Evaluation(perplexity=perplexity, tool_call_accuracy=accuracy, tool_calls=4, tokens=9, conversations=2)


@pytest.mark.parametrize(
    ("candidate", "current", "expected"),
    [
        ((2.0, 0.5), (3.0, 0.5), True),
        ((2.0, 0.25), (3.0, 0.5), False),
        ((3.0, 1.0), (3.0, 0.5), False),
        ((2.0, None), (3.0, None), True),
        ((None, None), (None, None), False),
        ((math.nan, 1.0), (3.0, 0.5), False),
    ],
)
def test_better_is_no_fewer_exact_calls_and_less_perplexed(
    candidate: tuple[float | None, float | None], current: tuple[float | None, float | None], expected: bool
) -> None:
    assert better(_evaluation(*candidate), _evaluation(*current)) is expected
