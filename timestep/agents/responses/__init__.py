"""OpenAI's Responses API without HTTP: requests checked, turned into chat, answers told as its events and objects."""
