"""Timestep: durable workflows for agents that think and learn. Names load on first use (PEP 562)."""

from importlib import import_module
from typing import Any

_HOMES = {
    "InferenceSettings": "timestep.agents.types",
    "Mode": "timestep.agents.types",
    "StepOutput": "timestep.agents.types",
    "TrainingOutcome": "timestep.agents.types",
    "TrainingSettings": "timestep.agents.types",
    "StepContext": "timestep.agents.tools",
    "default_tools": "timestep.agents.tools",
    "run_agent": "timestep.agents.run_agent",
    "consume_result": "timestep.agents.run_agent",
    "RunStateStore": "timestep.agents.run_state",
    "MultiModelProvider": "timestep.models.providers",
    "MultiModelProviderMap": "timestep.models.providers",
    "OllamaModel": "timestep.models.ollama",
    "OllamaModelProvider": "timestep.models.ollama",
    "ask_user": "timestep.agents.ask",
    "idempotent": "timestep.agents.durable.declarations",
    "once": "timestep.agents.durable.declarations",
    "Settings": "timestep.settings",
    "InterruptionException": "timestep.errors",
    "TimestepError": "timestep.errors",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'timestep' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
