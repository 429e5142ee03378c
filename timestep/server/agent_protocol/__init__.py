"""/ap/v1: the Agent Protocol (https://agentprotocol.ai, v1) on the service's default agent.

A task is a session, and each of its steps a flow run of ``step`` in it: what the agent remembers of a task is the
session's history, and steps that are executed while another runs take their turn behind it.
"""

from fastapi import APIRouter

from timestep.server.agent_protocol import artifacts, steps, tasks

router = APIRouter()
for part in (tasks, steps, artifacts):
    router.include_router(part.router)

__all__ = ["router"]
