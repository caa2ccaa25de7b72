"""Recipes of the public datasets: where their files come from, how the files are written, and the k-core to take.

With a recipe, `dataset` and `ingest.path` are the only settings needed. To add a recipe, add a row to `RECIPES` and its
name to `pipeline.config.DATASETS`; the readers need no change as long as one of the formats below fits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # `python -m pipeline check` reads recipes too, and loads nothing heavy
    import pyarrow as pa

K_CORE = 5  # the k of every dataset whose recipe says nothing else
# Action column -> least value that makes a row of that dataset an interaction; elsewhere every row is one.
MINIMUM: dict[str, dict[str, float]] = {"demo": {"click": 1.0}}


@dataclass(frozen=True)
class Format:
    """The way a raw file is written.

    kind: csv (one-character delimiter), separated (a longer one), jsonl (one JSON object a line), json_stream (an array
        of JSON objects, or objects that span lines), literal (one Python literal a line, as Amazon's metadata) or
        parquet.
    header: column names of a file that has no header line, or whose header line is skipped.
    quoted: whether double quotes protect delimiters and line breaks.
    """

    kind: Literal["csv", "separated", "jsonl", "json_stream", "literal", "parquet"]
    delimiter: str = ","
    encoding: str = "utf-8"
    header: tuple[str, ...] = ()
    quoted: bool = True


CSV = Format("csv")
TSV = Format("csv", "\t")
JSONL = Format("jsonl")
JSON_STREAM = Format("json_stream")
LITERAL = Format("literal")
PARQUET = Format("parquet")


@dataclass(frozen=True, kw_only=True)
class DatasetRecipe:
    """The facts about one public dataset.

    log, items: file names (a trailing * lets the unpacked file do as well), in `ingest.path` or one folder below. Of a
        dataset in categories they hold {category}, without .gz; the category is that of the log found.
    further_logs: names and formats of the log that count where there is no `log`; for a dataset in categories only.
    log_columns, item_columns: our column name -> the publisher's.
    urls: the publisher's addresses, which may hold {category}.
    sha256: of files that `fetch` downloads, by name, where it is publicly known and the publisher does not change the
        file.
    k_core: the least number of interactions of each user and item; 0 leaves out nobody.
    categories: computes the `categories` column of an item chunk, where it is more than a copy of a column.
    """

    log: str
    items: str
    log_format: Format
    item_format: Format
    log_columns: Mapping[str, str]
    item_columns: Mapping[str, str]
    urls: tuple[str, ...]
    sha256: Mapping[str, str] = field(default_factory=dict)
    further_logs: tuple[tuple[str, Format], ...] = ()
    k_core: int = K_CORE
    categories: Callable[["pa.Table"], "pa.Array"] | None = None

    @property
    def in_categories(self) -> bool:
        """True if the dataset is published in categories, each in files of its own."""
        return "{category}" in self.log

    def of(self, category: str) -> "DatasetRecipe":
        """Return the recipe of one category, whose first form of the log is the one to be fetched."""
        log, items, *urls = (text.replace("{category}", category) for text in (self.log, self.items, *self.urls))
        return replace(self, log=f"{log}*", items=f"{items}*", urls=tuple(urls), further_logs=())


MCAULEY = "https://mcauleylab.ucsd.edu/public_datasets/data"
AMAZON = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
GROUPLENS = "https://files.grouplens.org/datasets/movielens"
# Of the archives that GroupLens keeps as they are ("latest" changes); also in the checksums of TensorFlow Datasets.
MOVIELENS_SHA256 = {
    "ml-100k.zip": "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    "ml-1m.zip": "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    "ml-20m.zip": "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
}
GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)  # u.genre, in the order of u.item's flags


REVIEW_COLUMNS = {"user": "reviewerID", "item": "asin", "timestamp": "unixReviewTime", "rating": "overall"}
META_2014 = {
    "item": "asin",
    "title": "title",
    "categories": "categories",
    "description": "description",
    "brand": "brand",
    "price": "price",
}


def _amazon(category: str) -> DatasetRecipe:
    """Describe the 5-core reviews of 2014 and the metadata of all items of one Amazon category."""
    return DatasetRecipe(
        log=f"reviews_{category}_5.json*",
        items=f"meta_{category}.json*",
        log_format=JSONL,
        item_format=LITERAL,
        log_columns=REVIEW_COLUMNS,
        item_columns=META_2014,
        urls=(f"{AMAZON}/reviews_{category}_5.json.gz", f"{AMAZON}/meta_{category}.json.gz"),
    )


def _split_genres(chunk: "pa.Table") -> "pa.Array":
    """Turn `Comedy|Drama` into `Comedy, Drama`."""
    import pyarrow.compute as pc

    return pc.replace_substring(chunk["genres"], "|", ", ")


def _flagged_genres(chunk: "pa.Table") -> "pa.Array":
    """Turn nineteen columns of 0 and 1 into `Comedy, Drama`."""
    import pyarrow as pa

    rows = zip(*(chunk[name].to_pylist() for name in GENRES_100K), strict=True)
    return pa.array(
        [", ".join(name for name, flag in zip(GENRES_100K, row, strict=True) if flag == "1") for row in rows],
        pa.string(),
    )


def _movielens_csv(archive: str) -> DatasetRecipe:
    """Describe the newer MovieLens datasets: ratings.csv and movies.csv with header lines."""
    return DatasetRecipe(
        log="ratings.csv",
        items="movies.csv",
        log_format=CSV,
        item_format=CSV,
        log_columns={"user": "userId", "item": "movieId", "timestamp": "timestamp", "rating": "rating"},
        item_columns={"item": "movieId", "title": "title", "categories": "genres"},
        urls=(f"{GROUPLENS}/{archive}",),
        sha256=MOVIELENS_SHA256,
        categories=_split_genres,
    )


def _columns(*names: str) -> dict[str, str]:
    """Map each name to itself: the header of the format has our names already."""
    return {name: name for name in names}


RECIPES: dict[str, DatasetRecipe] = {
    "amazon-beauty": _amazon("Beauty"),
    "amazon-sports": _amazon("Sports_and_Outdoors"),
    "amazon-toys": _amazon("Toys_and_Games"),
    "amazon-2014": DatasetRecipe(
        log="reviews_{category}_5.json",
        items="meta_{category}.json",
        log_format=JSONL,
        item_format=LITERAL,
        log_columns=REVIEW_COLUMNS,
        item_columns=META_2014,
        urls=(f"{AMAZON}/reviews_{{category}}_5.json.gz", f"{AMAZON}/meta_{{category}}.json.gz"),
        further_logs=(
            ("reviews_{category}.json", JSONL),
            ("ratings_{category}.csv", Format("csv", header=("reviewerID", "asin", "overall", "unixReviewTime"))),
        ),
    ),
    "amazon-2018": DatasetRecipe(
        log="{category}_5.json",
        items="meta_{category}.json",
        log_format=JSONL,
        item_format=JSONL,
        log_columns=REVIEW_COLUMNS,
        item_columns={**META_2014, "categories": "category"},
        urls=(
            f"{MCAULEY}/amazon_v2/categoryFilesSmall/{{category}}_5.json.gz",
            f"{MCAULEY}/amazon_v2/metaFiles2/meta_{{category}}.json.gz",
        ),
        further_logs=(
            ("{category}.json", JSONL),
            ("{category}.csv", Format("csv", header=("asin", "reviewerID", "overall", "unixReviewTime"))),
        ),
    ),
    "amazon-2023": DatasetRecipe(
        log="{category}.csv",
        items="meta_{category}.jsonl",
        log_format=CSV,
        item_format=JSONL,
        log_columns={"user": "user_id", "item": "parent_asin", "timestamp": "timestamp", "rating": "rating"},
        item_columns={
            "item": "parent_asin",
            "title": "title",
            "categories": "categories",
            "description": "description",
            "brand": "store",
            "price": "price",
        },
        urls=(
            f"{MCAULEY}/amazon_2023/benchmark/5core/rating_only/{{category}}.csv.gz",
            f"{MCAULEY}/amazon_2023/raw/meta_categories/meta_{{category}}.jsonl.gz",
        ),
        further_logs=(("{category}.jsonl", JSONL),),
    ),
    "movielens-1m": DatasetRecipe(
        log="ratings.dat",
        items="movies.dat",
        log_format=Format("separated", "::", "latin-1", ("user", "item", "rating", "timestamp")),
        item_format=Format("separated", "::", "latin-1", ("item", "title", "genres")),
        log_columns=_columns("user", "item", "timestamp", "rating"),
        item_columns={"item": "item", "title": "title", "categories": "genres"},
        urls=(f"{GROUPLENS}/ml-1m.zip",),
        sha256=MOVIELENS_SHA256,
        categories=_split_genres,
    ),
    "movielens-20m": _movielens_csv("ml-20m.zip"),
    "movielens-32m": _movielens_csv("ml-32m.zip"),
    # The publisher's "latest" comes in two sizes; this is the small one. Both are written alike.
    "movielens-latest": _movielens_csv("ml-latest-small.zip"),
    "movielens-100k": DatasetRecipe(
        log="u.data",
        items="u.item",
        log_format=Format("csv", "\t", "latin-1", ("user", "item", "rating", "timestamp"), quoted=False),
        item_format=Format(
            "csv", "|", "latin-1", ("item", "title", "release", "video_release", "url", *GENRES_100K), quoted=False
        ),
        log_columns=_columns("user", "item", "timestamp", "rating"),
        item_columns=_columns("item", "title"),
        urls=(f"{GROUPLENS}/ml-100k.zip",),
        sha256=MOVIELENS_SHA256,
        k_core=0,
        categories=_flagged_genres,
    ),
}
