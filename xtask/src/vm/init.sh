#!/bin/busybox sh
# First process of a test machine.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TMPDIR=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
# Not where it usually is: it has to be looked up.
mount -t cgroup2 cgroup /cg
ln -s /run /var/run

# The firmware left the cursor somewhere in a line.
echo
echo "guest: kernel $(uname -r)"
for module in /modules/*; do
    insmod "$module" || echo "guest: cannot load $module"
done
ip link set lo up
sh /etc/tests
echo "guest: exit $?"
poweroff -f
