#!/usr/bin/env bash
# Proves exlora's CUDA backend on the card of this machine: bash proof.sh [OUT]. README.md beside this file says what it does.
set -eu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec "${PYTHON:-python3}" -u "$here/proof.py" "${1:-$here/out}"
