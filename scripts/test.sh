#!/bin/sh
# All tests. The guests, slow and with a processor each, run beside those of the host in which no
# client's wait is judged to the millisecond; these come after, and have the machine to themselves.
set -u
cd "$(dirname "$0")/.."
python=.venv/bin/python
beside="tests/unit"
for name in faults release_faults supervise_faults swap_faults config install privileges \
    live systemd_files telemetry targets hold_release cron drop_in ansible podman; do
    beside="$beside tests/integration/test_$name.py"
done
done_before="--ignore=tests/guest"
for path in $beside; do
    done_before="$done_before --ignore=$path"
done
said=$(mktemp)
trap 'rm -f "$said"' EXIT
status=0
nice "$python" -m pytest --durations=10 tests/guest >"$said" 2>&1 &
guests=$!
# shellcheck disable=SC2086 # words, and none has a blank
"$python" -m pytest --durations=10 $beside || status=1
wait "$guests" || status=1
cat "$said"
# shellcheck disable=SC2086
"$python" -m pytest --durations=10 $done_before || status=1
exit $status
