// SPDX-License-Identifier: GPL-2.0-only
/*
 * The cost of learning which pages a program writes, by each way that Linux has: what the
 * tracker pays to arm it, the writer for its writes, the reader for the result.
 *
 * track [METHOD [KIND]]: that way, and that kind of memory, alone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>

#include "area.h"
#include "meter.h"

#define PAGES 4096		/* 16 MiB */
#define ROUNDS 3		/* the lab takes the least: a timer tick falls into some */

static int uffd;
static pthread_t handler;
/* The pages whose first write sync_handler() and segv_handler() have been told of. */
static unsigned char written[PAGES];
static struct area current;

static void note(uintptr_t addr)
{
	written[(addr - (uintptr_t)current.at) / PAGE_SIZE] = 1;
}

static size_t noted(const struct area *area, unsigned long long category)
{
	size_t found = 0;

	(void)category;
	for (size_t i = 0; i < area->pages; i++)
		found += written[i];
	return found;
}

static void nothing(const struct area *area)
{
	(void)area;
}

static void clear(const struct area *area)
{
	(void)area;
	clear_refs();
}

static void register_uffd(const struct area *area, unsigned long long features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register range = {
		.range = { (uintptr_t)area->at, area->pages * PAGE_SIZE },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &range))
		die("userfaultfd");
}

static void arm_range(const struct area *area)
{
	scan_without_report(area, PAGE_IS_SOFT_DIRTY, PM_SCAN_SOFT_CLEAN_MATCHING);
}

static size_t renew_all(const struct area *area)
{
	size_t found = read_pagemap(area);

	clear_refs();
	return found;
}

static size_t renew_range(const struct area *area)
{
	return scan(area, PAGE_IS_SOFT_DIRTY, PM_SCAN_SOFT_CLEAN_MATCHING);
}

static void start_async(const struct area *area)
{
	register_uffd(area, UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED);
}

static void arm_async(const struct area *area)
{
	scan_without_report(area, PAGE_IS_WRITTEN, PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC);
}

static size_t renew_async(const struct area *area)
{
	return scan(area, PAGE_IS_WRITTEN, PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC);
}

static void stop_async(const struct area *area)
{
	(void)area;
	close(uffd);
}

static int protect(uintptr_t start, size_t size, unsigned long long mode)
{
	struct uffdio_writeprotect arg = { .range = { start, size }, .mode = mode };

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &arg);
}

static void *sync_handler(void *unused)
{
	struct uffd_msg msg;

	(void)unused;
	while (read(uffd, &msg, sizeof(msg)) == sizeof(msg)) {
		uintptr_t page = msg.arg.pagefault.address & ~(PAGE_SIZE - 1);

		note(page);
		if (protect(page, PAGE_SIZE, 0))
			die("UFFDIO_WRITEPROTECT");
	}
	die("userfaultfd read");
}

static void start_sync(const struct area *area)
{
	register_uffd(area, UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED);
	errno = pthread_create(&handler, NULL, sync_handler, NULL);
	if (errno)
		die("pthread_create");
}

static void arm_sync(const struct area *area)
{
	memset(written, 0, sizeof(written));
	if (protect((uintptr_t)area->at, area->pages * PAGE_SIZE, UFFDIO_WRITEPROTECT_MODE_WP))
		die("UFFDIO_WRITEPROTECT");
}

static void stop_sync(const struct area *area)
{
	(void)area;
	if (pthread_cancel(handler) || pthread_join(handler, NULL))
		die("pthread_cancel");
	close(uffd);
}

static void segv_handler(int sig, siginfo_t *info, void *context)
{
	uintptr_t page = (uintptr_t)info->si_addr & ~(PAGE_SIZE - 1);

	(void)context;
	if (page - (uintptr_t)current.at >= current.pages * PAGE_SIZE)
		signal(sig, SIG_DFL);	/* a defect: end by it */
	note(page);
	meter_fault();
	if (mprotect((void *)page, PAGE_SIZE, PROT_READ | PROT_WRITE))
		_exit(1);
}

static void start_segv(const struct area *area)
{
	struct sigaction action = { .sa_sigaction = segv_handler, .sa_flags = SA_SIGINFO };

	(void)area;
	if (sigaction(SIGSEGV, &action, NULL))
		die("sigaction");
}

static void arm_segv(const struct area *area)
{
	memset(written, 0, sizeof(written));
	if (mprotect(area->at, area->pages * PAGE_SIZE, PROT_READ))
		die("mprotect");
}

static size_t soft_dirty_pagemap(const struct area *area, unsigned long long category)
{
	(void)category;
	return read_pagemap(area);
}

/* A way to read what was written. */
struct reader {
	const char *what;
	size_t (*read)(const struct area *area, unsigned long long category);
	unsigned long long category;
};

struct method {
	const char *name;
	void (*start)(const struct area *area);
	void (*arm)(const struct area *area);
	void (*stop)(const struct area *area);
	size_t (*renew)(const struct area *area);	/* read and arm */
	struct reader readers[2];
	unsigned int unit[KINDS];	/* pages that one write marks; 0: it cannot be used */
};

#define SOFT_DIRTY_UNITS { 1, 1, THP_SIZE / PAGE_SIZE, 1, 1 }

static const struct method methods[] = {
	{ "untracked", nothing, NULL, nothing, NULL, {}, { 1, 1, 1, 1, 1 } },
	{ "soft-dirty", nothing, clear, nothing, renew_all,
	  { { "read pagemap", soft_dirty_pagemap, 0 },
	    { "read scan", read_scan, PAGE_IS_SOFT_DIRTY } },
	  SOFT_DIRTY_UNITS },
	{ "soft-dirty-range", nothing, arm_range, nothing, renew_range,
	  { { "read scan", read_scan, PAGE_IS_SOFT_DIRTY } },
	  SOFT_DIRTY_UNITS },
	{ "uffd-wp-async", start_async, arm_async, stop_async, renew_async,
	  { { "read scan", read_scan, PAGE_IS_WRITTEN } },
	  { 1, 1, 1, 1, 0 } },
	{ "uffd-wp-sync", start_sync, arm_sync, stop_sync, NULL, { { "read own", noted, 0 } },
	  { 1, 1, 1, 1, 0 } },
	{ "mprotect", start_segv, arm_segv, nothing, NULL, { { "read own", noted, 0 } },
	  { 1, 1, 1, 1, 1 } },
};

/* How many pages one write in STRIDE pages of AREA marks if it marks UNIT of them. */
static size_t marked(const struct area *area, size_t stride, size_t unit)
{
	return area->pages / stride * (unit < stride ? unit : stride);
}

static void expect(const char *cols, const char *what, size_t found, size_t expected)
{
	if (found == expected)
		return;
	fprintf(stderr, "%s: %s: %zu pages instead of %zu\n", cols, what, found, expected);
	exit(1);
}

static void measure(const struct method *method, enum kind kind, size_t stride, int round)
{
	size_t touched = PAGES / stride, expected;
	struct meter meter;
	char cols[80];

	snprintf(cols, sizeof(cols), "track\t%s\t%s\t%zu\t%d", method->name, kind_names[kind],
		 stride, round);
	current = area_map(kind, PAGES);
	area_populate(&current);
	method->start(&current);
	if (method->arm) {
		meter = meter_start();
		method->arm(&current);
		meter_stop(&meter, "arm first", PAGES, cols);
	}
	meter = meter_start();
	area_write(&current, stride);
	meter_stop(&meter, "write first", touched, cols);
	meter = meter_start();
	area_write(&current, stride);
	meter_stop(&meter, "write again", touched, cols);
	touch_buffers();
	expected = marked(&current, stride, method->unit[kind]);
	for (const struct reader *reader = method->readers; reader->read; reader++) {
		size_t found;

		meter = meter_start();
		found = reader->read(&current, reader->category);
		meter_stop(&meter, reader->what, PAGES, cols);
		expect(cols, reader->what, found, expected);
		if (reader == &method->readers[1])
			break;
	}
	if (method->arm) {
		meter = meter_start();
		method->arm(&current);
		meter_stop(&meter, "arm later", PAGES, cols);
		meter = meter_start();
		area_write(&current, stride);
		meter_stop(&meter, "write later", touched, cols);
	}
	if (method->renew) {
		size_t found;

		touch_buffers();
		meter = meter_start();
		found = method->renew(&current);
		meter_stop(&meter, "read and arm", PAGES, cols);
		expect(cols, "read and arm", found, expected);
	}
	method->stop(&current);
	area_unmap(&current);
}

int main(int argc, char **argv)
{
	const char *only = argc > 1 ? argv[1] : NULL;
	int kind_only = argc > 2 ? kind_by_name(argv[2]) : -1;

	area_setup();
	memset(written, 0, sizeof(written));
	for (size_t i = 0; i < sizeof(methods) / sizeof(*methods); i++) {
		const struct method *method = &methods[i];

		if (only && strcmp(only, method->name))
			continue;
		for (int kind = 0; kind < KINDS; kind++) {
			if (!method->unit[kind] || (kind_only >= 0 && kind != kind_only))
				continue;
			for (size_t stride = 1; stride <= 16; stride *= stride == 1 ? 2 : 8)
				for (int round = 0; round < ROUNDS; round++)
					measure(method, kind, stride, round);
		}
	}
	meter_print();
	return 0;
}
