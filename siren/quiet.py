"""What must be set before any third-party library is imported: no calls home, and a working CPU environment.

This is the one module of the project that acts when it is imported (through `siren/__init__.py`), because the
libraries read these variables at their own import. A value that the user has set always wins. Model hubs are off
by default: at paper scale, where weights are loaded by name, run with `HF_HUB_OFFLINE=0`.
"""

import os

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "ITERATIVE_DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "GX_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "TOKENIZERS_PARALLELISM": "false",
}


def apply() -> None:
    """Set every variable of `SETTINGS` that the environment does not already hold, and arm the CPU shim."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from siren import compat

    compat.install()
