"""Models: files, the one chat renderer, the embedded llama engine, and the server that shares it."""
