"""The settings of each command: `config_template` and `cli/flags.json` are made of the docstrings here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli
from pydantic import BeforeValidator, Field, field_validator
from pydantic.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr

from furnclip.config.paths import DataPaths, Section, StorageConfig

Fraction = Annotated[float, Field(ge=0, le=1)]
_VOCABULARY = {
    name: tuple(words)
    for name, words in tomli.loads(
        Path(__file__).with_name("vocabulary.toml").read_text(encoding="utf-8")
    ).items()
}


class ModelConfig(Section):
    """The base model."""

    name: str = "openai/clip-vit-base-patch32"
    """base model: hub id, folder or `furnclip-tiny`; MODEL_NAME in the environment works too"""
    revision: str = "main"
    """branch, tag or commit on the hub; ignored for folders"""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """precision of the towers: `fp32`, `bf16` or `auto`, which measures which is faster here"""


def _hosts(value: object) -> object:
    """A text from the environment as a list, unless it says yes or no."""
    is_list = isinstance(value, str) and value.lower() not in ("true", "false", "1", "0", "yes", "no")
    return re.findall(r"[^\s,]+", str(value)) if is_list else value


class FetchConfig(Section):
    """Fetching images that the catalogue names by web address."""

    concurrency: Annotated[int, Field(ge=1, le=1024)] = 64
    """maximum concurrent requests"""
    per_host: Annotated[int, Field(ge=1, le=1024)] = 16
    """maximum concurrent requests to one server name"""
    attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """maximum attempts for an image in one run; failed ones are tried again by the next run"""
    connect_timeout_s: PositiveFloat = 10.0
    """seconds for a connection, name and certificate included"""
    read_timeout_s: PositiveFloat = 15.0
    """seconds without data after which an attempt ends"""
    total_timeout_s: PositiveFloat = 120.0
    """seconds for one attempt, redirects and all data included"""
    max_mb: Annotated[float, Field(gt=0, le=100)] = 20
    """maximum size of an image, in MB; `concurrency` of them may be in memory at once"""
    allow_private: Annotated[bool | tuple[str, ...], BeforeValidator(_hosts)] = False
    """fetch from servers inside your own network: true, or a list of their names, addresses or networks"""


class CleaningConfig(Section):
    """Cleaning titles and attributes with a vision model."""

    backend: Literal["openai", "live", "local"] = "openai"
    """`openai`: Batch API; `live`: any chat-completions server; `local`: free offline rules"""
    model: str = "gpt-5-nano"
    """vision model; its price and limits come from the bundled table and from `clean.models`"""
    effort: str = ""
    """reasoning effort; empty: the cheapest that the model knows"""
    endpoint: Literal["/v1/chat/completions", "/v1/responses"] = "/v1/chat/completions"
    """where the Batch API sends each request"""
    base_url: str = ""
    """address of another OpenAI-compatible server, ending in /v1; empty: OpenAI"""
    image_px: Annotated[int, Field(ge=32, le=2048)] = 512
    """longest side of the image sent, in pixels; smaller images are not enlarged"""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 85
    """JPEG quality of the image sent, 1 to 100"""
    max_completion_tokens: PositiveInt = 2000
    """maximum tokens of answer and hidden reasoning together; doubled, up to 8000, when an answer was cut"""
    queries: Annotated[int, Field(ge=0, le=3)] = 3
    """shopper queries written for each product, asked for in the same request; 0: none"""
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """maximum attempts for a row before it is rejected"""
    part_requests: Annotated[int, Field(ge=1, le=50_000)] = 10_000
    """maximum requests in one batch"""
    part_mb: Annotated[float, Field(gt=0, le=190)] = 90
    """maximum size of one batch file, in MB"""
    tier: Annotated[int, Field(ge=1, le=5)] = 1
    """usage tier of the OpenAI account; sets the limit of queued tokens"""
    max_queued_tokens: NonNegativeInt = 0
    """maximum input tokens in all open batches together; 0: the model's limit for `tier`"""
    max_concurrent_batches: PositiveInt = 4
    """maximum number of open batches"""
    poll_interval_s: PositiveFloat = 30
    """seconds between status polls; grows up to ten times while nothing changes"""
    reconcile_wait_s: NonNegativeFloat = 45
    """seconds before a batch whose creation was not confirmed is looked up again"""
    retry_wait_s: NonNegativeFloat = 60
    """seconds before failed rows or a full queue are retried; doubles each time, up to 15 minutes"""
    max_cost_usd: NonNegativeFloat = 0
    """maximum cost of paid and open work together, in US dollars; 0: no limit"""
    allow_retiring_model: bool = False
    """send although the model may be shut down before a batch ends"""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """`live`: maximum concurrent requests"""
    requests_per_minute: NonNegativeInt = 0
    """`live`: maximum requests per minute; 0: no limit"""
    timeout_s: PositiveFloat = 120
    """request timeout in seconds"""
    fallback: Literal["none", "local"] = "none"
    """`local`: offline rules for rows that the model could not clean; `none`: reject them"""
    workers: NonNegativeInt = 0
    """worker processes that decode images; 0: one per core"""
    styles: tuple[str, ...] = _VOCABULARY["styles"]
    """allowed styles; `unknown` is always allowed"""
    materials: tuple[str, ...] = _VOCABULARY["materials"]
    """allowed materials; `unknown` is always allowed"""
    colors: tuple[str, ...] = _VOCABULARY["colors"]
    """allowed colors; `unknown` is always allowed"""
    object_types: tuple[str, ...] = _VOCABULARY["object_types"]
    """allowed object types; `unknown` is always allowed"""
    models: dict[str, dict[str, Any]] = Field(default={})
    """additional or changed rows of the model table, as `[clean.models.NAME]`; keys as in models.toml"""


class PrepConfig(Section):
    """Splits, images and shards."""

    max_images: Annotated[int, Field(ge=1, le=64)] = 4
    """maximum images per product; the first ones that can be read are taken"""
    image_px: PositiveInt = 224
    """side of the square images in the shards, in pixels"""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of the images in the shards, 1 to 100"""
    train_fraction: Fraction = 0.8
    """share of product groups for training"""
    validation_fraction: Fraction = 0.1
    """share of product groups for validation; the rest is the test split"""
    shard_samples: PositiveInt = 5000
    """maximum products per shard"""
    shard_mb: PositiveInt = 250
    """maximum size of a shard, in MB"""
    mini_train_samples: PositiveInt = 1000
    """products in `mini_train`, a small stratified sample of the training split for quick trials"""
    workers: NonNegativeInt = 0
    """worker processes that decode images; 0: one per core"""
    engine: Literal["local", "ray"] = "local"
    """where images are decoded: `local` or `ray`, on the cluster of RAY_ADDRESS; needs the `ray` extra"""


class TrainingConfig(Section):
    """Fine-tuning."""

    scenario: Literal[
        "auto", "zero_shot", "linear_probe", "dual_lora", "vision_lora", "text_lora", "full", "all"
    ] = "auto"
    """what is trained; `auto`: `full` for a base of up to 20 million parameters, else `dual_lora`"""
    epochs: NonNegativeInt = 0
    """passes over the training split; 0: 10, up to 30 for a small catalogue"""
    lr: NonNegativeFloat = 0
    """peak learning rate; 0: by the scenario and the width of the base"""
    seed: int = 0
    """seed of data order, captions, augmentation and adapter weights"""
    effective_batch_size: NonNegativeInt = 0
    """contrastive batch size of an optimizer step; 0: 1024, or less for a smaller catalogue"""
    micro_batch_size: NonNegativeInt = 64
    """samples per forward pass; bounds memory; 0: the largest that fits"""
    kept_activations_mb: Annotated[int, Field(ge=-1)] = -1
    """memory for activations kept to save the second forward pass, in MB; -1: a quarter of what is free"""
    gradient_checkpointing: bool = False
    """recompute each layer in the backward pass: less memory, more time"""
    lora_r: PositiveInt = 16
    """rank of the LoRA adapters"""
    lora_alpha: PositiveInt = 32
    """scale of the LoRA adapters is lora_alpha / lora_r"""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """dropout probability in front of the adapters"""
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    """names of the linear layers with adapters; without `fc1` and `fc2`: attention alone"""
    loss: Literal["auto", "softmax", "sigmoid"] = "auto"
    """`auto`: the loss of the base model; `softmax`, as for CLIP; `sigmoid`, as for SigLIP"""
    multi_positive: bool = True
    """treat products that share a caption or a group as positives of each other, not as negatives"""
    caption_sampling: bool = False
    """sample a caption from the fields each epoch; off: always the caption of the shards"""
    caption_variants: PositiveInt = 8
    """maximum distinct captions per product; a frozen text tower encodes each once"""
    attribute_dropout: Fraction = 0.3
    """probability that an attribute is left out of a sampled caption"""
    word_dropout: Annotated[float, Field(ge=-1, lt=1, allow_inf_nan=False)] = -1
    """probability that a word is left out of a training caption; -1: 0 to 0.25, by catalogue and captions"""
    attribute_weight: NonNegativeFloat = 0.3
    """weight of a second loss on short captions such as `red velvet armchair`; 0: off"""
    teacher: str = ""
    """a better CLIP to distill from: hub id, folder or run; empty: none"""
    teacher_weight: NonNegativeFloat = 3.0
    """weight of the distance to the teacher in the loss; captions: 1"""
    augment: Literal["none", "simple", "advanced"] = "simple"
    """`none`; `simple`: flip; `advanced`: also shift, color and rotation, product kept whole"""
    mini_train: bool = False
    """train on the small `mini_train` split"""
    optimizer: Literal["auto", "muon", "adamw"] = "auto"
    """`muon`: Muon for matrices, else AdamW; `adamw`: AdamW for all; `auto`: `muon` for `full` only"""
    weight_decay: NonNegativeFloat = 0.01
    """weight decay; not applied to scales, biases and norms"""
    warmup_fraction: Fraction = 0.1
    """share of the steps with linear warmup of the learning rate; cosine decay follows"""
    max_gradient_norm: PositiveFloat = 1.0
    """gradients are clipped to this norm"""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """`full` only: learning rate of each layer relative to the one above it; 1: the same for all"""
    max_logit_scale: PositiveFloat = 100.0
    """maximum logit scale (inverse temperature), as in OpenAI's training"""
    patience: NonNegativeInt = 0
    """epochs without better validation before training ends at the best; 0: all epochs, keep the last"""
    checkpoint_interval_s: NonNegativeFloat = 60
    """seconds between checkpoints; one is written at the end of every epoch as well"""
    image_cache_mb: NonNegativeInt = 1024
    """memory for decoded images, in MB; the rest is decoded each epoch"""
    feature_cache: bool = True
    """cache frozen-tower features on disk, under `work/cache`"""
    wise_ft: bool = True
    """WiSE-FT: choose the interpolation between base and trained weights on validation"""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases: `off`, `offline` or `online`; needs the `wandb` extra"""
    wandb_project: str = "furnclip"
    """project that runs are logged to"""
    wandb_artifacts: bool = False
    """log the merged model as an artifact"""
    upload: bool = False
    """copy checkpoints and the finished run to the bucket"""


class EmbeddingConfig(Section):
    """Turning the catalogue into vectors."""

    batch_size: PositiveInt = 64
    """images per forward pass"""
    row_group_rows: PositiveInt = 1024
    """products per row group of the file; a killed run repeats at most one of them"""
    dtype: Literal["fp32", "fp16"] = "fp32"
    """precision of the stored vectors: `fp32` or `fp16`, which halves the file"""
    image_weight: Literal["auto"] | Fraction = "auto"
    """weight of the image in the fused vector, 0 to 1; `auto`: chosen on the validation split"""
    workers: NonNegativeInt = 0
    """threads that decode images; 0: one per core"""
    engine: Literal["local", "ray"] = "local"
    """where models run: `local` or `ray`, on the cluster of RAY_ADDRESS; needs the `ray` extra"""


class EvaluationConfig(Section):
    """Measuring retrieval."""

    split: Literal["test", "validation"] = "test"
    """split to measure: `test` or `validation`; only `test` is fair, training tunes on `validation`"""
    queries: str = ""
    """file of queries, one a line, or the log of `serve`; those made of attributes alone are measured"""
    batch_size: PositiveInt = 64
    """images per forward pass"""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 2000
    """samples of the bootstrap and of the paired test"""
    confidence: Annotated[float, Field(ge=0.5, le=0.999)] = 0.95
    """confidence level of the intervals, 0.5 to 0.999"""
    slice_min_queries: PositiveInt = 5
    """minimum queries of a type, material, color or style for a row of its own"""
    examples: Annotated[int, Field(ge=0, le=100)] = 6
    """example queries in each part of the report"""
    latency_s: Annotated[float, Field(ge=0, le=60)] = 1.0
    """seconds to spend on each latency figure; 0: not measured"""
    seed: int = 0
    """seed of the bootstrap and of the queries drawn for the report"""


class SearchConfig(Section):
    """Searching the catalogue."""

    k: PositiveInt = 10
    """number of hits"""
    mode: Literal["vector", "keyword", "hybrid"] = "hybrid"
    """`vector`: by meaning; `keyword`: by words (BM25); `hybrid`: both, weighed"""
    image_weight: Fraction = 0.5
    """weight of the image where a search has both an image and a text, 0 to 1"""
    index: str = ""
    """search table: folder or `s3://` address ending in `.lance`; empty: `index.lance` in `paths.work`"""
    language: Literal["auto", "en", "de", "fr", "es", "it", "nl", "sv"] = "auto"
    """language of the catalogue's texts, for plurals and compounds; `auto`: found out by `embed`"""
    exact_below: PositiveInt = 5000
    """catalogue size below which every vector is compared; from there on, an approximate index is built"""
    probes: NonNegativeInt = 0
    """index partitions a search probes; more: slower, fewer misses; 0: a tenth, of many products 40 %"""


class ServeConfig(Section):
    """The search service and its page."""

    host: str = "127.0.0.1"
    """address to listen on; any but this machine's own needs a token"""
    port: Annotated[int, Field(ge=0, le=65535)] = 8321
    """port to listen on; 0: any free one"""
    hosts: tuple[str, ...] = ()
    """names under which the service is asked for besides `localhost`, such as `search.example.com`"""
    max_k: PositiveInt = 100
    """maximum hits of one request"""
    max_query_chars: PositiveInt = 500
    """maximum characters of a query"""
    max_body_mb: PositiveFloat = 20
    """maximum size of a request's body, in MB: that of an image"""
    timeout_s: PositiveFloat = 10
    """seconds after which a request is given up"""
    concurrency: PositiveInt = 64
    """maximum requests at a time; further ones are answered with 503 at once"""
    reload_s: PositiveFloat = 2
    """seconds between looks for a new search table"""
    access_log: bool = True
    """write a JSON line on stderr for each request, without its query"""
    query_log: bool = False
    """append each query to `serve/queries.jsonl` in `paths.work`; no addresses"""
    currency: str = ""
    """text in front of prices on the page, e.g. `$`"""


class ArenaConfig(Section):
    """Blind voting in the terminal."""

    k: Annotated[int, Field(ge=1, le=10)] = 5
    """products in each row of results, 1 to 10"""
    queries: str = "images"
    """`images`, `texts` or `both` of the test split, a text file with a query a line, or a folder"""
    query_limit: PositiveInt = 500
    """maximum queries per contest"""
    seed: int = 0
    """seed of the order of queries and of the sides"""
    shared_share: Fraction = 0.25
    """share of a rater's queries that every rater is shown, to measure agreement"""
    repeat_every: NonNegativeInt = 10
    """votes after which an earlier query is repeated, sides swapped, to measure consistency; 0: never"""
    viewer: str | tuple[str, ...] = "auto"
    """image viewer: `auto`, `none`, `builtin`, or a command with {path}, {cols}, {rows}"""
    viewer_size: Annotated[str, Field(pattern=r"^(auto|[1-9]\d{0,3}x[1-9]\d{0,3})$")] = "auto"
    """maximum size of an image in cells, like `80x20`, for slow connections; `auto`: all that are free"""
    viewer_timeout_s: PositiveFloat = 5.0
    """viewer timeout in seconds"""


class Config(Section):
    """All settings. Build it with `load_config`; it cannot be changed afterwards."""

    paths: DataPaths = DataPaths()
    model: ModelConfig = ModelConfig()
    fetch: FetchConfig = FetchConfig()
    clean: CleaningConfig = CleaningConfig()
    prepare: PrepConfig = PrepConfig()
    train: TrainingConfig = TrainingConfig()
    embed: EmbeddingConfig = EmbeddingConfig()
    eval: EvaluationConfig = EvaluationConfig()
    search: SearchConfig = SearchConfig()
    serve: ServeConfig = ServeConfig()
    arena: ArenaConfig = ArenaConfig()
    storage: StorageConfig = StorageConfig()
    openai_api_key: SecretStr = SecretStr("")

    @field_validator("openai_api_key")
    @classmethod
    def _strip(cls, key: SecretStr) -> SecretStr:
        return SecretStr(key.get_secret_value().strip())


def sections() -> dict[str, type[Section]]:
    """Section name -> its model, in pipeline order."""
    return {name: type(section) for name, section in Config() if isinstance(section, Section)}
