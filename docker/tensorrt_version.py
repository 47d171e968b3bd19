"""Is the image's TensorRT the one that the plan is built with? Ends the build of the image when it is not.

    python3 docker/tensorrt_version.py --expect 11.2.1.2
    python3 docker/tensorrt_version.py --expect 11.2.1.2 --library /usr/lib/x86_64-linux-gnu/libnvinfer.so.11

A plan written by another version is refused by Triton: `Version tag does not match`. Standard library only.
"""

from __future__ import annotations

import argparse
import ctypes
import sys


def version_of(library: str) -> tuple[int, int, int]:
    """(major, minor, patch) that the library gives for itself. Raises OSError when it cannot be loaded."""
    number = int(ctypes.CDLL(library).getInferLibVersion())
    return number // 10_000, number // 100 % 100, number % 100


def main() -> int:
    """Compare; the exit code."""
    parser = argparse.ArgumentParser(prog="docker/tensorrt_version.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--expect", required=True, help="version of the wheel, as 11.2.1.2")
    parser.add_argument("--library", help="path of libnvinfer; that of the loader when left out")
    options = parser.parse_args()
    expected = tuple(map(int, options.expect.split(".")[:3]))
    try:
        found = version_of(options.library or f"libnvinfer.so.{expected[0]}")
    except (OSError, AttributeError) as error:
        print(f"no TensorRT {expected[0]} in this image ({error}): choose the tag that holds {options.expect}", file=sys.stderr)
        return 1
    if found != expected:
        print(f"the image holds TensorRT {'.'.join(map(str, found))}, and not {options.expect}", file=sys.stderr)
        return 1
    print(f"TensorRT {'.'.join(map(str, found))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
