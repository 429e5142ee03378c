"""A tool's output as JSON, and back: the record gives the SDK what it would have got from the tool."""

import json
from typing import Any

from agents import FunctionTool
from agents.tool import ToolOutputFileContent, ToolOutputImage, ToolOutputText

from timestep.agents.plain import Said, plain, text, whole

_PARTS = ToolOutputText | ToolOutputImage | ToolOutputFileContent


def as_json(tool: FunctionTool, output: Any) -> dict[str, Any]:
    """The output for the record, never an error: the tool has run, and must not run again for it.

    ``output`` is its JSON: as its declared type, else as it is where that is JSON, else as text. Of an object as text
    ``value`` is what it holds, for a final output.
    """
    if tool._output_type_adapter is not None and not isinstance(output, str):
        try:
            declared = whole(tool._output_type_adapter.dump_python(output, mode="json"))
            json.dumps(declared)
            tool._output_type_adapter.validate_python(declared)
        except Exception:  # a type that doesn't read what it writes
            return {"output": text(output)}
        return {"output": declared}
    if isinstance(output, _PARTS):
        return {"output": plain(output.model_dump(mode="json", exclude_none=True))}
    if isinstance(output, list) and output and all(isinstance(part, _PARTS) for part in output):
        return {"output": [as_json(tool, part)["output"] for part in output]}
    try:
        same = json.loads(json.dumps(output, allow_nan=False))
        # A tuple, or a key that is no text, would read differently to the model.
        if same == output:
            return {"output": whole(same)}
    except Exception:
        return {"output": text(output), "value": plain(output)}
    return {"output": text(output)}


def from_json(tool: FunctionTool, recorded: dict[str, Any]) -> Any:
    """The output as the SDK is to get it."""
    output = recorded["output"]
    if tool._output_type_adapter is not None and not isinstance(output, str):
        return tool._output_type_adapter.validate_python(output)
    if "value" in recorded:
        output = Said(output)
        output.value = recorded["value"]
    return output
