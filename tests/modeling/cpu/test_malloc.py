"""The allocator's settings, in a separate process."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from fbnetv3.modeling.cpu.malloc import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16_000_000).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(8)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_is_mapped_once():
    faults = {
        how: int(
            subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, check=True).stdout
        )
        for how in ("keep", "leave")
    }
    assert faults["keep"] < 100 < 1000 < faults["leave"]
