"""Tiny text encoders of the real classes, with tokenizers of a few words: nothing is downloaded."""

import json

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from models import tiny_flux
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

TEXT = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1}
TEXT |= {"num_attention_heads": 2, "vocab_size": 60, "bos_token_id": 52, "eos_token_id": 53}
VISION = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1}
VISION |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16}


def clip_tokenizer(folder):
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77
    )


def save_clip(folder):
    """A CLIP of random weights, as `from_pretrained` reads it."""
    torch.manual_seed(0)
    size = {"shortest_edge": 32}
    pixels = CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32})
    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(pixels, clip_tokenizer(folder)).save_pretrained(folder)


def flux_pipeline(folder):
    """A FluxPipeline that takes prompts."""
    torch.manual_seed(0)
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    t5 = T5Config(vocab_size=8, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    vae = AutoencoderKL(
        block_out_channels=(8,),
        latent_channels=1,
        norm_num_groups=2,
        sample_size=32,
        scaling_factor=0.4,
        shift_factor=0.1,
    )
    pipeline = FluxPipeline(
        FlowMatchEulerDiscreteScheduler(),
        vae.eval(),
        CLIPTextModel(CLIPTextConfig(**TEXT)).eval(),
        clip_tokenizer(folder),
        T5EncoderModel(t5).eval(),
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=16
        ),
        tiny_flux(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
