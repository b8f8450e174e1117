#!/bin/sh
# forked.sh FOLDER ARGUMENT…: what faulty_synplug.py does with these arguments, in a fork of the
# server of that folder (forked_synplug.py); ends as that ends.
folder=$1
shift
mkfifo "$folder/$$"
exec 3<>"$folder/$$"
printf '%s\0' "$@" >"$folder/$$.words"
echo $$ >"$folder/requests"
read -r status <&3
[ "$status" -ge 0 ] || kill "$status" $$
exit "$status"
