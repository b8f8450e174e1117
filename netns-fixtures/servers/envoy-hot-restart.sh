#!/bin/sh
# Envoy's own hot restart: the next epoch takes the listeners from the one before, over a unix
# socket; that one ends by itself. Returns when it has.
set -u
pidfile=$pidfile
epoch_file=$epoch_file
old=$$(cat "$$pidfile")
epoch=$$(($$(cat "$$epoch_file") + 1))
looks=0

# In a subshell, which ends at once: an Envoy that can hot restart ends with its parent process
# (source/server/hot_restart_impl.cc, PR_SET_PDEATHSIG).
(
    setsid $envoy --restart-epoch "$$epoch" --base-id "$$(cat $base_id)" </dev/null >>$log 2>&1 &
    echo $$! >"$$pidfile"
)
new=$$(cat "$$pidfile")
echo "$$epoch" >"$$epoch_file"
while grep -qs '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$$old/status"; do
    looks=$$((looks + 1))
    [ "$$looks" -lt 2000 ] || { echo "process $$old does not end" >&2; exit 1; }
    kill -0 "$$new" || { echo "epoch $$epoch does not start" >&2; exit 1; }
    sleep 0.005
done
