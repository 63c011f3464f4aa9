#!/usr/bin/env bash
# Make a virtual environment with the newest Python from 3.11 that is here. Usage: venv.sh FOLDER
set -euo pipefail
for name in python3.13 python3.12 python3.11 python3.14 python3; do
  python=$(command -v "$name") || continue
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
  "$python" -m venv --clear "$1" 2>/dev/null && exit 0
done
cat >&2 <<'TEXT'
Não encontrei Python 3.11 ou mais recente (com venv). No Mac: brew install python@3.13. Em Debian ou Ubuntu: sudo apt install python3-venv
No Python 3.11 or newer (with venv) was found. On a Mac: brew install python@3.13. On Debian or Ubuntu: sudo apt install python3-venv
TEXT
exit 1
