#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# In the guest: what mm-selftests.sh does, but only up to the first test that fails,
# or that says nothing for two minutes: the kernel may never come back from it.
mkfifo /tmp/said
/root/mm-selftests.sh "$@" > /tmp/said &
running=nothing
ended=
# shellcheck disable=SC3045 # busybox has it
while IFS= read -r -t 120 line; do
	echo "$line"
	case $line in
	"#  RUN "*)
		running=${line##*" RUN "}
		running=${running##*"  "}
		;;
	"not ok "*) exit ;;
	"lab: end "*) ended=yes ;;
	esac
done < /tmp/said
[ "$ended" ] || echo "not ok 0 ${running%" ..."}: hangs"
