// SPDX-License-Identifier: GPL-2.0-only
/*
 * PM_SCAN_SOFT_CLEAN_MATCHING: PAGEMAP_SCAN reports soft-dirty pages and makes them
 * soft-clean in one step, so that a process can be copied while it runs.
 *
 * Each check reads bit 55 of pagemap for all pages of an area: what was reported is
 * clean, what was not is as it was. The last tests copy an area that other threads
 * never stop writing, and in the end nothing may be missing in the copy.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../../../../mm/gup_test.h"
#include "vm_util.h"
#include "hugepage_settings.h"

#define CLEAN	PM_SCAN_SOFT_CLEAN_MATCHING

/* Pages of an area of base pages, and of one of folios of 16 pages. */
#define PAGES	256
#define ORDER	4

/* More than the kernel's own buffer has room for, if every second one is dirty. */
#define MANY	2048

/* A PMD that maps more, as with pages of 64K, is left out. */
#define MAX_PMD	(32UL << 20)

#define NOBODY	65534

/*
 * How often an area is made anew and copied, how often at most where that has to go wrong,
 * and by how many calls while it is written.
 */
#define ROUNDS	5
#define CALLS	3
#define WRITERS	4
#define TIMEOUT	300

enum kind {
	ANON,
	SHARED,
	PRIVATE_FILE,
	SHARED_FILE,
};

struct area {
	int pagemap;
	char *mem;
	size_t nr;			/* pages */
	size_t unit;			/* pages that soft-dirty cannot tell apart */
	struct page_region *regions;
	uint64_t *entries;
	bool *dirty;			/* what is expected */
};

static bool have_thp;
static struct thp_settings thp_settings;	/* as found */

static bool supported(void)
{
	struct pm_scan_arg arg = { .size = sizeof(arg), .flags = CLEAN };
	int fd = open("/proc/self/pagemap", O_RDONLY);
	int ret = ioctl(fd, PAGEMAP_SCAN, &arg);

	close(fd);
	return !ret;
}

static unsigned int pmd_order(void)
{
	return __builtin_ctzl(read_pmd_pagesize() / psize());
}

/* The order of folios that are LARGE, or mapped by a PMD; or what is lacking for that. */
static const char *find_order(bool large, bool pmd, unsigned int *order)
{
	*order = 0;
	if (!supported())
		return "no PM_SCAN_SOFT_CLEAN_MATCHING";
	if (!large && !pmd)
		return NULL;
	if (!have_thp)
		return "no transparent huge pages";
	if (pmd && read_pmd_pagesize() > MAX_PMD)
		return "a huge page is too large";
	*order = pmd ? pmd_order() : ORDER;
	return thp_supported_orders() & (1UL << *order) ? NULL : "no folios of this order";
}

/* Folios of ORDER alone for memory that asks for them; none with an order of 0. */
static void allow_folios(unsigned int order)
{
	struct thp_settings new = thp_settings;

	if (!have_thp)
		return;
	new.thp_enabled = THP_NEVER;
	new.shmem_enabled = SHMEM_NEVER;
	new.khugepaged.defrag = 0;
	for (int i = 0; i < NR_ORDERS; i++) {
		new.hugepages[i].enabled = i && i == (int)order ? THP_MADVISE : THP_NEVER;
		new.shmem_hugepages[i].enabled = i && i == (int)order ? SHMEM_ADVISE :
								       SHMEM_NEVER;
	}
	thp_write_settings(&new);
}

/* How many folios of ORDER have been allocated for memory of KIND. */
static long allocated(enum kind kind, unsigned int order)
{
	char path[128], text[32];

	snprintf(path, sizeof(path),
		 "/sys/kernel/mm/transparent_hugepage/hugepages-%ukB/stats/%s",
		 (psize() >> 10) << order, kind == ANON ? "anon_fault_alloc" : "shmem_alloc");
	return order && read_file(path, text, sizeof(text)) > 0 ? atol(text) : 0;
}

/* Accesses that the compiler leaves where they are. */
static void load(const char *from)
{
	__atomic_load_n(from, __ATOMIC_RELAXED);
}

static void store(char *to, char value)
{
	__atomic_store_n(to, value, __ATOMIC_RELAXED);
}

static char *page_at(const struct area *area, size_t page)
{
	return area->mem + page * psize();
}

static void write_page(struct area *area, size_t page)
{
	size_t first = page / area->unit * area->unit;

	store(page_at(area, page), page);
	for (size_t i = first; i < first + area->unit; i++)
		area->dirty[i] = true;
}

static bool chosen(size_t page)
{
	return page % 3 == 1 || (page / 16) % 5 == 2;
}

static void write_chosen(struct area *area)
{
	for (size_t i = 0; i < area->nr; i++)
		if (chosen(i))
			write_page(area, i);
}

static struct pm_scan_arg request(const struct area *area, size_t first, size_t end,
				  uint64_t flags)
{
	return (struct pm_scan_arg) {
		.size = sizeof(struct pm_scan_arg),
		.flags = flags,
		.start = (uintptr_t)page_at(area, first),
		.end = (uintptr_t)page_at(area, end),
		.vec = (uintptr_t)area->regions,
		.vec_len = area->nr,
		.category_mask = PAGE_IS_SOFT_DIRTY,
		.return_mask = PAGE_IS_SOFT_DIRTY,
	};
}

/* Make the request, expect each dirty page up to walk_end to be in its answer, and no other. */
static long clean(struct __test_metadata *_metadata, struct area *area,
		  struct pm_scan_arg *arg)
{
	size_t page = (arg->start - (uintptr_t)area->mem) / psize(), end;
	long count = ioctl(area->pagemap, PAGEMAP_SCAN, arg);

	ASSERT_GE(count, 0);
	ASSERT_GE(arg->walk_end, arg->start);
	ASSERT_LE(arg->walk_end, arg->end);
	end = (arg->walk_end - (uintptr_t)area->mem) / psize();
	for (long i = 0; i < count; i++) {
		size_t from = (area->regions[i].start - (uintptr_t)area->mem) / psize();
		size_t to = (area->regions[i].end - (uintptr_t)area->mem) / psize();

		ASSERT_LE(page, from);
		ASSERT_LT(from, to);
		ASSERT_LE(to, end);
		for (; page < from; page++) {
			EXPECT_FALSE(area->dirty[page])
				TH_LOG("page %zu missed", page);
		}
		for (; page < to; page++) {
			EXPECT_TRUE(area->dirty[page])
				TH_LOG("page %zu in excess", page);
			area->dirty[page] = false;
		}
	}
	for (; arg->vec_len && page < end; page++) {
		EXPECT_FALSE(area->dirty[page])
			TH_LOG("page %zu missed", page);
	}
	return count;
}

/* Expect pagemap to say of all pages what is known of them. */
static void check(struct __test_metadata *_metadata, struct area *area)
{
	size_t size = area->nr * sizeof(*area->entries);

	ASSERT_EQ(pread(area->pagemap, area->entries, size,
			(uintptr_t)area->mem / psize() * sizeof(*area->entries)), size);
	for (size_t i = 0; i < area->nr; i++) {
		EXPECT_EQ(!!(area->entries[i] & PM_SOFT_DIRTY), area->dirty[i])
			TH_LOG("page %zu of %zu", i, area->nr);
	}
}

/* Map NR pages, on their own so that no other mapping grows by them. */
static char *map_pages(enum kind kind, size_t nr, size_t align)
{
	size_t size = nr * psize();
	int shared = kind == SHARED || kind == SHARED_FILE ? MAP_SHARED : MAP_PRIVATE;
	int fd = -1;
	char *mem;

	if (kind == PRIVATE_FILE || kind == SHARED_FILE) {
		char name[] = "pagemap-soft-clean-XXXXXX";
		char *zeroes = calloc(1, psize());

		fd = mkstemp(name);
		if (fd < 0)
			return NULL;
		unlink(name);
		for (size_t i = 0; i < nr; i++)
			if (write(fd, zeroes, psize()) != psize())
				return NULL;
		free(zeroes);
	}
	mem = mmap(NULL, size + 2 * align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED)
		return NULL;
	/* With room on both sides. */
	mem = (char *)(((uintptr_t)mem + align) & ~(align - 1));
	mem = mmap(mem, size, PROT_READ | PROT_WRITE,
		   shared | MAP_FIXED | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);
	if (fd >= 0)
		close(fd);
	return mem == MAP_FAILED ? NULL : mem;
}

/* Give AREA pages of KIND in folios of ORDER, all there and written. */
/* Whether all of it is in folios of ORDER, if that is not 0. */
static bool fill_area(struct __test_metadata *_metadata, struct area *area, enum kind kind,
		      unsigned int order)
{
	long folios = allocated(kind, order);

	area->mem = map_pages(kind, area->nr, (size_t)psize() << (order > ORDER ? order : ORDER));
	ASSERT_NE(area->mem, NULL);
	if (order)
		madvise(area->mem, area->nr * psize(), MADV_HUGEPAGE);
	for (size_t i = 0; i < area->nr; i++)
		write_page(area, i);
	return !order || allocated(kind, order) - folios == (long)(area->nr >> order);
}

/* Make an area of NR pages. */
static void make_area(struct __test_metadata *_metadata, struct area *area, enum kind kind,
		      size_t nr, unsigned int order)
{
	area->nr = nr;
	area->unit = order && order == pmd_order() ? 1UL << order : 1;
	area->regions = calloc(nr, sizeof(*area->regions));
	area->entries = calloc(nr, sizeof(*area->entries));
	area->dirty = calloc(nr, sizeof(*area->dirty));
	area->pagemap = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_GE(area->pagemap, 0);
	allow_folios(order);
	if (!fill_area(_metadata, area, kind, order))
		SKIP(return, "not all of it is in folios of this order");
}

/* The same, and make all of it soft-clean. */
static void make_clean_area(struct __test_metadata *_metadata, struct area *area,
			    enum kind kind, size_t nr, unsigned int order)
{
	struct pm_scan_arg arg;

	make_area(_metadata, area, kind, nr, order);
	arg = request(area, 0, nr, CLEAN);
	clean(_metadata, area, &arg);
	check(_metadata, area);
}

FIXTURE(clean)
{
	struct area area;
};

FIXTURE_VARIANT(clean)
{
	enum kind kind;
	bool large;		/* folios of ORDER */
	bool pmd;
};

FIXTURE_VARIANT_ADD(clean, anon) { .kind = ANON };
FIXTURE_VARIANT_ADD(clean, anon_large) { .kind = ANON, .large = true };
FIXTURE_VARIANT_ADD(clean, anon_pmd) { .kind = ANON, .pmd = true };
FIXTURE_VARIANT_ADD(clean, shared) { .kind = SHARED };
FIXTURE_VARIANT_ADD(clean, shared_large) { .kind = SHARED, .large = true };
FIXTURE_VARIANT_ADD(clean, shared_pmd) { .kind = SHARED, .pmd = true };
FIXTURE_VARIANT_ADD(clean, private_file) { .kind = PRIVATE_FILE };
FIXTURE_VARIANT_ADD(clean, shared_file) { .kind = SHARED_FILE };

FIXTURE_SETUP(clean)
{
	size_t nr = PAGES;
	unsigned int order;
	const char *lacking = find_order(variant->large, variant->pmd, &order);

	if (lacking)
		SKIP(return, "%s", lacking);
	if (variant->pmd)
		nr = 2UL << order;
	make_clean_area(_metadata, &self->area, variant->kind, nr, order);
}

FIXTURE_TEARDOWN(clean)
{
}

/* What was written is reported once, and is clean then. */
TEST_F(clean, reports_and_cleans)
{
	struct pm_scan_arg arg = request(&self->area, 0, self->area.nr, CLEAN);

	for (int round = 0; round < 3; round++) {
		write_chosen(&self->area);
		check(_metadata, &self->area);
		clean(_metadata, &self->area, &arg);
		EXPECT_EQ(arg.walk_end, arg.end);
		check(_metadata, &self->area);
		EXPECT_EQ(clean(_metadata, &self->area, &arg), 0);
		write_page(&self->area, self->area.nr - 1);
		EXPECT_EQ(clean(_metadata, &self->area, &arg), 1);
	}
}

/* Without the flag nothing changes. */
TEST_F(clean, plain_scan_leaves_all)
{
	struct pm_scan_arg arg = request(&self->area, 0, self->area.nr, 0);

	write_chosen(&self->area);
	EXPECT_GT(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), 0);
	check(_metadata, &self->area);
}

/* To begin with, nobody wants to know what was dirty. */
TEST_F(clean, without_a_vector)
{
	struct pm_scan_arg arg = request(&self->area, 0, self->area.nr, CLEAN);

	write_chosen(&self->area);
	arg.vec = 0;
	arg.vec_len = 0;
	EXPECT_EQ(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), 0);
	memset(self->area.dirty, 0, self->area.nr);
	check(_metadata, &self->area);
}

/* From the middle of a folio to the middle of another one. */
TEST_F(clean, part)
{
	size_t first = self->area.nr / 4 + 5, end = self->area.nr / 2 + 9;
	struct pm_scan_arg arg = request(&self->area, first, end, CLEAN);

	write_chosen(&self->area);
	clean(_metadata, &self->area, &arg);
	EXPECT_EQ(arg.walk_end, arg.end);
	/* To split the huge page of a file is to unmap it: it stays whole, and dirty. */
	if (variant->pmd && variant->kind != ANON)
		for (size_t i = first; i < end; i++)
			self->area.dirty[i] = true;
	check(_metadata, &self->area);
	if (variant->pmd && variant->kind == ANON)
		self->area.unit = 1;
	write_page(&self->area, first);
	write_page(&self->area, end - 1);
	check(_metadata, &self->area);
}

/* The report and the cleaning stop at the same page, and go on from there. */
TEST_F(clean, vector_is_full)
{
	struct pm_scan_arg arg = request(&self->area, 0, self->area.nr, CLEAN);
	size_t calls = 0;

	if (variant->pmd)
		SKIP(return, "all of it is one region");
	write_chosen(&self->area);
	arg.vec_len = 7;
	while (arg.start < arg.end) {
		long count = clean(_metadata, &self->area, &arg);

		check(_metadata, &self->area);
		if (arg.walk_end < arg.end)
			EXPECT_EQ(count, 7);
		arg.start = arg.walk_end;
		calls++;
	}
	EXPECT_GT(calls, 3);
	for (size_t i = 0; i < self->area.nr; i++) {
		EXPECT_FALSE(self->area.dirty[i])
			TH_LOG("page %zu is left", i);
	}
}

/* As many pages as asked for, whatever folio they are in. */
TEST_F(clean, max_pages)
{
	struct pm_scan_arg arg = request(&self->area, 0, self->area.nr, CLEAN);

	for (size_t i = 0; i < self->area.nr; i++)
		write_page(&self->area, i);
	arg.max_pages = self->area.nr / 4 + 21;
	EXPECT_EQ(clean(_metadata, &self->area, &arg), 1);
	EXPECT_EQ(arg.walk_end, arg.start + arg.max_pages * psize());
	if (variant->pmd && variant->kind != ANON)
		for (size_t i = 0; i < arg.max_pages; i++)
			self->area.dirty[i] = true;
	check(_metadata, &self->area);
}

/* Of the pages that match, those that are soft-dirty. */
TEST_F(clean, masks)
{
	bool file = variant->kind == SHARED || variant->kind == SHARED_FILE;
	struct pm_scan_arg arg = request(&self->area, 0, self->area.nr, CLEAN);

	write_chosen(&self->area);

	/* Nothing matches: all is as it was. */
	arg.category_mask = PAGE_IS_SOFT_DIRTY | PAGE_IS_SWAPPED;
	EXPECT_EQ(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), 0);
	check(_metadata, &self->area);
	if (variant->kind != PRIVATE_FILE) {
		arg.category_mask = PAGE_IS_SOFT_DIRTY | PAGE_IS_FILE;
		arg.category_inverted = file ? PAGE_IS_FILE : 0;
		EXPECT_EQ(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), 0);
		check(_metadata, &self->area);
	}

	/* The clean ones match. */
	arg.category_mask = PAGE_IS_SOFT_DIRTY;
	arg.category_inverted = PAGE_IS_SOFT_DIRTY;
	EXPECT_GE(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), variant->pmd ? 0 : 1);
	check(_metadata, &self->area);

	/* All of them match, one way or the other. */
	arg.category_mask = 0;
	arg.category_inverted = 0;
	arg.category_anyof_mask = PAGE_IS_SOFT_DIRTY | PAGE_IS_PRESENT;
	arg.return_mask = PAGE_IS_PRESENT;
	EXPECT_EQ(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), 1);
	memset(self->area.dirty, 0, self->area.nr);
	check(_metadata, &self->area);
}

/* Nor does a swap entry lose or keep what it should not. */
TEST_F(clean, swapped_out)
{
	struct pm_scan_arg arg = request(&self->area, 0, self->area.nr, CLEAN);
	size_t swapped = 0;

	if (variant->kind != ANON || variant->pmd)
		SKIP(return, "not for this kind of memory");
	write_chosen(&self->area);
	if (madvise(self->area.mem, self->area.nr * psize(), MADV_PAGEOUT))
		SKIP(return, "no MADV_PAGEOUT");
	for (size_t i = 0; i < self->area.nr; i++)
		swapped += pagemap_is_swapped(self->area.pagemap, page_at(&self->area, i));
	if (!swapped)
		SKIP(return, "no swap space");
	clean(_metadata, &self->area, &arg);
	check(_metadata, &self->area);
	for (size_t i = 0; i < self->area.nr; i++)
		load(page_at(&self->area, i));
	check(_metadata, &self->area);
	write_chosen(&self->area);
	check(_metadata, &self->area);
}

/* Who has pinned a page may write to it without a fault: it stays dirty. */
TEST_F(clean, pinned)
{
	struct pin_longterm_test pin = {
		.addr = (uintptr_t)self->area.mem,
		.size = self->area.nr * psize(),
		.flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE,
	};
	struct pm_scan_arg arg = request(&self->area, 0, self->area.nr, CLEAN);
	int gup = open("/sys/kernel/debug/gup_test", O_RDWR);

	if (gup < 0)
		SKIP(return, "no gup_test");
	for (size_t i = 0; i < self->area.nr; i++)
		write_page(&self->area, i);
	if (ioctl(gup, PIN_LONGTERM_TEST_START, &pin))
		SKIP(return, "cannot be pinned for long");
	for (int i = 0; i < 2; i++) {
		EXPECT_EQ(clean(_metadata, &self->area, &arg), 1);
		memset(self->area.dirty, 1, self->area.nr);
		check(_metadata, &self->area);
	}
	ASSERT_EQ(ioctl(gup, PIN_LONGTERM_TEST_STOP), 0);
	clean(_metadata, &self->area, &arg);
	check(_metadata, &self->area);
	close(gup);
}

/* There where soft-dirty is, and refused elsewhere. */
TEST(supported_with_soft_dirty)
{
	EXPECT_EQ(supported(), softdirty_supported());
	if (!supported())
		EXPECT_EQ(errno, EINVAL);
}

FIXTURE(interface)
{
	struct area area;
};

FIXTURE_SETUP(interface)
{
	if (!supported())
		SKIP(return, "no PM_SCAN_SOFT_CLEAN_MATCHING");
	make_clean_area(_metadata, &self->area, ANON, MANY, 0);
}

FIXTURE_TEARDOWN(interface)
{
}

/* The kernel empties its own buffer on the way, and ends where it should all the same. */
TEST_F(interface, many_regions)
{
	for (int flags = 0; flags <= CLEAN; flags += CLEAN) {
		struct pm_scan_arg arg = request(&self->area, 0, MANY, flags);

		for (size_t i = 0; i < MANY; i += 2)
			write_page(&self->area, i);
		EXPECT_EQ(clean(_metadata, &self->area, &arg), MANY / 2);
		EXPECT_EQ(arg.walk_end, arg.end);
	}
	check(_metadata, &self->area);
}

/* A mapping reads dirty until it is reported whole, and by nothing less. */
TEST_F(interface, new_mapping)
{
	struct area *area = &self->area;
	struct pm_scan_arg arg = request(area, 0, MANY, CLEAN);

	/* Anew, with half of it there. */
	ASSERT_EQ(mmap(area->mem, MANY * psize(), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), area->mem);
	for (size_t i = 0; i < MANY / 2; i++)
		write_page(area, i);
	memset(area->dirty, 1, MANY);
	check(_metadata, area);

	/* A part of it, and what is there of it: it goes on reading dirty. */
	for (size_t cut = 0; cut < 2; cut++) {
		struct pm_scan_arg part = request(area, cut, MANY - 1 + cut, CLEAN);

		EXPECT_EQ(ioctl(area->pagemap, PAGEMAP_SCAN, &part), 1);
		check(_metadata, area);
	}
	arg.category_mask |= PAGE_IS_PRESENT;
	EXPECT_EQ(ioctl(area->pagemap, PAGEMAP_SCAN, &arg), 1);
	check(_metadata, area);
	arg.category_mask = PAGE_IS_SOFT_DIRTY;
	arg.max_pages = MANY - 1;
	EXPECT_EQ(ioctl(area->pagemap, PAGEMAP_SCAN, &arg), 1);
	check(_metadata, area);

	/* All of it: now its pages tell. */
	arg.max_pages = 0;
	EXPECT_EQ(clean(_metadata, area, &arg), 1);
	check(_metadata, area);
	for (size_t i = 0; i < MANY; i += 3)
		write_page(area, i);
	check(_metadata, area);
	clean(_metadata, area, &arg);
	check(_metadata, area);
}

/* Map a huge page of hugetlb. Returns what is lacking for that, or NULL. */
static const char *map_hugetlb(char **mem, size_t *size)
{
	*size = default_huge_page_size();
	if (!*size)
		return "no hugetlb";
	*mem = mmap(NULL, *size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	return *mem == MAP_FAILED ? "no huge page of hugetlb is free" : NULL;
}

/* The pages of hugetlb are reported, and not made clean. */
TEST_F(interface, hugetlb)
{
	const char *lacking;
	size_t size;
	char *mem;

	lacking = map_hugetlb(&mem, &size);
	if (lacking)
		SKIP(return, "%s", lacking);
	for (int i = 0; i < 3; i++) {
		struct pm_scan_arg arg = request(&self->area, 0, 0, CLEAN);

		arg.start = (uintptr_t)mem;
		arg.end = (uintptr_t)mem + size;
		if (i)
			store(mem, i);
		EXPECT_EQ(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), 1);
		EXPECT_EQ(self->area.regions[0].start, arg.start);
		EXPECT_EQ(self->area.regions[0].end, arg.end);
		EXPECT_TRUE(pagemap_is_softdirty(self->area.pagemap, mem));
	}
	munmap(mem, size);
}

/* A huge page of hugetlb is write-protected whole, or walk_end says that it was left out. */
TEST_F(interface, part_of_a_hugetlb_page)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
	};
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	struct pm_scan_arg arg = request(&self->area, 0, 0, PM_SCAN_WP_MATCHING);
	const char *lacking;
	size_t size;
	char *mem;

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		SKIP(return, "no userfaultfd that writes go on with");
	lacking = map_hugetlb(&mem, &size);
	if (lacking)
		SKIP(return, "%s", lacking);
	store(mem, 1);
	ASSERT_EQ(uffd_register(uffd, mem, size, false, true, false), 0);
	arg.category_mask = PAGE_IS_WRITTEN;
	arg.return_mask = PAGE_IS_WRITTEN;
	arg.start = (uintptr_t)mem;
	arg.end = (uintptr_t)mem + size / 2;
	EXPECT_EQ(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), 0);
	EXPECT_EQ(arg.walk_end, arg.start);
	arg.end = (uintptr_t)mem + size;
	for (int i = 1; i >= 0; i--) {
		EXPECT_EQ(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), i);
		EXPECT_EQ(arg.walk_end, arg.end);
	}
	munmap(mem, size);
	close(uffd);
}

/* It stands alone. */
TEST_F(interface, flags)
{
	const uint64_t bad[] = {
		CLEAN | PM_SCAN_WP_MATCHING,
		CLEAN | PM_SCAN_CHECK_WPASYNC,
		CLEAN | PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		CLEAN | CLEAN << 1,
		CLEAN << 1,
		~0ULL,
	};

	write_chosen(&self->area);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct pm_scan_arg arg = request(&self->area, 0, MANY, bad[i]);

		EXPECT_EQ(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), -1);
		EXPECT_EQ(errno, EINVAL);
	}
	check(_metadata, &self->area);
}

/* Bad requests change nothing. */
TEST_F(interface, bad_requests)
{
	struct pm_scan_arg good = request(&self->area, 0, MANY, CLEAN), arg;

	write_chosen(&self->area);
	arg = good;
	arg.size--;
	EXPECT_EQ(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), -1);
	EXPECT_EQ(errno, EINVAL);
	arg = good;
	arg.start++;
	EXPECT_EQ(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), -1);
	EXPECT_EQ(errno, EINVAL);
	arg = good;
	arg.vec = 0;
	EXPECT_EQ(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), -1);
	EXPECT_EQ(errno, EINVAL);
	arg = good;
	arg.vec_len = 0;
	EXPECT_EQ(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), -1);
	EXPECT_EQ(errno, EINVAL);
	arg = good;
	arg.vec = ~0ULL << 8;
	EXPECT_EQ(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), -1);
	EXPECT_EQ(errno, EFAULT);
	arg = good;
	arg.category_mask = ~0ULL;
	EXPECT_EQ(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), -1);
	EXPECT_EQ(errno, EINVAL);
	arg = good;
	arg.end = arg.start;
	EXPECT_EQ(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), 0);
	check(_metadata, &self->area);
}

/* Whoever may write clear_refs, and nobody else, whoever has opened pagemap. */
TEST_F(interface, permission)
{
	struct pm_scan_arg arg = request(&self->area, 0, MANY, CLEAN);

	if (getuid())
		SKIP(return, "not root");
	write_chosen(&self->area);

	/* The file system's user alone, so that CAP_DAC_OVERRIDE goes with it. */
	setfsuid(NOBODY);
	EXPECT_EQ(open("/proc/self/clear_refs", O_WRONLY), -1);
	EXPECT_EQ(errno, EACCES);
	EXPECT_EQ(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), -1);
	EXPECT_EQ(errno, EACCES);
	check(_metadata, &self->area);

	/* Nor does the right to read. */
	arg.flags = 0;
	EXPECT_GT(ioctl(self->area.pagemap, PAGEMAP_SCAN, &arg), 0);
	setfsuid(0);
	arg.flags = CLEAN;
	EXPECT_GT(clean(_metadata, &self->area, &arg), 0);
	check(_metadata, &self->area);
}

/* Another process: its owner may, others may not. */
TEST_F(interface, other_process)
{
	struct pm_scan_arg arg = request(&self->area, 0, MANY, CLEAN);
	int ready[2], fd, clear_refs, status;
	char path[64];
	pid_t pid;

	if (getuid())
		SKIP(return, "not root");
	ASSERT_EQ(pipe(ready), 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		write_chosen(&self->area);
		if (write(ready[1], "", 1) != 1)
			_exit(1);
		pause();
		_exit(0);
	}
	ASSERT_EQ(read(ready[0], path, 1), 1);
	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY);
	ASSERT_GE(fd, 0);
	snprintf(path, sizeof(path), "/proc/%d/clear_refs", pid);
	setfsuid(NOBODY);
	clear_refs = open(path, O_WRONLY);
	EXPECT_EQ(clear_refs, -1);
	EXPECT_EQ(ioctl(fd, PAGEMAP_SCAN, &arg), -1);
	EXPECT_EQ(errno, EACCES);
	setfsuid(0);
	for (size_t i = 0; i < MANY; i++)
		self->area.dirty[i] = chosen(i);
	close(self->area.pagemap);
	self->area.pagemap = fd;
	check(_metadata, &self->area);
	clean(_metadata, &self->area, &arg);
	check(_metadata, &self->area);
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);

	/* Gone. */
	EXPECT_EQ(ioctl(fd, PAGEMAP_SCAN, &arg), -1);
	EXPECT_EQ(errno, ESRCH);
}

/* Threads that write all the time, and whoever copies what they write. */
static struct live {
	struct area area;
	enum kind kind;
	unsigned int order;
	char *copy;
	atomic_bool stop;
	pthread_t writers[WRITERS];
	pthread_t mover;
	bool moves;
	int nr_writers;
} live;

/*
 * Writes one page after the other, here and there, and takes its time: what is lost must
 * not be written again at once, which would hide it.
 */
static void *writer(void *arg)
{
	size_t me = (size_t)arg, step = me * live.area.nr / WRITERS;

	while (!atomic_load_explicit(&live.stop, memory_order_relaxed)) {
		size_t page = step++ * 389 % live.area.nr;
		uint64_t *word = (uint64_t *)page_at(&live.area, page) + me;

		__atomic_store_n(word, *word + 1, __ATOMIC_RELAXED);
		for (int i = 0; i < 500; i++)
			__asm__ __volatile__("" : : : "memory");
	}
	return NULL;
}

/* Moves the pages from one NUMA node to the other and back. */
static void *mover(void *arg)
{
	size_t nr = live.area.nr;
	void **pages = calloc(nr, sizeof(*pages));
	int *nodes = calloc(nr, sizeof(*nodes)), *status = calloc(nr, sizeof(*status));

	for (size_t i = 0; i < nr; i++)
		pages[i] = page_at(&live.area, i);
	for (int node = 1; !atomic_load(&live.stop); node = !node) {
		for (size_t i = 0; i < nr; i++)
			nodes[i] = node;
		syscall(SYS_move_pages, 0, nr, pages, nodes, status, 2 /* MPOL_MF_MOVE */);
	}
	free(pages);
	free(nodes);
	free(status);
	return NULL;
}

static void start_writers(struct __test_metadata *_metadata)
{
	live.stop = false;
	live.nr_writers = WRITERS;
	for (size_t i = 0; i < WRITERS; i++)
		ASSERT_EQ(pthread_create(&live.writers[i], NULL, writer, (void *)i), 0);
	if (live.moves)
		ASSERT_EQ(pthread_create(&live.mover, NULL, mover, NULL), 0);
}

static void stop_writers(void)
{
	live.stop = true;
	for (int i = 0; i < live.nr_writers; i++)
		pthread_join(live.writers[i], NULL);
	if (live.moves)
		pthread_join(live.mover, NULL);
}

/* How many pages of the copy are not what was written. */
static size_t lost(void)
{
	size_t count = 0;

	for (size_t i = 0; i < live.area.nr; i++)
		count += !!memcmp(page_at(&live.area, i), live.copy + i * psize(), psize());
	return count;
}

static void copy_page(size_t page)
{
	memcpy(live.copy + page * psize(), page_at(&live.area, page), psize());
}

/* Bring the copy up to date in one step. */
static void copy_by_scan(struct __test_metadata *_metadata)
{
	struct pm_scan_arg arg = request(&live.area, 0, live.area.nr, CLEAN);
	long count = ioctl(live.area.pagemap, PAGEMAP_SCAN, &arg);

	ASSERT_GE(count, 0);
	ASSERT_EQ(arg.walk_end, arg.end);
	for (long i = 0; i < count; i++)
		for (uint64_t at = live.area.regions[i].start; at < live.area.regions[i].end;
		     at += psize())
			copy_page((at - (uintptr_t)live.area.mem) / psize());
}

/* In the two steps there were before, with BETWEEN after the first. */
static void copy_by_clear_refs(struct __test_metadata *_metadata,
			       void (*between)(struct __test_metadata *_metadata))
{
	struct area *area = &live.area;
	size_t size = area->nr * sizeof(*area->entries);

	ASSERT_EQ(pread(area->pagemap, area->entries, size,
			(uintptr_t)area->mem / psize() * sizeof(*area->entries)), size);
	if (between)
		between(_metadata);
	clear_softdirty();
	for (size_t i = 0; i < area->nr; i++)
		if (area->entries[i] & PM_SOFT_DIRTY)
			copy_page(i);
}

FIXTURE(live)
{
};

FIXTURE_VARIANT(live)
{
	enum kind kind;
	bool large;
	bool pmd;
	bool moves;
};

FIXTURE_VARIANT_ADD(live, anon) { .kind = ANON };
FIXTURE_VARIANT_ADD(live, anon_moving) { .kind = ANON, .moves = true };
FIXTURE_VARIANT_ADD(live, anon_large) { .kind = ANON, .large = true };
FIXTURE_VARIANT_ADD(live, anon_large_moving) { .kind = ANON, .large = true, .moves = true };
FIXTURE_VARIANT_ADD(live, anon_pmd) { .kind = ANON, .pmd = true };
FIXTURE_VARIANT_ADD(live, anon_pmd_moving) { .kind = ANON, .pmd = true, .moves = true };
FIXTURE_VARIANT_ADD(live, shared) { .kind = SHARED };
FIXTURE_VARIANT_ADD(live, shared_moving) { .kind = SHARED, .moves = true };
/* Not shared_pmd_moving: a huge page that has to be split for that forgets its writes. */
FIXTURE_VARIANT_ADD(live, private_file) { .kind = PRIVATE_FILE };
FIXTURE_VARIANT_ADD(live, shared_file) { .kind = SHARED_FILE };

FIXTURE_SETUP(live)
{
	size_t nr = MANY;
	unsigned int order;
	const char *lacking = find_order(variant->large, variant->pmd, &order);

	if (lacking)
		SKIP(return, "%s", lacking);
	if (get_nprocs() < 2)
		SKIP(return, "needs two CPUs");
	if (variant->moves && access("/sys/devices/system/node/node1", F_OK))
		SKIP(return, "needs two NUMA nodes");
	if (variant->pmd)
		nr = 4UL << order;
	make_area(_metadata, &live.area, variant->kind, nr, order);
	live.kind = variant->kind;
	live.order = order;
	live.moves = variant->moves;
	live.copy = mmap(NULL, nr * psize(), PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(live.copy, MAP_FAILED);
}

FIXTURE_TEARDOWN(live)
{
}

/*
 * Copy a new mapping while it is written, a last time when it is not any more, and count
 * what the copy lacks.
 */
static size_t lost_by_scans(struct __test_metadata *_metadata)
{
	size_t missing;

	start_writers(_metadata);
	for (int i = 0; i < CALLS; i++)
		copy_by_scan(_metadata);
	stop_writers();
	copy_by_scan(_metadata);
	missing = lost();

	munmap(live.area.mem, live.area.nr * psize());
	memset(live.copy, 0, live.area.nr * psize());
	fill_area(_metadata, &live.area, live.kind, live.order);
	return missing;
}

/* The copy is right each time, though the writers were never stopped on the way. */
TEST_F_TIMEOUT(live, no_write_is_lost, TIMEOUT)
{
	for (int i = 0; i < ROUNDS; i++)
		EXPECT_EQ(lost_by_scans(_metadata), 0);
}

/* Until something has been written. */
static void write_for_a_moment(struct __test_metadata *_metadata)
{
	start_writers(_metadata);
	do
		usleep(10000);
	while (!lost());
	stop_writers();
}

/* And that can fail: in two steps, what is written between them is lost. */
TEST_F_TIMEOUT(live, two_steps_lose_writes, TIMEOUT)
{
	copy_by_clear_refs(_metadata, NULL);
	EXPECT_EQ(lost(), 0);
	copy_by_clear_refs(_metadata, write_for_a_moment);
	copy_by_clear_refs(_metadata, NULL);
	EXPECT_GT(lost(), 0);
}

static void restore(void)
{
	if (have_thp)
		thp_restore_settings();
}

static void stopped(int sig)
{
	restore();
	signal(sig, SIG_DFL);
	raise(sig);
}

int main(int argc, char **argv)
{
	have_thp = !access("/sys/kernel/mm/transparent_hugepage/enabled", F_OK);
	if (have_thp) {
		thp_save_settings();
		thp_read_settings(&thp_settings);
		atexit(restore);
		signal(SIGINT, stopped);
		signal(SIGTERM, stopped);
	}
	return test_harness_run(argc, argv);
}
