"""A model whose every response is one recorded unit, whatever it took to get it: retries, a stream that broke off."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import openai
from agents import Model, ModelResponse, ModelRetryAdvice
from agents.exceptions import ModelTimeoutError
from agents.items import TResponseOutputItem, TResponseStreamEvent
from agents.retry import ModelRetryAdviceRequest, ModelRetryNormalizedError
from openai._models import construct_type
from pydantic import TypeAdapter

from timestep.agents.durable.model_requests import ModelRequest
from timestep.agents.durable.retries import retrying
from timestep.agents.durable.step import CallRecord, DurableStep, Limits, Run, Stop, present
from timestep.agents.durable.streams import DELTAS, NoStreamError, OnEvent, assembled, completed
from timestep.agents.plain import whole
from timestep.agents.record.lease import unblocked
from timestep.agents.record.ledger import Begin
from timestep.agents.record.units import fingerprint, unit
from timestep.errors import TimestepError
from timestep.models import prices
from timestep.models.providers import answered

KIND = "model-call"
_response = TypeAdapter(ModelResponse)

# Items of a response that are executed here, by the field with their id.
_CALLS = {
    "function_call": "call_id",
    "custom_tool_call": "call_id",
    "shell_call": "call_id",
    "local_shell_call": "call_id",
    "mcp_approval_request": "id",
}


class DurableModel(Model):
    """Answers from the record; else asks ``model``, and records what it answers.

    ``limits`` are the retries and the timeout that the agent's author set.
    """

    def __init__(self, name: str, model: Model, agent: str, limits: Limits | None = None) -> None:
        self.name, self._model, self._agent, self._limits = name, model, agent, limits or Limits()

    async def get_response(self, *arguments: Any, **named: Any) -> ModelResponse:
        return await self._answer(ModelRequest.of(arguments, named), None)

    async def stream_response(self, *arguments: Any, **named: Any) -> AsyncIterator[TResponseStreamEvent]:
        """Live events where the model is asked, one completed event where the record answers."""
        events: asyncio.Queue[TResponseStreamEvent | None] = asyncio.Queue()
        answer = asyncio.create_task(self._answer(ModelRequest.of(arguments, named), events.put_nowait))
        answer.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            yield completed(await answer, self.name)
        finally:
            if not answer.done():
                answer.cancel()
                await asyncio.wait({answer}, timeout=1)

    def get_retry_advice(self, request: ModelRetryAdviceRequest) -> ModelRetryAdvice:
        """The SDK's own loop must not try again: it would ask at the next position. Retries are within the unit."""
        return ModelRetryAdvice(suggested=False, normalized=ModelRetryNormalizedError(is_abort=True))

    async def close(self) -> None:
        await self._model.close()

    async def _cleanup_on_run_end(self, owner: object) -> None:
        await self._model._cleanup_on_run_end(owner)

    def _supports_default_prompt_cache_key(self) -> bool:
        supports = getattr(self._model, "_supports_default_prompt_cache_key", None)
        return bool(supports()) if callable(supports) else False

    async def _answer(self, request: ModelRequest, forward: OnEvent | None) -> ModelResponse:
        run = present()
        step, position = run.step, run.at(self._agent, run.turn)
        run.turn += 1
        asked = request.asked(self.name)
        # The parts' fingerprints, so that an error can say which of them changed; the whole is in the trace.
        parts = {name: fingerprint(value) for name, value in asked.items()} | {"model": self.name}
        begin = Begin(position, KIND, f"{self._agent} {run.turn}: {self.name}", fingerprint(asked), request=parts)
        if not run.path:
            # Before the call, so that the trace of a step that fails here says what was asked.
            step.tools, step.messages = request.offered, request.messages()
        call = _Call(self.name, self._model, request, step, position, run.limits.over(self._limits), forward)
        result = await call.recorded(begin)
        response = _built(result["response"])
        _note_positions(run, position, response)
        record = _record(position, request, result, response)
        step.note(record)
        if call.executed:
            _tell_finished(step, begin, record)
        if not run.path:
            step.messages = request.messages(response)
        return response


@dataclass
class _Call:
    """One model call as it is executed; ``forward`` is told the events of the first try."""

    name: str
    model: Model
    request: ModelRequest
    step: DurableStep
    position: str
    limits: Limits
    forward: OnEvent | None
    executed: bool = False
    error: Exception | None = None

    def __post_init__(self) -> None:
        self._streams = self.step.policy.stream or self.forward is not None
        self._tries = 0
        self._told = False

    async def recorded(self, begin: Begin) -> Any:
        """The unit's result. An error of the record, which is none of the call, stops the step."""

        begun = self.step.ledger.known(self.position)

        async def call() -> Any:
            self.executed = True
            if begun is not None and begun.attempt < self.step.attempt:
                # What an earlier attempt told of this call is void.
                self.step.events.publish("call.restarted", self.position, kind=KIND)
            self.step.events.publish(
                "call.started", self.position, kind=KIND, name=begin.name, attempt=self.step.attempt
            )
            try:
                return await self._execute()
            except Exception as error:
                self.error = _in_words(error, self.name)
                self.step.events.publish(
                    "call.finished", self.position, kind=KIND, name=begin.name, error=str(self.error)
                )
                raise self.error from error

        try:
            return await unit(self.step.ledger, begin, call)
        except Exception as error:
            if error is self.error:
                raise
            raise Stop(error) from error

    async def _execute(self) -> dict[str, Any]:
        started = time.perf_counter()
        names: list[str] = []
        answered.set(names)
        policy = self.step.policy
        retry, timeout = self.limits.retry or policy.retry, self.limits.timeout or policy.model_timeout

        async def attempt() -> ModelResponse:
            with unblocked(self.step.step_id, timeout, f"a call of model '{self.name}'"):
                return await self._try()

        response = await retrying(attempt, self.model, retry, timeout, self.request.more)
        # As it came: no field more, and under the names that it has in JSON.
        dumped = whole(_response.dump_python(response, mode="json", by_alias=True, exclude_unset=True, warnings=False))
        # What can't be read again must not be on record: the step could never go on.
        self.request.messages(_built(dumped))
        return {
            "model": names[-1] if names else self.name,
            "response": dumped,
            "seconds": round(time.perf_counter() - started, 6),
            "cost": prices.cost(_priced(self.name, self.model), response.usage, _api_url(self.model)),
        }

    async def _try(self) -> ModelResponse:
        if self._told:
            # The deltas so far belong to a try that broke off.
            self.step.events.publish("call.restarted", self.position, kind=KIND)
            self._told = False
        self._tries += 1
        if self._streams:
            try:
                return await assembled(lambda: self.request.streamed(self.model), self._on_event)
            except NoStreamError:
                self._streams = False
        return await self.request.whole(self.model)

    def _on_event(self, event: TResponseStreamEvent) -> None:
        if event.type in DELTAS:
            self._told = True
            data = {"index": event.output_index} if DELTAS[event.type] == "tool_call.delta" else {}  # type: ignore[union-attr]
            self.step.events.publish(DELTAS[event.type], self.position, delta=event.delta, **data)  # type: ignore[union-attr]
        # Who reads the SDK's events can't be told that some are void: of a second try, only the end is passed on.
        if self.forward is not None and self._tries == 1:
            self.forward(event)


def _record(position: str, request: ModelRequest, result: dict[str, Any], response: ModelResponse) -> CallRecord:
    usage = response.usage
    counts = {
        "requests": usage.requests,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    return CallRecord(
        position, "model", result["model"], result["seconds"], counts, result["cost"], forced=request.forced
    )


def _tell_finished(step: DurableStep, begin: Begin, record: CallRecord) -> None:
    facts = {"seconds": record.seconds, "usage": record.usage, "cost": record.cost, "replayed": False}
    step.events.publish("call.finished", record.position, kind=KIND, name=begin.name, **facts)


def _built(dumped: dict[str, Any]) -> ModelResponse:
    """A response from its JSON, as the provider's client builds it: what it lacks, or has anew, is no error."""
    items = [construct_type(type_=TResponseOutputItem, value=item) for item in dumped["output"]]
    response = _response.validate_python({**dumped, "output": []})
    response.output = items  # type: ignore[assignment]
    return response


def _note_positions(run: Run, position: str, response: ModelResponse) -> None:
    """A tool's call comes with its id alone; where it stands in the response is known here."""
    calls = [(item, _CALLS[item.type]) for item in response.output if getattr(item, "type", None) in _CALLS]
    run.positions.update({getattr(item, name): f"{position}/{index}" for index, (item, name) in enumerate(calls)})


def _priced(name: str, model: Model) -> str:
    """A model given as an object is known by its class; what it asks for is its own field."""
    asked = getattr(model, "model", None)
    return asked if isinstance(asked, str) and name == type(model).__name__ else name


def _api_url(model: Model) -> str | None:
    url = getattr(getattr(model, "_client", None), "base_url", None)
    return None if url is None else str(url)


def _in_words(error: Exception, model: str) -> Exception:
    """A server's refusal in its own words, instead of the client's dump of the response."""
    if isinstance(error, openai.APIConnectionError):
        return TimestepError(f"No model server answers at '{error.request.url}': {error.__cause__ or error}")
    if isinstance(error, openai.APIError):
        body = error.body if isinstance(error.body, dict) else {}
        return TimestepError(str(body.get("message") or error.message))
    if isinstance(error, ModelTimeoutError):
        return TimestepError(f"Model '{model}' did not answer within {error.timeout_seconds:g} s. Raise model_timeout.")
    return error
