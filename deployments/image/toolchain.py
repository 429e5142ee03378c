"""Builds llama.cpp's tools for an image: `python toolchain.py FOLDER [-DNAME=VALUE …]`, with options of CMake."""

import asyncio
import sys
from pathlib import Path

from timestep.settings import Settings
from training import toolchain

folder, *options = sys.argv[1:]
for option in options:
    name, _, value = option.removeprefix("-D").partition("=")
    toolchain.OPTIONS[name] = value
asyncio.run(toolchain.ensure_toolchain(Settings(toolchain=Path(folder)), print))
