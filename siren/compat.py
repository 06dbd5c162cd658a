"""Lets torchaudio and torchvision wheels that were linked against CUDA import beside a CPU-only torch.

Package indexes carry one Linux build of each, and it wants `libcudart` and `libtorch_cuda`. Without them torchaudio
refuses to import, and torchvision dies half-way, which in turn breaks every library that looks for it (transformers,
timm, `dac`, laion-clap). What is missing is little: torchaudio asks flags of a private package `_extension`, and
torchvision describes the shapes of two operators, `nms` and `qnms`, that its shared library would have declared. So a
finder on `sys.meta_path` waits for the two names, and only when torch is a CPU build and the shared library does not
load, it stands in for the first and declares the second. Elsewhere it does nothing, and torch is not imported early.

Not given back: the compiled operators themselves (`torchvision.ops.nms`, `roi_align`, forced alignment): calling one
of them still fails, with torch's or torchvision's own message.
"""

import ctypes
import functools
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_declared: list[Any] = []  # torch forgets an operator when the library object that declared it is collected


def install() -> None:
    """Put the finder first on `sys.meta_path`, once. Imports nothing."""
    if not any(isinstance(finder, CpuFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, CpuFinder())


class CpuFinder(MetaPathFinder):
    """Answers for `torchaudio._extension`, and prepares torch before `torchvision` is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchaudio._extension" and path and unloadable(str(Path(path[0], "lib")), "_torchaudio*"):
            return ModuleSpec(fullname, ExtensionStandIn(), is_package=True)
        if fullname == "torchvision" and not _declared:
            spec = PathFinder.find_spec(fullname, path)
            if spec is not None and spec.origin and unloadable(str(Path(spec.origin).parent), "_C*"):
                _declare_torchvision_schemas()
        return None  # the ordinary finders go on


class ExtensionStandIn(Loader):
    """What torchaudio says of itself where it was built without its extension."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(
            _IS_TORCHAUDIO_EXT_AVAILABLE=False,
            _IS_ALIGN_AVAILABLE=False,
            _load_lib=lambda lib: False,
            _check_cuda_version=lambda: None,
            fail_if_no_align=_without_extension,
        )


@functools.cache
def unloadable(folder: str, stem: str) -> bool:
    """Whether torch is a CPU build and the shared library `stem` in `folder` exists but does not load beside it."""
    import torch

    libraries = sorted(p for p in Path(folder).glob(stem) if p.suffix in (".so", ".pyd", ".dylib"))
    if torch.version.cuda is not None or not libraries:
        return False
    try:
        ctypes.CDLL(str(libraries[0]))
    except OSError:
        return True
    return False


def _declare_torchvision_schemas() -> None:
    from torch import library

    fragment = library.Library("torchvision", "FRAGMENT")
    for schema in TORCHVISION_SCHEMAS:
        fragment.define(schema)
    _declared.append(fragment)


def _without_extension(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{function.__name__} needs torchaudio's compiled extension, which this torch cannot load")

    return refuse
