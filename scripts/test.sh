#!/bin/sh
# All tests. The guests, slow and with a processor each, run beside the unit tests alone: beside
# more they starve on a slow machine. The others come after, and have the machine to themselves.
# What failed is named once more at the end.
set -u
cd "$(dirname "$0")/.."
said=$(mktemp -d)
trap 'rm -rf "$said"' EXIT

# A run of pytest: the file for what it prints, then the command. The pipe hides its exit status.
play() {
    name=$1
    shift
    { "$@" || echo "$name" >>"$said/failed"; } 2>&1 | tee "$said/$name"
}

pytest=".venv/bin/python -m pytest --durations=10"
# shellcheck disable=SC2086 # words, and none has a blank
{
    play guests $pytest tests/guest >"$said/unseen" &
    guests=$!
    play beside nice $pytest tests/unit
    wait "$guests"
    cat "$said/guests"
    play after $pytest --ignore=tests/guest --ignore=tests/unit
}
[ -e "$said/failed" ] || exit 0
echo "Not passed: $(sort "$said/failed" | tr '\n' ' ')"
grep -hE '^(FAILED|ERROR) ' "$said/guests" "$said/beside" "$said/after"
exit 1
