#!/usr/bin/env bash
# Writes what a device installs, each file by its SHA-256, from pyproject.toml and constraints.txt. Needs uv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pin() {
    local file="pins/$1"
    shift
    {
        echo "# What a device installs, each file by its SHA-256, for Python 3.10 and newer on any platform:"
        echo "#   pip install --require-hashes -r $file && pip install --no-deps collafuse"
        echo "# Made by make pins."
        "${UV:-uv}" pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-annotate --no-header \
            --no-emit-index-url -c constraints.txt "$@" pyproject.toml
    } > "$file.new"
    mv "$file.new" "$file"
}

pin device.txt
pin device-sign.txt --extra sign
