#!/bin/busybox sh
# /init of a stock kernel's initramfs: the host's files, read-only, become the root, and what the
# kernel's command line calls `init` takes over there, with all the rest of it (init.sh).
bb=/bin/busybox
$bb mount -t devtmpfs devtmpfs /dev
$bb mount -t proc proc /proc
for module in /modules/*; do $bb insmod "$module"; done
init=$($bb sed -n 's/.* init=\([^ ]*\).*/\1/p' /proc/cmdline)
$bb umount /proc
# nobody changes what is read there, or it does not matter
$bb mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=512000,ro host /host
$bb umount /dev
exec $bb switch_root /host "$init"
