"""Tiny language models of Hugging Face's transformers, trained: `python language_models.py NAME... --out FOLDER`.

They begin at FOLDER/gpt2, a checkpoint folder that a test made; each scenario leaves FOLDER/NAME-RANK.pt.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import problems as p
import torch
from memory_loader import MemoryLoader
from torch import nn

import headrace as hr

warnings.filterwarnings("ignore")  # theirs


def make(folder):
    """A GPT-2 whose output layer is tied to its embedding."""
    import transformers

    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": 32}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
        setattr(config, name, 0.0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


def gpt2(folder):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def llama():
    """A Llama, which brings a plan for tensor parallel processes."""
    import transformers

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16}
    config = transformers.LlamaConfig(**sizes, intermediate_size=32, vocab_size=32, max_position_embeddings=16)
    return transformers.LlamaForCausalLM(config)


def adapted(folder, seed=0):
    """The same with adapters beside its attention."""
    import peft

    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    return peft.get_peft_model(gpt2(folder), config)


def loss(output, batch):
    logits, tokens = output.logits[:, :-1], batch["tokens"][:, 1:]
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def trainer(model, **options):
    tokens = np.random.default_rng(0).integers(0, 4, (48, 8)).cumsum(1) % 32
    loader = MemoryLoader({"tokens": tokens}, 12, epochs=None)
    options = {"optimizer": hr.adamw(0.01), "checkpoint_every": 4, **options}
    return p.trainer(model, loader, loss, inputs=lambda batch: {"input_ids": batch["tokens"]}, **options)


def whole(folder, run):
    """Eight steps, and the second half of them again from a checkpoint by a model that begins elsewhere."""
    model, options = gpt2(folder / "gpt2"), {"optimizer": hr.sgd(0.5, momentum=0.9)}
    first = trainer(model, run_dir=folder / f"{run}-once", **options).fit(steps=8)
    trainer(gpt2(folder / "gpt2"), run_dir=folder / f"{run}-twice", **options).fit(steps=4)
    again = gpt2(folder / "gpt2")
    nn.init.normal_(again.transformer.wte.weight)
    result = trainer(again, run_dir=folder / f"{run}-twice", **options).fit(steps=8)
    assert result.resumed_from is not None
    return {"weights": p.weights(model), "again": p.weights(again), "loss": first.loss}


def adapters(folder, run):
    """The same with adapters only, whose frozen base is not saved."""
    model = adapted(folder / "gpt2")
    base = {name: value for name, value in p.weights(model).items() if "lora_" not in name}
    options = {"save_frozen": False, "ema": 0.9}
    first = trainer(model, run_dir=folder / f"{run}-once", **options).fit(steps=8)
    trainer(adapted(folder / "gpt2"), run_dir=folder / f"{run}-twice", **options).fit(steps=4)
    again = adapted(folder / "gpt2", seed=9)
    trainer(again, run_dir=folder / f"{run}-twice", **options).fit(steps=8)
    found = p.weights(model)
    moved = p.largest_difference({name: found[name] for name in base}, base)
    if not any(hasattr(value, "full_tensor") for value in model.state_dict().values()):
        model.save_pretrained(folder / f"{run}-adapter")
    return {"weights": found, "again": p.weights(again), "loss": first.loss, "base moved": moved}


def cut(folder, run):
    """A Llama by its own plan, if the mesh has tensor parallel processes."""
    model = llama()
    options = {"optimizer": hr.sgd(0.5, momentum=0.9), "clip_grad_norm": 1.0, "checkpoint_every": None}
    result = trainer(model, **options).fit(steps=8)
    parts = sorted(name for name, value in model.state_dict().items() if hasattr(value, "full_tensor"))
    return {"weights": p.weights(model), "loss": result.loss, "parts": parts}


def main(names, folder):
    torch.set_num_threads(1)
    for name in names:
        found = {"whole": whole, "adapters": adapters, "cut": cut}[name](folder, f"{name}-run")
        torch.save(found, folder / f"{name}-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(sys.argv[1:-2], Path(sys.argv[-1]))
