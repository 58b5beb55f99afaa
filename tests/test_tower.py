"""Pre-training of the vision tower: its loss, its batches, its scores, and the record of who it has seen."""

import math

import numpy as np
import pytest
import torch
from conftest import build_tiny
from sklearn.metrics import f1_score
from transformers import AutoModel, ResNetConfig

from au_llava.action_units import FORMATS
from au_llava.au_datasets.folds import people_of
from au_llava.au_datasets.mixing import training_rows
from au_llava.au_datasets.records import load_records
from au_llava.au_runs.manifests import check_unseen, read_training_manifest
from au_llava.au_training.augmentation import mirrored_values
from au_llava.au_training.tower import SharesCollator, TowerWithHead, run, validation_scores


def test_tower_learns_values_and_places_where_they_are_known():
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    vision_tower = AutoModel.from_config(config)
    network = TowerWithHead(vision_tower, 8 * 4 * 4, values=3, places=2, place_weight=0.5)
    pixels = torch.randn(2, 3, 32, 32)
    labels = torch.tensor([[0.0, 1.0, math.nan], [0.5, math.nan, math.nan]])
    places = torch.tensor([[0.1, math.nan], [math.nan, math.nan]])
    network.eval()
    found = network(pixels, labels, places)
    features = vision_tower(pixels).last_hidden_state.flatten(1)
    logits = network.values(features)
    known = [(0, 0), (0, 1), (1, 0)]
    bce = [torch.nn.functional.binary_cross_entropy_with_logits(logits[cell], labels[cell]) for cell in known]
    error = (network.places(features)[0, 0] - 0.1).abs()
    huber = 0.5 * error**2 if error < 1 else error - 0.5
    torch.testing.assert_close(found["loss"], sum(bce) / 3 + 0.5 * huber)
    without = network(pixels, labels, torch.full_like(places, math.nan))
    torch.testing.assert_close(without["loss"], sum(bce) / 3)


def test_pre_training_batches_swap_sides_and_drop_landmarks_of_flipped_faces(rendered_records):
    _, processor = build_tiny("phrases")
    rows = training_rows([str(rendered_records)], "train", ["feafa"], metadata=["landmarks"])
    batch = [rows[index] for index in range(4)]
    plain = SharesCollator(processor, ["feafa"], 0, training=False)(batch)
    trained = SharesCollator(processor, ["feafa"], 0)(batch)
    np.testing.assert_allclose(plain["labels"], [row["values"][0] for row in batch], atol=1e-6)
    flipped = trained["places"].isnan().all(dim=1)
    assert plain["places"].shape == (4, 256)
    assert not plain["places"].isnan().any()
    swapped = [mirrored_values(row["values"][0], FORMATS["feafa"]) for row in batch]
    for row, is_flipped in enumerate(flipped):
        np.testing.assert_allclose(
            trained["labels"][row], swapped[row] if is_flipped else plain["labels"][row], atol=1e-6
        )


def test_validation_scores_of_the_head_are_those_of_the_shares():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (40, 12)).astype(float)
    logits = np.where(labels == 1, 2.0, -2.0)
    logits[:10] *= -1
    found = validation_scores(["bp4d"], logits, labels)
    expected = np.mean([f1_score(labels[:, k], logits[:, k] > 0) for k in range(12)])
    assert found == {"bp4d_f1": pytest.approx(expected)}


def test_a_pre_trained_base_records_who_its_tower_has_seen(
    rendered_records, more_training_records, tiny_checkpoint, tmp_path
):
    words = ["--base", tiny_checkpoint, "--data", rendered_records, more_training_records, "--out", tmp_path]
    words += ["--formats", "bp4d", "--epochs", 1, "--batch_size", 4, "--image_size", 32]
    assert run(list(map(str, words))) == 0
    manifest = read_training_manifest(str(tmp_path))
    people = {part: people_of(load_records(rendered_records, part=part)) for part in ("train", "validation", "test")}
    assert manifest["people"]["train"] == sorted([*people["train"], *people_of(load_records(more_training_records))])
    assert manifest["people"]["validation"] == people["validation"]
    assert manifest["recipe"]["epochs"] == 1
    assert check_unseen(str(tmp_path), people["test"]) == "checked"
    with pytest.raises(ValueError, match="has seen"):
        check_unseen(str(tmp_path), people["train"])
