from rnnsparse.nn.convert import convert as convert
from rnnsparse.nn.convert import to_dense as to_dense
from rnnsparse.nn.language_model import CharLM as CharLM
from rnnsparse.nn.layers import Embedding as Embedding
from rnnsparse.nn.layers import Linear as Linear
from rnnsparse.nn.recurrent import GRU as GRU
from rnnsparse.nn.recurrent import LSTM as LSTM
from rnnsparse.nn.recurrent import Recurrent as RNN
from rnnsparse.nn.weight import SparseWeight as SparseWeight
from rnnsparse.settings.model import ModelConfig as ModelConfig
from rnnsparse.sparsity.method import Method as Method
from rnnsparse.sparsity.methods.cht import CHT as CHT
from rnnsparse.sparsity.methods.dense import Dense as Dense
from rnnsparse.sparsity.methods.granet import GraNet as GraNet
from rnnsparse.sparsity.methods.gse import GSE as GSE
from rnnsparse.sparsity.methods.kd_ticket import KDTicket as KDTicket
from rnnsparse.sparsity.methods.lottery import Lottery as Lottery
from rnnsparse.sparsity.methods.mest import MEST as MEST
from rnnsparse.sparsity.methods.prune import Prune as Prune
from rnnsparse.sparsity.methods.rigl import RigL as RigL
from rnnsparse.sparsity.methods.scout import Scout as Scout
from rnnsparse.sparsity.methods.set import SET as SET
from rnnsparse.sparsity.methods.snfs import SNFS as SNFS
from rnnsparse.sparsity.methods.snip import SNIP as SNIP
from rnnsparse.sparsity.methods.srigl import SRigL as SRigL
from rnnsparse.sparsity.methods.static import Static as Static
from rnnsparse.sparsity.sparsifier import Sparsifier as Sparsifier
from rnnsparse.sparsity.sparsify import sparsify as sparsify
from rnnsparse.trained import TrainedModel as TrainedModel
from rnnsparse.trained import load as load

__version__: str
__all__ = [
    "CHT",
    "GRU",
    "GSE",
    "LSTM",
    "MEST",
    "RNN",
    "SET",
    "SNFS",
    "SNIP",
    "CharLM",
    "Dense",
    "Embedding",
    "GraNet",
    "KDTicket",
    "Linear",
    "Lottery",
    "Method",
    "ModelConfig",
    "Prune",
    "RigL",
    "SRigL",
    "Scout",
    "SparseWeight",
    "Sparsifier",
    "Static",
    "TrainedModel",
    "__version__",
    "convert",
    "load",
    "sparsify",
    "to_dense",
]
