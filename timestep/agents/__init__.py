"""Agents: the registry, the durable runtime, the tools of the default agent."""
