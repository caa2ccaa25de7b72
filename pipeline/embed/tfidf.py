"""Make item vectors by TF-IDF and truncated SVD (latent semantic analysis), without any weights to download.

Shape legend: I items, V words of the vocabulary, d width of the embeddings.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from pipeline.errors import UserError

# Where the randomized SVD starts; its result hardly depends on it. params.seed is not used, because a sweep over seeds
# must not embed again for each seed.
SEED = 42


def tfidf_vectors(texts: Sequence[str], dimensions: int) -> np.ndarray:
    """Return float32 [I, d]; d is `dimensions`, or less if there are fewer words, or fewer texts with a word.

    A text without a word becomes zeros. The SVD leaves the sign of each dimension open; the sign is chosen so that the
    largest word weight of the dimension is positive.

    Raises:
        UserError: the texts do not have a single word.
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
    # weights is sparse, [I, V]; its rank is at most the number of words, and of texts that have a word.
    width = min(dimensions, np.count_nonzero(weights.getnnz(axis=1)), weights.shape[1])
    # One thread: a parallel sum may round differently, and the bytes must not depend on the machine's load.
    with threadpool_limits(limits=1):
        _, _, words_dV = randomized_svd(weights, width, n_iter=5, flip_sign=False, random_state=SEED)
        signs_d = np.sign(words_dV[np.arange(width), np.abs(words_dV).argmax(axis=1)])
        vectors_Id: np.ndarray = (weights @ words_dV.T * signs_d).astype(np.float32)
    return vectors_Id
