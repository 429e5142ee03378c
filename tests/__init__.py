"""The suite. Imported first, so that llama.cpp finds its threads' patience set (see timestep/models)."""

import timestep.models  # noqa: F401
