"""The rows of an export in an order of their own: batches without false negatives, batches of one
task, a split into train and dev. It is found from ids alone; texts are fetched afterwards.

Relevant to a query, so that no other row of its batch may hold it: its positives, what the recipe
promoted or left out as a likely positive (RISKS), what judge duplicates drops for it, all by text
in normal form, so that copies count; and its image. Queries of equal text share all this.

Rows are mixed over WINDOW query shards, which are drawn with the seed and lie in memory together.
What fills no batch goes into the next window.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from miner.files import write_array, write_json
from miner.normal import text_hash, text_hashes
from miner.query_shard import QueryShard
from miner.seeds import uniform
from scoring.batching import BatchRows, batches_of, false_negatives
from scoring.export_options import Export
from scoring.export_rows import Job, Maker
from scoring.export_texts import SLICE, one_array
from scoring.reasons import COPIES

WINDOW = 8
ORDER, FACTS = "_order", "_order/facts.json"
TIES = {"same_text", "near_duplicate", "contains_positive", "promote"}  # as good as a positive
RISKS = {*COPIES, "near_positive", "promote", "drop", "max_score"}
RISKS |= {"absolute_margin", "percent_margin", "percentile_margin"}

Pairs = tuple[np.ndarray, np.ndarray]


class Held(NamedTuple):
    """The n rows of a shard of m queries; texts are hashes, queries places in the shard.

    Attributes:
        texts: (row, text) of all that its rows hold.
        asked: the text of each query (m,).
        relevant: (query, text) of what is relevant to it.
        tied: (query, text) of its positives and their copies alone.
        query: of each row (n,). task: of each row (n,).
    """

    texts: Pairs
    asked: np.ndarray
    relevant: Pairs
    tied: Pairs
    query: np.ndarray
    task: np.ndarray


def windows_of(options: Export, shards: int) -> list[np.ndarray]:
    """Return the query shards that are mixed with each other, by number."""
    if not options.batch:
        return [np.array([number]) for number in range(shards)]
    drawn = np.random.default_rng(options.seed).permutation(shards)
    return np.array_split(drawn, -(-shards // WINDOW)) if shards else []


def arranged_keys(options: Export, shards: int) -> list[str]:
    """Return the keys of an arranged export: one for each window, and split."""
    numbers = range(len(windows_of(options, shards)))
    splits = ("train/", "dev/") if options.dev else ("",)
    return [f"{split}{number:05}" for split in splits for number in numbers]


def write_order(job: Job, maker: Maker, folder: Path) -> None:
    """Decide where each row goes: _order/KEY.npy, shard and number of each row of a key (n, 2);
    _order/facts.json, what is left out by key, and how many rows met a false negative.
    """
    options, keys = job.options, job.run.query_shards()
    told = [maker.rows(job, key) for key in keys]
    held = [_held_by(job, key, table) for key, (table, _) in zip(keys, told, strict=True)]
    rows, group = _coded(held)
    sizes = [len(one.query) for one in held]
    shard = np.repeat(np.arange(len(keys)), sizes)
    number = np.concatenate([np.arange(size) for size in sizes])
    task = np.concatenate([one.task for one in held])
    dev = _in_dev(options, group)[rows.query]
    windows = windows_of(options, len(keys))
    trained, tested = (
        [np.flatnonzero(chosen & np.isin(shard, window)) for window in windows]
        for chosen in (~dev, dev)
    )
    orders = _in_batches(options, rows, task, trained) if options.batch else trained
    drops = [_total(told[at][1] for at in window) for window in windows]
    if left := sum(map(len, trained)) - sum(map(len, orders)):
        drops[-1]["no_batch"] = left
    names = arranged_keys(options, len(keys))
    for name, order in zip(names, [*orders, *tested], strict=False):
        write_array(folder / ORDER / f"{name}.npy", np.stack([shard[order], number[order]], axis=1))
    facts: dict[str, Any] = {"drops": dict(zip(names, drops, strict=False))}
    if options.batch:
        facts["in_batch"] = _met(rows, np.concatenate(orders), options.batch, options.seed)
    write_json(folder / FACTS, facts)


def arranged_table(job: Job, maker: Maker, folder: Path, name: str) -> pa.Table:
    """Return the rows of a key, in their order, with texts."""
    where, keys = np.load(folder / ORDER / f"{name}.npy"), job.run.query_shards()
    parts, places = [], [np.empty(0, np.int64)]
    for shard in np.unique(where[:, 0]) if len(where) else [0]:
        at = np.flatnonzero(where[:, 0] == shard)
        rows, _ = maker.rows(job, keys[shard])
        part = maker.texts(job, keys[shard], rows.take(pa.array(where[at, 1])))
        schema = part.schema
        if len(at) == len(where) and (np.diff(where[:, 1]) > 0).all():
            return part
        large = pa.schema([(field.name, _large(field.type)) for field in schema])
        parts.append(part.cast(large))
        places.append(at)
    order = pa.array(np.argsort(np.concatenate(places), kind="stable"))
    del part
    mixed = pa.concat_tables(parts)
    parts.clear()
    # in slices, since an Arrow array of strings holds at most 2 GiB
    slices = (order[start : start + SLICE] for start in range(0, len(order), SLICE))
    return pa.concat_tables(mixed.take(one).cast(schema) for one in slices)


def read_drops(folder: Path, name: str) -> dict[str, int]:
    """Return what is left out and counted with a key."""
    return dict(json.loads((folder / FACTS).read_bytes())["drops"].get(name, {}))


def told_batches(folder: Path, options: Export) -> dict[str, Any]:
    """Return the shares of rows with a false negative in their batch, and a line that says it."""
    met = json.loads((folder / FACTS).read_bytes())["in_batch"]
    line = f"in batches of {options.batch} in this order {met['false_negatives']:.1%} of the rows"
    line += f" meet a false negative, in a random order {met['at_random']:.1%}: do not shuffle"
    return {"in_batch": met, "notes": [line]}


def _held_by(job: Job, key: str, rows: pa.Table) -> Held:
    run, shard = job.run, QueryShard(job.run, key)
    asked = text_hashes(shard.texts)
    place = {query_id: at for at, query_id in enumerate(shard.query_ids)}
    query = np.array([place[one] for one in rows["query_id"].to_pylist()], np.int64)
    texts = [_texts_in(shard, rows)]
    positives = run.read(run.POSITIVES, key, ("query_id", "doc_id"))
    tied, relevant = [_pairs(shard, positives)], [_pairs(shard, positives)]
    for folder in _likely(job):
        table = run.read(folder, key).select(["query_id", "doc_id", "reason"])
        reason = pc.list_element(pc.split_pattern(table["reason"].cast(pa.string()), ":"), 0)
        for found, reasons in ((tied, TIES), (relevant, RISKS)):
            kept = pc.is_in(reason, pa.array(sorted(reasons)))
            found.append(_pairs(shard, table.filter(kept)))
    if "filepath" in rows.column_names:
        image = np.array([text_hash(f"image {one}") for one in rows["filepath"].to_pylist()])
        every = np.arange(len(rows))
        texts += [(every, image), (every, asked[query])]
        relevant.append((query, image))
        tied.append((query, image))
    task = rows["task"].to_pylist() if "task" in rows.column_names else [""] * len(rows)
    tasks = np.array([one or "" for one in task], object)
    return Held(_joined(texts), asked, _joined(relevant), _joined(tied), query, tasks)


def _likely(job: Job) -> list[str]:
    """Return the folders that say what else is likely a positive, with a reason."""
    duplicates = f"{job.run.JUDGES}/duplicates"
    found = [duplicates] if job.run.find(duplicates) else []
    return [*found, f"{job.run.SETS}/{job.options.name}/_rejected"]


def _texts_in(shard: QueryShard, rows: pa.Table) -> Pairs:
    parts: list[Pairs] = []
    for name in ("positive_id", "negative_id", "negative_ids", "doc_id", "doc_ids"):
        if name not in rows.column_names:
            continue
        ids = one_array(rows[name])
        at = np.arange(len(rows))
        if pa.types.is_list(ids.type):
            at = pc.list_parent_indices(ids).to_numpy()
            ids = ids.flatten()
        parts.append((at, _hashes(shard, ids)))
    return _joined(parts)


def _hashes(shard: QueryShard, ids: pa.Array) -> np.ndarray:
    coded = ids if pa.types.is_dictionary(ids.type) else ids.dictionary_encode()
    rows = shard.documents.rows(coded.dictionary.to_pylist())
    return shard.documents.text_hashes(rows)[coded.indices.to_numpy()]


def _pairs(shard: QueryShard, table: pa.Table) -> Pairs:
    query, row = shard.places(table)
    return query[row >= 0], shard.documents.text_hashes(row[row >= 0])


def _joined(pairs: list[Pairs]) -> Pairs:
    left, right = zip(*pairs, strict=True)
    return np.concatenate(left).astype(np.int64), np.concatenate(right).astype(np.uint64)


def _coded(held: list[Held]) -> tuple[BatchRows, np.ndarray]:
    """Number rows, queries and texts over all shards; return the group of each query as well:
    queries that positives or their copies tie to each other are one.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    asked, code = np.unique(np.concatenate([one.asked for one in held]), return_inverse=True)
    starts = np.cumsum([0, *(len(one.asked) for one in held)])[:-1]
    before = np.cumsum([0, *(len(one.query) for one in held)])[:-1]
    queries = [code[start + one.query] for start, one in zip(starts, held, strict=True)]
    sides = {
        name: _joined(
            [
                (code[s + getattr(one, name)[0]], getattr(one, name)[1])
                for s, one in zip(starts, held, strict=True)
            ]
        )
        for name in ("relevant", "tied")
    }
    mine = _joined([(b + one.texts[0], one.texts[1]) for b, one in zip(before, held, strict=True)])
    every = np.concatenate([mine[1], sides["relevant"][1], sides["tied"][1]])
    distinct, text = np.unique(every, return_inverse=True)
    own, relevant, tied = np.split(text, np.cumsum([len(mine[1]), len(sides["relevant"][1])]))
    size = len(asked)
    edges = (np.ones(len(tied), bool), (sides["tied"][0], size + tied))
    graph = coo_matrix(edges, shape=(size + len(distinct),) * 2)
    group = connected_components(graph, directed=False)[1][:size]
    rows = BatchRows(
        np.concatenate(queries),
        *_lists(mine[0], own, sum(len(one.query) for one in held)),
        *_lists(sides["relevant"][0], relevant, size),
    )
    return rows, group


def _lists(owner: np.ndarray, text: np.ndarray, count: int) -> Pairs:
    """Return what each of `count` owners has, once each, as ends (count + 1,) and texts."""
    pairs = np.unique(np.stack([owner, text], axis=1), axis=0)
    ends = np.searchsorted(pairs[:, 0], np.arange(count + 1))
    return ends.astype(np.int64), np.ascontiguousarray(pairs[:, 1])


def _in_dev(options: Export, group: np.ndarray) -> np.ndarray:
    """Draw groups for dev until it has its share of the m queries (m,); one that is too large for
    what is left of it stays in train.
    """
    sizes = np.bincount(group).tolist()
    left, chosen = round((options.dev or 0) * len(group)), np.zeros(len(sizes), bool)
    draw = [uniform(options.seed, "dev", str(one)) for one in range(len(sizes))]
    for one in np.argsort(draw, kind="stable").tolist():
        if sizes[one] <= left:
            chosen[one], left = True, left - sizes[one]
    return chosen[group]


def _in_batches(
    options: Export, rows: BatchRows, task: np.ndarray, windows: list[np.ndarray]
) -> list[np.ndarray]:
    """Put the rows of each window in batches; those that fill none go into the next, and after the
    last into one that is not full, if that may be.
    """
    orders, carried = [], np.empty(0, np.int64)
    for here in windows:
        order, carried = _batched(options, rows, task, np.concatenate([carried, here]))
        orders.append(order)
    if orders and not options.task_labels:
        room = np.array([min(int(options.batch or 0) - 1, len(carried))])
        last = batches_of(rows, carried, room, options.seed) == 0
        orders[-1] = np.concatenate([orders[-1], carried[last]])
    return orders


def _batched(options: Export, rows: BatchRows, task: np.ndarray, here: np.ndarray) -> Pairs:
    """Return rows in full batches, mixed, and those that are left."""
    size, batch, first = int(options.batch or 0), np.full(len(here), -1), 0
    for name in np.unique(task[here]):
        mine = np.flatnonzero(task[here] == name)
        count = len(mine) // size
        while count:
            room = np.full(count, size)
            found = batches_of(rows, here[mine], room, options.seed)
            holes = count * size - int(np.count_nonzero(found >= 0))
            if not holes:
                batch[mine[found >= 0]] = found[found >= 0] + first
                break
            count -= -(-holes // size)
        first += count
    draw = np.random.default_rng(options.seed)
    turn = np.append(draw.permutation(first), first)[batch]  # the last: none
    order = np.lexsort((draw.random(len(here)), turn))
    kept = np.count_nonzero(batch >= 0)
    return here[order[:kept]], here[order[kept:]]


def _met(rows: BatchRows, order: np.ndarray, size: int, seed: int) -> dict[str, Any]:
    """Return which share of rows has a false negative in its batch, here and in a random order."""
    chance = np.random.default_rng(seed).permutation(order)
    shares = [
        false_negatives(rows, one, size).mean() if len(one) else 0.0 for one in (order, chance)
    ]
    return {"false_negatives": round(float(shares[0]), 4), "at_random": round(float(shares[1]), 4)}


def _total(parts: Any) -> Counter[str]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return total


def _large(kind: pa.DataType) -> pa.DataType:
    """Return a type whose texts may be more than 2 GiB."""
    if pa.types.is_string(kind):
        return pa.large_string()
    if pa.types.is_list(kind):
        return pa.list_(_large(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _large(field.type)) for field in kind])
    return kind
