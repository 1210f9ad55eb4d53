"""The compiled loops of exact search, by vectors and by postings: scores rule documents out, and
each query keeps its best in a heap.

A heap is a line of keys with the worst document first, EMPTY where there is none yet. Kernels that
call each other stand in this one file: numba's cache does not see a change in another.
"""

import numba
import numpy as np

EMPTY = np.iinfo(np.int64).min  # the key of no document
BLOCK = 64  # scores that are looked at together
HALF_BIT = 2.0**-8  # by which share of itself a number may move when it is rounded to bfloat16


@numba.njit(cache=True, nogil=True)
def pair_dots(left, left_rows, right, right_rows, out):  # type: ignore[no-untyped-def] # compiled
    """Write inner products of pairs of rows; see `topk.dots`."""
    query, room = np.empty(left.shape[1], np.float64), np.empty(left.shape[1] // 4, np.float64)
    at = -1
    for pair in range(len(left_rows)):
        if right_rows[pair] < 0:
            out[pair] = -np.inf
            continue
        if left_rows[pair] != at:
            at = left_rows[pair]
            query[:] = left[at]
        out[pair] = _dot(query, right, right_rows[pair], room)


@numba.njit(cache=True, nogil=True)
def _dot(query, vectors, row, room):  # type: ignore[no-untyped-def] # compiled
    """Return the inner product of `query` (d,) float64 and one row of `vectors` (m, d) float32, as
    float32.

    Products of float32 values are exact in float64. They are added in an order that depends on d
    alone: four quarters side by side into `room` (d // 4,), which is then folded upon itself.
    Unsigned indices, and no slices: so the compiler makes vector instructions of it.
    """
    row, width = np.uintp(row), np.uintp(vectors.shape[1])
    quarter = width // np.uintp(4)
    half, rest = quarter + quarter, quarter + quarter + quarter
    for i in range(quarter):
        room[i] = (query[i] * vectors[row, i] + query[quarter + i] * vectors[row, quarter + i]) + (
            query[half + i] * vectors[row, half + i] + query[rest + i] * vectors[row, rest + i]
        )
    size = quarter
    while size > np.uintp(6):
        half = size // np.uintp(2)
        size -= half
        for i in range(half):
            room[i] += room[size + i]
    total = 0.0
    for i in range(size):
        total += room[i]
    for i in range(rest + quarter, width):
        total += query[i] * vectors[row, i]
    return np.float32(total) + np.float32(0)  # of the two zeros, the positive one


@numba.njit(cache=True, nogil=True)
def key_of(score, row):  # type: ignore[no-untyped-def] # compiled
    """Return a document's key, int64: its float32 score above and its row (less is better)
    below, so that one comparison decides.
    """
    bits = np.int64(np.float32(score).view(np.int32))
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) | (0xFFFFFFFF - row)


@numba.njit(cache=True, nogil=True)
def worst(heap):  # type: ignore[no-untyped-def] # compiled
    """Return the score of a heap's worst document, -inf while there is room."""
    if heap[0] == EMPTY:
        return np.float32(-np.inf)
    bits = heap[0] >> 32
    return np.int32(bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)


@numba.njit(cache=True, nogil=True)
def replace_worst(heap, key):  # type: ignore[no-untyped-def] # compiled
    """Let a key, which must be better than the worst, take its place: it sinks from the root."""
    place, child = 0, 1
    while child < len(heap):
        if child + 1 < len(heap):
            child += heap[child + 1] < heap[child]
        if heap[child] >= key:
            break
        heap[place] = heap[child]
        place, child = child, 2 * child + 1
    heap[place] = key


@numba.njit(cache=True, nogil=True)
def _still_in(heap, error, scores):  # type: ignore[no-untyped-def] # compiled
    """Return base and span, of the kind of `scores`: only documents whose scores' bits lie in
    [base, base + span] may be among the best.

    Read as unsigned integers, positive scores go upwards from 0, negative ones (the sign bit set)
    upwards as they get lower. So the scores above a limit are one interval, and one subtraction and
    comparison tells.
    """
    kind, shift = scores.dtype.type, 32 - 8 * scores.itemsize
    half = 0x7FFFFFFF >> shift
    limit = worst(heap) - error
    if not limit > -np.inf:
        return kind(0), kind(2 * half + 1)
    if shift == 16:
        limit -= abs(limit) * HALF_BIT
    bits = (np.int64(np.float32(limit).view(np.int32)) & 0xFFFFFFFF) >> shift
    return (kind(bits), kind(half - bits)) if bits <= half else (kind(0), kind(bits))


@numba.njit(cache=True, nogil=True)
def offer_tile(scores, error, queries, keys, block, first):  # type: ignore[no-untyped-def] # compiled
    """Offer a block of documents to the heaps of some queries; see `topk.Top`. Returns whether all
    scores were as near to the exact ones as they are said to be.
    """
    kind, shift = scores.dtype.type, 32 - 8 * scores.itemsize
    query, room, sound = (
        np.empty(block.shape[1], np.float64),
        np.empty(block.shape[1] // 4, np.float64),
        True,
    )
    for line in range(len(queries)):
        heap, row, allowed = keys[line], scores[line], error[line]
        query[:] = queries[line]
        base, span = _still_in(heap, allowed, row)
        for start in range(0, len(row), BLOCK):
            part, hit = row[start : start + BLOCK], False
            for place in range(len(part)):
                hit |= kind(part[place] - base) <= span
            if not hit:
                continue
            for place in range(len(part)):
                if kind(part[place] - base) > span:
                    continue
                score, about = (
                    _dot(query, block, start + place, room),
                    np.int32(np.int64(part[place]) << shift).view(np.float32),
                )
                sound &= not abs(score - about) > allowed + abs(score) * (
                    HALF_BIT if shift == 16 else 0.0
                )
                key = key_of(score, first + start + place)
                if key > heap[0]:
                    replace_worst(heap, key)
                    base, span = _still_in(heap, allowed, row)
    return sound


@numba.njit(cache=True, nogil=True)
def offer_some(starts, places, scores, error, queries, keys, block, first):  # type: ignore[no-untyped-def] # compiled
    """Offer some documents to the heaps of queries; returns what `offer_tile` does."""
    query, room, sound = (
        np.empty(block.shape[1], np.float64),
        np.empty(block.shape[1] // 4, np.float64),
        True,
    )
    for line in range(len(queries)):
        heap = keys[line]
        query[:] = queries[line]
        for entry in range(starts[line], starts[line + 1]):
            place = places[entry]
            if place < 0 or scores[entry] < worst(heap) - error[line]:
                continue
            score = _dot(query, block, place, room)
            sound &= not abs(score - scores[entry]) > error[line]
            key = key_of(score, first + place)
            if key > heap[0]:
                replace_worst(heap, key)
    return sound


@numba.njit(cache=True, nogil=True)
def search_postings(query_starts, ids, columns, first, base, keys):  # type: ignore[no-untyped-def] # compiled
    """Sum the columns of each query's tokens in one shard; let what beats the worst of its best so
    far into its heap.

    Args:
        query_starts: (n + 1,), ids: the tokens of n queries. columns: `Columns`. first: the shard's
            first row.
        base: (n,), what each query gives to every document.
        keys: (n, depth) int64, the heaps, which this changes.
    """
    sums = np.zeros(columns[-1].shape[1], np.float64)
    for query in range(len(query_starts) - 1):
        terms = ids[query_starts[query] : query_starts[query + 1]]
        if len(terms):
            _add_columns(terms, columns, sums)
            _keep_best(sums, first, base[query], keys[query])


@numba.njit(cache=True, nogil=True)
def _add_columns(terms, columns, sums):  # type: ignore[no-untyped-def] # compiled
    starts, rows, weights, column, dense = columns
    for term in terms:
        if column[term] >= 0:
            line = dense[column[term]]
            for row in range(len(sums)):
                sums[row] += line[row]
        else:
            for entry in range(starts[term], starts[term + 1]):
                sums[rows[entry]] += weights[entry]


@numba.njit(cache=True, nogil=True)
def _keep_best(sums, first, base, heap):  # type: ignore[no-untyped-def] # compiled
    """Let the rows whose sums beat the worst in a heap into it, and set the sums to zero."""
    limit = _certain(sums, len(heap)) if heap[0] == EMPTY else _limit(heap, base)
    for block in range(0, len(sums), BLOCK):
        part = sums[block : block + BLOCK]
        above = 0
        for place in range(len(part)):
            above += part[place] > limit
        if above:
            for place in range(len(part)):
                if part[place] > limit:
                    key = key_of(part[place] + base, first + block + place)
                    if key > heap[0]:
                        replace_worst(heap, key)
                        limit = max(limit, _limit(heap, base))
        part[:] = 0.0


@numba.njit(cache=True, nogil=True)
def _certain(sums, depth):  # type: ignore[no-untyped-def] # compiled
    """Return what at least `depth` sums exceed, 0 if that is not known: as many blocks have a
    largest sum above it.
    """
    blocks = len(sums) // BLOCK
    if blocks < depth:
        return 0.0
    largest = np.zeros(blocks)
    for block in range(blocks):
        for place in range(block * BLOCK, (block + 1) * BLOCK):
            largest[block] = max(largest[block], sums[place])
    return np.partition(largest, blocks - depth)[blocks - depth] * (1 - 1e-6)


@numba.njit(cache=True, nogil=True)
def _limit(heap, base):  # type: ignore[no-untyped-def] # compiled
    """Return what a sum must at least exceed to get into the heap; a little less, so that no
    rounding leaves anything out.
    """
    return max(0.0, worst(heap) * (1 - 1e-6) - base)  # 0 while there is room: the worst is -inf
