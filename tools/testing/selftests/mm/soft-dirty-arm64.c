// SPDX-License-Identifier: GPL-2.0-only
/*
 * Soft-dirty page tracking: what a process writes reads soft-dirty after it, and
 * nothing else does.
 *
 * The generic soft-dirty test asks about single pages and one THP. This one asks
 * about all pages of an area, made of base pages, of mTHPs of each order or of
 * PMD-mapped THPs, of each kind of memory: on arm64 one page table entry may stand
 * for sixteen pages, and soft-dirty must tell them apart all the same.
 *
 * Each check reads bit 55 of pagemap and PAGE_IS_SOFT_DIRTY of PAGEMAP_SCAN for
 * all pages of the area and expects that the two agree, that no written page is
 * missed, and that no other page is reported.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <linux/magic.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../../../../mm/gup_test.h"
#include "vm_util.h"
#include "hugepage_settings.h"

#ifndef PROT_MTE
#define PROT_MTE	0x20
#endif
#ifndef AT_MINSIGSTKSZ
#define AT_MINSIGSTKSZ	51
#endif

/* Seconds: emulators are slow, and more so with a debug kernel. */
#define TIMEOUT		300

/* Pages of an area of base pages: eight blocks of contiguous PTEs with 4K pages. */
#define BASE_PAGES	128

/* What is expensive by the page is done with so many pages at most. */
#define MANY_PAGES	2048

/* An area of mTHPs has no more bytes, which a PMD of 64K pages would have. */
#define MANY_BYTES	(64UL << 20)

/* Threads write to no more bytes, which are copied and compared in each round. */
#define WRITTEN_BYTES	(16UL << 20)

/* Of khugepaged while it is not to scan, in ms. */
#define SCAN_SLEEP	(60 * 60 * 1000)

/* In /proc/kpageflags: the first page of a large folio, and the others. */
#define KPF_LARGE	(BIT_ULL(15) | BIT_ULL(16))

#define FILE_TEMPLATE	"soft-dirty-arm64-XXXXXX"
#define SWAP_TEMPLATE	"soft-dirty-arm64-%d.swap"

enum kind {
	ANON,
	SHARED_ANON,
	MEMFD,
	PRIVATE_FILE,
	SHARED_FILE,
};

enum size {
	BASE,		/* single pages */
	TABLE,		/* as many single pages as a page table has entries */
	MANY,		/* so many that to write them all takes its time */
	MTHP,		/* a folio of each order up to that of a PMD, exclusive */
	PMD,		/* PMD-mapped THPs */
};

/* What is known of a page of an area. */
struct page {
	bool must;		/* written since the last clear_refs */
	bool may;		/* allowed to read soft-dirty: it shares its unit */
	bool lossy;		/* allowed to have been unmapped, and with that to read clean */
	bool gone;		/* not mapped any more: not looked at */
	bool huge;		/* mapped by a PMD when last looked at */
	unsigned char value;	/* of its byte that the test writes */
};

struct area {
	char *mem;		/* the page with index 0, mapped or not */
	size_t first;		/* the first page that is mapped */
	size_t nr;		/* the page behind the last one */
	size_t nr_compacted;	/* pages that compaction has moved */
	enum kind kind;
	enum size size;
	int fd;			/* of the memory, or -1 */
	int pagemap;
	int clear_refs;
	struct page *pages;
	uint64_t *entries;	/* of pagemap */
	uint64_t *categories;	/* of PAGEMAP_SCAN */
	struct page_region *regions;
};

/* Settings of the system that tests change. THP has its own, see hugepage_settings. */
static struct setting {
	const char *path;
	char value[32];
} settings[] = {
	{ "/proc/sys/kernel/numa_balancing" },
	{ "/sys/kernel/debug/sched/numa_balancing/scan_delay_ms" },
	{ "/sys/kernel/debug/sched/numa_balancing/scan_period_min_ms" },
	{ "/sys/kernel/debug/sched/numa_balancing/scan_period_max_ms" },
	{ "/sys/kernel/mm/ksm/pages_to_scan" },
	{ "/sys/kernel/mm/ksm/run" },
	{ "/sys/kernel/mm/ksm/sleep_millisecs" },
	{ "/sys/kernel/mm/ksm/smart_scan" },
	{ "/sys/kernel/mm/ksm/use_zero_pages" },
};

static struct thp_settings thp_settings;	/* as found */
static bool have_thp;

/* The orders of folios that there can be. */
static unsigned long anon_orders;
static unsigned long shmem_orders;

/* The sizes of hugetlb pages in bytes, and how many of each were there. */
static unsigned long hugetlb_sizes[8];
static long hugetlb_pages[ARRAY_SIZE(hugetlb_sizes)];
static int nr_hugetlb_sizes;

/* Who has saved the settings, and the case that runs, which changes them. */
static pid_t parent;
static pid_t *running;

/* A swap file of the test's own, while it is in use. The name is that of the parent. */
static char swap_file[64];

/* The other swap space as found. */
static struct swap_space {
	char path[128];
	int priority;
} swaps[8];

/* The value of the file PATH as a string without its newline; false without one. */
static bool get_setting(const char *path, char *value, size_t size)
{
	int fd = open(path, O_RDONLY);
	ssize_t len;

	if (fd < 0)
		return false;
	len = read(fd, value, size - 1);
	close(fd);
	if (len <= 0)
		return false;
	value[len] = '\0';
	value[strcspn(value, "\n")] = '\0';
	return true;
}

static bool set_setting(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY);
	bool done;

	if (fd < 0)
		return false;
	done = write(fd, value, strlen(value)) == (ssize_t)strlen(value);
	close(fd);
	return done;
}

static long get_number(const char *path)
{
	char value[32];

	return get_setting(path, value, sizeof(value)) ? atol(value) : -1;
}

static long hugetlb_number(unsigned long size, const char *write)
{
	char path[128];

	snprintf(path, sizeof(path),
		 "/sys/kernel/mm/hugepages/hugepages-%lukB/nr_hugepages", size >> 10);
	if (write)
		set_setting(path, write);
	return get_number(path);
}

static void save_swaps(void)
{
	FILE *file = fopen("/proc/swaps", "r");
	char line[256];

	for (size_t i = 0; file && fgets(line, sizeof(line), file);)
		if (i < ARRAY_SIZE(swaps) &&
		    sscanf(line, "/%126s %*s %*d %*d %d", swaps[i].path + 1,
			   &swaps[i].priority) == 2)
			swaps[i++].path[0] = '/';
	if (file)
		fclose(file);
}

/* Whatever became of the test that changed it. What is in use says so and stays. */
static void restore_swaps(void)
{
	swapoff(swap_file);
	unlink(swap_file);
	for (size_t i = 0; i < ARRAY_SIZE(swaps) && swaps[i].path[0]; i++)
		swapon(swaps[i].path, swaps[i].priority < 0 ? 0 :
		       SWAP_FLAG_PREFER | swaps[i].priority);
}

static void save_settings(void)
{
	parent = getpid();
	snprintf(swap_file, sizeof(swap_file), SWAP_TEMPLATE, parent);
	save_swaps();
	nr_hugetlb_sizes = detect_hugetlb_page_sizes(hugetlb_sizes, ARRAY_SIZE(hugetlb_sizes));
	for (int i = 0; i < nr_hugetlb_sizes; i++)
		hugetlb_pages[i] = hugetlb_number(hugetlb_sizes[i], NULL);
	for (size_t i = 0; i < ARRAY_SIZE(settings); i++)
		if (!get_setting(settings[i].path, settings[i].value,
				 sizeof(settings[i].value)))
			settings[i].value[0] = '\0';
	have_thp = !access("/sys/kernel/mm/transparent_hugepage/enabled", F_OK);
	if (have_thp) {
		thp_save_settings();
		thp_read_settings(&thp_settings);
		anon_orders = thp_supported_orders();
		shmem_orders = thp_shmem_supported_orders();
	}
}

static void restore_settings(void)
{
	char value[32];

	restore_swaps();
	for (int i = 0; i < nr_hugetlb_sizes; i++) {
		snprintf(value, sizeof(value), "%ld", hugetlb_pages[i]);
		if (hugetlb_pages[i] >= 0 &&
		    hugetlb_number(hugetlb_sizes[i], NULL) != hugetlb_pages[i])
			hugetlb_number(hugetlb_sizes[i], value);
	}
	for (size_t i = 0; i < ARRAY_SIZE(settings); i++)
		if (settings[i].value[0] &&
		    get_setting(settings[i].path, value, sizeof(value)) &&
		    strcmp(value, settings[i].value))
			set_setting(settings[i].path, settings[i].value);
}

/* Each test sets what it needs of THP, which takes time: restore that once. */
static void restore_all_settings(void)
{
	/* A case that calls exit() is not the end. */
	if (getpid() != parent)
		return;
	restore_settings();
	if (have_thp)
		thp_restore_settings();
}

/* Whoever stops the test stops the case that runs, and gets back what it has changed. */
static void stopped(int sig)
{
	if (getpid() == parent && *running) {
		kill(-*running, SIGKILL);
		waitpid(*running, NULL, 0);
	}
	restore_all_settings();
	signal(sig, SIG_DFL);
	raise(sig);
}

static void restore_when_stopped(void)
{
	static const int signals[] = { SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM };

	running = mmap(NULL, sizeof(*running), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (running == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		signal(signals[i], stopped);
	atexit(restore_all_settings);
}

static size_t pmd_pages(void)
{
	static size_t pages;

	if (!pages && have_thp)
		pages = read_pmd_pagesize() / psize();
	return pages;
}

/* Huge pages for memory that asks for them, and nothing that the test did not ask for. */
static void prepare_thp(void)
{
	struct thp_settings new = thp_settings;

	if (!have_thp)
		return;
	new.thp_enabled = THP_MADVISE;
	new.thp_defrag = THP_DEFRAG_MADVISE;
	new.shmem_enabled = SHMEM_NEVER;
	new.khugepaged.scan_sleep_millisecs = SCAN_SLEEP;
	thp_write_settings(&new);
}

static void allow_order(int order, unsigned long supported, const char *file,
			const char *value)
{
	char path[64];

	if (!(supported & (1UL << order)))
		return;
	snprintf(path, sizeof(path), "hugepages-%ukB/%s", (psize() >> 10) << order, file);
	thp_write_string(path, value);
}

/* Only those of ORDERS. Other settings are left: to write them wakes khugepaged up. */
static void allow_orders(unsigned long orders)
{
	for (int i = 0; have_thp && i < NR_ORDERS; i++) {
		bool on = orders & (1UL << i);

		allow_order(i, anon_orders, "enabled", on ? "madvise" : "never");
		allow_order(i, shmem_orders, "shmem_enabled", on ? "advise" : "never");
	}
}

static bool is_shared(const struct area *area)
{
	return area->kind != ANON && area->kind != PRIVATE_FILE;
}

static bool is_file(const struct area *area)
{
	return area->kind == PRIVATE_FILE || area->kind == SHARED_FILE;
}

static char *page_addr(const struct area *area, size_t page)
{
	return area->mem + page * psize();
}

/* The byte of a page that tests write: not the same in all of them. */
static unsigned char *page_byte(const struct area *area, size_t page)
{
	return (unsigned char *)page_addr(area, page) + page * 64 % psize();
}

/* Loads and stores that the compiler leaves where they are. */
static unsigned char load_byte(const struct area *area, size_t page)
{
	return __atomic_load_n(page_byte(area, page), __ATOMIC_RELAXED);
}

static void store_byte(const struct area *area, size_t page, unsigned char value)
{
	__atomic_store_n(page_byte(area, page), value, __ATOMIC_RELAXED);
}

/* Two sets of pages to write: whole blocks of 16, parts of them, single pages. */
static bool chosen(const struct area *area, size_t page)
{
	/* The second of two huge pages is never written. */
	if (area->size == PMD && page >= pmd_pages())
		return false;
	if (page < 16)
		return page % 3 == 1;
	switch (page / 16 % 4) {
	case 0:
		return false;
	case 1:
		return true;
	case 2:
		return page % 7 == 3;
	default:
		return page % 16 < 8;
	}
}

static bool chosen_later(const struct area *area, size_t page)
{
	return page % 11 == 5 && (area->size != PMD || page < pmd_pages());
}

/* Look through /proc/PID instead of what was opened before. */
static void watch(struct __test_metadata *_metadata, struct area *area, pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	area->pagemap = open(path, O_RDONLY);
	ASSERT_GE(area->pagemap, 0);
	snprintf(path, sizeof(path), "/proc/%d/clear_refs", pid);
	area->clear_refs = open(path, O_WRONLY);
	ASSERT_GE(area->clear_refs, 0);
}

/* Read bit 55 and the categories of all pages. */
static void look(struct __test_metadata *_metadata, struct area *area)
{
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = (unsigned long)area->mem,
		.end = (unsigned long)page_addr(area, area->nr),
		.vec = (unsigned long)area->regions,
		.vec_len = area->nr,
		.category_anyof_mask = PAGE_IS_SOFT_DIRTY | PAGE_IS_HUGE,
		.return_mask = PAGE_IS_SOFT_DIRTY | PAGE_IS_HUGE,
	};
	size_t len = area->nr * sizeof(*area->entries);
	off_t offset = (unsigned long)area->mem / psize() * sizeof(*area->entries);
	long found;

	ASSERT_EQ(pread(area->pagemap, area->entries, len, offset), (ssize_t)len);

	memset(area->categories, 0, area->nr * sizeof(*area->categories));
	found = ioctl(area->pagemap, PAGEMAP_SCAN, &arg);
	ASSERT_GE(found, 0);
	ASSERT_EQ(arg.walk_end, arg.end);
	for (long i = 0; i < found; i++) {
		struct page_region *region = &area->regions[i];
		size_t page = (region->start - arg.start) / psize();
		size_t end = (region->end - arg.start) / psize();

		for (; page < end; page++)
			area->categories[page] = region->categories;
	}
	for (size_t i = area->first; i < area->nr; i++)
		area->pages[i].huge = area->categories[i] & PAGE_IS_HUGE;
}

/* Write 4 to clear_refs: from here on no page has been written. */
static void clear_refs(struct __test_metadata *_metadata, struct area *area)
{
	ASSERT_EQ(pwrite(area->clear_refs, "4", 1, 0), 1);
	for (size_t i = 0; i < area->nr; i++) {
		area->pages[i].must = false;
		area->pages[i].may = false;
		area->pages[i].lossy = false;
	}
	look(_metadata, area);
}

/* Note that a page was written. Where it is part of a PMD-mapped THP all may show it. */
static void written(struct area *area, size_t page)
{
	size_t unit = pmd_pages();

	area->pages[page].must = true;
	if (!area->pages[page].huge)
		return;
	for (size_t i = page - page % unit; i < page - page % unit + unit; i++)
		area->pages[i].may = true;
}

static void write_page(struct area *area, size_t page)
{
	store_byte(area, page, ++area->pages[page].value);
	written(area, page);
}

static void write_pages(struct area *area,
			bool (*choose)(const struct area *area, size_t page))
{
	for (size_t i = area->first; i < area->nr; i++)
		if (!area->pages[i].gone && choose(area, i))
			write_page(area, i);
}

static void read_pages(struct area *area)
{
	for (size_t i = area->first; i < area->nr; i++)
		if (!area->pages[i].gone)
			load_byte(area, i);
}

/*
 * The pages from FIRST on, NR of them, may get unmapped, and with that lose what was
 * known of them. Whoever maps them again by a read has to check() before that.
 */
static void may_unmap(struct area *area, size_t first, size_t nr)
{
	for (size_t i = first; i < first + nr; i++)
		area->pages[i].lossy = true;
}

static void may_unmap_all(struct area *area)
{
	may_unmap(area, area->first, area->nr - area->first);
}

/* Whether pagemap and PAGEMAP_SCAN agree on page I. */
static bool agree(const struct area *area, size_t i)
{
	return !(area->entries[i] & PM_SOFT_DIRTY) ==
	       !(area->categories[i] & PAGE_IS_SOFT_DIRTY);
}

/* Compare what reads soft-dirty with what was written. */
static void check(struct __test_metadata *_metadata, struct area *area,
		  const char *when)
{
	size_t missed = 0, excess = 0, differ = 0;

	look(_metadata, area);
	/* What was unmapped between the two reads is no difference. */
	for (size_t i = area->first; i < area->nr; i++) {
		if (area->pages[i].lossy && !area->pages[i].gone && !agree(area, i)) {
			look(_metadata, area);
			break;
		}
	}
	for (size_t i = area->first; i < area->nr; i++) {
		struct page *page = &area->pages[i];
		bool dirty = area->entries[i] & PM_SOFT_DIRTY;
		const char *what = NULL;

		if (page->gone)
			continue;
		if (page->lossy && page->must &&
		    !(area->entries[i] & (PM_PRESENT | PM_SWAP))) {
			page->must = false;
			page->may = true;
		}
		if (!agree(area, i)) {
			what = "pagemap and PAGEMAP_SCAN differ on";
			differ++;
		} else if (page->must && !dirty) {
			what = "missed";
			missed++;
		} else if (dirty && !page->must && !page->may) {
			what = "reported, but not written:";
			excess++;
		}
		if (what && missed + excess + differ <= 3)
			TH_LOG("%s: %s page %zu of %zu (%s), pagemap %016llx", when,
			       what, i, area->nr, page->huge ? "PMD" : "PTE",
			       (unsigned long long)area->entries[i]);
	}
	EXPECT_EQ(missed, 0)
		TH_LOG("%s: %zu written pages were missed", when, missed);
	EXPECT_EQ(excess, 0)
		TH_LOG("%s: %zu other pages were reported", when, excess);
	EXPECT_EQ(differ, 0)
		TH_LOG("%s: pagemap and PAGEMAP_SCAN differ on %zu pages", when, differ);
}

/* What a test did in between must not have cost data. Reads all pages. */
static void check_content(struct __test_metadata *_metadata, struct area *area)
{
	size_t wrong = 0;

	for (size_t i = area->first; i < area->nr; i++)
		if (!area->pages[i].gone &&
		    load_byte(area, i) != area->pages[i].value)
			wrong++;
	EXPECT_EQ(wrong, 0);
}

/* Map LEN bytes aligned to ALIGN, with a gap to other mappings: none may merge. */
static char *map_apart(size_t len, size_t align, int prot, int flags, int fd)
{
	size_t room = len + 2 * align;
	char *space = mmap(NULL, room, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	unsigned long start;

	if (space == MAP_FAILED)
		return MAP_FAILED;
	start = ((unsigned long)space + align) & ~(align - 1);
	return mmap((char *)start, len, prot, flags | MAP_FIXED, fd, 0);
}

static int open_file(int flags)
{
	char path[] = FILE_TEMPLATE;
	int fd = mkostemp(path, flags);

	if (fd >= 0)
		unlink(path);
	return fd;
}

/* Write LEN zeroes to FD in one go, so that a file system may make a large folio of them. */
static bool write_zeroes(int fd, size_t len)
{
	char *zeroes = calloc(1, len);
	bool done = zeroes && write(fd, zeroes, len) == (ssize_t)len;

	free(zeroes);
	return done;
}

/* A file of NR pages in the working directory, if that is a real file system. */
static int make_file(size_t nr)
{
	int fd = open_file(0);
	struct statfs fs;

	if (fd >= 0 && !fstatfs(fd, &fs) && fs.f_type != TMPFS_MAGIC &&
	    fs.f_type != RAMFS_MAGIC && fs.f_type != V9FS_MAGIC && write_zeroes(fd, nr * psize()))
		return fd;
	close(fd);
	return -1;
}

/* Whether the NR pages from FIRST on are one block of physical memory. */
static bool is_block(struct area *area, size_t first, size_t nr)
{
	uint64_t pfn = PAGEMAP_PFN(area->entries[first]);

	for (size_t i = 0; i < nr; i++)
		if (!(area->entries[first + i] & PM_PRESENT) ||
		    PAGEMAP_PFN(area->entries[first + i]) != pfn + i)
			return false;
	return pfn % nr == 0;
}

/* How many pages of AREA are part of a large folio, by what was read of it last. */
static size_t nr_large(struct __test_metadata *_metadata, const struct area *area)
{
	int fd = open("/proc/kpageflags", O_RDONLY);
	size_t nr = 0;

	ASSERT_GE(fd, 0);
	for (size_t i = area->first; i < area->nr; i++) {
		off_t offset = PAGEMAP_PFN(area->entries[i]) * sizeof(uint64_t);
		uint64_t flags;

		if (!(area->entries[i] & PM_PRESENT))
			continue;
		ASSERT_EQ(pread(fd, &flags, sizeof(flags), offset), (ssize_t)sizeof(flags));
		nr += !!(flags & KPF_LARGE);
	}
	close(fd);
	return nr;
}

/*
 * In an area of mTHPs the page with index 0 is not mapped. So the largest folio
 * that can be had at page 2 is of order 1, at page 4 of order 2, and so on, and
 * each order that is allowed has its folio, at the page with the index 2^order.
 */
static unsigned long mthp_orders(const struct area *area)
{
	if (area->kind == ANON)
		return anon_orders & (area->nr - 1);
	return shmem_orders & (area->nr - 1);
}

static size_t alignment(const struct area *area)
{
	switch (area->size) {
	case BASE:	/* A file may have one large folio: within a page table. */
	case TABLE:
	case MANY:
		return area->nr * psize();
	default:
		return pmd_pages() * psize();
	}
}

/* Map and populate an area. Returns why that cannot be had, or NULL. */
static const char *make_area(struct __test_metadata *_metadata, struct area *area,
			     enum kind kind, enum size size)
{
	const bool huge = size == MTHP || size == PMD;
	int flags = MAP_PRIVATE;

	if (huge && !pmd_pages())
		return "no transparent huge pages";
	if (size == PMD && kind != ANON && !(shmem_orders & pmd_pages()))
		return "no folio of a file is that large";
	*area = (struct area){ .kind = kind, .size = size, .fd = -1, .nr = BASE_PAGES };
	if (size == TABLE)
		area->nr = psize() / sizeof(uint64_t);
	else if (size == MANY)
		area->nr = MANY_PAGES;
	else if (huge)
		area->nr = pmd_pages();
	if (size == MTHP) {
		area->first = 1;
		if (area->nr > MANY_BYTES / psize())
			area->nr = MANY_BYTES / psize();
	}
	/* One to write and one to leave alone, unless that is a gigabyte. */
	if (size == PMD && area->nr * psize() <= MANY_BYTES)
		area->nr *= 2;

	if (kind == SHARED_ANON || kind == MEMFD || kind == SHARED_FILE)
		flags = MAP_SHARED;
	if (kind == ANON || kind == SHARED_ANON) {
		flags |= MAP_ANONYMOUS;
	} else if (kind == MEMFD) {
		area->fd = memfd_create("soft-dirty-arm64", 0);
		ASSERT_GE(area->fd, 0);
		ASSERT_EQ(ftruncate(area->fd, area->nr * psize()), 0);
	} else {
		area->fd = make_file(area->nr);
		if (area->fd < 0)
			return "no real file system with room in the working directory";
	}

	if (!huge)
		allow_orders(0);
	else if (size == PMD)
		allow_orders(pmd_pages());
	else
		allow_orders(mthp_orders(area));

	area->mem = map_apart(area->nr * psize(), alignment(area), PROT_READ | PROT_WRITE,
			      flags, area->fd);
	ASSERT_NE(area->mem, MAP_FAILED);
	if (area->first)
		ASSERT_EQ(munmap(area->mem, area->first * psize()), 0);
	if (huge)
		ASSERT_EQ(madvise(page_addr(area, area->first),
				  (area->nr - area->first) * psize(), MADV_HUGEPAGE), 0);

	area->pages = calloc(area->nr, sizeof(*area->pages));
	area->entries = calloc(area->nr, sizeof(*area->entries));
	area->categories = calloc(area->nr, sizeof(*area->categories));
	area->regions = calloc(area->nr, sizeof(*area->regions));
	ASSERT_NE(area->pages, NULL);
	ASSERT_NE(area->entries, NULL);
	ASSERT_NE(area->categories, NULL);
	ASSERT_NE(area->regions, NULL);
	watch(_metadata, area, getpid());

	/* In a private file mapping some pages stay those of the file. */
	for (size_t i = 0; i < area->nr; i++) {
		/* Not in their order, or base pages might be a block in memory too. */
		size_t page = huge ? i : i * 37 % area->nr;

		if (page >= area->first && (kind != PRIVATE_FILE || page % 4))
			write_page(area, page);
	}
	read_pages(area);

	look(_metadata, area);
	for (size_t i = 0; i < area->nr && size == PMD; i++)
		if (!area->pages[i].huge)
			return "no PMD-mapped huge page was to be had";
	for (size_t nr = 2; nr < area->nr && size == MTHP; nr *= 2)
		if ((mthp_orders(area) & nr) && !is_block(area, nr, nr))
			return "no mTHP of each order was to be had";
	return NULL;
}

/* The same for the setup of a fixture, which is skipped where it cannot be had. */
static void set_up_area(struct __test_metadata *_metadata, struct area *area,
			enum kind kind, enum size size)
{
	const char *lack;

	*running = getpid();
	/* The case before this one had no teardown if it took too long. */
	restore_settings();
	if (get_number("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs") !=
	    SCAN_SLEEP)
		prepare_thp();
	lack = make_area(_metadata, area, kind, size);
	if (lack)
		SKIP(return, "%s", lack);
	clear_refs(_metadata, area);
	check(_metadata, area, "cleared");
}

FIXTURE(soft_dirty)
{
	struct area area;
};

FIXTURE_VARIANT(soft_dirty)
{
	enum kind kind;
	enum size size;
};

FIXTURE_VARIANT_ADD(soft_dirty, anon_base) { .kind = ANON, .size = BASE };
FIXTURE_VARIANT_ADD(soft_dirty, anon_mthp) { .kind = ANON, .size = MTHP };
FIXTURE_VARIANT_ADD(soft_dirty, anon_pmd) { .kind = ANON, .size = PMD };
FIXTURE_VARIANT_ADD(soft_dirty, shared_anon_base) { .kind = SHARED_ANON, .size = BASE };
FIXTURE_VARIANT_ADD(soft_dirty, shared_anon_mthp) { .kind = SHARED_ANON, .size = MTHP };
FIXTURE_VARIANT_ADD(soft_dirty, shared_anon_pmd) { .kind = SHARED_ANON, .size = PMD };
FIXTURE_VARIANT_ADD(soft_dirty, memfd_base) { .kind = MEMFD, .size = BASE };
FIXTURE_VARIANT_ADD(soft_dirty, memfd_mthp) { .kind = MEMFD, .size = MTHP };
FIXTURE_VARIANT_ADD(soft_dirty, memfd_pmd) { .kind = MEMFD, .size = PMD };
/* What folios a file has is up to its file system: large ones, where it has such. */
FIXTURE_VARIANT_ADD(soft_dirty, private_file) { .kind = PRIVATE_FILE, .size = BASE };
FIXTURE_VARIANT_ADD(soft_dirty, shared_file) { .kind = SHARED_FILE, .size = BASE };

FIXTURE_SETUP(soft_dirty)
{
	set_up_area(_metadata, &self->area, variant->kind, variant->size);
}

FIXTURE_TEARDOWN(soft_dirty)
{
	restore_settings();
}

/* Ways to write. */

/* Two neighbours in the middle of a block of sixteen, which others share. */
#define PAGE_A	(BASE_PAGES / 2 + 5)
#define PAGE_B	(PAGE_A + 1)
/* One far from them. */
#define PAGE_C	(BASE_PAGES / 4)

TEST_F_TIMEOUT(soft_dirty, write_by_store, TIMEOUT)
{
	struct area *area = &self->area;

	write_page(area, PAGE_A);
	check(_metadata, area, "one page");
	write_pages(area, chosen);
	check(_metadata, area, "many pages");
	/* Once more, now without a fault. */
	write_pages(area, chosen);
	check(_metadata, area, "again");
	clear_refs(_metadata, area);
	check(_metadata, area, "cleared again");
	write_pages(area, chosen_later);
	check(_metadata, area, "other pages");
	check_content(_metadata, area);
}

TEST_F_TIMEOUT(soft_dirty, write_across_a_page_boundary, TIMEOUT)
{
	struct area *area = &self->area;
	char *boundary = page_addr(area, PAGE_B);

#ifdef __aarch64__
	asm volatile("stp %0, %0, [%1, #-8]" : : "r"(1L), "r"(boundary) : "memory");
#else
	asm volatile("movq %0, -4(%1)" : : "r"(1L), "r"(boundary) : "memory");
#endif
	written(area, PAGE_A);
	written(area, PAGE_B);
	check(_metadata, area, "across");
}

TEST_F_TIMEOUT(soft_dirty, write_by_kernel_read, TIMEOUT)
{
	struct area *area = &self->area;
	int fd = open("/dev/zero", O_RDONLY);

	ASSERT_GE(fd, 0);
	ASSERT_EQ(read(fd, page_addr(area, PAGE_A), psize()), psize());
	close(fd);
	area->pages[PAGE_A].value = 0;
	written(area, PAGE_A);
	check(_metadata, area, "read(2)");
	check_content(_metadata, area);
}

TEST_F_TIMEOUT(soft_dirty, write_by_process_vm_writev, TIMEOUT)
{
	struct area *area = &self->area;
	char buf[16] = { 1 };
	struct iovec local = { buf, sizeof(buf) };
	struct iovec remote = { page_addr(area, PAGE_B) - 8, sizeof(buf) };

	/* Both sides of a page boundary. */
	ASSERT_EQ(process_vm_writev(getpid(), &local, 1, &remote, 1, 0), sizeof(buf));
	written(area, PAGE_A);
	written(area, PAGE_B);
	check(_metadata, area, "process_vm_writev(2)");
}

TEST_F_TIMEOUT(soft_dirty, write_by_proc_mem, TIMEOUT)
{
	struct area *area = &self->area;
	off_t where = (unsigned long)page_addr(area, PAGE_A);
	int fd = open("/proc/self/mem", O_RDWR);
	char value = 42;

	ASSERT_GE(fd, 0);
	ASSERT_EQ(pwrite(fd, &value, 1, where), 1);
	written(area, PAGE_A);
	check(_metadata, area, "/proc/self/mem");

	/* Forced, where the process itself may not write. Not to shared memory. */
	if (is_shared(area)) {
		close(fd);
		return;
	}
	clear_refs(_metadata, area);
	ASSERT_EQ(mprotect(page_addr(area, area->first),
			   (area->nr - area->first) * psize(), PROT_READ), 0);
	look(_metadata, area);
	if (pwrite(fd, &value, 1, where) == 1)
		written(area, PAGE_A);
	else
		TH_LOG("no forced write through /proc/PID/mem");
	close(fd);
	check(_metadata, area, "/proc/self/mem, forced");
}

TEST_F_TIMEOUT(soft_dirty, write_by_ptrace, TIMEOUT)
{
	struct area *area = &self->area;
	struct area child = *area;
	int status;
	pid_t pid;

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		/* A shared mapping comes without its page table: fill it. */
		read_pages(area);
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_TRUE(WIFSTOPPED(status));
	watch(_metadata, &child, pid);
	clear_refs(_metadata, &child);
	check(_metadata, &child, "cleared from outside");

	ASSERT_EQ(ptrace(PTRACE_POKEDATA, pid, page_addr(&child, PAGE_A), 1L), 0);
	written(&child, PAGE_A);
	check(_metadata, &child, "poked");

	ASSERT_EQ(ptrace(PTRACE_CONT, pid, NULL, 0), 0);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);

	/* Another process has written, not this one. */
	area->pages[PAGE_A].must = false;
	check(_metadata, area, "in the parent");
}

TEST_F_TIMEOUT(soft_dirty, write_by_direct_io, TIMEOUT)
{
	struct area *area = &self->area;
	int fd = open_file(O_DIRECT);

	if (fd < 0)
		SKIP(return, "no O_DIRECT on this file system");
	ASSERT_EQ(write(fd, page_addr(area, PAGE_A), psize()), psize());
	check(_metadata, area, "written from");
	ASSERT_EQ(pread(fd, page_addr(area, PAGE_B), psize(), 0), psize());
	close(fd);
	written(area, PAGE_B);
	check(_metadata, area, "read to");
}

/* The least of io_uring: one buffer of one page, registered, and one read to it. */
struct ring {
	int fd;
	struct io_uring_params params;
	struct io_uring_sqe *sqes;
	char *sq, *cq;
};

static bool make_ring(struct ring *ring)
{
	const int prot = PROT_READ | PROT_WRITE;
	struct io_uring_params *params = &ring->params;
	size_t size;

	memset(params, 0, sizeof(*params));
	ring->fd = syscall(__NR_io_uring_setup, 1, params);
	if (ring->fd < 0)
		return false;
	size = params->sq_off.array + params->sq_entries * sizeof(unsigned int);
	ring->sq = mmap(NULL, size, prot, MAP_SHARED, ring->fd, IORING_OFF_SQ_RING);
	size = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
	ring->cq = mmap(NULL, size, prot, MAP_SHARED, ring->fd, IORING_OFF_CQ_RING);
	size = params->sq_entries * sizeof(struct io_uring_sqe);
	ring->sqes = mmap(NULL, size, prot, MAP_SHARED, ring->fd, IORING_OFF_SQES);
	return ring->sq != MAP_FAILED && ring->cq != MAP_FAILED &&
	       ring->sqes != MAP_FAILED;
}

/* Pin the page at ADDR. */
static int ring_register(struct ring *ring, void *addr)
{
	struct iovec iov = { addr, psize() };

	return syscall(__NR_io_uring_register, ring->fd, IORING_REGISTER_BUFFERS, &iov, 1);
}

/* Read the first page of the file FD to ADDR in the pinned page; returns its length. */
static int ring_read(struct ring *ring, int fd, void *addr)
{
	unsigned int *tail = (void *)(ring->sq + ring->params.sq_off.tail);
	unsigned int *array = (void *)(ring->sq + ring->params.sq_off.array);
	unsigned int *head = (void *)(ring->cq + ring->params.cq_off.head);
	struct io_uring_cqe *cqes = (void *)(ring->cq + ring->params.cq_off.cqes);
	unsigned int mask = *(unsigned int *)(ring->cq + ring->params.cq_off.ring_mask);

	ring->sqes[0] = (struct io_uring_sqe){
		.opcode = IORING_OP_READ_FIXED,
		.fd = fd,
		.addr = (unsigned long)addr,
		.len = psize(),
	};
	array[0] = 0;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(__NR_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		return -1;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return cqes[(*head - 1) & mask].res;
}

/* Pin PAGE_A by RING, to read the file FD there. Returns what is lacking for that, or NULL. */
static const char *pin_page(struct __test_metadata *_metadata, struct area *area,
			    struct ring *ring, int *fd)
{
	if (area->kind == SHARED_FILE)
		return "io_uring does not pin pages of a file";
	if (!make_ring(ring))
		return "no io_uring";
	*fd = make_file(1);
	if (*fd < 0)
		return "no real file system with room in the working directory";

	/* Whoever pins a page to write it may write at any time: it reads dirty. */
	ASSERT_EQ(ring_register(ring, page_addr(area, PAGE_A)), 0);
	look(_metadata, area);
	written(area, PAGE_A);
	check(_metadata, area, "pinned");
	return NULL;
}

static void unpin_page(struct __test_metadata *_metadata, struct area *area, struct ring *ring)
{
	ASSERT_EQ(syscall(__NR_io_uring_register, ring->fd, IORING_UNREGISTER_BUFFERS, NULL, 0),
		  0);
	clear_refs(_metadata, area);
	check(_metadata, area, "not pinned any more");
}

/* A pin counts for the folio: what was dirty of it may stay so. */
static void pinned(struct area *area, bool (*dirty)(const struct area *area, size_t page))
{
	written(area, PAGE_A);
	for (size_t i = PAGE_A & ~63; i < BASE_PAGES && area->size == MTHP; i++)
		area->pages[i].may = !dirty || dirty(area, i);
}

TEST_F_TIMEOUT(soft_dirty, write_to_a_pinned_page, TIMEOUT)
{
	struct area *area = &self->area;
	char *page = page_addr(area, PAGE_A);
	struct ring ring;
	const char *lacking;
	int fd;

	lacking = pin_page(_metadata, area, &ring, &fd);
	if (lacking)
		SKIP(return, "%s", lacking);

	ASSERT_EQ(ring_read(&ring, fd, page), psize());
	check(_metadata, area, "pinned, written");

	/* So it does after clear_refs. */
	write_pages(area, chosen);
	clear_refs(_metadata, area);
	pinned(area, chosen);
	check(_metadata, area, "pinned, cleared");
	ASSERT_EQ(ring_read(&ring, fd, page), psize());
	check(_metadata, area, "pinned, cleared, written");

	unpin_page(_metadata, area, &ring);
	write_pages(area, chosen);
	check(_metadata, area, "not pinned any more, written");
	close(ring.fd);
	close(fd);
}

static void protect(struct __test_metadata *_metadata, struct area *area, size_t first,
		    size_t end, int prot)
{
	ASSERT_EQ(mprotect(page_addr(area, first), (end - first) * psize(), prot), 0);
}

/* Who has pinned it goes on writing while the process may not. */
TEST_F_TIMEOUT(soft_dirty, write_to_a_pinned_page_made_read_only, TIMEOUT)
{
	struct area *area = &self->area;
	char *page = page_addr(area, PAGE_A);
	struct ring ring;
	const char *lacking;
	int fd;

	lacking = pin_page(_metadata, area, &ring, &fd);
	if (lacking)
		SKIP(return, "%s", lacking);

	/* All of it, so that it is in whole contpte blocks. */
	for (size_t i = area->first; i < area->nr; i++)
		write_page(area, i);
	protect(_metadata, area, area->first, area->nr, PROT_READ);
	clear_refs(_metadata, area);
	pinned(area, NULL);
	check(_metadata, area, "read-only, cleared");
	ASSERT_EQ(ring_read(&ring, fd, page), psize());
	check(_metadata, area, "read-only, cleared, written");

	protect(_metadata, area, area->first, area->nr, PROT_READ | PROT_WRITE);
	clear_refs(_metadata, area);
	pinned(area, NULL);
	check(_metadata, area, "writable, cleared");
	ASSERT_EQ(ring_read(&ring, fd, page), psize());
	check(_metadata, area, "writable, cleared, written");

	unpin_page(_metadata, area, &ring);
	close(ring.fd);
	close(fd);
}

/* Who has pinned a page to read it does not write to it. */
TEST_F_TIMEOUT(soft_dirty, page_pinned_to_be_read, TIMEOUT)
{
	struct area *area = &self->area;
	struct pin_longterm_test pin = {
		.addr = (uintptr_t)page_addr(area, area->first),
		.size = (area->nr - area->first) * psize(),
	};
	int gup = open("/sys/kernel/debug/gup_test", O_RDWR);

	if (gup < 0)
		SKIP(return, "no gup_test");
	ASSERT_EQ(ioctl(gup, PIN_LONGTERM_TEST_START, &pin), 0);
	look(_metadata, area);
	for (int i = 0; i < 2; i++) {
		clear_refs(_metadata, area);
		check(_metadata, area, "pinned, cleared");
	}
	ASSERT_EQ(ioctl(gup, PIN_LONGTERM_TEST_STOP), 0);
	write_pages(area, chosen);
	check(_metadata, area, "not pinned any more, written");
	close(gup);
}

/* Where the kernel writes a word on behalf of the process. */
TEST_F_TIMEOUT(soft_dirty, write_by_futex, TIMEOUT)
{
	struct area *area = &self->area;
	unsigned int *here = (void *)page_addr(area, PAGE_A);
	unsigned int *there = (void *)page_addr(area, PAGE_C);

	ASSERT_EQ(syscall(__NR_futex, there, FUTEX_WAKE_OP_PRIVATE, 1, 1L, here,
			  FUTEX_OP(FUTEX_OP_SET, 7, FUTEX_OP_CMP_EQ, 0)), 0);
	ASSERT_EQ(*here, 7);
	written(area, PAGE_A);
	check(_metadata, area, "FUTEX_WAKE_OP");
}

struct dying {
	atomic_int tid;
	atomic_bool go;
	unsigned int *word;
};

/* Hold the lock at WORD by way of a robust list, and end. */
static void *die_with_a_lock(void *arg)
{
	struct dying *self = arg;
	struct {
		struct robust_list_head head;
		struct robust_list entry;
	} list;

	self->tid = syscall(__NR_gettid);
	while (!self->go)
		sched_yield();
	list.head.list.next = &list.entry;
	list.head.futex_offset = (char *)self->word - (char *)&list.entry;
	list.head.list_op_pending = NULL;
	list.entry.next = &list.head.list;
	syscall(__NR_set_robust_list, &list.head, sizeof(list.head));
	/* Not through the C library, which has a robust list of its own. */
	syscall(__NR_exit, 0);
	return NULL;
}

TEST_F_TIMEOUT(soft_dirty, write_by_robust_list, TIMEOUT)
{
	struct area *area = &self->area;
	struct dying dying = { .word = (void *)page_addr(area, PAGE_A) };
	pthread_t thread;

	ASSERT_EQ(pthread_create(&thread, NULL, die_with_a_lock, &dying), 0);
	while (!dying.tid)
		sched_yield();
	*dying.word = dying.tid;
	clear_refs(_metadata, area);
	dying.go = true;
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	written(area, PAGE_A);
	check(_metadata, area, "robust list");
	ASSERT_EQ(*dying.word & FUTEX_OWNER_DIED, FUTEX_OWNER_DIED);
}

static void on_signal(int signal)
{
}

TEST_F_TIMEOUT(soft_dirty, write_by_signal_frame, TIMEOUT)
{
	struct area *area = &self->area;
	unsigned long least = getauxval(AT_MINSIGSTKSZ);
	size_t pages = ((least ? least : MINSIGSTKSZ) + 3 * psize()) / psize();
	stack_t off = { .ss_flags = SS_DISABLE };
	stack_t stack = {
		.ss_sp = page_addr(area, PAGE_A),
		.ss_size = pages * psize(),
	};
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_ONSTACK };

	ASSERT_LT(PAGE_A + pages, area->nr);
	ASSERT_EQ(sigaltstack(&stack, NULL), 0);
	ASSERT_EQ(sigaction(SIGUSR1, &action, NULL), 0);
	check(_metadata, area, "before");
	ASSERT_EQ(raise(SIGUSR1), 0);
	ASSERT_EQ(sigaltstack(&off, NULL), 0);

	/* The frame is at the upper end. How far down it goes is not our business. */
	for (size_t i = 0; i + 1 < pages; i++)
		area->pages[PAGE_A + i].may = true;
	written(area, PAGE_A + pages - 1);
	check(_metadata, area, "signal frame");
}

/* Atomic and other special stores. */

TEST_F_TIMEOUT(soft_dirty, write_by_atomic, TIMEOUT)
{
	struct area *area = &self->area;
	void *word = page_addr(area, PAGE_A);

#ifdef __aarch64__
	if (!(getauxval(AT_HWCAP) & HWCAP_ATOMICS))
		SKIP(return, "no LSE atomics");
	asm volatile(".arch_extension lse\n"
		     "ldadd %0, xzr, [%1]" : : "r"(1L), "r"(word) : "memory");
#else
	__atomic_fetch_add((long *)word, 1, __ATOMIC_SEQ_CST);
#endif
	written(area, PAGE_A);
	check(_metadata, area, "atomic add");
}

#ifdef __aarch64__
TEST_F_TIMEOUT(soft_dirty, write_by_exclusive, TIMEOUT)
{
	struct area *area = &self->area;
	void *word = page_addr(area, PAGE_A);
	long value, failed;

	asm volatile("1: ldxr %0, [%2]\n"
		     "add %0, %0, #1\n"
		     "stxr %w1, %0, [%2]\n"
		     "cbnz %w1, 1b"
		     : "=&r"(value), "=&r"(failed) : "r"(word) : "memory");
	written(area, PAGE_A);
	check(_metadata, area, "exclusive store");
}

TEST_F_TIMEOUT(soft_dirty, write_by_dc_zva, TIMEOUT)
{
	struct area *area = &self->area;
	unsigned long dczid;

	asm volatile("mrs %0, dczid_el0" : "=r"(dczid));
	if (dczid & (1 << 4))
		SKIP(return, "no DC ZVA");
	asm volatile("dc zva, %0" : : "r"(page_addr(area, PAGE_A)) : "memory");
	written(area, PAGE_A);
	check(_metadata, area, "DC ZVA");
}

TEST_F_TIMEOUT(soft_dirty, write_by_sve, TIMEOUT)
{
	struct area *area = &self->area;
	char *boundary = page_addr(area, PAGE_B);

	if (!(getauxval(AT_HWCAP) & HWCAP_SVE))
		SKIP(return, "no SVE");
	/* A vector has 16 bytes at least: this one is in two pages. */
	asm volatile(".arch_extension sve\n"
		     "ptrue p0.b\n"
		     "dup z0.b, #1\n"
		     "st1b { z0.b }, p0, [%0]\n"
		     ".arch_extension nosve" : : "r"(boundary - 8) : "memory", "v0");
	written(area, PAGE_A);
	written(area, PAGE_B);
	check(_metadata, area, "SVE store");
}

TEST_F_TIMEOUT(soft_dirty, write_mte_tag, TIMEOUT)
{
	struct area *area = &self->area;

	if (!(getauxval(AT_HWCAP2) & HWCAP2_MTE))
		SKIP(return, "no MTE");
	if (is_file(area))
		SKIP(return, "no tags for pages of a file");
	ASSERT_EQ(mprotect(page_addr(area, area->first),
			   (area->nr - area->first) * psize(),
			   PROT_READ | PROT_WRITE | PROT_MTE), 0);
	check(_metadata, area, "with PROT_MTE");
	/* stg x0, [x0], for assemblers that do not know it. */
	asm volatile("mov x0, %0\n"
		     ".inst 0xd9200800"
		     : : "r"(page_addr(area, PAGE_A)) : "x0", "memory");
	written(area, PAGE_A);
	check(_metadata, area, "tag store");
}
#endif

/* Ways to not write. */

TEST_F_TIMEOUT(soft_dirty, reading_is_no_write, TIMEOUT)
{
	struct area *area = &self->area;
	char *start = page_addr(area, area->first);
	size_t len = (area->nr - area->first) * psize();
	unsigned char *present = malloc(area->nr);
	char buf[16];
	struct iovec local = { buf, sizeof(buf) };
	struct iovec remote = { page_addr(area, PAGE_B) - 8, sizeof(buf) };
	int fds[2];

	read_pages(area);
	check(_metadata, area, "loads");
	ASSERT_EQ(madvise(start, len, MADV_POPULATE_READ), 0);
	check(_metadata, area, "MADV_POPULATE_READ");
	ASSERT_EQ(mincore(start, len, present), 0);
	check(_metadata, area, "mincore");
	ASSERT_EQ(process_vm_readv(getpid(), &local, 1, &remote, 1, 0), sizeof(buf));
	check(_metadata, area, "process_vm_readv");
	ASSERT_EQ(pipe(fds), 0);
	ASSERT_EQ(write(fds[1], page_addr(area, PAGE_B) - 8, sizeof(buf)), sizeof(buf));
	check(_metadata, area, "write(2)");
	ASSERT_EQ(read(fds[0], buf, sizeof(buf)), sizeof(buf));
	/* The pipe has the page itself, and reads it later. */
	ASSERT_EQ(vmsplice(fds[1], &remote, 1, 0), sizeof(buf));
	check(_metadata, area, "vmsplice");
	ASSERT_EQ(read(fds[0], buf, sizeof(buf)), sizeof(buf));
	check(_metadata, area, "vmsplice, read");
	ASSERT_EQ(madvise(start, len, MADV_COLD), 0);
	check(_metadata, area, "MADV_COLD");
	read_pages(area);
	check(_metadata, area, "MADV_COLD, loads");
	check_content(_metadata, area);
	free(present);
}

TEST_F_TIMEOUT(soft_dirty, executing_is_no_write, TIMEOUT)
{
	struct area *area = &self->area;
	char *page = page_addr(area, PAGE_A);
#ifdef __aarch64__
	static const unsigned int code = 0xd65f03c0;	/* ret */
#else
	static const unsigned char code = 0xc3;		/* ret */
#endif

	memcpy(page, &code, sizeof(code));
	__builtin___clear_cache(page, page + sizeof(code));
	if (mprotect(page_addr(area, area->first), (area->nr - area->first) * psize(),
		     PROT_READ | PROT_WRITE | PROT_EXEC))
		SKIP(return, "not to be executed: %s", strerror(errno));
	clear_refs(_metadata, area);
	((void (*)(void))page)();
	check(_metadata, area, "executed");
	write_page(area, PAGE_C);
	check(_metadata, area, "executed, another page written");
}

/* Changes in between. */

typedef void change_fn(struct __test_metadata *_metadata, struct area *area);

/* Dirty pages stay dirty and clean ones clean across a CHANGE, and tracking goes on. */
static void across(struct __test_metadata *_metadata, struct area *area, change_fn *change)
{
	clear_refs(_metadata, area);
	write_pages(area, chosen);
	check(_metadata, area, "before");

	change(_metadata, area);
	check(_metadata, area, "after");
	write_pages(area, chosen_later);
	check(_metadata, area, "after, written");

	clear_refs(_metadata, area);
	check(_metadata, area, "after, cleared");
	write_pages(area, chosen);
	check(_metadata, area, "after, cleared, written");
	check_content(_metadata, area);
}

/* Both for all of the area and for a part that begins and ends within blocks. */
static void mprotect_and_back(struct __test_metadata *_metadata, struct area *area,
			      int prot)
{
	const int before = PROT_READ | PROT_WRITE;

	protect(_metadata, area, area->first, area->nr, prot);
	check(_metadata, area, "protected");
	protect(_metadata, area, area->first, area->nr, before);
	check(_metadata, area, "not protected any more");
	protect(_metadata, area, PAGE_C + 3, PAGE_A, prot);
	/* Splitting the PMD of memory that is not anonymous unmaps it. */
	if (area->size == PMD && is_shared(area))
		may_unmap(area, 0, pmd_pages());
	check(_metadata, area, "partly protected");
	protect(_metadata, area, PAGE_C + 3, PAGE_A, before);
}

static void mprotect_read(struct __test_metadata *_metadata, struct area *area)
{
	mprotect_and_back(_metadata, area, PROT_READ);
}

static void mprotect_none(struct __test_metadata *_metadata, struct area *area)
{
	mprotect_and_back(_metadata, area, PROT_NONE);
}

TEST_F_TIMEOUT(soft_dirty, mprotect_read_and_back, TIMEOUT)
{
	across(_metadata, &self->area, mprotect_read);
}

TEST_F_TIMEOUT(soft_dirty, mprotect_none_and_back, TIMEOUT)
{
	across(_metadata, &self->area, mprotect_none);
}

/* What the child of a fork sees and writes. */
static void in_child(struct __test_metadata *_metadata, struct area *area)
{
	watch(_metadata, area, getpid());
	/*
	 * Shared memory is not in the child's page table until it touches it. If
	 * that is a write, all of a folio is mapped as written: read it first.
	 */
	if (is_shared(area))
		may_unmap_all(area);
	check(_metadata, area, "child");
	read_pages(area);
	check(_metadata, area, "child, read");
	write_pages(area, chosen_later);
	check(_metadata, area, "child, written");
	check_content(_metadata, area);
	clear_refs(_metadata, area);
	check(_metadata, area, "child, cleared");
	write_page(area, PAGE_A);
	check(_metadata, area, "child, cleared, written");
}

static void fork_and_write(struct __test_metadata *_metadata, struct area *area)
{
	int status;
	pid_t pid;

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		in_child(_metadata, area);
		_exit(0);
	}
	check(_metadata, area, "parent");
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);

	/* The child's writes to shared memory are not writes of this process. */
	for (size_t i = area->first; i < area->nr && is_shared(area); i++) {
		area->pages[i].value += chosen_later(area, i);
		area->pages[i].value += i == PAGE_A;
	}
	check_content(_metadata, area);
}

TEST_F_TIMEOUT(soft_dirty, fork, TIMEOUT)
{
	across(_metadata, &self->area, fork_and_write);
}

/* The page faults of this process so far. */
static long nr_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt + usage.ru_majflt;
}

/* Write while a child has the pages too, so that each write makes a copy. */
static void fork_and_copy(struct __test_metadata *_metadata, struct area *area)
{
	int status, pipefd[2];
	pid_t pid;
	char c;

	ASSERT_EQ(pipe(pipefd), 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		close(pipefd[1]);
		_exit(read(pipefd[0], &c, 1));
	}
	close(pipefd[0]);
	write_pages(area, chosen_later);
	check(_metadata, area, "copied on write");
	clear_refs(_metadata, area);
	check(_metadata, area, "copied, cleared");
	write_pages(area, chosen);
	check(_metadata, area, "copied, cleared, written");
	close(pipefd[1]);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
}

TEST_F_TIMEOUT(soft_dirty, fork_copy_on_write, TIMEOUT)
{
	across(_metadata, &self->area, fork_and_copy);
}

/* What mremap has moved is new where it is: all of it reads dirty. */
static void moved(struct area *area)
{
	for (size_t i = area->first; i < area->nr; i++)
		if (!area->pages[i].gone)
			area->pages[i].must = true;
}

static void mremap_move(struct __test_metadata *_metadata, struct area *area)
{
	size_t len = (area->nr - area->first) * psize();
	char *from = page_addr(area, area->first);
	char *to;

	to = map_apart(area->nr * psize(), alignment(area), PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	ASSERT_NE(to, MAP_FAILED);
	ASSERT_EQ(mremap(from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
			 to + area->first * psize()), to + area->first * psize());
	area->mem = to;
	moved(area);
}

TEST_F_TIMEOUT(soft_dirty, mremap_moved, TIMEOUT)
{
	across(_metadata, &self->area, mremap_move);
}

/* To where the pages are not aligned to the size of their folios any more. */
static void mremap_misalign(struct __test_metadata *_metadata, struct area *area)
{
	size_t len = (area->nr - area->first) * psize();
	char *from = page_addr(area, area->first);
	char *to;

	to = map_apart(area->nr * psize(), 64 * psize(), PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	ASSERT_NE(to, MAP_FAILED);
	to += 3 * psize();
	ASSERT_EQ(mremap(from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
			 to + area->first * psize()), to + area->first * psize());
	area->mem = to;
	moved(area);
}

TEST_F_TIMEOUT(soft_dirty, mremap_misaligned, TIMEOUT)
{
	across(_metadata, &self->area, mremap_misalign);
}

/* A mapping that has grown is new as a whole, in place or elsewhere. */
static void mremap_grow(struct __test_metadata *_metadata, struct area *area)
{
	const size_t more = 16;
	size_t len = (area->nr - area->first) * psize();
	char *from = page_addr(area, area->first);
	char *to;

	if (area->fd >= 0)
		ASSERT_EQ(ftruncate(area->fd, (area->nr + more) * psize()), 0);
	to = mremap(from, len, len + more * psize(), MREMAP_MAYMOVE);
	ASSERT_NE(to, MAP_FAILED);
	area->mem = to - area->first * psize();
	moved(area);
	/* What it has grown by reads dirty before it is touched. */
	for (size_t i = 0; i < more; i++)
		EXPECT_TRUE(pagemap_is_softdirty(area->pagemap, to + len + i * psize()));
}

TEST_F_TIMEOUT(soft_dirty, mremap_grown, TIMEOUT)
{
	across(_metadata, &self->area, mremap_grow);
}

static void grow_in_place(struct __test_metadata *_metadata, struct area *area)
{
	const size_t less = area->nr - 16;
	size_t len = (area->nr - area->first) * psize();
	char *from = page_addr(area, area->first);

	ASSERT_EQ(munmap(page_addr(area, less), 16 * psize()), 0);
	ASSERT_EQ(mremap(from, (less - area->first) * psize(), len, 0), from);
	for (size_t i = less; i < area->nr && !is_shared(area); i++)
		area->pages[i].value = 0;
	moved(area);
}

TEST_F_TIMEOUT(soft_dirty, mremap_grown_in_place, TIMEOUT)
{
	across(_metadata, &self->area, grow_in_place);
}

/* So is what it leaves behind, which is filled anew without a write. */
static void mremap_leave(struct __test_metadata *_metadata, struct area *area)
{
	size_t len = (area->nr - area->first) * psize();
	char *from = page_addr(area, area->first);
	char *to;

	to = mremap(from, len, len, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	ASSERT_NE(to, MAP_FAILED);
	ASSERT_EQ(munmap(to, len), 0);
	moved(area);
	check(_metadata, area, "left behind");
	for (size_t i = area->first; i < area->nr; i++) {
		if (!is_shared(area))
			area->pages[i].value = 0;
		EXPECT_EQ(load_byte(area, i), area->pages[i].value);
	}
	check(_metadata, area, "left behind, read");
	/* The first write to what is empty would fill a whole folio. */
	for (size_t i = area->first; i < area->nr; i++)
		write_page(area, i);
}

TEST_F_TIMEOUT(soft_dirty, mremap_dontunmap, TIMEOUT)
{
	across(_metadata, &self->area, mremap_leave);
}

static void munmap_part(struct __test_metadata *_metadata, struct area *area)
{
	/* From within one block to within another. */
	for (size_t i = PAGE_C + 5; i < PAGE_A; i++)
		area->pages[i].gone = true;
	ASSERT_EQ(munmap(page_addr(area, PAGE_C + 5), (PAGE_A - PAGE_C - 5) * psize()), 0);
	if (area->size == PMD && is_shared(area))
		may_unmap(area, 0, pmd_pages());
}

TEST_F_TIMEOUT(soft_dirty, munmap_of_a_part, TIMEOUT)
{
	across(_metadata, &self->area, munmap_part);
}

static void madvise_pages(struct __test_metadata *_metadata, struct area *area,
			  size_t first, size_t nr, int advice)
{
	ASSERT_EQ(madvise(page_addr(area, first), nr * psize(), advice), 0);
}

/* Pages with a new content, or none: not a write, but not a reason to lose others. */
static void dontneed(struct __test_metadata *_metadata, struct area *area)
{
	const size_t first = PAGE_C + 5, nr = PAGE_A - first;

	madvise_pages(_metadata, area, first, nr, MADV_DONTNEED);
	may_unmap(area, first, nr);
	if (area->size == PMD && is_shared(area))
		may_unmap(area, 0, pmd_pages());
	check(_metadata, area, "dropped");
	for (size_t i = first; i < first + nr; i++) {
		if (!is_shared(area))
			area->pages[i].value = 0;
		EXPECT_EQ(load_byte(area, i), area->pages[i].value);
	}
	check(_metadata, area, "dropped and read");
	for (size_t i = first; i < first + nr; i += 3)
		write_page(area, i);
}

TEST_F_TIMEOUT(soft_dirty, madv_dontneed, TIMEOUT)
{
	across(_metadata, &self->area, dontneed);
}

static void madv_free(struct __test_metadata *_metadata, struct area *area)
{
	/* Of whole blocks and of parts of them. */
	madvise_pages(_metadata, area, PAGE_C, 32, MADV_FREE);
	check(_metadata, area, "MADV_FREE");
	madvise_pages(_metadata, area, PAGE_A, 7, MADV_FREE);
	check(_metadata, area, "MADV_FREE of a few");
	/* They are clean for the hardware now. A write has to be seen all the same. */
	clear_refs(_metadata, area);
	check(_metadata, area, "MADV_FREE, cleared");
	for (size_t i = PAGE_C; i < PAGE_C + 32; i += 3)
		write_page(area, i);
	check(_metadata, area, "MADV_FREE, cleared, written");
	/* A write says that the page is needed after all. */
	for (size_t i = PAGE_C; i < PAGE_C + 32; i++)
		write_page(area, i);
	for (size_t i = PAGE_A; i < PAGE_A + 7; i++)
		write_page(area, i);
}

TEST_F_TIMEOUT(soft_dirty, madv_free, TIMEOUT)
{
	if (self->area.kind != ANON)
		SKIP(return, "MADV_FREE is for anonymous memory");
	across(_metadata, &self->area, madv_free);
}

/* A page that was freed lazily, then written, is dirty, soft-clean or not. */
TEST_F_TIMEOUT(soft_dirty, madv_free_written_and_cleared, TIMEOUT)
{
	struct area *area = &self->area;
	size_t nr = area->nr - area->first;

	if (area->kind != ANON)
		SKIP(return, "MADV_FREE is for anonymous memory");
	if (nr > MANY_PAGES)
		SKIP(return, "too large to page out");
	madvise_pages(_metadata, area, area->first, nr, MADV_FREE);
	for (size_t i = area->first; i < area->nr; i++)
		write_page(area, i);
	check(_metadata, area, "written");
	clear_refs(_metadata, area);
	madvise_pages(_metadata, area, area->first, nr, MADV_PAGEOUT);
	check_content(_metadata, area);
}

static size_t nr_swapped(struct area *area)
{
	size_t nr = 0;

	for (size_t i = area->first; i < area->nr; i++)
		nr += !!(area->entries[i] & PM_SWAP);
	return nr;
}

static size_t nr_unmapped(struct area *area)
{
	size_t nr = 0;

	for (size_t i = area->first; i < area->nr; i++)
		nr += !(area->entries[i] & (PM_PRESENT | PM_SWAP));
	return nr;
}

/* Make a file of NR pages the only swap space, if there is hardly anything in the others. */
static bool own_swap(struct __test_metadata *_metadata, size_t nr)
{
	union {
		char bytes[1 << 16];
		struct {
			char boot[1024];
			unsigned int version;
			unsigned int last_page;
		} info;
	} header = {};
	struct sysinfo info;
	bool ready;
	int fd;

	ASSERT_EQ(sysinfo(&info), 0);
	if ((info.totalswap - info.freeswap) * info.mem_unit > 16UL << 20)
		return false;
	restore_swaps();
	fd = open(swap_file, O_RDWR | O_CREAT | O_EXCL, 0600);
	ASSERT_GE(fd, 0);
	header.info.version = 1;
	header.info.last_page = nr;
	memcpy(header.bytes + psize() - 10, "SWAPSPACE2", 10);
	ready = write(fd, header.bytes, psize()) == psize() && write_zeroes(fd, nr * psize()) &&
		!fsync(fd) && !swapon(swap_file, 0);
	close(fd);
	/* A higher priority is not enough: a CPU uses up what it has taken elsewhere. */
	for (size_t i = 0; ready && i < ARRAY_SIZE(swaps) && swaps[i].path[0]; i++)
		ready = !swapoff(swaps[i].path);
	if (!ready)
		restore_swaps();
	return ready;
}

/* The swap space that the system has, or a file. */
static bool have_swap(struct __test_metadata *_metadata)
{
	struct sysinfo info;

	ASSERT_EQ(sysinfo(&info), 0);
	return info.freeswap * info.mem_unit / psize() > 2 * MANY_PAGES ||
	       own_swap(_metadata, 2 * MANY_PAGES);
}

static void pageout(struct __test_metadata *_metadata, struct area *area)
{
	size_t nr = area->nr - area->first;

	if (nr > MANY_PAGES)
		nr = MANY_PAGES;
	/* A large folio with blocks folded and not is split first, as it is in split_folios(). */
	if (is_file(area))
		ASSERT_EQ(fsync(area->fd), 0);
	madvise_pages(_metadata, area, area->first, nr, MADV_PAGEOUT);
	/* Memory of a file forgets that a page was written when it unmaps it. */
	if (is_shared(area))
		may_unmap(area, area->first, nr);
	check(_metadata, area, "paged out");
	EXPECT_GT(is_shared(area) ? nr_unmapped(area) : nr_swapped(area), nr / 2);
	if (is_shared(area))
		read_pages(area);	/* as after fork */
}

static void pageout_and_read(struct __test_metadata *_metadata, struct area *area)
{
	pageout(_metadata, area);
	read_pages(area);
}

static void pageout_and_write(struct __test_metadata *_metadata, struct area *area)
{
	pageout(_metadata, area);
	write_pages(area, chosen);
}

static void pageout_and_clear(struct __test_metadata *_metadata, struct area *area)
{
	pageout(_metadata, area);
	clear_refs(_metadata, area);
	check(_metadata, area, "cleared while paged out");
	write_pages(area, chosen);
}

TEST_F_TIMEOUT(soft_dirty, pageout_and_back_by_read, TIMEOUT)
{
	if (!have_swap(_metadata))
		SKIP(return, "no swap space");
	across(_metadata, &self->area, pageout_and_read);
}

TEST_F_TIMEOUT(soft_dirty, pageout_and_back_by_write, TIMEOUT)
{
	if (!have_swap(_metadata))
		SKIP(return, "no swap space");
	across(_metadata, &self->area, pageout_and_write);
}

/* Then both have swap entries that are not exclusive any more. */
static void pageout_and_fork(struct __test_metadata *_metadata, struct area *area)
{
	pageout(_metadata, area);
	fork_and_write(_metadata, area);
}

TEST_F_TIMEOUT(soft_dirty, fork_while_paged_out, TIMEOUT)
{
	if (!have_swap(_metadata))
		SKIP(return, "no swap space");
	across(_metadata, &self->area, pageout_and_fork);
}

TEST_F_TIMEOUT(soft_dirty, cleared_while_paged_out, TIMEOUT)
{
	if (!have_swap(_metadata))
		SKIP(return, "no swap space");
	across(_metadata, &self->area, pageout_and_clear);
}

static void swap_and_swapoff(struct __test_metadata *_metadata, struct area *area)
{
	pageout(_metadata, area);
	EXPECT_EQ(swapoff(swap_file), 0);
	check(_metadata, area, "swapoff");
	EXPECT_EQ(nr_swapped(area), 0);
}

TEST_F_TIMEOUT(soft_dirty, swapoff, TIMEOUT)
{
	if (is_shared(&self->area))
		SKIP(return, "shared memory is not swapped by its page table");
	if (!own_swap(_metadata, MANY_PAGES))
		SKIP(return, "no swap files on this file system, or much is in swap");
	across(_metadata, &self->area, swap_and_swapoff);
}

/* Move the first NR pages of AREA to NODE. Returns how many are there, or -1. */
static long migrate(struct area *area, size_t nr, int node)
{
	void **addrs = calloc(nr, sizeof(*addrs));
	int *nodes = calloc(nr, sizeof(*nodes));
	int *status = calloc(nr, sizeof(*status));
	long there = 0, err;

	for (size_t i = 0; i < nr; i++) {
		addrs[i] = page_addr(area, area->first + i);
		nodes[i] = node;
		status[i] = -1;
	}
	err = syscall(__NR_move_pages, 0, nr, addrs, nodes, status, 0);
	for (size_t i = 0; i < nr; i++)
		there += status[i] == node;
	free(addrs);
	free(nodes);
	free(status);
	return err < 0 ? -1 : there;
}

/* Nodes 0 and 1, with memory, and this process may be on CPU 0. */
static bool have_two_nodes(void)
{
	char nodes[32];
	cpu_set_t cpus;

	return get_setting("/sys/devices/system/node/has_memory", nodes, sizeof(nodes)) &&
	       (!strncmp(nodes, "0-", 2) || !strncmp(nodes, "0,1", 3)) &&
	       !sched_getaffinity(0, sizeof(cpus), &cpus) && CPU_ISSET(0, &cpus);
}

/* So many pages of AREA are migrated. */
static size_t nr_migrated(const struct area *area)
{
	size_t nr = area->nr - area->first;

	return nr > MANY_PAGES ? MANY_PAGES : nr;
}

static void migrate_and_back(struct __test_metadata *_metadata, struct area *area)
{
	const size_t nr = nr_migrated(area);

	EXPECT_GT(migrate(area, nr, 1), (long)nr / 2);
	/* Where there is no room for a large folio it is split, see folio_split. */
	if (is_shared(area))
		may_unmap_all(area);
	check(_metadata, area, "on the other node");
	EXPECT_GT(migrate(area, nr, 0), (long)nr / 2);
}

TEST_F_TIMEOUT(soft_dirty, migration, TIMEOUT)
{
	if (!have_two_nodes())
		SKIP(return, "one NUMA node only");
	across(_metadata, &self->area, migrate_and_back);
}

struct migrator {
	struct area area;
	pthread_t thread;
	atomic_bool stop;
	long usecs;		/* that a move took when nothing else went on */
};

static void migrate_some(struct area *area, int node)
{
	/* A huge page is moved by any of its pages. */
	migrate(area, area->size == PMD ? 1 : BASE_PAGES - area->first, node);
}

static void *keep_migrating(void *arg)
{
	struct migrator *self = arg;

	for (int node = 1; !self->stop; node = !node)
		migrate_some(&self->area, node);
	return NULL;
}

static void start_migrating(struct __test_metadata *_metadata, struct migrator *self)
{
	struct timespec begin, end;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	migrate_some(&self->area, 1);
	migrate_some(&self->area, 0);
	clock_gettime(CLOCK_MONOTONIC, &end);
	self->usecs = (end.tv_sec - begin.tv_sec) * 500000 +
		      (end.tv_nsec - begin.tv_nsec) / 2000;
	ASSERT_EQ(pthread_create(&self->thread, NULL, keep_migrating, self), 0);
}

static void stop_migrating(struct __test_metadata *_metadata, struct migrator *self)
{
	self->stop = true;
	ASSERT_EQ(pthread_join(self->thread, NULL), 0);
}

/* How often to clear meanwhile: a huge page can take seconds to move. */
static int migrating_rounds(const struct area *area)
{
	if (area->nr > MANY_PAGES)
		return 2;
	/* One entry to be met on its way, and not a hundred. */
	return area->size == PMD ? 60 : 10;
}

/*
 * Let a part of a move pass, another one in each round. A write waits for the page that it
 * needs, so without this all that follows would meet the moves at the same point.
 */
static void get_out_of_step(const struct migrator *self, int round)
{
	usleep(self->usecs * round / migrating_rounds(&self->area));
}

/* clear_refs has to find pages that are under migration. */
TEST_F_TIMEOUT(soft_dirty, cleared_while_migrating, TIMEOUT)
{
	struct area *area = &self->area;
	struct migrator migrator = { .area = *area };

	if (!have_two_nodes())
		SKIP(return, "one NUMA node only");
	start_migrating(_metadata, &migrator);
	for (int round = 0; round < migrating_rounds(area); round++) {
		get_out_of_step(&migrator, round);
		clear_refs(_metadata, area);
		check(_metadata, area, "migrating, cleared");
		write_pages(area, round % 2 ? chosen : chosen_later);
		if (is_shared(area))
			may_unmap_all(area);
		check(_metadata, area, "migrating");
	}
	stop_migrating(_metadata, &migrator);
	check(_metadata, area, "migrated");
	check_content(_metadata, area);
}

/* Compact all memory, with gaps in it. Returns how many pages of AREA were moved. */
static size_t compact_once(struct __test_metadata *_metadata, struct area *area)
{
	uint64_t *before = calloc(area->nr, sizeof(*before));
	size_t len = MANY_PAGES * psize();
	size_t nr_moved = 0;
	char *gaps = mmap(NULL, len, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	ASSERT_NE(gaps, MAP_FAILED);
	for (size_t i = 0; i < len; i += 2 * psize())
		madvise(gaps + i, psize(), MADV_DONTNEED);
	look(_metadata, area);
	memcpy(before, area->entries, area->nr * sizeof(*before));
	ASSERT_TRUE(set_setting("/proc/sys/vm/compact_memory", "1"));
	munmap(gaps, len);
	look(_metadata, area);
	for (size_t i = area->first; i < area->nr; i++)
		nr_moved += (before[i] & area->entries[i] & PM_PRESENT) &&
			    PAGEMAP_PFN(before[i]) != PAGEMAP_PFN(area->entries[i]);
	free(before);
	return nr_moved;
}

static void compact(struct __test_metadata *_metadata, struct area *area)
{
	time_t start = time(NULL);

	/* What is moved depends on where it is: try from several places. */
	for (int i = 0; i < 10 && !area->nr_compacted && time(NULL) < start + TIMEOUT / 3; i++) {
		if (i)
			migrate(area, nr_migrated(area), i % 2);
		area->nr_compacted = compact_once(_metadata, area);
		/* A huge page is as compact as can be, and stays. */
		if (area->size == PMD)
			break;
	}
	/* Where there is no room for a large folio it is split, see folio_split. */
	if (is_shared(area))
		may_unmap_all(area);
}

TEST_F_TIMEOUT(soft_dirty, compaction, TIMEOUT)
{
	if (access("/proc/sys/vm/compact_memory", F_OK))
		SKIP(return, "no compaction");
	across(_metadata, &self->area, compact);
	if (!self->area.nr_compacted && __test_passed(_metadata))
		SKIP(return, "compaction moved none of the pages");
}

static void split_folios(struct __test_metadata *_metadata, struct area *area)
{
	char request[128];

	EXPECT_GT(nr_large(_metadata, area), 0);
	/* A file system holds on to what it has to write. */
	if (is_file(area))
		ASSERT_EQ(fsync(area->fd), 0);
	snprintf(request, sizeof(request), "%d,0x%lx,0x%lx", getpid(),
		 (unsigned long)page_addr(area, area->first),
		 (unsigned long)page_addr(area, area->nr));
	ASSERT_TRUE(set_setting("/sys/kernel/debug/split_huge_pages", request));
	/* What belongs to a file is unmapped for it. */
	if (is_shared(area))
		may_unmap_all(area);
	check(_metadata, area, "split");
	read_pages(area);
	look(_metadata, area);
	EXPECT_EQ(nr_large(_metadata, area), 0);
}

TEST_F_TIMEOUT(soft_dirty, folio_split, TIMEOUT)
{
	if (!nr_large(_metadata, &self->area))
		SKIP(return, "no large folio to split");
	if (access("/sys/kernel/debug/split_huge_pages", F_OK))
		SKIP(return, "no split_huge_pages in debugfs");
	across(_metadata, &self->area, split_folios);
}

static void lock_and_unlock(struct __test_metadata *_metadata, struct area *area)
{
	size_t nr = area->nr - area->first;

	if (nr > MANY_PAGES)
		nr = MANY_PAGES;
	ASSERT_EQ(mlock(page_addr(area, area->first), nr * psize()), 0);
	/* What is private and writable is faulted in as by writes. */
	for (size_t i = area->first; i < area->first + nr && !is_shared(area); i++)
		written(area, i);
	check(_metadata, area, "locked");
	ASSERT_EQ(munlock(page_addr(area, area->first), nr * psize()), 0);
}

TEST_F_TIMEOUT(soft_dirty, mlock, TIMEOUT)
{
	across(_metadata, &self->area, lock_and_unlock);
}

/* Writeback takes the dirty bit and the write permission: not what was tracked. */
static void write_back(struct __test_metadata *_metadata, struct area *area)
{
	ASSERT_EQ(msync(page_addr(area, area->first), (area->nr - area->first) * psize(),
			MS_SYNC), 0);
	check(_metadata, area, "msync");
	if (area->fd >= 0)
		ASSERT_EQ(fsync(area->fd), 0);
	check(_metadata, area, "fsync");
	write_pages(area, chosen);
	check(_metadata, area, "written again");
	if (area->fd >= 0)
		ASSERT_EQ(syncfs(area->fd), 0);
}

TEST_F_TIMEOUT(soft_dirty, writeback, TIMEOUT)
{
	across(_metadata, &self->area, write_back);
}

/* The counter of /proc/vmstat with NAME. */
static long vm_counter(const char *name)
{
	FILE *file = fopen("/proc/vmstat", "r");
	long value = 0, found;
	char other[64];

	if (!file)
		return 0;
	while (fscanf(file, "%63s %ld", other, &found) == 2)
		if (!strcmp(other, name))
			value = found;
	fclose(file);
	return value;
}

static void wait_for_numa_hints(struct __test_metadata *_metadata, struct area *area)
{
	const char *dir = "/sys/kernel/debug/sched/numa_balancing";
	static const char * const names[] = {
		"scan_period_min_ms", "scan_period_max_ms", "scan_delay_ms"
	};
	cpu_set_t cpus, before;
	char path[128];
	long updates, faults;
	time_t start;

	/* Only pages that are not where the process runs get hints. */
	ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
	CPU_ZERO(&cpus);
	CPU_SET(0, &cpus);
	ASSERT_EQ(sched_setaffinity(0, sizeof(cpus), &cpus), 0);
	EXPECT_GT(migrate(area, nr_migrated(area), 1), (long)nr_migrated(area) / 2);
	/* See migrate_and_back(). */
	if (is_shared(area))
		may_unmap_all(area);
	check(_metadata, area, "on the other node");
	read_pages(area);
	updates = vm_counter("numa_pte_updates");

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
		ASSERT_TRUE(set_setting(path, "10"));
	}
	ASSERT_TRUE(set_setting("/proc/sys/kernel/numa_balancing", "1"));
	/* The scan is done on the time of the process, so use some. */
	start = time(NULL);
	while (time(NULL) < start + 60 && vm_counter("numa_pte_updates") < updates + 64)
		for (int spin = 0; spin < 100000; spin++)
			asm volatile("");
	check(_metadata, area, "NUMA hints set");
	/* All pages are there: a read faults where there is a hint. */
	EXPECT_EQ(nr_unmapped(area), 0);
	faults = nr_faults();
	read_pages(area);
	EXPECT_GT(nr_faults(), faults);
	ASSERT_TRUE(set_setting("/proc/sys/kernel/numa_balancing", "0"));
	ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
}

TEST_F_TIMEOUT(soft_dirty, numa_hinting, TIMEOUT)
{
	if (!have_two_nodes() || access("/proc/sys/kernel/numa_balancing", W_OK) ||
	    access("/sys/kernel/debug/sched/numa_balancing", F_OK))
		SKIP(return, "no NUMA balancing between two nodes");
	if (self->area.kind == SHARED_FILE)
		SKIP(return, "dirty pages of a file get no NUMA hints");
	across(_metadata, &self->area, wait_for_numa_hints);
}

/* KSM. */

static bool wait_for_ksm(void)
{
	long scans = get_number("/sys/kernel/mm/ksm/full_scans");

	for (int i = 0; i < 600; i++) {
		if (get_number("/sys/kernel/mm/ksm/full_scans") >= scans + 3)
			return true;
		usleep(100 * 1000);
	}
	return false;
}

/* Pages with the same content: value 0 ones among them, which KSM treats on its own. */
static void fill_alike(struct area *area, size_t first, size_t nr, size_t alike)
{
	for (size_t i = first; i < first + nr; i++) {
		area->pages[i].value = (i - first) / alike % 251;
		memset(page_addr(area, i), area->pages[i].value, psize());
	}
}

TEST_F_TIMEOUT(soft_dirty, ksm, TIMEOUT)
{
	struct area *area = &self->area;
	const size_t nr = BASE_PAGES - area->first;
	size_t merged = 0;

	if (area->kind != ANON)
		SKIP(return, "KSM is for anonymous memory");
	if (access("/sys/kernel/mm/ksm/run", F_OK))
		SKIP(return, "no KSM");
	if (get_number("/sys/kernel/mm/ksm/pages_shared") ||
	    !set_setting("/sys/kernel/mm/ksm/pages_to_scan", "10000"))
		SKIP(return, "KSM is in use, or under its advisor");
	ASSERT_TRUE(set_setting("/sys/kernel/mm/ksm/sleep_millisecs", "1"));
	ASSERT_TRUE(set_setting("/sys/kernel/mm/ksm/use_zero_pages", "1"));
	set_setting("/sys/kernel/mm/ksm/smart_scan", "0");

	fill_alike(area, area->first, nr, 16);
	clear_refs(_metadata, area);
	for (size_t i = area->first; i < area->first + nr; i++) {
		if (!chosen(area, i))
			continue;
		/* The same value again is a write all the same. */
		store_byte(area, i, area->pages[i].value);
		written(area, i);
	}
	check(_metadata, area, "before");

	madvise_pages(_metadata, area, area->first, nr, MADV_MERGEABLE);
	ASSERT_TRUE(set_setting("/sys/kernel/mm/ksm/run", "1"));
	EXPECT_TRUE(wait_for_ksm());
	check(_metadata, area, "merged");
	for (size_t i = area->first + 1; i < area->first + nr; i++)
		merged += PAGEMAP_PFN(area->entries[i]) ==
			  PAGEMAP_PFN(area->entries[i - 1]);
	EXPECT_GT(merged, nr / 2);

	ASSERT_TRUE(set_setting("/sys/kernel/mm/ksm/run", "0"));
	for (size_t i = area->first; i < area->first + nr; i++)
		if (chosen_later(area, i))
			write_page(area, i);
	check(_metadata, area, "merged, written");
	clear_refs(_metadata, area);
	check(_metadata, area, "merged, cleared");
	for (size_t i = area->first; i < area->first + nr; i += 5)
		write_page(area, i);
	check(_metadata, area, "merged, cleared, written");

	madvise_pages(_metadata, area, area->first, nr, MADV_UNMERGEABLE);
	check(_metadata, area, "unmerged");
	check_content(_metadata, area);
	/* Nobody else had any pages, see above. */
	ASSERT_TRUE(set_setting("/sys/kernel/mm/ksm/run", "2"));
}

/* userfaultfd. */

static int open_uffd(unsigned long features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

	if (uffd >= 0 && ioctl(uffd, UFFDIO_API, &api)) {
		close(uffd);
		return -1;
	}
	return uffd;
}

/* For write-protection. */
static int uffd_register_area(int uffd, struct area *area)
{
	return uffd_register(uffd, page_addr(area, area->first),
			     (area->nr - area->first) * psize(), false, true, false);
}

static int uffd_copy(int uffd, struct area *area, size_t page, char *from)
{
	struct uffdio_copy arg = {
		.dst = (unsigned long)page_addr(area, page),
		.src = (unsigned long)from,
		.len = psize(),
	};

	return ioctl(uffd, UFFDIO_COPY, &arg);
}

static int uffd_zeropage(int uffd, struct area *area, size_t page)
{
	struct uffdio_zeropage arg = {
		.range.start = (unsigned long)page_addr(area, page),
		.range.len = psize(),
	};

	return ioctl(uffd, UFFDIO_ZEROPAGE, &arg);
}

/* What comes by userfaultfd is new, and reads dirty; the zero page was there before. */
TEST_F_TIMEOUT(soft_dirty, uffd_copy_zeropage_move, TIMEOUT)
{
	struct area *area = &self->area;
	const size_t hole = PAGE_C + 5, len = 3;
	char *from = map_apart(2 * psize(), psize(), PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct uffdio_move move = {
		.dst = (unsigned long)page_addr(area, hole + 2),
		.src = (unsigned long)from + psize(),
		.len = psize(),
	};
	int uffd;

	if (area->kind != ANON)
		SKIP(return, "userfaultfd moves anonymous memory, see the next test");
	uffd = open_uffd(0);
	if (uffd < 0)
		SKIP(return, "no userfaultfd");
	ASSERT_EQ(uffd_register(uffd, page_addr(area, hole), len * psize(), true, false, false),
		  0);
	memset(from, 0, 2 * psize());
	write_pages(area, chosen);
	madvise_pages(_metadata, area, hole, len, MADV_DONTNEED);
	for (size_t i = hole; i < hole + len; i++)
		area->pages[i] = (struct page){ .gone = true };
	clear_refs(_metadata, area);
	write_pages(area, chosen_later);

	ASSERT_EQ(uffd_copy(uffd, area, hole, from), 0);
	ASSERT_EQ(uffd_zeropage(uffd, area, hole + 1), 0);
	ASSERT_EQ(ioctl(uffd, UFFDIO_MOVE, &move), 0);
	area->pages[hole] = (struct page){ .must = true };
	area->pages[hole + 1] = (struct page){};
	area->pages[hole + 2] = (struct page){ .must = true };
	check(_metadata, area, "copied, zero, moved");

	clear_refs(_metadata, area);
	check(_metadata, area, "cleared");
	write_page(area, hole);
	write_page(area, hole + 1);
	check(_metadata, area, "cleared, written");
	check_content(_metadata, area);
	close(uffd);
}

/* The same for shared memory, where the zero page is a new one, and one is in memory already. */
TEST_F_TIMEOUT(soft_dirty, uffd_copy_zeropage_continue, TIMEOUT)
{
	struct area *area = &self->area;
	const size_t hole = PAGE_C + 5, len = 3;
	char *from = map_apart(psize(), psize(), PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct uffdio_continue cont = {
		.range.start = (unsigned long)page_addr(area, hole + 2),
		.range.len = psize(),
	};
	int uffd;

	if (area->kind != SHARED_ANON && area->kind != MEMFD)
		SKIP(return, "userfaultfd fills anonymous and shared memory only");
	uffd = open_uffd(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM);
	if (uffd < 0)
		SKIP(return, "no userfaultfd for shared memory");
	memset(from, 0, psize());
	write_pages(area, chosen);
	madvise_pages(_metadata, area, hole, 2, MADV_REMOVE);
	madvise_pages(_metadata, area, hole + 2, 1, MADV_DONTNEED);
	for (size_t i = hole; i < hole + len; i++)
		area->pages[i].gone = true;
	ASSERT_EQ(uffd_register(uffd, page_addr(area, hole), len * psize(), true, false, true),
		  0);
	clear_refs(_metadata, area);
	/* Pages of a folio that was split are not mapped, and a write would map all of it. */
	read_pages(area);
	write_pages(area, chosen_later);

	ASSERT_EQ(uffd_copy(uffd, area, hole, from), 0);
	ASSERT_EQ(uffd_zeropage(uffd, area, hole + 1), 0);
	ASSERT_EQ(ioctl(uffd, UFFDIO_CONTINUE, &cont), 0);
	area->pages[hole] = (struct page){ .must = true };
	area->pages[hole + 1] = (struct page){ .must = true };
	area->pages[hole + 2].gone = false;
	area->pages[hole + 2].must = true;
	check(_metadata, area, "copied, zero, continued");

	clear_refs(_metadata, area);
	check(_metadata, area, "cleared");
	for (size_t i = hole; i < hole + len; i++)
		write_page(area, i);
	check(_metadata, area, "cleared, written");
	check_content(_metadata, area);
	close(uffd);
}

/* The pages that PAGEMAP_SCAN says were written, and with it write-protects again. */
static size_t scan_written(struct __test_metadata *_metadata, struct area *area,
			   bool protect, bool *found)
{
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = protect ? PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC : 0,
		.start = (unsigned long)page_addr(area, area->first),
		.end = (unsigned long)page_addr(area, area->nr),
		.vec = (unsigned long)area->regions,
		.vec_len = area->nr,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	long regions = ioctl(area->pagemap, PAGEMAP_SCAN, &arg);
	size_t nr = 0;

	ASSERT_GE(regions, 0);
	memset(found, 0, area->nr);
	for (long i = 0; i < regions; i++) {
		size_t page = (area->regions[i].start - (unsigned long)area->mem) / psize();
		size_t end = (area->regions[i].end - (unsigned long)area->mem) / psize();

		for (; page < end; page++, nr++)
			found[page] = true;
	}
	return nr;
}

/* Two trackers on the same pages: neither sees or loses what the other clears. */
TEST_F_TIMEOUT(soft_dirty, uffd_wp_async, TIMEOUT)
{
	struct area *area = &self->area;
	bool *found = calloc(area->nr, sizeof(*found));
	int uffd;

	uffd = open_uffd(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED);
	if (uffd < 0)
		SKIP(return, "no asynchronous userfaultfd write-protection");
	ASSERT_EQ(uffd_register_area(uffd, area), 0);

	/* Both start at the same time, and see the same. */
	scan_written(_metadata, area, true, found);
	clear_refs(_metadata, area);
	check(_metadata, area, "write-protected");
	EXPECT_EQ(scan_written(_metadata, area, false, found), 0);
	write_pages(area, chosen);
	check(_metadata, area, "write-protected, written");
	scan_written(_metadata, area, false, found);
	for (size_t i = area->first; i < area->nr; i++)
		EXPECT_TRUE(found[i] || !area->pages[i].must);

	/* Clear soft-dirty: what was written for userfaultfd stays so. */
	clear_refs(_metadata, area);
	check(_metadata, area, "cleared");
	write_pages(area, chosen_later);
	check(_metadata, area, "cleared, written");
	scan_written(_metadata, area, false, found);
	for (size_t i = area->first; i < area->nr; i++)
		EXPECT_TRUE(found[i] || !(chosen(area, i) || chosen_later(area, i)));

	/* Write-protect: what is soft-dirty stays so. */
	scan_written(_metadata, area, true, found);
	check(_metadata, area, "write-protected again");
	EXPECT_EQ(scan_written(_metadata, area, false, found), 0);
	write_pages(area, chosen);
	check(_metadata, area, "write-protected again, written");
	check_content(_metadata, area);
	close(uffd);
	free(found);
}

/* PAGEMAP_SCAN, too, has to find pages that are under migration. */
TEST_F_TIMEOUT(soft_dirty, uffd_wp_async_while_migrating, TIMEOUT)
{
	struct area *area = &self->area;
	struct migrator migrator = { .area = *area };
	bool *found = calloc(area->nr, sizeof(*found));
	size_t missed = 0, excess = 0;
	int uffd;

	if (!have_two_nodes())
		SKIP(return, "one NUMA node only");
	uffd = open_uffd(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED);
	if (uffd < 0)
		SKIP(return, "no asynchronous userfaultfd write-protection");
	ASSERT_EQ(uffd_register_area(uffd, area), 0);
	start_migrating(_metadata, &migrator);
	for (int round = 0; round < migrating_rounds(area); round++) {
		get_out_of_step(&migrator, round);
		/* The same pages again: they are writable when they are protected. */
		scan_written(_metadata, area, true, found);
		read_pages(area);
		excess += scan_written(_metadata, area, false, found);
		write_pages(area, chosen);
		scan_written(_metadata, area, false, found);
		for (size_t i = area->first; i < area->nr; i++)
			missed += !found[i] && chosen(area, i);
	}
	EXPECT_EQ(missed, 0);
	EXPECT_EQ(excess, 0);
	stop_migrating(_metadata, &migrator);
	clear_refs(_metadata, area);
	write_pages(area, chosen_later);
	check(_metadata, area, "migrated, cleared, written");
	check_content(_metadata, area);
	close(uffd);
	free(found);
}

struct resolver {
	int uffd;
	atomic_bool stop;
	atomic_int faults;
};

static void *resolve_faults(void *arg)
{
	struct resolver *self = arg;
	struct pollfd pollfd = { .fd = self->uffd, .events = POLLIN };
	struct uffd_msg msg;

	while (!self->stop) {
		struct uffdio_writeprotect unprotect = { .range.len = psize() };

		if (poll(&pollfd, 1, 10) <= 0 ||
		    read(self->uffd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		unprotect.range.start = msg.arg.pagefault.address & ~(psize() - 1UL);
		self->faults++;
		ioctl(self->uffd, UFFDIO_WRITEPROTECT, &unprotect);
	}
	return NULL;
}

TEST_F_TIMEOUT(soft_dirty, uffd_wp_sync, TIMEOUT)
{
	struct area *area = &self->area;
	struct uffdio_writeprotect protect = {
		.range.start = (unsigned long)page_addr(area, area->first),
		.range.len = (area->nr - area->first) * psize(),
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	struct resolver resolver = {};
	pthread_t thread;

	if (is_file(area))
		SKIP(return, "userfaultfd does not write-protect files");
	resolver.uffd = open_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	if (resolver.uffd < 0)
		SKIP(return, "no userfaultfd write-protection");
	ASSERT_EQ(uffd_register_area(resolver.uffd, area), 0);
	ASSERT_EQ(pthread_create(&thread, NULL, resolve_faults, &resolver), 0);

	write_pages(area, chosen);
	ASSERT_EQ(ioctl(resolver.uffd, UFFDIO_WRITEPROTECT, &protect), 0);
	/*
	 * The PMD of shared memory is split for that, which unmaps its pages. What they have
	 * then, for userfaultfd, is no swap entry.
	 */
	for (size_t i = 0; i < area->nr && area->size == PMD && is_shared(area); i++) {
		area->pages[i].may = true;
		area->pages[i].must = false;
	}
	check(_metadata, area, "write-protected");
	write_page(area, PAGE_A);
	check(_metadata, area, "write-protected, written");
	clear_refs(_metadata, area);
	check(_metadata, area, "cleared");
	write_page(area, PAGE_A);
	write_page(area, PAGE_C);
	check(_metadata, area, "cleared, written");
	EXPECT_GE(resolver.faults, 2);

	resolver.stop = true;
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	close(resolver.uffd);
	check_content(_metadata, area);
}

#ifdef __aarch64__
/* Whether the CPU records a write to a page that is clean and writable without a fault. */
static bool cpu_records_writes(struct __test_metadata *_metadata)
{
	char *mem = mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long before;

	ASSERT_NE(mem, MAP_FAILED);
	__atomic_store_n(mem, 1, __ATOMIC_RELAXED);
	ASSERT_EQ(madvise(mem, psize(), MADV_FREE), 0);
	/* Young again, which may be a fault of its own; and so may the stack that is needed. */
	__atomic_load_n(mem, __ATOMIC_RELAXED);
	nr_faults();
	before = nr_faults();
	__atomic_store_n(mem, 2, __ATOMIC_RELAXED);
	before = nr_faults() - before;
	munmap(mem, psize());
	return !before;
}

/* Write a page. Returns the faults from just before the store to just after, rseq's included. */
static long write_and_count_faults(struct area *area, size_t page)
{
	unsigned char value = ++area->pages[page].value;
	long faults = nr_faults();

	store_byte(area, page, value);
	faults = nr_faults() - faults;
	written(area, page);
	return faults;
}

/* Whether writes to NR entries have taken FAULTS faults. */
static void expect_faults(struct __test_metadata *_metadata, bool records, long faults, long nr)
{
	if (records) {
		EXPECT_EQ(faults, 0);
		return;
	}
	EXPECT_GE(faults, nr);
}

/* A page that was writable is made soft-clean and stays so: a CPU that can records the write. */
TEST_F_TIMEOUT(soft_dirty, write_without_a_fault, TIMEOUT)
{
	struct area *area = &self->area;
	size_t units = area->size == PMD ? area->nr / pmd_pages() : area->nr - area->first;
	bool records = cpu_records_writes(_metadata);
	long faults;

	if (is_file(area))
		SKIP(return, "pages of a file may get copied or write-protected at any time");
	/* A hint of it is a fault, too. Without NUMA there is none. */
	set_setting("/proc/sys/kernel/numa_balancing", "0");
	for (int round = 0; round < 2; round++) {
		faults = 0;
		for (size_t i = area->first; i < area->nr; i++)
			faults += write_and_count_faults(area, i);
		expect_faults(_metadata, records, faults, units);
		check(_metadata, area, "written");
		clear_refs(_metadata, area);
		/* Nor does the second round take one after the mapping was read-only. */
		ASSERT_EQ(mprotect(page_addr(area, area->first), (area->nr - area->first) * psize(),
				   PROT_READ), 0);
		ASSERT_EQ(mprotect(page_addr(area, area->first), (area->nr - area->first) * psize(),
				   PROT_READ | PROT_WRITE), 0);
		check(_metadata, area, "cleared");
	}

	/* What a read maps of shared memory is writable and soft-clean as well. */
	if (!is_shared(area) || area->size == PMD)
		return;
	madvise_pages(_metadata, area, area->first, area->nr - area->first, MADV_DONTNEED);
	read_pages(area);
	check(_metadata, area, "mapped by reads");
	expect_faults(_metadata, records, write_and_count_faults(area, PAGE_A), 1);
	/* If it is in a block of pages, that is looked at as a whole. */
	ASSERT_EQ(mprotect(page_addr(area, PAGE_B), psize(), PROT_READ), 0);
	check(_metadata, area, "mapped by reads, written");
	ASSERT_EQ(mprotect(page_addr(area, PAGE_B), psize(), PROT_READ | PROT_WRITE), 0);
}

/* What mremap marks and was written before has nothing left to record, on any CPU. */
TEST_F_TIMEOUT(soft_dirty, write_of_a_moved_page, TIMEOUT)
{
	struct area *area = &self->area;
	long faults = 1;

	if (is_file(area))
		SKIP(return, "pages of a file may get copied or write-protected at any time");
	set_setting("/proc/sys/kernel/numa_balancing", "0");
	/* The kernel writes rseq, with a fault of its own, after another task ran: seldom. */
	for (int i = 0; i < 5 && faults; i++) {
		for (size_t page = area->first; page < area->nr; page++)
			write_page(area, page);
		clear_refs(_metadata, area);
		mremap_move(_metadata, area);
		faults = 0;
		for (size_t page = area->first; page < area->nr; page++)
			faults += write_and_count_faults(area, page);
		check(_metadata, area, "moved and written");
	}
	EXPECT_EQ(faults, 0);
}
#endif /* __aarch64__ */

/* Threads. */

#define MAX_WRITERS	8
#define ROUNDS		4

struct writer {
	struct writers *all;
	pthread_t thread;
	unsigned int seed;
	int cpu;
};

struct writers {
	struct area *area;
	size_t nr;		/* pages that they write */
	char *copy;		/* of these pages */
	int nr_writers;
	pthread_barrier_t begin, end;
	atomic_bool go_on;	/* do not end the round */
	atomic_bool stop;
	atomic_long passes;
	atomic_uchar *touched;	/* by page */
	struct writer writers[MAX_WRITERS];
};

static void *write_in_rounds(void *arg)
{
	struct writer *self = arg;
	struct writers *all = self->all;
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(self->cpu, &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
	for (;;) {
		pthread_barrier_wait(&all->begin);
		if (all->stop)
			return NULL;
		do {
			for (int i = 0; i < 40; i++) {
				size_t page = all->area->first + rand_r(&self->seed) % all->nr;
				size_t offset = rand_r(&self->seed) % psize();

				all->touched[page] = 1;
				page_addr(all->area, page)[offset] = rand_r(&self->seed);
			}
			all->passes++;
		} while (all->go_on);
		pthread_barrier_wait(&all->end);
	}
}

/* A writer on every CPU, and a copy of what they write. */
static void start_writers(struct __test_metadata *_metadata, struct writers *all,
			  struct area *area)
{
	*all = (struct writers){ .area = area, .nr = area->nr - area->first };
	if (all->nr > MANY_PAGES)
		all->nr = MANY_PAGES;
	if (all->nr > WRITTEN_BYTES / psize())
		all->nr = WRITTEN_BYTES / psize();
	all->nr_writers = sysconf(_SC_NPROCESSORS_ONLN);
	if (all->nr_writers > MAX_WRITERS)
		all->nr_writers = MAX_WRITERS;
	all->touched = calloc(area->nr, sizeof(*all->touched));
	all->copy = malloc(all->nr * psize());
	ASSERT_NE(all->touched, NULL);
	ASSERT_NE(all->copy, NULL);
	ASSERT_EQ(pthread_barrier_init(&all->begin, NULL, all->nr_writers + 1), 0);
	ASSERT_EQ(pthread_barrier_init(&all->end, NULL, all->nr_writers + 1), 0);
	for (int i = 0; i < all->nr_writers; i++) {
		all->writers[i] = (struct writer){ .all = all, .seed = i + 1, .cpu = i };
		ASSERT_EQ(pthread_create(&all->writers[i].thread, NULL, write_in_rounds,
					 &all->writers[i]), 0);
	}
	memcpy(all->copy, page_addr(area, area->first), all->nr * psize());
}

static void stop_writers(struct __test_metadata *_metadata, struct writers *all)
{
	all->stop = true;
	pthread_barrier_wait(&all->begin);
	for (int i = 0; i < all->nr_writers; i++)
		ASSERT_EQ(pthread_join(all->writers[i].thread, NULL), 0);
	free(all->copy);
	free(all->touched);
}

/* Whether the page with the index I of those that are written is as it was copied. */
static bool same_as_copy(const struct writers *all, size_t i)
{
	return !memcmp(all->copy + i * psize(), page_addr(all->area, all->area->first + i),
		       psize());
}

/*
 * What this is for: a copy that is made while threads write, round by round, of
 * the pages alone that read soft-dirty, is the memory in the end.
 */
TEST_F_TIMEOUT(soft_dirty, copy_by_rounds, TIMEOUT)
{
	struct area *area = &self->area;
	struct writers all;
	size_t differ = 0;

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		SKIP(return, "one CPU only");
	start_writers(_metadata, &all, area);
	clear_refs(_metadata, area);
	for (int round = 0; round < ROUNDS; round++) {
		pthread_barrier_wait(&all.begin);
		pthread_barrier_wait(&all.end);
		for (size_t i = area->first; i < area->first + all.nr; i++) {
			if (all.touched[i])
				written(area, i);
			all.touched[i] = 0;
		}
		check(_metadata, area, "round");
		for (size_t i = 0; i < all.nr; i++)
			if (area->entries[area->first + i] & PM_SOFT_DIRTY)
				memcpy(all.copy + i * psize(),
				       page_addr(area, area->first + i), psize());
		clear_refs(_metadata, area);
	}
	for (size_t i = 0; i < all.nr; i++)
		differ += !same_as_copy(&all, i);
	EXPECT_EQ(differ, 0);
	stop_writers(_metadata, &all);
}

/*
 * What is written after clear_refs has returned is seen, whatever CHANGE does to the
 * memory meanwhile. Without that, the threads do not wait for clear_refs either; with it
 * they begin to write with the change.
 */
static void change_while_writing(struct __test_metadata *_metadata, struct area *area,
				 int rounds, void (*change)(struct __test_metadata *_metadata,
							    struct writers *all))
{
	struct writers all;
	size_t differ = 0;

	start_writers(_metadata, &all, area);
	for (int round = 0; round < rounds; round++) {
		long passes;

		all.go_on = true;
		if (!change)
			pthread_barrier_wait(&all.begin);
		clear_refs(_metadata, area);
		memcpy(all.copy, page_addr(area, area->first), all.nr * psize());
		if (change)
			pthread_barrier_wait(&all.begin);
		passes = all.passes;
		do {
			if (change)
				change(_metadata, &all);
			else
				sched_yield();
		} while (all.passes < passes + 2 * all.nr_writers);
		all.go_on = false;
		pthread_barrier_wait(&all.end);

		for (size_t i = 0; i < all.nr; i++) {
			size_t page = area->first + i;

			/* A change to all entries of a folio may count a write for all. */
			area->pages[page].may |= area->size == MTHP && change;
			if (all.touched[page]) {
				written(area, page);
				area->pages[page].may = true;
				area->pages[page].must = !same_as_copy(&all, i);
				differ += area->pages[page].must;
			}
			all.touched[page] = 0;
		}
		check(_metadata, area, "round");
	}
	EXPECT_GT(differ, 0);
	stop_writers(_metadata, &all);
}

TEST_F_TIMEOUT(soft_dirty, cleared_while_writing, TIMEOUT)
{
	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		SKIP(return, "one CPU only");
	change_while_writing(_metadata, &self->area, ROUNDS, NULL);
}

/*
 * Where the hardware records a write by itself, that may come at any moment of a change
 * to the page table, and no fault waits for the end of it.
 */

#define MANY_ROUNDS	20

FIXTURE(race)
{
	struct area area;
};

FIXTURE_VARIANT(race)
{
	enum kind kind;
	enum size size;
};

FIXTURE_VARIANT_ADD(race, anon_many) { .kind = ANON, .size = MANY };
FIXTURE_VARIANT_ADD(race, anon_mthp) { .kind = ANON, .size = MTHP };
FIXTURE_VARIANT_ADD(race, anon_pmd) { .kind = ANON, .size = PMD };
FIXTURE_VARIANT_ADD(race, memfd_many) { .kind = MEMFD, .size = MANY };
FIXTURE_VARIANT_ADD(race, memfd_mthp) { .kind = MEMFD, .size = MTHP };

FIXTURE_SETUP(race)
{
	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		SKIP(return, "one CPU only");
	set_up_area(_metadata, &self->area, variant->kind, variant->size);
}

FIXTURE_TEARDOWN(race)
{
	restore_settings();
}

/* What the child has that was not there when the bits were cleared reads dirty in it. */
static void fork_and_compare(struct __test_metadata *_metadata, struct writers *all)
{
	struct area *area = all->area;
	int status;
	pid_t pid;

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		size_t missed = 0;

		watch(_metadata, area, getpid());
		look(_metadata, area);
		for (size_t i = 0; i < all->nr; i++)
			missed += !same_as_copy(all, i) &&
				  !(area->entries[area->first + i] & PM_SOFT_DIRTY);
		if (missed)
			TH_LOG("%zu written pages were missed in the child", missed);
		_exit(!!missed);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
}

TEST_F_TIMEOUT(race, fork, TIMEOUT)
{
	if (is_shared(&self->area))
		SKIP(return, "a child has no page table of shared memory");
	change_while_writing(_metadata, &self->area, MANY_ROUNDS, fork_and_compare);
}

static void free_lazily(struct __test_metadata *_metadata, struct writers *all)
{
	for (int i = 0; i < 10; i++)
		madvise_pages(_metadata, all->area, all->area->first, all->nr, MADV_FREE);
}

TEST_F_TIMEOUT(race, madv_free, TIMEOUT)
{
	if (is_shared(&self->area))
		SKIP(return, "MADV_FREE is for anonymous memory");
	change_while_writing(_metadata, &self->area, MANY_ROUNDS, free_lazily);
}

/* Not all of it: each page that is written meanwhile has to come back first. */
static void page_out(struct __test_metadata *_metadata, struct writers *all)
{
	madvise_pages(_metadata, all->area, BASE_PAGES, BASE_PAGES, MADV_PAGEOUT);
}

TEST_F_TIMEOUT(race, pageout, TIMEOUT)
{
	if (is_shared(&self->area))
		SKIP(return, "memory of a file forgets when it is unmapped");
	if (!have_swap(_metadata))
		SKIP(return, "no swap space");
	change_while_writing(_metadata, &self->area, ROUNDS, page_out);
}

/* Stays writable, and each entry changes. */
static void make_executable_and_back(struct __test_metadata *_metadata, struct writers *all)
{
	char *start = page_addr(all->area, all->area->first);
	int prot = PROT_READ | PROT_WRITE;

	ASSERT_EQ(mprotect(start, all->nr * psize(), prot | PROT_EXEC), 0);
	ASSERT_EQ(mprotect(start, all->nr * psize(), prot), 0);
}

TEST_F_TIMEOUT(race, mprotect, TIMEOUT)
{
	change_while_writing(_metadata, &self->area, MANY_ROUNDS, make_executable_and_back);
}

static void migrate_once_and_back(struct __test_metadata *_metadata, struct writers *all)
{
	migrate(all->area, all->nr, 1);
	migrate(all->area, all->nr, 0);
}

TEST_F_TIMEOUT(race, migration, TIMEOUT)
{
	if (!have_two_nodes())
		SKIP(return, "one NUMA node only");
	if (is_shared(&self->area) && self->area.size == MTHP)
		SKIP(return, "memory of a file forgets when a folio is split, see folio_split");
	change_while_writing(_metadata, &self->area, ROUNDS, migrate_once_and_back);
}

/* Whole page tables, which mremap could move without a look at their entries. */

FIXTURE(table)
{
	struct area area;
};

FIXTURE_VARIANT(table)
{
	enum kind kind;
};

FIXTURE_VARIANT_ADD(table, anon) { .kind = ANON };
FIXTURE_VARIANT_ADD(table, memfd) { .kind = MEMFD };

FIXTURE_SETUP(table)
{
	set_up_area(_metadata, &self->area, variant->kind, TABLE);
}

FIXTURE_TEARDOWN(table)
{
	restore_settings();
}

TEST_F_TIMEOUT(table, mremap_moved, TIMEOUT)
{
	across(_metadata, &self->area, mremap_move);
}

/* Collapse into a larger folio. */

FIXTURE(collapse)
{
	struct area area;
	size_t unit;
};

FIXTURE_VARIANT(collapse)
{
	bool khugepaged;	/* or MADV_COLLAPSE */
	bool pmd;		/* or an mTHP of sixteen pages */
	int prot;		/* of the memory by then */
};

FIXTURE_VARIANT_ADD(collapse, pmd_madvise)
{
	.pmd = true, .prot = PROT_READ | PROT_WRITE,
};

FIXTURE_VARIANT_ADD(collapse, pmd_madvise_readonly)
{
	.pmd = true, .prot = PROT_READ,
};

FIXTURE_VARIANT_ADD(collapse, pmd_khugepaged)
{
	.khugepaged = true, .pmd = true, .prot = PROT_READ | PROT_WRITE,
};

FIXTURE_VARIANT_ADD(collapse, pmd_khugepaged_readonly)
{
	.khugepaged = true, .pmd = true, .prot = PROT_READ,
};

FIXTURE_VARIANT_ADD(collapse, mthp_khugepaged)
{
	.khugepaged = true, .prot = PROT_READ | PROT_WRITE,
};

FIXTURE_VARIANT_ADD(collapse, mthp_khugepaged_readonly)
{
	.khugepaged = true, .prot = PROT_READ,
};

/* Whether the kernel counts collapses into folios of NR pages. */
static bool has_mthp_collapse(size_t nr)
{
	char path[128];

	snprintf(path, sizeof(path),
		 "/sys/kernel/mm/transparent_hugepage/hugepages-%zukB/stats/collapse_alloc",
		 nr * psize() >> 10);
	return !access(path, F_OK);
}

FIXTURE_SETUP(collapse)
{
	if (!pmd_pages())
		SKIP(return, "no transparent huge pages");
	self->unit = variant->pmd ? pmd_pages() : 16;
	if (!variant->pmd && !has_mthp_collapse(self->unit))
		SKIP(return, "khugepaged has PMD-mapped huge pages only");
	set_up_area(_metadata, &self->area, ANON, TABLE);
}

FIXTURE_TEARDOWN(collapse)
{
	restore_settings();
}

static bool is_collapsed(struct __test_metadata *_metadata, struct area *area)
{
	look(_metadata, area);
	return nr_large(_metadata, area) > 0;
}

static void start_khugepaged(struct area *area, size_t unit)
{
	struct thp_settings new;

	allow_orders(unit);
	thp_read_settings(&new);
	new.khugepaged.alloc_sleep_millisecs = 10;
	new.khugepaged.scan_sleep_millisecs = 10;
	new.khugepaged.pages_to_scan = area->nr * 4;
	/* Of mTHPs only those that are full. */
	new.khugepaged.max_ptes_none = 0;
	thp_write_settings(&new);
}

TEST_F_TIMEOUT(collapse, keeps_what_was_written, TIMEOUT)
{
	long failed = vm_counter("thp_collapse_alloc_failed");
	struct area *area = &self->area;

	clear_refs(_metadata, area);
	write_pages(area, chosen);
	ASSERT_FALSE(is_collapsed(_metadata, area));
	protect(_metadata, area, 0, area->nr, variant->prot);
	check(_metadata, area, "before");

	if (variant->khugepaged) {
		time_t start = time(NULL);

		start_khugepaged(area, self->unit);
		madvise_pages(_metadata, area, 0, area->nr, MADV_HUGEPAGE);
		while (!is_collapsed(_metadata, area) && time(NULL) < start + TIMEOUT / 5)
			usleep(100 * 1000);
		prepare_thp();
		allow_orders(0);
	} else {
		allow_orders(self->unit);
		madvise_pages(_metadata, area, 0, area->nr, MADV_HUGEPAGE);
		if (madvise(area->mem, area->nr * psize(), MADV_COLLAPSE))
			TH_LOG("MADV_COLLAPSE: %s", strerror(errno));
	}
	if (!is_collapsed(_metadata, area)) {
		/* A skip would hide it. */
		if (!__test_passed(_metadata))
			return;
		/* What collapses into mTHPs collapses what is read-only, too. */
		if (variant->prot == PROT_READ && !has_mthp_collapse(16))
			SKIP(return, "this kernel collapses only what is writable");
		if (vm_counter("thp_collapse_alloc_failed") > failed)
			SKIP(return, "no large folio was to be had");
		ASSERT_TRUE(false)
			TH_LOG("nothing was collapsed");
	}

	/* A page that was not written may share its new folio with one that was. */
	for (size_t i = 0; i < area->nr; i++)
		area->pages[i].may = true;
	check(_metadata, area, "collapsed");
	protect(_metadata, area, 0, area->nr, PROT_READ | PROT_WRITE);
	check(_metadata, area, "collapsed, writable");
	clear_refs(_metadata, area);
	check(_metadata, area, "collapsed, cleared");
	write_pages(area, chosen_later);
	check(_metadata, area, "collapsed, cleared, written");
	check_content(_metadata, area);
}

/* Swap entries: soft-dirty has a bit of its own there. */

FIXTURE(swap)
{
	struct area area;
};

FIXTURE_SETUP(swap)
{
	set_up_area(_metadata, &self->area, ANON, TABLE);
}

FIXTURE_TEARDOWN(swap)
{
	restore_settings();
}

/* The type and the offset of a swap entry, as pagemap has them. */
#define SWAP_TYPE(entry)	((entry) & 0x1f)
#define SWAP_OFFSET(entry)	(((entry) & (BIT_ULL(55) - 1)) >> 5)

TEST_F_TIMEOUT(swap, keeps_type_and_offset, TIMEOUT)
{
	struct area *area = &self->area;
	size_t nr = area->nr < MANY_PAGES ? area->nr : MANY_PAGES;
	uint64_t *before = calloc(area->nr, sizeof(*before));
	bool *used = calloc(MANY_PAGES + 1, sizeof(*used));
	size_t changed = 0, bad = 0, type = 0;

	/* Each page its own content: who reads a wrong one will see it. */
	for (size_t i = 0; i < nr; i++) {
		for (size_t j = 0; j < psize(); j += sizeof(size_t))
			*(size_t *)(page_addr(area, i) + j) = i * psize() + j;
		area->pages[i].value = load_byte(area, i);
	}
	clear_refs(_metadata, area);
	for (size_t i = 0; i < nr; i++) {
		if (!chosen(area, i))
			continue;
		__atomic_store_n((size_t *)page_addr(area, i), i * psize(), __ATOMIC_RELAXED);
		written(area, i);
	}

	/* Fill the swap file to its last page. */
	if (!own_swap(_metadata, nr))
		SKIP(return, "no swap files on this file system, or much is in swap");
	madvise_pages(_metadata, area, 0, nr, MADV_PAGEOUT);
	check(_metadata, area, "paged out");
	EXPECT_GT(nr_swapped(area), nr / 2);
	memcpy(before, area->entries, area->nr * sizeof(*before));
	for (size_t i = nr; i-- > 0;)
		type = before[i] & PM_SWAP ? SWAP_TYPE(before[i]) : type;
	for (size_t i = 0; i < nr; i++) {
		if (!(before[i] & PM_SWAP))
			continue;
		bad += SWAP_TYPE(before[i]) != type;
		bad += SWAP_OFFSET(before[i]) > nr || used[SWAP_OFFSET(before[i])];
		if (SWAP_OFFSET(before[i]) <= nr)
			used[SWAP_OFFSET(before[i])] = true;
	}
	EXPECT_EQ(bad, 0);

	/* Clearing the bit changes nothing else. */
	clear_refs(_metadata, area);
	check(_metadata, area, "paged out, cleared");
	for (size_t i = 0; i < nr; i++)
		changed += (before[i] & ~PM_SOFT_DIRTY) != area->entries[i] &&
			   (before[i] & area->entries[i] & PM_SWAP);
	EXPECT_EQ(changed, 0);

	for (size_t i = 0; i < nr; i++)
		for (size_t j = 0; j < psize(); j += sizeof(size_t))
			bad += *(size_t *)(page_addr(area, i) + j) != i * psize() + j;
	EXPECT_EQ(bad, 0);
	check(_metadata, area, "read back");
	free(before);
	free(used);
}

TEST_F_TIMEOUT(swap, with_exclusive_and_uffd, TIMEOUT)
{
	struct area *area = &self->area;
	const size_t nr = BASE_PAGES;
	struct uffdio_writeprotect protect = {
		.range.len = nr / 2 * psize(),
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	size_t wrong = 0;
	int uffd;

	if (!have_swap(_metadata))
		SKIP(return, "no swap space");
	uffd = open_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	if (uffd < 0)
		SKIP(return, "no userfaultfd write-protection");
	ASSERT_EQ(uffd_register(uffd, area->mem, nr * psize(), false, true, false), 0);
	clear_refs(_metadata, area);
	write_pages(area, chosen);
	protect.range.start = (unsigned long)page_addr(area, 0);
	ASSERT_EQ(ioctl(uffd, UFFDIO_WRITEPROTECT, &protect), 0);

	/*
	 * The pages are exclusive to this process, which pagemap does not tell (what shares
	 * them is in fork_while_paged_out). Half of them are write-protected.
	 */
	madvise_pages(_metadata, area, 0, nr, MADV_PAGEOUT);
	check(_metadata, area, "paged out");
	EXPECT_GT(nr_swapped(area), nr / 2);
	for (size_t i = 0; i < nr; i++)
		wrong += !!(area->entries[i] & PM_UFFD_WP) != (i < nr / 2);
	EXPECT_EQ(wrong, 0);

	/* Clear the one: the other stays. */
	clear_refs(_metadata, area);
	check(_metadata, area, "paged out, cleared");
	for (size_t i = 0; i < nr; i++)
		wrong += !!(area->entries[i] & PM_UFFD_WP) != (i < nr / 2);
	EXPECT_EQ(wrong, 0);

	/* Clear the other: nothing becomes dirty by that. */
	protect.mode = 0;
	ASSERT_EQ(ioctl(uffd, UFFDIO_WRITEPROTECT, &protect), 0);
	check(_metadata, area, "paged out, cleared, not protected any more");
	for (size_t i = 0; i < nr; i++)
		wrong += !!(area->entries[i] & PM_UFFD_WP);
	EXPECT_EQ(wrong, 0);
	write_pages(area, chosen_later);
	check(_metadata, area, "written");
	check_content(_metadata, area);
	close(uffd);
}

/* A page that is pinned without a fault, since its PTE is writable, but soft-clean. */
TEST_F_TIMEOUT(swap, write_to_a_page_pinned_without_a_fault, TIMEOUT)
{
	struct area *area = &self->area;
	char *page = page_addr(area, PAGE_A);
	char *last = page_addr(area, area->nr - 1);
	struct ring ring;

	if (!have_swap(_metadata))
		SKIP(return, "no swap space");
	if (!make_ring(&ring))
		SKIP(return, "no io_uring");

	/* Out to swap, where it is soft-clean. */
	clear_refs(_metadata, area);
	ASSERT_EQ(madvise(page, psize(), MADV_PAGEOUT), 0);
	ASSERT_TRUE(pagemap_is_swapped(area->pagemap, page));
	/* All of the VMA reads dirty once a new one has merged with it. */
	ASSERT_EQ(munmap(last, psize()), 0);
	ASSERT_EQ(mmap(last, psize(), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), last);
	/* So a read may map the page writable, and a pin need not mark it. */
	load_byte(area, PAGE_A);
	ASSERT_EQ(ring_register(&ring, page), 0);

	clear_refs(_metadata, area);
	written(area, PAGE_A);
	check(_metadata, area, "pinned, cleared");
	write_page(area, PAGE_A);
	check(_metadata, area, "pinned, cleared, written");
	close(ring.fd);
}

/* Whether PAGEMAP_SCAN has CATEGORY for something of the LEN bytes from PAGE on. */
static bool scan_finds(struct __test_metadata *_metadata, int pagemap, char *page,
		       size_t len, uint64_t category)
{
	struct page_region region;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = (unsigned long)page,
		.end = (unsigned long)page + len,
		.vec = (unsigned long)&region,
		.vec_len = 1,
		.category_mask = category,
		.return_mask = category,
	};
	long found = ioctl(pagemap, PAGEMAP_SCAN, &arg);

	ASSERT_GE(found, 0);
	return found;
}

/* A huge page as a whole. */

FIXTURE(huge)
{
	struct area area;
};

FIXTURE_SETUP(huge)
{
	set_up_area(_metadata, &self->area, ANON, PMD);
}

FIXTURE_TEARDOWN(huge)
{
	restore_settings();
}

/* What userfaultfd moves is new where it is, also if nobody has written it since. */
TEST_F_TIMEOUT(huge, uffd_move, TIMEOUT)
{
	struct area *area = &self->area;
	const size_t nr = pmd_pages(), len = nr * psize();
	char *from = map_apart(len, len, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct uffdio_move move = {
		.dst = (unsigned long)area->mem,
		.src = (unsigned long)from,
		.len = len,
	};
	int uffd;

	uffd = open_uffd(0);
	if (uffd < 0)
		SKIP(return, "no userfaultfd");
	ASSERT_EQ(madvise(from, len, MADV_HUGEPAGE), 0);
	memset(from, 1, len);
	if (!scan_finds(_metadata, area->pagemap, from, len, PAGE_IS_HUGE))
		SKIP(return, "no huge page to move");
	ASSERT_EQ(uffd_register(uffd, area->mem, len, true, false, false), 0);
	madvise_pages(_metadata, area, 0, nr, MADV_DONTNEED);
	clear_refs(_metadata, area);

	ASSERT_EQ(ioctl(uffd, UFFDIO_MOVE, &move), 0);
	for (size_t i = 0; i < nr; i++)
		area->pages[i] = (struct page){ .must = true, .value = 1 };
	check(_metadata, area, "moved");
	EXPECT_TRUE(area->pages[0].huge);
	clear_refs(_metadata, area);
	check(_metadata, area, "moved, cleared");
	write_page(area, PAGE_A);
	check(_metadata, area, "moved, cleared, written");
	check_content(_metadata, area);
	close(uffd);
}

/* Written, and clean for the hardware: only the migration entry has the bit. */
TEST_F_TIMEOUT(huge, migration_after_madv_free, TIMEOUT)
{
	struct area *area = &self->area;
	const size_t nr = nr_migrated(area);

	if (!have_two_nodes())
		SKIP(return, "one NUMA node only");
	write_page(area, area->first);
	madvise_pages(_metadata, area, area->first, area->nr - area->first, MADV_FREE);
	check(_metadata, area, "MADV_FREE");
	/* To where it is not. */
	EXPECT_GT(migrate(area, nr, 1), (long)nr / 2);
	EXPECT_GT(migrate(area, nr, 0), (long)nr / 2);
	check(_metadata, area, "MADV_FREE, migrated");
	check_content(_metadata, area);
	/* It was split, and no migration entry was that of a PMD. */
	if (!area->pages[area->first].huge && __test_passed(_metadata))
		SKIP(return, "no huge page was to be had on another node");
}

/* hugetlb, which is not tracked. */

FIXTURE(untracked)
{
	struct area area;
};

FIXTURE_SETUP(untracked)
{
	set_up_area(_metadata, &self->area, ANON, BASE);
}

FIXTURE_TEARDOWN(untracked)
{
	restore_settings();
}

/* A page of hugetlb of the size number I, or MAP_FAILED. */
static char *map_hugetlb(int i, int prot, int flags)
{
	if (hugetlb_sizes[i] > 1UL << 30)
		return MAP_FAILED;
	if (hugetlb_pages[i] < 1)
		hugetlb_number(hugetlb_sizes[i], "1");
	return mmap(NULL, hugetlb_sizes[i], prot, flags | MAP_ANONYMOUS | MAP_HUGETLB |
		    __builtin_ctzl(hugetlb_sizes[i]) << MAP_HUGE_SHIFT, -1, 0);
}

static void unmap_hugetlb(int i, char *page)
{
	if (page != MAP_FAILED)
		munmap(page, hugetlb_sizes[i]);
	if (hugetlb_pages[i] < 1)
		hugetlb_number(hugetlb_sizes[i], "0");
}

TEST_F_TIMEOUT(untracked, hugetlb, TIMEOUT)
{
	const unsigned long *sizes = hugetlb_sizes;
	int pagemap = self->area.pagemap;
	int nr_tried = 0;

	for (int i = 0; i < nr_hugetlb_sizes; i++) {
		char *page = map_hugetlb(i, PROT_READ | PROT_WRITE, MAP_PRIVATE);

		if (page != MAP_FAILED) {
			nr_tried++;
			memset(page, 1, sizes[i]);
			/* New, and a VMA that is new reads dirty. */
			EXPECT_TRUE(pagemap_get_entry(pagemap, page) & PM_SOFT_DIRTY);
			clear_refs(_metadata, &self->area);
			EXPECT_FALSE(pagemap_get_entry(pagemap, page) & PM_SOFT_DIRTY);
			write_page(&self->area, PAGE_A);
			page[0] = 2;
			page[sizes[i] - 1] = 3;
			/* Not seen by pagemap, and no harm to what is. */
			EXPECT_FALSE(pagemap_get_entry(pagemap, page) & PM_SOFT_DIRTY);
			/* PAGEMAP_SCAN has it as written for ever. */
			EXPECT_TRUE(scan_finds(_metadata, pagemap, page, sizes[i],
					       PAGE_IS_SOFT_DIRTY));
			check(_metadata, &self->area, "beside hugetlb");
			EXPECT_EQ(page[0], 2);
			EXPECT_EQ(page[sizes[i] / 2], 1);
			EXPECT_EQ(page[sizes[i] - 1], 3);
			ASSERT_EQ(mprotect(page, sizes[i], PROT_READ), 0);
			ASSERT_EQ(mprotect(page, sizes[i], PROT_READ | PROT_WRITE), 0);
			page[1] = 4;
			EXPECT_EQ(page[1], 4);
		}
		unmap_hugetlb(i, page);
	}
	if (!nr_tried)
		SKIP(return, "no huge page to be had");
}

TEST_F_TIMEOUT(untracked, hugetlb_made_writable, TIMEOUT)
{
	int nr_tried = 0;

	for (int i = 0; i < nr_hugetlb_sizes; i++) {
		char *page = map_hugetlb(i, PROT_READ, MAP_SHARED);

		if (page != MAP_FAILED) {
			unsigned long there = hugetlb_sizes[i] / 2;

			nr_tried++;
			/* There, and neither dirty nor written when that is allowed. */
			__atomic_load_n(page, __ATOMIC_RELAXED);
			clear_refs(_metadata, &self->area);
			ASSERT_EQ(mprotect(page, hugetlb_sizes[i], PROT_READ | PROT_WRITE), 0);
			page[there] = 2;
			/* Of a contiguous block GUP-fast wants to see that all agree. */
			EXPECT_EQ(syscall(__NR_futex, page, FUTEX_WAKE, 1, NULL, NULL, 0), 0);
			EXPECT_EQ(page[there], 2);
			check(_metadata, &self->area, "beside hugetlb made writable");
		}
		unmap_hugetlb(i, page);
	}
	if (!nr_tried)
		SKIP(return, "no huge page to be had");
}

/* The file itself. */

FIXTURE(interface)
{
	struct area area;
};

FIXTURE_SETUP(interface)
{
	set_up_area(_metadata, &self->area, ANON, BASE);
	write_pages(&self->area, chosen);
}

FIXTURE_TEARDOWN(interface)
{
	restore_settings();
}

TEST_F_TIMEOUT(interface, other_values_leave_the_bits, TIMEOUT)
{
	static const char * const values[] = { "1", "2", "3", "5", "5\n", " 1 " };

	for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
		EXPECT_EQ(pwrite(self->area.clear_refs, values[i], strlen(values[i]), 0),
			  (ssize_t)strlen(values[i]));
		check(_metadata, &self->area, values[i]);
	}
}

TEST_F_TIMEOUT(interface, bad_values_are_refused, TIMEOUT)
{
	static const char * const values[] = { "0", "6", "-4", "44", "four", "4 4", "" };

	for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
		EXPECT_EQ(pwrite(self->area.clear_refs, values[i], strlen(values[i]), 0), -1)
			TH_LOG("accepted: '%s'", values[i]);
		EXPECT_EQ(errno, EINVAL);
		check(_metadata, &self->area, values[i]);
	}
}

TEST_F_TIMEOUT(interface, a_newline_may_follow, TIMEOUT)
{
	ASSERT_EQ(pwrite(self->area.clear_refs, "4\n", 2, 0), 2);
	for (size_t i = 0; i < self->area.nr; i++)
		self->area.pages[i].must = false;
	check(_metadata, &self->area, "cleared");
}

TEST_F_TIMEOUT(interface, reading_is_refused, TIMEOUT)
{
	int fd = open("/proc/self/clear_refs", O_RDONLY);
	char c;

	/* Root may open it. */
	ASSERT_GE(fd, 0);
	EXPECT_EQ(read(fd, &c, 1), -1);
	EXPECT_EQ(errno, EINVAL);
	close(fd);
	check(_metadata, &self->area, "after the attempt");
}

TEST_F_TIMEOUT(interface, others_are_refused, TIMEOUT)
{
	char clear_refs[64], pagemap[64];
	int status;
	pid_t pid;

	snprintf(clear_refs, sizeof(clear_refs), "/proc/%d/clear_refs", getpid());
	snprintf(pagemap, sizeof(pagemap), "/proc/%d/pagemap", getpid());
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		if (setgid(65534) || setuid(65534))
			_exit(1);
		if (open(clear_refs, O_WRONLY) >= 0 || errno != EACCES)
			_exit(2);
		_exit(open(pagemap, O_RDONLY) >= 0 || errno != EACCES ? 3 : 0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	check(_metadata, &self->area, "after the attempt");
}

/* A VMA that is new reads dirty, touched or not. Another PROT keeps it from merging. */
TEST_F_TIMEOUT(interface, a_new_vma_reads_dirty, TIMEOUT)
{
	struct area *area = &self->area;
	const size_t first = PAGE_C, nr = 5;

	ASSERT_EQ(munmap(page_addr(area, first), nr * psize()), 0);
	ASSERT_EQ(mmap(page_addr(area, first), nr * psize(), PROT_READ | PROT_EXEC,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
		  page_addr(area, first));
	for (size_t i = first; i < first + nr; i++)
		area->pages[i].must = true;
	check(_metadata, area, "mapped anew");
}

int main(int argc, char **argv)
{
	if (geteuid()) {
		ksft_print_header();
		ksft_exit_skip("needs root, for the settings of the system\n");
	}
	if (access(".", W_OK)) {
		ksft_print_header();
		ksft_exit_skip("needs a working directory that it may write\n");
	}
	if (!softdirty_supported()) {
		ksft_print_header();
		ksft_exit_skip("soft-dirty is not supported\n");
	}
	save_settings();
	restore_when_stopped();
	prepare_thp();
	return test_harness_run(argc, argv);
}
