from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from mixport.calibration.filters import FilterRecord, filter_images, keep, pool_size
from mixport.calibration.recipe import FilterSettings
from mixport.records.errors import BadOptionError, InvariantError

OFF = FilterSettings()
BOTH = FilterSettings(keep_energy=0.5, keep_statistics=0.5)


class Counted:
    """Scores from the pixels, and how many images were scored."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[int]]] = []
        self.pools: list[NDArray[np.uint8]] = []

    def energy(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        self.seen.append(("energy", images[:, 0, 0, 2].tolist()))
        return images[:, 0, 0, 0].astype(np.float64)

    def statistics(
        self, images: NDArray[np.uint8], *, chosen: Sequence[int] | None = None
    ) -> tuple[NDArray[np.float64], str]:
        # The pool comes as it is: a copy of the survivors could be as large.
        assert chosen is not None
        self.pools.append(images)
        scored = images[list(chosen)]
        self.seen.append(("statistics", scored[:, 0, 0, 2].tolist()))
        return scored[:, 0, 0, 1].astype(np.float64), "some statistic"


def pool(energy: list[int], statistics: list[int]) -> NDArray[np.uint8]:
    return np.array(
        [[[[e, s, index]]] for index, (e, s) in enumerate(zip(energy, statistics, strict=True))], np.uint8
    )


@pytest.mark.parametrize(
    ("energy", "statistics", "images", "drawn"),
    [
        (1.0, 1.0, 512, 512),
        (0.5, 1.0, 512, 1024),
        (0.5, 0.5, 512, 2048),
        (0.7, 1.0, 7, 10),
        (0.9, 0.9, 100, 125),
        (0.1, 0.1, 1, 100),
    ],
)
def test_pool_size_takes_shares_as_they_are_written(
    energy: float, statistics: float, images: int, drawn: int
) -> None:
    assert pool_size(FilterSettings(keep_energy=energy, keep_statistics=statistics), images=images) == drawn


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_shares_out_of_range(share: float) -> None:
    with pytest.raises(BadOptionError, match=r"--keep-energy is .* allowed above 0 and at most 1"):
        pool_size(FilterSettings(keep_energy=share), images=4)
    with pytest.raises(BadOptionError, match="--keep-statistics is"):
        pool_size(FilterSettings(keep_statistics=share), images=4)


def test_a_pool_without_end_is_refused() -> None:
    with pytest.raises(BadOptionError, match="need 5120000 drawn images for 512, allowed 1000000"):
        pool_size(FilterSettings(keep_energy=0.01, keep_statistics=0.01), images=512)


def test_energy_comes_first_and_statistics_see_the_survivors_only() -> None:
    scores = Counted()
    # Images 0 and 3 fit the statistics best, but their energy is high.
    images = pool([9, 1, 2, 8], [0, 5, 4, 0])
    kept, record = filter_images(images, filters=BOTH, images=1, scores=scores)
    assert kept == (2,)
    assert [one is images for one in scores.pools] == [True]
    assert scores.seen == [("energy", [0, 1, 2, 3]), ("statistics", [1, 2])]
    assert record == FilterRecord(
        asked=1, drawn=4, dropped_by_energy=2, dropped_by_statistics=1, statistic="some statistic"
    )


def test_filters_that_are_off_score_nothing() -> None:
    scores = Counted()
    kept, record = filter_images(pool([3, 1], [0, 0]), filters=OFF, images=2, scores=scores)
    assert (kept, scores.seen) == ((0, 1), [])
    assert record == FilterRecord(
        asked=2, drawn=2, dropped_by_energy=0, dropped_by_statistics=0, statistic=""
    )
    kept, record = filter_images(
        pool([3, 1], [0, 0]), filters=FilterSettings(keep_energy=0.5), images=1, scores=scores
    )
    assert (kept, record.statistic, [name for name, _ in scores.seen]) == ((1,), "", ["energy"])


def test_equal_scores_go_by_order() -> None:
    kept, _ = keep(
        FilterSettings(keep_energy=0.5), images=2, energy=np.array([1.0, 0.0, 1.0, 1.0]), statistics=None
    )
    assert kept == (0, 1)


def test_negative_and_signed_zero_scores() -> None:
    kept, _ = keep(
        FilterSettings(keep_statistics=0.5),
        images=2,
        energy=None,
        statistics=np.array([0.0, -0.0, -3.0, 2.0]),
    )
    assert kept == (0, 2)


@pytest.mark.parametrize(
    ("filters", "energy", "statistics", "message"),
    [
        (BOTH, None, np.zeros(4), "energy scores are missing"),
        (BOTH, np.zeros(4), None, "statistics scores are missing"),
        (OFF, np.zeros(1), None, "energy scores are given"),
        (BOTH, np.zeros(3), np.zeros(4), r"4 drawn images have scores of shape \[3\]"),
        (BOTH, np.zeros(4), np.zeros(2), r"4 drawn images have scores of shape \[2\]"),
        (BOTH, np.full(4, np.nan), np.zeros(4), "NaN or infinity"),
        (BOTH, np.zeros(4), np.full(4, np.inf), "NaN or infinity"),
    ],
)
def test_scores_that_do_not_fit_are_our_bug(
    filters: FilterSettings,
    energy: NDArray[np.float64] | None,
    statistics: NDArray[np.float64] | None,
    message: str,
) -> None:
    with pytest.raises(InvariantError, match=message):
        keep(filters, images=1, energy=energy, statistics=statistics)
