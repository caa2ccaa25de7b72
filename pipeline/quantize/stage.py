"""Stage 3: item vectors become Semantic IDs.

Reads data/embeddings/, writes data/sids/: the codes of each item with the deduplication digit last, the codebooks, and
quality.json.

Shape legend: I items, L code levels, d embedding width.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.artifacts import EMBEDDINGS, SIDS, Embeddings, Sids
from pipeline.quantize.collisions import deduplication_digits
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.quality import measure
from pipeline.quantize.quantizer import build_quantizer, unit_rows

if TYPE_CHECKING:
    from pipeline.config import Params


def run(params: "Params", *, embeddings: Path = EMBEDDINGS, output: Path = SIDS) -> dict[str, Any]:
    """Write data/sids/ and return what quality.json holds.

    Raises:
        UserError: the embeddings are missing or damaged, more codes than items, a digit too narrow, or no faiss.
    """
    sids = make_sids(Embeddings.read(embeddings).vectors_Id, params.quantize, params.seed)
    sids.write(output)
    quality = sids.quality
    print(f"quantize: {quality['unique_codes']:,} distinct codes for {quality['items']:,} items; "
          f"{quality['collision_rate']:.1%} of items share theirs, {quality['largest_group']} at most")
    print(f"quantize: level widths {' x '.join(map(str, sids.widths))}, the last is the deduplication digit")
    return {"widths": list(sids.widths), **quality}


def make_sids(vectors_Id: np.ndarray, config: QuantizeConfig, seed: int) -> Sids:
    """The pure part. vectors_Id: float32 [I, d], row = item_id."""
    if config.normalize_input:
        vectors_Id, _ = unit_rows(vectors_Id)
    quantized = build_quantizer(config, seed).fit(vectors_Id)
    digits_I, digit_width = deduplication_digits(quantized.codes_IL, config.digit_width)
    return Sids(
        codes_IL=np.column_stack([quantized.codes_IL, digits_I]),
        widths=(config.codes,) * config.levels + (digit_width,),
        codebooks=quantized.codebooks,
        quality={"method": config.method, **measure(vectors_Id, quantized, config.codes)},
    )
