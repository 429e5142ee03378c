"""LangChain's messages and models as the Agents SDK's, and back. Knows neither ControlFlow nor steps."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from agents import Model, ModelResponse, Tool, Usage
from agents.models.chatcmpl_converter import Converter
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, ToolMessage
from langchain_core.messages import ToolCall as LangChainToolCall
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

_ITEMS = "items"  # of a message that a response became: the response's own items


def as_message(response: ModelResponse) -> AIMessage:
    """A response as a message, which keeps the response's items to be sent as they were."""
    messages = [item for item in response.output if isinstance(item, ResponseOutputMessage)]
    texts = [part.text for item in messages for part in item.content if isinstance(part, ResponseOutputText)]
    return AIMessage(
        content="".join(texts),
        tool_calls=[as_call(item) for item in calls_of(response)],
        additional_kwargs={_ITEMS: response.to_input_items()},
    )


def calls_of(response: ModelResponse) -> list[ResponseFunctionToolCall]:
    """The response's calls of functions, in its order."""
    return [item for item in response.output if isinstance(item, ResponseFunctionToolCall)]


def as_call(call: ResponseFunctionToolCall) -> LangChainToolCall:
    """A call with its arguments as an object: empty, where the model wrote something else."""
    arguments: Any = None
    with suppress(ValueError):
        arguments = json.loads(call.arguments or "{}")
    return LangChainToolCall(
        name=call.name, args=arguments if isinstance(arguments, dict) else {}, id=call.call_id, type="tool_call"
    )


def as_items(messages: Sequence[BaseMessage]) -> list[Any]:
    """Messages as the SDK's input items."""
    items: list[Any] = []
    for message in messages:
        if isinstance(message, ToolMessage):
            output = {"type": "function_call_output", "call_id": message.tool_call_id, "output": str(message.content)}
            items.append(output)
        elif isinstance(message, AIMessage):
            items += message.additional_kwargs.get(_ITEMS) or [{"role": "assistant", "content": message.text}]
        else:
            role = "system" if isinstance(message, SystemMessage) else "user"
            items.append({"role": role, "content": message.text})
    return items


class LangChainModel(Model):
    """A model of LangChain; ``messages`` of its own kind, set before a call, are what it is sent."""

    def __init__(self, chat: BaseChatModel) -> None:
        self.chat = chat
        self.messages: list[BaseMessage] = []

    async def get_response(self, *_: Any, tools: Sequence[Tool] = (), **__: Any) -> ModelResponse:
        offered = [dict(Converter.tool_to_openai(tool)) for tool in tools]
        message = await (self.chat.bind_tools(offered) if offered else self.chat).ainvoke(self.messages)
        output: list[Any] = [_text_item(message.text)] if message.text else []
        for index, call in enumerate(message.tool_calls):
            arguments = json.dumps(call["args"])
            call_id = call["id"] or f"call_{index}"
            output.append(
                ResponseFunctionToolCall(call_id=call_id, name=call["name"], arguments=arguments, type="function_call")
            )
        used = message.usage_metadata
        usage = Usage(1, used["input_tokens"], output_tokens=used["output_tokens"]) if used else Usage(1)
        usage.total_tokens = usage.input_tokens + usage.output_tokens
        return ModelResponse(output=output, usage=usage, response_id=None)

    def stream_response(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        raise NotImplementedError


def _text_item(text: str) -> ResponseOutputMessage:
    content: list[Any] = [ResponseOutputText(text=text, type="output_text", annotations=[])]
    return ResponseOutputMessage(id="msg", content=content, role="assistant", status="completed", type="message")
