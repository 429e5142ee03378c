"""A Response object of OpenAI's API: what was asked, and what came of it."""

from typing import Any

from timestep.agents.responses.request import ResponseRequest

# Statuses of a response that has come to its end.
ENDED = ("completed", "failed", "incomplete", "cancelled")


def skeleton(request: ResponseRequest, id: str, created_at: float, status: str = "in_progress") -> dict[str, Any]:
    """The response to ``request`` before there is any output."""
    text = request.text
    made = text.format.model_dump(exclude_none=True) if text and text.format else {"type": "text"}
    if made["type"] == "json_schema":
        made = {"strict": False, "description": None, **made}
    return {
        "id": id,
        "object": "response",
        "created_at": int(created_at),
        "status": status,
        "completed_at": None,
        "background": bool(request.background),
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": None,
        "model": request.model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "conversation": {"id": request.conversation_id} if request.conversation_id else None,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": request.reasoning.effort if request.reasoning else None, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": request.store is not False,
        "temperature": request.temperature,
        "text": {"format": made, "verbosity": (text and text.verbosity) or "medium"},
        "tool_choice": request.tool_choice or "auto",
        "tools": [tool.model_dump() for tool in request.tools or []],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": request.truncation or "disabled",
        "usage": None,
        "user": request.user,
        "metadata": request.metadata or {},
    }


def ended(
    response: dict[str, Any],
    output: list[dict[str, Any]],
    *,
    model: str | None = None,
    usage: dict[str, Any] | None = None,
    completed_at: float | None = None,
) -> dict[str, Any]:
    """The response with its output: incomplete where an item is, else completed."""
    cut = [item for item in output if item.get("status") == "incomplete"]
    done = {"output": output, "usage": usage, "model": model or response["model"]}
    if cut:
        why = cut[-1].get("incomplete_details") or {"reason": "max_output_tokens"}
        return {**response, **done, "status": "incomplete", "incomplete_details": why}
    return {**response, **done, "status": "completed", "completed_at": None if not completed_at else int(completed_at)}


def failed(response: dict[str, Any], message: str, code: str = "server_error") -> dict[str, Any]:
    """The response that came to nothing, and why."""
    return {**response, "status": "failed", "error": {"code": code, "message": message}}


def usage_of(input_tokens: int, output_tokens: int, cached: int = 0, reasoning: int = 0) -> dict[str, Any]:
    """Tokens, in the API's shape."""
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": input_tokens + output_tokens,
    }
