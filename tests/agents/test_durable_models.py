"""Model calls as units, against a real HTTP server: streams, retries, timeouts, what they cost."""

import json
from dataclasses import replace
from typing import Any

import pytest
from agents import (
    Agent,
    ModelResponse,
    ModelRetrySettings,
    ModelSettings,
    RunConfig,
    Runner,
    Usage,
    function_tool,
    retry_policies,
)
from agents.items import TResponseOutputItem
from openai._models import construct_type
from openai.types.responses import ResponseStreamEvent
from pydantic import ValidationError

from tests.agents.durably import MemoryAttempts, Told, new_step, run
from tests.agents.openai_server import OpenAIServer, Reply, serving
from tests.scripted import PlannedModel, answer
from timestep.agents.durable.retries import DEFAULT_RETRY
from timestep.agents.durable.run import CallPolicy, DurableStep
from timestep.agents.durable.streams import BrokenStreamError, completed
from timestep.agents.record.ledger import MemoryLedger
from timestep.errors import TimestepError

QUICK = replace(DEFAULT_RETRY, backoff={"initial_delay": 0.01, "max_delay": 0.02})
BUSY = Reply(status=503, error={"message": "busy", "type": "server_error"})


async def answered(server: OpenAIServer, **policy: Any) -> tuple[DurableStep, Told, str]:
    told = Told()
    step = new_step(MemoryLedger("s"), events=told, policy=CallPolicy(**{"retry": QUICK, **policy}))
    settings = policy.pop("settings", ModelSettings())
    agent = Agent(name="a", model=server.model(), model_settings=settings)
    return step, told, (await run(step, agent)).final_output


async def test_deltas_are_told_and_the_whole_response_is_recorded() -> None:
    with serving(Reply(("Hel", "lo"))) as server:
        step, told, output = await answered(server)
    assert output == "Hello"
    assert [data["delta"] for data in told.of("output_text.delta")] == ["Hel", "lo"]
    assert [type for type, *_ in told.events] == [
        "call.started",
        "output_text.delta",
        "output_text.delta",
        "call.finished",
    ]
    assert {position for _, position, _ in told.events} == {"a/0"}
    assert server.requests[0]["stream_options"] == {"include_usage": True}
    assert step.calls[0].usage == {"requests": 1, "input_tokens": 100, "output_tokens": 10, "total_tokens": 110}


async def test_streaming_can_be_turned_off() -> None:
    with serving(Reply(("Hel", "lo"))) as server:
        step, told, output = await answered(server, stream=False)
    assert output == "Hello" and not told.of("output_text.delta")
    assert "stream" not in server.requests[0]
    assert step.usage().input_tokens == 100


async def test_a_model_without_streams_is_asked_for_the_whole() -> None:
    with serving(Reply(("Hel", "lo"))) as server:
        model = server.model()
        model.stream_response = lambda *_, **__: _no_stream()  # type: ignore[assignment,method-assign,return-value]
        step = new_step(MemoryLedger("s"))
        assert (await run(step, Agent(name="a", model=model))).final_output == "Hello"


async def _no_stream() -> Any:
    raise NotImplementedError
    yield


async def test_a_rate_limit_is_waited_out_as_the_server_asks() -> None:
    limited = Reply(status=429, headers={"Retry-After": "1"}, error={"message": "slow down", "type": "rate_limit"})
    with serving(limited, Reply()) as server:
        step, _, output = await answered(server)
    assert output == "fine" and len(server.requests) == 2
    assert server.times[1] - server.times[0] >= 1
    # One unit, whatever it took.
    assert [call.position for call in step.calls] == ["a/0"]
    assert step.usage().requests == 2


async def test_a_server_that_asks_for_too_long_a_wait_is_told_to_the_person() -> None:
    limited = Reply(status=429, headers={"Retry-After": "86400"}, error={"message": "come back tomorrow"})
    with serving(limited) as server, pytest.raises(TimestepError, match="come back tomorrow"):
        await answered(server)
    assert len(server.requests) == 1


async def test_the_clients_own_retries_do_not_multiply_with_ours() -> None:
    with serving(BUSY) as server, pytest.raises(TimestepError, match="busy"):
        await answered(server, retry=replace(QUICK, max_retries=3))
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "refusal",
    [
        Reply(status=400, error={"message": "no such thing", "type": "invalid_request_error"}),
        Reply(status=401, error={"message": "no such thing", "type": "auth"}),
        Reply(status=429, error={"message": "no such thing", "code": "insufficient_quota"}),
        Reply(words=(), error={"message": "no such thing", "type": "invalid_request_error"}),
    ],
    ids=["bad request", "bad key", "no quota", "bad request within the stream"],
)
async def test_what_another_try_cannot_mend_is_not_tried_again(refusal: Reply) -> None:
    with serving(refusal) as server, pytest.raises(TimestepError, match="no such thing"):
        await answered(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "broken",
    [
        Reply(("Hal",), breaks=True),
        Reply(("Hal",), error={"message": "out of memory", "type": "server_error"}),
        Reply(("Hal",), cut=True),
    ],
    ids=["connection", "error within the stream", "no finish_reason"],
)
async def test_a_stream_that_breaks_off_is_asked_anew_and_its_words_are_void(broken: Reply) -> None:
    with serving(broken, Reply(("Hel", "lo"))) as server:
        step, told, output = await answered(server)
    assert output == "Hello" and len(server.requests) == 2
    kinds = [type for type, *_ in told.events]
    assert kinds == ["call.started", "output_text.delta", "call.restarted", *["output_text.delta"] * 2, "call.finished"]
    assert [call.position for call in step.calls] == ["a/0"]


async def test_a_stream_that_is_always_cut_off_is_no_answer() -> None:
    with serving(Reply(("Hal",), cut=True)) as server:
        with pytest.raises(BrokenStreamError, match="without a finish_reason"):
            await answered(server, retry=replace(QUICK, max_retries=1))
        assert len(server.requests) == 2
        # Outside of a step the SDK does as it does.
        assert (await Runner.run(Agent(name="a", model=server.model()), "go")).final_output == "Hal"
        streamed = Runner.run_streamed(Agent(name="a", model=server.model()), "go")
        assert [event async for event in streamed.stream_events()] and streamed.final_output == "Hal"


class Failing(PlannedModel):
    """Streams one event of the Responses API, and then its plan."""

    def __init__(self, *events: Any) -> None:
        super().__init__(["fine"])
        self.events, self.asked = list(events), 0

    async def stream_response(self, *arguments: Any, **named: Any) -> Any:  # type: ignore[override]
        self.asked += 1
        if self.events:
            if (event := self.events.pop(0)) is not None:
                yield event
            return
        yield completed(await self.get_response(*arguments, **named), "m")


def failed(code: str | None, type: str = "response.failed", **facts: Any) -> Any:
    error = None if code is None else {"code": code, "message": "no luck"}
    response = {"id": "r", "output": [], "error": error, **facts}
    return construct_type(type_=ResponseStreamEvent, value={"type": type, "sequence_number": 0, "response": response})


def error(code: str | None) -> Any:
    value = {"type": "error", "code": code, "message": "no luck", "param": None, "sequence_number": 0}
    return construct_type(type_=ResponseStreamEvent, value=value)


@pytest.mark.parametrize(
    "event",
    [None, error("server_error"), error(None), failed("rate_limit_exceeded"), failed("server_is_overloaded")],
    ids=["premature end", "error", "error without a code", "rate limit", "overloaded"],
)
async def test_a_failure_told_within_a_stream_of_responses_is_tried_again(event: Any) -> None:
    model = Failing(event)
    step = new_step(MemoryLedger("s"), policy=CallPolicy(retry=QUICK))
    assert (await run(step, Agent(name="a", model=model))).final_output == "fine"
    assert model.asked == 2 and step.usage().requests == 2


@pytest.mark.parametrize(
    "event",
    [error("invalid_prompt"), failed("image_too_large"), failed(None, "response.incomplete", status="incomplete")],
    ids=["error", "failed", "incomplete"],
)
async def test_a_failure_of_the_request_told_within_a_stream_is_not(event: Any) -> None:
    model = Failing(event)
    with pytest.raises(BrokenStreamError):
        await run(new_step(MemoryLedger("s"), policy=CallPolicy(retry=QUICK)), Agent(name="a", model=model))
    assert model.asked == 1


TEXT = {"type": "output_text", "text": "fine", "annotations": []}
MESSAGE = {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [TEXT]}
LENIENT: dict[str, list[dict[str, Any]]] = {
    "no annotations": [{**MESSAGE, "content": [{"type": "output_text", "text": "fine"}]}],
    "null annotations": [{**MESSAGE, "content": [{**TEXT, "annotations": None}]}],
    "no id": [{name: value for name, value in MESSAGE.items() if name != "id"}],
    "no action": [{"type": "web_search_call", "id": "w", "status": "completed"}, MESSAGE],
    "new type": [{"type": "hologram_call", "id": "h", "shape": [1]}, MESSAGE],
    "surrogate": [{"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "\ud83d"}]}, MESSAGE],
}


@pytest.mark.parametrize("items", LENIENT.values(), ids=LENIENT)
@pytest.mark.parametrize("streams", [True, False], ids=["streamed", "whole"])
async def test_what_the_sdk_accepts_of_a_response_does_not_stop_the_step(
    items: list[dict[str, Any]], streams: bool
) -> None:
    output: list[Any] = [construct_type(type_=TResponseOutputItem, value=item) for item in items]
    asked: list[Any] = []

    class Lenient(PlannedModel):
        async def get_response(self, *_: Any, **__: Any) -> ModelResponse:
            asked.append(1)
            return ModelResponse(output=output, usage=Usage(requests=1), response_id=None)

        async def stream_response(self, *arguments: Any, **named: Any) -> Any:  # type: ignore[override]
            whole = (await self.get_response()).output
            yield construct_type(
                type_=ResponseStreamEvent,
                value={"type": "response.completed", "sequence_number": 0, "response": {"id": "r", "output": items}},
            )
            assert whole

    agent = Agent(name="a", model=Lenient([]))
    plain = (await Runner.run(agent, "go")).final_output
    attempts = MemoryAttempts()
    for attempt in (1, 2):
        step = new_step(await attempts.open(), attempt=attempt, policy=CallPolicy(stream=streams, retry=QUICK))
        assert (await run(step, agent)).final_output == plain == "fine"
        json.dumps(step.messages, ensure_ascii=False).encode()
    assert len(asked) == 2


async def test_a_response_that_cannot_be_read_again_is_not_on_record() -> None:
    class Odd(PlannedModel):
        async def get_response(self, *_: Any, **__: Any) -> ModelResponse:
            usage = Usage(requests=1)
            usage.input_tokens = "many"  # type: ignore[assignment]
            return ModelResponse(output=answer("fine"), usage=usage, response_id=None)

    ledger = MemoryLedger("s")
    with pytest.raises(ValidationError):
        await run(new_step(ledger, policy=CallPolicy(retry=QUICK)), Agent(name="a", model=Odd([])))
    recorded = ledger.known("a/0")
    assert recorded is not None and not recorded.finished


async def test_no_server_is_a_sentence_after_the_retries() -> None:
    with serving() as server:
        pass
    with pytest.raises(TimestepError, match=f"No model server answers at '{server.url}"):
        await answered(server, retry=replace(QUICK, max_retries=1))


async def test_a_hung_call_is_ended_by_its_timeout_and_tried_once_more() -> None:
    with (
        serving(Reply(seconds=1.5)) as server,
        pytest.raises(TimestepError, match=r"within 0.3 s. Raise model_timeout"),
    ):
        await answered(server, model_timeout=0.3)
    assert len(server.requests) == 2


async def test_the_authors_retries_and_timeout_win() -> None:
    never = ModelSettings(retry=ModelRetrySettings(max_retries=0, policy=retry_policies.never()), timeout=0.3)
    for reply, why in ((BUSY, "busy"), (Reply(seconds=1.5), "within 0.3 s")):
        with serving(reply) as server:
            agent = Agent(name="a", model=server.model(), model_settings=never)
            with pytest.raises(TimestepError, match=why):
                await run(new_step(MemoryLedger("s")), agent)
            assert len(server.requests) == 1


async def test_the_sdks_own_loop_never_asks_again_at_another_position() -> None:
    always = ModelSettings(retry=ModelRetrySettings(max_retries=2, backoff=QUICK.backoff, policy=lambda _: True))
    with serving(BUSY) as server:
        step = new_step(MemoryLedger("s"))
        with pytest.raises(TimestepError, match="busy"):
            await run(step, Agent(name="a", model=server.model(), model_settings=always))
        assert len(server.requests) == 3
        assert step.runs[""].turn == 1


async def test_settings_and_model_of_a_run_within_a_tool_count_there() -> None:
    with serving(BUSY) as server, serving(Reply(("deep",))) as other:
        inner = Agent(name="inner", model=server.model())
        never = ModelSettings(retry=ModelRetrySettings(max_retries=0, policy=retry_policies.never()))

        @function_tool(failure_error_function=None)
        async def consult(own_model: bool) -> str:
            config = RunConfig(model_settings=never, model=other.model() if own_model else None)
            return str((await Runner.run(inner, "go", run_config=config)).final_output)

        step = new_step(MemoryLedger("s"))
        plan: Any = [[("consult", {"own_model": True})], [("consult", {"own_model": False})], "done"]
        with pytest.raises(TimestepError, match="busy"):
            await run(step, Agent(name="outer", model=PlannedModel(plan), tools=[consult]))
        assert (len(server.requests), len(other.requests)) == (1, 1)
        assert [call.position for call in step.calls if call.position.startswith("outer/0/0/#")]


async def test_a_failed_call_is_asked_again_when_the_step_starts_again() -> None:
    attempts = MemoryAttempts()
    with serving(BUSY, BUSY, Reply(("at last",))) as server:
        agent = Agent(name="a", model=server.model())
        policy = CallPolicy(retry=replace(QUICK, max_retries=1))
        with pytest.raises(TimestepError):
            await run(new_step(await attempts.open(), policy=policy), agent)
        told = Told()
        step = new_step(await attempts.open(), policy=policy, attempt=2, events=told)
        assert (await run(step, agent)).final_output == "at last"
        assert [type for type, *_ in told.events][:2] == ["call.restarted", "call.started"]
        assert told.of("call.started")[0]["attempt"] == 2


async def test_tokens_seconds_and_cost_are_of_the_call_even_where_the_record_answers() -> None:
    attempts = MemoryAttempts()
    with serving(Reply(("Hel", "lo"))) as server:
        for attempt in (1, 2):
            model = server.model()
            told = Told()
            step = new_step(await attempts.open(), attempt=attempt, events=told)
            step.resolve = lambda agent, model=model: ("openai/gpt-4o-mini", model)  # type: ignore[misc]
            await run(step, Agent(name="a", model=model))
            assert step.calls[0].seconds > 0
            assert step.usage().cost == 0.0  # a server on this machine
            assert step.usage().output_tokens == 10
            assert bool(told.events) == (attempt == 1)
        assert len(server.requests) == 1
