"""/v1/fine_tuning/jobs: a job is a run of the ``step`` flow in training mode, and what is said of it a view of that."""

from timestep.server.fine_tuning.jobs import router

__all__ = ["router"]
