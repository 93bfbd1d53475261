#!/usr/bin/env bash
# Make the environment in $VENV and install everything in it. `make setup` calls this.
#
# VENV    folder of the environment (.venv)
# PYTHON  interpreter to make it with; by default the first of python3.11, python3.12, python3 that is 3.11 or 3.12
# TORCH   what pip is asked for first (torch==2.13.0); any arguments of `pip install`. "system": use the torch that
#         $PYTHON has already
# EXTRAS  which requirements-*.txt beside requirements.txt (data eval gradio colossalai dev)
#
# What was chosen is kept in the environment, so later calls need no variable. When nothing changed, nothing is done.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
STAMP=$VENV/opensora-setup   # written last, so an interrupted set-up starts again
OURS=$VENV/opensora-venv      # written first: only a folder that this script made is ever removed

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
kept() { [ -f "$STAMP" ] && sed -n "s/^$1=//p" "$STAMP" || true; }
fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" || fail "PYTHON=$PYTHON does not run, or is not Python 3.11 or 3.12."
else
    PYTHON=$(kept python)
    if [ -z "$PYTHON" ] || ! fits "$PYTHON"; then
        PYTHON=
        for name in python3.11 python3.12 python3; do
            if fits "$name"; then PYTHON=$name; break; fi
        done
    fi
    [ -n "$PYTHON" ] || fail "no Python 3.11 or 3.12 found. Install one, or name it: make setup PYTHON=/path/to/python3.11"
fi
TORCH=${TORCH:-$(kept torch)}
TORCH=${TORCH:-torch==2.13.0}
EXTRAS=${EXTRAS:-$(kept extras)}
EXTRAS=${EXTRAS:-data eval gradio colossalai dev}

files=(requirements/requirements.txt)
for extra in $EXTRAS; do
    file=requirements/requirements-$extra.txt
    [ -f "$file" ] || fail "EXTRAS='$EXTRAS': there is no $file."
    files+=("$file")
done
files+=(requirements/requirements-no-deps.txt)

# Everything that decides what is installed; the folder too, because the package is installed from it in place.
want=$(
    printf 'python=%s\ntorch=%s\nextras=%s\n' "$PYTHON" "$TORCH" "$EXTRAS"
    { pwd; "$PYTHON" --version; cat "${files[@]}" setup.py requirements/install.sh; } | cksum | sed 's/^/checksum=/'
)
if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$want" ] && [ -x "$VENV/bin/python" ]; then
    exit 0
fi

start=$SECONDS
if [ -e "$VENV" ] && [ ! -f "$OURS" ]; then
    fail "$VENV exists and was not made by make setup; move it away or choose another: make setup VENV=FOLDER"
fi
system=(); [ "$TORCH" = system ] && system=(--system-site-packages)
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ ! -f "$STAMP" ] || [ "$(kept python)" != "$PYTHON" ] || [ "$(kept torch)" != "$TORCH" ]; then
    say "new environment in $VENV with $("$PYTHON" --version)"
    rm -rf "$VENV"
    mkdir -p "$VENV"
    touch "$OURS"
    "$PYTHON" -m venv "${system[@]+"${system[@]}"}" "$VENV"
fi
rm -f "$STAMP"

install() { "$VENV/bin/python" -m pip install -qq --disable-pip-version-check --no-warn-conflicts --no-input "$@"; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [ "$TORCH" != system ]; then
    say "installing $TORCH"
    # shellcheck disable=SC2086  # TORCH holds several arguments
    install $TORCH
fi
"$VENV/bin/python" -W ignore - "$scratch/torch.txt" <<'PY' || fail "torch 2.10 or newer is needed; TORCH='$TORCH' does not give it."
import sys
import torch
version = torch.__version__.partition("+")[0]
print("setup: torch", torch.__version__)
with open(sys.argv[1], "w") as file:
    print(f"torch=={version}", file=file)
sys.exit(tuple(int(part) for part in version.split(".")[:2]) < (2, 10))
PY

say "installing requirements: core $EXTRAS"
arguments=(--constraint "$scratch/torch.txt")
for file in "${files[@]}"; do
    case $file in *-no-deps.txt) continue ;; esac
    grep -v '^torch==' "$file" > "$scratch/$(basename "$file")"
    arguments+=(--requirement "$scratch/$(basename "$file")")
done
install "${arguments[@]}"
say "installing without their dependencies: $(grep -v '^#' requirements/requirements-no-deps.txt | paste -s -d ' ' -)"
install --no-deps --requirement requirements/requirements-no-deps.txt
"$VENV/bin/python" -c 'import setuptools, sys; sys.exit(int(setuptools.__version__.split(".")[0]) < 77)' 2>/dev/null ||
    install 'setuptools>=77'
install --no-deps --no-build-isolation --editable .

printf '%s\n' "$want" > "$STAMP.part"
mv "$STAMP.part" "$STAMP"
say "done in $((SECONDS - start)) s, $(du -sh "$VENV" | cut -f1) in $VENV (Python $version)"
