// SPDX-License-Identifier: GPL-2.0-only
/*
 * How the cost of soft-dirty grows with the memory that a process has, and with the number
 * of mappings that the same memory is in.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <linux/fs.h>

#include "area.h"
#include "meter.h"

#define MIB ((size_t)256)	/* pages */
#define ROUNDS 3
#define VMA_PAGES (2560 * MIB)	/* what is divided into mappings: each has 65 pages at least */

static const size_t sizes[] = { 16 * MIB, 64 * MIB, 256 * MIB, 1024 * MIB, 4096 * MIB };
static const size_t vmas[] = { 1, 10, 100, 1000, 10000 };

static void cycle(const struct area *area, const char *cols)
{
	struct meter meter = meter_start();

	clear_refs();
	meter_stop(&meter, "arm first", area->pages, cols);
	meter = meter_start();
	area_write(area, 1);
	meter_stop(&meter, "write first", area->pages, cols);
	touch_buffers();
	meter = meter_start();
	if (read_pagemap(area) != area->pages)
		die("pagemap misses a page");
	meter_stop(&meter, "read pagemap", area->pages, cols);
	meter = meter_start();
	if (read_scan(area, PAGE_IS_SOFT_DIRTY) != area->pages)
		die("PAGEMAP_SCAN misses a page");
	meter_stop(&meter, "read scan", area->pages, cols);
	meter = meter_start();
	clear_refs();
	meter_stop(&meter, "arm later", area->pages, cols);
}

static void resident(enum kind kind, size_t pages)
{
	char cols[80];

	/* A longer one has more ticks in it, and they count for less: once is enough. */
	for (int round = 0; round < (pages > 64 * MIB ? 1 : ROUNDS); round++) {
		struct area area = area_map(kind, pages);

		area_populate(&area);
		snprintf(cols, sizeof(cols), "resident\t%zu\t%s\t1\t%d", pages / MIB,
			 kind_names[kind], round);
		cycle(&area, cols);
		area_unmap(&area);
	}
}

/* Let every second of COUNT parts of AREA differ from the next by a flag of no effect. */
static void divide(const struct area *area, size_t count)
{
	size_t size = area->pages / count * PAGE_SIZE;

	for (size_t i = 1; i < count; i += 2)
		if (madvise(area->at + i * size, size, MADV_DONTDUMP))
			die("madvise");
}

static void divided(size_t count)
{
	struct area area = area_map(SMALL, VMA_PAGES);
	char cols[80];

	divide(&area, count);
	area_populate(&area);
	snprintf(cols, sizeof(cols), "mappings\t%zu\t%s\t1\t0", count, kind_names[SMALL]);
	cycle(&area, cols);
	area_unmap(&area);
}

int main(void)
{
	area_setup();
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		resident(SMALL, sizes[i]);
		resident(MTHP, sizes[i]);
	}
	for (size_t i = 0; i < sizeof(vmas) / sizeof(*vmas); i++)
		divided(vmas[i]);
	meter_print();
	return 0;
}
