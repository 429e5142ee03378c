"""The SDK's runner within a step: every run, whoever starts it, is a run of recorded calls."""

from typing import Any

from agents import Agent, RunConfig, RunResult, RunResultStreaming
from agents.run import AgentRunner, get_default_agent_runner, set_default_agent_runner
from agents.run_config import _coerce_run_config

from timestep.agents.durable.graph import Graph
from timestep.agents.durable.guardrails import scoped
from timestep.agents.durable.step import Run, present, scope


class DurableRunner(AgentRunner):
    """Outside a step it is the SDK's runner as it is."""

    async def run(self, starting_agent: Agent[Any], input: Any, **kwargs: Any) -> RunResult:
        here = scope.get()
        if here is None:
            return await super().run(starting_agent, input, **kwargs)
        return await self.run_as(here.start(starting_agent, input), starting_agent, input, **kwargs)

    def run_streamed(self, starting_agent: Agent[Any], input: Any, **kwargs: Any) -> RunResultStreaming:
        here = scope.get()
        if here is None:
            return super().run_streamed(starting_agent, input, **kwargs)
        run = here.start(starting_agent, input)
        # The run goes on in a task that keeps the context it is started in.
        with run.entered():
            return super().run_streamed(self._clone(run, starting_agent, kwargs), input, **kwargs)

    async def run_as(self, run: Run, agent: Agent[Any], input: Any, **kwargs: Any) -> RunResult:
        """The SDK's run, as this run of a step."""
        with run.entered():
            return await super().run(self._clone(run, agent, kwargs), input, **kwargs)

    def _clone(self, run: Run, agent: Agent[Any], kwargs: dict[str, Any]) -> Agent[Any]:
        """The agent's clone for this run; takes the run's configuration out of ``kwargs`` and puts its own there."""
        given = kwargs.get("run_config")
        config = run.configure(RunConfig(tracing_disabled=True) if given is None else _coerce_run_config(given))
        names: list[str] = []
        # Set, since each copy has the SDK work out its types anew, a millisecond.
        config.input_guardrails = scoped(config.input_guardrails, _of_run, names)
        config.output_guardrails = scoped(config.output_guardrails, _of_run, names)
        kwargs["run_config"] = config
        run.graph = run.graph or Graph(run)
        return run.graph.clone(agent)


def _of_run(*_: Any) -> str:
    """Where the guardrails of a run's configuration stand; runs within it inherit them."""
    return f"{present().path}run"


def runner() -> DurableRunner:
    """The process's runner, which from now on the SDK uses for the runs that agents-as-tools start."""
    installed = get_default_agent_runner()
    if isinstance(installed, DurableRunner):
        return installed
    durable = DurableRunner()
    set_default_agent_runner(durable)
    return durable
