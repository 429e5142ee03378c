"""The public face: few names, all of them there, and cheap to import."""

import subprocess
import sys

import timestep


def test_public_names() -> None:
    assert timestep.__all__ == [
        "InferenceSettings",
        "InterruptionException",
        "Mode",
        "MultiModelProvider",
        "MultiModelProviderMap",
        "OllamaModel",
        "OllamaModelProvider",
        "RunStateStore",
        "Settings",
        "StepContext",
        "StepOutput",
        "TimestepError",
        "TrainingOutcome",
        "TrainingSettings",
        "ask_user",
        "consume_result",
        "default_tools",
        "idempotent",
        "once",
        "run_agent",
    ]
    assert len(timestep.__all__) <= 20
    assert all(getattr(timestep, name) is not None for name in timestep.__all__)


def test_importing_timestep_or_its_errors_pulls_in_no_roof() -> None:
    roof = ("prefect", "agents", "llama_cpp")
    code = f"import sys, timestep, timestep.errors; print([m for m in {roof} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_library_runs_without_the_service() -> None:
    """No Prefect and no llama.cpp is imported for a run."""
    code = "import sys; from timestep import run_agent, consume_result, RunStateStore, OllamaModelProvider, once"
    code += "; print([m for m in ('prefect', 'llama_cpp', 'fastapi', 'controlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
