"""The public HTTP API: one router file per group of OpenAI's API, stateless over the model server."""
