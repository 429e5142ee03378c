#!/bin/sh
# Installs the locked packages into the environment at UV_PROJECT_ENVIRONMENT: packages.sh [EXTRA …].
# llama.cpp's library is compiled with the options of LLAMA_OPTIONS, and kept between builds of the image.
set -eu
wheels=$(sh deployments/image/cache.sh "$LLAMA_OPTIONS")/wheels
extras=$(for extra in "$@"; do echo "--extra $extra"; done)
export UV_CACHE_DIR=/var/cache/timestep/uv

# One entry with its hashes, out of the lock.
uv export --quiet --frozen --no-dev --no-emit-project |
  awk '/^llama-cpp-python==/ { found = 1 } found { print } !/\\$/ { found = 0 }' > /tmp/llama.txt
version=$(sed -n 's/^llama-cpp-python==\([^ ]*\).*/\1/p' /tmp/llama.txt)
if ! ls "$wheels"/llama_cpp_python-"$version"-*.whl > /dev/null 2>&1; then
  CMAKE_ARGS="-DLLAVA_BUILD=OFF $LLAMA_OPTIONS" \
    pip wheel --quiet --no-deps --no-binary llama-cpp-python --require-hashes -r /tmp/llama.txt -w "$wheels.new"
  # Whole or not at all, however a build is cut.
  mkdir -p "$wheels"
  mv "$wheels.new"/*.whl "$wheels"
  rmdir "$wheels.new"
fi

uv sync --quiet --frozen --no-dev --no-install-project --no-install-package llama-cpp-python $extras
uv pip install --quiet --no-deps --python "$UV_PROJECT_ENVIRONMENT" "$wheels"/llama_cpp_python-"$version"-*.whl
