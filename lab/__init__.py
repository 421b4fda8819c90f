# SPDX-License-Identifier: GPL-2.0-only
"""The lab: fetches, patches, builds, boots and tests arm64 soft-dirty kernels."""
