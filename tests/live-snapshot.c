// SPDX-License-Identifier: GPL-2.0-only
/*
 * Copy the memory of a process that goes on writing to it: in rounds, each of which reads and
 * clears soft-dirty in one step and copies what was written meanwhile, and with one short
 * stop for the last. Then the copy has to be equal to the memory.
 *
 * Exits with 0 if it is, and with 4 if the kernel cannot do it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/fs.h>

#define PAGES 16384		/* 64 MiB with 4K pages */
#define MAX_ROUNDS 12
#define ENOUGH 256		/* pages left to copy: then it is worth to stop */
#define BETWEEN 2000		/* us that the process has for itself between two rounds */
#define REGIONS 4096
#define EXIT_UNSUPPORTED 4

static size_t page_size;
static char *memory, *copy, *buffer;
static struct page_region regions[REGIONS];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* The busy process: writes here and there, most of the time to a part that moves on slowly. */
static void work(void)
{
	uint32_t random = 1;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (uint64_t step = 0;; step++) {
		size_t page, part = step / 20000 * 64 % PAGES;

		random = random * 1664525 + 1013904223;
		page = step % 16 ? (part + (random >> 8) % 128) % PAGES : (random >> 8) % PAGES;
		((volatile uint64_t *)(memory + page * page_size))[random % 64]++;
		/* It has something to compute, too. */
		for (int i = 0; i < 400; i++)
			random = random * 1664525 + 1013904223;
	}
}

static void read_memory(pid_t pid, size_t page, size_t count, char *to)
{
	struct iovec local = { to, count * page_size };
	struct iovec remote = { memory + page * page_size, count * page_size };

	if (process_vm_readv(pid, &local, 1, &remote, 1, 0) != (ssize_t)local.iov_len)
		die("process_vm_readv");
}

/*
 * Copy what was written since the round before; how many pages that was. What is written
 * while it copies is dirty again, and comes with the next round.
 */
static size_t copy_round(pid_t pid, int pagemap)
{
	uintptr_t start = (uintptr_t)memory, end = start + PAGES * page_size;
	size_t copied = 0;

	while (start < end) {
		struct pm_scan_arg arg = {
			.size = sizeof(arg),
			.flags = PM_SCAN_SOFT_CLEAN_MATCHING,
			.start = start,
			.end = end,
			.vec = (uintptr_t)regions,
			.vec_len = REGIONS,
			.category_mask = PAGE_IS_SOFT_DIRTY,
			.return_mask = PAGE_IS_SOFT_DIRTY,
		};
		int count = ioctl(pagemap, PAGEMAP_SCAN, &arg);

		if (count < 0 && errno == EINVAL) {
			puts("This kernel cannot read and clear soft-dirty in one step.");
			exit(EXIT_UNSUPPORTED);
		}
		if (count < 0)
			die("PAGEMAP_SCAN");
		for (int i = 0; i < count; i++) {
			size_t first = (regions[i].start - (uintptr_t)memory) / page_size;
			size_t pages = (regions[i].end - regions[i].start) / page_size;

			read_memory(pid, first, pages, copy + first * page_size);
			copied += pages;
		}
		start = arg.walk_end;
	}
	return copied;
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000ULL + time.tv_nsec / 1000;
}

static void print_round(const char *name, size_t pages, uint64_t took)
{
	printf("%-12s %6zu pages copied in %7llu us, %5.1f %% of the memory\n", name, pages,
	       (unsigned long long)took, 100.0 * pages / PAGES);
	fflush(stdout);
}

int main(void)
{
	size_t pages = PAGES, different = 0;
	uint64_t began;
	char path[64], name[32];
	int pagemap, status;
	pid_t pid;

	page_size = sysconf(_SC_PAGESIZE);
	/* Between pages of nothing, so that it is a mapping of its own, see soft-dirty.rst. */
	memory = mmap(NULL, (PAGES + 2) * page_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	memory += page_size;
	if (mprotect(memory, PAGES * page_size, PROT_READ | PROT_WRITE))
		die("mprotect");
	/* A huge page is one unit: all of it would have to be copied for a write to it. */
	madvise(memory, PAGES * page_size, MADV_NOHUGEPAGE);
	copy = mmap(NULL, PAGES * page_size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	buffer = malloc(page_size);
	if (copy == MAP_FAILED || !buffer)
		die("mmap");
	pid = fork();
	if (pid < 0)
		die("fork");
	if (!pid) {
		memset(memory, 1, PAGES * page_size);
		work();
	}
	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	pagemap = open(path, O_RDONLY);
	if (pagemap < 0)
		die(path);
	sleep(1);

	for (int round = 0; round < MAX_ROUNDS && pages > ENOUGH; round++) {
		began = now();
		pages = copy_round(pid, pagemap);
		snprintf(name, sizeof(name), "round %d:", round + 1);
		print_round(name, pages, now() - began);
		usleep(BETWEEN);
	}

	began = now();
	if (kill(pid, SIGSTOP) || waitpid(pid, &status, WUNTRACED) != pid)
		die("SIGSTOP");
	pages = copy_round(pid, pagemap);
	print_round("stopped:", pages, now() - began);

	for (size_t i = 0; i < PAGES; i++) {
		read_memory(pid, i, 1, buffer);
		different += !!memcmp(buffer, copy + i * page_size, page_size);
	}
	kill(pid, SIGKILL);
	printf("The copy: %zu of %d pages differ from the memory.\n", different, PAGES);
	return different ? 1 : 0;
}
