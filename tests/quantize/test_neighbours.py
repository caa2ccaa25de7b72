"""Agreement of codes with neighbours and with categories, against a count over all pairs."""

import numpy as np
import pytest

from pipeline.quantize import neighbours
from pipeline.quantize.neighbours import category_agreement, nearest_others, neighbour_agreement


def clustered(items: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, (items, 3))
    vectors = rng.normal(size=(items, 6)) + 2 * codes[:, :1]
    categories = np.where(rng.random(items) < 0.1, -1, codes[:, 0] + rng.integers(0, 2, items))
    return vectors.astype(np.float32), codes, categories


@pytest.mark.parametrize("chunk", [7, 1000])
def test_the_nearest_other_item_is_that_of_all_distances(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", chunk)
    vectors, _, _ = clustered()
    distances = ((vectors[:, None] - vectors) ** 2).sum(-1)
    np.fill_diagonal(distances, np.inf)
    assert nearest_others(vectors, np.arange(80)).tolist() == distances.argmin(1).tolist()


def test_neighbour_agreement_is_the_share_of_items_whose_neighbour_has_the_same_first_codes() -> None:
    vectors, codes, _ = clustered()
    nearest_codes = nearest_others(vectors, np.arange(80))
    for level, share in enumerate(neighbour_agreement(vectors, codes), start=1):
        same = [codes[item, :level].tolist() == codes[nearest_codes[item], :level].tolist() for item in range(80)]
        assert share == pytest.approx(np.mean(same))


def test_a_large_catalogue_is_measured_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "SAMPLE", 20)
    vectors, codes, _ = clustered()
    shares = neighbour_agreement(vectors, codes)
    assert shares == neighbour_agreement(vectors, codes)
    assert shares[0] * 20 == pytest.approx(round(shares[0] * 20))


def test_category_agreement_counts_pairs_and_leaves_out_items_without_a_category() -> None:
    _, codes, categories = clustered()
    levels, chance = category_agreement(codes, categories)
    known = [item for item in range(80) if categories[item] >= 0]
    pairs = [(a, b) for a in known for b in known if a < b]
    for level, share in enumerate(levels, start=1):
        together = [(a, b) for a, b in pairs if (codes[a, :level] == codes[b, :level]).all()]
        assert share == pytest.approx(np.mean([categories[a] == categories[b] for a, b in together]))
    assert chance == pytest.approx(np.mean([categories[a] == categories[b] for a, b in pairs]))


def test_where_no_two_items_share_a_prefix_there_is_nothing_to_agree() -> None:
    assert category_agreement(np.arange(5)[:, None], np.zeros(5, int)) == ([None], 1.0)
    assert category_agreement(np.zeros((5, 1), int), np.full(5, -1)) == ([None], None)
