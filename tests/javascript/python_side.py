"""The Python SDK's half of what runner.mjs does: the same descriptions of agents, the same answers."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
from agents import (
    Agent,
    FunctionTool,
    GuardrailFunctionOutput,
    InputGuardrail,
    Model,
    ModelResponse,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    RunState,
    Usage,
    handoff,
)
from openai import AsyncOpenAI
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails
from pydantic import TypeAdapter

Description = dict[str, dict[str, Any]]
State = RunState[Any, Agent[Any]]


class PlannedModel(Model):
    """Answers with the first planned turn that has a call without a result in the input."""

    def __init__(self, name: str, plan: list[Any], log: dict[str, list[Any]]) -> None:
        self.name, self.plan, self.log = name, plan, log

    async def get_response(self, system_instructions: Any, input: Any, *_: Any, **named: Any) -> ModelResponse:
        items = [{"role": "user", "content": input}] if isinstance(input, str) else input
        seen = {"agent": self.name, "input": json.loads(json.dumps(items)), "conversation": named["conversation_id"]}
        self.log["models"].append(seen)
        done = {item["call_id"] for item in items if item.get("type") == "function_call_output"}
        turn = next(
            t for t in self.plan if isinstance(t, str) or any(i.get("call", None) not in {None, *done} for i in t)
        )
        usage = Usage(
            1,
            10,
            InputTokensDetails(cached_tokens=4, cache_write_tokens=0),
            5,
            OutputTokensDetails(reasoning_tokens=2),
            15,
        )
        return ModelResponse(output=answer(turn, self.name), usage=usage, response_id=f"resp_{len(self.log['models'])}")

    def stream_response(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        raise NotImplementedError


def wire_model(log: dict[str, list[Any]], api: str, bodies: list[Any]) -> Model:
    """OpenAI's own model over a connection that ends here: it answers with these bodies, and what it sent is kept."""

    def keep(request: httpx.Request) -> httpx.Response:
        log["requests"].append(json.loads(request.content))
        return httpx.Response(200, json=bodies[len(log["requests"]) - 1])

    client = AsyncOpenAI(api_key="none", http_client=httpx.AsyncClient(transport=httpx.MockTransport(keep)))
    return OpenAIChatCompletionsModel("m", client) if api == "chat" else OpenAIResponsesModel("m", client)


def answer(turn: Any, agent: str) -> list[Any]:
    if isinstance(turn, str):
        text = ResponseOutputText(text=turn, type="output_text", annotations=[])
        return [
            ResponseOutputMessage(
                id=f"msg_{agent}", content=[text], role="assistant", status="completed", type="message"
            )
        ]
    return [
        ResponseFunctionToolCall(
            id=f"fc_{item['call']}",
            call_id=item["call"],
            name=item["name"],
            arguments=item["arguments"],
            status="completed",
            type="function_call",
        )
        if item.get("call")
        else output_item(item["python"])
        for item in turn
    ]


def output_item(item: dict[str, Any]) -> Any:
    from openai.types.responses import ResponseOutputItem

    return TypeAdapter(ResponseOutputItem).validate_python(item)


class PythonSide:
    """Builds the described agents, and keeps what their models were sent and which tools ran."""

    def __init__(self, description: Description) -> None:
        self.description = description
        self.log: dict[str, list[Any]] = {"models": [], "requests": [], "ran": [], "guardrails": []}
        self.agents: dict[str, Agent[Any]] = {}
        self.agent = self.make(next(iter(description)))

    def make(self, name: str) -> Agent[Any]:
        if name in self.agents:
            return self.agents[name]
        spec = self.description[name]
        model = (
            wire_model(self.log, **spec["plan"])
            if "api" in spec["plan"]
            else PlannedModel(name, spec["plan"], self.log)
        )
        agent: Agent[Any] = Agent(name=name, instructions=f"You are {name}.", model=model)
        self.agents[name] = agent
        agent.tools = [self.tool(tool) for tool in spec.get("tools", [])]
        agent.tools += [
            self.make(other).as_tool(tool_name=f"ask_{other}", tool_description=other)
            for other in spec.get("delegates", [])
        ]
        agent.handoffs = [
            handoff(self.make(other), tool_name_override=f"transfer_to_{other}") for other in spec.get("handoffs", [])
        ]
        agent.input_guardrails = [self.guardrail(guardrail) for guardrail in spec.get("guardrails", [])]
        return agent

    def tool(self, spec: dict[str, Any]) -> FunctionTool:
        async def invoke(context: Any, arguments: str) -> str:
            values = (json.loads(arguments), context.context)
            line = " ".join([spec["name"], *(json.dumps(v, separators=(",", ":"), ensure_ascii=False) for v in values)])
            self.log["ran"].append(line)
            return line

        schema: dict[str, Any] = {"type": "object", "properties": {}, "required": [], "additionalProperties": True}
        return FunctionTool(
            name=spec["name"],
            description=spec["name"],
            params_json_schema=schema,
            on_invoke_tool=invoke,
            strict_json_schema=False,
            needs_approval=spec.get("approval", False),
        )

    def guardrail(self, name: str) -> InputGuardrail[Any]:
        def look(*_: Any) -> GuardrailFunctionOutput:
            self.log["guardrails"].append(name)
            return GuardrailFunctionOutput(output_info={"looked_at": name}, tripwire_triggered=False)

        return InputGuardrail(guardrail_function=look, name=name)

    async def run(self, input: Any, context: Any = None, conversation: str | None = None) -> Any:
        """Runs until it ends or waits. The result has to_state() and final_output."""
        config = RunConfig(workflow_name="desk work", group_id="group-1", trace_metadata={"tenant_id": "t1"})
        return await Runner.run(self.agent, input, context=context, run_config=config, conversation_id=conversation)


def decide(state: State, decisions: list[dict[str, Any]]) -> None:
    for decision in decisions:
        item = next(item for item in state.get_interruptions() if item.call_id == decision["call"])
        if decision["approve"]:
            state.approve(item, always_approve=decision.get("always", False))
        else:
            state.reject(item, always_reject=decision.get("always", False), rejection_message=decision.get("message"))
