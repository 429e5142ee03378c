"""Models: files, the one chat renderer, the embedded llama engine, and the server that shares it."""

import os

# llama.cpp's threads meet some 300 times per token, and OpenMP lets them wait in busy loops: while any other process
# needs a core (a flow run that starts), each meeting takes a time slice. Sleeping after 300 turns of the loop costs
# nothing on an idle machine and saves a busy one. llama-bench on 2 cores, this many tokens/s: default 210 idle and
# 4 busy, 300 turns 212 and 71, no turns 75 and 114. OpenMP reads it when it is loaded, so it is set before anything
# here imports llama.cpp, and children (llama-finetune) inherit it.
os.environ.setdefault("GOMP_SPINCOUNT", "300")
