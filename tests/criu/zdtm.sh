#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# In a guest: run CRIU's own test suite with the options of the command line, and print its
# report. With --swap first, while all that it has in memory is swapped out again and again.
[ -n "$LEADER" ] || exec env LEADER=1 setsid --wait "$0" "$@"
ip link set lo up
# maps03 maps 10 GiB and touches little of it.
echo 1 > /proc/sys/vm/overcommit_memory
# Lazy restore inside a user namespace wants userfaultfd there.
echo 1 > /proc/sys/vm/unprivileged_userfaultfd
# By what systemd makes zdtm.py tells that the freezer is that of cgroup v2.
mkdir -p /sys/fs/cgroup/user.slice
cd /root/zdtm/test || exit 1
if [ "$1" = --swap ]; then
	shift
	cgroup=/sys/fs/cgroup/zdtm
	echo +memory > /sys/fs/cgroup/cgroup.subtree_control
	mkdir $cgroup || exit 1
	while sleep 0.05; do
		echo 1G > $cgroup/memory.reclaim
	done 2> /dev/null &
	echo $$ > $cgroup/cgroup.procs
fi
# What is root for a test in namespaces, where it may write: zdtm.py sees to that for uns alone.
chmod a+rwx .
# The initramfs that brought them has no times, and make would build all of them anew.
find zdtm -type f -exec touch -d @1 {} +
find zdtm -name '*.d' -exec touch -d @2 {} +
find zdtm -name '*.a' -exec touch -d @3 {} +
find zdtm -type f -perm /111 -exec touch -d @4 {} +
./zdtm.py run --criu-bin /usr/sbin/criu --crit-bin /usr/bin/crit --report /tmp/report \
	--keep-going "$@" > /tmp/zdtm.log 2>&1
status=$?
tail -n 40 /tmp/zdtm.log
echo "report:"
cat /tmp/report/*.tap
exit $status
