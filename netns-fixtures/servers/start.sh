#!/bin/sh
# Starts the service; returns once the start command has, and the pidfile is there.
set -u
pidfile=$pidfile
looks=0

$start || exit
until [ -s "$$pidfile" ]; do
    looks=$$((looks + 1))
    [ "$$looks" -lt 2000 ] || { echo "no $$pidfile" >&2; exit 1; }
    sleep 0.005
done
