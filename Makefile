# SPDX-License-Identifier: GPL-2.0-only
# The front door. What each target does is in lab/.

BASE ?= 6.12
LAB = python3 -m lab.

# First, so that a bare make explains itself.
help: ## show this text
	@sed -n 's/^\([a-z-]*\):.* ## /  make \1\t/p' Makefile | expand -t 20
	@echo "BASE=6.12 (the default) or BASE=7.3 where it matters; lab/vm --help for more"

run: ## boot a kernel with the series and watch it track writes; PLAIN=1: without the series
	@$(LAB)demo --base $(BASE) $(if $(PLAIN),--plain)

run-live: ## copy the memory of a process that goes on writing, stopped for a moment only
	@$(LAB)live --base $(BASE) $(if $(PLAIN),--plain)

test: ## everything that CI runs: checks, both bases, the lab itself
	@$(LAB)test

test-all: ## the whole matrix; hours, and goes on where it was stopped
	@$(LAB)test --all

mutants: ## break the series on purpose and see that the tests notice; an hour
	@$(LAB)mutants

check: ## what can be checked without booting: the lab, the series, the kernel's static checks
	@$(LAB)check

tree: ## make build/tree/$BASE: the base, then one commit a patch
	@$(LAB)trees tree $(BASE)

refresh: ## write build/tree/$BASE back to patches/$BASE and the exported files
	@$(LAB)trees refresh $(BASE)

apply: ## apply the right series to a kernel tree of yours: KDIR=~/linux
	@$(LAB)trees apply "$(or $(KDIR),$(error say which tree: make apply KDIR=~/linux))"

series: ## the series as mails for git send-email, BASE=7.3 TO=directory; needs a git user
	@$(LAB)mails --base $(BASE) "$(or $(TO),$(error say where to: make series BASE=7.3 TO=dir))"

commits: ## build and boot each commit of each series, with gcc and clang; hours, goes on
	@$(LAB)commits

groups: ## build and boot each series with one of its further groups left out
	@$(LAB)groups

off: ## compare the kernel with CONFIG_MEM_SOFT_DIRTY=n with the plain base's, and its size
	@$(LAB)off

deb: ## Debian packages for arm64 with Debian's configuration and soft-dirty; CONFIG=cloud
	@$(LAB)deb --base $(BASE) $(if $(CONFIG),--config $(CONFIG))

deb-boot: ## the same, and boot one in a Debian root file system and run the selftests there
	@$(LAB)deb --base $(BASE) $(if $(CONFIG),--config $(CONFIG)) --boot

regress: ## run the mm and arm64 selftests without and with the series, in a Debian guest; hours
	@$(LAB)regress

criu: ## incremental checkpoints of a server and of containers by CRIU, in a Debian guest
	@$(LAB)criu --base $(BASE)

criu-zdtm: ## CRIU's own tests with pre-dumps, in Debian guests; hours, goes on
	@$(LAB)zdtm --base $(BASE)

criu-control: ## break soft-dirty on purpose and see that CRIU's tests notice
	@$(LAB)control

bench: BASE = 7.3
bench: ## what tracking costs, in instructions, beside every alternative: 7.3 unless told
	@$(LAB)bench --base $(BASE)

bench-compare: ## what changed between two results of make bench: A=file B=file
	@$(LAB)compare "$(or $(A),$(error say what to compare: make bench-compare A=file B=file))" \
		"$(or $(B),$(error say what to compare: make bench-compare A=file B=file))"

applies: ## try the series on each kernel of its line that Debian's archive has
	@$(LAB)ranges

kernel: ## build the kernel that make run boots
	@$(LAB)kernel --base $(BASE) $(if $(PLAIN),--plain)

shell: ## an interactive shell in a guest
	@lab/vm --base $(BASE) $(if $(PLAIN),--plain) --shell

clean: ## remove everything that was made or downloaded
	rm -rf build

.PHONY: help run run-live test test-all mutants check tree refresh apply series applies commits groups off regress deb deb-boot \
	criu criu-zdtm criu-control bench bench-compare kernel shell clean
