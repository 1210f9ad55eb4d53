"""candidates, positives + images -> judgments: how well a caption fits the query's image (after
ClassDiffusion's BLIP2-T, in spirit: image and text by a model that has seen both).

A caption that is made of another by changing a word should fit its image less: the rows of judge
"image" hold cos(image, text) of every pair, those of "image.margin" cos(image, the query's best
positive) less that. A negative whose margin is not above 0 may well be true of the image.
"""

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from miner.engine import How
from miner.errors import UserError
from miner.models.encoder import encoder_fingerprint
from miner.models.hub import Encoder
from miner.models.images import DEFAULT, ImageText
from miner.options import Options, option
from miner.search.topk import dots
from miner.store import Manifest, Run
from scoring.judge.judging import Asked, Judged, Judging, judgments


class JudgeImage(Options):
    """How well a caption fits the image of its query, by an image-text model."""

    model: str = option(DEFAULT, "hub id or local path of an image-text model, such as a CLIP")
    image_folder: Path = option(Path(), "folder that the images' paths begin in")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "auto: bf16 where the hardware has it, else fp32"
    )
    device: str | None = option(None, "cpu, cuda, cuda:1, mps [default: the best there is]")


def judge_image(run: Run, options: JudgeImage, how: How) -> Manifest:
    """Judge all pairs whose query has an image: candidates, positives, images + image-text model ->
    4_judgments/image.

    Raises:
        UserError: there are no tables, no images, or no such model.
    """
    if not run.tables().rows.get("images"):
        raise UserError(
            f"{run.path} has no images, which judge image compares; ingest captions with --image"
            " COLUMN, in a new run folder"
        )
    encoder = Encoder(encoder=options.model, dtype=options.dtype, device=options.device)
    return Judging(run, "image").carry_out(
        options,
        how,
        lambda: partial(_compare_images, options, encoder),
        model=encoder_fingerprint(encoder),
        facts=lambda: {"model": options.model},
    )


def _compare_images(options: JudgeImage, encoder: Encoder, asked: Asked) -> Judged:
    shard, pairs = asked.shard, asked.pairs
    if not len(pairs):
        return [judgments(pairs, "image", np.zeros(0))], {}
    model = ImageText(encoder)
    paths = dict(zip(*shard.run.read(Run.IMAGES, shard.key).to_pydict().values(), strict=True))
    names = [paths.get(query_id) for query_id in shard.query_ids]
    known = sorted({name for name in names if name is not None})
    vectors, read = model.images([options.image_folder / name for name in known])
    place = {name: at for at, name in enumerate(known) if read[at]}
    image = np.array([place.get(name, -1) if name else -1 for name in names], np.int64)
    rows, text = np.unique(np.concatenate((pairs.row, shard.positives[1])), return_inverse=True)
    texts = model.texts(shard.documents.texts(rows))
    owner = np.concatenate((pairs.query, shard.positives[0]))
    fits = dots(texts, text, vectors, image[owner]).astype(np.float64)
    fits[image[owner] < 0] = np.nan
    fit, positive = np.split(fits, [len(pairs)])
    best = np.full(len(shard.query_ids), -np.inf)
    np.fmax.at(best, shard.positives[0], positive)
    unread = np.isnan(fit)
    reason = pa.array(np.full(len(pairs), "no_image"), mask=~unread)
    drops = {"no_image": int(unread.sum())} if unread.any() else {}
    others = pairs.take(~pairs.positive)
    margin = best[others.query] - fit[~pairs.positive]
    margin[~np.isfinite(margin)] = np.nan
    said = judgments(pairs, "image", fit, reason=reason)
    return [said, judgments(others, "image.margin", margin)], drops
