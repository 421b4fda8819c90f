// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "meter.h"

#define MAX_ROWS 4096

struct row {
	char cols[80];
	char what[32];
	size_t pages;
	uint64_t instructions;
	long faults;
};

/* Written, so that no page of it faults in a window. */
static struct row rows[MAX_ROWS] = { [0 ... MAX_ROWS - 1] = { .cols = "-" } };
static size_t nr_rows;
static long signalled;

void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t instructions(void)
{
#if defined(__aarch64__)
	uint64_t count, frequency;

	asm volatile("isb; mrs %0, cntvct_el0; mrs %1, cntfrq_el0"
		     : "=r"(count), "=r"(frequency) : : "memory");
	return count * (1000000000 / frequency);
#elif defined(__x86_64__)
	uint32_t low, high;

	asm volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
#endif
}

static long faults(void)
{
	struct rusage usage;

	if (getrusage(RUSAGE_SELF, &usage))
		die("getrusage");
	return usage.ru_minflt + usage.ru_majflt + signalled;
}

struct meter meter_start(void)
{
	struct meter meter = { .faults = faults() };

	asm volatile(MARK_BEGIN : : : "memory");
	meter.instructions = instructions();
	return meter;
}

void meter_stop(const struct meter *meter, const char *what, size_t pages, const char *cols)
{
	uint64_t end = instructions();
	struct row *row = &rows[nr_rows++];

	asm volatile(MARK_END : : : "memory");
	row->instructions = end - meter->instructions;
	row->faults = faults() - meter->faults;
	row->pages = pages;
	snprintf(row->cols, sizeof(row->cols), "%s", cols);
	snprintf(row->what, sizeof(row->what), "%s", what);
	if (nr_rows == MAX_ROWS) {
		fprintf(stderr, "more than %d rows\n", MAX_ROWS - 1);
		exit(1);
	}
}

void meter_fault(void)
{
	signalled++;
}

void meter_print(void)
{
	for (size_t i = 0; i < nr_rows; i++)
		printf("%s\t%s\t%zu\t%llu\t%ld\n", rows[i].cols, rows[i].what, rows[i].pages,
		       (unsigned long long)rows[i].instructions, rows[i].faults);
}
