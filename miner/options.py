"""Every option of ingest, index and mine, written once.

A class here is the argument of the function that does the work, the flags of the command, the keys
of the section in quarry.toml and the record in the manifest. Nothing heavy is imported: `quarry
--help` reads this file.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

NAME = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"  # of an index, a source, a set: it becomes a folder


# of an option: it changes no byte of the result, so it may be another when a stage is resumed
FREE: dict[str, Any] = {"free": True}


class Options(BaseModel):
    """A frozen set of options; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    def record(self) -> dict[str, Any]:
        """Return the options that decide the result as plain JSON values, as the manifest keeps
        them.
        """
        free = {
            name
            for name, field in type(self).model_fields.items()
            if (field.json_schema_extra or {}) == FREE
        }
        return self.model_dump(mode="json", exclude=free)


def argument(**kwargs: Any) -> Any:
    """Declare an option that the command line takes by place."""
    return Field(**kwargs, json_schema_extra={"argument": True})


def flag(short: str, default: Any, **kwargs: Any) -> Any:
    """Declare an option with a short flag."""
    return Field(default, **kwargs, json_schema_extra={"short": short})


class Ingest(Options):
    """What every ingest takes."""

    min_relevance: int = Field(1, description="qrels with a lower grade are no positives")
    limit: int | None = Field(
        None, ge=1, description="keep only the first N queries, in order of query_id"
    )
    shard_queries: int = Field(2048, ge=1, description="queries in a query shard")
    shard_documents: int = Field(16384, ge=1, description="documents in a document shard")


class Beir(Ingest):
    """BEIR folder: corpus.jsonl[.gz], queries.jsonl[.gz], qrels/SPLIT.tsv."""

    folder: Path = argument(description="the BEIR folder")
    split: str = Field("test", description="which qrels to read: qrels/SPLIT.tsv")


class Pairs(Ingest):
    """Queries with positives in one file: jsonl, csv, tsv, parquet, or hf:NAME through datasets."""

    file: str = argument(description="the file (.gz may follow), or hf:NAME")
    query: str = Field("query", description="column with the query's text")
    positive: str = Field(
        "positive", description="column with the positive's text, or a list of texts"
    )
    query_id: str | None = Field(
        None, description="column with the query's id (default: a hash of the text)"
    )
    positive_id: str | None = Field(
        None,
        description="column with the positive's id, or a list of ids (default: a hash of the text)",
    )
    label: str | None = Field(
        None,
        description=(
            "column with the positive's class label, or a list of labels, one for each positive"
        ),
    )
    corpus: str | None = Field(
        None, description="more documents: a file of the same kinds, or hf:NAME"
    )
    corpus_text: str = Field("text", description="column of the corpus with the text")
    corpus_id: str | None = Field(
        None,
        description=(
            "column of the corpus with the id (default: _id, id or doc_id if there, else a hash)"
        ),
    )
    split: str = Field("train", description="split of hf:NAME")


class Trec(Ingest):
    """TREC corpus, topics, qrels; run files become sources as they are."""

    corpus: Path = Field(
        description="documents: jsonl, tsv (id, text) or TREC <DOC> text; .gz may follow"
    )
    topics: Path = Field(
        description="queries: tsv (id, text), jsonl or TREC <top> text; .gz may follow"
    )
    qrels: Path = Field(description="qrels: four columns, or BEIR's three with a header")
    run_file: tuple[str, ...] = Field(
        (), description="a TREC run that becomes a source: FILE or NAME=FILE; repeat for more"
    )


class Captions(Ingest):
    """Captions: each is a query and its own positive. COCO captions json, or jsonl, csv, tsv,
    parquet with a caption column.
    """

    file: str = argument(description="the file (.gz may follow), or hf:NAME")
    caption: str = Field("caption", description="column with the caption")
    caption_id: str | None = Field(
        None,
        description="column with the caption's id (default: id if there, else a hash of the text)",
    )
    group: str | None = Field(
        None,
        description=(
            "column with the image's id: captions of one image become each other's positives"
        ),
    )
    image: str | None = Field(
        None,
        description=(
            "column with the image's path, for export --format open-clip; of COCO json: file_name"
        ),
    )
    split: str = Field("train", description="split of hf:NAME")


class Stdlib(Ingest):
    """Python's own standard library: first docstring sentence -> source without that docstring."""


class Asking(Options):
    """How a large language model is asked: vLLM in this process, or a server that speaks
    OpenAI's protocol, such as `vllm serve`.
    """

    server: str | None = Field(
        None,
        description="URL such as http://localhost:8000/v1; a key comes from OPENAI_API_KEY alone",
        json_schema_extra=FREE,
    )
    llm_option: tuple[str, ...] = Field(
        (),
        description=(
            "KEY=VALUE for vLLM in this process, such as max_model_len=8192 or"
            " tensor_parallel_size=2; repeat for more"
        ),
    )
    max_words: int = Field(400, ge=1, description="words of a document that the model is shown")
    concurrency: int = Field(
        256, ge=1, description="requests that a server has at once", json_schema_extra=FREE
    )
    timeout: float = Field(
        120.0,
        gt=0,
        description="seconds that a server may take for one answer",
        json_schema_extra=FREE,
    )
    attempts: int = Field(
        5,
        ge=1,
        description="times that a request is sent when a server is busy, fails or drops it",
        json_schema_extra=FREE,
    )
    max_requests: int | None = Field(
        None,
        ge=1,
        description="requests of this call; then it stops, to be resumed",
        json_schema_extra=FREE,
    )
    max_tokens_total: int | None = Field(
        None,
        ge=1,
        description="tokens of this call, prompts and answers; then it stops, to be resumed",
        json_schema_extra=FREE,
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")


class Llm(Asking):
    """A large language model."""

    llm: str | None = Field(
        None,
        description=(
            "hub id or local path of a model for vLLM; with --server, its name there [default"
            " there: the first it serves]"
        ),
    )


class Generator(Llm):
    """How texts are generated and verified."""

    temperature: float = Field(0.8, ge=0, description="of sampling; 0 takes the likeliest token")
    top_p: float = Field(0.95, gt=0, le=1, description="of sampling")
    max_tokens: int = Field(256, ge=1, description="tokens of an answer")
    retries: int = Field(
        2, ge=0, description="times that a text is asked for again when it fails a check"
    )
    checker: str | None = Field(
        None,
        description=(
            "cross-encoder; a text that it scores as high as the query's lowest positive answers"
            " the query and is left out"
        ),
    )
    seed: int = Field(
        0, description="seed of choices and of the model; each depends on it and on ids alone"
    )


class PseudoQueries(Generator, Ingest):
    """A corpus without queries: a language model writes queries that its documents answer."""

    corpus: str = argument(
        description="the documents: jsonl, csv, tsv, parquet (.gz may follow), or hf:NAME"
    )
    corpus_text: str = Field("text", description="column with the text")
    corpus_id: str | None = Field(
        None, description="column with the id (default: _id, id or doc_id if there, else a hash)"
    )
    sample: int | None = Field(
        None, ge=1, description="documents that get queries, drawn by seed [default: all]"
    )
    k: int = flag("-k", 1, ge=1, description="queries per document")
    prompt: str = Field(
        "pseudo-query",
        description="pseudo-query, or a file of your own (.toml) that names document",
    )
    split: str = Field("train", description="split of hf:NAME")


class IndexBm25(Options):
    """BM25 index: which words stand in which document, how often. What a word weighs is decided
    when it is searched.
    """

    name: str = Field("bm25", description="name of the index, for more than one", pattern=NAME)
    token_pattern: str = Field(
        r"(?u)\b\w+\b", description="regular expression of a token; text is lowercased first"
    )
    stop_words: Literal["none", "english"] = Field("none", description="words to leave out")
    stemmer: Literal["none", "english"] = Field("none", description="Snowball stemmer")


class Encoder(Options):
    """A sentence-transformers model and how it encodes. None is the default encoder (`quarry
    doctor` says which).
    """

    encoder: str | None = Field(
        None,
        description=(
            "hub id or local path of a sentence-transformers model [default: all-MiniLM-L6-v2]"
        ),
    )
    query_prompt: str | None = Field(
        None, description="text before each query [default: the model's own]"
    )
    document_prompt: str | None = Field(
        None, description="text before each document [default: the model's own]"
    )
    max_length: int | None = Field(
        None, ge=1, description="tokens that are read of a text [default: the model's own]"
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the hardware has it, else fp32"
    )
    device: str | None = Field(
        None, description="cpu, cuda, cuda:1, mps [default: the best there is]"
    )
    batch_tokens: int | None = Field(
        None, ge=1, description="tokens a batch, padding counted [default: by device]"
    )
    truncate_dim: int | None = Field(
        None, ge=1, description="keep only the first N dimensions (Matryoshka models)"
    )
    backend: Literal["torch", "onnx", "openvino"] = Field(
        "torch", description="what sentence-transformers runs the model with"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")


class IndexDense(Encoder):
    """Dense index: the vectors of all documents and queries."""

    name: str = Field("dense", description="name of the index, for more than one", pattern=NAME)


class MineBm25(Options):
    """BM25 candidates, with the scores of rank-bm25."""

    k: int = flag(
        "-k", 50, ge=1, description="candidates per query; positives that are found come on top"
    )
    name: str = Field("bm25", description="name of the source", pattern=NAME)
    index: str | None = Field(
        None, description="which index [default: the one named as the source]", pattern=NAME
    )
    variant: Literal["okapi", "l", "plus"] = Field(
        "okapi", description="BM25Okapi, BM25L or BM25Plus of rank-bm25"
    )
    k1: float = Field(1.5, ge=0, description="saturation of term frequency")
    b: float = Field(0.75, ge=0, le=1, description="weight of document length")
    epsilon: float = Field(
        0.25, ge=0, description="okapi: floor of a negative idf, as a share of the average idf"
    )
    delta: float | None = Field(
        None, ge=0, description="l, plus: what a word's presence is worth [default: l 0.5, plus 1]"
    )
    engine: Literal["quarry", "rank-bm25"] = Field(
        "quarry", description="rank-bm25: the library itself, slow, as the reference"
    )


class MineDense(Options):
    """Dense candidates: search by inner product, exact unless a factory is named."""

    k: int = flag(
        "-k", 50, ge=1, description="candidates per query; positives that are found come on top"
    )
    name: str = Field("dense", description="name of the source", pattern=NAME)
    index: str | None = Field(
        None, description="which index [default: the one named as the source]", pattern=NAME
    )
    search: Literal["auto", "torch", "faiss", "numpy"] = Field(
        "auto", description="engine; all exact ones give the same answer"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where to search; auto: GPUs if the engine can use them"
    )
    factory: str | None = Field(
        None,
        description="a FAISS index_factory string, such as IVF1024,Flat or HNSW32: approximate",
    )
    parameters: str | None = Field(
        None,
        description="FAISS search parameters for the factory, such as nprobe=32 or efSearch=128",
    )
    group_documents: int = Field(
        2_000_000,
        ge=1,
        description="documents in one FAISS index of a factory; more are cut and merged",
    )
    queries_from_positives: bool = Field(
        False, description="search with each query's positives instead of the query"
    )
    symmetric: bool = Field(
        False, description="search with the query and with its positives; the best score counts"
    )


class Reranker(Options):
    """A sentence-transformers cross-encoder and how it scores a query with a document."""

    reranker: str = Field(
        "cross-encoder/ms-marco-MiniLM-L6-v2",
        description="hub id or local path of a cross-encoder that gives one score for a pair",
    )
    max_length: int | None = Field(
        None,
        ge=8,
        description="tokens that are read of a pair, longer text cut first [default: the model's]",
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the hardware has it, else fp32"
    )
    device: str | None = Field(
        None, description="cpu, cuda, cuda:1, mps [default: the best there is]"
    )
    batch_tokens: int | None = Field(
        None, ge=1, description="tokens a batch, padding counted [default: by device]"
    )
    activation: Literal["auto", "sigmoid", "identity"] = Field(
        "auto", description="what is made of the logit; auto: as the model says"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")


class MineCrossEncoder(Reranker):
    """Cross-encoder candidates: the best of what other sources found."""

    sources: tuple[str, ...] = Field(
        min_length=1,
        description="source whose candidates are scored; repeat for more",
        json_schema_extra={"flag": "--from"},
    )
    k: int = flag(
        "-k", 50, ge=1, description="candidates per query; positives that are found come on top"
    )
    name: str = Field("cross-encoder", description="name of the source", pattern=NAME)


class MineGenerate(Generator):
    """Made negatives, written by an LLM about a query and its positive, and verified."""

    k: int = flag("-k", 1, ge=1, description="negatives per query")
    name: str = Field("generate", description="name of the source", pattern=NAME)
    prompt: str = Field(
        "hard-negative",
        description="hard-negative, violate-one, contradict, or a file of your own (.toml)",
    )


class MineSubstitute(Generator):
    """Made negatives: a positive in which one concrete word is changed, or two phrases change
    places.
    """

    k: int = flag("-k", 1, ge=1, description="negatives per query")
    name: str = Field("substitute", description="name of the source", pattern=NAME)
    rewriter: Literal["lexical", "swap", "llm"] = Field(
        "lexical",
        description=(
            "lexical: another word of the same kind; swap: two phrases change places; llm: an LLM"
            " changes the word"
        ),
    )
    prompt: str = Field(
        "rewrite",
        description=(
            "rewriter llm: rewrite, or a file of your own (.toml) that names text, kind and word"
        ),
    )
    pick: Literal["concrete", "abstract", "uniform"] = Field(
        "concrete", description="which words are changed, by their ratings"
    )
    top: int = Field(
        3, ge=1, description="words of a text that are candidates, the most concrete (or abstract)"
    )
    route: str | None = Field(
        None,
        pattern="^[ARO]+$",
        description=(
            "attributes (A), relations (R), objects (O), as in AR; in/on/two only if named"
            " [default: all]"
        ),
    )
    balance: bool = Field(
        True,
        description=(
            "a word is brought in as often as it is taken out, so that words do not tell negatives"
            " from originals"
        ),
    )
    lexicon: Path | None = Field(
        None,
        description=(
            "parquet, csv or tsv of word, rating [default: Brysbaert's norms of concreteness]"
        ),
    )
    rating_band: float = Field(
        1.0, ge=0, description="largest difference of old and new word's ratings"
    )
    min_similarity: float = Field(
        0.3, description="least cosine of old and new word under the encoder"
    )
    max_similarity: float = Field(
        0.8, description="highest cosine of old and new word: above it they may mean the same"
    )
    encoder: str | None = Field(
        None,
        description=(
            "hub id or local path of the sentence-transformers model that compares words [default:"
            " all-MiniLM-L6-v2]"
        ),
    )
    spacy_model: str = Field(
        "auto",
        description=(
            "an installed spaCy model or a path; auto: en_core_web if installed, else the bundled"
            " en_quarry"
        ),
    )


class MineRandom(Options):
    """Random documents: the source that always exists."""

    k: int = flag("-k", 50, ge=1, description="documents per query, positives never among them")
    seed: int = Field(0, description="seed; a query's documents depend on it and on query_id alone")
