"""Steps for every door: what one is doing, what it asks of people, and what they can do about it."""

from timestep.agents.record.step_view import CallDecision, StepStatus, StepView
from timestep.steps.control import cancel, resume
from timestep.steps.decisions import decide, go_on, sweep
from timestep.steps.lists import Wanted, listed
from timestep.steps.traces import EndedTraces
from timestep.steps.views import ended, find, read, view

__all__ = [
    "CallDecision",
    "EndedTraces",
    "StepStatus",
    "StepView",
    "Wanted",
    "cancel",
    "decide",
    "ended",
    "find",
    "go_on",
    "listed",
    "read",
    "resume",
    "sweep",
    "view",
]
