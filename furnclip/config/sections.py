"""The settings of each room: type, default, unit and meaning.

The docstring under a field is its documentation; `template` prints it into `furnclip.toml`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from furnclip.config.vocabulary import COLORS, MATERIALS, OBJECT_TYPES, STYLES

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )


class DataPaths(_Section):
    """Where the catalogue is, what its columns are called, and where furnclip works."""

    products: Path = Path("products.csv")
    """the raw catalogue: .csv, .tsv, .jsonl or .parquet"""
    images: Path = Path("images")
    """the folder that picture paths in the catalogue are relative to"""
    work: Path = Path("work")
    """the folder for everything that furnclip writes"""
    id_column: str = "product_id"
    """column with the unique product id"""
    title_column: str = "title"
    """column with the product's title"""
    image_column: str = "image"
    """column with the picture's path; several are separated by `|`, the first that can be read is used"""
    group_column: str = ""
    """column that ties variants of one product together; empty: same id, picture or title"""

    @property
    def clean(self) -> Path:
        return self.work / "clean"

    @property
    def cleaned(self) -> Path:
        return self.clean / "cleaned.csv"

    @property
    def shards(self) -> Path:
        return self.work / "shards"

    @property
    def runs(self) -> Path:
        return self.work / "runs"

    @property
    def embeddings(self) -> Path:
        return self.work / "embeddings"

    @property
    def vectors(self) -> Path:
        return self.embeddings / "master_vectors.parquet"

    @property
    def index(self) -> Path:
        return self.work / "index.lance"

    @property
    def eval(self) -> Path:
        return self.work / "eval"

    @property
    def arena(self) -> Path:
        return self.work / "arena"

    @property
    def cache(self) -> Path:
        return self.work / "cache"


class ModelConfig(_Section):
    """The base model."""

    name: str = "openai/clip-vit-base-patch32"
    """hub id, folder or `furnclip-tiny`; MODEL_NAME in the environment works too"""
    revision: str = "main"
    """branch, tag or commit on the hub; ignored for folders"""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """arithmetic of the towers; `auto` measures which is faster on this machine"""


class CleaningConfig(_Section):
    """Cleaning titles and attributes with a vision model."""

    backend: Literal["openai", "live", "local"] = "openai"
    """`openai`: Batch API; `live`: any chat-completions server; `local`: free offline rules"""
    model: str = "gpt-5-nano"
    """vision model; prices and limits come from the table that ships with furnclip and from `models` below"""
    effort: str = ""
    """reasoning effort; empty: the cheapest that the model knows"""
    endpoint: Literal["/v1/chat/completions", "/v1/responses"] = "/v1/chat/completions"
    """where the Batch API sends each request"""
    base_url: str = ""
    """address of another OpenAI-compatible server, ending in /v1; empty: OpenAI"""
    image_px: Annotated[int, Field(ge=32, le=2048)] = 512
    """longest side of the picture sent, in pixels; smaller pictures are not enlarged"""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 85
    """JPEG quality of the picture sent, 1 to 100"""
    max_completion_tokens: PositiveInt = 2000
    """cap on answer and hidden reasoning together, in tokens; doubled, up to 8000, when an answer was cut"""
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """how often a row is asked before it is rejected"""
    part_requests: Annotated[int, Field(ge=1, le=50_000)] = 10_000
    """requests in one batch, at most"""
    part_mb: Annotated[float, Field(gt=0, le=190)] = 90
    """size of one batch's file, at most, in millions of bytes"""
    tier: Annotated[int, Field(ge=1, le=5)] = 1
    """usage tier of the OpenAI account; decides how many tokens may wait at once"""
    max_queued_tokens: Annotated[int, Field(ge=0)] = 0
    """input tokens in all open batches together, at most; 0: the model's limit for `tier`"""
    max_concurrent_batches: PositiveInt = 4
    """batches open at once, at most"""
    poll_interval_s: PositiveFloat = 30
    """seconds between looks at open batches; grows up to ten times while nothing changes"""
    reconcile_wait_s: NonNegativeFloat = 45
    """seconds to wait before looking again for a batch whose creation was not confirmed"""
    retry_wait_s: NonNegativeFloat = 60
    """seconds before failed rows or a full queue are tried again; doubles each time, up to 15 minutes"""
    max_cost_usd: NonNegativeFloat = 0
    """stop sending when paid plus open work would cost more, in US dollars; 0: no limit"""
    allow_retiring_model: bool = False
    """send although the model may be shut down before a batch ends"""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """`live`: requests on their way at once"""
    requests_per_minute: Annotated[int, Field(ge=0)] = 0
    """`live`: at most so many requests a minute; 0: no limit"""
    timeout_s: PositiveFloat = 120
    """seconds to wait for one reply of the service"""
    fallback: Literal["none", "local"] = "none"
    """`local`: rows that the model could not clean get the offline rules' answer instead of being rejected"""
    workers: Annotated[int, Field(ge=0)] = 0
    """processes that decode pictures; 0: one a core"""
    styles: tuple[str, ...] = STYLES
    """allowed styles; `unknown` is always allowed"""
    materials: tuple[str, ...] = MATERIALS
    """allowed materials; `unknown` is always allowed"""
    colors: tuple[str, ...] = COLORS
    """allowed colours; `unknown` is always allowed"""
    object_types: tuple[str, ...] = OBJECT_TYPES
    """allowed object types; `unknown` is always allowed"""
    models: dict[str, dict[str, Any]] = {}
    """more rows for the model table, or changed ones, as `[clean.models.NAME]`; keys as in models.toml"""


class PrepConfig(_Section):
    """Splits, pictures and shards."""

    image_px: PositiveInt = 224
    """side of the square picture in the shards, in pixels"""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of the pictures in the shards, 1 to 100"""
    train_fraction: Fraction = 0.8
    """share of product groups for training"""
    validation_fraction: Fraction = 0.1
    """share of product groups for validation; the rest is the test split"""
    shard_samples: PositiveInt = 5000
    """most products in one shard"""
    shard_mb: PositiveInt = 250
    """most megabytes in one shard"""
    mini_train_samples: PositiveInt = 1000
    """products in `mini_train`, a small stratified copy of train for quick tries"""
    workers: Annotated[int, Field(ge=0)] = 0
    """processes that decode pictures; 0: one a core"""


class TrainingConfig(_Section):
    """Fine-tuning."""

    scenario: Literal["zero_shot", "linear_probe", "dual_lora", "vision_lora", "text_lora", "full", "all"] = (
        "dual_lora"
    )
    """what trains; `zero_shot`: nothing, `full`: every weight, `all`: the ablation over the first five"""
    epochs: PositiveInt = 10
    """passes over the training split"""
    lr: PositiveFloat = 1e-4
    """peak learning rate"""
    seed: int = 0
    """seed of data order, captions, augmentation and adapter weights"""
    effective_batch_size: Annotated[int, Field(ge=0)] = 0
    """samples that one optimiser step contrasts; 0: 1024, or less so that an epoch has 8 steps"""
    micro_batch_size: Annotated[int, Field(ge=0)] = 64
    """samples in one forward pass, the memory knob; 0: the largest that fits, found on a throw-away copy"""
    kept_activations_mb: Annotated[int, Field(ge=-1)] = -1
    """memory for micro-batches that need no second forward pass, in MB; -1: a quarter of what is free"""
    gradient_checkpointing: bool = False
    """recompute each layer in the backward pass: less memory, more time"""
    lora_r: PositiveInt = 16
    """rank of the LoRA adapters"""
    lora_alpha: PositiveInt = 32
    """scale of the LoRA adapters is lora_alpha / lora_r"""
    lora_dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    """dropout in front of the adapters, as a share"""
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")
    """names of the linear layers that get adapters; `fc1` and `fc2` are the others"""
    loss: Literal["auto", "softmax", "sigmoid"] = "auto"
    """`auto`: the loss that the base was trained with (CLIP softmax, SigLIP sigmoid)"""
    multi_positive: bool = True
    """products that share a caption or a group are each other's right answers, not wrong ones"""
    caption_sampling: bool = False
    """build the caption anew each epoch from the fields; off: always the caption of the shards"""
    caption_variants: PositiveInt = 8
    """different captions of one product; a frozen text tower encodes each once"""
    attribute_dropout: Fraction = 0.3
    """chance of each attribute to be left out of a sampled caption"""
    augment: Literal["none", "simple", "advanced"] = "simple"
    """`simple`: flip and shift with the product whole; `advanced`: also colour and tilt"""
    mini_train: bool = False
    """train on the small `mini_train` split"""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's weight decay; scales, biases and norms have none"""
    warmup_fraction: Fraction = 0.1
    """share of the steps in which the learning rate climbs; then it falls along a cosine"""
    max_gradient_norm: PositiveFloat = 1.0
    """a larger gradient is scaled down to this norm"""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.8
    """`full` only: learning rate of each layer relative to the one above it; 1: all the same"""
    max_logit_scale: PositiveFloat = 100.0
    """ceiling of the trained temperature's factor, as in OpenAI's training"""
    patience: Annotated[int, Field(ge=0)] = 5
    """epochs without a better validation recall before training stops; 0: never stop early"""
    checkpoint_interval_s: NonNegativeFloat = 60
    """seconds between checkpoints; one is written at the end of every epoch as well"""
    image_cache_mb: Annotated[int, Field(ge=0)] = 1024
    """memory for decoded pictures, in MB; further ones are decoded each epoch"""
    feature_cache: bool = True
    """keep what frozen towers say on disk, under `work/cache`"""
    wise_ft: bool = True
    """after training, choose on validation how far to go from the base to the trained weights"""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases; needs the `[wandb]` extra"""
    wandb_project: str = "furnclip"
    """project that runs are logged to"""
    wandb_artifacts: bool = False
    """log the merged model as an artifact"""
    upload: bool = False
    """copy checkpoints and the finished run to the bucket"""


class EmbeddingConfig(_Section):
    """Turning the catalogue into vectors."""

    batch_size: PositiveInt = 64
    """pictures in one forward pass"""
    row_group_rows: PositiveInt = 1024
    """products in one row group of the file; a killed run encodes at most one of them again"""
    dtype: Literal["fp32", "fp16"] = "fp32"
    """number format of the stored vectors; `fp16` halves the file"""
    image_weight: Literal["auto"] | Fraction = "auto"
    """share of the picture in the fused vector, 0 to 1; `auto` chooses it on the validation split"""
    workers: Annotated[int, Field(ge=0)] = 0
    """threads that decode pictures; 0: one a core"""


class EvaluationConfig(_Section):
    """Measuring retrieval."""

    split: Literal["test", "validation"] = "test"
    """split to measure on; training chooses its settings on `validation`, so only `test` is fair"""
    batch_size: PositiveInt = 64
    """pictures in one forward pass"""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 2000
    """draws of the bootstrap and of the paired test"""
    confidence: Annotated[float, Field(ge=0.5, le=0.999)] = 0.95
    """share of intervals that hold the true value, 0.5 to 0.999"""
    slice_min_queries: PositiveInt = 5
    """fewest queries that a type, material, colour or style needs for a line of its own"""
    examples: Annotated[int, Field(ge=0, le=100)] = 6
    """queries with pictures in each part of the report"""
    latency_s: Annotated[float, Field(ge=0, le=60)] = 1.0
    """seconds to spend on each latency figure; 0: not measured"""
    seed: int = 0
    """seed of the bootstrap and of the queries drawn for the report"""


class SearchConfig(_Section):
    """Searching the catalogue."""

    k: PositiveInt = 10
    """number of hits"""
    mode: Literal["vector", "keyword", "hybrid"] = "hybrid"
    """`vector`: by meaning; `keyword`: by words (BM25); `hybrid`: both, fused by rank"""
    image_weight: Fraction = 0.5
    """share of the picture where a search has both a picture and a text, 0 to 1"""
    index: str = ""
    """search table: folder or `s3://` address ending in `.lance`; empty: `index.lance` in `paths.work`"""
    exact_below: PositiveInt = 5000
    """products below which every vector is compared; from there on an approximate index is built"""
    probes: Annotated[int, Field(ge=0)] = 0
    """partitions of the index that one search looks into; more: slower, fewer misses; 0: a tenth of them"""


class ArenaConfig(_Section):
    """Blind voting in the terminal."""

    k: Annotated[int, Field(ge=1, le=10)] = 5
    """products in each row of results, 1 to 10"""
    queries: str = "images"
    """`images`, `texts` or `both` of the test split, a text file with a query a line, or a picture folder"""
    query_limit: PositiveInt = 500
    """most queries drawn for one contest"""
    seed: int = 0
    """seed of the order of queries and of the sides"""
    shared_share: Fraction = 0.25
    """share of a rater's queries that every rater is shown, to measure agreement"""
    repeat_every: Annotated[int, Field(ge=0)] = 10
    """votes after which an earlier query comes back, sides swapped, to measure consistency; 0: never"""
    viewer: str | tuple[str, ...] = "auto"
    """picture viewer: `auto`, `none`, `builtin`, or a command with {path}, {cols}, {rows}"""
    viewer_size: Annotated[str, Field(pattern=r"^(auto|[1-9]\d{0,3}x[1-9]\d{0,3})$")] = "auto"
    """most cells that a picture may take, like `80x20`, for slow lines; `auto`: all that are free"""
    viewer_timeout_s: PositiveFloat = 5.0
    """seconds after which a viewer is given up"""


class StorageConfig(_Section):
    """The S3 bucket; credentials come from boto3's own chain."""

    bucket: str = ""
    """bucket name; empty: no S3"""
    prefix: str = "furnclip"
    """key prefix inside the bucket"""
    endpoint_url: str = ""
    """endpoint of an S3-compatible server (MinIO, R2 ...); empty: AWS"""
    region: str = ""
    """region; empty: boto3's own chain decides"""
    concurrency: PositiveInt = 8
    """requests at a time"""
    timeout_s: PositiveFloat = 60.0
    """seconds a connection may stay silent before it is tried again"""

    @property
    def shards(self) -> str:
        """The prefix of the shards in the bucket."""
        return f"{self.prefix.strip('/')}/shards".lstrip("/")

    @property
    def runs(self) -> str:
        """The prefix of the training runs in the bucket."""
        return f"{self.prefix.strip('/')}/runs".lstrip("/")


class Config(_Section):
    """All settings. Build it with `load_config`; it cannot be changed afterwards."""

    paths: DataPaths = DataPaths()
    model: ModelConfig = ModelConfig()
    clean: CleaningConfig = CleaningConfig()
    prepare: PrepConfig = PrepConfig()
    train: TrainingConfig = TrainingConfig()
    embed: EmbeddingConfig = EmbeddingConfig()
    eval: EvaluationConfig = EvaluationConfig()
    search: SearchConfig = SearchConfig()
    arena: ArenaConfig = ArenaConfig()
    storage: StorageConfig = StorageConfig()
    openai_api_key: SecretStr = SecretStr("")

    @field_validator("openai_api_key")
    @classmethod
    def _strip(cls, key: SecretStr) -> SecretStr:
        return SecretStr(key.get_secret_value().strip())


def sections() -> dict[str, type[BaseModel]]:
    """Section name -> its model, in pipeline order."""
    return {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
