#!/bin/sh
# Stops the service; returns when its processes are gone.
set -u
pidfile=$pidfile
looks=0

# A zombie without other threads has closed its sockets, even if nobody reaps it.
gone() {
    kill -0 "$$1" 2>/dev/null || return 0
    state= threads=
    while read -r key value _; do
        case $$key in
            State:) state=$$value ;;
            Threads:) threads=$$value ;;
        esac
    done <"/proc/$$1/status" || return 0
    [ "$$state" = Z ] && [ "$$threads" -le 1 ]
}

[ -s "$$pidfile" ] || exit 0
pids=$$(cat "$$pidfile")
for pid in $$pids; do
    kill -$signal "$$pid" 2>/dev/null
done
for pid in $$pids; do
    until gone "$$pid" 2>/dev/null; do
        looks=$$((looks + 1))
        [ "$$looks" -lt 4000 ] || { echo "process $$pid does not end" >&2; exit 1; }
        sleep 0.005
    done
done
rm -f "$$pidfile"
