"""Where a result may be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixport.records.errors import BadInputError
from mixport.storage.out_folder import is_free


def test_nothing_and_an_empty_folder_are_free(tmp_path: Path) -> None:
    assert is_free(tmp_path / "new", hint="h") and is_free(tmp_path, hint="h")
    (tmp_path / "one").write_text("")
    assert not is_free(tmp_path, hint="h")


def test_files_links_and_places_without_a_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    for out, why in (
        (tmp_path / "file", "is not a folder"),
        (tmp_path / "link", "is not a folder"),
        (Path("/"), "no name"),
    ):
        with pytest.raises(BadInputError, match=why) as caught:
            is_free(out, hint="h")
        assert caught.value.hint == "h"
