"""Convert a checkpoint of Google's original BERT into a folder that minibert and others load.

    pip install 'minibert-pytorch[tf]'
    python scripts/convert_tf_checkpoint.py uncased_L-12_H-768_A-12 bert-base-uncased --uncased

The input is a released folder as it was unpacked: bert_config.json, vocab.txt and
bert_model.ckpt.* (or another prefix, with --checkpoint). Nothing in it says whether texts are
lower-cased, so the command does. All weights are kept, the heads of pre-training too; what only
training needs (Adam's moments, the step) is not.

Names follow google-research/bert@eedf571 modeling.py:145-237 and run_pretraining.py:240-304, and on
the other side Hugging Face's checkpoints. TensorFlow multiplies from the right, x W, PyTorch from
the left, W x: each kernel is transposed.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from minibert.config import BertConfig, CheckpointError
from minibert.files import read_bytes, read_object
from minibert.folders import write_folder
from minibert.glossary import shown
from minibert.loading import load

# What is not called the same, after "/" has become "." and "layer_3" "layer.3".
RENAMED = {
    "bert.embeddings.word_embeddings": "bert.embeddings.word_embeddings.weight",
    "bert.embeddings.position_embeddings": "bert.embeddings.position_embeddings.weight",
    "bert.embeddings.token_type_embeddings": "bert.embeddings.token_type_embeddings.weight",
    "cls.predictions.output_bias": "cls.predictions.bias",
    "cls.seq_relationship.output_weights": "cls.seq_relationship.weight",
    "cls.seq_relationship.output_bias": "cls.seq_relationship.bias",
}
ENDINGS = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}
TRAINING = ("adam_m", "adam_v", "global_step", "good_steps", "loss_scale")

FILES = ["config.json", "vocab.txt", "tokenizer_config.json", "model.safetensors"]


def convert(source: Path, checkpoint: str, target: Path, lowercase: bool) -> None:
    """Read one folder, write another; all of it or nothing.

    Raises:
        CheckpointError: if the checkpoint cannot be read, or is not a BERT's.
        ValueError: if the configuration or the target will not do.
    """
    values = read_object(source / "bert_config.json")
    config = BertConfig.from_dict(values)  # layer_norm_eps is 1e-12, as TensorFlow 1 had built in
    vocabulary = read_bytes(source / "vocab.txt")
    tensors = read_tensors(source / checkpoint)
    config_json = {
        "architectures": ["BertForPreTraining"],
        "model_type": "bert",
        **values,
        "layer_norm_eps": config.layer_norm_eps,
    }

    def fill(draft: Path) -> None:
        (draft / "config.json").write_text(json.dumps(config_json, indent=2) + "\n", "utf-8")
        (draft / "vocab.txt").write_bytes(vocabulary)
        settings = {"do_lower_case": lowercase, "tokenizer_class": "BertTokenizer"}
        settings["model_max_length"] = config.max_position_embeddings
        (draft / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        (draft / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
        try:
            load(draft)  # a folder that does not load is not written
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(draft), str(source))) from error

    write_folder(target, FILES, fill)


def read_tensors(prefix: Path) -> dict[str, NDArray[np.float32]]:
    """Every tensor of a checkpoint but those of training, by Hugging Face's names."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    os.environ.update({**quiet, **os.environ})  # or it tells how it would compute
    import tensorflow  # an extra; takes seconds to import

    tensors = {}
    try:
        reader = tensorflow.train.load_checkpoint(str(prefix))
        for name in sorted(reader.get_variable_to_shape_map()):
            if not any(part in TRAINING for part in name.split("/")):
                tensor = reader.get_tensor(name)
                tensor = tensor.T if name.endswith("/kernel") else tensor
                tensors[hub_name(name)] = np.ascontiguousarray(tensor, np.float32)
    except (tensorflow.errors.OpError, ValueError, IndexError) as error:
        reason = shown(str(error), 200)
        raise CheckpointError(f"{prefix} is not a whole TensorFlow checkpoint: {reason}") from error
    if not tensors:  # so it takes bert_model.ckpt.index for a prefix
        raise CheckpointError(f"{prefix} has no tensors; give what all its files' names begin with")
    return tensors


def hub_name(name: str) -> str:
    """Hugging Face's name of a tensor.

    >>> hub_name("bert/encoder/layer_3/attention/self/query/kernel")
    'bert.encoder.layer.3.attention.self.query.weight'
    """
    dotted = name.replace("/", ".").replace("layer_", "layer.")
    stem, _, ending = dotted.rpartition(".")
    if dotted in RENAMED:
        return RENAMED[dotted]
    if ending not in ENDINGS:
        raise CheckpointError(f"the checkpoint has {shown(name)}, which is no tensor of BERT")
    return f"{stem}.{ENDINGS[ending]}"


def main() -> int:
    """Run the command; gives its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="a released folder, unpacked")
    parser.add_argument("target", type=Path, help="the folder to write")
    parser.add_argument("--checkpoint", default="bert_model.ckpt", metavar="PREFIX")
    case = parser.add_mutually_exclusive_group(required=True)
    case.add_argument("--uncased", action="store_true", help="texts are made lower-case")
    case.add_argument("--cased", action="store_true", help="they are not (all multilingual_cased)")
    options = parser.parse_args()
    try:
        convert(options.source, options.checkpoint, options.target, options.uncased)
    except (CheckpointError, ValueError, OSError) as error:
        print(f"convert_tf_checkpoint: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"convert_tf_checkpoint: {error}; pip install tensorflow-cpu", file=sys.stderr)
        return 1
    print(f"wrote {options.target}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
