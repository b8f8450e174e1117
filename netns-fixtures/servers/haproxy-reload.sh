#!/bin/sh
# shellcheck disable=SC2046  # one word a pid
$haproxy $options -sf $$(cat $pidfile)
