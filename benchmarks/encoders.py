"""Throughput of the item encoders at their published sizes, with random weights; prints one line per row.

    python -m benchmarks.encoders                       # checks, then all rows; needs one GPU of 40 GB or more
    python -m benchmarks.encoders --rows t5 --profile   # where the time of Flan-T5-XL's encoder goes
    python -m benchmarks.encoders --no-check --rows t5,qwen,qwen-text --steps 8 --commit ID --raw docs/results/raw.jsonl

Run it from the project's folder.
Needs torch, transformers and NumPy (the rows with images also Pillow), and nothing to download: configurations are
written out in encoder_models.py as published, weights are random, tokens are drawn. Random weights cost what trained
ones cost.

Lengths. No tokenizer is here, so texts are numbers of tokens, at 3.5 characters a token. Titles and category paths
follow the 12,101 items of Amazon Beauty (5-core): log-normal with median 58 and 54 characters, sigma 0.5 and 0.3.
Descriptions are not in that file; they are ASSUMED: nine items in ten have one, log-normal with median 400 characters,
sigma 0.9. All is cut at 128 tokens, as the presets do; the row "t5-512" cuts at 512.
Images are JPEGs of 500 x 500 pixels, shrunk to 448 x 448, which is 256 tokens of 28 x 28 pixels.

Definitions. items/s: over the whole loop - batch made on the host, copied, computed, vectors back - after warm-up.
--raw appends each row to a file, as it is finished, for benchmarks/results.py.
TFLOP/s: matrix products over real tokens (padding earns nothing), attention's included, 2 per multiply-add; the token
table and the patch embedding are left out. Share: of 989 TFLOP/s, an H200's dense bfloat16. With --steps N a row stops
after N batches.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.defaults import some
from benchmarks.encoder_models import (
    IMAGE_TOKEN,
    NoTokenizer,
    qwen_config,
    qwen_encoder,
    qwen_flops,
    qwen_model,
    qwen_prompts,
    t5_config,
    t5_flops,
    t5_texts,
)
from pipeline.embed.batches import in_step, packed_batches, send_to_device, token_budget_batches
from pipeline.embed.config import EmbedConfig
from pipeline.embed.qwen import QwenEncoder
from pipeline.embed.t5 import T5Encoder
from pipeline.embed.text import mean_pool, padded
from pipeline.machine import PEAKS

PEAK = PEAKS["H200"]
ITEMS = 12_101
Encoder = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (token ids, mask) -> states of the tokens


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    items: int
    seconds: float
    flops: float  # of all these items
    tokens: int
    note: str

    def __str__(self) -> str:
        rate = self.flops / self.seconds
        memory = f" {torch.cuda.max_memory_allocated() / 2**30:6.1f} GiB" if torch.cuda.is_available() else ""
        return (
            f"{self.name:28} {self.items / self.seconds:9,.1f} items/s"
            f" {self.tokens / self.seconds / 1e3:8.1f} k tokens/s"
            f" {rate / 1e12:7.1f} TFLOP/s {rate / PEAK:6.1%}{memory}  {self.note}"
        )


def stored(row: Row, args: argparse.Namespace, hardware: str) -> dict[str, Any]:
    """Return the row as raw.jsonl has it."""
    rate = row.flops / row.seconds
    return {
        "kind": "encoder",
        "row": f"{row.name} ({row.note})",
        "items_per_second": round(row.items / row.seconds, 1),
        "share_of_peak": round(rate / PEAK, 4),
        "tflops": round(rate / 1e12, 1),
        "items": row.items,
        "seconds": round(row.seconds, 2),
        "command": f"python -m benchmarks.encoders --rows {','.join(args.rows)} --steps {args.steps}",
        "commit": args.commit,
        "hardware": hardware,
    }


def text_lengths(cut: int, seed: int = 0) -> np.ndarray:
    """Tokens of each item's text, see the top."""
    rng = np.random.default_rng(seed)
    title, category, description = (
        median * np.exp(sigma * rng.standard_normal(ITEMS)) for median, sigma in ((58, 0.5), (54, 0.3), (400, 0.9))
    )
    characters = title + category + description * (rng.random(ITEMS) < 0.9)
    lengths: np.ndarray = np.clip(np.ceil(characters / 3.5).astype(int) + 1, 4, cut)
    return lengths


# ---------------------------------------------------------------------------------------------------- Flan-T5-XL


def t5_pass(model: Encoder, texts: list[np.ndarray], budget: int, device: torch.device) -> Iterator[np.ndarray]:
    """Vectors of the texts, which come from long to short, batch by batch."""

    def start(batch: slice) -> torch.Tensor:
        ids_BT, mask_BT = (send_to_device(x, device) for x in padded(texts[batch], 0))
        return mean_pool(model(ids_BT, mask_BT), mask_BT)

    return in_step(start, token_budget_batches([len(text) for text in texts], budget), budget)


def t5_rows(args: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    config = t5_config(args.layers or 24)
    with torch.device(device):
        encoder = T5Encoder(config).to(torch.bfloat16).eval()
    for name, cut in (("t5", 128), ("t5-512", 512)):
        if name in args.rows:
            yield t5_row(f"Flan-T5-XL, cut at {cut}", encoder, config, cut, args, device)
    if "t5-transformers" in args.rows:
        theirs = transformers_t5(config, device, torch.bfloat16)
        yield t5_row("  as transformers has it", theirs, config, 128, args, device)


def transformers_t5(config: Any, device: torch.device, dtype: torch.dtype) -> Encoder:
    with torch.device(device):
        model: torch.nn.Module = transformers.T5EncoderModel(config)
        model = model.to(dtype).eval()
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()


def t5_row(name: str, model: Encoder, config: Any, cut: int, args: argparse.Namespace, device: torch.device) -> Row:
    lengths = np.sort(text_lengths(cut))[::-1]
    texts, budget = t5_texts(config, lengths), args.t5_tokens
    batches = list(token_budget_batches(lengths.tolist(), budget))
    few = np.unique(np.linspace(0, len(batches) - 1, min(args.steps, len(batches))).astype(int))  # of all lengths
    chosen = np.concatenate([np.arange(len(lengths))[batches[i]] for i in few])
    padding = 1 - lengths[chosen].sum() / sum(
        lengths[batches[i].start] * (batches[i].stop - batches[i].start) for i in few
    )
    subset = [texts[i] for i in chosen]
    for _ in t5_pass(model, subset[: len(subset) // 2], budget, device):
        pass  # compiles, and warms the allocator up
    seconds = timed(lambda: list(t5_pass(model, subset, budget, device)), args.profile)
    return Row(
        name=name,
        items=len(chosen),
        seconds=seconds,
        flops=t5_flops(config, lengths[chosen]),
        tokens=int(lengths[chosen].sum()),
        note=f"mean length {lengths[chosen].mean():.0f}, batches of {budget:,} tokens, {padding:.1%} padding",
    )


# ---------------------------------------------------------------------------------------------------- Qwen2.5-VL-7B


def qwen_rows(args: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    config = qwen_config(args.layers or 28, args.layers or 32)
    encoder = qwen_encoder(config, device, torch.bfloat16)
    lengths = np.sort(text_lengths(128))[::-1]
    with TemporaryDirectory() as folder:
        for name, kind in (("Qwen2.5-VL-7B, image + text", "qwen"), ("Qwen2.5-VL-7B, text alone", "qwen-text")):
            if kind in args.rows:
                yield qwen_row(name, encoder, config, lengths, kind == "qwen", Path(folder), args)


def qwen_row(
    name: str,
    encoder: QwenEncoder,
    config: Any,
    lengths: np.ndarray,
    with_image: bool,
    folder: Path,
    args: argparse.Namespace,
) -> Row:
    from pipeline.embed.multimodal import encode_batches

    settings = some(EmbedConfig, encoder="multimodal", batch_tokens=args.qwen_tokens)
    grid = encoder.grid(500, 500) if with_image else (0, 0)
    prompts = qwen_prompts(grid, lengths)
    sizes = [len(prompt.ids) for prompt in prompts]
    batches = list(packed_batches(sizes, args.qwen_tokens))
    few = np.unique(np.linspace(0, len(batches) - 1, min(args.steps, len(batches))).astype(int))
    chosen = np.concatenate([np.arange(len(sizes))[batches[i]] for i in few])
    pictures = [[picture] for picture in jpegs(folder, len(chosen))] if with_image else [[] for _ in chosen]
    subset = [prompts[i] for i in chosen]
    list(encode_batches(encoder, subset[: 2 * len(subset) // len(few)], pictures, settings))
    seconds = timed(lambda: list(encode_batches(encoder, subset, pictures, settings)), args.profile)
    chosen_sizes = np.array(sizes)[chosen]
    flops = qwen_flops(config, chosen_sizes, grid[0] * grid[1], len(chosen) if with_image else 0)
    return Row(
        name=name,
        items=len(chosen),
        seconds=seconds,
        flops=flops,
        tokens=int(chosen_sizes.sum()),
        note=f"mean length {chosen_sizes.mean():.0f}, {grid[0] * grid[1]} patches, "
        f"batches of {args.qwen_tokens:,} tokens" + (", JPEGs decoded meanwhile" if with_image else ""),
    )


def jpegs(folder: Path, count: int) -> list[Any]:
    """So many pictures; the files are 32 different ones of 500 x 500 pixels."""
    from PIL import Image

    from pipeline.embed.images import inspect

    rng = np.random.default_rng(2)
    for i in range(32):
        coarse = Image.fromarray(rng.integers(0, 256, (25, 25, 3)).astype(np.uint8)).resize((500, 500))
        buffer = io.BytesIO()
        coarse.save(buffer, "JPEG", quality=90)
        (folder / f"{i}.jpg").write_bytes(buffer.getvalue())
    pictures = [inspect(folder, f"{i}.jpg", 10**6) for i in range(32)]
    return [pictures[i % 32] for i in range(count)]


# ---------------------------------------------------------------------------------------------------- checks


@torch.inference_mode()
def check(device: torch.device) -> None:
    """Two blocks of full width: least cosine of our bfloat16 vectors with those of transformers in float32."""
    config = t5_config(2)
    with torch.device(device):
        theirs = transformers.T5EncoderModel(config).eval()
    texts = t5_texts(config, np.sort(text_lengths(128)[:64])[::-1])
    ours = T5Encoder.of_transformers(theirs).to(torch.bfloat16)
    mine = np.concatenate(list(t5_pass(ours, texts, 2048, device)))
    alone = np.concatenate([v for text in texts for v in t5_pass(ours, [text], 2048, device)])
    expected = np.stack(
        [
            theirs(torch.tensor(text[None]).long().to(device)).last_hidden_state[0].mean(0).cpu().numpy()
            for text in texts
        ]
    )
    print(
        f"check T5: cosine with transformers in float32 {cosine(mine, expected):.5f}, "
        f"of a text alone with the same in a batch {cosine(mine, alone):.6f}",
        flush=True,
    )
    check_qwen(device)


def check_qwen(device: torch.device) -> None:
    config = qwen_config(2, 8)  # the eighth block of the vision tower sees whole images
    model = qwen_model(config, device, torch.float32)
    lengths, generator = text_lengths(128)[:12], torch.Generator().manual_seed(0)
    prompts = qwen_prompts((12, 20), lengths)
    pixels = [torch.randn(240, 1176, generator=generator) for _ in prompts]  # patches and their numbers
    expected = []
    for prompt, patches in zip(prompts, pixels, strict=True):
        ids = torch.from_numpy(prompt.ids).long().to(device)[None]
        states = model(
            input_ids=ids,
            pixel_values=patches.to(device),
            mm_token_type_ids=(ids == IMAGE_TOKEN).int(),
            image_grid_thw=torch.tensor([[1, 12, 20]], device=device),
        ).last_hidden_state
        expected.append(states[0, -1].cpu().numpy())
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    ours = QwenEncoder(model.to(torch.bfloat16), NoTokenizer(), Qwen2VLImageProcessorPil(), device, 256)
    pixels = [patches.bfloat16() for patches in pixels]
    mine = ours.embed(prompts, pixels, "last_token")
    alone = np.concatenate(
        [ours.embed([prompt], [patches], "last_token") for prompt, patches in zip(prompts, pixels, strict=True)]
    )
    print(
        f"check Qwen2.5-VL: cosine with transformers in float32 {cosine(mine, np.stack(expected)):.5f}, "
        f"of an item alone with the same in a batch {cosine(mine, alone):.6f}",
        flush=True,
    )


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Least over rows."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(1) / norms).min())


# ---------------------------------------------------------------------------------------------------- running


def timed(work: Callable[[], object], profile: bool) -> float:
    """Seconds; its vectors come back to the host, so that nothing is left running."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    if profile:
        _profile(work)
    return seconds


def _profile(work: Callable[[], object]) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA]) as record:
        began = time.perf_counter()
        work()
        wall = time.perf_counter() - began
    total = sum(event.self_device_time_total for event in record.key_averages()) / 1e6
    print(f"  kernels {total:.2f} s of {wall:.2f} s")
    for event in sorted(record.key_averages(), key=lambda e: -e.self_device_time_total)[:20]:
        print(f"  {event.self_device_time_total / 1e6 / total:6.1%} {event.count:6} calls  {event.key[:110]}")


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="t5,t5-512,t5-transformers,qwen,qwen-text", type=lambda text: text.split(","))
    parser.add_argument("--steps", type=int, default=24, help="batches of a row, spread over all lengths")
    parser.add_argument("--t5-tokens", type=int, default=32768, help="tokens of a batch of texts")
    parser.add_argument("--qwen-tokens", type=int, default=32768, help="tokens of a batch of items")
    parser.add_argument("--layers", type=int, default=0, help="fewer blocks than published, to try the script")
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--raw", type=Path, help="append the rows to this file")
    parser.add_argument("--commit", default="unknown", help="of this tree, for the rows")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    hardware = f"1 {name}, torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    print(hardware, flush=True)
    if not args.no_check:
        check(device)
    for rows in (t5_rows, qwen_rows):
        if any(row.startswith(rows.__name__[:2]) for row in args.rows):
            for row in rows(args, device):
                print(row, flush=True)
                if args.raw:
                    with args.raw.open("a") as stream:
                        stream.write(json.dumps(stored(row, args, hardware)) + "\n")
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
