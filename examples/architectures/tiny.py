"""A tiny configuration of every type of model that transformers has as a language model or as a sequence classifier.

Configurations have many names for the same size, nearly all of which are in `SIZES`. Further options that a type needs
are in `CHANGES`.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from rgtg_logits.testing import EOS, PAD, VOCAB_SIZE

REACH = 24
"""Windows, chunks and blocks, in tokens: more than the probe's rows have, as in real models; the sweep's have more."""

# fmt: off
_NAMES: dict[Any, list[str]] = {
    VOCAB_SIZE: ["vocab_size", "vocab_size_per_layer_input"],
    # Width, and its parts.
    32: ["hidden_size", "n_embd", "d_model", "dim", "emb_dim", "embedding_size", "word_embed_proj_dim"],
    48: ["intermediate_size", "ffn_dim", "ffn_hidden_size", "dff", "d_ff", "d_inner", "n_inner", "hidden_dim", "dim_ff",
         "encoder_ffn_dim", "decoder_ffn_dim"],
    8: ["head_dim", "swa_head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim", "d_kv",
        "indexer_head_dim", "linear_head_dim", "linear_key_head_dim", "linear_value_head_dim", "kv_channels",
        "dim_head", "rotary_dim", "q_lora_rank", "kv_lora_rank", "o_lora_rank", "hc_lowrank", "laurel_rank",
        "adapter_rank", "d_rel", "hidden_size_per_layer_input", "mamba_d_state", "state_size", "ssm_state_size"],
    # Two layers, or one of each kind (see `_layers`); one of them dense where the others are mixtures of experts.
    2: ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
        "num_encoder_layers", "num_decoder_layers", "depth", "num_blocks", "attn_layer_period", "expert_layer_period",
        # Heads that are shared, and experts that are chosen.
        "num_key_value_heads", "num_query_groups", "swa_num_key_value_heads", "linear_num_key_heads",
        "linear_num_value_heads", "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k",
        "top_k_experts", "moe_k", "mamba_expand", "expand"],
    1: ["first_k_dense_replace", "num_dense_layers", "attn_layer_offset", "expert_layer_offset", "n_group",
        "topk_group", "num_expert_group", "n_groups", "mamba_n_groups", "mamba_ngroups"],
    4: ["num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
        "num_encoder_attention_heads", "num_decoder_attention_heads", "swa_num_attention_heads", "linear_num_heads",
        "mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "mamba_dt_rank", "time_step_rank",
        "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"],
    # Many index heads, because the scores of few are often all cut to 0, and among equals any may be the highest.
    16: ["index_n_heads", "indexer_n_heads", "mamba_d_head", "mamba_head_dim", "mamba_headdim",
         "moe_intermediate_size", "shared_expert_intermediate_size", "shared_experts_intermediate_size",
         "shared_intermediate_size", "moe_shared_expert_intermediate_size", "expert_ffn_hidden_size",
         "dense_intermediate_size", "intermediate_size_mlp", "router_hidden_size"],
    64: ["mamba_d_ssm"],
    128: ["max_position_embeddings", "n_positions", "max_seq_len"],
    REACH: ["mamba_chunk_size", "chunk_size", "block_size", "index_topk", "floor_scale", "rel_extent",
            "keep_window_size"],
    False: ["use_mamba_kernels"],
}
SIZES = {name: size for size, names in _NAMES.items() for name in names}
"""Set where a configuration has the name."""
WINDOWS = ["sliding_window", "sliding_window_size", "attention_window_size", "attention_chunk_size", "window_size",
           "log_scaling_n_floor"]
"""Set to `REACH` where a configuration has one by default."""
LAYERS = ["layer_types", "mlp_layer_types", "layers_block_type", "indexer_types"]
"""Lists of the kind of each layer."""

_SHARED_CACHE = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4,
                 "num_kv_shared_layers": 2}
_ASSISTANT = {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
CHANGES: dict[str, dict[str, Any]] = {
    # Both kinds of layers of the published models, where the defaults have but one.
    "bamba": {"attn_layer_indices": [1]},
    "dory": {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4, "n_input_layers": 1,
             "n_recurrent_layers": 2, "n_output_layers": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zamba": {"layers_block_type": ["mamba", "hybrid"] * 2, "num_hidden_layers": 4, "attention_hidden_size": 64,
              "attention_head_dim": 16},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "num_hidden_layers": 2},
    "zaya": {"layer_types": ["hybrid", "hybrid_sliding"], "sliding_window": REACH, "num_experts_per_tok": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"]},
    "gemma3n_text": {**_SHARED_CACHE, "activation_sparsity_pattern": [0.5, 0.0, 0.5, 0.0]},
    "gemma4_text": {**_SHARED_CACHE, "global_head_dim": 16},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"], "index_n_heads": 2,
                           "index_block_size": 4, "index_topk_blocks": 5},
    # Blocks that rows of the lengths checked fill, and choices among them that leave something out.
    "deepseek_v4": {"index_topk": 4,
                    "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": REACH}},
    "qwen4_exp_text": {"indexer_kv_heads": 1, "indexer_budget": REACH, "indexer_compress_ratio": 4},
    # Sizes that belong together.
    "dots3_note_text": {"per_layer_config": {1: {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}}},
    "esmc": {"num_key_value_heads": 4},
    "mamba2": {"head_dim": 16},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "transfo-xl": {"cutoffs": [10, 20, 40], "d_embed": 32, "d_head": 8, "mem_len": 0},
    # Tables that are large whatever the width.
    "roc_bert": {"pronunciation_embed_dim": 8, "shape_embed_dim": 8, "shape_vocab_size": 11},
    "luke": {"entity_vocab_size": 11, "entity_emb_size": 8},
    "perceiver": {"num_latents": 4, "d_latents": 32},
    # Scales under which the prefix would hardly count.
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8},
    "vaultgemma": {"query_pre_attn_scalar": 8},
    "minicpm3": {"scale_emb": 1, "scale_depth": 1.4},
    "gemma4_assistant": {"text_config": _ASSISTANT},
    # Options without a default.
    "dots1": {"n_shared_experts": 1},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {
        "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}},
    "mistral4": {"rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "llama_4_scaling_beta": 0.1,
        "original_max_position_embeddings": REACH}},
    # Parts that read pictures or sound, which are not used.
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32, "downsample_hidden_size": 8},
    "dots3_note_vision_encoder": {"adapter_in_dim": 32, "adapter_out_dim": 32, "mlp_layer_types": ["dense", "dense"]},
    "emu3": {"vocabulary_map": {"<image>": 2, "<|extra_200|>": 3, "<|visual token 000000|>": 4}},
    "emu3_vqgan": {"base_channels": 32, "codebook_size": 8, "channel_multiplier": [1, 1]},
    "llama4_vision_model": {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    "mllama_text_model": {"cross_attention_layers": [], "rope_scaling": {"rope_type": "default"}},
}
"""Options by model type, of parts of a model too."""

PARTS: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {"text_config": _ASSISTANT},
    "musicgen": {"text_encoder": {"model_type": "t5"}, "audio_encoder": {"model_type": "encodec"},
                 "decoder": {"model_type": "musicgen_decoder"}},
    "musicgen_melody": {"text_encoder": {"model_type": "t5"}, "audio_encoder": {"model_type": "encodec"},
                        "decoder": {"model_type": "musicgen_melody_decoder"}},
    "phi4_multimodal": {"vision_config": {}, "audio_config": {}},
}
"""Options without which there is no configuration at all."""

SETTINGS: dict[str, dict[str, Any]] = {
    "falcon, ALiBi": {"alibi": True},
    "falcon, new decoder": {"new_decoder_architecture": True},
    "gemma2, eager attention": {"attn_implementation": "eager"},
    "gemma3_text, bidirectional": {"use_bidirectional_attention": True},
    "gpt_bigcode, without shared heads": {"multi_query": False},
    "llama, eager attention": {"attn_implementation": "eager"},
    "mixtral, sliding window": {"sliding_window": REACH},
    "mpt, without ALiBi": {"attn_config": {"alibi": False}},
    "phi3, longrope": {"original_max_position_embeddings": REACH, "rope_scaling": {
        "type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}},
    "phi3, sliding window": {"sliding_window": REACH},
    "qwen2, sliding window": {"use_sliding_window": True, "sliding_window": REACH,
                              "layer_types": ["full_attention", "sliding_attention"]},
    "starcoder2, sliding window": {"sliding_window": REACH},
}
"""Options of further rows by name: the model type, a comma, and a remark."""
# fmt: on


def tiny_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """A configuration with 61 tokens, a width of 32 and a layer of each kind.

    Args:
        model_type: As transformers calls it.
        changes: Further options.

    Raises:
        ValueError: If the installed transformers does not know the type.
    """
    parts = PARTS.get(model_type, {})
    default = AutoConfig.for_model(model_type, **parts)
    return type(default)(**{**_shrunk(default), "num_labels": 1, **changes})


def _shrunk(default: PretrainedConfig) -> dict[str, Any]:
    """The options that make a configuration tiny, parts of it included."""
    known = {name: value for name, value in default.to_dict().items() if _can_be_set(default, name)}
    options = {name: size for name, size in SIZES.items() if name in known}
    options |= {name: REACH for name in WINDOWS if known.get(name)}
    options |= _layers(known)
    if known.get("kv_lora_rank"):
        # Keys and values of all heads are made from one latent state.
        options["num_key_value_heads"] = options["num_attention_heads"]
    if {"image_size", "patch_size"} <= known.keys():
        options |= {"image_size": 16, "patch_size": 8}
    if "vocab_size" in known:
        options |= {"pad_token_id": PAD, "bos_token_id": EOS, "eos_token_id": EOS}
    for name, part in vars(default).items():
        if isinstance(part, PretrainedConfig):
            options[name] = {**_shrunk(part), "model_type": part.model_type}
    return {**options, **CHANGES.get(default.model_type, {})}


def _layers(known: dict[str, Any]) -> dict[str, Any]:
    """Every kind of layer that a configuration has by default, once."""
    kinds = {name: list(dict.fromkeys(known[name])) for name in LAYERS if known.get(name)}
    if not kinds:
        return {}
    depth = max(2, *map(len, kinds.values()))
    return {**{name: (each * depth)[:depth] for name, each in kinds.items()}, "num_hidden_layers": depth}


def _can_be_set(config: PretrainedConfig, name: str) -> bool:
    attribute = getattr(type(config), name, None)
    return not isinstance(attribute, property) or attribute.fset is not None
