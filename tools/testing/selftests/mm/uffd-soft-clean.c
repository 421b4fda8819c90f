// SPDX-License-Identifier: GPL-2.0-only
/*
 * UFFDIO_COPY_MODE_DONTSOFTDIRTY: memory that a monitor fills through userfaultfd is
 * soft-clean, so that soft-dirty tells what the program has written itself.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "vm_util.h"
#include "hugepage_settings.h"

#define CLEAN	UFFDIO_COPY_MODE_DONTSOFTDIRTY

/* Seconds: emulators are slow, and a huge page of hugetlb can have 512 MB. */
#define TIMEOUT	300

#define PAGES	64

enum kind {
	ANON,
	SHARED,
	PRIVATE_MEMFD,
	HUGETLB,
};

/* Every second page is filled soft-clean, the others as always. */
static bool is_clean(size_t page)
{
	return page % 2;
}

struct memory {
	enum kind kind;
	size_t page_size;
	size_t nr;		/* pages */
	char *mem;
	char *source;		/* what it is filled with */
	int uffd;
	int pagemap;
};

FIXTURE(uffd)
{
	struct memory m;
};

FIXTURE_VARIANT(uffd)
{
	enum kind kind;
};

FIXTURE_VARIANT_ADD(uffd, anon) { .kind = ANON };
FIXTURE_VARIANT_ADD(uffd, shared) { .kind = SHARED };
FIXTURE_VARIANT_ADD(uffd, private_memfd) { .kind = PRIVATE_MEMFD };
FIXTURE_VARIANT_ADD(uffd, hugetlb) { .kind = HUGETLB };

static int open_uffd(uint64_t features, uint64_t *available)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api)) {
		close(fd);
		return -1;
	}
	if (available)
		*available = api.features;
	return fd;
}

static bool announced(void)
{
	uint64_t available = 0;
	int fd = open_uffd(0, &available);

	close(fd);
	return available & UFFD_FEATURE_COPY_DONTSOFTDIRTY;
}

FIXTURE_SETUP(uffd)
{
	struct uffdio_register range = {
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
	};
	int flags = variant->kind == SHARED ? MAP_SHARED : MAP_PRIVATE, fd = -1;
	size_t size;

	self->m.kind = variant->kind;
	self->m.uffd = -1;
	if (!announced())
		SKIP(return, "no UFFD_FEATURE_COPY_DONTSOFTDIRTY");
	self->m.uffd = open_uffd(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_HUGETLBFS_SHMEM, NULL);
	if (self->m.uffd < 0)
		SKIP(return, "no asynchronous write-protection");
	self->m.page_size = psize();
	self->m.nr = PAGES;
	if (variant->kind == HUGETLB) {
		self->m.page_size = default_huge_page_size();
		self->m.nr = 2;
		flags |= MAP_HUGETLB;
	}
	size = self->m.nr * self->m.page_size;
	if (variant->kind == PRIVATE_MEMFD) {
		fd = memfd_create("uffd-soft-clean", 0);
		ASSERT_GE(fd, 0);
		ASSERT_EQ(ftruncate(fd, size), 0);
	} else {
		flags |= MAP_ANONYMOUS;
	}
	self->m.mem = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (self->m.mem == MAP_FAILED && variant->kind == HUGETLB)
		SKIP(return, "no huge pages of hugetlb are free");
	ASSERT_NE(self->m.mem, MAP_FAILED);
	if (fd >= 0)
		close(fd);
	self->m.source = mmap(NULL, size, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(self->m.source, MAP_FAILED);
	for (size_t i = 0; i < self->m.nr; i++)
		memset(self->m.source + i * self->m.page_size, i + 1, self->m.page_size);
	range.range.start = (uintptr_t)self->m.mem;
	range.range.len = size;
	ASSERT_EQ(ioctl(self->m.uffd, UFFDIO_REGISTER, &range), 0);
	self->m.pagemap = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_GE(self->m.pagemap, 0);
	/* A new mapping reads soft-dirty as a whole, whatever is done to it. */
	clear_softdirty();
}

FIXTURE_TEARDOWN(uffd)
{
	if (self->m.uffd >= 0)
		close(self->m.uffd);
}

/* A store that the compiler leaves where it is. */
static void store(char *to)
{
	__atomic_store_n(to, 0, __ATOMIC_RELAXED);
}

static char *page_at(const struct memory *m, size_t page)
{
	return m->mem + page * m->page_size;
}

static int fill_page(struct memory *m, size_t page, uint64_t mode)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)page_at(m, page),
		.src = (uintptr_t)m->source + page * m->page_size,
		.len = m->page_size,
		.mode = mode,
	};

	return ioctl(m->uffd, UFFDIO_COPY, &copy);
}

/* Half of them soft-clean. */
static void fill(struct __test_metadata *_metadata, struct memory *m, uint64_t mode)
{
	for (size_t i = 0; i < m->nr; i++)
		ASSERT_EQ(fill_page(m, i, mode | (is_clean(i) ? CLEAN : 0)), 0);
}

static bool dirty(struct memory *m, size_t page)
{
	return pagemap_is_softdirty(m->pagemap, page_at(m, page));
}

/* Those filled soft-clean are, and the others are not; hugetlb does not tell. */
static void check(struct __test_metadata *_metadata, struct memory *m)
{
	for (size_t i = 0; m->kind != HUGETLB && i < m->nr; i++) {
		EXPECT_EQ(dirty(m, i), !is_clean(i))
			TH_LOG("page %zu", i);
	}
}

static void check_contents(struct __test_metadata *_metadata, struct memory *m)
{
	EXPECT_EQ(memcmp(m->mem, m->source, m->nr * m->page_size), 0);
}

static void write_all(struct __test_metadata *_metadata, struct memory *m)
{
	for (size_t i = 0; i < m->nr; i++) {
		store(page_at(m, i));
		if (m->kind == HUGETLB)
			continue;
		EXPECT_TRUE(dirty(m, i))
			TH_LOG("a write to page %zu is missed", i);
	}
}

/* The pages have their contents, are clean, and tell of the first write. */
TEST_F_TIMEOUT(uffd, arrives_clean, TIMEOUT)
{
	fill(_metadata, &self->m, 0);
	check(_metadata, &self->m);
	check_contents(_metadata, &self->m);
	check(_metadata, &self->m);
	write_all(_metadata, &self->m);
}

/* Write-protected, too: the first write is told of both ways. */
TEST_F_TIMEOUT(uffd, write_protected, TIMEOUT)
{
	fill(_metadata, &self->m, UFFDIO_COPY_MODE_WP);
	check(_metadata, &self->m);
	check_contents(_metadata, &self->m);
	for (size_t i = 0; i < self->m.nr; i++)
		EXPECT_TRUE(pagemap_get_entry(self->m.pagemap, page_at(&self->m, i)) & PM_UFFD_WP);
	write_all(_metadata, &self->m);
	for (size_t i = 0; i < self->m.nr; i++)
		EXPECT_FALSE(pagemap_get_entry(self->m.pagemap, page_at(&self->m, i)) & PM_UFFD_WP);
}

/* Nothing that happens to it afterwards takes it for written, or hides a write. */
TEST_F_TIMEOUT(uffd, protected_and_back, TIMEOUT)
{
	size_t size = self->m.nr * self->m.page_size;

	fill(_metadata, &self->m, 0);
	ASSERT_EQ(mprotect(self->m.mem, size, PROT_READ), 0);
	check(_metadata, &self->m);
	ASSERT_EQ(mprotect(self->m.mem, size, PROT_READ | PROT_WRITE), 0);
	check(_metadata, &self->m);
	check_contents(_metadata, &self->m);
	write_all(_metadata, &self->m);
}

TEST_F_TIMEOUT(uffd, swapped_out, TIMEOUT)
{
	size_t swapped = 0;

	if (variant->kind == HUGETLB || variant->kind == SHARED)
		SKIP(return, "not for this kind of memory");
	fill(_metadata, &self->m, 0);
	if (madvise(self->m.mem, self->m.nr * self->m.page_size, MADV_PAGEOUT))
		SKIP(return, "no MADV_PAGEOUT");
	for (size_t i = 0; i < self->m.nr; i++)
		swapped += pagemap_is_swapped(self->m.pagemap, page_at(&self->m, i));
	if (!swapped)
		SKIP(return, "no swap space");
	check(_metadata, &self->m);
	check_contents(_metadata, &self->m);
	check(_metadata, &self->m);
	write_all(_metadata, &self->m);
}

/* A child sees the same, and neither write gets lost. */
TEST_F_TIMEOUT(uffd, forked, TIMEOUT)
{
	int status;
	pid_t pid;

	if (variant->kind == HUGETLB)
		SKIP(return, "not for this kind of memory");
	fill(_metadata, &self->m, 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		self->m.pagemap = open("/proc/self/pagemap", O_RDONLY);
		for (size_t i = 0; i < self->m.nr; i++) {
			/* What is shared is not there yet, and a write would wait. */
			if (variant->kind != SHARED && dirty(&self->m, i) == is_clean(i))
				_exit(1);
			store(page_at(&self->m, i));
			if (!dirty(&self->m, i))
				_exit(2);
		}
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	check(_metadata, &self->m);
	write_all(_metadata, &self->m);
}

static void *write_first_page(void *mem)
{
	store(mem);
	return NULL;
}

/* Whoever waits for the page to write to it does so after it has arrived. */
TEST_F_TIMEOUT(uffd, fault_is_waiting, TIMEOUT)
{
	struct pollfd pollfd = { .fd = self->m.uffd, .events = POLLIN };
	struct uffdio_range range = {
		.start = (uintptr_t)self->m.mem,
		.len = self->m.page_size,
	};
	struct uffd_msg msg;
	pthread_t writer;

	ASSERT_EQ(pthread_create(&writer, NULL, write_first_page, self->m.mem), 0);
	ASSERT_EQ(poll(&pollfd, 1, 10000), 1);
	ASSERT_EQ(read(self->m.uffd, &msg, sizeof(msg)), sizeof(msg));
	ASSERT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
	ASSERT_EQ(fill_page(&self->m, 0, CLEAN | UFFDIO_COPY_MODE_DONTWAKE), 0);
	if (variant->kind != HUGETLB)
		EXPECT_FALSE(dirty(&self->m, 0));
	EXPECT_EQ(self->m.mem[1], 1);
	ASSERT_EQ(ioctl(self->m.uffd, UFFDIO_WAKE, &range), 0);
	ASSERT_EQ(pthread_join(writer, NULL), 0);
	EXPECT_EQ(self->m.mem[0], 0);
	if (variant->kind != HUGETLB)
		EXPECT_TRUE(dirty(&self->m, 0));
}

/* A page that is there already is not touched. */
TEST_F_TIMEOUT(uffd, already_there, TIMEOUT)
{
	ASSERT_EQ(fill_page(&self->m, 0, 0), 0);
	EXPECT_EQ(fill_page(&self->m, 0, CLEAN), -1);
	EXPECT_EQ(errno, EEXIST);
	if (variant->kind != HUGETLB)
		EXPECT_TRUE(dirty(&self->m, 0));
}

/* For COPY alone, and nothing beyond the modes that there are. */
TEST_F_TIMEOUT(uffd, bad_modes, TIMEOUT)
{
	struct uffdio_zeropage zero = {
		.range = { (uintptr_t)self->m.mem, self->m.page_size },
		.mode = CLEAN,
	};

	EXPECT_EQ(fill_page(&self->m, 0, CLEAN << 1), -1);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(fill_page(&self->m, 0, CLEAN | CLEAN << 1), -1);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(ioctl(self->m.uffd, UFFDIO_ZEROPAGE, &zero), -1);
	EXPECT_EQ(errno, EINVAL);
}

/* Announced where soft-dirty is there, and refused elsewhere. */
TEST(announced_with_soft_dirty)
{
	char *mem = mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1, 0);
	struct uffdio_register range = {
		.range = { (uintptr_t)mem, psize() },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	char *source = calloc(1, psize());
	struct uffdio_copy copy = {
		.dst = (uintptr_t)mem,
		.src = (uintptr_t)source,
		.len = psize(),
		.mode = CLEAN,
	};
	int fd = open_uffd(0, NULL);

	ASSERT_NE(mem, MAP_FAILED);
	if (fd < 0)
		SKIP(return, "no userfaultfd");
	ASSERT_EQ(ioctl(fd, UFFDIO_REGISTER, &range), 0);
	EXPECT_EQ(announced(), softdirty_supported());
	if (announced()) {
		EXPECT_EQ(ioctl(fd, UFFDIO_COPY, &copy), 0);
	} else {
		EXPECT_EQ(ioctl(fd, UFFDIO_COPY, &copy), -1);
		EXPECT_EQ(errno, EINVAL);
	}
	close(fd);
}

TEST_HARNESS_MAIN
