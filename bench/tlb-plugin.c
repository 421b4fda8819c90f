// SPDX-License-Identifier: GPL-2.0-only
/*
 * A plugin for QEMU that counts the TLB invalidations which the guest executes between the
 * marks of meter.h, and writes a line with the count for each such window.
 *
 * Argument: out=FILE. For one virtual CPU.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "qemu-plugin.h"

#define MARK 0x5bd10064		/* of x86-64: the displacement; the end's is one more */

enum effect { NONE, INVALIDATES, BEGINS, ENDS };

QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

static enum effect (*decode)(const uint8_t *code, size_t size);
static uint64_t invalidations, begin;
static FILE *out;

static enum effect decode_arm64(const uint8_t *code, size_t size)
{
	uint32_t insn = code[0] | code[1] << 8 | code[2] << 16 | (uint32_t)code[3] << 24;

	(void)size;
	if (insn == (0xd503201f | 100 << 5))
		return BEGINS;
	if (insn == (0xd503201f | 101 << 5))
		return ENDS;
	/* SYS with CRn 8, or 9 where FEAT_XS is: TLBI. */
	if ((insn & 0xfff80000) == 0xd5080000 && ((insn >> 12 & 0xf) | 1) == 9)
		return INVALIDATES;
	return NONE;
}

static enum effect decode_x86(const uint8_t *code, size_t size)
{
	const uint8_t *end = code + size;
	uint32_t displacement;

	/* Prefixes. */
	while (code < end && (memchr("\x66\xf2\xf3\xf0\x2e\x36\x3e\x26\x64\x65", *code, 10) ||
			      (*code & 0xf0) == 0x40))
		code++;
	if (end - code < 3 || *code++ != 0x0f)
		return NONE;
	switch (*code++) {
	case 0x01:		/* invlpg */
		return (*code >> 3 & 7) == 7 && *code >> 6 != 3 ? INVALIDATES : NONE;
	case 0x22:		/* a write to CR3 */
		return (*code >> 3 & 7) == 3 ? INVALIDATES : NONE;
	case 0x38:		/* invpcid */
		return *code == 0x82 ? INVALIDATES : NONE;
	case 0x1f:		/* nop */
		if (end - code != 5)
			return NONE;
		memcpy(&displacement, code + 1, sizeof(displacement));
		return displacement == MARK ? BEGINS : displacement == MARK + 1 ? ENDS : NONE;
	default:
		return NONE;
	}
}

static void begins(unsigned int cpu, void *unused)
{
	(void)cpu;
	(void)unused;
	begin = invalidations;
}

static void ends(unsigned int cpu, void *unused)
{
	(void)cpu;
	(void)unused;
	fprintf(out, "%" PRIu64 "\n", invalidations - begin);
	fflush(out);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
	(void)id;
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(block, i);
		enum effect effect = decode(qemu_plugin_insn_data(insn),
					    qemu_plugin_insn_size(insn));

		if (effect == INVALIDATES)
			qemu_plugin_register_vcpu_insn_exec_inline(
				insn, QEMU_PLUGIN_INLINE_ADD_U64, &invalidations, 1);
		else if (effect != NONE)
			qemu_plugin_register_vcpu_insn_exec_cb(
				insn, effect == BEGINS ? begins : ends,
				QEMU_PLUGIN_CB_NO_REGS, NULL);
	}
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info,
					   int argc, char **argv)
{
	decode = strcmp(info->target_name, "aarch64") ? decode_x86 : decode_arm64;
	if (argc != 1 || strncmp(argv[0], "out=", 4))
		return -1;
	out = fopen(argv[0] + 4, "w");
	if (!out)
		return -1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
