"""The public face: few names, all of them there, and cheap to import."""

import subprocess
import sys

import timestep


def test_public_names() -> None:
    assert timestep.__all__ == [
        "InferenceSettings",
        "Mode",
        "Settings",
        "StepContext",
        "StepOutput",
        "TimestepError",
        "TrainingOutcome",
        "TrainingSettings",
        "default_tools",
    ]
    assert all(getattr(timestep, name) is not None for name in timestep.__all__)


def test_importing_timestep_or_its_errors_pulls_in_no_roof() -> None:
    roof = ("prefect", "agents", "llama_cpp")
    code = f"import sys, timestep, timestep.errors; print([m for m in {roof} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
