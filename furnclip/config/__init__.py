"""Every setting, its default, unit and meaning; the only place that reads the environment.

A value is taken from the first of: a flag, an environment variable, `.env`, `furnclip.toml`, the
default here. `FURNCLIP_TRAIN__EPOCHS=3` sets `train.epochs`; `MODEL_NAME` and `OPENAI_API_KEY` work
as they are. The libraries' variables in `.env` (keys, regions, `CUDA_VISIBLE_DEVICES` ...) are handed to
the process. A folder may come from somebody else: `trust` says which of its settings the user is asked
about. Relative paths are taken from the folder that `furnclip.toml` lies in.

The docstring under a field is its documentation: `config_template` prints it into the commented
`furnclip.toml` that `furnclip init` writes.
"""

from furnclip.config.environment import environment_variables
from furnclip.config.loading import CONFIG_NAME, load_config, prepare_environment
from furnclip.config.sections import (
    ArenaConfig,
    CleaningConfig,
    Config,
    DataPaths,
    EmbeddingConfig,
    EvaluationConfig,
    ModelConfig,
    PrepConfig,
    SearchConfig,
    StorageConfig,
    TrainingConfig,
    sections,
)
from furnclip.config.template import config_template, toml_value, write_templates
from furnclip.config.torchrun import Launch, torchrun_launch
from furnclip.config.trust import VIEWER_WORDS

__all__ = [
    "CONFIG_NAME",
    "VIEWER_WORDS",
    "ArenaConfig",
    "CleaningConfig",
    "Config",
    "DataPaths",
    "EmbeddingConfig",
    "EvaluationConfig",
    "Launch",
    "ModelConfig",
    "PrepConfig",
    "SearchConfig",
    "StorageConfig",
    "TrainingConfig",
    "config_template",
    "environment_variables",
    "load_config",
    "prepare_environment",
    "sections",
    "toml_value",
    "torchrun_launch",
    "write_templates",
]
