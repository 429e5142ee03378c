"""The durable runtime: an Agents SDK run whose every model and tool call is one recorded unit.

It works from the outside. The agent graph is cloned with its models and tools wrapped, and an ``AgentRunner`` does
the same for the runs that tools start. Started again, the run goes from the top, and what it did is answered from
the ledger; so it goes on after a crash, and after people have decided.
"""

from typing import Any

from agents import Agent, ModelSettings, RunConfig, RunResult, RunState, UserError
from agents.items import TResponseInputItem

from timestep.agents.durable.declarations import idempotent, once
from timestep.agents.durable.guardrails import REFUSALS, refusal
from timestep.agents.durable.interruptions import decided
from timestep.agents.durable.mcp import connected
from timestep.agents.durable.runner import runner
from timestep.agents.durable.step import CallPolicy, CallRecord, DurableStep, ResolveModel, Run, Stop
from timestep.errors import TimestepError

__all__ = ["CallPolicy", "CallRecord", "DurableStep", "ResolveModel", "idempotent", "once", "run_durably"]


async def run_durably(
    step: DurableStep,
    agent: Agent[Any],
    input: str | list[TResponseInputItem],
    *,
    context: Any,
    max_turns: int,
    settings: ModelSettings,
) -> RunResult:
    """Run an agent to its final output; each call is a unit of ``step``.

    Where calls wait for people, ``step.decide`` is asked, and the run goes on with what it answers.

    Raises:
        UnitChangedError: the step is started again, and asks something else than before.
        TimestepError: a model that refused, a guardrail that did, a call that was decided to fail. Other errors of the
            SDK come as they are.
    """
    root = step.runs[""] = Run(step)
    # One group, so that a provider's prompt cache knows the step's calls as belonging together.
    config = RunConfig(model_settings=settings, tracing_disabled=True, group_id=step.step_id)
    todo: str | list[TResponseInputItem] | RunState[Any] = input
    try:
        async with connected(agent):
            while True:
                result = await runner().run_as(
                    root, agent, todo, context=context, max_turns=max_turns, run_config=config
                )
                if not result.interruptions:
                    return result
                todo = await decided(step, result)
    except Stop as stop:
        raise stop.error from stop.error.__cause__
    except UserError as error:
        # The SDK's words around an error of ours, such as one of storage within a tool.
        if isinstance(error.__cause__, TimestepError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, REFUSALS):
            raise refusal(error.__cause__) from error.__cause__
        raise
    except REFUSALS as error:
        raise refusal(error) from error
