// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a few pages of a large process cost: to read and clean them by one scan, or by pagemap
 * and clear_refs; and to be filled by userfaultfd soft-clean, or by the steps that it takes to
 * have that without the mode.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>

#include "area.h"
#include "meter.h"

#define GIB ((size_t)256 << 10)	/* pages */
#define FEW 16			/* pages */
#define ROUNDS 3

static char source[FEW * PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));

static void row(const struct meter *meter, const char *method, size_t pages, int round)
{
	char cols[80];

	snprintf(cols, sizeof(cols), "range\t%s\t%zu GiB\t1\t%d", method, pages / GIB, round);
	meter_stop(meter, "16 pages", FEW, cols);
}

static void expect(size_t found)
{
	if (found == FEW)
		return;
	fprintf(stderr, "%zu pages instead of %d\n", found, FEW);
	exit(1);
}

/* Read and clean a few pages of AREA, the others being clean. */
static void renew(const struct area *area, int round)
{
	struct area few = *area;
	struct meter meter;
	size_t found;

	few.at += area->pages / 2 * PAGE_SIZE;
	few.pages = FEW;

	clear_refs();
	area_write(&few, 1);
	touch_buffers();
	meter = meter_start();
	found = read_pagemap(&few);
	clear_refs();
	row(&meter, "pagemap and clear_refs", area->pages, round);
	expect(found);

	area_write(&few, 1);
	touch_buffers();
	meter = meter_start();
	found = scan(&few, PAGE_IS_SOFT_DIRTY, PM_SCAN_SOFT_CLEAN_MATCHING);
	row(&meter, "PAGEMAP_SCAN that cleans", area->pages, round);
	expect(found);
}

static void copy(int uffd, const struct area *few, unsigned long long mode)
{
	struct uffdio_copy arg = {
		.dst = (uintptr_t)few->at,
		.src = (uintptr_t)source,
		.len = FEW * PAGE_SIZE,
		.mode = mode,
	};

	if (ioctl(uffd, UFFDIO_COPY, &arg))
		die("UFFDIO_COPY");
}

/* Fill a few pages that are not there yet, in a process that has AREA, too. */
static void fill(const struct area *area, int round)
{
	struct area few = area_map(SMALL, 2 * FEW), next = few;
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = {
		.range = { (uintptr_t)few.at, 2 * FEW * PAGE_SIZE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_range wake = { (uintptr_t)few.at, FEW * PAGE_SIZE };
	struct meter meter;

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &range))
		die("userfaultfd");
	next.at += FEW * PAGE_SIZE;
	clear_refs();
	touch_buffers();

	/* What others have written has to be known before clear_refs forgets it. */
	meter = meter_start();
	read_pagemap(area);
	copy(uffd, &few, UFFDIO_COPY_MODE_DONTWAKE);
	clear_refs();
	if (ioctl(uffd, UFFDIO_WAKE, &wake))
		die("UFFDIO_WAKE");
	row(&meter, "UFFDIO_COPY in four steps", area->pages, round);

	touch_buffers();
	meter = meter_start();
	copy(uffd, &next, UFFDIO_COPY_MODE_DONTSOFTDIRTY);
	row(&meter, "UFFDIO_COPY soft-clean", area->pages, round);
	close(uffd);
	area_unmap(&few);
}

int main(void)
{
	static const size_t sizes[] = { 1 * GIB, 4 * GIB };

	area_setup();
	for (size_t i = 0; i < sizeof(source); i += PAGE_SIZE)
		source[i] = 1;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		struct area area = area_map(SMALL, sizes[i]);

		area_populate(&area);
		for (int round = 0; round < ROUNDS; round++) {
			renew(&area, round);
			fill(&area, round);
		}
		area_unmap(&area);
	}
	meter_print();
	return 0;
}
