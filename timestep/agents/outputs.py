"""A tool's output as JSON, and back: the record gives the SDK what it would have got from the tool."""

import json
from typing import Any

from agents import FunctionTool
from pydantic import BaseModel


def as_json(tool: FunctionTool, output: Any) -> Any:
    """The output as JSON: as its declared type, else as it is where that is JSON, else as text."""
    if tool._output_type_adapter is not None and not isinstance(output, str):
        return tool._output_type_adapter.dump_python(output, mode="json")
    if isinstance(output, BaseModel):
        return output.model_dump(mode="json", exclude_none=True)
    if isinstance(output, list) and output and all(isinstance(part, BaseModel) for part in output):
        return [as_json(tool, part) for part in output]
    try:
        plain = json.loads(json.dumps(output, allow_nan=False))
    except (TypeError, ValueError):
        return str(output)
    # A tuple, or a key that is no text, would read differently to the model.
    return plain if plain == output else str(output)


def from_json(tool: FunctionTool, output: Any) -> Any:
    """The output as the SDK is to get it."""
    if tool._output_type_adapter is not None and not isinstance(output, str):
        return tool._output_type_adapter.validate_python(output)
    return output
