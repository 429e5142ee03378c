"""The tool by which an agent asks a person: it never runs, the person's answer is what it returns."""

from typing import Any

from agents import FunctionTool, RunContextWrapper
from agents.tool import Tool

from timestep.errors import UsageError

NAME = "ask_user"


class QuestionTool(FunctionTool):
    """A tool whose calls are questions; the class says so, since the SDK copies tools field by field."""


async def _unanswered(_: RunContextWrapper[Any], arguments: str) -> str:
    raise UsageError("A question is answered by a person, not run. Reject the call with the answer as its message.")


ask_user = QuestionTool(
    name=NAME,
    description="Ask the user a question and wait for the answer.",
    params_json_schema={
        "type": "object",
        "properties": {"question": {"type": "string", "description": "The question, complete in itself."}},
        "required": ["question"],
        "additionalProperties": False,
    },
    on_invoke_tool=_unanswered,
    # What makes the SDK stop before the call.
    needs_approval=True,
)


def is_question(tool: Tool) -> bool:
    """Whether calls of this tool are questions to a person."""
    return isinstance(tool, QuestionTool)
