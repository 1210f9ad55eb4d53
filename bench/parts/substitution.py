"""mine substitute on 25,014 COCO captions: how many get a negative, how fast, and whether words
alone, or vectors, tell negatives apart.

Arms are sources of one run: balanced (the default), unbalanced, abstract and uniform words. Beside
them a plain baseline: two words of each caption, drawn at random, change places.
"""

import json
import re
import subprocess
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sides import run_side, seconds_of, target

DATA = Path(__file__).parents[3] / "shared" / "data"
CAPTIONS = DATA / "coco-captions" / "captions_val2017.json"
RELATIONS = DATA / "open-english-wordnet" / "oewn-yaml.tar.gz"
ARMS: dict[str, dict[str, Any]] = {
    "balanced": {},
    "unbalanced": {"balance": False},
    "abstract": {"pick": "abstract"},
    "uniform": {"pick": "uniform"},
    "swap": {"rewriter": "swap"},
}
VECTORS = 5000  # pairs whose texts are encoded
RESAMPLES = 1000


def measure(ceilings: dict[str, float], queries: int | None = None) -> dict[str, Any]:
    """Make all arms, then weigh them."""
    with TemporaryDirectory() as folder:
        captions = run_side(ingest_captions, folder=folder, limit=queries)["queries"]
        made = {name: run_side(substitute, folder=folder, arm=name, workers=2) for name in ARMS}
        again = run_side(substitute, folder=folder, arm="balanced", workers=1)
        arms = {name: run_side(weigh, folder=folder, arm=name) for name in ARMS}
        arms["random swap of two words"] = run_side(random_swap, folder=folder)
        checked = check_relations(folder)
    compared = difference(arms["balanced"], arms["abstract"])
    for found in arms.values():
        found["cosine"] = round(float(np.mean(found.pop("cosines"))), 4)
    balanced = made["balanced"]
    return {
        "what": (
            f"{captions:,} captions, one negative each, two workers; probe: TF-IDF 1-2-grams,"
            " logistic regression, 5 folds, by image or, of exchanges, by the two words"
        ),
        "speed": {"two workers": balanced, "one worker": again},
        "arms": {name: made.get(name, {}) | found for name, found in arms.items()},
        "cosine, concrete less abstract": compared,
        "relations": checked,
        "targets": [
            target(
                "share of captions with a negative", balanced["negatives"] / captions, at_least=0.97
            ),
            target("captions a second, two workers", captions / balanced["seconds"], at_least=500),
            target(
                "same documents with one worker, 1 is yes",
                float(balanced["bytes"] == again["bytes"]),
                at_least=1,
            ),
            target("replacements tied by WordNet", checked["offences"], at_most=0),
            target(
                "replacements that stand in a sibling caption",
                arms["balanced"]["in_siblings"],
                at_most=0,
            ),
            target("probe, balanced", arms["balanced"]["probe"]["accuracy"], at_most=0.57),
        ],
    }


def difference(concrete: dict[str, Any], abstract: dict[str, Any]) -> dict[str, Any]:
    """Return by how much one arm's cosine to the original lies below the other's, with the
    interval of the difference.
    """
    rng = np.random.default_rng(0)
    one, two = (np.array(arm["cosines"]) for arm in (concrete, abstract))
    drawn = [
        one[rng.integers(len(one), size=len(one))].mean()
        - two[rng.integers(len(two), size=len(two))].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {
        "cosine": round(float(one.mean() - two.mean()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


def _name(arm: str) -> str:
    return re.sub(r"\W+", "-", arm)


def ingest_captions(folder: str, limit: int | None) -> dict[str, Any]:
    """Read the captions; those of one image are each other's positives."""
    from miner.engine import How
    from miner.ingest.ingest import ingest
    from miner.ingest.pairs import IngestCaptions
    from miner.store import Run

    options = IngestCaptions(file=str(CAPTIONS), group="image_id", limit=limit)
    return {"queries": ingest(Run(Path(folder)), options, How())[0].facts["queries"]}


def substitute(folder: str, arm: str, workers: int) -> dict[str, Any]:
    """Make one arm, and hash what was made."""
    import hashlib

    from miner.engine import How
    from miner.store import Run
    from miner.words.substitute import mine_substitute
    from miner.words.vocabulary import MineSubstitute

    run, options = Run(Path(folder)), MineSubstitute(name=_name(arm), **ARMS[arm])
    seconds = seconds_of(partial(mine_substitute, run, options, How(force=True, workers=workers)))
    manifest = run.need(f"3_candidates/{options.name}", "mine substitute")
    found = run.find(f"2_index/{options.name}")
    digest = hashlib.blake2b(digest_size=8)
    for key in run.query_shards():
        for part in ("", "/_documents"):
            digest.update(
                json.dumps(run.read(f"3_candidates/{options.name}{part}", key).to_pylist()).encode()
            )
    return {
        "seconds": round(seconds, 1),
        "negatives": manifest.rows["candidates"],
        "bytes": digest.hexdigest(),
        "exchanged": found.facts["exchanged"] if found else 0,
    }


def _pairs(
    folder: str, arm: str
) -> tuple[list[str], list[str], list[str], list[dict[str, Any]], list[set[str]]]:
    """Return originals, negatives, groups, details and the words of all captions of the image."""
    from miner.corpus import Documents
    from miner.store import Run

    run, out = Run(Path(folder)), ([], [], [], [], [])
    for key in run.query_shards():
        documents, found = Documents(run, key), run.read(f"3_candidates/{_name(arm)}", key)
        details = dict(
            zip(
                documents.made["doc_id"].to_pylist(),
                documents.made["detail"].to_pylist(),
                strict=True,
            )
        )
        siblings = defaultdict(list)
        for row in run.read("1_tables/positives", key).to_pylist():
            siblings[row["query_id"]].append(row["doc_id"])
        texts = {
            doc_id: text
            for group in siblings.values()
            for doc_id, text in zip(group, documents.texts(documents.rows(group)), strict=True)
        }
        for row in found.to_pylist():
            group = siblings[row["query_id"]]
            out[0].append(texts[row["parent_id"]])
            out[2].append(min(group))
            out[3].append(details[row["doc_id"]])
            out[4].append(
                {word for doc_id in group for word in re.findall(r"\w+", texts[doc_id].lower())}
            )
        out[1].extend(documents.texts(documents.rows(found["doc_id"].to_pylist())))
    return out


def weigh(folder: str, arm: str) -> dict[str, Any]:
    """Probe an arm by words and by vectors; count what was brought in that a caption of the
    image has; cosines to the originals.
    """
    originals, negatives, groups, details, siblings = _pairs(folder, arm)
    brought = [set(re.findall(r"\w+", detail["new"].lower())) for detail in details]
    inside = (
        sum(new <= words for new, words in zip(brought, siblings, strict=True))
        if arm != "swap"
        else 0
    )
    from scoring.probe import closed_groups

    closed = closed_groups([(one["old_lemma"], one["new_lemma"]) for one in details])
    folds = "exchange" if closed else "image"
    return {"in_siblings": inside, "folds": folds, **probes(originals, negatives, closed or groups)}


def random_swap(folder: str) -> dict[str, Any]:
    """Let two random words of each caption change places."""
    rng, made = np.random.default_rng(0), []
    originals, _, groups, _, _ = _pairs(folder, "balanced")
    for text in originals:
        words = text.split()
        one, two = rng.choice(len(words), 2, replace=False) if len(words) > 1 else (0, 0)
        words[one], words[two] = words[two], words[one]
        made.append(" ".join(words))
    return probes(originals, made, groups)


def probes(originals: list[str], negatives: list[str], groups: list[str]) -> dict[str, Any]:
    """Probe by words (all pairs) and by all-MiniLM-L6-v2 (a part of them)."""
    from miner.models.encoder import load_encoder
    from miner.models.hub import Encoder
    from scoring.probe import artefact_probe

    words = artefact_probe(originals, negatives, np.array(groups))
    part = np.sort(np.random.default_rng(0).permutation(len(originals))[:VECTORS]).tolist()
    encode = load_encoder(Encoder(max_length=64))
    vectors = (
        encode([originals[place] for place in part], "document"),
        encode([negatives[place] for place in part], "document"),
    )
    dense = artefact_probe([""] * len(part), [""] * len(part), np.array(groups)[part], vectors)
    kept = ("accuracy", "low", "high", "auc", "pairs")
    return {
        "probe": (
            {name: round(getattr(words, name), 4) for name in kept} | {"telling": words.telling}
        ),
        "probe by vectors": {name: round(getattr(dense, name), 4) for name in kept},
        "cosines": np.round((vectors[0] * vectors[1]).sum(axis=1), 4).tolist(),
    }


def check_relations(folder: str) -> dict[str, Any]:
    """Let the plain script count what WordNet ties."""
    script = Path(__file__).parents[1] / "check_substitutions.py"
    made = Path(folder) / "3_candidates" / "balanced" / "_documents"
    said = subprocess.run(
        [sys.executable, script, RELATIONS, made], capture_output=True, text=True, check=False
    )
    if said.returncode not in (0, 1):
        raise RuntimeError(said.stderr[-2000:] or said.stdout[-2000:])
    return {"offences": 0 if said.returncode == 0 else 1, "said": said.stdout.splitlines()[:12]}
