// SPDX-License-Identifier: GPL-2.0-only
/*
 * Show what soft-dirty sees: map memory of several kinds, make it soft-clean,
 * write some of its pages, and print a map of the pages that the kernel reports
 * beside the pages that were written.
 *
 * Exits with 0 if the two agree everywhere, 1 if they do not or a kind that has
 * to be there could not be set up, 4 if the kernel does not track soft-dirty.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <linux/types.h>

#define THP_DIR "/sys/kernel/mm/transparent_hugepage"
#define COLUMNS 64
/* A huge page larger than this does not fit into a small guest. */
#define MAX_THP (64UL << 20)

#define PM_PRESENT (1ULL << 63)
#define PM_SOFT_DIRTY (1ULL << 55)
#define PM_PFN ((1ULL << 55) - 1)

/* From the kernel's uapi/linux/fs.h, newer than the C library's headers. */
struct page_region {
	__u64 start, end, categories;
};

struct pm_scan_arg {
	__u64 size, flags, start, end, walk_end, vec, vec_len, max_pages;
	__u64 category_inverted, category_mask, category_anyof_mask, return_mask;
};

#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#define PAGE_IS_HUGE (1 << 6)
#define PAGE_IS_SOFT_DIRTY (1 << 7)

struct area {
	const char *kind;
	char *mem;
	size_t pages;
	size_t unit;		/* pages that one write makes dirty */
	bool forced;		/* written through /proc/self/mem, mapped read-only */
};

static size_t page_size;
static int pagemap_fd;

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf(": %s\n", strerror(errno));
	exit(1);
}

static uint64_t pagemap(const char *addr)
{
	uint64_t entry;

	if (pread(pagemap_fd, &entry, sizeof(entry),
		  (uintptr_t)addr / page_size * sizeof(entry)) != sizeof(entry))
		die("reading pagemap");
	return entry;
}

/* Ask PAGEMAP_SCAN whether the page at addr is of the given category. */
static bool scan(const char *addr, uint64_t category)
{
	struct page_region region;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)addr,
		.end = (uintptr_t)addr + page_size,
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_mask = category,
		.return_mask = category,
	};
	int found = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);

	if (found < 0)
		die("PAGEMAP_SCAN");
	return found == 1;
}

static void clear_refs(void)
{
	int fd = open("/proc/self/clear_refs", O_WRONLY);

	if (fd < 0 || write(fd, "4", 1) != 1)
		die("writing to clear_refs");
	close(fd);
}

static long faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt;
}

/*
 * clear_refs accepts 4 on every kernel, so the way to know is a round trip. The
 * C library's own pages do not matter: this is a fresh mapping.
 */
static bool supported(void)
{
	volatile char *page = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool clean, dirty;

	if (page == MAP_FAILED)
		die("mmap");
	*page = 1;
	clear_refs();
	clean = !(pagemap((char *)page) & PM_SOFT_DIRTY);
	*page = 2;
	dirty = pagemap((char *)page) & PM_SOFT_DIRTY;
	munmap((char *)page, page_size);
	return clean && dirty;
}

/* Write pages alone, in pairs, at both ends of a block, none and all of it. */
static bool to_write(const struct area *area, size_t page)
{
	size_t block = area->unit > 1 ? area->unit : 16;

	if (area->unit > 1)
		return page / block % 2 == 0 && page % block == block / 3;
	switch (page / block % 4) {
	case 0:
		return page % block == 5;
	case 1:
		return page % block == 0 || page % block == block - 1;
	case 2:
		return false;
	default:
		return page / block % 8 == 3 || page % 2;
	}
}

static char *map(size_t len, int flags, int fd)
{
	char *mem = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (mem == MAP_FAILED)
		die("mmap");
	return mem;
}

/* Anonymous memory at a multiple of align, with memory around it left unmapped. */
static char *map_aligned(size_t len, size_t align)
{
	char *mem = map(len + align, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	char *start = (char *)(((uintptr_t)mem + align - 1) / align * align);

	munmap(mem, start - mem);
	munmap(start + len, mem + align - start);
	return start;
}

static void populate(char *mem, size_t len)
{
	for (size_t i = 0; i < len; i += page_size)
		((volatile char *)mem)[i] = 1;
}

/* Write a sysfs setting and return what it was: the choice in brackets. */
static char *set_thp(const char *path, const char *value)
{
	char line[256] = "", *was = NULL;
	FILE *file = fopen(path, "r+");

	if (!file)
		return NULL;
	if (fgets(line, sizeof(line), file) && strchr(line, '[')) {
		was = strdup(strchr(line, '[') + 1);
		*strchr(was, ']') = '\0';
	}
	rewind(file);
	if (fputs(value, file) < 0 || fclose(file))
		die("writing %s", path);
	return was;
}

/* The block that the contiguous bit maps as one, for each page size. */
static size_t contpte_size(void)
{
	return page_size == 4096 ? 65536 : 2 << 20;
}

static bool contiguous(const char *mem, size_t len)
{
	uint64_t first = pagemap(mem) & PM_PFN;

	for (size_t i = 0; i < len / page_size; i++) {
		uint64_t entry = pagemap(mem + i * page_size);

		if (!(entry & PM_PRESENT) || (entry & PM_PFN) != first + i)
			return false;
	}
	return first % (len / page_size) == 0;
}

static const char *size_name(size_t size)
{
	static char name[32];

	if (size >= 1 << 20)
		snprintf(name, sizeof(name), "%zuM", size >> 20);
	else
		snprintf(name, sizeof(name), "%zuK", size >> 10);
	return name;
}

static bool same_row(const char *a, const char *b, size_t row, size_t len)
{
	return row && !memcmp(a + row * COLUMNS, a + (row - 1) * COLUMNS, len) &&
	       !memcmp(b + row * COLUMNS, b + (row - 1) * COLUMNS, len);
}

static void print_map(const char *written, const char *seen, size_t pages)
{
	size_t more = 0;

	for (size_t row = 0; row * COLUMNS < pages; row++) {
		size_t left = pages - row * COLUMNS;
		int len = left < COLUMNS ? left : COLUMNS;

		if (same_row(written, seen, row, len)) {
			more++;
			continue;
		}
		if (more)
			printf("           (and %zu more rows like this one)\n", more);
		more = 0;
		printf("  written  %.*s\n", len, written + row * COLUMNS);
		printf("  seen     %.*s\n", len, seen + row * COLUMNS);
	}
	if (more)
		printf("           (and %zu more rows like this one)\n", more);
}

/* Write to a page as a debugger does, whatever its protection. */
static void force_write(const char *page)
{
	static int fd = -1;

	if (fd < 0)
		fd = open("/proc/self/mem", O_RDWR);
	if (pwrite(fd, "", 1, (uintptr_t)page) != 1)
		die("writing to /proc/self/mem");
}

/* Clear, write, read, and print; returns the number of pages that are wrong. */
static size_t show(const struct area *area)
{
	size_t writes = 0, dirty = 0, missed = 0, extra = 0, stale = 0, split = 0;
	char *written = malloc(area->pages), *seen = malloc(area->pages);
	long before, taken;

	for (size_t i = 0; i < area->pages; i++) {
		written[i] = to_write(area, i) ? '#' : '.';
		writes += written[i] == '#';
	}

	clear_refs();
	for (size_t i = 0; i < area->pages; i++)
		stale += !!(pagemap(area->mem + i * page_size) & PM_SOFT_DIRTY);

	before = faults();
	for (size_t i = 0; i < area->pages; i++) {
		if (written[i] != '#')
			continue;
		if (area->forced)
			force_write(area->mem + i * page_size);
		else
			((volatile char *)area->mem)[i * page_size] = 2;
	}
	taken = faults() - before;

	for (size_t i = 0; i < area->pages; i++) {
		const char *page = area->mem + i * page_size;
		size_t unit = i / area->unit * area->unit;
		bool want = memchr(written + unit, '#', area->unit);
		bool is = pagemap(page) & PM_SOFT_DIRTY;

		seen[i] = is ? '#' : '.';
		dirty += is;
		missed += want && !is;
		extra += is && !want;
		split += is != scan(page, PAGE_IS_SOFT_DIRTY);
	}

	printf("\n%s: %zu pages, %zu written, %zu seen dirty, %ld faults\n",
	       area->kind, area->pages, writes, dirty, taken);
	print_map(written, seen, area->pages);
	printf("  missed: %zu of %zu; reported in excess: %zu of %zu",
	       missed, writes * area->unit, extra, area->pages - writes * area->unit);
	if (stale)
		printf("; still dirty after the clear: %zu", stale);
	if (split)
		printf("; pagemap and PAGEMAP_SCAN disagree: %zu", split);
	printf("\n");
	free(written);
	free(seen);
	return missed + extra + stale + split;
}

static size_t show_anon(void)
{
	struct area area = { .kind = "anonymous, base pages", .pages = 128, .unit = 1 };

	area.mem = map_aligned(area.pages * page_size, contpte_size());
	madvise(area.mem, area.pages * page_size, MADV_NOHUGEPAGE);
	populate(area.mem, area.pages * page_size);
	return show(&area);
}

static size_t show_mthp(bool forced)
{
	size_t size = contpte_size(), len = 8 * size;
	struct area area = { .pages = len / page_size, .unit = 1, .forced = forced };
	char path[128], kind[80], *was;

	snprintf(path, sizeof(path), THP_DIR "/hugepages-%zukB/enabled", size >> 10);
	snprintf(kind, sizeof(kind), "anonymous, %s mTHP%s", size_name(size),
		 forced ? ", read-only, written by a debugger" : "");
	area.kind = kind;
	was = set_thp(path, "always");
	if (!was) {
		printf("\n%s: not offered by this kernel\n", kind);
		return 1;
	}
	area.mem = map_aligned(len, size);
	populate(area.mem, len);
	set_thp(path, was);
	free(was);
	for (size_t i = 0; i < len; i += size) {
		if (!contiguous(area.mem + i, size)) {
			printf("\n%s: the kernel did not allocate one\n", kind);
			return 1;
		}
	}
	if (forced && mprotect(area.mem, len, PROT_READ))
		die("mprotect");
	return show(&area);
}

static size_t show_thp(void)
{
	struct area area = { 0 };
	size_t size = 0, bad;
	char kind[64], *was;
	FILE *file = fopen(THP_DIR "/hpage_pmd_size", "r");

	if (!file || fscanf(file, "%zu", &size) != 1)
		die("reading the size of a huge page");
	fclose(file);
	snprintf(kind, sizeof(kind), "anonymous, %s THP, one unit", size_name(size));
	if (size > MAX_THP) {
		printf("\n%s: too large to show here\n", kind);
		return 0;
	}
	area = (struct area){ .kind = kind, .pages = 2 * size / page_size,
			      .unit = size / page_size };
	was = set_thp(THP_DIR "/enabled", "madvise");
	area.mem = map_aligned(2 * size, size);
	madvise(area.mem, 2 * size, MADV_HUGEPAGE);
	populate(area.mem, 2 * size);
	set_thp(THP_DIR "/enabled", was);
	free(was);
	if (!scan(area.mem, PAGE_IS_HUGE) || !scan(area.mem + size, PAGE_IS_HUGE)) {
		printf("\n%s: the kernel did not allocate one\n", kind);
		return 1;
	}
	bad = show(&area);
	munmap(area.mem, 2 * size);
	return bad;
}

static size_t show_shared(void)
{
	struct area area = { .kind = "shared memory", .pages = 128, .unit = 1 };

	area.mem = map(area.pages * page_size, MAP_SHARED | MAP_ANONYMOUS, -1);
	populate(area.mem, area.pages * page_size);
	return show(&area);
}

static size_t show_file(void)
{
	struct area area = { .kind = "shared mapping of a file", .pages = 128, .unit = 1 };
	char name[] = "softdirty-map.XXXXXX";
	int fd;

	if (chdir("/scratch"))
		printf("\nno file system on /scratch: the file is in the current directory\n");
	fd = mkstemp(name);
	if (fd < 0)
		die("creating %s", name);
	unlink(name);
	if (ftruncate(fd, area.pages * page_size))
		die("ftruncate");
	area.mem = map(area.pages * page_size, MAP_SHARED, fd);
	close(fd);
	populate(area.mem, area.pages * page_size);
	return show(&area);
}

/* The boot log says whether the CPU sets dirty bits by itself. */
static const char *hardware_dirty(void)
{
	int size = klogctl(10 /* SYSLOG_ACTION_SIZE_BUFFER */, NULL, 0);
	char *log = calloc(1, size + 1);
	const char *answer = "unknown";

	if (log && klogctl(3 /* SYSLOG_ACTION_READ_ALL */, log, size) > 0)
		answer = strstr(log, "Hardware dirty bit management") ? "yes" :
			 strstr(log, "Booting Linux") ? "no" : "unknown";
	free(log);
	return answer;
}

int main(void)
{
	struct utsname name;
	size_t bad = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	page_size = sysconf(_SC_PAGESIZE);
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY);
	if (pagemap_fd < 0)
		die("opening pagemap");
	uname(&name);
	printf("Linux %s on %s, %s pages, hardware dirty bit management: %s\n",
	       name.release, name.machine, size_name(page_size), hardware_dirty());
	if (!supported()) {
		printf("\nSoft-dirty is not supported by this kernel: a page was written after\n"
		       "clear_refs, and bit 55 of its pagemap entry did not tell.\n");
		return 4;
	}
	printf("# written or dirty, . neither\n");
	bad += show_anon();
	bad += show_mthp(false);
	bad += show_mthp(true);
	bad += show_thp();
	bad += show_shared();
	bad += show_file();
	printf("\n%s\n", bad ? "The kernel's map is WRONG." :
	       "The kernel saw what was written, and nothing else.");
	return bad ? 1 : 0;
}
