#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# In a guest with Debian's user space: run the parts of the kernel's selftests that are
# named on the command line, each with a time limit of $1 seconds: mm/CATEGORY of
# run_vmtests.sh, or arm64/PROGRAM. What each prints stands between a "lab: begin" and
# a "lab: end" line, and the kernel log has the same "begin" lines.
limit=$1
shift
ln -s /root/modules/lib/modules /usr/lib/modules
# Where a user who is nobody gets at it, on a real file system.
cp -r /root/kselftest /scratch/kselftest && cd /scratch/kselftest || exit 1
chmod 755 /scratch
for name; do
	sync
	echo 3 > /proc/sys/vm/drop_caches
	echo 1 > /proc/sys/vm/compact_memory
	echo "lab: begin $name" | tee /dev/kmsg
	case $name in
	mm/*) set -- ./run_vmtests.sh -t "${name#mm/}" ;;
	*) set -- "./${name##*/}" ;;
	esac
	(cd "${name%%/*}" && timeout -s KILL "$limit" "$@" 2>&1)
	echo "lab: end $name $?"
done
