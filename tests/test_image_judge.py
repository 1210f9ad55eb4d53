"""Captions against images: a tiny CLIP with random weights, and images of single colours."""

import json

import numpy as np
import pytest

from miner.engine import How
from miner.errors import UserError
from miner.ingest.ingest import ingest
from miner.ingest.pairs import IngestCaptions
from miner.models.hub import Encoder
from miner.models.images import ImageText
from miner.search.random_documents import MineRandom, mine_random
from miner.store import Run
from scoring.judge.image import JudgeImage, judge_image
from scoring.recipe import Select
from scoring.select import select

HOW = How()
COLOURS = ["red", "green", "blue", "yellow", "black"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 4, "projection_dim": 32}
    letters = [chr(code) for code in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{one}</w>" for one in letters)]
    text = size | {"vocab_size": len(words), "eos_token_id": 1, "bos_token_id": 0}
    image = size | {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=image, projection_dim=32)
    CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: at for at, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    side = {"height": 32, "width": 32}
    CLIPProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side),
        CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")),
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(tmp_path):
    from PIL import Image

    lines = []
    for number, colour in enumerate(COLOURS):
        name = f"{colour}.png"
        if colour == "black":
            (tmp_path / name).write_text("no image at all")
        elif colour != "yellow":  # which is missing
            Image.new("RGB", (40 + number, 40), colour).save(tmp_path / name)
        lines.append({"caption": f"a {colour} wall", "id": f"q{number}", "image": name})
    file = tmp_path / "captions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    run = Run(tmp_path / "run")
    ingest(run, IngestCaptions(file=str(file), caption_id="id", image="image"), HOW)
    mine_random(run, MineRandom(k=3), HOW)
    return run


def test_scores_are_the_cosines_of_image_and_text(run, clip, tmp_path):
    options = JudgeImage(model=clip, image_folder=tmp_path, dtype="fp32")
    made = judge_image(run, options, HOW)
    rows = run.read("4_judgments/image", "00000").to_pylist()
    model = ImageText(Encoder(encoder=clip, dtype="fp32"))
    texts = model.texts([f"a {colour} wall" for colour in COLOURS])
    images, read = model.images([tmp_path / f"{colour}.png" for colour in COLOURS])
    assert read.tolist() == [True, True, True, False, False]
    cosine = images @ texts.T
    without = 0
    for row in rows:
        query, document = int(row["query_id"][1]), int(row["doc_id"][1])
        fit = cosine[query, document] if read[query] else None
        if row["judge"] == "image.margin":
            assert row["doc_id"] != row["query_id"]
            fit = None if fit is None else cosine[query, query] - fit
        else:
            without += fit is None
            assert row["reason"] == ("no_image" if fit is None else None)
        assert row["score"] == (None if fit is None else pytest.approx(fit, abs=1e-5))
    assert made.drops == {"no_image": without} and without == 8
    assert np.ptp([row["score"] for row in rows if row["score"] is not None]) > 0.01


def test_a_recipe_reads_the_margin(run, clip, tmp_path):
    judge_image(run, JudgeImage(model=clip, image_folder=tmp_path, dtype="fp32"), HOW)
    recipe = {"sources": ("random",), "min_score": {"image.margin": 0.0}}
    select(run, Select(name="false", **recipe), HOW)
    table = run.read("4_judgments/image", "00000").to_pylist()
    margin = {
        (row["query_id"], row["doc_id"]): row["score"]
        for row in table
        if row["judge"] == "image.margin"
    }
    kept = run.read("5_sets/false", "00000").to_pylist()
    assert kept and all(margin[row["query_id"], row["doc_id"]] >= 0 for row in kept)
    assert len(kept) == sum(score is not None and score >= 0 for score in margin.values())


def test_a_run_without_images_is_refused(tmp_path, clip):
    file = tmp_path / "captions.jsonl"
    file.write_text('{"caption": "a wall"}\n')
    run = Run(tmp_path / "run")
    ingest(run, IngestCaptions(file=str(file)), HOW)
    with pytest.raises(UserError, match="has no images"):
        judge_image(run, JudgeImage(model=clip), HOW)
