"""Every setting, its default, unit and meaning; the only place that reads the environment.

A value is taken from the first of: a flag, an environment variable, `.env`, `furnclip.toml`, the
default here. `FURNCLIP_TRAIN__EPOCHS=3` sets `train.epochs`; `MODEL_NAME` and `OPENAI_API_KEY` work
as they are. The libraries' variables in `.env` (keys, regions, `CUDA_VISIBLE_DEVICES` ...) are handed to
the process. A folder may come from somebody else: `trust` says which of its settings the user is asked
about. Relative paths are taken from the folder that `furnclip.toml` lies in.
"""

from furnclip.config.environment import environment_variables as environment_variables
from furnclip.config.environment import torchrun_launch as torchrun_launch
from furnclip.config.loading import config_template as config_template
from furnclip.config.loading import load_config as load_config
from furnclip.config.loading import prepare_environment as prepare_environment
from furnclip.config.loading import write_templates as write_templates
from furnclip.config.sections import ArenaConfig as ArenaConfig
from furnclip.config.sections import CleaningConfig as CleaningConfig
from furnclip.config.sections import Config as Config
from furnclip.config.sections import DataPaths as DataPaths
from furnclip.config.sections import EmbeddingConfig as EmbeddingConfig
from furnclip.config.sections import EvaluationConfig as EvaluationConfig
from furnclip.config.sections import ModelConfig as ModelConfig
from furnclip.config.sections import PrepConfig as PrepConfig
from furnclip.config.sections import SearchConfig as SearchConfig
from furnclip.config.sections import StorageConfig as StorageConfig
from furnclip.config.sections import TrainingConfig as TrainingConfig
from furnclip.config.sections import sections as sections
from furnclip.config.trust import VIEWER_WORDS as VIEWER_WORDS
