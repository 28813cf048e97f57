"""Every setting, its default, unit and meaning; the only place that reads the environment.

A value is taken from the first of: a flag, an environment variable, `.env`, `furnclip.toml`, the
default here. `FURNCLIP_TRAIN__EPOCHS=3` sets `train.epochs`; `MODEL_NAME` and `OPENAI_API_KEY` work
as they are. `AWS_*` and `CUDA_VISIBLE_DEVICES` from `.env` are handed to the process, for the
libraries that read them. Relative paths are taken from the folder that `furnclip.toml` lies in.

The docstring under a field is its documentation: `config_template` prints it into the commented
`furnclip.toml` that `furnclip init` writes.
"""

from furnclip.config.loading import CONFIG_NAME, Config, environment_variables, load_config, sections
from furnclip.config.sections import (
    ArenaConfig,
    CleaningConfig,
    DataPaths,
    EmbeddingConfig,
    EvaluationConfig,
    ModelConfig,
    PrepConfig,
    SearchConfig,
    StorageConfig,
    TrainingConfig,
)
from furnclip.config.template import config_template, toml_value, write_templates

__all__ = [
    "CONFIG_NAME",
    "ArenaConfig",
    "CleaningConfig",
    "Config",
    "DataPaths",
    "EmbeddingConfig",
    "EvaluationConfig",
    "ModelConfig",
    "PrepConfig",
    "SearchConfig",
    "StorageConfig",
    "TrainingConfig",
    "config_template",
    "environment_variables",
    "load_config",
    "sections",
    "toml_value",
    "write_templates",
]
