#!/bin/sh
# Builds a real Ollama for tests/models/test_providers.py, from the Go module registry: `sh tests/models/ollama.sh FOLDER`
# leaves FOLDER/ollama (about 2 min on 2 cores; Go and a C++ compiler are needed). Put FOLDER on the PATH.
# Go's module archives leave out folders called vendor; the headers in it come from llama-cpp-python's source.
set -eu
version=v0.17.4
out=$(mkdir -p "$1" && cd "$1" && pwd)
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cd "$work"
python3 -m pip download -q --no-deps --no-binary llama-cpp-python -d . llama-cpp-python==0.3.36 ||
  { echo "The source of llama-cpp-python could not be fetched." >&2; exit 1; }
tar -xzf llama_cpp_python-*.tar.gz
module=$(go mod download -json "github.com/ollama/ollama@$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
cp -r "$module" source
chmod -R u+w source
mkdir -p source/llama/llama.cpp/vendor
for library in nlohmann miniaudio stb; do
  cp -r llama_cpp_python-*/vendor/llama.cpp/vendor/$library source/llama/llama.cpp/vendor/
done
cd source
CGO_ENABLED=1 CGO_CFLAGS="-O2 -g0" CGO_CXXFLAGS="-O2 -g0" go build -trimpath -buildvcs=false -ldflags "-s -w" -o "$out/ollama" .
