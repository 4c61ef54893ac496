"""Transformers of diffusers for sound and inside other models, small; and the classes that cannot be built here."""

from __future__ import annotations

from .case import Case, const, ones, rand

__all__ = ["CASES"]

CASES = (
    Case("AceStepTransformer1DModel",
         {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "head_dim": 8, "in_channels": 24, "audio_acoustic_hidden_dim": 8, "patch_size": 2,
          "sliding_window": 16},
         lambda: {"hidden_states": rand(2, 8, 8), "timestep": const(0.5), "timestep_r": const(0.25),
                  "encoder_hidden_states": rand(2, 10, 32), "context_latents": rand(2, 8, 16)}, ("apply_rotary_emb",)),
    Case("StableAudioDiTModel",
         {"sample_size": 16, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4,
          "num_key_value_attention_heads": 2, "out_channels": 4, "cross_attention_dim": 16, "time_proj_dim": 8,
          "global_states_input_dim": 16, "cross_attention_input_dim": 12},
         lambda: {"hidden_states": rand(2, 4, 16), "timestep": const(0.5), "encoder_hidden_states": rand(2, 7, 12),
                  "global_hidden_states": rand(2, 1, 16), "rotary_embedding": (rand(17, 4).cos(), rand(17, 4).sin())},
         ("apply_rotary_emb",)),
    Case("LongCatAudioDiTTransformer",
         {"dit_dim": 64, "dit_depth": 2, "dit_heads": 4, "dit_text_dim": 32, "latent_dim": 8, "text_conv": False},
         lambda: {"hidden_states": rand(1, 16, 8), "encoder_hidden_states": rand(1, 10, 32),
                  "encoder_attention_mask": ones(1, 10), "attention_mask": ones(1, 16), "timestep": const(1.0, 1)},
         ("_apply_rotary_emb",)),
    Case("MiniMaxMusic3Transformer1DModel",
         {"in_channels": 8, "condition_dim": 16, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8,
          "ff_inner_dim": 32, "rotary_dim": 4, "fourier_embedding_dim": 8},
         lambda: {"hidden_states": rand(1, 8, 24), "encoder_hidden_states": rand(1, 24, 16), "timestep": const(0.5, 1)},
         ("_apply_partial_rotary_emb",)),
    Case("TransformerTemporalModel",
         {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "num_layers": 1, "norm_num_groups": 1},
         lambda: {"hidden_states": rand(2, 4, 8, 8)}),
    Case("Transformer2DModel",
         {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 16, "num_layers": 2, "norm_num_groups": 4,
          "cross_attention_dim": 12},
         lambda: {"hidden_states": rand(2, 16, 4, 4), "encoder_hidden_states": rand(2, 7, 12)}),
    Case("T5FilmDecoder",
         {"input_dims": 8, "targets_length": 8, "d_model": 32, "num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 32},
         lambda: {"encodings_and_masks": [(rand(2, 6, 32), ones(2, 6).float())], "decoder_input_tokens": rand(2, 8, 8),
                  "decoder_noise_time": const(0.5)}),
    Case("UNet2DConditionModel",
         {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4, "in_channels": 4,
          "out_channels": 4, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
          "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 12, "attention_head_dim": 4},
         lambda: {"sample": rand(2, 4, 8, 8), "timestep": 3, "encoder_hidden_states": rand(2, 7, 12)}),
)  # fmt: skip
