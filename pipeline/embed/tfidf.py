"""TF-IDF and truncated SVD (latent semantic analysis): item vectors without any weights to download.

Shape legend: I items, W words, d embedding width.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from pipeline.errors import UserError

# Start of the randomized SVD, which hardly matters. Not params.seed: a sweep over seeds must not embed again each time,
# as with a large text encoder that takes hours.
SEED = 42


def tfidf_vectors(texts: Sequence[str], dimensions: int) -> np.ndarray:
    """float32 [I, d], where d is `dimensions`, or less when there are fewer words, or fewer texts with a word.

    A text without a word becomes zeros. The sign of each dimension, which the SVD leaves open, makes its largest
    word weight positive.

    Raises:
        UserError: there is not one word in the texts.
    """
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    try:
        weights = vectorizer.fit_transform(texts)
    except ValueError:  # its complaint of an empty vocabulary
        raise UserError(
            "there is not one word in the texts of the items",
            "tfidf compares items by their words",
            "mend embed.template, or choose another embed.encoder",
        ) from None
    width = min(dimensions, np.count_nonzero(weights.getnnz(axis=1)), weights.shape[1])
    # One thread: a parallel sum may round differently, and the bytes must not depend on the machine's load.
    with threadpool_limits(limits=1):
        _, _, words_dW = randomized_svd(weights, width, n_iter=5, flip_sign=False, random_state=SEED)
        signs_d = np.sign(words_dW[np.arange(width), np.abs(words_dW).argmax(axis=1)])
        return (weights @ words_dW.T * signs_d).astype(np.float32)
