"""One step in progress: what it was given, what was called so far, and where in it the present call stands.

A unit's position is the path of runs above it, the agent, the count of model calls in its run, and for a tool the
index of its call within the model's response: never the order of arrival, so that parallel calls keep theirs.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from agents import Agent, Model, ModelRetrySettings, ModelSettings, RunConfig, RunState

from timestep.agents.durable.retries import DEFAULT_RETRY
from timestep.agents.record.events import Events, NoEvents
from timestep.agents.record.ledger import Ledger, MemoryLedger
from timestep.agents.record.units import fingerprint
from timestep.agents.record.waiting import Decide, Decision, Kind, PendingCall
from timestep.agents.types import InferenceSettings, Usage
from timestep.errors import TimestepError, UsageError

if TYPE_CHECKING:
    from timestep.agents.durable.graph import Graph

ResolveModel = Callable[[Agent[Any]], tuple[str, Model]]


class Stop(BaseException):
    """The step can't go on, for a reason of ours. No Exception: the SDK tells those of a tool to the model."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass
class CallRecord:
    """What the trace says of one unit: ``seconds`` as it took when it was executed, ``cost`` in USD, None unknown."""

    position: str
    kind: str
    name: str
    seconds: float = 0.0
    usage: dict[str, int] | None = None
    cost: float | None = None
    forced: bool = False


@dataclass(frozen=True)
class CallPolicy:
    """How calls are made: timeouts in seconds of one attempt (None: no end), live streams, retries of model calls.

    What an agent's author set for the agent or the tool wins.
    """

    model_timeout: float | None = None
    tool_timeout: float | None = None
    stream: bool = True
    retry: ModelRetrySettings = field(default_factory=lambda: DEFAULT_RETRY)

    @classmethod
    def of(cls, inference: InferenceSettings) -> "CallPolicy":
        """The policy that a step's settings ask for."""
        return cls(
            inference.model_timeout,
            inference.tool_timeout,
            inference.stream,
            replace(DEFAULT_RETRY, max_retries=inference.model_retries),
        )


async def nobody(calls: list[PendingCall]) -> dict[str, Decision]:
    """Decides nothing: for runs that no person attends."""
    names = ", ".join(f"'{call.tool}'" for call in calls)
    raise TimestepError(f"Calls of {names} wait for a person's decision, and nobody was named who could give it.")


@dataclass
class DurableStep:
    """One step in progress. ``decisions`` are those on calls that a crash cut in the middle, by position."""

    step_id: str
    resolve: ResolveModel
    ledger: Ledger = field(default_factory=MemoryLedger)
    events: Events = field(default_factory=NoEvents)
    decide: Decide = nobody
    policy: CallPolicy = field(default_factory=CallPolicy)
    attempt: int = 1
    decisions: dict[str, Decision] = field(default_factory=dict)
    calls: list[CallRecord] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    # Runs by path: one that stopped for a person goes on with its own count of turns and its own clones.
    runs: dict[str, "Run"] = field(default_factory=dict)
    # What people decided in this step: of calls by position, and for the rest of the step by agent and tool.
    granted: dict[str, tuple[Kind, Decision]] = field(default_factory=dict)
    always: dict[tuple[str, str], Decision] = field(default_factory=dict)

    def note(self, record: CallRecord) -> None:
        """Put a call into the trace; the same one again, of a tool that was tried again, counts once."""
        for index, call in enumerate(self.calls):
            if call.position == record.position:
                self.calls[index] = record
                return
        self.calls.append(record)

    def below(self, position: str) -> list[CallRecord]:
        """Calls made within the call at that position, other than by its guardrails."""
        inside, guardrails = f"{position}/", f"{position}/guardrail:"
        return [c for c in self.calls if c.position.startswith(inside) and not c.position.startswith(guardrails)]

    def usage(self) -> Usage:
        """Tokens and cost of every model call of the step, those within tools and guardrails included."""
        total = Usage()
        for call in (call for call in self.calls if call.usage is not None):
            for name, count in (call.usage or {}).items():
                setattr(total, name, getattr(total, name) + count)
            total.cost = None if total.cost is None or call.cost is None else total.cost + call.cost
        return total


@dataclass(frozen=True)
class Limits:
    """Retries and timeout that an author set in ``ModelSettings``: ours to keep, the SDK's loop must not see them."""

    retry: ModelRetrySettings | None = None
    timeout: float | None = None

    @classmethod
    def taken_from(cls, settings: ModelSettings) -> tuple["Limits", ModelSettings]:
        """The limits, and the settings without them."""
        return cls(settings.retry, settings.timeout), replace(settings, retry=None, timeout=None)

    def over(self, other: "Limits") -> "Limits":
        """These where they are set, the other's elsewhere."""
        return Limits(self.retry or other.retry, self.timeout or other.timeout)


@dataclass
class Run:
    """One SDK run within a step: the root, or one started by a tool, a guardrail or a hook."""

    step: DurableStep
    path: str = ""
    turn: int = 0
    limits: Limits = field(default_factory=Limits)
    model: str | Model | None = None
    positions: dict[str, str] = field(default_factory=dict)  # of tool calls, by their ids
    unattended: set[str] = field(default_factory=set)  # ids of calls that a tool's policy let pass without approval
    graph: "Graph | None" = None

    def __post_init__(self) -> None:
        # One for the whole run: it is entered again after people have decided, and must not count anew then.
        self.hooks = Scope(self.step, f"{self.path}hook/")

    def at(self, agent: str, turn: int) -> str:
        """Position of a model call of that agent."""
        return f"{self.path}{part(agent)}/{turn}"

    def configure(self, config: RunConfig) -> RunConfig:
        """A copy of the configuration without what would go around the recorded calls: kept here instead."""
        if config.model is not None:
            self.model = config.model
        settings = config.model_settings
        if settings is not None:
            limits, settings = Limits.taken_from(settings)
            self.limits = limits.over(self.limits)
        return replace(config, model=None, model_settings=settings)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Within, model and tool calls belong to this run; runs that hooks start are below it."""
        token = current.set(self)
        try:
            with self.hooks.entered():
                yield
        finally:
            current.reset(token)


@dataclass
class Scope:
    """A place within a step where runs may start.

    A run there goes by its agent and what it is asked: several may start at the same time, and which comes first is
    chance. Only those that are equal are counted. ``plain`` is the place of an agent as a tool, whose run is the only
    one and has the place's own path.
    """

    step: DurableStep
    path: str
    plain: bool = False
    runs: Counter[str] = field(default_factory=Counter)

    def start(self, agent: Agent[Any], input: Any) -> Run:
        """The run of that agent on that input; of a RunState, the run that it is the state of.

        Raises:
            Stop: a state of no run of this step.
        """
        if isinstance(input, RunState):
            return self._stopped(agent, input)
        key = "" if self.plain else f"#{fingerprint([agent.name, input])[:12]}/"
        self.runs[key] += 1
        path = f"{self.path}{key}" if self.runs[key] == 1 else f"{self.path}{key}#{self.runs[key]}/"
        above = current.get()
        self.step.runs[path] = Run(self.step, path, limits=above.limits if above else Limits())
        return self.step.runs[path]

    def _stopped(self, agent: Agent[Any], state: RunState[Any]) -> Run:
        """The run that came to this state. Its clones are in it: with other agents the calls would go unrecorded."""
        for run in self.step.runs.values():
            if run.graph is not None and run.graph.holds(state._current_agent):
                return run
        raise Stop(
            UsageError(
                f"A run of agent '{agent.name}' can't go on in step '{self.step.step_id}' from a state of elsewhere, "
                "or one that was JSON in between: its calls are not on record. Go on from 'result.to_state()' itself."
            )
        )

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Within, runs start here."""
        token = scope.set(self)
        try:
            yield
        finally:
            scope.reset(token)


current: ContextVar[Run | None] = ContextVar("durable_run", default=None)
scope: ContextVar[Scope | None] = ContextVar("durable_scope", default=None)


def present() -> Run:
    """The run that the present call belongs to."""
    run = current.get()
    assert run is not None, "a durable call is only made within run_durably"
    return run


def part(name: str) -> str:
    """A name as one part of a position: what separates the parts is spelled out."""
    return name.replace("%", "%25").replace("/", "%2F").replace("#", "%23")
