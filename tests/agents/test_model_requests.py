"""What the record and the trace say of a model's request: all that was asked, and no secret."""

import json
from typing import Any

import pytest
from agents import Agent, CodeInterpreterTool, HostedMCPTool, ModelSettings

from tests.agents.durably import MemoryAttempts, Told, new_step, run
from tests.scripted import PlannedModel
from timestep.errors import UnitChangedError


def hosted(token: str, label: str = "files") -> Agent[Any]:
    """An agent whose provider calls tools for it, which has a credential wherever one may stand."""
    server: Any = {
        "type": "mcp",
        "server_label": label,
        "server_url": f"https://user:{token}@mcp.test/sse?key={token}",
        "authorization": token,
        "headers": {"X-Key": token},
    }
    secret = {"domain": "shop.test", "name": "KEY", "value": token}
    policy = {"type": "allowlist", "allowed_domains": ["shop.test"], "domain_secrets": [secret]}
    container: Any = {"type": "code_interpreter", "container": {"type": "auto", "network_policy": policy}}
    return Agent(
        name="a",
        model=PlannedModel(["done"]),
        tools=[HostedMCPTool(server), CodeInterpreterTool(container)],
        model_settings=ModelSettings(extra_headers={"X-Key": token}),
    )


async def test_credentials_of_hosted_tools_are_not_in_the_trace() -> None:
    step = new_step(await MemoryAttempts().open())
    await run(step, hosted("hunter2"))
    told = json.dumps(step.tools)
    assert "hunter2" not in told
    assert "https://mcp.test/sse" in told and "files" in told and "shop.test" in told


async def test_a_renewed_credential_is_no_change_and_another_server_is() -> None:
    attempts, told = MemoryAttempts(), Told()
    await run(new_step(await attempts.open()), hosted("first"))
    await run(new_step(await attempts.open(), attempt=2, events=told), hosted("second"))
    assert told.events == []
    with pytest.raises(UnitChangedError, match="tools"):
        await run(new_step(await attempts.open(), attempt=3), hosted("second", label="other"))
