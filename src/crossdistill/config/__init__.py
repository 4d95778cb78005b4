"""The settings of a run, by owner. Importing this package does not import torch."""

from crossdistill.config.data import AugmentConfig as AugmentConfig
from crossdistill.config.data import LoaderConfig as LoaderConfig
from crossdistill.config.engine import EngineConfig as EngineConfig
from crossdistill.config.model import ModelConfig as ModelConfig
from crossdistill.config.optim import OptimConfig as OptimConfig
from crossdistill.config.run import RunConfig as RunConfig
