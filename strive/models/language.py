"""The language model over rows, with video features in the place of their tokens."""

from typing import Any

from torch import Tensor

from strive.models.attention import AttentionMode, segment_attention
from strive.models.family import MergedFeatures
from strive.models.loading import Policy
from strive.models.rows import Rows


def language_forward(
    policy: Policy,
    model: Any,
    rows: Rows,
    merged: MergedFeatures,
    *,
    cache: Any = None,
    attention: AttentionMode = "sdpa",
) -> Tensor:
    """Hidden states [B, T, H] of the language model over rows with video features filled in.

    What comes out at padding means nothing, but is finite.
    """
    language_model = policy.family.language_model(model)
    embeds_BTH = model.get_input_embeddings()(rows.ids_BT)
    video_H = merged.embeds_NH.to(embeds_BTH.dtype)
    embeds_BTH = embeds_BTH.masked_scatter(rows.video_mask_BT[..., None], video_H)
    output = language_model(
        inputs_embeds=embeds_BTH,
        position_ids=rows.position_ids_3BT,
        attention_mask=policy.family.mask_argument(None),
        past_key_values=cache,
        use_cache=cache is not None,
        **segment_attention(language_model, rows, attention),
        **policy.family.vision_arguments(rows.video_mask_BT, merged),
    )
    return output.last_hidden_state
