"""One thread at a time where libraries keep global state."""

from __future__ import annotations

import threading
from typing import Final

# Held while a network is built, filled, read from a saved program or traced. torch.export, torch.export.load, the seeding of
# torch's one generator and lazily imported libraries all keep state of the whole process: two models that load at once break
# each other otherwise ("_CURRENT_DESERIALIZER is already set", KeyError 'custom'). Networks run without it.
BUILD_LOCK: Final = threading.RLock()
