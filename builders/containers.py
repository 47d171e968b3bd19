"""What NVIDIA's Triton images hold: TensorRT, CUDA and ONNX Runtime by image tag, and what is not established about it.

Put together from the server's release branches (TRITON_VERSION, build.py), NVIDIA's release notes and published pins; the whole
support matrix could not be read. "The same tag" is no proof: the tritonserver image of a month may be built on the TensorRT of
the month before. So build a plan inside the image that serves it, and let `python -m builders.check` compare.

26.05 is the last image with TensorRT 10; a plan of 10 without version compatibility ends there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from contract.command import UsageError

IMAGE = "nvcr.io/nvidia/tritonserver:{tag}-py3"


@dataclass(frozen=True)
class Container:
    """One image of tritonserver."""

    tag: str
    triton: str | None
    tensorrt: str | None
    """As far as it is known, `10.13.3.9`; None when it is not established."""
    cuda: str
    onnxruntime: str | None
    evidence: str
    """Where the TensorRT version comes from."""
    established: bool = True
    """Whether the TensorRT version was stated for this very image or its base."""

    @property
    def image(self) -> str:
        """What docker pulls."""
        return IMAGE.format(tag=self.tag)


CONTAINERS: tuple[Container, ...] = (
    Container("24.10", "2.51.0", "10.5", "12.6.2", "1.19.2", "commonly stated, not looked up", established=False),
    Container("25.01", "2.54.0", "10.8.0.43", "12.8", "1.20.1", "PyTorch image of the month, in Triton's compatibility.md"),
    Container("25.03", "2.56.0", "10.9.0.34", "12.8.1", "1.21.0", "PyTorch image of the month, in Triton's compatibility.md"),
    Container("25.06", "2.59.0", "10.11.0.33", "12.9", "1.22.0", "PyTorch image of the month, in Triton's compatibility.md"),
    Container("25.10", "2.62.0", "10.13.3.9", "13.0.2", "1.23.1", "PyTorch image of the month, in Triton's compatibility.md"),
    Container("25.11", "2.63.0", "10.14.1", "13.0.2", "1.23.2", "published pin of tensorrt:25.11"),
    Container("25.12", "2.64.0", "10.14.1.48", "13.1.0", "1.23.2", "PyTorch image of the month"),
    Container("26.01", "2.65.0", None, "13.1.1", "1.23.2", "10.14 or 10.15", established=False),
    Container("26.02", "2.66.0", None, "13.1.1", "1.24.1", "10.14 or 10.15", established=False),
    Container("26.03", "2.67.0", "10.16.0.72", "13.2.0", "1.24.2", "published pin of tensorrt:26.03"),
    Container("26.04", "2.68.0", "10.16.1.11", "13.2.1", "1.24.4", "stated by others for tensorrt:26.04", established=False),
    Container("26.05", "2.69.0", "10.16.1.11", "13.2.1", "1.24.4", "stated for tritonserver:26.05"),
    Container("26.06", "2.70.0", "11.0.0.114", "13.3.0", "1.24.4", "tensorrt:26.06, not tritonserver's", established=False),
    Container("26.07", "2.71.0", "11.1.0.106", "13.3.1", "1.27.0", "stated by others for tritonserver:26.07"),
    Container("26.08", "2.72.0", "11.2.1", "13.3", "1.28.0", "stated by others for tritonserver:26.08"),
    Container("26.09", "2.73.0", None, "13.4.1", None, "presumably 11.3.0", established=False),
    Container("26.10", None, None, "13.4.3", None, "presumably 11.4.0", established=False),
)


def find_container(tag: str) -> Container:
    """The image with this tag. Raises UsageError for a tag that is not in the table."""
    short = tag.removesuffix("-py3")
    for container in CONTAINERS:
        if container.tag == short:
            return container
    known = ", ".join(container.tag for container in CONTAINERS)
    raise UsageError(f"--server is {tag!r}; known tags of tritonserver are {known}")


def containers_with(tensorrt: str) -> list[Container]:
    """The images whose TensorRT is known to be of this release, major.minor.patch as far as both are known."""
    return [found for found in CONTAINERS if found.tensorrt and same_release(found.tensorrt, tensorrt)]


def version_tuple(version: str) -> tuple[int, ...]:
    """The leading numbers of a version. Raises UsageError when there are none."""
    found = re.match(r"\d+(\.\d+)*", version)
    if not found:
        raise UsageError(f"{version!r} is no version number")
    return tuple(int(part) for part in found[0].split("."))


def same_release(first: str, second: str) -> bool:
    """Whether two versions agree in the first three numbers, as far as both state them.

    Three, because a plan is tied to the exact release and the fourth number is often left out in what is published.
    """
    return all(ours == theirs for ours, theirs in zip(version_tuple(first)[:3], version_tuple(second)[:3], strict=False))
