#!/bin/sh
# The recipe that synplug is named after, as Yelp published it in 2015: on loopback a prio qdisc
# with a plug as its last band, an iptables mark on the SYNs of local clients, and a filter that
# sends what is marked to the plug. tc(8) in place of libnl's nl-qdisc-add, which did the same; the
# mark is for one port, not for one address, as there.
#
#   original_recipe.sh up PORT | block | release | down PORT
#
# For comparison only: it holds IPv4 alone, and nothing ends the hold but "release".
set -eu

mark="OUTPUT -p tcp --syn -d 127.0.0.1 --dport ${2:-0} -j MARK --set-mark 1"

case $1 in
up)
    tc qdisc add dev lo root handle 1: prio bands 4
    tc qdisc add dev lo parent 1:1 handle 10: pfifo limit 1000
    tc qdisc add dev lo parent 1:2 handle 20: pfifo limit 1000
    tc qdisc add dev lo parent 1:3 handle 30: pfifo limit 1000
    tc qdisc add dev lo parent 1:4 handle 40: plug limit 1048576
    tc qdisc change dev lo handle 40: parent 1:4 plug release_indefinite
    tc filter add dev lo protocol ip parent 1:0 prio 1 handle 1 fw classid 1:4
    # shellcheck disable=SC2086  # a list of words
    iptables-legacy -t mangle -A $mark
    ;;
block) tc qdisc change dev lo handle 40: parent 1:4 plug block ;;
release) tc qdisc change dev lo handle 40: parent 1:4 plug release_indefinite ;;
down)
    # shellcheck disable=SC2086
    iptables-legacy -t mangle -D $mark
    tc qdisc del dev lo root
    ;;
esac
