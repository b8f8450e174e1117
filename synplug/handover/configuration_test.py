"""Commands that test a configuration, and listen for a moment while they do: ``nginx -t``.

Source: ``ngx_get_options`` in ``src/core/nginx.c``; for a test, too, ``ngx_init_cycle`` binds and
listens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

_NGINX = frozenset({"nginx", "openresty", "angie", "freenginx"})
_TEST_FLAGS = "tT"
_FLAGS_WITH_A_VALUE = "cegps"


def is_configuration_test(argv: Sequence[str]) -> bool:
    """Whether a process of this command line ends when it has tested its configuration."""
    if not argv or os.path.basename(argv[0]) not in _NGINX:
        return False
    words = iter(argv[1:])
    for word in words:
        if not word.startswith("-"):
            continue
        for index, flag in enumerate(word[1:], 2):
            if flag in _TEST_FLAGS:
                return True
            if flag in _FLAGS_WITH_A_VALUE:  # the rest of the word, or the next one
                if index == len(word):
                    next(words, None)
                break
    return False
