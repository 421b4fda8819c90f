/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the machine executed between two points: instructions, page faults, and, told to
 * the plugin of the emulator (tlb-plugin.c), TLB invalidations.
 *
 * Under QEMU's -icount shift=0 the machine's clock goes on by a nanosecond with each
 * instruction, so it is read for the count of instructions; nothing of the host's time
 * is in it. Its resolution on arm64 is that of the generic timer, 16 instructions.
 */
#ifndef BENCH_METER_H
#define BENCH_METER_H

#include <stddef.h>
#include <stdint.h>

/* Instructions of no effect, by which the plugin knows where a window begins and ends. */
#if defined(__aarch64__)
#define MARK_BEGIN "hint #100"
#define MARK_END "hint #101"
#elif defined(__x86_64__)
#define MARK_BEGIN "nopl 0x5bd10064(%%rax)"
#define MARK_END "nopl 0x5bd10065(%%rax)"
#endif

struct meter {
	uint64_t instructions;
	long faults;
};

/* Begin a window. */
struct meter meter_start(void);

/*
 * End the window that METER began; it becomes a row of the table: what was done to how many
 * PAGES, in which CASE (its columns separated by tabs).
 */
void meter_stop(const struct meter *meter, const char *what, size_t pages, const char *cols);

/* Count a fault that the kernel does not: one that it answered with a signal. */
void meter_fault(void);

/* Print the table; nothing is printed before, since that would be measured, too. */
void meter_print(void);

/* Say what failed, with errno, and exit. */
void die(const char *what) __attribute__((noreturn));

#endif
