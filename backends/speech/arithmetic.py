"""What a folder that hears takes, computed from its headers: weights, caches of each window, the largest activations.

Four and eight bits are counted as bitsandbytes packs them: half a byte per value and a scale for 64, or a byte and a
float32 for each row. Embeddings, convolutions and norms stay as they are.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from backends.plan import Amount, Footprint, Parts
from backends.speech.ctc_header import CtcHeader
from backends.speech.header import FRAMES
from backends.speech.seamless_header import FRAMES as SEAMLESS_FRAMES
from backends.speech.seamless_header import SeamlessHeader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.files.tensors import StoredTensor
    from backends.messages import Device
    from backends.speech.header import SpeechHeader
    from backends.speech.kind import SpeechPlan

RUNTIME_BYTES: Final[Mapping[Device, Amount]] = MappingProxyType(
    {"cpu": Amount(host=340 * 2**20), "cuda": Amount(device=600 * 2**20, host=900 * 2**20)}
)
"""Python with PyTorch and PyAV; on a card the driver's context and cuBLAS."""
AUDIO_BYTES: Final = 32 * 2**20
"""Of one recording: its file, and the samples of a window and of what was decoded beside it."""
_FLOAT_BYTES: Final = 4
_COPIES: Final = 4
"""Of the first convolution's output: itself, its norm, its activation, and the next one's input."""


def predict(header: SpeechHeader, plan: SpeechPlan) -> Footprint:
    """What a plan takes of either memory."""
    runtime = RUNTIME_BYTES[plan.device]
    size = value_bytes(plan.device)
    weights = sum(_tensor_bytes(tensor, header, size) for tensor in header.tensors)
    if header.head is not None and has_own_head(header, plan.device):
        weights += header.head[0] * (header.head[1] + _FLOAT_BYTES)
    if isinstance(header, SeamlessHeader):  # its positions are computed, not stored
        weights += (header.sizes["max_position_embeddings"] + 2) * header.sizes["hidden_size"] * size
    parts = Parts(weights, kv=kv_bytes(header, plan), compute=compute_bytes(header, plan))
    audio = plan.parallel * AUDIO_BYTES
    if plan.device == "cpu":
        return Footprint(host=replace(parts, runtime=runtime.host, further={"audio": audio}))
    return Footprint(replace(parts, runtime=runtime.device), Parts(runtime=runtime.host, further={"audio": audio}))


def has_own_head(header: SpeechHeader, device: Device) -> bool:
    """Whether the output head is a copy of the embeddings in 8 bits: on a processor, of quantised models."""
    is_quantised = header.stored_quantised or header.quantization != "none"
    return device == "cpu" and is_quantised and header.head is not None


def value_bytes(device: Device) -> int:
    """A processor computes in float32, a card in float16."""
    return 2 if device == "cuda" else 4


def kv_bytes(header: SpeechHeader, plan: SpeechPlan) -> int:
    """Keys and values of the sound, and of the tokens, of all windows that are computed at once."""
    if isinstance(header, CtcHeader):
        return 0
    sizes = header.sizes
    if isinstance(header, SeamlessHeader):
        of_one = header.n_heard + sizes["max_new_tokens"]
        return 2 * sizes["decoder_layers"] * of_one * sizes["hidden_size"] * value_bytes(plan.device)
    cells = FRAMES + sizes["max_target_positions"]
    return 2 * sizes["decoder_layers"] * cells * sizes["d_model"] * value_bytes(plan.device) * plan.parallel


def compute_bytes(header: SpeechHeader, plan: SpeechPlan) -> int:
    """Activations of the encoder, the windows' hidden states and logits; a processor encodes one window at a time."""
    if isinstance(header, CtcHeader):
        return _ctc_bytes(header, value_bytes(plan.device))
    if isinstance(header, SeamlessHeader):
        return _seamless_bytes(header, value_bytes(plan.device))
    sizes, size = header.sizes, value_bytes(plan.device)
    at_once = plan.parallel if plan.device == "cuda" else 1
    activations = at_once * FRAMES * (6 * sizes["d_model"] + 2 * sizes["encoder_ffn_dim"]) * size
    convolved = at_once * 2 * FRAMES * (sizes["num_mel_bins"] + 2 * sizes["d_model"]) * _FLOAT_BYTES
    hidden = plan.parallel * FRAMES * sizes["d_model"] * size
    logits = 4 * plan.parallel * sizes["vocab_size"] * _FLOAT_BYTES
    return activations + convolved + hidden + logits


def _ctc_bytes(header: CtcHeader, size: int) -> int:
    """One window of 30 s: the first convolution's frames, some copies of them, and the encoder's activations."""
    frames = 30 * 16_000 // header.strides[0]
    encoded = round(30 / header.frame_s)
    sizes = header.sizes
    layer = encoded * (6 * sizes["hidden_size"] + 2 * sizes["intermediate_size"])
    looks = 2 * sizes["num_attention_heads"] * encoded**2
    return (_COPIES * frames * header.width + layer + looks) * size


def _seamless_bytes(header: SeamlessHeader, size: int) -> int:
    """One window of 30 s: an encoder layer's activations, what all frames see of all, and vectors of distances."""
    sizes, frames = header.sizes, SEAMLESS_FRAMES
    layer = frames * (8 * sizes["hidden_size"] + 2 * sizes["speech_encoder_intermediate_size"])
    heads = sizes["speech_encoder_attention_heads"]
    distances = sizes["hidden_size"] // heads if header.is_relative else 0
    return (layer + frames**2 * (3 * heads + distances)) * size + 4 * sizes["vocab_size"] * _FLOAT_BYTES


def _tensor_bytes(tensor: StoredTensor, header: SpeechHeader, size: int) -> int:
    if header.stored_quantised:
        return tensor.n_bytes
    kept = any(word in tensor.name for word in ("embed", "shared.", "lm_head.", "proj_out."))
    is_linear = len(tensor.shape) == 2 and tensor.name.endswith(".weight") and not kept
    if not is_linear or header.quantization == "none":
        return tensor.n_elements * size
    if header.quantization == "bnb-8bit":
        return tensor.n_elements + tensor.shape[0] * _FLOAT_BYTES
    return tensor.n_elements // 2 + tensor.n_elements // 64 + tensor.n_elements // 4096
