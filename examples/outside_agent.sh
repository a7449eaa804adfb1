#!/usr/bin/env bash
# What a coding agent with tools of its own does: it proposes, `overnight` is the referee.
#   examples/outside_agent.sh [BUDGET]
# Tries three candidates: one that breaks the contract, one whole file, one patch. Reads every verdict as JSON.
set -euo pipefail
budget=${1:-4e11flop}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

# 1. Looking is free: the rules say what is wrong before anything is spent.
sed 's/^import math$/import math\nimport socket/' train.py > "$work/spy.py"
overnight check "$work/spy.py" || echo "refused, as it should be"

# 2. A whole file.
sed 's/^\(    WARMDOWN_RATIO = \)[0-9.]*/\10.9/' train.py > "$work/candidate.py"
verdict=$(overnight try "$work/candidate.py" --tag outside --budget "$budget" --description "longer warm-down" --json) || true
echo "trial $(field trial <<< "$verdict"): $(field status <<< "$verdict") at $(field val_bpb <<< "$verdict")"

# 3. A patch against whatever is the incumbent now.
git show "$(git rev-parse overnight/outside):train.py" > "$work/now.py"
sed 's/^\(    WARMUP_RATIO = \)[0-9.]*/\10.2/' "$work/now.py" > "$work/next.py"
diff -u --label a/train.py --label b/train.py "$work/now.py" "$work/next.py" > "$work/change.patch" || true
verdict=$(overnight try "$work/change.patch" --tag outside --description "a little warm-up" --json) || true
echo "trial $(field trial <<< "$verdict"): $(field status <<< "$verdict") at $(field val_bpb <<< "$verdict")"
overnight history --tag outside
