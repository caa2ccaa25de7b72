"""TF-IDF vectors: likeness, determinism, and catalogues too small for the width that was asked for."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from pipeline.embed.tfidf import tfidf_vectors
from pipeline.errors import UserError

WORDS = {
    "garden": "spade rake hose seed pot soil",
    "kitchen": "pan knife whisk pot bowl oven",
    "music": "guitar drum string pick amp cable",
}


def catalogue(seed: int = 0, each: int = 40) -> tuple[list[str], np.ndarray]:
    """(texts, category of each): a few words of the category and a number that no other item has."""
    rng = np.random.default_rng(seed)
    texts, categories = [], []
    for index, words in enumerate(WORDS.values()):
        for item in range(each):
            texts.append(" ".join([*rng.choice(words.split(), 3), f"no{index}{item}"]))
            categories.append(index)
    return texts, np.array(categories)


def test_items_of_the_same_category_are_nearer_than_others() -> None:
    texts, categories = catalogue()
    vectors = tfidf_vectors(texts, 16)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = unit @ unit.T
    same = categories[:, None] == categories[None, :]
    np.fill_diagonal(same, False)
    assert likeness[same].mean() > likeness[categories[:, None] != categories[None, :]].mean() + 0.2
    np.fill_diagonal(likeness, -1)
    assert (categories[likeness.argmax(axis=1)] == categories).mean() > 0.9


def test_bytes_do_not_depend_on_the_number_of_threads() -> None:
    texts, _ = catalogue()
    with threadpool_limits(limits=1):
        one = tfidf_vectors(texts, 16)
    with threadpool_limits(limits=4):
        four = tfidf_vectors(texts, 16)
    assert one.tobytes() == four.tobytes()


def test_another_start_of_the_svd_gives_the_same_vectors_up_to_rounding_signs_included(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # themes of very different size leave the SVD no choice but the sign
    texts = ["spade rake hose"] * 60 + ["pan knife whisk"] * 20 + ["guitar drum"] * 5
    a = tfidf_vectors(texts, 3)
    monkeypatch.setattr("pipeline.embed.tfidf.SEED", 7)
    assert a == pytest.approx(tfidf_vectors(texts, 3), abs=1e-5)
    assert (a.sum(axis=0) > 0).all()


def test_a_text_without_words_becomes_zeros() -> None:
    texts, _ = catalogue()
    vectors = tfidf_vectors(["", *texts, "!!!"], 8)
    assert (vectors[[0, -1]] == 0).all()
    assert (vectors[1:-1] != 0).any(axis=1).all()


@pytest.mark.parametrize(
    ("texts", "width"),
    [
        (["spade", "rake", "spade rake"], 2),
        (["one two three four"], 1),
        (["pot", "pot", ""], 1),
        (["a b c d e f", "a g h i j k"], 2),
    ],
)
def test_the_width_is_what_the_texts_and_words_allow(texts: list[str], width: int) -> None:
    vectors = tfidf_vectors(texts, 128)
    assert vectors.shape == (len(texts), width)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()


def test_texts_without_a_single_word_are_an_error() -> None:
    with pytest.raises(UserError, match="not one word"):
        tfidf_vectors(["!!!", "", "..."], 8)
