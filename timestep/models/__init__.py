"""Models: files, the one chat renderer, the embedded llama engine, and the server that shares it."""

import os

# llama.cpp's threads meet some 300 times per token. By default they wait for each other in busy loops, so a single
# other process on the cores (a starting flow run) stalls them all: 3 tokens/s where sleeping waits give 44 to 92.
# Read when the OpenMP library is loaded, so it stands before anything here imports llama.cpp; children inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
