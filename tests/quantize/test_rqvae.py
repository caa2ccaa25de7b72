"""rqvae and simvq against a slow reference in float64 that knows only what codebooks.safetensors holds."""

from typing import Any

import numpy as np
import pytest
import torch
from settings import some
from slow_residual import clouds

from pipeline.errors import UserError
from pipeline.quantize import build_quantizer
from pipeline.quantize.codebook import Codebook
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.quantizer import Quantized
from pipeline.quantize.rqvae import ResidualAutoencoder
from pipeline.quantize.simvq import MappedCodebook

KINDS = [
    {"method": "rqvae"},
    {"method": "rqvae", "estimator": "rotation", "hidden": (12, 7)},
    {"method": "rqvae", "encoder": "identity"},
    {"method": "simvq"},
    {"method": "simvq", "encoder": "identity"},
    {"method": "simvq", "bias": False},
]


def config(**changes: Any) -> QuantizeConfig:
    return some(
        QuantizeConfig,
        **{"levels": 3, "codes": 8, "hidden": (16,), "latent": 6, "max_steps": 100, "batch_items": 64, **changes},
    )


def network(quantized: Quantized, part: str, rows: np.ndarray) -> np.ndarray:
    """Apply the layers of encoder or decoder by hand, in float64."""
    weights = sorted(name for name in quantized.codebooks if name.startswith(part) and name.endswith("weight"))
    for name in weights:
        rows = (
            rows @ quantized.codebooks[name].astype(np.float64).T + quantized.codebooks[name.replace("weight", "bias")]
        )
        rows = rows if name == weights[-1] else np.maximum(rows, 0)
    return rows


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_errors_follow_from_the_tensors_alone(kind: dict[str, Any]) -> None:
    vectors = clouds(1)
    quantized = build_quantizer(config(**kind), 3).fit(vectors)
    books = quantized.codebooks
    residual = network(quantized, "encoder", (vectors - books["center"].astype(np.float64)) / books["scale"])
    rebuilt = np.zeros_like(residual)
    for level in range(3):
        vectors_of = books[f"level_{level + 1}"].astype(np.float64)
        distances = ((residual[:, None] - vectors_of) ** 2).sum(-1)
        codes = quantized.codes_IL[:, level]
        excess = distances[np.arange(len(vectors)), codes] - distances.min(1)
        assert excess.max() < 1e-4 * (1 + distances.max())  # float32 may take either of two that are equally near
        if level == 2:
            np.testing.assert_allclose(quantized.last_rows_Ik, residual, atol=1e-4)
        rebuilt, residual = rebuilt + vectors_of[codes], residual - vectors_of[codes]
    decoded = network(quantized, "decoder", rebuilt) * books["scale"] + books["center"]
    np.testing.assert_allclose(quantized.errors_I, np.linalg.norm(vectors - decoded, axis=1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS[:1] + KINDS[3:4])
def test_errors_with_other_last_codes_are_those_of_the_decoded_vector(kind: dict[str, Any]) -> None:
    vectors = clouds(2, items=60)
    quantized = build_quantizer(config(**kind), 3).fit(vectors)
    others = np.random.default_rng(0).integers(0, 8, 60)
    books = quantized.codebooks
    codes = np.column_stack([quantized.codes_IL[:, :-1], others])
    latent = sum(books[f"level_{level + 1}"][codes[:, level]].astype(np.float64) for level in range(3))
    decoded = network(quantized, "decoder", latent) * books["scale"] + books["center"]
    np.testing.assert_allclose(quantized.errors_with(others), np.linalg.norm(vectors - decoded, axis=1), rtol=1e-3)


@pytest.mark.parametrize("method", ["rqvae", "simvq"])
def test_equal_input_and_seed_give_equal_bytes(method: str) -> None:
    first, second, other = (build_quantizer(config(method=method), seed).fit(clouds(4)) for seed in (1, 1, 2))
    assert first.codes_IL.tobytes() == second.codes_IL.tobytes() != other.codes_IL.tobytes()
    for name, tensor in first.codebooks.items():
        assert tensor.tobytes() == second.codebooks[name].tobytes(), name


def test_training_lowers_the_error_of_the_start() -> None:
    vectors, errors = clouds(5), []
    for steps in (1, 400):
        quantized = build_quantizer(config(method="rqvae", max_steps=steps), 1).fit(vectors)
        errors.append(np.square(quantized.errors_I).sum() / np.square(vectors - vectors.mean(0)).sum())
    assert errors[1] < 0.6 * errors[0]


def test_the_loss_is_the_reconstruction_and_each_levels_two_terms() -> None:
    torch.manual_seed(0)
    settings = config(method="rqvae", commitment=0.4)
    model, rows = ResidualAutoencoder(settings, 8), torch.from_numpy(clouds(6, items=20))
    model.start(rows, 0)
    with torch.no_grad():
        for level in model.books:
            level.table_Vk.add_(0.1 * torch.randn_like(level.table_Vk))
        residual = latent = model.encoder(rows)
        expected = 0.0
        for level in model.books:
            chosen = torch.stack(
                [min(level.table_Vk.unbind(), key=lambda code: float((row - code).square().sum())) for row in residual]
            )
            expected += 1.4 * float((residual - chosen).square().mean())
            residual = residual - chosen
        expected += float((model.decoder(latent - residual) - rows).square().mean())
    assert model.loss(rows).item() == pytest.approx(expected, rel=1e-5)


def test_codes_start_at_the_means_of_what_their_level_quantizes() -> None:
    torch.manual_seed(0)
    model, rows = ResidualAutoencoder(config(method="rqvae"), 8), torch.from_numpy(clouds(7))
    model.start(rows, 0)
    with torch.no_grad():
        codes, quantized, _ = model.quantize(model.encoder(rows))
    for level, codes_of, rows_of in zip(model.books, codes, quantized, strict=True):
        for code in codes_of.unique().tolist():
            torch.testing.assert_close(level.vectors()[code], rows_of[codes_of == code].mean(0), atol=0.05, rtol=0)


def test_a_code_without_items_starts_again_at_what_an_item_leaves_to_its_level() -> None:
    torch.manual_seed(0)
    model, rows = ResidualAutoencoder(config(method="rqvae"), 8), torch.from_numpy(clouds(8))
    model.start(rows, 0)
    book = model.books[1]
    assert isinstance(book, Codebook)
    book.put(torch.tensor([3]), torch.full((1, 6), 1e3))
    with torch.no_grad():
        codes = torch.stack(model.quantize(model.encoder(rows))[0], 1)
        before = [level.vectors().clone() for level in model.books]
        model.restart_dead(rows, codes, torch.Generator().manual_seed(0))
        leftovers = model.quantize(model.encoder(rows))[1][1]
    assert (leftovers - model.books[1].vectors()[3]).abs().amax(1).min() < 1e-5
    for level, old in zip(model.books, before, strict=True):
        kept = [code for code in range(8) if not (level is model.books[1] and code == 3)]
        torch.testing.assert_close(level.vectors()[kept], old[kept])


def test_the_table_of_simvq_is_frozen_and_its_codes_are_the_mapped_rows() -> None:
    torch.manual_seed(0)
    book = MappedCodebook(8, 6, bias=True)
    table = book.table_Vk.clone()
    optimizer = torch.optim.SGD(book.parameters(), lr=0.1)
    for _ in range(3):
        book.vectors().square().sum().backward()
        optimizer.step()
    assert torch.equal(book.table_Vk, table)
    assert {name for name, _ in book.named_parameters()} == {"map.weight", "map.bias"}
    expected = torch.stack([book.map.weight @ row + book.map.bias for row in table])
    torch.testing.assert_close(book.vectors(), expected)


def test_simvq_writes_the_mapped_codes_not_the_table() -> None:
    """From the table, a reader of the codes would decode vectors that no item was quantized to."""
    quantized = build_quantizer(config(method="simvq", encoder="identity"), 1).fit(clouds(9))
    torch.manual_seed(1)
    untouched = ResidualAutoencoder(config(method="simvq", encoder="identity"), 8).books[0].table_Vk.numpy()
    assert np.linalg.norm(quantized.codebooks["level_1"] - untouched) > 0.1
    assert not any(name.startswith(("encoder", "decoder")) for name in quantized.codebooks)


@pytest.mark.parametrize("method", ["rqvae", "simvq", "vqvae"])
def test_more_codes_than_items_is_an_error_with_advice(method: str) -> None:
    with pytest.raises(UserError, match=r"quantize\.codes is 8, but there are only 5 items"):
        build_quantizer(config(method=method), 0).fit(clouds(0, items=5))


@pytest.mark.parametrize("method", ["rqvae", "simvq", "vqvae"])
def test_items_that_are_all_alike_get_one_sid(method: str) -> None:
    quantized = build_quantizer(config(method=method, max_steps=60), 0).fit(np.ones((30, 8), np.float32))
    assert len(np.unique(quantized.codes_IL, axis=0)) == 1
    assert np.isfinite(quantized.errors_I).all()


@pytest.mark.parametrize("method", ["rqvae", "vqvae"])
def test_a_gpu_that_is_not_there_is_named_by_its_key(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"quantize\.device is cuda, but torch sees no GPU"):
        build_quantizer(config(method=method, device="cuda"), 0).fit(clouds(0))
