"""The durable runtime: an Agents SDK run whose every model and tool call is one recorded unit."""
