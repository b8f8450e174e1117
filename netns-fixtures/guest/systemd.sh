#!/bin/sh
# PID 1 of a guest with systemd, until systemd takes its place. The root is a tmpfs over GUEST_ROOT;
# synplug, the repository, and the folder that guest and host share are mounted there, the last two
# at their own paths. A unit runs the script `command`, leaves its exit status in `status`, powers
# off. Parameters, from the kernel's command line, with the host's paths:
# GUEST_ROOT, GUEST_SYNPLUG, GUEST_REPOSITORY, GUEST_MODULES, GUEST_SHARED.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# Without root on the host, mount(8) is owned by somebody else here, and setuid.
mount() { setpriv --no-new-privs mount "$@"; }
umount() { setpriv --no-new-privs umount "$@"; }

mount -t proc proc /proc
modprobe -d "$GUEST_MODULES" overlay
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o "lowerdir=$GUEST_ROOT,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
cd /mnt/root
mkdir -p ".$GUEST_REPOSITORY" ".$GUEST_SHARED"
mount --bind "$GUEST_SYNPLUG" opt/synplug
mkdir -p usr/local/bin
ln -s /opt/synplug/bin/synplug usr/local/bin/synplug # where the units look
mount --bind "$GUEST_REPOSITORY" ".$GUEST_REPOSITORY"
mount --bind "$GUEST_MODULES/lib/modules" usr/lib/modules
# the kernel, chrooted, finds the host's files below /host
mount -t hostfs -o "/host$GUEST_SHARED" none ".$GUEST_SHARED"

# A guest is private enough: that variable tells netlab.isolation to stay in PID 1's namespaces.
cat >etc/systemd/system/guest.service <<UNIT
[Unit]
Description=What the guest was started for
[Service]
WorkingDirectory=$GUEST_REPOSITORY
Environment=HOME=/root
ExecStart=/bin/sh -c 'NETLAB_ISOLATED=\$\$(readlink /proc/self/ns/mnt) exec sh $GUEST_SHARED/command'
ExecStopPost=/bin/sh -c 'echo \$EXIT_STATUS >$GUEST_SHARED/status; sync; echo o >/proc/sysrq-trigger'
StandardOutput=tty
TTYPath=/dev/console
UNIT

umount -l /proc
exec switch_root /mnt/root /usr/lib/systemd/systemd --unit=guest.service
