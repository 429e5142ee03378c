"""Batches of OpenAI's API: what their files hold, and what is on record of them. Knows no flow and no server."""
