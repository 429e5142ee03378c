"""Run state across languages."""

from timestep.agents.javascript.reader import from_javascript
from timestep.agents.javascript.writer import to_javascript

__all__ = ["from_javascript", "to_javascript"]
