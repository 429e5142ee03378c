"""Datasets: what a bad line gets, what is held out, and windows that hold whole conversations."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from storage.store import ObjectStore
from storage.traces import TraceStore
from tests.training.conftest import talk
from timestep.errors import DatasetError
from timestep.models.chat import ChatRenderer
from training.dataset import Conversation, Rendered, load_jsonl, load_traces, pack, render, split
from training.tokenizer import Tokenizer

Write = Callable[[int], Path]
ROBOT = {"messages": [{"role": "robot", "content": "hi"}]}
UNANSWERED = {"messages": [{"role": "user", "content": "hi"}]}
NO_TEXT = {"messages": [{"role": "user"}, {"role": "assistant", "content": "hi"}]}
BROKEN_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{x"}}
BAD_CALL = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [BROKEN_CALL]}]}
BAD_TOOLS = {"messages": talk(2, 3)["messages"], "tools": [{"name": "f"}]}

BAD_LINES = [
    (b"{'messages'", "it is not JSON (Expecting property name enclosed in double quotes at column 2)."),
    (b"\xff\xfe", "it is not UTF-8 text."),
    (b"[1]", 'it is not an object like {"messages": […]}.'),
    (b"{}", "it has no 'messages'."),
    (json.dumps(ROBOT).encode(), "message 1 has the role 'robot', which is none of system, developer, user,"),
    (json.dumps(UNANSWERED).encode(), "it has no assistant message to learn from."),
    (json.dumps(NO_TEXT).encode(), "message 1 has no text content."),
    (
        json.dumps(BAD_CALL).encode(),
        "message 2 has a tool call without a name or with arguments that are not JSON text.",
    ),
    (json.dumps(BAD_TOOLS).encode(), "'tools' is not a list of"),
]


@pytest.mark.parametrize(("line", "why"), BAD_LINES)
async def test_a_bad_line_stops_with_its_number_and_why(dataset: Write, line: bytes, why: str) -> None:
    path = dataset(3)
    path.write_bytes(path.read_bytes() + b"\n" + line + b"\n")
    with pytest.raises(DatasetError) as caught:
        await load_jsonl(path)
    assert str(caught.value).startswith(f"Dataset 'talks.jsonl', line 5: {why}")
    assert caught.value.line == 5


async def test_bad_lines_are_skipped_and_reported_when_asked_for(dataset: Write) -> None:
    path = dataset(3)
    path.write_bytes(b"nonsense\n" + path.read_bytes() + b"{}\n")
    loaded = await load_jsonl(path, skip_bad=True)
    assert len(loaded.conversations) == 3
    assert [line.split(":")[0] for line in loaded.skipped] == [
        "Dataset 'talks.jsonl', line 1",
        "Dataset 'talks.jsonl', line 5",
    ]


@pytest.mark.parametrize(
    ("text", "why"), [("", "it is empty."), ("\n \n", "it is empty."), ("x\n", "it has no good line.")]
)
async def test_a_dataset_of_nothing_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "d.jsonl").write_text(text)
    with pytest.raises(DatasetError, match=f"Dataset 'd.jsonl': {why}"):
        await load_jsonl(tmp_path / "d.jsonl", skip_bad=True)


async def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"Dataset 'd.jsonl': No such file or directory."):
        await load_jsonl(tmp_path / "d.jsonl")


async def test_what_follows_the_last_answer_is_left_out(tmp_path: Path) -> None:
    line = talk(2, 3)
    line["messages"].append({"role": "user", "content": "And 3*3?"})
    (tmp_path / "d.jsonl").write_text(json.dumps(line))
    (conversation,) = (await load_jsonl(tmp_path / "d.jsonl")).conversations
    assert conversation.messages == talk(2, 3)["messages"]


def _trace(**changes: Any) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    return {"mode": "inference", "status": "completed", "started": now, "agent": "a", **talk(2, 3)} | changes


async def test_completed_steps_of_the_agent_are_learnt_from(store: ObjectStore) -> None:
    traces, now = TraceStore(store), datetime.now(UTC)
    old = now - timedelta(hours=30)
    written = {
        "good": _trace(),
        "failed": _trace(status="failed"),
        "training": _trace(mode="training"),
        "empty": _trace(messages=[]),
        "old": _trace(started=old.isoformat()),
    }
    for step_id, trace in written.items():
        await traces.write(trace, agent="a", step_id=step_id, when=datetime.fromisoformat(trace["started"]))
    await traces.write(_trace(agent="b"), agent="b", step_id="other", when=now)

    loaded = await load_traces(traces, "a", since=now - timedelta(hours=24))
    assert [conversation.source.rpartition("/")[2] for conversation in loaded.conversations] == ["good.json"]
    assert loaded.conversations[0].tools == talk(2, 3)["tools"]
    assert len(loaded.skipped) == 1 and "empty.json': it has no 'messages'." in loaded.skipped[0]
    assert len((await load_traces(traces, "a")).conversations) == 2


async def test_an_agent_without_traces_has_nothing_to_learn_from(store: ObjectStore) -> None:
    with pytest.raises(DatasetError, match=r"Dataset 'traces': the agent 'a' has no completed steps to learn from\."):
        await load_traces(TraceStore(store), "a")


def _conversations(count: int) -> list[Conversation]:
    return [Conversation(**talk(k, k + 1), source=str(k)) for k in range(count)]


def test_the_split_depends_on_content_and_seed_alone() -> None:
    conversations = _conversations(40)
    train, held_out = split(conversations, 0.25, 1)
    assert (len(train), len(held_out)) == (30, 10)
    turned = [conversation.model_copy(update={"source": "elsewhere"}) for conversation in reversed(conversations)]
    again = split(turned, 0.25, 1)[1]
    assert {str(c.messages) for c in again} == {str(c.messages) for c in held_out}
    assert {c.source for c in split(conversations, 0.25, 2)[1]} != {c.source for c in held_out}


def test_equal_conversations_stay_on_one_side() -> None:
    twice = _conversations(10) * 2
    train, held_out = split(twice, 0.3, 7)
    assert not {str(c.messages) for c in train} & {str(c.messages) for c in held_out}
    assert len(held_out) == 6


@pytest.mark.parametrize(("count", "share", "held"), [(1, 0.5, 0), (2, 0.1, 1), (2, 0.9, 1), (5, 0.0, 0), (3, 0.9, 2)])
def test_each_side_gets_one_where_there_are_two(count: int, share: float, held: int) -> None:
    train, held_out = split(_conversations(count), share, 0)
    assert (len(train), len(held_out)) == (count - held, held)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Tokenizer:
    return Tokenizer(tiny)


@pytest.fixture(scope="module")
def rendered(tiny: Path, tokenizer: Tokenizer) -> list[Rendered]:
    renderer = ChatRenderer.from_file(tiny)
    return [render(conversation, renderer, tokenizer.sequence) for conversation in _conversations(12)]


@pytest.mark.parametrize("seed", [0, 1])
def test_windows_hold_whole_conversations(rendered: list[Rendered], tokenizer: Tokenizer, seed: int) -> None:
    packed, texts = pack(rendered, tokenizer, 512, "d"), [text for text, _ in rendered]
    tokens = tokenizer(packed.text(seed))
    count = (len(tokens) - 512 - 1) // 512  # llama.cpp's own arithmetic, with the patched stride
    assert count == len(packed.windows) == 6
    filler = tokenizer(packed.padding)[0]
    found = []
    for number in range(count):
        window = tokens[512 * number : 512 * (number + 1)]
        while window:
            text = next((t for t in texts if window[: len(tokenizer(t))] == tokenizer(t)), None)
            if text is None:
                assert set(window) == {filler}, "only padding follows the last conversation"
                break
            found.append(text)
            window = window[len(tokenizer(text)) :]
    assert sorted(found) == sorted(texts), "every conversation once, none cut"
    assert (packed.cut, packed.tokens) == (0, sum(len(tokenizer(text)) for text in texts))


def test_each_epoch_has_its_own_order(rendered: list[Rendered], tokenizer: Tokenizer) -> None:
    packed = pack(rendered, tokenizer, 512, "d")
    assert packed.text(1) == packed.text(1) != packed.text(2)


def test_a_conversation_longer_than_a_window_is_cut_at_its_end(rendered: list[Rendered], tokenizer: Tokenizer) -> None:
    long = rendered[0].text + "<|im_start|>user\n" + "naïve 数 🙂 " * 200
    packed = pack([rendered[0]._replace(text=long), *rendered[1:]], tokenizer, 512, "d")
    assert packed.cut == 1
    window = next(window for window in packed.windows if "数" in window)
    assert tokenizer(window)[:500] == tokenizer(long)[:500]
    assert len(tokenizer(window)) == 512


@pytest.mark.parametrize("seed", [0, 1])
def test_the_assistants_turns_are_learnt_and_the_rest_is_only_read(
    rendered: list[Rendered], tokenizer: Tokenizer, seed: int
) -> None:
    packed = pack(rendered, tokenizer, 512, "d")
    tokens, mask = tokenizer(packed.text(seed)), packed.mask(seed)
    assert len(tokens) == len(mask) and mask.count("1") == packed.learnt
    begin, end = tokenizer("<|im_start|>")[0], tokenizer("<|im_end|>")[0]
    head = tokenizer("<|im_start|>assistant\n")
    expected = ["0"] * len(tokens)
    for position, token in enumerate(tokens):
        if token == begin and tokens[position : position + len(head)] == head:
            last = tokens.index(end, position)
            expected[position + len(head) : last + 1] = "1" * (last + 1 - position - len(head))
    assert mask == "".join(expected)


def test_answers_beyond_the_window_leave_nothing_to_learn(rendered: list[Rendered], tokenizer: Tokenizer) -> None:
    long = [Rendered("<|im_start|>system\n" + "word " * 600 + text, [range(620, 640)]) for text, _ in rendered]
    with pytest.raises(DatasetError, match=r"'d': no assistant's answer begins within a context of 512\. Raise"):
        pack(long, tokenizer, 512, "d")


def test_a_dataset_shorter_than_a_context_is_refused(rendered: list[Rendered], tokenizer: Tokenizer) -> None:
    size = len(tokenizer(rendered[0].text))
    with pytest.raises(
        DatasetError, match=f"'d': its training conversations have {size} tokens together, fewer than one"
    ):
        pack(rendered[:1], tokenizer, 512, "d")
