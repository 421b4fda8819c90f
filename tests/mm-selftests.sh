#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# In the guest: run the mm selftests named on the command line, each with a time
# limit of $1 seconds, from a directory on a real file system. What each prints
# stands between a "lab: begin" and a "lab: end" line, and the kernel log has the
# same "begin" lines, so that both can be told apart by test.
limit=$1
shift
cp -r /root/mm /scratch/mm && cd /scratch/mm || exit 1
# As run_vmtests.sh does, huge pages for the tests: 64 MB, but two at least.
pages=$((65536 / $(sed -n 's/^Hugepagesize: *\([0-9]*\) kB/\1/p' /proc/meminfo)))
[ "$pages" -ge 2 ] || pages=2
echo "$pages" > /proc/sys/vm/nr_hugepages
# The deadline server of 7.3 can forward a timer that is queued, and then warns, in a guest that
# waits long for a busy host. It is there for what real-time tasks leave no time.
for runtime in /sys/kernel/debug/sched/*_server/cpu*/runtime; do
	[ ! -e "$runtime" ] || echo 0 > "$runtime"
done
for name in "$@"; do
	set -- "./$name"
	case $name in
	# Its argument is a file system with large folios.
	split_huge_page_test) set -- "$@" /scratch ;;
	# It clears its whole address space 40,000 times. From here its own text is
	# in small folios, which takes less than half of the time.
	soft-dirty*) set -- "/root/mm/$name" ;;
	esac
	# Huge pages are to be had by whoever comes first, and by whoever comes last.
	sync
	echo 3 > /proc/sys/vm/drop_caches
	echo 1 > /proc/sys/vm/compact_memory
	echo "lab: begin $name" | tee /dev/kmsg
	timeout -s KILL "$limit" "$@" 2>&1
	echo "lab: end $name $?"
done
