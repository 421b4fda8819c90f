#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# In a guest with Debian's user space: install the kernel package /root/linux-image.deb, and
# have the next boot of this file system run the command line's program.
export DEBIAN_FRONTEND=noninteractive HOME=/root
set -e
# The rest of the system is there, but dpkg does not know it.
dpkg -i --force-depends /root/linux-image.deb
rm /root/linux-image.deb
for name in vmlinuz initrd.img; do
	cp "/boot/$name"-* "/lab/$name"
done
cat > /lab/next <<END
#!/bin/bash
export PATH=$PATH HOME=/root TMPDIR=/tmp
modprobe zram
mount -t debugfs debugfs /sys/kernel/debug
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo 2G > /sys/block/zram0/disksize
mkswap /dev/zram0 > /dev/null && swapon /dev/zram0
cd /root && exec $(printf '%q ' "$@")
END
chmod +x /lab/next
# Not into the file that runs right now.
mv /lab/next /lab/run
sync
