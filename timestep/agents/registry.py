"""Which agents there are, by name: the default one, and in the agents files every Agents SDK ``Agent`` and every
ControlFlow agent, task and flow.

ControlFlow is imported only by an agents file that does so itself.
"""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from agents import Agent

from timestep.agents.assistant import assistant
from timestep.errors import AgentFileError, ConflictError, NotFoundError, UsageError
from timestep.models.files import BUILT_IN, model_name
from timestep.models.routing import PREFIX, is_file
from timestep.settings import Settings

_CONTROLFLOW = "controlflow"
_RUNTIME = "timestep.agents.controlflow"


@dataclass
class Orchestrated:
    """What ControlFlow runs: an agent, a task or a flow (``kind``), which :mod:`timestep.agents.controlflow` knows."""

    name: str
    kind: str
    what: Any

    @property
    def model(self) -> Any:
        """The agent's own model; None where it names none, and for a task or flow, whose agents have theirs."""
        return self.what.model if self.kind == "agent" else None

    @model.setter
    def model(self, model: str) -> None:
        self.what.model = model


Registered = Agent[Any] | Orchestrated
Maker = Callable[[], Registered]  # of an agent that is made when it is asked for

ASSISTANT = "assistant"


class AgentRegistry:
    """Agents by name, and for each the base model that it serves and learns on."""

    def __init__(self, agents: Mapping[str, Registered | Maker], default_base: str, default: str = ASSISTANT) -> None:
        self._agents = dict(agents)
        self._default_base = default_base
        self.default = default  # the agent of those who name none, such as clients of the Agent Protocol

    def names(self) -> list[str]:
        """Names of all agents, sorted."""
        return sorted(self._agents)

    def get(self, name: str) -> Agent[Any]:
        """The Agents SDK's agent of that name.

        Raises:
            NotFoundError: no such agent; the message names the nearest.
            UsageError: it is ControlFlow's.
        """
        agent = self._find(name)
        if isinstance(agent, Orchestrated):
            raise UsageError(f"'{name}' is a ControlFlow {agent.kind}, not an agent of the Agents SDK.")
        return agent

    def orchestrated(self, name: str) -> Orchestrated | None:
        """ControlFlow's agent, task or flow of that name; None where it is the Agents SDK's. NotFoundError."""
        agent = self._find(name)
        return agent if isinstance(agent, Orchestrated) else None

    def base(self, name: str) -> str | None:
        """Base model of the agent's own local model, or None where it has none of its own.

        An agent that names no model, or ``local``, is on the service's base model; one that names a built-in
        model, a GGUF file or its URL (``local/`` before it or not) is on that. None where the model is a
        provider's, or another agent's.
        """
        agent = self._find(name)
        if isinstance(agent, Orchestrated) and agent.kind != "agent":
            return None
        model = agent.model
        if model is None or model in ("local", f"{PREFIX}{name}"):
            return self._default_base
        if not isinstance(model, str):
            return None
        bare = model.removeprefix(PREFIX)
        if bare == model_name(self._default_base):
            return self._default_base
        return bare if bare in (self._default_base, *BUILT_IN) or is_file(bare) else None

    def _find(self, name: str) -> Registered:
        if name not in self._agents:
            raise NotFoundError("agent", name, self._agents)
        agent = self._agents[name]
        if not isinstance(agent, Agent | Orchestrated):
            agent = self._agents[name] = agent()
        return agent


def load_registry(settings: Settings) -> AgentRegistry:
    """The registry of the built-in agent and of every agents file in the settings; the first of the first is default.

    Raises:
        AgentFileError: a file that is absent or does not import, with its line.
        ConflictError: two files that define one name.
    """
    found: dict[str, Registered | Maker] = {ASSISTANT: assistant}  # making its tools takes 7 ms
    origin: dict[str, Path | None] = {ASSISTANT: None}
    for path in settings.agents:
        for agent in load_agents(path):
            if origin.get(agent.name) is not None:
                raise ConflictError(f"Two agents are named '{agent.name}': in '{origin[agent.name]}' and in '{path}'.")
            if isinstance(agent.model, str) and agent.model.endswith(".gguf") and "://" not in agent.model:
                # Beside the agents file, wherever the flow run that loads it works.
                agent.model = str((path.absolute().parent / Path(agent.model).expanduser()).resolve())
            found[agent.name] = agent
            origin[agent.name] = path
    own = [name for name, path in origin.items() if path is not None]
    return AgentRegistry(found, settings.model, own[0] if own else ASSISTANT)


def load_agents(path: Path) -> list[Registered]:
    """Every agent, ControlFlow task and ControlFlow flow at the top level of a Python file, each once."""
    module = _import(path)
    agents: dict[int, Registered] = {id(value): value for value in vars(module).values() if isinstance(value, Agent)}
    if _CONTROLFLOW in sys.modules:
        found = importlib.import_module(_RUNTIME).find(vars(module))
        agents |= {id(what): Orchestrated(name, kind, what) for name, kind, what in found}
    if not agents:
        raise AgentFileError(path, "it defines no agent. Assign an agents.Agent to a name at its top level.")
    for agent in agents.values():
        if not agent.name or "/" in agent.name or "@" in agent.name:
            raise AgentFileError(path, f"agent name '{agent.name}' can't be used; leave out '/' and '@'.")
    return list(agents.values())


class _ControlFlowImport(MetaPathFinder, Loader):
    """Has ControlFlow imported by the room that runs it, which tames it, whoever asks for it first."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name == _CONTROLFLOW else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        sys.meta_path.remove(self)
        importlib.import_module(_RUNTIME)
        module = sys.modules[_CONTROLFLOW]
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


@contextmanager
def _controlflow_tamed() -> Iterator[None]:
    finder = _ControlFlowImport()
    if _CONTROLFLOW in sys.modules:
        importlib.import_module(_RUNTIME).begin_file()
    else:
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise AgentFileError(path, "no such file.")
    # The name is derived from the path: two files called agents.py must not be one module.
    name = f"timestep_agents_{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise AgentFileError(path, "not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _controlflow_tamed():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise AgentFileError(path, f"{type(error).__name__}: {error}", _line(error, path)) from error
    return module


def _line(error: BaseException, path: Path) -> int | None:
    """The last line of the file itself that the error passed through."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename) == path:
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return lines[-1] if lines else None
