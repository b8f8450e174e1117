#!/bin/sh
# All tests, in four turns; most of them wait most of the time, so several run at once, each in
# namespaces of its own. What failed is named once more at the end.
# 1. The guests, slow and with a processor each; beside them what bears that they are there.
# 2. The guest whose processor is emulated: it starves beside anything.
# 3. What strikes, and what is struck, step by step, beside all others.
# 4. What restarts services under load has the machine to itself.
set -u
cd "$(dirname "$0")/.."
said=$(mktemp -d)
trap 'rm -rf "$said"' EXIT

pytest=".venv/bin/python -m pytest --durations=10"
tests=tests/integration
labs=netns-fixtures/lab_tests

# From the names of test files: their paths.
files() {
    for name in "$@"; do
        if [ "$name" != "${name#lab_}" ]; then
            echo "$labs/test_${name#lab_}.py"
        else
            echo "$tests/test_$name.py"
        fi
    done
}

tools=$(files ansible config cron demo drop_in install pages podman readme recipes telemetry tools \
    lab_guest lab_netlab)
faults=$(files faults release_faults supervise_faults swap_faults)
loads=$(files capacity cold_restart flood forwarded live neighbours release reload soak swap_load \
    lab_loadgen)
plug=$(echo tests/guest/test_plug*.py)

# Options of pytest: everything but these.
except() {
    printf -- '--ignore=%s ' "$@"
}

# A run of pytest: its name, then the command. The pipe hides its exit status.
play() {
    name=$1
    shift
    { "$@" || echo "$name" >>"$said/failed"; } 2>&1 | tee "$said/$name"
}

# The same in the background: what it prints comes when it has ended.
begin() {
    play "$@" >"$said/unseen.$1" &
    running="$running $!:$1"
}

end() {
    for job in $running; do
        wait "${job%:*}"
        cat "$said/${job#*:}"
    done
    running=
}

running=
# shellcheck disable=SC2046,SC2086 # words, and none has a blank
{
    begin plug $pytest $plug
    begin guests $pytest tests/guest -k "not stock-" $(except $plug)
    play unit nice $pytest tests/unit
    play tools nice $pytest $tools
    end

    play stock $pytest tests/guest -k stock-

    begin faults $pytest $faults
    play steps $pytest $(except tests/guest tests/unit $tools $faults $loads)
    end

    play loads $pytest $loads
}
[ -e "$said/failed" ] || exit 0
echo "Not passed: $(sort "$said/failed" | tr '\n' ' ')"
grep -hE '^(FAILED|ERROR) ' "$said"/plug "$said"/guests "$said"/unit "$said"/tools \
    "$said"/stock "$said"/faults "$said"/steps "$said"/loads
exit 1
