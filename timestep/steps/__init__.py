"""Steps for every door: what one is doing, what it asks of people, and what they can do about it."""

from timestep.steps.control import cancel, resume
from timestep.steps.decisions import CallDecision, decide, go_on, sweep
from timestep.steps.traces import EndedTraces
from timestep.steps.views import StepStatus, StepView, ended, find, read, view

__all__ = [
    "CallDecision",
    "EndedTraces",
    "StepStatus",
    "StepView",
    "cancel",
    "decide",
    "ended",
    "find",
    "go_on",
    "read",
    "resume",
    "sweep",
    "view",
]
