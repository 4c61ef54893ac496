"""Transformers of diffusers whose inputs are packed or have a cache, small; and the classes that are left out."""

from __future__ import annotations

from typing import Any

import torch

from .case import Case, const, ints, ones, rand

__all__ = ["CASES"]


def _minimax() -> dict[str, Any]:
    text, audio, video = torch.arange(5), torch.arange(5, 9), torch.arange(9, 17)
    tags, times = torch.zeros(17, dtype=torch.long), torch.zeros(17, dtype=torch.long)
    tags[text], tags[audio], times[audio] = 1, 2, 1
    return {
        "hidden_states": rand(2, 8, 16), "audio_hidden_states": rand(2, 4, 6), "encoder_hidden_states": rand(2, 5, 8),
        "timestep": torch.tensor([0.7, 0.3]), "timestep_indices": times, "token_tags": tags,
        "position_ids": ints(9, 17, 3).float(), "video_indices": video, "audio_indices": audio, "text_indices": text,
    }  # fmt: skip


def _cosmos3() -> dict[str, Any]:
    vision = torch.arange(3, 7)
    return {
        "input_ids": torch.tensor([1, 2, 3]), "text_indexes": torch.arange(3), "position_ids": ints(9, 3, 7), "und_len": 3,
        "sequence_length": 7, "vision_tokens": [rand(1, 2, 1, 2, 2)], "vision_token_shapes": [(1, 2, 2)],
        "vision_sequence_indexes": vision, "vision_mse_loss_indexes": vision, "vision_timesteps": torch.ones(4),
        "vision_noisy_frame_indexes": [torch.tensor([0])],
    }  # fmt: skip


def _flux3() -> dict[str, Any]:
    return {
        "hidden_states": rand(2, 12, 4), "encoder_hidden_states": rand(2, 7, 24), "timestep": const(0.5),
        "img_ids": ints(9, 12, 4).float(), "txt_ids": ints(9, 7, 4).float(),
    }  # fmt: skip


def _animate2() -> dict[str, Any]:
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return {
        "hidden_states": [rand(16, 2, 4, 4)], "timestep": const(1.0, 1), "encoder_hidden_states": [rand(8, 16)],
        "condition_latents": [rand(20, 2, 4, 4)], "encoder_hidden_states_image": rand(1, 4, 1280),
        "kv_cache": WanAnimate2KVCache(2), "kv_cache_mode": "extract", "seq_len": 8,
        "offset_grid_sizes": torch.tensor([[2, 2, 2]]),
    }  # fmt: skip


_LTX2 = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16,
    "audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2, "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 8, "num_layers": 2, "caption_channels": 16, "rope_double_precision": False,
}  # fmt: skip
_KANDINSKY = {
    "in_visual_dim": 4,
    "out_visual_dim": 4,
    "time_dim": 16,
    "model_dim": 24,
    "ff_dim": 32,
    "axes_dims": (4, 4, 4),
}

CASES = (
    Case("StableAudio3DiTModel",
         {"io_channels": 8, "patch_size": 1, "embed_dim": 64, "depth": 2, "num_heads": 2, "cond_token_dim": 16,
          "global_cond_dim": 12, "local_add_cond_dim": 5, "timestep_features_dim": 16, "ff_mult": 2, "num_memory_tokens": 3},
         lambda: {"hidden_states": rand(2, 8, 16), "timestep": const(0.5), "encoder_hidden_states": rand(2, 4, 16),
                  "global_hidden_states": rand(2, 12)}, ("_apply_rotary_partial",)),
    Case("Flux3Transformer2DModel",
         {"in_channels": 4, "cond_in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
          "num_attention_heads": 2, "joint_attention_dim": 24, "timestep_channels": 32, "axes_dims_rope": (4, 4, 4, 4)},
         _flux3, ("apply_rotary_emb",)),
    Case("QwenImage21Transformer2DModel",
         {"patch_size": 1, "in_channels": 16, "out_channels": 16, "num_layers": 2, "attention_head_dim": 16,
          "num_attention_heads": 2, "context_in_dim": 12, "axes_dims_rope": (8, 4, 4)},
         lambda: {"hidden_states": rand(1, 16, 16), "encoder_hidden_states": rand(1, 7, 12), "timestep": const(0.5, 1),
                  "img_shapes": [[(1, 4, 4)]], "img_mask": torch.arange(11)[None] > 6}, ("apply_rotary_emb_qwen",)),
    Case("BriaFibo2Transformer2DModel",
         {"in_channels": 4, "patch_size": 2, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "cap_feat_dim": 12,
          "injection_layer_ids": (0,), "perceiver_num_layers": 1, "min_num_gist_tokens": 4, "max_num_gist_tokens": 8,
          "gist_step": 2,
          "gist_min_text_len": 4, "gist_max_text_len": 16, "axes_dims": (8, 4, 4), "axes_lens": (64, 32, 32)},
         lambda: {"hidden_states": rand(1, 4, 8, 8), "timestep": const(0.5, 1), "encoder_hidden_states": rand(1, 2, 7, 12)},
         ("apply_rotary_emb",)),
    Case("Kandinsky6Transformer3DModel",
         {**_KANDINSKY, "in_text_dim": 12, "in_text_dim2": 10, "num_text_blocks": 1, "num_visual_blocks": 2, "visual_cond": False,
          "in_audio_dim": 5, "out_audio_dim": 5, "model_dim_a": 24, "time_dim_a": 16, "ff_dim_a": 16, "axes_dims_a": (12,)},
         lambda: {"hidden_states": rand(1, 2, 4, 4, 4), "encoder_hidden_states": rand(1, 5, 12), "pooled_projections": rand(1, 10),
                  "timestep": const(5.0, 1), "audio_hidden_states": rand(1, 6, 5)}, ("apply_rotary",)),
    Case("Kandinsky6SRTransformer3DModel",
         {**_KANDINSKY, "num_visual_blocks": 2, "tile_sizes": ((128, 128),)},
         lambda: {"hidden_states": rand(1, 2, 16, 16, 9), "timestep": const(5.0, 1)}, ("apply_rotary",)),
    Case("MiniMaxMusic3RVQDepthDecoder",
         {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "audio_vocab_size": 16},
         lambda: {"inputs_embeds": rand(2, 8, 32)}),
    Case("MiniMaxH3Transformer3DModel",
         {"num_attention_heads": 2, "attention_head_dim": 16, "hidden_size": 24, "num_layers": 2, "num_refiner_layers": 2,
          "ffn_dim": 32, "in_channels": 4, "audio_in_channels": 6, "patch_size": (1, 2, 2), "text_dim": 8, "freq_dim": 8,
          "time_embed_hidden_dim": 24, "time_embed_dim": 16, "rope_freq_dim": 2}, _minimax, ("_apply_rotary_emb",)),
    Case("DreamLiteTransformer2DModel",
         {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 16, "num_layers": 2, "norm_num_groups": 4,
          "cross_attention_dim": 12, "qk_norm": "rms_norm", "use_linear_projection": True},
         lambda: {"hidden_states": rand(2, 16, 4, 4), "encoder_hidden_states": rand(2, 7, 12)}),
    Case("AnyFlowFARTransformer3DModel",
         {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 16,
          "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32, "chunk_partition": (2, 2)},
         lambda: {"hidden_states": rand(1, 4, 4, 16, 16), "timestep": const(500.0, 1, 4), "r_timestep": const(250.0, 1, 4),
                  "encoder_hidden_states": rand(1, 7, 16), "chunk_partition": [2, 2]}, ("apply_rotary_emb",)),
    Case("Cosmos3OmniTransformer",
         {"head_dim": 12, "hidden_act": "silu", "hidden_size": 24, "intermediate_size": 24, "latent_channel": 2,
          "latent_patch_size": 1, "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1,
          "patch_latent_dim": 2, "rope_axes_dim": [2, 2, 2], "vocab_size": 32}, _cosmos3, ("_rotate_half",)),
    Case("WanAnimate2Transformer3DModel",
         {"patch_size": (1, 2, 2), "text_len": 16, "in_dim": 36, "dim": 48, "ffn_dim": 64, "freq_dim": 32, "text_dim": 16,
          "out_dim": 16, "num_heads": 2, "num_layers": 2, "cross_attn_norm": True, "use_img_emb": True},
         _animate2, ("rope_apply",)),
    Case("SanaWMLTX2RefinerTransformer3DModel", _LTX2,
         lambda: {"hidden_states": rand(2, 18, 4), "encoder_hidden_states": rand(2, 7, 16), "timestep": const(0.5),
                  "video_rotary_emb": (rand(2, 18, 16).cos(), rand(2, 18, 16).sin()), "encoder_attention_mask": ones(2, 7)},
         ("apply_interleaved_rotary_emb", "apply_split_rotary_emb")),
    Case("SanaWMTransformer3DModel", why="its inputs are camera rays, chunked Pluecker maps and tables made by its pipeline"),
    Case("RFD4ProteinaTransformer", why="a model of proteins: 21 kinds of features of atoms and chains as inputs"),
)  # fmt: skip
