from . import inspection as inspection
from . import interop as interop
from .config import AugmentConfig as AugmentConfig
from .config import DataConfig as DataConfig
from .config import ModelConfig as ModelConfig
from .config import OptimConfig as OptimConfig
from .config import TrainConfig as TrainConfig
from .data.dataset import Dataset as Dataset
from .data.load import load_dataset as load_dataset
from .errors import ResNetJaxError as ResNetJaxError
from .models import BasicUnit as BasicUnit
from .models import BottleneckUnit as BottleneckUnit
from .models import PreActivationUnit as PreActivationUnit
from .models import ResNet as ResNet
from .models import ResNet18 as ResNet18
from .models import ResNet34 as ResNet34
from .models import ResNet50 as ResNet50
from .models import ResNet101 as ResNet101
from .models import ResNet152 as ResNet152
from .presets import PRESETS as PRESETS
from .run import Run as Run
from .run import train as train
from .training.state import Batch as Batch
from .training.state import TrainState as TrainState
from .training.steps import eval_step as eval_step
from .training.steps import train_step as train_step

__version__: str
