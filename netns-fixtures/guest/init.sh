#!/bin/sh
# PID 1 of a guest. The root is the host's, read-only; all that may be written is a tmpfs, and
# the folder that guest and host share. Runs the script `command` there, leaves its exit status
# in `status`, powers off. Parameters, from the kernel's command line:
# GUEST_REPOSITORY, GUEST_MODULES, GUEST_SHARED (with the host's paths).
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# Without root on the host, mount(8) is owned by somebody else here, and setuid.
setpriv --no-new-privs mount -t proc proc /proc
setpriv --no-new-privs mount -o remount,bind,nosuid /
mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
ln -sfn /proc/self/fd /dev/fd
for link in stdin:0 stdout:1 stderr:2; do ln -sfn "/proc/self/fd/${link#*:}" "/dev/${link%:*}"; done

# The host's files once more, for what lies below a tmpfs.
mount -t tmpfs tmpfs /mnt && mkdir /mnt/host && mount --bind / /mnt/host
for folder in /dev/shm /run /tmp /var/cache /var/lib/nginx /var/log /var/tmp; do
    [ ! -d "$folder" ] || mount -t tmpfs -o mode=1777 tmpfs "$folder"
done
mkdir -m 700 /tmp/home
mkdir /run/lock /run/netns /var/log/nginx
export HOME=/tmp/home
for path in "$GUEST_REPOSITORY" "$GUEST_MODULES"; do
    [ -e "$path" ] || { mkdir -p "$path" && mount --bind "/mnt/host$path" "$path"; }
done
mkdir -p "$GUEST_SHARED"
if grep -qw hostfs /proc/filesystems; then # the kernel, chrooted, finds the host's files below /host
    mount -t hostfs -o "/host$GUEST_SHARED" none "$GUEST_SHARED"
else # the emulator exports it
    mount -t 9p -o trans=virtio,version=9p2000.L,cache=none,msize=512000 shared "$GUEST_SHARED"
fi
umount -l /mnt

# What the kernel asks for is loaded when it asks: /proc/sys/kernel/modprobe (sysctl/kernel.rst).
printf '#!/bin/sh\nexec modprobe -d %s "$@"\n' "$GUEST_MODULES" >/tmp/home/modprobe
chmod 755 /tmp/home/modprobe
echo /tmp/home/modprobe >/proc/sys/kernel/modprobe

# Built in, or loaded by whatever opens its first socket; an address alone does not ask for it.
/tmp/home/modprobe -q ipv6

# Here one processor takes what a server, its clients and the wire between them have for it. With a
# thousand clients let go at once, the default of 1,000 packets is full before it gets to them.
echo 100000 >/proc/sys/net/core/netdev_max_backlog

ip link set lo up
cd "$GUEST_REPOSITORY"
sh "$GUEST_SHARED/command" </dev/null
echo $? >"$GUEST_SHARED/status"
sync
echo o >/proc/sysrq-trigger
exec sleep 60
