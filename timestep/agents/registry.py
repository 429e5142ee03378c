"""Which agents there are: the default one and every Agents SDK ``Agent`` in the agents files, by name."""

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from agents import Agent

from timestep.agents.assistant import assistant
from timestep.errors import AgentFileError, ConflictError, NotFoundError
from timestep.models.files import BUILT_IN
from timestep.models.routing import PREFIX, is_file
from timestep.settings import Settings


class AgentRegistry:
    """Agents by name, and for each the base model that it serves and learns on."""

    def __init__(self, agents: dict[str, Agent[Any]], default_base: str) -> None:
        self._agents = agents
        self._default_base = default_base

    def names(self) -> list[str]:
        """Names of all agents, sorted."""
        return sorted(self._agents)

    def get(self, name: str) -> Agent[Any]:
        """The agent of that name.

        Raises:
            NotFoundError: no such agent; the message names the nearest.
        """
        if name not in self._agents:
            raise NotFoundError("agent", name, self._agents)
        return self._agents[name]

    def base(self, name: str) -> str | None:
        """Base model of the agent's own local model, or None where it has none of its own.

        An agent that names no model, or ``local``, is on the service's base model; one that names a built-in
        model, a GGUF file or its URL (``local/`` before it or not) is on that. None where the model is a
        provider's, or another agent's.
        """
        model = self.get(name).model
        if model is None or model in ("local", f"{PREFIX}{name}"):
            return self._default_base
        if not isinstance(model, str):
            return None
        bare = model.removeprefix(PREFIX)
        return bare if bare in (self._default_base, *BUILT_IN) or is_file(bare) else None


def load_registry(settings: Settings) -> AgentRegistry:
    """The registry of the default agent and of every agents file in the settings.

    Raises:
        AgentFileError: a file that is absent or does not import, with its line.
        ConflictError: two files that define one name.
    """
    found: dict[str, Agent[Any]] = {"assistant": assistant()}
    origin: dict[str, Path | None] = {"assistant": None}
    for path in settings.agents:
        for agent in load_agents(path):
            if origin.get(agent.name) is not None:
                raise ConflictError(f"Two agents are named '{agent.name}': in '{origin[agent.name]}' and in '{path}'.")
            if isinstance(agent.model, str) and agent.model.endswith(".gguf") and "://" not in agent.model:
                # Beside the agents file, wherever the flow run that loads it works.
                agent.model = str((path.absolute().parent / Path(agent.model).expanduser()).resolve())
            found[agent.name] = agent
            origin[agent.name] = path
    return AgentRegistry(found, settings.model)


def load_agents(path: Path) -> list[Agent[Any]]:
    """Every ``Agent`` at the top level of a Python file, each once."""
    module = _import(path)
    agents = {id(value): value for value in vars(module).values() if isinstance(value, Agent)}
    if not agents:
        raise AgentFileError(path, "it defines no agent. Assign an agents.Agent to a name at its top level.")
    for agent in agents.values():
        if not agent.name or "/" in agent.name or "@" in agent.name:
            raise AgentFileError(path, f"agent name '{agent.name}' can't be used; leave out '/' and '@'.")
    return list(agents.values())


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
