"""A folder of images for each patient, and fewer permutations than users get: each trains five heads."""

import pytest

from hemafast.patients import learned

FEW_PERMUTATIONS = 19
"""The smallest p is 0.05, which is still told from chance."""


@pytest.fixture(autouse=True, scope="session")
def _few_permutations():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned, "PERMUTATIONS", FEW_PERMUTATIONS)
        yield


@pytest.fixture(scope="session")
def slides(tmp_path_factory, make_archive):
    """Folders of the patients 007, with 12 cells, and 8, with 6 and one that cannot be read."""
    folder = tmp_path_factory.mktemp("slides")
    make_archive(folder / "007", {"basophil": 7, "monocyte": 5}, seed=1)
    make_archive(folder / "8", {"basophil": 2, "monocyte": 4}, seed=2)
    (folder / "8" / "monocyte" / "zz.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    return folder
