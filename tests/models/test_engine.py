"""The engine on the real SmolLM2, in process."""

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from timestep.errors import ContextLengthError, ModelFileError, UsageError
from timestep.models.engine import LlamaEngine
from timestep.models.generation import Generation

OCEAN = [{"role": "user", "content": "Tell me about the ocean."}]


def finish(generation: Generation) -> Generation:
    list(generation)
    return generation


def test_a_plain_answer_streams_its_text(engine: LlamaEngine) -> None:
    generation = engine.stream(OCEAN, temperature=0, max_tokens=24)
    text = "".join(delta.get("content", "") for delta in generation)
    assert "ocean" in text.lower()
    assert generation.message.content == text
    assert (generation.finish_reason, generation.completion_tokens, generation.forced) == ("length", 24, False)


def test_a_seed_repeats_an_answer_and_another_does_not(engine: LlamaEngine) -> None:
    def answer(seed: int) -> str | None:
        return finish(engine.stream(OCEAN, temperature=1.2, seed=seed, max_tokens=24)).message.content

    answer(7)  # from here on every run finds the same cache
    assert answer(7) == answer(7)
    assert len({answer(seed) for seed in range(4)}) > 1


def test_stop_ends_the_answer(engine: LlamaEngine) -> None:
    whole = finish(engine.stream(OCEAN, temperature=0, max_tokens=24)).message.content or ""
    stop = whole.split()[4]
    generation = finish(engine.stream(OCEAN, temperature=0, max_tokens=24, stop=[stop]))
    assert generation.message.content == whole[: whole.index(stop)].rstrip()
    assert generation.finish_reason == "stop"


def test_penalties_change_what_is_repeated(engine: LlamaEngine) -> None:
    def words(penalty: float) -> int:
        options: dict[str, Any] = {"temperature": 0, "max_tokens": 60, "frequency_penalty": penalty}
        return len(set((finish(engine.stream(OCEAN, **options)).message.content or "").split()))

    assert words(1.5) > words(0)


def test_the_model_opens_a_call_by_itself_and_the_grammar_holds_it(
    engine: LlamaEngine, calling: list[dict[str, Any]], calculator: dict[str, Any], clock: dict[str, Any]
) -> None:
    generation = engine.stream(calling, [calculator, clock], temperature=0, max_tokens=80)
    deltas = [delta for delta in generation if delta]
    first, *rest = [delta["tool_calls"][0] for delta in deltas]
    assert first["type"] == "function"
    assert first["function"] == {"name": "calculator", "arguments": ""}
    assert len(rest) > 3  # the arguments come piece by piece
    assert json.loads("".join(part["function"]["arguments"] for part in rest)) == {"expression": "8+5"}
    assert (generation.finish_reason, generation.forced) == ("tool_calls", False)


def test_a_forced_call_says_so(engine: LlamaEngine, calculator: dict[str, Any], clock: dict[str, Any]) -> None:
    named = {"type": "function", "function": {"name": "clock"}}
    generation = finish(engine.stream(OCEAN, [calculator, clock], tool_choice=named, temperature=0))
    assert generation.forced
    assert {call.name for call in generation.message.tool_calls} == {"clock"}
    assert json.loads(generation.message.tool_calls[0].arguments)["timezone"] in ("UTC", "Europe/Paris")


def test_an_answer_may_be_json_or_a_call(
    engine: LlamaEngine, calling: list[dict[str, Any]], calculator: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 200, "response_format": {"type": "json_object"}}
    assert finish(engine.stream(calling, [calculator], **options)).message.tool_calls
    assert (finish(engine.stream(OCEAN, [calculator], **options)).message.content or "{").startswith("{")


def test_the_next_prompt_finds_the_tokens_of_the_last_turn_in_the_cache(
    engine: LlamaEngine, calling: list[dict[str, Any]], calculator: dict[str, Any]
) -> None:
    first = finish(engine.stream(calling, [calculator], temperature=0, max_tokens=80))
    answered = [*calling, first.message.wire(), {"role": "tool", "content": "13"}]
    second = finish(engine.stream(answered, [calculator], temperature=0, max_tokens=20))
    # Every token of the call is rendered as it was generated; the end of the turn alone is new.
    assert second.cached_tokens == first.prompt_tokens + first.completion_tokens - 1
    assert "13" in (second.message.content or "")


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(engine: LlamaEngine) -> None:
    with pytest.raises(UsageError, match=r"prompt has \d{4} tokens and the context 1024"):
        engine.stream([{"role": "user", "content": "word " * 1100}])


def test_a_prompt_that_can_not_fit_is_refused_unread(engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "tokenize", None)
    text = "word " * 100_000
    for content in (text, [{"type": "text", "text": text}]):
        with pytest.raises(ContextLengthError, match="at least 3906 tokens and the context 1024"):
            engine.stream([{"role": "user", "content": content}])
    with pytest.raises(ContextLengthError, match="at least"):
        engine.complete(text)
    with pytest.raises(ContextLengthError, match="at least"):
        engine.stream(OCEAN, [{"type": "function", "function": {"name": "now", "description": text}}])


def test_further_choices_are_made_of_the_same_tokens(engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    ask: dict[str, Any] = {"temperature": 1.2, "max_tokens": 8}
    finish(engine.stream(OCEAN, **ask))  # from here on each finds the same cache
    alone = finish(engine.stream(OCEAN, seed=8, **ask)).message.content
    first = engine.stream(OCEAN, seed=7, **ask)
    monkeypatch.setattr(engine, "tokenize", None)
    finish(first)
    second = finish(first.again(8))
    assert second.message.content == alone != first.message.content
    assert second.prompt_tokens == first.prompt_tokens


def test_an_answer_ends_where_the_context_does(tiny_file: Path) -> None:
    engine = LlamaEngine(tiny_file, 128, 1)
    generation = finish(engine.stream(OCEAN, seed=1, max_tokens=10_000))
    assert generation.prompt_tokens + generation.completion_tokens <= 128


def test_a_context_longer_than_the_models_is_refused(tiny_file: Path) -> None:
    with pytest.raises(UsageError, match="Context length 2048 is longer than the 1024"):
        LlamaEngine(tiny_file, 2048, 1)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not a model" * 100)
    with pytest.raises(ModelFileError, match="no GGUF file"):
        LlamaEngine(path)


def test_an_abandoned_generation_frees_the_engine(engine: LlamaEngine) -> None:
    generation = engine.stream(OCEAN, max_tokens=500)
    assert list(itertools.islice(generation, 3))
    generation.close()
    other = threading.Thread(target=finish, args=(engine.stream(OCEAN, max_tokens=4),))
    other.start()
    other.join(60)
    assert not other.is_alive()
    assert generation.completion_tokens < 500


def test_text_that_spans_tokens_is_never_cut_in_a_character(engine: LlamaEngine) -> None:
    emoji = [{"role": "user", "content": "Repeat exactly: 🙂🙂🙂🙂"}]
    for delta in engine.stream(emoji, seed=1, max_tokens=40):
        assert "\ufffd" not in delta.get("content", "")
