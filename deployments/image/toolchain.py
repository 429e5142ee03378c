"""Puts llama.cpp's tools into an image: `python toolchain.py CACHE FOLDER [-DNAME=VALUE …]`, with options of CMake.

They are built in CACHE, unless they are there from an earlier build of the image.
"""

import asyncio
import shutil
import sys
from pathlib import Path

from timestep.settings import Settings
from training import toolchain

cache, folder, *options = sys.argv[1:]
for option in options:
    name, _, value = option.removeprefix("-D").partition("=")
    toolchain.OPTIONS[name] = value
tools = asyncio.run(toolchain.ensure_toolchain(Settings(toolchain=Path(cache)), print))
shutil.copytree(tools.finetune.parent, Path(folder, tools.version, "bin"))
