"""Every recipe on small files in its publisher's format; only `dataset` and `ingest.path` are set."""

from collections.abc import Callable
from pathlib import Path

import pytest
from raw_logs import START, Ingest, csv_text, interactions, jsonl_text, write

from pipeline.config import DATASETS
from pipeline.errors import UserError
from pipeline.ingest.recipes import GENRES_100K, RECIPES


def number(raw: str) -> int:
    """MovieLens' ids are numbers: u3 -> 4."""
    return int(raw[1:]) + 1


def amazon(folder: Path, category: str, suffix: str = ".json.gz") -> Path:
    reviews = [
        {
            "reviewerID": user,
            "asin": item,
            "reviewerName": 'A "B" C',
            "helpful": [0, 1],
            "reviewText": "Good,\nno",
            "overall": 5.0,
            "summary": "é",
            "unixReviewTime": time,
            "reviewTime": "05 13, 2014",
        }
        for user, item, time in interactions()
    ]
    write(folder / f"reviews_{category}_5{suffix}", jsonl_text(reviews))
    meta = [
        {
            "asin": item,
            "title": f"It's {item} & more",
            "price": 9.5,
            "imUrl": "http://example.com/1.jpg",
            "related": {"also_bought": ["x", "y"]},
            "salesRank": {"Beauty": 7},
            "brand": "Acme",
            "categories": [["Beauty", "Nails"], ["Gifts"]],
            "description": 'Says "hi"',
        }
        for item in ("unsold", *(f"i{n}" for n in reversed(range(6))))
    ]
    write(folder / f"meta_{category}{suffix}", "".join(f"{row!r}\n" for row in meta))
    return folder


def movielens_1m(folder: Path) -> Path:
    write(
        folder / "ratings.dat", "".join(f"{number(u)}::{number(i)}::4::{t}\n" for u, i, t in interactions()), "latin-1"
    )
    write(
        folder / "movies.dat",
        "".join(f"{n}::Amélie: the {n}th (2001)::Comedy|Romance\n" for n in range(1, 8)),
        "latin-1",
    )
    return folder


def movielens_csv(folder: Path) -> Path:
    rows = [(number(u), number(i), 3.5, t) for u, i, t in interactions()]
    write(folder / "ratings.csv", csv_text(rows, "userId,movieId,rating,timestamp"))
    movies = [(n, f'"Amélie, the {n}th (2001)"', "Comedy|Romance") for n in range(1, 8)]
    write(folder / "movies.csv", csv_text(movies, "movieId,title,genres"))
    return folder


def movielens_100k(folder: Path) -> Path:
    write(folder / "u.data", "".join(f"{number(u)}\t{number(i)}\t4\t{t}\n" for u, i, t in interactions(users=2)))
    flags = "|".join("1" if name in ("Comedy", "Romance") else "0" for name in GENRES_100K)
    write(
        folder / "u.item",
        "".join(f'{n}|"Amélie" the {n}th (2001)|01-Jan-2001||http://example.com|{flags}\n' for n in range(1, 8)),
        "latin-1",
    )
    return folder


def test_every_dataset_but_the_demo_and_your_own_has_a_recipe() -> None:
    assert set(RECIPES) == set(DATASETS) - {"demo", "custom"}


@pytest.mark.parametrize("suffix", [".json.gz", ".json"], ids=["packed", "unpacked"])
@pytest.mark.parametrize(
    ("dataset", "category"),
    [("amazon-beauty", "Beauty"), ("amazon-sports", "Sports_and_Outdoors"), ("amazon-toys", "Toys_and_Games")],
)
def test_amazon(ingest: Ingest, tmp_path: Path, dataset: str, category: str, suffix: str) -> None:
    result = ingest(amazon(tmp_path / "raw", category, suffix), dataset)
    assert sorted(result.rows) == sorted(interactions())
    assert set(result.frame("interactions").rating) == {5.0}
    items = result.frame("items")
    assert items.raw_id.tolist() == ["i5", "i4", "i3", "i2", "i1", "i0"]  # the order of the item file
    first = items.iloc[0]
    assert (first.title, first.categories) == ("It's i5 & more", "Beauty > Nails; Gifts")
    assert (first.description, first.brand, first.price) == ('Says "hi"', "Acme", "9.5")
    assert items.image.isna().all()  # the publisher's are web addresses, not files
    assert result.summary["items_listed"] == 7
    assert result.summary["k_core"] == 5


@pytest.mark.parametrize(
    ("dataset", "make"),
    [
        ("movielens-1m", movielens_1m),
        ("movielens-20m", movielens_csv),
        ("movielens-32m", movielens_csv),
        ("movielens-latest", movielens_csv),
    ],
)
def test_movielens(ingest: Ingest, tmp_path: Path, dataset: str, make: Callable[[Path], Path]) -> None:
    result = ingest(make(tmp_path / "raw"), dataset)
    assert sorted(result.rows) == sorted((str(number(u)), str(number(i)), t) for u, i, t in interactions())
    items = result.frame("items")
    assert items.raw_id.tolist() == ["1", "2", "3", "4", "5", "6"]  # nobody rated the seventh
    assert items.title.str.startswith("Amélie").all()
    assert set(items.categories) == {"Comedy, Romance"}
    assert set(result.frame("interactions").rating) <= {3.5, 4.0}


def amazon_2014(folder: Path) -> Path:
    return amazon(folder, "Office_Products")


def amazon_2014_ratings(folder: Path) -> Path:
    amazon(folder, "Baby")
    (folder / "reviews_Baby_5.json.gz").unlink()
    text = "".join(f"{user},{item},5.0,{time}\n" for user, item, time in interactions())
    write(folder / "ratings_Baby.csv", text)
    return folder


def meta_2018(folder: Path) -> None:
    meta = [
        {
            "category": ["Beauty", "Nails"],
            "tech1": "",
            "description": ['Says "hi"'],
            "title": f"It&#39;s {item} &amp; more",
            "also_buy": [],
            "brand": "Acme",
            "feature": ["shiny"],
            "rank": "2,938,573 in Beauty",
            "price": "$9.50",
            "asin": item,
            "details": {"Weight": "1 lb"},
        }
        for item in ("unsold", *(f"i{n}" for n in reversed(range(6))))
    ]
    write(folder / "meta_All_Beauty.json.gz", jsonl_text([*meta, meta[0]]))  # some are listed twice alike


def amazon_2018(folder: Path) -> Path:
    reviews = [
        {
            "overall": 5.0,
            "verified": True,
            "reviewTime": "05 13, 2014",
            "reviewerID": user,
            "asin": item,
            "reviewText": "Good",
            "unixReviewTime": time,
            **({"vote": "1,204", "image": ["https://example.com/1.jpg"]} if row == 20 else {}),
        }
        for row, (user, item, time) in enumerate(interactions())
    ]
    write(folder / "All_Beauty_5.json.gz", jsonl_text(reviews))
    meta_2018(folder)
    return folder


def amazon_2018_ratings(folder: Path) -> Path:
    write(folder / "All_Beauty.csv", "".join(f"{item},{user},5.0,{time}\n" for user, item, time in interactions()))
    meta_2018(folder)
    return folder


def meta_2023(folder: Path) -> None:
    meta = [
        {
            "main_category": "All Beauty",
            "title": f"It's {item} & more",
            "average_rating": 4.8,
            "features": [],
            "description": ['Says "hi"'],
            "price": 9.5,
            "images": [{"thumb": "https://example.com/1.jpg", "variant": "MAIN"}],
            "videos": [],
            "store": "Acme",
            "categories": ["Beauty", "Nails"],
            "details": {"Brand": "Acme"},
            "parent_asin": item,
            "bought_together": None,
        }
        for item in ("unsold", *(f"i{n}" for n in reversed(range(6))))
    ]
    write(folder / "meta_All_Beauty.jsonl.gz", jsonl_text(meta))


def amazon_2023(folder: Path) -> Path:
    reviews = [
        {
            "rating": 5.0,
            "title": "Such a lovely scent",
            "text": "é",
            "images": [],
            "asin": f"variant of {item}",
            "parent_asin": item,
            "user_id": user,
            "timestamp": time * 1000,
            "helpful_vote": 3,
            "verified_purchase": True,
        }
        for user, item, time in interactions()
    ]
    write(folder / "review_categories" / "All_Beauty.jsonl", jsonl_text(reviews))
    meta_2023(folder / "meta_categories")
    return folder


def amazon_2023_ratings(folder: Path) -> Path:
    rows = [(user, item, 5.0, time * 1000) for user, item, time in interactions()]
    write(folder / "All_Beauty.csv.gz", csv_text(rows, "user_id,parent_asin,rating,timestamp"))
    meta_2023(folder)
    return folder


@pytest.mark.parametrize(
    ("dataset", "make"),
    [
        ("amazon-2014", amazon_2014),
        ("amazon-2014", amazon_2014_ratings),
        ("amazon-2018", amazon_2018),
        ("amazon-2018", amazon_2018_ratings),
        ("amazon-2023", amazon_2023),
        ("amazon-2023", amazon_2023_ratings),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_any_category_of_amazon(ingest: Ingest, tmp_path: Path, dataset: str, make: Callable[[Path], Path]) -> None:
    result = ingest(make(tmp_path / "raw"), dataset)
    assert sorted(result.rows) == sorted(interactions())
    assert result.rejects == []
    assert set(result.frame("interactions").rating) == {5.0}
    assert result.summary["time_format"] == ("ms" if dataset == "amazon-2023" else "s")
    items = result.frame("items")
    assert items.raw_id.tolist() == ["i5", "i4", "i3", "i2", "i1", "i0"]
    first = items.iloc[0]
    assert (first.title, first.brand, first.description) == ("It's i5 & more", "Acme", 'Says "hi"')
    assert first.categories.startswith("Beauty > Nails")


def test_the_log_of_a_category_can_be_named_among_several(ingest: Ingest, tmp_path: Path) -> None:
    folder = amazon_2023_ratings(tmp_path / "raw")
    write(folder / "Video_Games.csv", "user_id,parent_asin,rating,timestamp\n")
    with pytest.raises(UserError, match=r"All_Beauty\.csv\.gz, Video_Games\.csv are all in"):
        ingest(folder, "amazon-2023")
    assert ingest(folder / "All_Beauty.csv.gz", "amazon-2023").summary["items_listed"] == 7


def test_a_category_without_metadata_has_no_texts_and_says_so(
    ingest: Ingest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = amazon_2023_ratings(tmp_path / "raw")
    (folder / "meta_All_Beauty.jsonl.gz").unlink()
    assert ingest(folder, "amazon-2023").frame("items").title.isna().all()
    assert "meta_All_Beauty.jsonl is not in" in capsys.readouterr().out


def test_a_folder_without_any_category_says_which_files_are_read(ingest: Ingest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"CATEGORY_5\.json or CATEGORY\.json or CATEGORY\.csv is not in") as error:
        ingest(movielens_1m(tmp_path / "raw"), "amazon-2018")
    assert "python -m pipeline fetch CATEGORY" in error.value.fix


def test_movielens_100k_is_not_filtered(ingest: Ingest, tmp_path: Path) -> None:
    result = ingest(movielens_100k(tmp_path / "raw"), "movielens-100k")
    assert (result.summary["users"], result.summary["items"], result.summary["k_core"]) == (2, 6, 0)
    assert result.frame("items").title[0] == '"Amélie" the 1th (2001)'
    assert result.frame("items").categories[0] == "Comedy, Romance"


def test_the_folder_of_the_publishers_archive_may_be_below(ingest: Ingest, tmp_path: Path) -> None:
    movielens_1m(tmp_path / "raw" / "ml-1m")
    assert ingest(tmp_path / "raw", "movielens-1m").summary["users"] == 6


def test_the_log_file_itself_will_do_as_a_path(ingest: Ingest, tmp_path: Path) -> None:
    movielens_1m(tmp_path / "raw")
    assert ingest(tmp_path / "raw" / "ratings.dat", "movielens-1m").summary["users"] == 6


def test_a_recipes_k_core_can_be_overruled(ingest: Ingest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is left of the log after the filter '5-core'"):
        ingest(movielens_100k(tmp_path / "raw"), "movielens-100k", k_core=5)


def test_a_missing_file_is_named_with_the_command_that_brings_it(ingest: Ingest, tmp_path: Path) -> None:
    amazon(tmp_path / "raw", "Beauty")
    (tmp_path / "raw" / "meta_Beauty.json.gz").unlink()
    with pytest.raises(UserError, match=r"meta_Beauty\.json is not in") as error:
        ingest(tmp_path / "raw", "amazon-beauty")
    assert "python -m pipeline fetch" in error.value.fix
    assert "data/raw/amazon-beauty" in error.value.fix


def test_an_item_whose_metadata_is_broken_takes_its_interactions_along_visibly(ingest: Ingest, tmp_path: Path) -> None:
    folder = movielens_1m(tmp_path / "raw")
    lines = (folder / "movies.dat").read_text("latin-1").splitlines(keepends=True)
    write(folder / "movies.dat", "".join(["2::no genres\n" if line.startswith("2::") else line for line in lines]))
    result = ingest(folder, "movielens-1m", max_reject_rate=0.2)
    assert result.summary["rejects"] == {"item is not in movies.dat": 6, "2 fields where 3 are expected": 1}
    assert result.summary["items"] == 5
    assert START in set(result.frame("interactions").timestamp)
