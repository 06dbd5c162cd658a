"""One module of an installed package, without what the package's own `__init__` would do.

`import laion_clap` fetches three tokenizers from a hub, and `import imagebind` needs a video library; the model
classes inside need neither. So a bare stand-in with the right path takes the package's place while the module is
imported, and is taken away again: a later ordinary import of the package is not affected.
"""

import functools
import importlib
import importlib.util
import sys
import warnings
from types import ModuleType


@functools.cache
def module_of(package: str, module: str, distribution: str) -> ModuleType:
    """`package.module`, the `__init__` of `package` and of the packages between left out.

    Raises ImportError that names the `distribution` to install where the package is missing or one of its needs is.
    """
    name = f"{package}.{module}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(package) if package not in sys.modules else sys.modules[package].__spec__
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the package {package} is not installed; `pip install --no-deps {distribution}` adds it")
    root = next(iter(spec.submodule_search_locations))
    parts = name.split(".")[:-1]
    stand_ins = [".".join(parts[: i + 1]) for i in range(len(parts)) if ".".join(parts[: i + 1]) not in sys.modules]
    for stand_in in stand_ins:
        bare = ModuleType(stand_in)
        bare.__path__ = ["/".join([root, *stand_in.split(".")[1:]])]
        sys.modules[stand_in] = bare
    try:
        with warnings.catch_warnings():
            # timm.models.layers and friends: old names that still work and that only the package's authors can change
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name} cannot be imported ({error}); the environment of `make setup` has what {distribution} needs"
        ) from error
    finally:
        for stand_in in stand_ins:
            sys.modules.pop(stand_in, None)
