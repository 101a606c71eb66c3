"""BERT written out by hand in pure PyTorch. Start at config.py; README.md has the reading order."""

from importlib import import_module
from typing import TYPE_CHECKING

# Public name -> the module that has it. Resolved on first use (PEP 562), because torch takes a
# second to import and the tokenizer does not need it.
_PUBLIC = {
    "Bert": "bert",
    "BertConfig": "config",
    "BertModel": "model",
    "BertOutput": "model",
    "BertWithHead": "heads",
    "CheckpointError": "config",
    "Comparison": "senses",
    "Encoding": "encoding",
    "States": "bert",
    "Vectors": "vectors",
    "WordPieceTokenizer": "tokenizer",
    "ablate_each_head": "analysis",
    "ablate_heads": "edits",
    "add_direction": "edits",
    "anisotropy": "analysis",
    "attention_distance": "analysis",
    "attention_entropy": "analysis",
    "attention_rollout": "analysis",
    "capture": "hooks",
    "cut_attention": "edits",
    "edit": "edits",
    "lens_page": "lens",
    "linear_cka": "analysis",
    "load": "loading",
    "load_model": "checkpoint",
    "load_tokenizer": "hub",
    "new_head": "loading",
    "pack": "loading",
    "patch_from": "edits",
    "patch_grid": "analysis",
    "plot_ablation": "plots",
    "plot_attention": "plots",
    "plot_layers": "plots",
    "plot_patching": "plots",
    "plot_senses": "plots",
    "plot_similarity": "plots",
    "plot_training": "plots",
    "read_accuracies": "plots",
    "read_vectors": "stored",
    "save": "saving",
    "scale_by": "edits",
    "word_attention": "analysis",
}

__all__ = list(_PUBLIC)

if TYPE_CHECKING:  # the same for type checkers, which don't run __getattr__
    from minibert.analysis import ablate_each_head as ablate_each_head
    from minibert.analysis import anisotropy as anisotropy
    from minibert.analysis import attention_distance as attention_distance
    from minibert.analysis import attention_entropy as attention_entropy
    from minibert.analysis import attention_rollout as attention_rollout
    from minibert.analysis import linear_cka as linear_cka
    from minibert.analysis import patch_grid as patch_grid
    from minibert.analysis import word_attention as word_attention
    from minibert.bert import Bert as Bert
    from minibert.bert import States as States
    from minibert.checkpoint import load_model as load_model
    from minibert.config import BertConfig as BertConfig
    from minibert.config import CheckpointError as CheckpointError
    from minibert.edits import ablate_heads as ablate_heads
    from minibert.edits import add_direction as add_direction
    from minibert.edits import cut_attention as cut_attention
    from minibert.edits import edit as edit
    from minibert.edits import patch_from as patch_from
    from minibert.edits import scale_by as scale_by
    from minibert.encoding import Encoding as Encoding
    from minibert.heads import BertWithHead as BertWithHead
    from minibert.hooks import capture as capture
    from minibert.hub import load_tokenizer as load_tokenizer
    from minibert.lens import lens_page as lens_page
    from minibert.loading import load as load
    from minibert.loading import new_head as new_head
    from minibert.loading import pack as pack
    from minibert.model import BertModel as BertModel
    from minibert.model import BertOutput as BertOutput
    from minibert.plots import plot_ablation as plot_ablation
    from minibert.plots import plot_attention as plot_attention
    from minibert.plots import plot_layers as plot_layers
    from minibert.plots import plot_patching as plot_patching
    from minibert.plots import plot_senses as plot_senses
    from minibert.plots import plot_similarity as plot_similarity
    from minibert.plots import plot_training as plot_training
    from minibert.plots import read_accuracies as read_accuracies
    from minibert.saving import save as save
    from minibert.senses import Comparison as Comparison
    from minibert.stored import read_vectors as read_vectors
    from minibert.tokenizer import WordPieceTokenizer as WordPieceTokenizer
    from minibert.vectors import Vectors as Vectors


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'minibert' has no attribute {name!r}")
    return getattr(import_module(f"minibert.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
