from __future__ import annotations

import pytest

from mixport.validate.conformance.kit import Kit, make_kit


@pytest.fixture(scope="session")
def kit() -> Kit:
    """Every graph, made once."""
    return make_kit()
