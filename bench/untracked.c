// SPDX-License-Identifier: GPL-2.0-only
/* What soft-dirty costs those who do not use it: the work of mm that meets its helpers. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/types.h>

#include "area.h"
#include "gup_test.h"		/* of the kernel's mm/ */
#include "meter.h"

#define PAGES 4096		/* 16 MiB */
#define ROUNDS 15		/* the lab takes the least: timer ticks fall into them */
#define BLOCK 16		/* pages of a contpte block */
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

static int gup_fd;

static void run_fork(const struct area *area)
{
	pid_t pid = fork();
	int status;

	(void)area;
	if (!pid)
		_exit(0);
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		die("fork");
}

static void run_write(const struct area *area)
{
	area_write(area, 1);
}

static void run_read(const struct area *area)
{
	volatile char *at = area->at;

	for (size_t i = 0; i < area->pages; i++)
		(void)at[i * PAGE_SIZE];
}

static void run_protect(const struct area *area)
{
	if (mprotect(area->at, area->pages * PAGE_SIZE, PROT_READ))
		die("mprotect");
}

static void run_unprotect(const struct area *area)
{
	if (mprotect(area->at, area->pages * PAGE_SIZE, PROT_READ | PROT_WRITE))
		die("mprotect");
}

static void run_pageout(const struct area *area)
{
	if (madvise(area->at, area->pages * PAGE_SIZE, MADV_PAGEOUT))
		die("madvise");
}

static void run_gup(const struct area *area, unsigned long cmd)
{
	struct gup_test gup = {
		.addr = (uintptr_t)area->at,
		.size = area->pages * PAGE_SIZE,
		.nr_pages_per_call = THP_SIZE / PAGE_SIZE,
		.gup_flags = 1,		/* FOLL_WRITE */
	};

	if (ioctl(gup_fd, cmd, &gup))
		die("gup_test");
}

static void run_gup_fast(const struct area *area)
{
	run_gup(area, PIN_FAST_BENCHMARK);
}

static void run_gup_slow(const struct area *area)
{
	run_gup(area, PIN_LONGTERM_BENCHMARK);
}

/* Change a page of each contpte block, so that it has to be unfolded, and back. */
static void protect_blocks(const struct area *area, int prot)
{
	for (size_t i = 0; i < area->pages; i += BLOCK)
		if (mprotect(area->at + (i + 1) * PAGE_SIZE, PAGE_SIZE, prot))
			die("mprotect");
}

static void run_unfold(const struct area *area)
{
	protect_blocks(area, PROT_READ);
}

static void run_fold(const struct area *area)
{
	protect_blocks(area, PROT_READ | PROT_WRITE);
}

struct step {
	const char *what;
	void (*run)(const struct area *area);
	unsigned int kinds;		/* a bit for each kind that it is for */
};

#define ANONYMOUS (1U << SMALL | 1U << MTHP | 1U << THP)
#define ANY ((1U << KINDS) - 1)

/* In this order, on an area that was populated. */
static const struct step steps[] = {
	{ "fork and exit", run_fork, ANY },
	{ "write after fork", run_write, ANY },
	{ "mprotect to read-only", run_protect, ANY },
	{ "mprotect to writable", run_unprotect, ANY },
	{ "write after mprotect", run_write, ANY },
	{ "GUP fast of 2 MiB", run_gup_fast, ANY },
	{ "GUP slow of 2 MiB", run_gup_slow, ANONYMOUS },
	{ "contpte unfold", run_unfold, 1U << MTHP },
	{ "contpte fold", run_fold, 1U << MTHP },
	{ "swap out", run_pageout, 1U << SMALL | 1U << MTHP },
	{ "swap in by read", run_read, 1U << SMALL | 1U << MTHP },
	{ "write after swap in", run_write, 1U << SMALL | 1U << MTHP },
	{ "munmap", area_unmap, ANY },
};

static void measure(enum kind kind, int round)
{
	struct area area = area_map(kind, PAGES);
	struct meter meter = meter_start();
	char cols[80];

	snprintf(cols, sizeof(cols), "untracked\t-\t%s\t1\t%d", kind_names[kind], round);
	area_populate(&area);
	meter_stop(&meter, "page fault", PAGES, cols);
	for (size_t i = 0; i < sizeof(steps) / sizeof(*steps); i++) {
		if (!(steps[i].kinds & 1U << kind))
			continue;
		meter = meter_start();
		steps[i].run(&area);
		meter_stop(&meter, steps[i].what, PAGES, cols);
	}
}

int main(void)
{
	area_setup();
	gup_fd = open("/sys/kernel/debug/gup_test", O_RDWR);
	if (gup_fd < 0)
		die("gup_test");
	for (int kind = 0; kind < KINDS; kind++)
		for (int round = 0; round < ROUNDS; round++)
			measure(kind, round);
	meter_print();
	return 0;
}
