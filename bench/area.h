/* SPDX-License-Identifier: GPL-2.0-only */
/* Memory of each kind that is measured, and the ways to read what was written of it. */
#ifndef BENCH_AREA_H
#define BENCH_AREA_H

#include <stdbool.h>
#include <stddef.h>

#define PAGE_SIZE ((size_t)4096)
#define THP_SIZE ((size_t)2 << 20)

enum kind {
	SMALL,			/* anonymous, a page at a time */
	MTHP,			/* anonymous, in folios of 64 KiB: contpte blocks on arm64 */
	THP,			/* anonymous, in huge pages of 2 MiB */
	SHARED,			/* anonymous, shared */
	SHARED_FILE,		/* a shared mapping of a file on ext4 */
	KINDS
};

extern const char *const kind_names[KINDS];

struct area {
	enum kind kind;
	char *at;
	size_t pages;
};

/* The kind that is called NAME, or -1. */
int kind_by_name(const char *name);

/* Map PAGES pages, a multiple of those of a huge page, none of them there yet. */
struct area area_map(enum kind kind, size_t pages);

/* Write every page, and make sure that the memory is in folios of its kind. */
void area_populate(const struct area *area);

void area_unmap(const struct area *area);

/* Store to the first byte of every STRIDE'th page. */
void area_write(const struct area *area, size_t stride);

/* Make the whole process soft-clean. */
void clear_refs(void);

/* Write to what the two functions below read into: clear_refs() made that soft-clean, too. */
void touch_buffers(void);

/* How many pages pagemap calls soft-dirty. */
size_t read_pagemap(const struct area *area);

/* How many pages PAGEMAP_SCAN calls CATEGORY. */
size_t read_scan(const struct area *area, unsigned long long category);

/* The same with FLAGS. */
size_t scan(const struct area *area, unsigned long long category, unsigned long long flags);

/* The same, and nobody wants to know. */
void scan_without_report(const struct area *area, unsigned long long category,
			 unsigned long long flags);

/* Open what the functions above need; turn off what the kernel would do by itself. */
void area_setup(void);

#endif
