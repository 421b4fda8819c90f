// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <linux/fs.h>

#include "area.h"
#include "meter.h"

#define THP_DIR "/sys/kernel/mm/transparent_hugepage"
#define FILE_NAME "/scratch/bench"
#define PM_SOFT_DIRTY (1ULL << 55)
#define CHUNK 4096		/* entries or regions that one call returns */

const char *const kind_names[KINDS] = {
	[SMALL] = "anonymous",
	[MTHP] = "anonymous-64K",
	[THP] = "anonymous-2M",
	[SHARED] = "shared",
	[SHARED_FILE] = "file",
};

static int clear_refs_fd, pagemap_fd;
static uint64_t entries[CHUNK];
static struct page_region regions[CHUNK];

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die(path);
	close(fd);
}

static long read_number(const char *path)
{
	FILE *file = fopen(path, "r");
	long number;

	if (!file || fscanf(file, "%ld", &number) != 1)
		die(path);
	fclose(file);
	return number;
}

int kind_by_name(const char *name)
{
	for (int kind = 0; kind < KINDS; kind++)
		if (!strcmp(kind_names[kind], name))
			return kind;
	return -1;
}

void area_setup(void)
{
	clear_refs_fd = open("/proc/self/clear_refs", O_WRONLY);
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY);
	if (clear_refs_fd < 0 || pagemap_fd < 0)
		die("/proc/self");
	touch_buffers();
	/* No page becomes clean, and no folio huge, by a thread of the kernel. */
	write_file("/proc/sys/vm/dirty_writeback_centisecs", "0");
	write_file(THP_DIR "/khugepaged/defrag", "0");
	write_file(THP_DIR "/enabled", "never");
	write_file(THP_DIR "/hugepages-64kB/enabled", "never");
	write_file(THP_DIR "/hugepages-2048kB/enabled", "never");
}

static void allow_folios(enum kind kind, const char *setting)
{
	if (kind == MTHP)
		write_file(THP_DIR "/hugepages-64kB/enabled", setting);
	if (kind == THP)
		write_file(THP_DIR "/hugepages-2048kB/enabled", setting);
}

/* How many folios of the kind page faults have allocated since boot. */
static long folios(enum kind kind)
{
	if (kind == MTHP)
		return read_number(THP_DIR "/hugepages-64kB/stats/anon_fault_alloc");
	if (kind == THP)
		return read_number(THP_DIR "/hugepages-2048kB/stats/anon_fault_alloc");
	return 0;
}

struct area area_map(enum kind kind, size_t pages)
{
	struct area area = { .kind = kind, .pages = pages };
	size_t size = pages * PAGE_SIZE;
	int shared = kind == SHARED || kind == SHARED_FILE ? MAP_SHARED : MAP_PRIVATE;
	int fd = -1;
	char *at;

	if (kind == SHARED_FILE) {
		fd = open(FILE_NAME, O_RDWR | O_CREAT, 0600);
		if (fd < 0)
			die(FILE_NAME);
		for (size_t i = 0; i < pages; i++)	/* so that a folio is a page */
			if (pwrite(fd, entries, PAGE_SIZE, i * PAGE_SIZE) != PAGE_SIZE)
				die(FILE_NAME);
	}
	/* Aligned, with nothing next to it that it could become one mapping with. */
	at = mmap(NULL, size + 2 * THP_SIZE, PROT_NONE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED)
		die("mmap");
	area.at = (char *)(((uintptr_t)at + THP_SIZE) & ~(THP_SIZE - 1));
	munmap(at, size + 2 * THP_SIZE);
	if (mmap(area.at, size, PROT_READ | PROT_WRITE,
		 shared | MAP_FIXED | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0) != area.at)
		die("mmap");
	if (fd >= 0)
		close(fd);
	return area;
}

void area_populate(const struct area *area)
{
	long before = folios(area->kind), wanted = 0;

	allow_folios(area->kind, "always");
	area_write(area, 1);
	allow_folios(area->kind, "never");
	if (area->kind == MTHP)
		wanted = area->pages / 16;
	if (area->kind == THP)
		wanted = area->pages / (THP_SIZE / PAGE_SIZE);
	if (folios(area->kind) - before != wanted) {
		fprintf(stderr, "%s: %ld folios instead of %ld\n", kind_names[area->kind],
			folios(area->kind) - before, wanted);
		exit(1);
	}
}

void area_unmap(const struct area *area)
{
	if (munmap(area->at, area->pages * PAGE_SIZE))
		die("munmap");
	if (area->kind == SHARED_FILE && unlink(FILE_NAME))
		die(FILE_NAME);
}

__attribute__((noinline)) void area_write(const struct area *area, size_t stride)
{
	volatile char *at = area->at;

	for (size_t i = 0; i < area->pages; i += stride)
		at[i * PAGE_SIZE] = 1;
}

void clear_refs(void)
{
	if (write(clear_refs_fd, "4", 1) != 1)
		die("clear_refs");
}

void touch_buffers(void)
{
	memset(entries, 1, sizeof(entries));
	memset(regions, 1, sizeof(regions));
}

size_t read_pagemap(const struct area *area)
{
	size_t found = 0;

	for (size_t done = 0; done < area->pages; done += CHUNK) {
		size_t left = area->pages - done, wanted = left < CHUNK ? left : CHUNK;
		off_t from = (uintptr_t)area->at / PAGE_SIZE + done;

		if (pread(pagemap_fd, entries, wanted * sizeof(*entries),
			  from * sizeof(*entries)) != (ssize_t)(wanted * sizeof(*entries)))
			die("pagemap");
		for (size_t i = 0; i < wanted; i++)
			found += !!(entries[i] & PM_SOFT_DIRTY);
	}
	return found;
}

size_t read_scan(const struct area *area, unsigned long long category)
{
	return scan(area, category, 0);
}

void scan_without_report(const struct area *area, unsigned long long category,
			 unsigned long long flags)
{
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = flags,
		.start = (uintptr_t)area->at,
		.end = (uintptr_t)area->at + area->pages * PAGE_SIZE,
		.category_mask = category,
		.return_mask = category,
	};

	if (ioctl(pagemap_fd, PAGEMAP_SCAN, &arg) < 0)
		die("PAGEMAP_SCAN");
}

size_t scan(const struct area *area, unsigned long long category, unsigned long long flags)
{
	uintptr_t start = (uintptr_t)area->at, end = start + area->pages * PAGE_SIZE;
	size_t found = 0;

	while (start < end) {
		struct pm_scan_arg arg = {
			.size = sizeof(arg),
			.flags = flags,
			.start = start,
			.end = end,
			.vec = (uintptr_t)regions,
			.vec_len = CHUNK,
			.category_mask = category,
			.return_mask = category,
		};
		int count = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);

		if (count < 0)
			die("PAGEMAP_SCAN");
		for (int i = 0; i < count; i++)
			found += (regions[i].end - regions[i].start) / PAGE_SIZE;
		/* Or else walk_end may be where the kernel last emptied a buffer of its own. */
		if (count < CHUNK)
			break;
		start = arg.walk_end;
	}
	return found;
}
