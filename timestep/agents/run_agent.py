"""An agent's run as a library: the SDK's runner with our providers. Needs no service; nothing here is recorded.

A run that must survive its process is a step (``timestep run``); one that waits for a person can be put aside with a
:class:`timestep.agents.run_state.RunStateStore`.
"""

import dataclasses
from typing import Any, Literal, TypeVar

from agents import (
    Agent,
    ModelProvider,
    MultiProvider,
    RunConfig,
    Runner,
    RunResult,
    RunResultStreaming,
    RunState,
    TResponseInputItem,
)
from agents.memory import Session
from agents.result import RunResultBase
from agents.run_config import _coerce_run_config

from timestep.errors import InterruptionException, UsageError
from timestep.models.providers import MultiModelProvider

OnInterruption = Literal["return", "raise"]
Result = TypeVar("Result", RunResult, RunResultStreaming)

# Where a streamed result keeps the caller's wish until it is consumed.
_WISH = "_timestep_on_interruption"


async def run_agent(
    agent: Agent[Any],
    input_items: str | list[TResponseInputItem] | RunState[Any, Any],
    session: Session | None = None,
    stream: bool = False,
    *,
    model_provider: ModelProvider | None = None,
    run_config: RunConfig | dict[str, Any] | None = None,
    on_interruption: OnInterruption = "return",
    **options: Any,
) -> RunResult | RunResultStreaming:
    """Run an agent to its final output, or to where it waits for approvals.

    Args:
        agent: Where the run starts; of a state, the same agent that it was saved with.
        input_items: Text, OpenAI-style input items, or the RunState of a run to go on from.
        session: The SDK's session that holds the conversation, such as a ``SQLAlchemySession``.
        stream: Return at once; the events are in ``result.stream_events()``.
        model_provider: Finds models by name; default: ``MultiModelProvider()``, or that of ``run_config``.
        run_config: The SDK's, or a dictionary of its fields. A plain ``MultiProvider`` in it learns our prefixes.
        on_interruption: ``return``: waiting calls are in ``result.interruptions``. ``raise``:
            InterruptionException, of a stream when it is consumed.
        options: As of the SDK's ``Runner.run``: ``context``, ``max_turns`` (10), ``hooks``, ``error_handlers``, …

    Returns:
        The SDK's RunResult, or RunResultStreaming. A run that waits goes on with ``result.to_state()``.

    Raises:
        NotFoundError: a model whose prefix is not known.
        UsageError: nothing to run on, or a model whose key or package is missing.
        InterruptionException: see ``on_interruption``.
        agents.AgentsException: as the SDK raises them: MaxTurnsExceeded, a guardrail that was tripped, …
    """
    if on_interruption not in ("return", "raise"):
        raise UsageError(f"on_interruption is '{on_interruption}', which is neither 'return' nor 'raise'.")
    if not isinstance(input_items, RunState) and not input_items and session is None:
        raise UsageError("There is nothing to run on. Say what the agent should do.")
    config = _configured(run_config, model_provider)
    if stream:
        streaming = Runner.run_streamed(agent, input_items, session=session, run_config=config, **options)
        setattr(streaming, _WISH, on_interruption)
        return streaming
    result = await Runner.run(agent, input_items, session=session, run_config=config, **options)
    return _checked(result, on_interruption)


async def consume_result(result: Result, on_interruption: OnInterruption | None = None) -> Result:
    """The finished result; a stream is read to its end. Safe to repeat.

    ``on_interruption`` is by default what :func:`run_agent` was told.

    Raises:
        InterruptionException: the run waits for approvals, and the caller wants it raised.
        agents.AgentsException: what ended the stream.
    """
    if isinstance(result, RunResultStreaming):
        async for _ in result.stream_events():
            pass
        # A run that failed before its first event says so nowhere else.
        if result.run_loop_exception is not None:
            raise result.run_loop_exception
    wish: Any = on_interruption or getattr(result, _WISH, "return")
    return _checked(result, wish)


def _checked(result: Result, on_interruption: OnInterruption) -> Result:
    assert isinstance(result, RunResultBase)
    if on_interruption == "raise" and result.interruptions:
        raise InterruptionException(result.interruptions, result.to_state())
    return result


def _configured(given: RunConfig | dict[str, Any] | None, provider: ModelProvider | None) -> RunConfig:
    if given is None:
        return RunConfig(model_provider=provider or MultiModelProvider())
    config = _coerce_run_config(given)
    if provider is None and type(config.model_provider) is MultiProvider:
        provider = _with_our_prefixes(config.model_provider)
    return config if provider is None else dataclasses.replace(config, model_provider=provider)


def _with_our_prefixes(provider: MultiProvider) -> MultiModelProvider:
    """A copy: the provider's own options and prefixes stay, and go before ours."""
    ours = MultiModelProvider(provider_map=provider.provider_map)
    known = ours.provider_map
    vars(ours).update(vars(provider))
    ours.provider_map = known
    return ours
