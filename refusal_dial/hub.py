"""Whether the Hugging Face hub can be reached, asked once and quickly.

The hub client retries for half a minute before it gives up. This asks for a connection first, so
that a machine without a network gets its answer at once. It knows no models and no data sets.
"""

from __future__ import annotations

import os
import socket
from functools import cache
from urllib.parse import urlparse

TIMEOUT_S = 3.0


@cache
def hub_reachable() -> bool:
    """True if the hub takes a connection. Behind a proxy the hub client must find out itself."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return False
    if any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    hub = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        port = hub.port or (80 if hub.scheme == "http" else 443)
        socket.create_connection((hub.hostname or "", port), timeout=TIMEOUT_S).close()
    except (OSError, ValueError):  # no connection, or no address to connect to
        return False
    return True
