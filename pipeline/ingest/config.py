"""The settings of the stage ingest: section `ingest` of params.yaml."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class IngestConfig:
    """Say where the raw log lies and how it is cleaned."""

    path: str = "data/demo"  # a file or a folder, which DVC can depend on; for the demo the one with scenario.yaml
    files: str = ""  # custom: a glob inside that folder, such as "*.csv"; empty: the folder's interactions.*
    engine: Literal["duckdb", "spark"] = "duckdb"
    memory_limit: str = "4GB"  # DuckDB spills to disk above it
    k_core: int | Literal["recipe"] = "recipe"  # every user and item keeps at least this many interactions
    max_reject_rate: float = 0.01  # share of bad rows above which the stage fails
    time_unit: Literal["s", "ms"] = "s"
    columns: dict[str, str] = field(default_factory=dict)  # our name -> the log's name, where it is not recognised
    minimum: dict[str, float] = field(default_factory=dict)  # action column -> least value that counts as positive

    def __post_init__(self) -> None:
        if isinstance(self.k_core, int) and self.k_core < 0:
            raise ValueError("ingest.k_core must be 0 or more, or 'recipe'")
        if not 0 <= self.max_reject_rate <= 1:
            raise ValueError("ingest.max_reject_rate is a share between 0 and 1")
