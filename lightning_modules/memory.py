"""Memory that a process keeps for what comes next."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_memory() -> None:
    """Let what was freed go to whoever asks next, not back to the system, until the process ends.

    glibc gives large blocks back at once, and the system clears new ones page by page. The activations of a network are
    such blocks: on a CPU a third of a ResNet50's forward pass went there. The process stays as large as it once was.
    Where the C library is another one, nothing happens.

    Source: mallopt(3).
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)  # all of it from the heap,
        library.mallopt(M_TRIM_THRESHOLD, -1)  # which never shrinks
